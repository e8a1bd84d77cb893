"""The figures of a watch tell the truth: cells, crosses, rings and words are those of the loads."""

import pytest
import torch

from moe_lab.plots import watching as plots

NAMES = ["model.layers.0.mlp.experts", "model.layers.3.mlp.experts"]
LOADS = [torch.tensor([0, 6, 3]), torch.tensor([2, 2])]


def marks(axes):
    """The places of the crosses, and of both inks of the rings."""
    return [points.get_offsets().tolist() for points in axes.collections]


def test_cells_are_loads_over_their_layers_mean():
    axes = plots.draw_loads(NAMES, LOADS).axes[0]
    shown = axes.images[0].get_array()
    assert shown[0].tolist() == [0.0, 2.0, 1.0] and shown[1, :2].tolist() == [1.0, 1.0]
    assert torch.tensor(shown.filled(float("nan"))).isnan().tolist() == [[False] * 3, [False, False, True]]
    assert marks(axes) == [[[0.0, 0.0]], *[[[1.0, 0.0], [0.0, 1.0]]] * 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3"]


def test_large_heat_maps_are_not_marked_and_name_some_layers():
    names = [f"layers.{layer}.mlp" for layer in range(90)]
    axes = plots.draw_loads(names, [torch.arange(60)] * 90).axes[0]
    assert not marks(axes) and [label.get_text() for label in axes.get_yticklabels()][:2] == ["0", "3"]


def test_loads_without_a_token_are_drawn_and_said():
    nothing = [torch.zeros(3, dtype=torch.int64)]
    axes = plots.draw_loads(["moe"], nothing).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.0, 0.0, 0.0]] and len(marks(axes)[0]) == 3
    assert plots.say_loads(["moe"], nothing).endswith("1 layer by 3 experts. No token was seen.")


def test_words_name_the_busiest_and_the_dead():
    said = plots.say_loads(NAMES, LOADS)
    assert "2 layers by 2 to 3 experts" in said
    assert "The busiest is expert 1 of model.layers.0.mlp.experts with 2.00 times it." in said
    assert said.endswith("Without a token: 1 of 5 experts, most of them in model.layers.0.mlp.experts, 1 of 3.")
    assert plots.say_loads(NAMES[1:], LOADS[1:]).endswith("Every expert had a token.")
    assert len(plots.say_loads(["a" * 500] * 2, LOADS)) < 600


def test_unevenness_is_drawn_beside_chance():
    axes = plots.draw_unevenness(NAMES, [0.5, 0.05], [0.1, 0.2]).axes[0]
    assert [
        line.get_ydata().tolist() if hasattr(line.get_ydata(), "tolist") else line.get_ydata() for line in axes.lines
    ] == [
        [0.5, 0.05],
        [0.1, 0.2],
    ]
    said = plots.say_unevenness(NAMES, [0.5, 0.05], [0.1, 0.2])
    assert "from 0.050 in model.layers.3.mlp.experts to 0.500 in model.layers.0" in said and said.endswith(
        "in 1 of them."
    )


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.0.x", "a.1.x"], ["0", "1"]),
        (["enc.0.x", "dec.0.x"], ["enc", "dec"]),
        (["a.0", "a.0.b"], ["a.0", "a.0.b"]),
        (["only.one"], ["only.one"]),
    ],
)
def test_names_are_shortened_to_what_tells_them_apart(names, short):
    assert plots.short_names(names) == short


def test_refuses_other_numbers_of_layers():
    for call in (
        lambda: plots.draw_loads(NAMES, LOADS[:1]),
        lambda: plots.say_loads([], []),
        lambda: plots.draw_unevenness(NAMES, [0.1], [0.1]),
    ):
        with pytest.raises(ValueError, match="there must be a name a layer"):
            call()
