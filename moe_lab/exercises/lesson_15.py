"""Exercises of lesson 15: what binds, bytes on a device, a design for one GPU and one for two nodes, a review."""

import functools
import json
import random
from collections.abc import Mapping

from moe_lab.accounting.counts import count
from moe_lab.capstone import BRIEFS, Design, Report, device_bytes, grade, laptop_design, published_design, read_design
from moe_lab.exercises import Exercise, Property

GLM_SIZES = {
    "model_type": "glm4_moe",
    "vocab_size": 129_280,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 58,
    "num_attention_heads": 48,
    "num_key_value_heads": 12,
    "head_dim": 128,
    "n_routed_experts": 128,
    "moe_intermediate_size": 3072,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "first_k_dense_replace": 2,
    "use_qk_norm": True,
    "max_position_embeddings": 65_536,
}
REVIEWED = Design(GLM_SIZES, method="capacity_top_k", devices=16)
"""A colleague's design for the brief "nodes", which exercise 15.5 reviews."""
BROKEN = ("no token dropped", "causal", "memory_bytes", "busiest_over_mean", "decode_ms")
"""What `grade` says of it, the worst first; written down, so that importing this file grades nothing."""
MOST_CHANGES = 2


def graded(design: object, brief: str) -> Report:
    """`grade`, once for each design: every property asks for the same report.

    Raises TypeError for anything but a design.
    """
    if not isinstance(design, Design):
        raise TypeError(f"give a Design, got {type(design).__name__}")
    return _graded(json.dumps(design.as_dict()), brief)


@functools.lru_cache(maxsize=64)
def _graded(text: str, brief: str) -> Report:
    return grade(read_design(json.loads(text)), BRIEFS[brief])


# ---------------------------------------------------------------- 15.1: what binds


def _from_published(name: str, brief: str, **options: int) -> tuple[Design, str]:
    return published_design(name, BRIEFS[brief].vocab_size, **options), brief


CASES = {
    "a": lambda: (laptop_design(num_experts=128), "laptop"),
    "b": lambda: (laptop_design(num_experts_per_tok=24), "laptop"),
    "c": lambda: (Design(laptop_design().config, dtype="float16"), "laptop"),
    "d": lambda: _from_published("qwen3-30b-a3b", "gpu"),
    "e": lambda: _from_published("qwen3-235b-a22b", "nodes", devices=16, extra_experts=32),
    "f": lambda: _from_published("qwen3-235b-a22b", "nodes", devices=8, extra_experts=32),
}


def _binds(letter: str) -> Property:
    def holds(answer) -> str | None:
        if not isinstance(answer, Mapping) or set(answer) != set(CASES):
            return f"give a dict with the keys {', '.join(CASES)}"
        design, brief = CASES[letter]()
        report = graded(design, brief)
        if answer[letter] not in report.brief.budgets:
            return f"{answer[letter]!r:.60} is no budget of the brief {brief!r}"
        yours = report.row(answer[letter])
        return (
            None if answer[letter] == report.binds else f"of {yours.budget} it uses {yours.used:.0%}; another is worse"
        )

    return holds


# ---------------------------------------------------------------- 15.2: bytes on a device

Numbers = tuple[int, int, int, int, int, int, int, int]
"""Parameters, those of experts, experts a layer, replicas a layer, devices, cached numbers a token, tokens, bytes."""


def spec_bytes(*given: int) -> int:
    """The grader's own `device_bytes`, with the cache counted from its tokens."""
    total, experts, num_experts, replicas, devices, cached, tokens, size = given
    places = num_experts + replicas
    return device_bytes(total, experts, num_experts, places, devices, size, cached * tokens * size)


def _holds_bytes(given: Numbers, spec: int | None = None) -> Property:
    def holds(answer) -> str | None:
        wanted, yours = spec_bytes(*given) if spec is None else spec, answer(*given)
        return None if yours == wanted else f"yours {yours!r:.60}, spec {wanted:,}"

    return holds


