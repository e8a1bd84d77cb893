"""Exercises of lesson 06: an expert's intensity, experts that wake, where compute limits, who decodes first."""

import itertools

from moe_lab.exercises import Exercise, Property
from moe_lab.roofline import BYTES, Device, LayerShape, compute_bound_from, expert_cost, experts_hit


def _says(yours: object, spec: float, case: str, tolerance: float = 1e-9) -> str | None:
    """None if two numbers are as good as equal, else both."""
    close = abs(float(yours) - spec) <= tolerance * max(1.0, abs(spec))
    return None if close else f"yours {float(yours):.6g}, spec {spec:.6g} for {case}"


# ---------------------------------------------------------------- 06.1: the intensity of an expert


def _intensity(rows: int, d_model: int, d_expert: int, dtype: str) -> Property:
    def holds(answer) -> str | None:
        spec = expert_cost(LayerShape(d_model, d_expert, 1, 1), rows, dtype=dtype).intensity
        case = f"{rows} rows, d_model {d_model}, d_expert {d_expert}, {BYTES[dtype]} bytes a number"
        return _says(answer(rows, d_model, d_expert, BYTES[dtype]), spec, case)

    return holds


def _by_hand(answer) -> str | None:
    return _says(answer(1, 4, 8, 2), 192 / 208, "1 row, d_model 4, d_expert 8, 2 bytes a number: 192 FLOPs, 208 bytes")


def _narrow_d_model_changes_nothing(answer) -> str | None:
    return _says(answer(10, 7, 768, 2), float(answer(10, 2048, 768, 2)), "d_model 7 beside 2,048, where it cancels")


def _limit(answer) -> str | None:
    return _says(answer(10**9, 2048, 768, 2), 1152.0, "a billion rows: x and y alone, 6 f / 4", tolerance=1e-4)


# ---------------------------------------------------------------- 06.2: experts that a batch wakes


def _woken(tokens: int, num_experts: int, top_k: int, spec: float | None = None) -> Property:
    def holds(answer) -> str | None:
        want = experts_hit(tokens, num_experts, top_k) if spec is None else spec
        case = f"tokens {tokens}, experts {num_experts}, top_k {top_k}"
        return _says(answer(tokens, num_experts, top_k), want, case)

    return holds


def _every_choice(answer) -> str | None:
    """Each way in which a few tokens can choose is tried."""
    for tokens, num_experts, top_k in ((2, 4, 1), (2, 4, 2), (3, 3, 2), (2, 5, 3)):
        choices = list(itertools.combinations(range(num_experts), top_k))
        batches = list(itertools.product(choices, repeat=tokens))
        spec = sum(len(set().union(*batch)) for batch in batches) / len(batches)
        fault = _woken(tokens, num_experts, top_k, spec)(answer)
        if fault is not None:
            return f"{fault}, the mean over all {len(batches)} ways to choose"
    return None


# ---------------------------------------------------------------- 06.3: from how many tokens compute limits


def _from(d_expert: int, num_experts: int, top_k: int, ridge: float) -> Property:
    def holds(answer) -> str | None:
        device = Device("made up", {"bfloat16": ridge * 1e12}, 1e12, "data sheet", "made up")
        spec = compute_bound_from(LayerShape(64, d_expert, num_experts, top_k), device)
        yours = answer(d_expert, num_experts, top_k, ridge)
        case = f"d_expert {d_expert}, {num_experts} experts, top_k {top_k}, ridge {ridge:g}"
        same = yours is spec if spec is None or yours is None else float(yours) == spec
        return None if same else f"yours {yours}, spec {spec} for {case}"

    return holds


# ---------------------------------------------------------------- 06.4: who decodes first

LAYERS = {"A": (8, 2, 3584), "B": (64, 4, 1536), "C": (256, 8, 1024)}
"""Experts, top_k and d_expert of three layers, all of d_model 2048."""
REASONS = {
    "top_k": lambda experts, top_k, d_expert: top_k,
    "d_expert": lambda experts, top_k, d_expert: d_expert,
    "num_experts": lambda experts, top_k, d_expert: experts,
    "top_k / num_experts": lambda experts, top_k, d_expert: top_k / experts,
    "top_k * d_expert": lambda experts, top_k, d_expert: top_k * d_expert,
    "num_experts * d_expert": lambda experts, top_k, d_expert: experts * d_expert,
}
_RIVALS = [(e, k, f) for e in (16, 32) for k in (1, 2, 4) for f in (256, 512, 1024)]


def bytes_moved(layer: tuple[int, int, int], tokens: int) -> float:
    """Bytes of one forward pass of a layer (experts, top_k, d_expert), d_model 2048, bfloat16."""
    num_experts, top_k, d_expert = layer
    return expert_cost(LayerShape(2048, d_expert, num_experts, top_k), tokens).bytes


def _counterexample(reason: str, tokens: int) -> str | None:
    """Two layers of which the one that is smaller by this reason moves clearly more bytes; None if there are none."""
    measure = REASONS[reason]
    for one, other in itertools.permutations(_RIVALS, 2):
        moved = bytes_moved(one, tokens), bytes_moved(other, tokens)
        if measure(*one) < measure(*other) and moved[0] > 1.1 * moved[1]:
            names = [f"{k} of {e} experts, {f} wide" for e, k, f in (one, other)]
            return f"{names[0]}, has less of it than {names[1]}, and moves {moved[0] / moved[1]:.1f} times the bytes"
    return None


