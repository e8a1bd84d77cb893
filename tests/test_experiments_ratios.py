"""Three ratios: what is between two runs is read off, what is outside is a bound, and products are products."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.experiments.ratios import Ratios, compare_arms, spread, steps_to_loss


def test_at_a_run_it_is_the_run():
    assert steps_to_loss([(100, 2.0), (200, 1.8), (400, 1.5)], 1.8)[0] == pytest.approx(200)
    assert steps_to_loss([(400, 1.5), (100, 2.0), (200, 1.8)], 1.5)[0] == pytest.approx(400)


@given(st.floats(1.0, 2.0, exclude_min=True, exclude_max=True))
def test_between_two_runs_steps_fall_with_the_loss(loss):
    steps, bound = steps_to_loss([(100, 2.0), (1000, 1.0)], loss)
    assert bound == "" and 100 < steps < 1000
    assert steps == pytest.approx(100 * 10 ** (2.0 - loss))


def test_outside_of_the_runs_it_is_a_bound():
    assert compare_arms((1000, 2.5), [(100, 2.0), (250, 1.5)], (1.0, 1.0)) == Ratios(10.0, 1.0, ">=")
    assert compare_arms((1000, 1.4), [(100, 2.0), (250, 1.5)], (1.0, 1.0)) == Ratios(4.0, 1.0, "<")


def test_seconds_are_steps_times_examples():
    ratios = compare_arms((1000, 1.5), [(100, 1.5)], (10.0, 16.0))
    assert ratios.examples == pytest.approx(0.625) and ratios.seconds == pytest.approx(6.25)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one run"):
        steps_to_loss([], 1.0)
    with pytest.raises(ValueError, match="step_times_ms of the second arm"):
        compare_arms((1, 1.0), [(1, 1.0)], (1.0, 0.0))
    with pytest.raises(ValueError, match="at least one number"):
        spread([])
