"""The figures of kernels tell the truth: boxes, bars, points and lines are those of the data."""

import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from moe_lab.plots import kernels as plots
from moe_lab.plots.style import colour


def boxes(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


# ---------------------------------------------------------------- numbers and sectors


def test_every_number_and_its_sectors_are_drawn():
    axes = plots.draw_touched({"row": [8, 9, 10], "column": [0, 16, 17]}, numbers=20).axes[0]
    numbers = [box for box in boxes(axes) if box.get_facecolor() == to_rgba(colour(0))]
    assert [(int(box.get_x()), int(box.get_y())) for box in numbers] == [
        (8, 0),
        (9, 0),
        (10, 0),
        (0, 1),
        (16, 1),
        (17, 1),
    ]
    come = [(box.get_x(), int(box.get_y()), box.get_width()) for box in boxes(axes) if box.get_hatch()]
    assert come == [(8, 0, 8), (0, 1, 8), (16, 1, 4)]
    assert texts(axes) == ["3 numbers, 1 sector", "3 numbers, 2 sectors"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["row", "column"]


@pytest.mark.parametrize("loads", [{}, {"a": [-1]}, {"a": [16]}])
def test_numbers_outside_of_the_strip_are_refused(loads):
    with pytest.raises(ValueError, match=r"numbers in 0\.\.15"):
        plots.draw_touched(loads, numbers=16)


# ---------------------------------------------------------------- rows


def test_rows_carry_their_assignment_in_their_experts_look():
    axes = plots.draw_rows([5, 2, -1, 7, -1, -1], [0, 3, 3], block_m=2).axes[0]
    rows, tiles = boxes(axes)[:6], boxes(axes)[6:]
    assert [bool(row.get_facecolor()[:3] != (1, 1, 1)) for row in rows] == [True, True, False, True, False, False]
    assert rows[0].get_facecolor() == to_rgba(colour(0) + "55") and rows[3].get_facecolor() == to_rgba(colour(3) + "55")
    assert rows[0].get_hatch() != rows[3].get_hatch()
    assert [(tile.get_x(), tile.get_width()) for tile in tiles] == [(0, 2), (2, 2), (4, 2)]
    assert texts(axes) == ["5", "2", "7", "expert 0", "expert 3", "expert 3"]


@pytest.mark.parametrize(("rows", "tiles"), [([], []), ([1, 2, 3], [0, 1]), ([1, 2], [])])
def test_rows_come_in_whole_tiles(rows, tiles):
    with pytest.raises(ValueError, match="row_assignment must have 2 rows for each of"):
        plots.draw_rows(rows, tiles, block_m=2)


# ---------------------------------------------------------------- counted over least


def test_ratios_are_bars_beside_a_line_at_one():
    axes = plots.draw_over_least({"copy": {"bytes": 1.5}, "product": {"bytes": 2.0, "FLOPs": 1.25}}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.5, 2.0, 1.25]
    assert texts(axes) == ["1.50", "2.00", "1.25"]
    assert axes.lines[0].get_xdata() == [1, 1] and axes.get_xlim()[0] == 0
    assert axes.patches[0].get_hatch() == axes.patches[1].get_hatch() != axes.patches[2].get_hatch()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["bytes", "FLOPs"]
    heights = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert list(axes.get_yticks()) == pytest.approx([heights[0], (heights[1] + heights[2]) / 2])


@pytest.mark.parametrize("ratios", [{}, {"copy": {}}, {"copy": {"bytes": 0.0}}])
def test_ratios_must_be_there_and_above_0(ratios):
    with pytest.raises(ValueError, match="ratios must hold at least one"):
        plots.draw_over_least(ratios)


# ---------------------------------------------------------------- times over steps


def test_times_are_points_and_the_line_is_start_plus_slope():
    series = {"serial": [("8", 100, 12.0), ("", 200, 22.0)], "parallel": [("", 100, 3.0)]}
    axes = plots.draw_times(series, ("a line", 2.0, 0.1), "steps", "µs").axes[0]
    line, serial, parallel = axes.lines
    across, along = line.get_data()
    assert list(along) == pytest.approx([2.0 + 0.1 * x for x in across])
    assert min(across) < 100 and max(across) > 200
    assert [list(values) for values in serial.get_data()] == [[100, 200], [12.0, 22.0]]
    assert [list(values) for values in parallel.get_data()] == [[100], [3.0]]
    assert serial.get_marker() != parallel.get_marker()
    assert texts(axes) == ["8"] and axes.get_xscale() == axes.get_yscale() == "log"


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [("", 0, 1.0)]}, {"a": [("", 1, -1.0)]}])
def test_times_must_be_there_and_above_0(series):
    with pytest.raises(ValueError, match="series must hold at least one point"):
        plots.draw_times(series, ("line", 1.0, 1.0), "steps", "µs")
