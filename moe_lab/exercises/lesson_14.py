"""Exercises of lesson 14: metrics of claims, baselines of ratios, parts and wholes, verdicts, rates above a roof."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence

from moe_lab.exercises import Exercise, Property

# ---------------------------------------------------------------- 14.1: which quantity is it?

QUOTES = {
    "A": "10x speedup of align and sort",
    "B": "the fused expert layer: up to 4.4x at 512 tokens",
    "C": "reaches at step 60,000 what the dense model reaches at 450,000",
    "D": "trains to the same quality in one-seventh the time",
    "E": "1,000 examples a second against 1,600",
    "F": "8 experts of which a token visits 2: 4x efficiency",
    "G": "13 B shrink to 3.5 B at the same quality",
    "H": "variance = 0.00",
    "I": "production-ready",
}
METRICS = {
    "A": "time of an operation",
    "B": "time of a layer",
    "C": "training steps",
    "D": "training time",
    "E": "throughput",
    "F": "FLOPs",
    "G": "parameters",
    "H": "balance",
    "I": "none",
}


def _metric(letter: str) -> Property:
    def holds(answer) -> str | None:
        if not isinstance(answer, Mapping):
            return f"give a dict from letters to metrics, not {answer!r}"[:200]
        yours = answer.get(letter)
        if yours not in METRICS.values():
            return f"yours {yours!r}, which is none of the nine metrics"
        return None if yours == METRICS[letter] else f"{QUOTES[letter]!r} is not about {yours!r}"

    return holds


# ---------------------------------------------------------------- 14.2: whose baseline?

TIMES = {"a loop": 16.4, "grouped products": 2.44, "dense": 1.64, "every expert": 8.1, "Transformers": 2.7}
"""Milliseconds of what one implementation, which takes 2 ms, may be compared with."""


def baselines(ours_ms: float | int, times_ms: Mapping[str, float], printed: str) -> list[str]:
    """The baselines against which a ratio would be printed like that, in alphabetical order."""
    number = printed.removesuffix("x")
    digits = len(number.partition(".")[2])
    return sorted(name for name, ms in times_ms.items() if f"{ms / ours_ms:.{digits}f}" == number)


def _fits(printed: str, spec: list[str], ours_ms: float | int = 2.0) -> Property:
    def holds(answer) -> str | None:
        return _same_names(answer(ours_ms, dict(TIMES), printed), spec)

    return holds


def _same_names(yours, spec: list[str]) -> str | None:
    fine = isinstance(yours, Iterable) and not isinstance(yours, str | Mapping) and list(yours) == spec
    return None if fine else f"yours {yours!r}, spec {spec}"[:250]


def _many_baselines(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(60):
        ours, times = draw.uniform(0.5, 5), {name: draw.uniform(0.3, 60) for name in "abcdefgh"}
        digits = draw.choice([0, 1, 2])
        printed = f"{draw.choice([*times.values()]) / ours:.{digits}f}x"
        if (fault := _same_names(answer(ours, dict(times), printed), baselines(ours, times, printed))) is not None:
            return f"drawn by chance, {printed}: {fault}"
    return None


# ---------------------------------------------------------------- 14.3: a part and the whole

Three = tuple[float | int | None, float | int | None, float | int | None]
"""(how much faster the part, its share of the time before, how much faster the whole); None is not known."""


def _completes(given: Three, spec: Three) -> Property:
    def holds(answer) -> str | None:
        return _compare(answer(*given), spec)

    return holds


def _compare(yours, spec: Three) -> str | None:
    if not isinstance(yours, Sequence) or len(yours) != 3:
        return f"give three numbers, (part, share, whole), not {yours!r}"[:200]
    for name, found, value in zip(("part", "share", "whole"), yours, spec, strict=True):
        if (found is None) != (value is None) or (value is not None and not math.isclose(found, value, rel_tol=1e-6)):
            said = ["None" if one is None else f"{one:.4g}" for one in (found, value)]
            return f"{name}: yours {said[0]}, spec {said[1]}"
    return None


def _any_two(answer) -> str | None:
    draw = random.Random(0)
    for turn in range(60):
        part, share = 2 ** draw.uniform(0.2, 5) ** draw.choice([1, -1]), draw.uniform(0.05, 0.95)
        whole = (part, share, 1 / (1 - share + share / part))
        given = tuple(None if at == turn % 3 else value for at, value in enumerate(whole))
        if (fault := _compare(answer(*given), whole)) is not None:
            return f"drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 14.4: the verdict

CLAIM = {"metric": "time of a layer", "baseline": "a loop", "low": 4, "high": None, "devices": ["H100"]}
WORDS = (
    "holds",
    "holds under conditions",
    "not reproducible",
    "not a comparable quantity",
    "not measured yet",
)


def _judged(
    spec: str, values: list[float | int] | None, device: str, contradicted: bool = False, **claim: object
) -> Property:
    """The answer gives this verdict on `CLAIM` with these changes."""

    def holds(answer) -> str | None:
        found = None if values is None else {f"case {number}": value for number, value in enumerate(values)}
        yours = answer(CLAIM | claim, found, device, contradicted)
        return None if yours == spec else f"yours {yours!r}, spec {spec!r}"[:200]

    return holds


# ---------------------------------------------------------------- 14.5: above the roof

PEAK_FLOPS, BYTES_PER_S = 1e15, 5e12


def make_row(name: str, flops: float | int, moved: float | int, ms: float | int) -> dict[str, object]:
    """A row of a printed table: what the task asks for, and how long it is said to have taken."""
    return {"name": name, "flops": flops, "bytes": moved, "ms": ms}


FINE = make_row("fine", 1e12, 1e9, 1.5)
MEMORY = make_row("reads too fast", 1e9, 1.4e9, 0.228)  # at least 0.28 ms of bytes
PRODUCTS = make_row("multiplies too fast", 5e12, 1e9, 4.0)
AT_THE_FLOOR = make_row("at the floor", 1e12, 5e9, 1.0)


def _impossible(rows: list[dict[str, object]], spec: list[str]) -> Property:
    def holds(answer) -> str | None:
        return _same_names(answer([dict(row) for row in rows], PEAK_FLOPS, BYTES_PER_S), spec)

    return holds


def _many_rows(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        rows, spec, peak, rate = [], [], 10 ** draw.uniform(12, 15), 10 ** draw.uniform(11, 13)
        for number in range(8):
            seconds, name = 10 ** draw.uniform(-5, -2), f"row {number}"
            shares = [draw.choice([0.1, 0.9, 1.2]), draw.choice([0.1, 0.9, 1.2])]
            rows.append(make_row(name, shares[0] * seconds * peak, shares[1] * seconds * rate, 1e3 * seconds))
            spec += [name] if max(shares) > 1 else []
        if (fault := _same_names(answer(rows, peak, rate), spec)) is not None:
            return f"drawn by chance: {fault}"
    return None


EXERCISES = {
    "14.1": Exercise(
        "Say what each claim is about",
        {f"claim {letter}": _metric(letter) for letter in QUOTES},
        hints=(
            "For each: in which unit would the two numbers behind it be? Milliseconds of what? Steps? Tokens a second? "
            "And is there a number at all?",
            "A sorts assignments and nothing else; B is a whole layer. C and D end at one quality, E does not. F needs "
            "no clock: divide 8 by 2. G is about what is stored.",
            'metrics = {"A": "time of an operation", "B": "time of a layer", "C": "training steps", '
            '"D": "training time", "E": "throughput", "F": "FLOPs", "G": "parameters", "H": "balance", "I": "none"}',
        ),
    ),
    "14.2": Exercise(
        "Find the baseline behind a ratio",
        {
            "8.2x": _fits("8.2x", ["a loop"]),
            "1.22x, two digits": _fits("1.22x", ["grouped products"]),
            "0.8x: a ratio may be below 1": _fits("0.8x", ["dense"]),
            "4x, no digit: 4.05 is printed so": _fits("4x", ["every expert"]),
            "1x: three would be printed so": _fits("1x", ["Transformers", "dense", "grouped products"]),
            "5.0x: nothing fits": _fits("5.0x", []),
            "another time of ours": _fits("4.1x", ["a loop"], ours_ms=4.0),
            "many, drawn by chance": _many_baselines,
        },
        hints=(
            "A ratio is the baseline's time over ours. Which of them, rounded, gives what was printed?",
            'Round to as many digits as were printed: "4x" has none after the point, "1.22x" two. Keep the names for '
            "which the rounded ratio is the printed one, in alphabetical order.",
            "\n    number = printed[:-1]\n"
            "    digits = len(number.partition('.')[2])\n"
            "    return sorted(name for name, ms in times_ms.items() if f'{ms / ours_ms:.{digits}f}' == number)",
        ),
    ),
    "14.3": Exercise(
        "Turn a part's speedup into the whole's, and back",
        {
            "the whole: 6x of three tenths": _completes((6, 0.3, None), (6, 0.3, 4 / 3)),
            "the whole: 10x of a tenth": _completes((10, 0.1, None), (10, 0.1, 1 / 0.91)),
            "a slower part": _completes((0.5, 0.5, None), (0.5, 0.5, 2 / 3)),
            "the share": _completes((5, None, 1.25), (5, 0.25, 1.25)),
            "the part": _completes((None, 0.5, 1.6), (4, 0.5, 1.6)),
            "no part is fast enough": _completes((None, 0.3, 1.5), (None, 0.3, 1.5)),
            "no share is large enough": _completes((2, None, 3), (2, None, 3)),
            "no share is small enough": _completes((2, None, 0.9), (2, None, 0.9)),
            "a part that did not change has any share": _completes((1, None, 1), (1, None, 1)),
            "a part without a share may be anything": _completes((None, 0, 1), (None, 0, 1)),
            "one alone tells nothing": _completes((10, None, None), (10, None, None)),
            "what is known stays": _completes((4, 0.5, 1.6), (4, 0.5, 1.6)),
            "many, drawn by chance": _any_two,
        },
        hints=(
            "Take 100 ms. The part has share * 100 of them, the rest keeps its own. What is left after the part has "
            "become so many times faster?",
            "1 / whole = 1 - share + share / part. Solve for the one that is None; leave it None where the solution is "
            "no share (outside of 0 to 1), no speed (below or at 0), or where you would divide by 0.",
            "\n    if [part, share, whole].count(None) != 1: return part, share, whole\n"
            "    if whole is None: whole = 1 / (1 - share + share / part)\n"
            "    elif share is None:\n"
            "        found = (1 - 1 / whole) / (1 - 1 / part) if part != 1 else -1\n"
            "        share = found if 0 <= found <= 1 else None\n"
            "    else:\n"
            "        left = 1 / whole - (1 - share)\n"
            "        part = share / left if left > 1e-12 and share > 0 else None\n"
            "    return part, share, whole",
        ),
    ),
    "14.4": Exercise(
        "Reach the verdict",
        {
            "no baseline is refused, whatever was measured": _judged(WORDS[3], [9.0], "H100", baseline=""),
            "and no metric": _judged(WORDS[3], [9.0], "H100", contradicted=True, metric=""),
            "no record": _judged(WORDS[4], None, ""),
            "every case meets it": _judged(WORDS[0], [4, 9.0], "NVIDIA H100 SXM"),
            "some cases meet it": _judged(WORDS[1], [3.0, 9.0], "NVIDIA H100 SXM"),
            "none does": _judged(WORDS[2], [3.0, 1.0], "NVIDIA H100 SXM"),
            "its own figures say otherwise": _judged(WORDS[2], None, "", contradicted=True),
            "and then no measurement helps": _judged(WORDS[2], [9.0], "H100", contradicted=True),
            "every case, on another machine": _judged(WORDS[1], [5.0, 9.0], "a laptop"),
            "none, on another machine: that refutes nothing": _judged(WORDS[4], [3.0, 1.0], "a laptop"),
            "a claim that names no hardware": _judged(WORDS[0], [5.0], "a laptop", devices=[]),
            "and fails on any": _judged(WORDS[2], [3.0], "a laptop", devices=[]),
            "one of two devices": _judged(WORDS[0], [5.0], "NVIDIA A100", devices=["H100", "A100"]),
            "too much is no hit either": _judged(WORDS[2], [28.0], "H100", high=8),
            "at most": _judged(WORDS[0], [0.7], "H100", low=None, high=1),
        },
        hints=(
            "The five verdicts have an order: what makes a measurement pointless comes first, then what makes it "
            "unnecessary, then whether there is one.",
            "No metric or baseline; contradicted; no values; then count how many lie within low and high (None: open) "
            "and ask whether any name in devices is part of device (an empty list: any device will do).",
            "\n    if not claim['metric'] or not claim['baseline']: return 'not a comparable quantity'\n"
            "    if contradicted: return 'not reproducible'\n"
            "    if values is None: return 'not measured yet'\n"
            "    low, high = claim['low'], claim['high']\n"
            "    met = [(low is None or v >= low) and (high is None or v <= high) for v in values.values()]\n"
            "    home = not claim['devices'] or any(name in device for name in claim['devices'])\n"
            "    if not any(met): return 'not reproducible' if home else 'not measured yet'\n"
            "    return 'holds' if all(met) and home else 'holds under conditions'",
        ),
    ),
    "14.5": Exercise(
        "Find rates that no machine has",
        {
            "nothing is wrong": _impossible([FINE], []),
            "too fast for the memory": _impossible([FINE, MEMORY], ["reads too fast"]),
            "too fast for the arithmetic": _impossible([PRODUCTS, FINE], ["multiplies too fast"]),
            "at the floor is possible": _impossible([AT_THE_FLOOR], []),
            "both, in their order": _impossible([MEMORY, FINE, PRODUCTS], ["reads too fast", "multiplies too fast"]),
            "no time for the sum of both is needed": _impossible([make_row("overlapped", 9e11, 4e9, 1.0)], []),
            "many, drawn by chance": _many_rows,
        },
        hints=(
            "How long does the row's arithmetic take at the peak, and how long its bytes at the full rate? Mind the "
            "units: ms.",
            "A row is impossible if its time lies below the longer of flops / peak_flops and bytes / bytes_per_s: both "
            "may happen at once, so they are not added up. Exactly there is still possible.",
            "\n    def floor_ms(row):\n"
            "        return 1e3 * max(row['flops'] / peak_flops, row['bytes'] / bytes_per_s)\n"
            "    return [row['name'] for row in rows if row['ms'] < floor_ms(row) * (1 - 1e-9)]",
        ),
    ),
}
