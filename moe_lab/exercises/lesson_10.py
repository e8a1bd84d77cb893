"""Exercises of lesson 10: three ratios from two, equal FLOPs, three ratios from runs, unfair races, PR-MoE's size."""

import math
import random
from collections.abc import Mapping, Sequence

from moe_lab.accounting.counts import count
from moe_lab.exercises import Exercise, Property
from moe_lab.models import published

# ---------------------------------------------------------------- 10.1: the third ratio

Known = tuple[float | int | None, float | int | None, float | int | None]
"""Ratios of steps, of examples a second, of seconds; None is not known."""


def _triple(given: Known, spec: Known) -> Property:
    """The answer completes what is given; where less than two are known it leaves the rest None."""

    def holds(answer) -> str | None:
        return _compare(answer(*given), spec)

    return holds


def _compare(yours, spec: Known) -> str | None:
    if not isinstance(yours, Sequence) or len(yours) != 3:
        return f"give three ratios, (steps, examples, seconds), not {yours!r}"[:200]
    for name, found, value in zip(("steps", "examples", "seconds"), yours, spec, strict=True):
        if (found is None) != (value is None) or (value is not None and not math.isclose(found, value, rel_tol=1e-6)):
            return f"{name}: yours {_say(found)}, spec {_say(value)}"
    return None


def _say(ratio: float | int | None) -> str:
    return "None" if ratio is None else f"{ratio:.4g}"


def _any_two(answer) -> str | None:
    draw = random.Random(0)
    for turn in range(60):
        steps, examples = 2 ** draw.uniform(-3, 3), 2 ** draw.uniform(-3, 3)
        whole = (steps, examples, steps * examples)
        given = tuple(None if at == turn % 3 else ratio for at, ratio in enumerate(whole))
        fault = _compare(answer(*given), whole)
        if fault is not None:
            return f"drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 10.2: the width of equal FLOPs


def layer_flops(d_model: int, width: int, num_experts: int, chosen: int, gated: bool) -> int:
    """FLOPs of one token in a layer: router, and the networks that it visits; a dense one has no router."""
    matrices = 3 if gated else 2
    return 2 * d_model * num_experts + 2 * matrices * d_model * width * chosen


def _width(d_ff: int, num_experts: int, top_k: int, num_shared: int, gated: bool, spec: int | None = None) -> Property:
    """The answer is the widest that costs no more than the dense layer: found here by trying, or given by hand."""

    def holds(answer) -> str | None:
        wanted = spec if spec is not None else _widest(d_ff, num_experts, top_k, num_shared, gated)
        yours = answer(d_ff, num_experts, top_k, num_shared, gated)
        return None if yours == wanted else f"yours {yours!r}, spec {wanted}"

    return holds


def _widest(d_ff: int, num_experts: int, top_k: int, num_shared: int, gated: bool) -> int:
    most = layer_flops(8, d_ff, 0, 1, gated)
    fits = (w for w in range(d_ff, 0, -1) if layer_flops(8, w, num_experts, top_k + num_shared, gated) <= most)
    return next(fits, 0)


