"""Three ratios between two arms that reach one loss, never mixed: steps, seconds, and examples a second.

steps ratio x examples/s ratio = seconds ratio, at equal batches: OLMoE's decomposition (tokens x throughput = time).
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from moe_lab.checks import check_number


@dataclass(frozen=True)
class Ratios:
    """How much sooner the second arm reaches the loss that the first one ends with.

    ``steps``: steps of the first arm over steps of the second. ``bound`` is "" where runs on both sides of the loss
    were trained and the steps lie between them, ">=" where even the shortest run was better, "<" where even the longest
    was worse; then ``steps`` is that run's ratio. ``examples``: examples a second of the second arm over those of the
    first, 1 / ratio of step times. ``seconds``: their product.

    Example:
        >>> Ratios(steps=7.5, examples=0.625).seconds  # Switch-Base's two published ratios
        4.6875
    """

    steps: float
    examples: float
    bound: str = ""

    @property
    def seconds(self) -> float:
        """Time of the first arm over time of the second."""
        return self.steps * self.examples


def steps_to_loss(runs: Sequence[tuple[int, float]], loss: float) -> tuple[float, str]:
    """Steps that a run needs to end with ``loss``, between whole runs of different lengths.

    ``runs`` holds (steps, last loss) of runs that each had their full schedule. Between two of them the loss is taken
    as a straight line over log(steps). Returns the steps and a bound: "" if a shorter run ended above and a longer one
    at or below; "<=" the steps of the shortest run, if that is good enough; ">" those of the longest, if none is.

    Example:
        >>> steps, bound = steps_to_loss([(100, 2.0), (400, 1.0)], 1.5)
        >>> round(steps), bound
        (200, '')
        >>> steps_to_loss([(100, 2.0), (400, 1.0)], 2.5), steps_to_loss([(100, 2.0), (400, 1.0)], 0.5)
        ((100.0, '<='), (400.0, '>'))

    Raises ValueError without a run.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    runs = sorted(runs)
    if runs[0][1] <= loss:
        return float(runs[0][0]), "<="
    for (short, worse), (long, better) in itertools.pairwise(runs):
        if better <= loss:
            share = (worse - loss) / (worse - better)
            return math.exp(math.log(short) + share * (math.log(long) - math.log(short))), ""
    return float(runs[-1][0]), ">"


def compare_arms(
    first: tuple[int, float], second: Sequence[tuple[int, float]], step_times_ms: tuple[float, float]
) -> Ratios:
    """Ratios of an arm's run (steps, last loss) to the second arm's runs, with the time of a step of each.

    Example:
        >>> compare_arms((1000, 1.5), [(100, 2.0), (400, 1.0)], step_times_ms=(10.0, 12.5))
        Ratios(steps=5.0, examples=0.8, bound='')

    Raises ValueError without a run, or for a time that is not above 0.
    """
    for name, value in zip(("first", "second"), step_times_ms, strict=True):
        check_number(f"step_times_ms of the {name} arm", value, above=0)
    steps, bound = steps_to_loss(second, first[1])
    return Ratios(
        round(first[0] / steps, 6), step_times_ms[0] / step_times_ms[1], {"": "", "<=": ">=", ">": "<"}[bound]
    )


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest over the seeds; prints as "7.2 (6.9 to 7.6)".

    Example:
        >>> str(spread([1.0, 2.0, 3.0]))
        '2.00 (1.00 to 3.00)'
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """The `Spread` of some numbers; raises ValueError without one."""
    if not values:
        raise ValueError("values must hold at least one number, got none")
    return Spread(statistics.fmean(values), min(values), max(values))
