"""Figures of the roofline tell the truth: roofs, points, bars and lines are the data, and names can be read."""

import itertools

import pytest

from moe_lab.plots import roofline as plots
from moe_lab.roofline import DEVICES, Device

DEVICE = Device("toy", {"float32": 8e9, "bfloat16": 16e9}, 2e9, "data sheet", "made up")


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend_texts(fig) -> list[str]:
    legends = [axes.get_legend() for axes in fig.axes if axes.get_legend()] + fig.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def line(axes, number):
    return list(axes.lines[number].get_xdata()), list(axes.lines[number].get_ydata())


# ---------------------------------------------------------------- a roof and points


def test_roof_bends_at_the_ridge():
    axes = plots.draw_roof(DEVICE, "float32", {"work": {"a": (1.0, 1e9)}}).axes[0]
    across, up = line(axes, 0)
    assert across[1] == 4 and up[1:] == [8, 8]
    assert up[0] == pytest.approx(across[0] * 2), "GFLOP/s at 2 GB/s"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlabel() == "FLOP/byte (float32)" and axes.get_ylabel() == "GFLOP/s"
    assert line(axes, 1)[0] == [4, 4]


def test_roof_of_another_dtype_and_size():
    axes = plots.draw_roof(DEVICES["H200"], "bfloat16", {"work": {"": (1.0, 4e12)}}).axes[0]
    assert line(axes, 0)[1][1] == pytest.approx(989.4) and axes.get_ylabel() == "TFLOP/s"
    assert texts(axes) == ["4.8 TB/s", "989 TFLOP/s", "ridge 206"]


def test_roof_has_a_mark_for_each_point():
    points = {"MoE": {"1": (0.5, 1e9), "64": (2.0, 3e9)}, "dense": {"1": (0.5, 2e9), "": (32.0, 7e9)}}
    axes = plots.draw_roof(DEVICE, "float32", points).axes[0]
    assert line(axes, 2) == ([0.5, 2.0], [1, 3]) and line(axes, 3) == ([0.5, 32.0], [2, 7])
    assert texts(axes)[3:] == ["1", "64", "1"]
    assert legend_texts(axes.figure) == ["MoE", "dense"]
    assert len({one.get_marker() for one in axes.lines[2:]}) == len({one.get_color() for one in axes.lines[2:]}) == 2
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert all(left < x < right and low < y / 1e9 < high for series in points.values() for x, y in series.values())


@pytest.mark.parametrize("points", [{}, {"none": {}}, {"a": {"": (0.0, 1.0)}}, {"a": {"": (1.0, -1.0)}}])
def test_roof_wants_points(points):
    with pytest.raises(ValueError, match="points must hold at least one point"):
        plots.draw_roof(DEVICE, "float32", points)


def test_roof_refuses_a_dtype_without_a_ceiling():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16 on toy, got 'float16'"):
        plots.draw_roof(DEVICE, "float16", {"a": {"": (1.0, 1e9)}})
    with pytest.raises(ValueError, match="on toy, got 'float16'"):
        plots.draw_regions(DEVICE, "float16", {"a": {"decode": (1.0, 2.0)}})


# ---------------------------------------------------------------- regions


def test_regions_are_bars_from_lowest_to_highest():
    layers = {
        "small": {"decode": (1.0, 8.0), "training": (6.0, 64.0)},
        "large": {"decode": (0.5, 2.0), "training": (3.0, 3.5)},
    }
    fig = plots.draw_regions(DEVICE, "float32", layers)
    upper, lower = fig.axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in lower.patches]
    assert bars == [(1.0, 8.0), (6.0, 64.0), (0.5, 2.0), (3.0, 3.5)]
    assert texts(lower) == ["decode", "training", "decode", "training"]
    assert [label.get_text() for label in lower.get_yticklabels()] == ["small", "large"]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in lower.patches}) == 2
    rows = [bar.get_y() for bar in lower.patches]
    assert rows == sorted(rows) and all(after - before >= 0.85 for before, after in itertools.pairwise(rows))
    assert line(upper, 0)[0][1] == line(lower, 0)[0][0] == 4, "one ridge through both"
    assert upper.get_xlim() == lower.get_xlim()


@pytest.mark.parametrize("span", [(2.0, 1.0), (0.0, 1.0)])
def test_regions_refuse_what_is_no_range(span):
    with pytest.raises(ValueError, match="0 < low <= high"):
        plots.draw_regions(DEVICE, "float32", {"a": {"decode": span}})
    with pytest.raises(ValueError, match="layers must hold ranges"):
        plots.draw_regions(DEVICE, "float32", {})


# ---------------------------------------------------------------- over tokens