def _counted(answer) -> str | None:
    """Mixtral on one device: what the count says, by another way."""
    counts = count("mixtral-8x7b")
    experts, cached = counts.params_by_component["experts"], counts.kv_cache_bytes(1, "bfloat16") // 2
    spec = counts.bytes("bfloat16") + counts.kv_cache_bytes(4096, "bfloat16", sequences=3)
    yours = answer(counts.total_params, experts, 8, 0, 1, cached, 3 * 4096, 2)
    return None if yours == spec else f"yours {yours!r:.60}, spec {spec:,}"


def _drawn_bytes(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        devices, size = draw.choice([1, 2, 4, 8]), draw.choice([2, 4])
        num_experts, replicas = devices * draw.randint(1, 9), devices * draw.randint(0, 3)
        experts = num_experts * draw.randint(1, 10**6)
        given = experts + draw.randint(0, 10**6), experts, num_experts, replicas, devices, draw.randint(0, 99)
        if (fault := _holds_bytes((*given, draw.randint(0, 99), size))(answer)) is not None:
            return f"drawn by chance, {devices} devices, {replicas} replicas: {fault}"
    return None


# ---------------------------------------------------------------- 15.3, 15.4: designs


def _keeps(brief: str, budget: str) -> Property:
    def holds(answer) -> str | None:
        row = graded(answer(), brief).row(budget)
        if row.met:
            return None
        _, limit, yours, _, margin, known = row.cells
        why = known.partition("; ")[2] or known
        return f"not kept, {why}" if row.unit == "promise" else f"yours {yours}, {limit}: {margin} ({why})"

    return holds


def _keeps_all(brief: str) -> dict[str, Property]:
    return {f"keeps {budget}": _keeps(brief, budget) for budget in BRIEFS[brief].budgets}


# ---------------------------------------------------------------- 15.5: a review


def _parts(answer: object) -> tuple[list[str], dict]:
    """The list of broken budgets and the changes; raises TypeError, in words, for anything else."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise TypeError("give a pair: the list of budgets that are broken, the dict of changes")
    broken, changes = answer
    if not isinstance(broken, list | tuple | set) or not isinstance(changes, Mapping):
        raise TypeError("give a list of names first, and a dict of changes second")
    return list(broken), dict(changes)


def _names(budget: str) -> Property:
    def holds(answer) -> str | None:
        return None if budget in _parts(answer)[0] else "a budget is broken that your list does not have"

    return holds


def _no_false_alarm(answer) -> str | None:
    report = graded(REVIEWED, "nodes")
    broken, _ = _parts(answer)
    wrong = [name for name in broken if name not in report.broken]
    if not broken:
        return "the list is empty"
    return f"{wrong[0]!r:.60} is kept, or no budget" if wrong else None


def mend(changes: Mapping) -> Design:
    """The reviewed design with fields of its own, or else of its config, replaced."""
    own = {name: value for name, value in changes.items() if name in REVIEWED.as_dict()}
    config = {name: value for name, value in changes.items() if name not in own}
    return Design(**{**REVIEWED.as_dict(), "config": {**GLM_SIZES, **config}, **own})


def _mended(answer) -> str | None:
    broken = graded(mend(_parts(answer)[1]), "nodes").broken
    return f"after your changes it breaks {', '.join(broken)}" if broken else None


def _few_changes(answer) -> str | None:
    changes = _parts(answer)[1]
    if "config" in changes:
        return "change fields one by one, not the config as a whole"
    return None if 1 <= len(changes) <= MOST_CHANGES else f"{len(changes)} fields changed, allowed 1..{MOST_CHANGES}"


EXERCISES = {
    "15.1": Exercise(
        "Predict what binds",
        {f"case {letter}": _binds(letter) for letter in CASES},
        hints=(
            "For each case: what grew, and which budgets count it? Experts that rest are stored and not computed; on "
            "one person's laptop they are not even read.",
            "a: stored. b: read, one token at a time. c: the record's rates for float16, lesson 06; a prompt is "
            "arithmetic. d: 64 sequences of 16,384 tokens. e: 94 layers that are 4,096 wide. f: half as many devices.",
            'a "memory_bytes", b "decode_ms", c "prefill_ms", d "memory_bytes", e "exchange_bytes", f "memory_bytes".',
        ),
    ),
    "15.2": Exercise(
        "Implement the bytes on a device",
        {
            "one device, no cache": _holds_bytes((100, 80, 4, 0, 1, 0, 0, 2), 200),
            "the cache of all tokens": _holds_bytes((100, 80, 4, 0, 1, 3, 5, 2), 200 + 30),
            "experts are divided, the rest is whole": _holds_bytes((100, 80, 4, 0, 2, 0, 0, 2), 2 * (20 + 40)),
            "a replica is one more place": _holds_bytes((100, 80, 4, 2, 2, 0, 0, 2), 2 * (20 + 60)),
            "float32": _holds_bytes((100, 80, 4, 0, 4, 1, 10, 4), 4 * (20 + 20 + 10)),
            "all at once": _holds_bytes((1000, 720, 8, 4, 4, 7, 9, 2), 2 * (280 + 3 * 90 + 63)),
            "Mixtral as it is counted": _counted,
            "many, drawn by chance": _drawn_bytes,
        },
        hints=(
            "Three sums: what every device has whole, its share of the experts, its cache. All in numbers first, then "
            "in bytes.",
            "One expert of all layers together is experts // num_experts numbers. A device has "
            "(num_experts + replicas) // devices places for such. The cache is cached * tokens numbers, "
            "in the same format.",
            "\n    places = (num_experts + replicas) // devices\n"
            "    held = total - experts + experts // num_experts * places\n"
            "    return size * (held + cached * tokens)",
        ),
    ),
    "15.3": Exercise(
        "Design for one GPU",
        _keeps_all("gpu"),
        hints=(
            "Begin with Qwen3-30B-A3B. It breaks the memory: which part of its bytes is it, weights or cache, and "
            "which field makes that part smaller without touching an expert?",
            "Halve num_key_value_heads, and take some layers away: both shorten the cache, layers shorten attention's "
            "FLOPs too. Then spend the bytes that came free on experts, wider or more, until 38 B are stored.",
            "\n    sizes = dict(vocab_size=100_352, num_hidden_layers=40, num_key_value_heads=2)\n"
            "    sizes |= dict(num_experts=160, moe_intermediate_size=1024)\n"
            "    return Design(ml.published('qwen3-30b-a3b').config | sizes)",
        ),
    ),
    "15.4": Exercise(
        "Design for two nodes",
        _keeps_all("nodes"),
        hints=(
            "Begin with Qwen3-235B-A22B on 16 devices. What crosses between nodes is tokens: how wide are they, and "
            "how often do they cross? Experts and top_k hardly matter there.",
            "A narrower model of fewer layers sends less: width x layers must fall by half. Make the experts wider for "
            "it, or more. For even devices: replicas (extra_experts), or a router that is even and causal.",
            "\n    sizes = dict(vocab_size=129_280, hidden_size=3072, num_hidden_layers=60, num_attention_heads=48)\n"
            "    sizes |= dict(num_experts=160, moe_intermediate_size=2432)\n"
            "    config = ml.published('qwen3-235b-a22b').config | sizes\n"
            "    return Design(config, devices=16, extra_experts=32)",
        ),
    ),
    "15.5": Exercise(
        "Review a colleague's design",
        {
            "no false alarm": _no_false_alarm,
            **{
                f"finds number {number}": _names(name)
                for number, name in enumerate(graded(REVIEWED, "nodes").broken, 1)
            },
            f"at most {MOST_CHANGES} fields": _few_changes,
            "mended": _mended,
        },
        hints=(
            "Go through the brief's budgets: bytes and times by counting, promises by the router's table. Beware of "
            "the exchange: what is dropped travels nowhere.",
            "The router has three faults, the cache is behind the others. One field heals each group: another method, "
            "even and causal, that drops nothing; and fewer heads for keys and values.",
            '(["no token dropped", "causal", "memory_bytes", "busiest_over_mean", "decode_ms"], '
            '{"method": "balanced_causal", "num_key_value_heads": 4})',
        ),
    ),
}
