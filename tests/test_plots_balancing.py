"""Figures of load balancing: bands, lines, dots and names are those of the data; people look at the pixels."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.plots.balancing import (
    draw_collapse,
    draw_drops,
    draw_sweep,
    draw_tradeoff,
    draw_violations,
    spread_out,
)

STEPS = list(range(10, 210, 10))
LOADS = torch.randint(0, 50, (20, 6), generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 0, 1, 5, 1, 1])


def band_heights(area, x):
    """Bottom and top of a stacked band at one of its steps."""
    points = [tuple(point) for point in area.get_paths()[0].vertices if point[0] == x]
    return min(y for _, y in points), max(y for _, y in points)


# ---------------------------------------------------------------- collapse


def test_collapse_stacks_the_biggest_experts_and_the_rest():
    top = draw_collapse(STEPS, {"layer 0": LOADS}, biggest=2).axes[0]
    shares = LOADS.double() / LOADS.sum(dim=1, keepdim=True)
    assert [text.get_text() for text in top.texts] == ["expert 0", "expert 3", "the other 4"]
    for sample in (0, 7, 19):
        low = 0.0
        for area, share in zip(top.collections, (shares[sample, 0], shares[sample, 3], None), strict=True):
            high = 1.0 if share is None else low + float(share)
            assert band_heights(area, STEPS[sample]) == pytest.approx((low, high))
            low = high
    assert top.get_ylim() == (0, 1) and top.get_xlim() == (10, 200)


def test_every_band_holds_its_own_name_in_its_own_look():
    top = draw_collapse(STEPS, {"layer 0": LOADS}, biggest=3).axes[0]
    for area, text in zip(top.collections, top.texts, strict=True):
        x, y = text.get_position()
        low, high = band_heights(area, x)
        assert low <= y <= high
    looks = {(tuple(area.get_facecolor()[0]), area.get_hatch()) for area in top.collections}
    assert len(looks) == 4


def test_collapse_counts_the_dead_of_every_load():
    other = LOADS.clone()
    other[5:] = 0
    other[5:, 2] = 7
    fig = draw_collapse(STEPS, {"layer 0": LOADS, "layer 1": other})
    bottom = fig.axes[1]
    first, second = bottom.get_lines()
    assert first.get_ydata().tolist() == (LOADS == 0).sum(dim=1).tolist()
    assert second.get_ydata().tolist()[5:] == [5] * 15
    assert [text.get_text() for text in bottom.get_legend().get_texts()] == ["layer 0", "layer 1"]
    assert first.get_linestyle() != second.get_linestyle() and fig.axes[0].get_title().startswith("layer 0")


def test_collapse_of_a_step_without_assignments():
    nothing = torch.zeros(2, 3, dtype=torch.int64)
    fig = draw_collapse([10, 20], {"layer 0": nothing}, biggest=1)
    assert fig.axes[1].get_lines()[0].get_ydata().tolist() == [3, 3]


# ---------------------------------------------------------------- coefficients


def test_sweep_has_a_dot_a_seed_and_a_line_through_the_means():
    fig = draw_sweep(
        ["0", "1e-2", "1"], {"MaxVio": [[3.0, 5.0], [0.4, 0.6], [0.0, 0.2]], "loss": [[2.0], [2.1], [1.9]]}
    )
    left, right = fig.axes
    assert list(left.lines[0].get_ydata()) == pytest.approx([4.0, 0.5, 0.1])
    assert [sorted(dots.get_offsets()[:, 1].tolist()) for dots in left.collections] == [[3, 5], [0.4, 0.6], [0, 0.2]]
    assert [dots.get_offsets()[:, 0].tolist() for dots in left.collections] == [[0, 0], [1, 1], [2, 2]]
    assert [axes.get_title() for axes in fig.axes] == ["MaxVio", "loss"]
    assert left.get_yscale() == "symlog" and right.get_yscale() == "linear"
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "1e-2", "1"]


def test_sweep_wants_a_value_a_setting():
    with pytest.raises(ValueError, match="there must be 2 values, one a setting, got 1 for 'loss'"):
        draw_sweep(["0", "1"], {"loss": [[1.0]]})


# ---------------------------------------------------------------- biases


def test_violations_are_means_in_bars_of_the_seeds():
    one = torch.tensor([[6.0, 3.0, 1.0], [4.0, 1.0, 0.5]])
    fig = draw_violations([10, 20, 30], {"sign": one, "none": one + 2}, chance=0.1)
    axes = fig.axes[0]
    first, second, line = axes.lines
    assert list(first.get_ydata()) == [5, 2, 0.75] and list(second.get_ydata()) == [7, 4, 2.75]
    assert list(line.get_ydata()) == [0.1, 0.1] and axes.get_yscale() == "log"
    assert [bar[:, 1].tolist() for bar in axes.collections[0].get_segments()] == [[4, 6], [1, 3], [0.5, 1]]
    assert first.get_linestyle() != second.get_linestyle()


def test_names_stand_beside_the_ends_of_their_lines_and_apart():
    series = {f"method {number}": torch.tensor([[5.0, 0.3 + number / 1000]]) for number in range(5)}
    axes = draw_violations([10, 20], series, chance=0.1).axes[0]
    names = [text.get_text() for text in axes.texts]
    assert names == [*series, "chance"]
    heights = [text.xyann[1] for text in axes.texts]
    assert heights[:5] == sorted(heights[:5]) and heights[5] == min(heights)
    assert all(high - low > 0.07 for low, high in itertools.pairwise(sorted(heights)))


@pytest.mark.parametrize(
    "draw",
    [lambda: draw_collapse(STEPS, {"a": LOADS[:3]}), lambda: draw_violations([10, 20], {"a": torch.ones(2, 3)}, 0.1)],
)
def test_samples_must_fit_the_steps(draw):
    with pytest.raises(ValueError, match="samples, one a step, got 3 for 'a'"):
        draw()


# ---------------------------------------------------------------- drops


def test_drops_are_drawn_where_they_happened():
    axes = draw_drops({"order": [0.1, 0.2, 0.3, 0.8], "random": [0.35] * 4}).axes[0]
    order, random = axes.lines
    assert list(order.get_xdata()) == [0.125, 0.375, 0.625, 0.875] and list(order.get_ydata()) == [0.1, 0.2, 0.3, 0.8]
    assert (order.get_marker(), order.get_linestyle()) != (random.get_marker(), random.get_linestyle())
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["order", "random"]
    assert axes.get_ylim()[0] == 0


# ---------------------------------------------------------------- all methods

METHODS = {
    "none": ([3.0, 5.0], [1.9, 2.1]),
    "even": ([0.0, 0.0], [2.0, 2.2]),
    "sign": ([0.3, 0.3], [1.95, 2.0]),
    "midpoint": ([0.31, 0.29], [1.96, 2.0]),
    "random": ([0.1, 0.1], [2.2, 2.3]),
}
KINDS = {"none": "no balancing", "even": "rules", "sign": "biases", "midpoint": "biases", "random": "rules"}


def test_tradeoff_draws_means_ranges_and_kinds():
    fig = draw_tradeoff(METHODS, KINDS, chance=0.1)
    axes = fig.axes[0]
    groups = {marks.get_label(): marks.get_offsets().tolist() for marks in axes.collections}
    assert groups["no balancing"] == [pytest.approx([4.0, 2.0])]
    assert groups["rules"] == [pytest.approx([0.0, 2.1]), pytest.approx([0.1, 2.25])]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["no balancing", "rules", "biases"]
    ranges = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([3.0, 5.0], [2.0, 2.0]) in ranges and ([4.0, 4.0], [1.9, 2.1]) in ranges
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] < 0, "an even load has a place on the axis"


def test_every_method_is_named_beside_its_point_and_names_keep_apart():
    fig = draw_tradeoff(METHODS, KINDS, chance=0.1)
    names = {text.get_text(): text for text in fig.axes[0].texts if text.get_text() != "chance"}
    assert set(names) == set(METHODS)
    for name, text in names.items():
        means = [sum(values) / len(values) for values in METHODS[name]]
        assert list(text.xy) == pytest.approx(means)
    boxes = [text.get_window_extent() for text in names.values()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_name_makes_way_for_the_mark_of_another_method():
    methods = {"a name of some length": ([1.3], [2.0]), "next": ([3.2], [2.0]), "low": ([0.1], [1.9])}
    methods |= {"before": ([0.5], [2.0]), "high": ([0.1], [2.1])}
    axes = draw_tradeoff(methods, dict.fromkeys(methods, "rules"), chance=0.1).axes[0]
    box = next(text for text in axes.texts if text.get_text().startswith("a name")).get_window_extent()
    x, y = axes.transData.transform((3.2, 2.0))
    assert box.x0 < x < box.x1, "this test wants a name that is too long for the room beside it"
    assert not box.y0 < y < box.y1


def test_kinds_must_be_those_of_the_methods():
    with pytest.raises(ValueError, match="kinds must have the methods, none, even, sign, midpoint, random; got none"):
        draw_tradeoff(METHODS, {"none": "rules"}, 0.1)


# ---------------------------------------------------------------- names that make way


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_spread_out_keeps_order_and_distance(places, apart):
    moved = spread_out(places, apart)
    pairs = sorted(zip(places, moved, strict=True))
    assert all(high - low > apart - 1e-9 for (_, low), (_, high) in itertools.pairwise(pairs))
    assert sum(moved) == pytest.approx(sum(places))


def test_places_that_are_apart_stay():
    assert spread_out([0.9, 0.1, 0.5], 0.2) == [0.9, 0.1, 0.5]
    assert spread_out([], 0.2) == []
    assert spread_out([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread_out([0.0, 0.05, 0.2], 0.1) == pytest.approx([-0.025, 0.075, 0.2])