def test_curves_and_marks_are_the_data():
    curves, marks = {"a": [1.0, 5.0, 9.0], "b": [1.0, 2.0, 3.0]}, {"b": [1.5, 2.5, 3.5]}
    axes = plots.draw_over_tokens([1, 2, 4], curves, "tokens", "ratio", ("even", 2.0), marks).axes[0]
    assert line(axes, 0)[1] == [2.0, 2.0]
    assert line(axes, 1) == ([1, 2, 4], curves["a"]) and line(axes, 2) == ([1, 2, 4], curves["b"])
    assert line(axes, 3) == ([1, 2, 4], marks["b"]) and axes.lines[3].get_linestyle() == "None"
    assert axes.lines[3].get_color() == axes.lines[2].get_color() != axes.lines[1].get_color()
    assert axes.lines[1].get_linestyle() != axes.lines[2].get_linestyle()
    assert {text.get_text(): text.xy for text in axes.texts if text.get_text() in curves} == {
        "a": (4, 9.0),
        "b": (4, 3.0),
    }
    assert axes.get_xscale() == "log" and axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0


def test_ends_that_meet_are_named_in_a_legend():
    curves = {"a": [1.0, 5.0, 1.0], "b": [1.0, 2.0, 1.0]}
    axes = plots.draw_over_tokens([1, 2, 4], curves, "tokens", "ratio").axes[0]
    assert legend_texts(axes.figure) == ["a", "b"] and texts(axes) == []
    apart = plots.draw_over_tokens([1, 2, 4], {"a": [1.0, 5.0, 9.0], "b": [1.0, 2.0, 3.0]}, "tokens", "ratio")
    assert legend_texts(apart) == []


@pytest.mark.parametrize(
    "values", [[2.6, 2.6, 2.6, 8.0], [8.0, 2.6, 2.6, 2.6], [1.7, 1.7, 1.7, 0.5], [0.5, 1.5, 2.5, 3.5]]
)
def test_the_level_is_named_where_no_curve_is(values):
    """Above a curve that runs just below the level, below one that runs just above it."""
    tokens = [1, 10, 100, 1000]
    fig = plots.draw_over_tokens(tokens, {"a": values}, "tokens", "ratio", ("the level", 2.0))
    fig.canvas.draw()
    name = next(text for text in fig.axes[0].texts if text.get_text() == "the level")
    box, places = name.get_window_extent(), fig.axes[0].transData.transform(list(zip(tokens, values, strict=True)))
    assert not any(plots._crosses(box, one, other) for one, other in itertools.pairwise(places.tolist()))


def test_crossing_by_hand():
    box = plots.Bbox([[1.0, 1.0], [3.0, 3.0]])
    assert plots._crosses(box, [0.0, 0.0], [4.0, 4.0])
    assert not plots._crosses(box, [0.0, 4.0], [4.0, 4.0])


def test_ticks_are_whole_tokens_and_few():
    tokens = [2**power for power in range(15)]
    axes = plots.draw_over_tokens(tokens, {"a": [float(t) for t in tokens]}, "tokens", "x", logarithmic=True).axes[0]
    ticks = list(axes.xaxis.get_major_locator().locs)
    assert set(ticks) <= set(tokens) and 3 <= len(ticks) <= 6 and ticks[0] == 1
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("curves", "marks", "says"),
    [
        ({}, None, "curves must hold at least one"),
        ({"a": [1.0, 2.0]}, {"b": [1.0, 2.0]}, "and all of the marks"),
        ({"a": [1.0]}, None, "a must have a value for each of 2 tokens, got 1"),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, "a must have a value for each of 2 tokens, got 1"),
    ],
)
def test_over_tokens_refuses_what_does_not_fit(curves, marks, says):
    with pytest.raises(ValueError, match=says):
        plots.draw_over_tokens([1, 2], curves, "tokens", "ratio", marks=marks)


# ---------------------------------------------------------------- bytes


def test_bytes_are_shares_that_fill_the_bar():
    batches = {"1 token": {"weights": 1e9, "gradient": 3e9}, "64 tokens": {"weights": 6e9, "gradient": 2e9}}
    fig = plots.draw_bytes(batches)
    bars = [(bar.get_x(), bar.get_width()) for bar in fig.axes[0].patches]
    assert bars == [(0, 25), (25, 75), (0, 75), (75, 25)]
    assert texts(fig.axes[0]) == ["4 GB", "8 GB"]
    assert legend_texts(fig) == ["weights", "gradient"]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == list(batches)


@pytest.mark.parametrize("batches", [{}, {"a": {"w": 0.0}}, {"a": {"w": 1.0}, "b": {"v": 1.0}}])
def test_bytes_refuse_what_is_no_bar(batches):
    with pytest.raises(ValueError, match="batches must hold at least one"):
        plots.draw_bytes(batches)
