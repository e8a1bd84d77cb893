"""Lesson 06: the prediction, and what it is judged by."""

import pytest

from moe_lab.exercises.lesson_06 import EXERCISES, LAYERS, REASONS, bytes_moved
from moe_lab.roofline import DEVICES, LayerShape, attainable, expert_cost

from ..mutants.answers_06 import PREDICTION


def test_no_prediction_is_not_attempted():
    assert EXERCISES["06.4"].examine(None).says == "not attempted yet."


def test_the_last_hint_is_the_prediction():
    namespace = {}
    exec(EXERCISES["06.4"].hints[-1], namespace)
    assert EXERCISES["06.4"].examine(namespace["prediction"]).solved


@pytest.mark.parametrize(("tokens", "first"), [(1, "B"), (256, "A")])
@pytest.mark.parametrize("device", ["H200", "A100 80GB", "MI300X"])
def test_fewest_bytes_are_the_least_time(tokens, first, device):
    """06.4 speaks of time and is judged by bytes: at these batches every GPU is limited by memory."""
    times = {}
    for name, (num_experts, top_k, d_expert) in LAYERS.items():
        bound = attainable(expert_cost(LayerShape(2048, d_expert, num_experts, top_k), tokens), DEVICES[device])
        assert bound.limit == "memory"
        times[name] = bound.time_ms
    assert min(times, key=times.get) == first == min(LAYERS, key=lambda name: bytes_moved(LAYERS[name], tokens))


def test_the_reasons_are_the_ones_that_decide():
    """What is named as the reason ranks the three layers as their bytes do; half of the other reasons do not."""
    for tokens, (_, reason) in PREDICTION.items():
        by_reason = sorted(LAYERS, key=lambda name: REASONS[reason](*LAYERS[name]))
        assert by_reason == sorted(LAYERS, key=lambda name: bytes_moved(LAYERS[name], tokens))
