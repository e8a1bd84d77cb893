"""The figures of lesson 00 say what their data say."""

import pytest
import torch

from moe_lab import Routing
from moe_lab.plots.style import COLOURS, colour, hatch
from moe_lab.plots.text import experts_by_byte, learning_curve, loads_by_layer, moe_diagram

ROUTINGS = [
    Routing(torch.tensor([[3, 1], [0, 3], [3, -1]]), torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]), 4),
    Routing(torch.tensor([[2, 0], [2, 1], [2, 3]]), torch.full((3, 2), 0.5), 4),
]


def test_every_byte_has_its_expert_in_every_layer():
    axes = experts_by_byte(ROUTINGS, list("moe")).axes[0]
    written = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (1, 0): "0", (2, 0): "3", (0, 1): "2", (1, 1): "2", (2, 1): "2"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["m", "o", "e"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "layer 1"]
    second = experts_by_byte(ROUTINGS, list("moe"), slot=1).axes[0]
    assert [text.get_text() for text in second.texts] == ["1", "3", "-1", "0", "1", "3"]


def test_an_expert_keeps_colour_and_pattern():
    axes = experts_by_byte(ROUTINGS, list("moe")).axes[0]
    looks = {}
    for text, patch in zip(axes.texts, axes.patches, strict=True):
        looks.setdefault(text.get_text(), set()).add((patch.get_facecolor(), patch.get_hatch()))
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == len(looks)


def test_no_two_of_64_experts_look_alike():
    assert len({(colour(expert), hatch(expert)) for expert in range(64)}) == 64
    assert colour(0) == colour(len(COLOURS)) and hatch(0) != hatch(len(COLOURS))


def test_bars_are_loads_and_the_line_is_their_mean():
    figure = loads_by_layer(ROUTINGS)
    for routing, axes in zip(ROUTINGS, figure.axes, strict=True):
        assert [bar.get_height() for bar in axes.patches] == routing.load.tolist()
        assert set(axes.lines[0].get_ydata()) == {routing.load.sum().item() / 4}


def test_curves_are_the_losses():
    axes = learning_curve([4.0, 2.0, 6.0], [[1, 5.0], [3, 4.5]], window=2).axes[0]
    training, held_out = axes.lines
    assert (training.get_xdata().tolist(), training.get_ydata().tolist()) == ([2, 3], [3.0, 4.0])
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([1, 3], [5.0, 4.5])


def test_the_diagram_names_its_parts():
    words = [text.get_text() for text in moe_diagram().axes[0].texts]
    assert {"one byte", "router", "expert 0", "weighted sum", "0.7", "0.3"} <= set(words)


def test_refuses():
    with pytest.raises(ValueError, match=r"pieces must be one a token, got 2 for \[3, 3\] tokens"):
        experts_by_byte(ROUTINGS, ["m", "o"])
    with pytest.raises(ValueError, match="losses must number at least window=25, got 3"):
        learning_curve([1.0, 2.0, 3.0], [[1, 1.0]])
