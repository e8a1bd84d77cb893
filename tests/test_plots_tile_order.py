"""Figures of tile orders tell the truth: waves, panels, bytes, chiplets and missing tiles are those of the data."""

import pytest
from matplotlib.colors import to_hex

from moe_lab.plots import tile_order as plots
from moe_lab.plots.style import colour

ROWS = [divmod(item, 4) for item in range(12)]  # 3 x 4 tiles
COLUMNS = [(item % 3, item // 3) for item in range(12)]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def cells(axes) -> dict[tuple[int, int], str]:
    """The colour of each tile, by (tile_m, tile_n); marks of panels lie outside."""
    squares = [patch for patch in axes.patches if patch.get_width() == patch.get_height() == 1]
    return {(patch.get_y(), patch.get_x()): to_hex(patch.get_facecolor()) for patch in squares}


def marks(axes) -> tuple[set, set]:
    """Row panels at the left, column panels above."""
    outside = [patch for patch in axes.patches if patch.get_width() != 1]
    return {int(p.get_y()) for p in outside if p.get_x() < 0}, {int(p.get_x()) for p in outside if p.get_y() < 0}


# ---------------------------------------------------------------- walks


def test_walks_number_the_tiles_and_colour_the_first_wave():
    axes = plots.draw_walks({"rows": ROWS, "columns": COLUMNS}, programs=5).axes
    for one, tiles in zip(axes, (ROWS, COLUMNS), strict=True):
        assert texts(one) == [str(item) for item in range(12)]
        assert [(int(t.get_position()[1]), int(t.get_position()[0])) for t in one.texts] == tiles
        found = cells(one)
        assert {tile for tile, shade in found.items() if shade != "#ffffff"} == set(tiles[:5])
        assert set(found) == set(ROWS)


def test_walks_mark_the_panels_of_the_first_wave():
    rows, columns = plots.draw_walks({"rows": ROWS, "columns": COLUMNS}, programs=5).axes
    assert marks(rows) == ({0, 1}, {0, 1, 2, 3}) and rows.get_title() == "rows: 2 + 4 panels"
    assert marks(columns) == ({0, 1, 2}, {0, 1}) and columns.get_title() == "columns: 3 + 2 panels"
    (left, right), (bottom, top) = rows.get_xlim(), rows.get_ylim()
    assert left < -0.9 and top < -0.9 and right >= 4 and bottom >= 3, "marks and tiles are inside, row 0 on top"


@pytest.mark.parametrize("draw", [plots.draw_walks, plots.draw_chiplets])
@pytest.mark.parametrize("walks", [{}, {"none": []}])
def test_no_walk_is_refused(draw, walks):
    with pytest.raises(ValueError, match="walks must hold at least one, and each at least one tile"):
        draw(walks, 2)


# ---------------------------------------------------------------- bytes


def test_fetched_bars_are_shares_of_x_and_of_w():
    products = {
        "large": {"rows": (0.25, 8.0), "groups": (0.25, 1.5)},
        "small": {"rows": (0.5, 0.5), "groups": (1, 0.5)},
    }
    fig = plots.draw_fetched(products)
    bars = [(bar.get_x(), bar.get_width()) for bar in fig.axes[0].patches]
    assert bars == [(0, 0.25), (0.25, 8), (0, 0.25), (0.25, 1.5), (0, 0.5), (0.5, 0.5), (0, 1), (1, 0.5)]
    assert texts(fig.axes[0]) == ["8.25", "1.75", "1.00", "1.50"]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["large", "small"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["rows", "groups"]
    x, w = fig.axes[0].patches[:2]
    assert x.get_alpha() < w.get_alpha() and x.get_hatch() == w.get_hatch()
    assert fig.axes[0].get_xlim()[1] > 8.25


def test_fetched_orders_have_a_colour_and_a_pattern_each():
    fig = plots.draw_fetched({"one": dict.fromkeys(("rows", "columns", "groups"), (0.5, 0.5))})
    whole = fig.axes[0].patches[1::2]
    assert len({bar.get_facecolor() for bar in whole}) == len({bar.get_hatch() for bar in whole}) == 3
    keys = fig.legends[0].get_patches()
    assert [key.get_facecolor() for key in keys] == [bar.get_facecolor() for bar in whole]


@pytest.mark.parametrize("products", [{}, {"a": {}}, {"a": {"rows": (1, 1)}, "b": {"columns": (1, 1)}}])
def test_fetched_wants_the_same_orders(products):
    with pytest.raises(ValueError, match="products must hold at least one, all with the same orders"):
        plots.draw_fetched(products)


# ---------------------------------------------------------------- chiplets


def test_chiplets_take_items_in_turn():
    axes = plots.draw_chiplets({"rows": ROWS, "columns": COLUMNS}, num_xcds=3).axes
    for one, tiles in zip(axes, (ROWS, COLUMNS), strict=True):
        assert texts(one) == ["0", "1", "2"] * 4
        assert cells(one) == {tile: colour(item % 3).lower() for item, tile in enumerate(tiles)}
    assert axes[0].get_title() == "rows: a chiplet reads up to 3 + 4 panels"
    assert axes[1].get_title() == "columns: a chiplet reads up to 1 + 4 panels"


def test_the_chiplet_with_most_panels_is_the_one_in_the_title():
    """Three items on two chiplets: the first one has two tiles in a row."""
    axes = plots.draw_chiplets({"rows": [(0, 0), (1, 0), (0, 1)]}, num_xcds=2).axes[0]
    assert axes.get_title() == "rows: a chiplet reads up to 1 + 2 panels"
    assert plots.draw_chiplets({"rows": [(0, 0)]}, num_xcds=8).axes[0].get_title().endswith("up to 1 + 1 panels")


# ---------------------------------------------------------------- tiles that are written


def test_written_tiles_are_those_that_someone_came_to():
    counts = {"right": [[1, 1, 1], [1, 1, 1], [0, 0, 0]], "broken": [[2, 0, 1], [0, 0, 1], [0, 1, 0]]}
    right, broken = plots.draw_written(counts, in_use=2).axes
    assert right.images[0].get_array().tolist() == [[1, 1, 1], [1, 1, 1]]
    assert broken.images[0].get_array().tolist() == [[1, 0, 1], [0, 0, 1]], "twice is written too; padding is not drawn"
    assert right.get_title() == "right: 6 of 6 tiles written" and broken.get_title() == "broken: 3 of 6 tiles written"
    (padding,) = broken.patches
    assert (padding.get_y(), padding.get_height(), padding.get_width()) == (2, 1, 3) and padding.get_hatch()
    assert broken.get_ylim() == (3, 0)


def test_all_written_and_none_written_look_different():
    full, empty = (plots.draw_written({"a": [[came] * 3]}, in_use=1).axes[0].images[0] for came in (1, 0))
    assert full.to_rgba(full.get_array()).tolist() != empty.to_rgba(empty.get_array()).tolist()


@pytest.mark.parametrize(("counts", "in_use"), [({}, 1), ({"a": [[1]]}, 0), ({"a": [[1]]}, 2)])
def test_written_wants_rows_in_use(counts, in_use):
    with pytest.raises(ValueError, match="in_use lie in its rows; got"):
        plots.draw_written(counts, in_use)
