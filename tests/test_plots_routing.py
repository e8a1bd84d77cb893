"""The figures of routing tell the truth: heights, places, labels and lines are those of the data."""

import pytest
import torch

from moe_lab.plots import routing as plots
from moe_lab.plots.style import colour
from moe_lab.routers import route
from moe_lab.types import Routing

LOGITS = torch.tensor([1.0, 3.0, -1.0, 3.0])


def bars(axes) -> dict[int, tuple[float, float]]:
    """Place -> (bottom, height) of every vertical bar, by its centre."""
    return {round(bar.get_x() + bar.get_width() / 2): (bar.get_y(), bar.get_height()) for bar in axes.patches}


def heights(axes) -> list[float]:
    return [height for _, (_, height) in sorted(bars(axes).items())]


def legend_texts(fig) -> list[str]:
    legends = [axes.get_legend() for axes in fig.axes if axes.get_legend()] + fig.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


# ---------------------------------------------------------------- scores of one token


def test_scores_are_the_logits_their_softmax_and_their_sigmoid():
    fig = plots.draw_scores(LOGITS, top_k=2)
    expected = (LOGITS, LOGITS.softmax(0), LOGITS.sigmoid())
    for axes, values in zip(fig.axes, expected, strict=True):
        assert heights(axes) == pytest.approx(values.tolist())
        assert axes.get_xlabel() == "expert"


@pytest.mark.parametrize(("top_k", "chosen"), [(1, {1}), (2, {1, 3}), (3, {0, 1, 3}), (4, {0, 1, 2, 3})])
def test_the_chosen_experts_have_their_own_colour_and_pattern(top_k, chosen):
    fig = plots.draw_scores(LOGITS, top_k)
    for axes in fig.axes:
        marked = {round(bar.get_x() + 0.4) for bar in axes.patches if bar.get_hatch()}
        assert marked == chosen
        looks = {bar.get_hatch(): bar.get_facecolor() for bar in axes.patches}
        assert len(set(looks.values())) == len(looks)


# ---------------------------------------------------------------- who goes where


def test_assignments_are_shaded_by_weight_and_numbered_by_choice():
    routing = Routing(torch.tensor([[2, 0], [1, -1], [-1, -1]]), torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.0, 0.0]]), 4)
    fig = plots.draw_assignments(routing, ["a", "\n", " "])
    axes = fig.axes[0]
    grid = axes.images[0].get_array()
    assert grid.shape == (4, 3)
    assert {(e, t): float(grid[e, t]) for e in range(4) for t in range(3) if not grid.mask[e, t]} == pytest.approx(
        {(2, 0): 0.7, (0, 0): 0.3, (1, 1): 1.0}
    )
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 2): "1", (0, 0): "2", (1, 1): "1"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "\u21b5", "\u00b7"]
    assert axes.images[0].get_clim() == (0.0, 1.0)


def test_assignments_want_one_label_a_token():
    routing = route(torch.zeros(3, 4), 1)
    with pytest.raises(ValueError, match="one for each of 3 tokens, got 2"):
        plots.draw_assignments(routing, ["a", "b"])


@pytest.mark.parametrize("top_k", [0, 5])
def test_top_k_is_checked(top_k):
    with pytest.raises(ValueError, match=r"top_k must lie in 1\.\.4"):
        plots.draw_scores(LOGITS, top_k)


# ---------------------------------------------------------------- loads


def test_loads_are_bars_with_the_mean_as_a_line():
    loads = {"top_k": torch.tensor([7, 0, 2]), "random": torch.tensor([3, 4, 2])}
    fig = plots.draw_loads(loads)
    assert [axes.get_title() for axes in fig.axes] == ["top_k: highest 7", "random: highest 4"]
    for axes, load in zip(fig.axes, loads.values(), strict=True):
        assert heights(axes) == load.tolist()
        assert axes.lines[0].get_ydata() == [3.0, 3.0]
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim(), "panels that are compared share their scale"
    assert legend_texts(fig) == ["mean 3"]


def test_loads_of_one_method_are_one_panel():
    assert len(plots.draw_loads({"base": torch.tensor([1, 1])}).axes) == 1
    with pytest.raises(ValueError, match="at least one load"):
        plots.draw_loads({})