def _pair(answer, tokens: int) -> tuple[str, str]:
    pair = tuple(answer[tokens])
    if len(pair) != 2 or pair[0] not in LAYERS or pair[1] not in REASONS:
        raise ValueError(f"give a layer of {', '.join(LAYERS)} and one of {', '.join(REASONS)}, not {pair}")
    return pair


def _first(tokens: int) -> Property:
    def holds(answer) -> str | None:
        layer, moved = _pair(answer, tokens)[0], {name: bytes_moved(one, tokens) for name, one in LAYERS.items()}
        less = sum(other < moved[layer] for other in moved.values())
        slower = f"{moved[layer] / 1e6:,.0f} MB, and {less} of the three move{'s' if less == 1 else ''} less"
        return None if not less else f"yours {layer} moves {slower}"

    return holds


def _because(tokens: int) -> Property:
    def holds(answer) -> str | None:
        reason = _pair(answer, tokens)[1]
        against = _counterexample(reason, tokens)
        return None if against is None else f"yours {reason}; but a layer of {against}"

    return holds


EXERCISES = {
    "06.1": Exercise(
        "Compute the intensity of one expert",
        {
            "one row by hand": _by_hand,
            "a few rows": _intensity(4, 2048, 768, "bfloat16"),
            "four bytes a number: half of it": _intensity(4, 2048, 768, "float32"),
            "many rows": _intensity(4096, 4096, 14336, "bfloat16"),
            "a narrow expert": _intensity(33, 512, 16, "float16"),
            "the width of a token cancels": _narrow_d_model_changes_nothing,
            "a billion rows: limited by x and y": _limit,
        },
        hints=(
            "A SwiGLU expert has three matrices of d_model * d_expert. Each weight meets each row once, and that is a "
            "multiply-add.",
            "Bytes: every weight once, however many rows; and each row comes in as x (d_model) and goes out as y "
            "(d_model). What lies between stays on the chip.",
            "flops = 6 * rows * d_model * d_expert; "
            "moved = bytes_per_number * (3 * d_model * d_expert + 2 * rows * d_model); return flops / moved",
        ),
    ),
    "06.2": Exercise(
        "Compute how many experts a batch wakes",
        {
            "one token wakes top_k": _woken(1, 128, 8, 8.0),
            "two tokens, four experts, by hand": _woken(2, 4, 1, 1.75),
            "16 tokens, 8 of 128": _woken(16, 128, 8),
            "more tokens than experts": _woken(300, 64, 6),
            "no tokens": _woken(0, 16, 2, 0.0),
            "every expert for every token": _woken(3, 5, 5, 5.0),
            "one expert": _woken(7, 1, 1, 1.0),
            "the mean over all ways to choose": _every_choice,
        },
        hints=(
            "Ask one expert: how likely is it that one token leaves it alone? And that all of them do?",
            "A token takes top_k of num_experts, so it leaves an expert alone with chance 1 - top_k / num_experts. "
            "Tokens choose for themselves: these chances multiply. Expectations of experts add up.",
            "return num_experts * (1 - (1 - top_k / num_experts) ** tokens)",
        ),
    ),
    "06.3": Exercise(
        "Find the first batch that arithmetic limits",
        {
            "Qwen3-30B-A3B at ridge 206.125": _from(768, 128, 8, 206.125),
            "Mixtral 8x7B at the same": _from(14336, 8, 2, 206.125),
            "DeepSeek-V3 at ridge 150": _from(2048, 256, 8, 150.0),
            "a dense layer": _from(6144, 1, 1, 206.125),
            "a low ridge, with experts still asleep": _from(1000, 64, 4, 1.7),
            "one token is enough": _from(4096, 16, 2, 0.9),
            "experts too narrow for any batch": _from(16, 64, 2, 206.125),
            "wide enough, just": _from(72, 16, 2, 206.125),
        },
        hints=(
            "Intensity of the layer: FLOPs of all rows, tokens * top_k, over the weights of the experts that are awake "
            "(06.2) and x and y of each token. d_model cancels, as in 06.1.",
            "In bfloat16: 3 * tokens * top_k * d_expert / (3 * d_expert * woken + 2 * tokens). It only rises with "
            "tokens, towards 1.5 * top_k * d_expert: no batch reaches a ridge at or above that.",
            "woken = lambda t: num_experts * (1 - (1 - top_k / num_experts) ** t); "
            "intensity = lambda t: 3 * t * top_k * d_expert / (3 * d_expert * woken(t) + 2 * t); "
            "never = ridge >= 1.5 * top_k * d_expert; "
            "return None if never else next(t for t in itertools.count(1) if intensity(t) >= ridge)",
        ),
    ),
    "06.4": Exercise(
        "Predict which layer decodes fastest, and why",
        {
            "the fastest layer for 1 token": _first(1),
            "why, for 1 token": _because(1),
            "the fastest layer for 256 tokens": _first(256),
            "why, for 256 tokens": _because(256),
        },
        hints=(
            "For so few rows an expert is read more slowly than it computes. So time follows the bytes, and nearly all "
            "of them are weights.",
            "Which experts does one token read? And which do 256 tokens read, if each picks for itself?",
            'prediction = {1: ("B", "top_k * d_expert"), 256: ("A", "num_experts * d_expert")}',
        ),
    ),
}
