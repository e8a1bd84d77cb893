"""The law of Clark et al.: it is found again in numbers that it made, and its intervals cover it."""

import numpy as np
import pytest

from moe_lab.experiments.scaling_law import PUBLISHED, ScalingLaw, effective_experts, fit_law

SIZES, EXPERTS = (2e4, 7e4, 3e5), (1, 2, 4, 8, 16, 32, 64)
TRUE = ScalingLaw(a=-0.09, b=-0.12, c=0.011, d=1.0, first=2.0, most=300.0)
CELLS = [(n, e) for n in SIZES for e in EXPERTS for _ in range(3)]


def test_experts_are_bent_at_both_ends():
    assert effective_experts(1, 2.0, 300.0) == pytest.approx(2.0)
    assert effective_experts(1e12, 2.0, 300.0) == pytest.approx(300.0)
    assert (np.diff(effective_experts(np.arange(1, 100), 2.0, 300.0)) > 0).all()


def test_it_is_found_again_under_noise():
    draw = np.random.default_rng(0)
    losses = [TRUE.loss(n, e) * 10 ** draw.normal(0, 0.002) for n, e in CELLS]
    fit = fit_law(*zip(*CELLS, strict=True), losses, resamples=40)
    assert fit.rms_error == pytest.approx(0.002, rel=0.3)
    for n, e in CELLS:
        assert fit.law.loss(n, e) == pytest.approx(TRUE.loss(n, e), rel=0.01)
    for name, (low, high) in fit.intervals.items():
        assert low <= getattr(fit.law, name) <= high, name
    assert fit.intervals["a"][0] <= TRUE.a <= fit.intervals["a"][1]


def test_published_coefficients_say_what_the_paper_says():
    """5 M parameters with 128 experts are worth about 55 M dense ones (section 5.2, S-BASE)."""
    law = ScalingLaw(**PUBLISHED["S-BASE"])
    assert law.loss(5e6, 128) == pytest.approx(law.loss(55e6, 1), rel=0.01)


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(ValueError, match="at least 7 runs, got 6, 6 and 6"):
        fit_law([1e4] * 6, [1] * 6, [2.0] * 6)
    with pytest.raises(ValueError, match="got 8, 8 and 7"):
        fit_law([1e4] * 8, [1] * 8, [2.0] * 7)
    for params, experts, losses in (([0.0] * 8, [1] * 8, [2.0] * 8), ([1e4] * 8, [0] * 8, [2.0] * 8)):
        with pytest.raises(ValueError, match="above 0, num_experts at least 1"):
            fit_law(params, experts, losses)
    with pytest.raises(ValueError, match="above 0"):
        fit_law([1e4] * 8, [1] * 8, [float("nan")] * 8)