def test_overflow_stacks_what_was_dropped_on_what_was_kept():
    fig = plots.draw_overflow(torch.tensor([5, 1, 3, 0]), torch.tensor([3, 1, 3, 0]), capacity=3)
    axes = fig.axes[0]
    kept, lost = axes.containers
    assert [bar.get_height() for bar in kept] == [3, 1, 3, 0]
    assert [(bar.get_y(), bar.get_height()) for bar in lost] == [(3, 2), (1, 0), (3, 0), (0, 0)]
    assert axes.lines[0].get_ydata() == [3, 3]
    assert sorted(legend_texts(fig)) == ["capacity 3", "dropped (2)", "kept (7)"]
    assert {bar.get_hatch() for bar in kept} != {bar.get_hatch() for bar in lost}


def test_overflow_of_a_real_router_adds_up():
    logits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, 0])
    asked, kept = route(logits, 1).load, route(logits, 1, "switch", capacity_factor=1.0).load
    axes = plots.draw_overflow(asked, kept, capacity=15).axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[1]]
    assert tops == asked.tolist()


@pytest.mark.parametrize(("kept", "capacity"), [([4, 1], 5), ([3, 1], 2)])
def test_overflow_refuses_numbers_that_cannot_be(kept, capacity):
    with pytest.raises(ValueError, match="kept must be at most asked and at most capacity"):
        plots.draw_overflow(torch.tensor([3, 1]), torch.tensor(kept), capacity)


# ---------------------------------------------------------------- text


def test_text_is_written_in_lines_and_marked_where_it_should_be():
    marked = torch.tensor([False, True, False, False, True])
    axes = plots.draw_text("ab\n d", marked, columns=3).axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "a",
        (1, 0): "b",
        (2, 0): "\u21b5",
        (0, 1): "\u00b7",
        (1, 1): "d",
    }
    assert [(box.get_x() + 0.5, box.get_y() + 0.5) for box in axes.patches] == [(1, 0), (1, 1)]
    assert {text.get_text() for text in axes.texts if text.get_weight() == "bold"} == {"b", "d"}


def test_text_stays_inside_the_axes():
    axes = plots.draw_text("x" * 130, torch.zeros(130, dtype=torch.bool)).axes[0]
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for text in axes.texts:
        x, y = text.get_position()
        assert low < x - 0.5 and x + 0.5 < high
        assert top < y - 0.5 + 0.11 and y + 0.5 - 0.11 < bottom
    assert max(text.get_position()[1] for text in axes.texts) == 2


def test_text_wants_one_mark_a_character():
    with pytest.raises(ValueError, match="one for each of 3 characters, got 2"):
        plots.draw_text("abc", torch.tensor([True, False]))


# ---------------------------------------------------------------- service and methods


def test_service_counts_tokens_by_their_number_of_experts():
    routing = Routing(torch.tensor([[2, 0], [1, -1], [-1, -1], [0, -1]]), torch.zeros(4, 2), 3)
    axes = plots.draw_service(routing).axes[0]
    assert heights(axes) == [1, 2, 1]
    assert [(round(text.xy[0]), text.get_text()) for text in axes.texts] == [(0, "1"), (1, "2"), (2, "1")]


def test_service_of_expert_choice_counts_every_token_and_assignment():
    logits = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    routing = route(logits, 2, "expert_choice")
    counts = heights(plots.draw_service(routing).axes[0])
    assert sum(counts) == 40
    assert sum(experts * tokens for experts, tokens in enumerate(counts)) == int(routing.load.sum())


def test_methods_are_bars_with_their_noise_floor_as_diamonds():
    cv, floor = {"top_k": 1.25, "base": 0.0, "random": 0.2}, {"top_k": 0.1, "base": 0.3, "random": 0.1}
    fig = plots.draw_methods(cv, floor)
    axes = fig.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.25, 0.0, 0.2]
    assert list(axes.lines[0].get_xdata()) == [0.1, 0.3, 0.1]
    assert list(axes.lines[0].get_ydata()) == [round(bar.get_y() + bar.get_height() / 2, 6) for bar in axes.patches]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["top_k  1.25", "base  0.00", "random  0.20"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first method is at the top"
    assert sorted(legend_texts(fig)) == ["cv of the load", "noise floor"]


def test_methods_must_be_the_same_twice():
    with pytest.raises(ValueError, match="noise_floor must have the methods of cv, top_k, base; got base"):
        plots.draw_methods({"top_k": 1.0, "base": 0.0}, {"base": 0.3})


def test_patterns_are_told_apart_without_colour():
    fig = plots.draw_scores(LOGITS, top_k=1)
    by_colour = {}
    for bar in fig.axes[0].patches:
        by_colour.setdefault(tuple(bar.get_facecolor()), set()).add(bar.get_hatch())
    assert len(by_colour) == 2
    assert set.intersection(*by_colour.values()) == set()
    assert colour(plots.CHOSEN) != colour(plots.PLAIN)
