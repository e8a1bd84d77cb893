"""The log-bilinear law of loss against experts and size, fitted to runs of one's own, with confidence intervals.

log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d, where N counts the parameters of the dense model and Ê is the
number of experts E, bent at both ends: 1 / Ê = 1 / (E - 1 + 1 / (1 / Es - 1 / Em)) + 1 / Em. One expert counts as Es,
infinitely many as Em.

Source: Clark et al. 2022 (arXiv:2202.01169), equations 2 and 11 and table 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from moe_lab.checks import check_whole

PUBLISHED = {
    "S-BASE": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "first": 1.847, "most": 314.478},
    "RL-R": {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "first": 1.880, "most": 469.982},
    "HASH": {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "first": 4.175, "most": 477.741},
}
"""Coefficients of three routers, 15 M to 1.3 B parameters and 2 to 512 experts, in nats a token of 32,000 words."""


@dataclass(frozen=True)
class ScalingLaw:
    """Coefficients of the law; ``first`` is Es and ``most`` is Em.

    Example:
        >>> law = ScalingLaw(**PUBLISHED["S-BASE"])
        >>> round(law.loss(params=5e6, num_experts=128), 2), round(law.loss(params=55e6, num_experts=1), 2)
        (2.89, 2.88)
    """

    a: float
    b: float
    c: float
    d: float
    first: float
    most: float

    def loss(self, params: float | int, num_experts: float | int) -> float:
        """Loss in nats that the law gives a model of so many dense parameters and experts."""
        size, experts = np.log10(params), np.log10(effective_experts(num_experts, self.first, self.most))
        return float(10 ** (self.a * size + self.b * experts + self.c * size * experts + self.d))


def effective_experts(num_experts, first: float, most: float):
    """Ê of a number of experts, or of an array of them.

    Example:
        >>> round(float(effective_experts(1, first=2.0, most=300.0)), 6)
        2.0
    """
    return 1 / (1 / (np.asarray(num_experts, float) - 1 + 1 / (1 / first - 1 / most)) + 1 / most)


@dataclass(frozen=True)
class Fit:
    """A law, a 95 % interval for each of its coefficients, and the root mean square error in log10 of the loss."""

    law: ScalingLaw
    intervals: dict[str, tuple[float, float]]
    rms_error: float


def fit_law(
    params: Sequence[float | int],
    num_experts: Sequence[float | int],
    losses: Sequence[float],
    resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """Fit the law by least squares in log10 of the loss; intervals come from drawing the runs again, with replacement.

    Es stays between 1 and 12, Em between twice the largest number of experts and 1e5: runs say little about what lies
    beyond them, and the interval shows it.

    Example:
        >>> sizes, experts = zip(*[(n, e) for n in (1e5, 4e5, 2e6) for e in (1, 2, 4, 8, 16, 32, 64)])
        >>> true = ScalingLaw(**PUBLISHED["S-BASE"])
        >>> fit = fit_law(sizes, experts, [true.loss(n, e) for n, e in zip(sizes, experts)], resamples=0)
        >>> round(fit.law.a, 3), round(fit.law.b, 3), fit.rms_error < 1e-5
        (-0.082, -0.108, True)

    Raises ValueError for lists of unlike lengths, fewer than 7 runs, or numbers that have no logarithm.
    """
    runs = np.array([params, num_experts, losses], float) if len(params) == len(num_experts) == len(losses) else None
    if runs is None or runs.shape[1] < 7:
        raise ValueError(
            f"params, num_experts and losses must be as long as each other and hold at least 7 runs, got "
            f"{len(params)}, {len(num_experts)} and {len(losses)}"
        )
    if not (np.isfinite(runs).all() and (runs > 0).all() and (runs[1] >= 1).all()):
        raise ValueError("params and losses must be finite and above 0, num_experts at least 1")
    check_whole("resamples", resamples, 0)
    law, error = _fit(runs)
    draw = np.random.default_rng(seed)
    drawn = [_fit(runs[:, draw.integers(runs.shape[1], size=runs.shape[1])])[0] for _ in range(resamples)]
    names = ScalingLaw.__dataclass_fields__
    ends = {name: np.percentile([getattr(d, name) for d in drawn], (2.5, 97.5)) for name in names if drawn}
    return Fit(law, {name: (float(low), float(high)) for name, (low, high) in ends.items()}, error)


def _fit(runs: np.ndarray) -> tuple[ScalingLaw, float]:
    """Es and Em by search, and for each pair the four others by linear least squares."""
    params, experts, losses = runs
    size, target, largest = np.log10(params), np.log10(losses), experts.max()

    def solve(bends: np.ndarray) -> tuple[np.ndarray, float]:
        bent = np.log10(effective_experts(experts, *10**bends))
        table = np.stack([size, bent, size * bent, np.ones_like(size)], axis=1)
        # by normal equations: `lstsq` waits for BLAS's threads, 40 times as long
        solution = np.linalg.solve(table.T @ table, table.T @ target)
        return solution, float(np.mean((table @ solution - target) ** 2))

    bounds = [(0.001, np.log10(12)), (np.log10(2 * largest), 5.0)]
    starts = [(0.3, np.log10(5 * largest)), (0.6, np.log10(50 * largest))]
    found = [
        minimize(lambda bends: 1e6 * solve(bends)[1], start, method="Nelder-Mead", bounds=bounds) for start in starts
    ]
    best = min(found, key=lambda result: result.fun).x
    (a, b, c, d), error = solve(best)
    return ScalingLaw(*map(float, (a, b, c, d)), *map(float, 10**best)), error**0.5