def _many_widths(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(60):
        case = (draw.randint(1, 900), draw.randint(1, 300), draw.randint(1, 8), draw.randint(0, 2), draw.random() < 0.5)
        fault = _width(*case)(answer)
        if fault is not None:
            return f"{case}: {fault}"
    return None


# ---------------------------------------------------------------- 10.3: three ratios from whole runs

Run = tuple[int, float]
"""(steps, last loss) of a whole run."""


def _speedups(dense: Run, moe: list[Run], times_ms: tuple[float | int, float | int], spec: Known) -> Property:
    def holds(answer) -> str | None:
        return _compare(answer(dense, list(moe), *times_ms), spec)

    return holds


def _on_a_line(answer) -> str | None:
    """Runs whose losses fall by a constant for every factor of steps: the crossing is known beforehand."""
    draw = random.Random(0)
    for _ in range(40):
        lengths, slope, start = sorted(draw.sample(range(50, 9000), 5)), draw.uniform(0.05, 0.9), draw.uniform(2, 4)
        moe = [(steps, start - slope * math.log(steps)) for steps in lengths]
        needed, times = draw.uniform(lengths[0] + 1, lengths[-1] - 1), (draw.uniform(1, 9), draw.uniform(1, 9))
        dense = (draw.randint(9000, 99_000), start - slope * math.log(needed))
        draw.shuffle(moe)
        steps, examples = dense[0] / needed, times[0] / times[1]
        fault = _compare(answer(dense, moe, *times), (steps, examples, steps * examples))
        if fault is not None:
            return f"drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 10.4: what is unfair

Arm = dict[str, object]
FAULTS = ("FLOPs", "data", "schedule", "tuning")


def make_arm(**changes: object) -> Arm:
    """An arm of a fair race: warm-up and a full cosine, read at its end, at the best of three learning rates."""
    steps, top = int(str(changes.pop("steps", 400))), float(str(changes.pop("rate", 4e-3)))
    warm = [top * (step + 1) / 20 for step in range(20)]
    cosine = [top * (0.55 + 0.45 * math.cos(math.pi * (step + 1) / (steps - 20))) for step in range(steps - 20)]
    arm = {
        "flops": 1_000_000,
        "data": ("fec1ea47", "seed 0", "batch 32"),
        "rates": warm + cosine,
        "read_at": steps,
        "tried": {top / 2: 1.62, top: 1.58, 2 * top: 1.71},
    }
    return arm | changes


CONSTANT = [4e-3] * 400
HALF_CUT = [4e-3] * 200 + [4e-3 * (1 - 0.5 * step / 200) for step in range(200)]


def _finds(dense: dict, moe: dict, spec: list[str]) -> Property:
    """The answer names the faults of a race between a fair arm with these changes and another one with those."""

    def holds(answer) -> str | None:
        yours = answer(make_arm(**dense), make_arm(**{"steps": 100} | moe))
        return None if isinstance(yours, Sequence) and list(yours) == spec else f"yours {yours!r}, spec {spec}"

    return holds


def _either_arm(answer) -> str | None:
    """A fault is a fault in whichever arm it is."""
    for change, fault in (
        ({"read_at": 60}, "schedule"),
        ({"rates": CONSTANT, "read_at": 400}, "schedule"),
        ({"tried": {4e-3: 1.5, 8e-3: 1.6}}, "tuning"),
        ({"flops": 1_020_000}, "FLOPs"),
    ):
        for arms in ((change, {}), ({}, change)):
            if (said := _finds(*arms, [fault])(answer)) is not None:
                return f"{fault} in the {'first' if arms[0] else 'second'} arm: {said}"
    return None


# ---------------------------------------------------------------- 10.5: parameters of PR-MoE

TINY = {
    "model_type": "deepspeed_moe",
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "num_experts": [0, 3],
    "num_experts_per_tok": 1,
    "residual": True,
    "gated": False,
    "biases": True,
    "norms_per_layer": 2,
    "learned_position_embeddings": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 5,
}


def _stores(config: Mapping[str, object]) -> Property:
    def holds(answer) -> str | None:
        yours, spec = answer(dict(config)), count(dict(config)).total_params
        return None if yours == spec else f"yours {yours:,}, spec {spec:,}"

    return holds


def _many_models(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(20):
        layers, heads, head_dim = draw.randint(1, 6), draw.randint(1, 4), draw.randint(1, 9)
        experts = [draw.choice([0, 1, 4, 9]) for _ in range(layers - 1)] + [draw.randint(1, 9)]
        changes = {
            "vocab_size": draw.randint(1, 99),
            "hidden_size": heads * head_dim,
            "intermediate_size": draw.randint(1, 99),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "num_experts": experts,
            "residual": draw.random() < 0.5,
            "max_position_embeddings": draw.randint(1, 99),
        }
        fault = _stores(TINY | changes)(answer)
        if fault is not None:
            return f"experts {experts}, residual {changes['residual']}: {fault}"
    return None


EXERCISES = {
    "10.1": Exercise(
        "Tell the third ratio from two",
        {
            "Switch-Base: steps and examples": _triple((7.5, 0.625, None), (7.5, 0.625, 4.6875)),
            "OLMoE: tokens and speed": _triple((3, 0.64, None), (3, 0.64, 1.92)),
            "examples from the other two": _triple((6, None, 3), (6, 0.5, 3)),
            "steps from the other two": _triple((None, 0.5, 2), (4, 0.5, 2)),
            "one alone tells nothing": _triple((7.5, None, None), (7.5, None, None)),
            "nor does none": _triple((None, None, None), (None, None, None)),
            "what is known stays": _triple((2, 0.25, 0.5), (2, 0.25, 0.5)),
            "many, drawn by chance": _any_two,
        },
        hints=(
            "A run that needs a quarter of the steps, and processes half as many examples a second: how long does it "
            "take? Which of the three is the product of the others?",
            "At equal batches seconds = steps * examples, all three as ratios in favour of the second arm. Solve for "
            "the one that is None; with two missing, give back what you got.",
            "\n    if [steps, examples, seconds].count(None) != 1: return steps, examples, seconds\n"
            "    if seconds is None: seconds = steps * examples\n"
            "    if examples is None: examples = seconds / steps\n"
            "    if steps is None: steps = seconds / examples\n"
            "    return steps, examples, seconds",
        ),
    ),
    "10.2": Exercise(
        "Find the width of an expert at equal FLOPs",
        {
            "64 experts of a layer 128 wide": _width(128, 64, 1, 0, True, 106),
            "one expert, which a router chooses": _width(128, 1, 1, 0, True, 127),
            "top-2": _width(128, 16, 2, 0, True, 61),
            "one shared expert beside one chosen": _width(128, 16, 1, 1, True, 61),
            "two matrices instead of three": _width(2048, 128, 1, 0, False, 1984),
            "exactly": _width(100, 30, 1, 0, True, 90),
            "a router that costs too much": _width(16, 64, 1, 0, True, 0),
            "many, drawn by chance": _many_widths,
        },
        hints=(
            "Count one token: 2 FLOPs for every weight that it meets. d_model is in every term, so it cancels.",
            "A dense layer has m * d_ff weights for each number of d_model, m = 3 if gated, else 2. Take num_experts "
            "off for the router; what is left goes to top_k + num_shared experts of m * width each. Round down.",
            "\n    matrices = 3 if gated else 2\n"
            "    left = matrices * d_ff - num_experts\n"
            "    return max(0, left // (matrices * (top_k + num_shared)))",
        ),
    ),
    "10.3": Exercise(
        "Read three ratios off whole runs",
        {
            "half-way between two runs, in log(steps)": _speedups(
                (1600, 1.5), [(100, 2.0), (400, 1.0)], (10, 20), (8, 0.5, 4)
            ),
            "in no order": _speedups((1600, 1.5), [(400, 1.0), (100, 2.0)], (10, 20), (8, 0.5, 4)),
            "the loss of a run": _speedups((900, 1.8), [(100, 2.0), (300, 1.8), (500, 1.6)], (4, 5), (3, 0.8, 2.4)),
            "the loss of the shortest": _speedups((900, 2.0), [(100, 2.0), (300, 1.8)], (4, 5), (9, 0.8, 7.2)),
            "only neighbours count": _speedups(
                (1600, 1.5), [(25, 2.9), (100, 2.0), (400, 1.0), (1600, 0.9)], (1, 1), (8, 1, 8)
            ),
            "no run is good enough": _speedups((900, 1.2), [(100, 2.0), (300, 1.8)], (4, 5), (None, 0.8, None)),
            "even the shortest is better": _speedups((900, 2.1), [(100, 2.0), (300, 1.8)], (4, 5), (None, 0.8, None)),
            "one run": _speedups((900, 1.8), [(300, 1.8)], (6, 5), (3, 1.2, 3.6)),
            "many, on a straight line": _on_a_line,
        },
        hints=(
            "Sort the MoE's runs. Which two neighbours lie on both sides of the dense loss? Between them the loss is a "
            "straight line over log(steps), not over steps.",
            "share = (worse - loss) / (worse - better); log(needed) = log(short) + share * log(long / short). Steps: "
            "dense steps / needed. Examples a second: dense_ms / moe_ms. Seconds: the product, or None with the steps.",
            "\n    import math\n"
            "    steps, loss = dense\n"
            "    runs, needed = sorted(moe), None\n"
            "    if runs[0][1] == loss: needed = runs[0][0]\n"
            "    for (short, worse), (long, better) in zip(runs, runs[1:]):\n"
            "        if needed is None and better <= loss < worse:\n"
            "            needed = short * math.exp((worse - loss) / (worse - better) * math.log(long / short))\n"
            "    ratio, examples = needed and steps / needed, dense_ms / moe_ms\n"
            "    return ratio, examples, ratio and ratio * examples",
        ),
    ),
    "10.4": Exercise(
        "Find what is unfair about a race",
        {
            "nothing": _finds({}, {}, []),
            "read along a curve, not at its end": _finds({}, {"read_at": 70}, ["schedule"]),
            "a constant rate": _finds({"rates": CONSTANT}, {}, ["schedule"]),
            "a rate that falls by half only": _finds({"rates": HALF_CUT}, {}, ["schedule"]),
            "3% more FLOPs": _finds({}, {"flops": 1_030_000}, ["FLOPs"]),
            "half a percent more is fair": _finds({}, {"flops": 1_005_000}, []),
            "other batches": _finds({}, {"data": ("fec1ea47", "seed 1", "batch 32")}, ["data"]),
            "not the best rate that was tried": _finds(
                {}, {"tried": {1e-3: 1.54, 2e-3: 1.50, 4e-3: 1.58, 8e-3: 1.71}}, ["tuning"]
            ),
            "the best rate is the highest tried": _finds({"tried": {2e-3: 1.62, 4e-3: 1.58}}, {}, ["tuning"]),
            "arms may have different rates": _finds({}, {"rate": 1e-2}, []),
            "everything": _finds(
                {"rates": CONSTANT, "data": ("other text",)}, {"flops": 2_000_000, "tried": {4e-3: 1.6}}, list(FAULTS)
            ),
            "either arm": _either_arm,
        },
        hints=(
            "Go through the four names one by one. For which of them must you look at both arms together, and for "
            "which at each by itself?",
            "FLOPs: further apart than 1% of the dense arm's. data: not equal. schedule: read_at is not the number of "
            "rates, or the last rate is above a fifth of the highest. tuning: the highest of rates is not the best of "
            "tried, or that is the lowest or the highest of tried.",
            "\n    def cut(arm):\n"
            "        return arm['read_at'] != len(arm['rates']) or arm['rates'][-1] > max(arm['rates']) / 5\n"
            "    def untuned(arm):\n"
            "        best = min(arm['tried'], key=arm['tried'].get)\n"
            "        at_an_edge = best in (min(arm['tried']), max(arm['tried']))\n"
            "        return at_an_edge or abs(max(arm['rates']) / best - 1) > 1e-6\n"
            "    found = {'FLOPs': abs(moe['flops'] / dense['flops'] - 1) > 0.01,\n"
            "             'data': dense['data'] != moe['data'],\n"
            "             'schedule': cut(dense) or cut(moe), 'tuning': untuned(dense) or untuned(moe)}\n"
            "    return [name for name, is_so in found.items() if is_so]",
        ),
    ),
    "10.5": Exercise(
        "Count a pyramid of residual experts",
        {
            "two layers, three experts, by hand": _stores(TINY),
            "without the residual": _stores(TINY | {"residual": False}),
            "every layer has experts": _stores(TINY | {"num_experts": [2, 3]}),
            "DeepSpeed's 350M+MoE-128, printed as 13 B": _stores(published("deepspeed-350m-moe-128").config),
            "350M+PR-MoE-32/64, printed as 4 B": _stores(published("deepspeed-pr-moe-350m-32-64").config),
            "1.3B+PR-MoE-64/128, printed as 31 B": _stores(published("deepspeed-pr-moe-1.3b-64-128").config),
            "many, drawn by chance": _many_models,
        },
        hints=(
            "Write down one feed-forward network with its biases, then count how many of them each layer has: one "
            "where num_experts is 0, else num_experts, and one more if residual.",
            "h = hidden_size, f = intermediate_size. Network: 2 h f + f + h. Attention: 4 h h + 4 h. Two norms a layer "
            "and one at the end: 2 h each. A router: h an expert, no bias. The mixing layer of a residual: 2 h + 2. "
            "Embeddings: (words + positions) h, once.",
            "\n    h, f = config['hidden_size'], config['intermediate_size']\n"
            "    network, rows = 2 * h * f + f + h, config['vocab_size'] + config['max_position_embeddings']\n"
            "    total = rows * h + 2 * h\n"
            "    for experts in config['num_experts']:\n"
            "        total += 4 * h * h + 4 * h + 4 * h + max(experts, 1) * network + experts * h\n"
            "        if experts and config['residual']: total += network + 2 * h + 2\n"
            "    return total",
        ),
    ),
}
