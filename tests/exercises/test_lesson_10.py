"""Lesson 10: what the answers are judged by is right itself."""

import itertools
import math

import pytest
import torch

from moe_lab.accounting.counter import flop_counter
from moe_lab.accounting.counts import count
from moe_lab.exercises.lesson_10 import CONSTANT, EXERCISES, HALF_CUT, TINY, layer_flops, make_arm
from moe_lab.layers import FeedForward, MoE

from ..mutants.answers_10 import RIGHT, width


@pytest.mark.parametrize(("experts", "top_k", "shared"), [(16, 1, 0), (8, 2, 0), (4, 1, 1)])
def test_the_flops_of_a_layer_are_those_that_the_counter_sees(experts, top_k, shared):
    x = torch.randn(5, 8)
    with flop_counter() as sparse:
        MoE(8, 12, experts, top_k, num_shared=shared)(x)
    with flop_counter() as dense:
        FeedForward(8, 12)(x)
    assert sparse.total_flops == 5 * layer_flops(8, 12, experts, top_k + shared, gated=True)
    assert dense.total_flops == 5 * layer_flops(8, 12, 0, 1, gated=True)


@pytest.mark.parametrize("gated", [True, False])
def test_a_column_more_would_cost_more_than_the_dense_layer(gated):
    for d_ff, experts, chosen in itertools.product((7, 64, 300), (1, 5, 32), (1, 3)):
        found, most = width(d_ff, experts, chosen, 0, gated), layer_flops(8, d_ff, 0, 1, gated)
        assert layer_flops(8, found + 1, experts, chosen, gated) > most
        assert found == 0 or layer_flops(8, found, experts, chosen, gated) <= most


def test_a_fair_arm_is_fair():
    """Warm-up, highest in the middle, a tenth at the end, for every length."""
    for steps in (100, 400):
        arm = make_arm(steps=steps, rate=1e-2)
        assert len(arm["rates"]) == arm["read_at"] == steps
        assert max(arm["rates"]) == pytest.approx(1e-2) and arm["rates"][-1] == pytest.approx(1e-3)
        assert min(arm["tried"], key=arm["tried"].get) == 1e-2
    assert len(CONSTANT) == len(HALF_CUT) == make_arm()["read_at"]
    assert 0.5 < HALF_CUT[-1] / max(HALF_CUT) < 0.51


def test_the_small_pyramid_by_hand():
    """Hidden 4, network 8: 76 a network, 80 for attention, 16 for two norms."""
    network, attention, norms = 2 * 4 * 8 + 8 + 4, 4 * 4 * 4 + 4 * 4, 2 * 2 * 4
    layers = [attention + norms + network, attention + norms + 3 * network + 3 * 4 + network + 2 * 4 + 2]
    assert count(TINY).total_params == sum(layers) + (10 + 5) * 4 + 2 * 4 == RIGHT["10.5"](TINY)


def test_the_numbers_in_the_text():
    assert RIGHT["10.1"](7.5, 0.625, None)[2] == pytest.approx(4.69, abs=0.005)
    assert RIGHT["10.2"](128, 64, 1, 0, True) == 106
    assert RIGHT["10.3"]((1600, 1.5), [(100, 2.0), (400, 1.0)], 10, 20) == (8, 0.5, 4)
    assert RIGHT["10.5"](TINY) == 662


@pytest.mark.parametrize(
    ("exercise_id", "answer", "says"),
    [
        ("10.1", lambda *_: 4.7, "give three ratios, (steps, examples, seconds), not 4.7"),
        ("10.1", lambda *_: (7.5, 0.625, None), "seconds: yours None, spec 4.688"),
        ("10.3", lambda *_: (math.inf, 0.5, 4), "steps: yours inf, spec 8"),
        ("10.4", lambda *_: None, "yours None, spec []"),
    ],
)
def test_what_is_no_answer_is_told_so(exercise_id, answer, says):
    assert says in EXERCISES[exercise_id].examine(answer).says
