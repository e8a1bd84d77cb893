"""Figures of dispatch: what they draw is the data, in bars, squares, lines and words; people look at the pixels."""

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from moe_lab import Routing
from moe_lab.dispatch import assign_places, index_table
from moe_lab.plots.dispatch import (
    PARTS,
    draw_growth,
    draw_layer_times,
    draw_mask_and_table,
    draw_ratios,
    draw_ways,
)
from moe_lab.plots.style import COLOURS, colour

ROUTING = Routing(torch.tensor([[1], [0], [1], [-1]]), torch.tensor([[1.0], [1.0], [1.0], [0.0]]), 3)


def grid_of(axes, rows, columns):
    """The texts of a drawn matrix, by their squares."""
    grid = [[None] * columns for _ in range(rows)]
    for text in axes.texts:
        column, row = (int(v) for v in text.get_position())
        grid[row][column] = text.get_text()
    return grid


def test_mask_and_table_hold_the_same_facts():
    mask, table = draw_mask_and_table(ROUTING, capacity=2).axes
    want = torch.zeros(4, 6, dtype=torch.int64)
    for token, place in enumerate(assign_places(ROUTING, 2).flatten().tolist()):
        if place >= 0:
            want[token, place] = 1
    assert [[int(cell) for cell in row] for row in grid_of(mask, 4, 6)] == want.tolist()
    words = [["-" if token < 0 else str(token) for token in row] for row in index_table(ROUTING, 2).tolist()]
    assert grid_of(table, 3, 2) == words
    assert mask.get_title() == "one-hot mask: 24 numbers" and table.get_title() == "index table: 6 numbers"


def test_taken_squares_have_the_colour_and_pattern_of_their_expert():
    mask, _ = draw_mask_and_table(ROUTING, capacity=2).axes
    taken = [patch for patch in mask.patches if to_hex(patch.get_facecolor()).upper() != "#FFFFFF"]
    looks = {(to_hex(patch.get_facecolor()).upper(), patch.get_hatch()) for patch in taken}
    assert len(taken) == 3 and looks == {(COLOURS[0], ""), (COLOURS[1], "//")}


def test_growth_draws_a_line_a_name():
    axes = draw_growth([2, 4, 8], {"one": [1, 2, 4], "two": [3, 3, 3]}, crossing=5).axes[0]
    one, two, mark = axes.get_lines()
    assert list(one.get_ydata()) == [1, 2, 4] and list(two.get_ydata()) == [3, 3, 3]
    assert (one.get_marker(), one.get_linestyle()) != (two.get_marker(), two.get_linestyle())
    assert list(mark.get_xdata()) == [5, 5] and axes.texts[0].get_text().strip() == "equal at 5 tokens"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert len(draw_growth([2], {"one": [1]}).axes[0].get_lines()) == 1


def test_ways_are_stacked_to_their_totals():
    fig = draw_ways({"one-hot": (3_000_000, 1_000_000, 5_000_000), "loop": (0, 0, 5_000_000)})
    axes = fig.axes[0]
    widths = {container.get_label(): [bar.get_width() for bar in container] for container in axes.containers}
    assert widths == {PARTS[0]: [3, 0], PARTS[1]: [1, 0], PARTS[2]: [5, 5]}
    starts = {container.get_label(): [bar.get_x() for bar in container] for container in axes.containers}
    assert starts == {PARTS[2]: [0, 0], PARTS[1]: [5, 5], PARTS[0]: [6, 5]}
    assert [text.get_text().strip() for text in axes.texts] == ["9", "5"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(PARTS)


def test_ratios_are_written_and_those_from_6_on_striped():
    ratios = torch.tensor([[1.04, 5.96, 6.0], [0.9, 8.0, 41.7]])
    fig = draw_ratios(ratios, [4, 16], [8, 64, 512], [20.0, 160.0, 1280.0])
    left, right = fig.axes[:2]
    assert grid_of_ratios(left) == [["1.0", "6.0", "6.0"], ["0.9", "8.0", "42"]]
    assert len(left.patches) == 3 and all(patch.get_hatch() for patch in left.patches)
    closed, measured, six = right.get_lines()
    assert list(closed.get_ydata()) == [20.0, 160.0, 1280.0]
    assert list(measured.get_ydata()) == pytest.approx([0.9, 5.96, 6.0])  # torch's median: the lower of two
    assert list(six.get_ydata()) == [6, 6]


def grid_of_ratios(axes):
    rows = {}
    for text in axes.texts:
        column, row = text.get_position()
        rows.setdefault(row, {})[column] = text.get_text()
    return [[rows[row][column] for column in sorted(rows[row])] for row in sorted(rows)]


def test_ratios_below_6_have_no_stripe_and_the_map_still_reaches_6():
    fig = draw_ratios(torch.tensor([[1.0, 2.0]]), [4], [8, 64], [20.0, 160.0])
    assert not fig.axes[0].patches
    assert fig.axes[0].images[0].norm.vmax == 6.5


def test_layer_times_are_stacked_shares_of_the_slower_way():
    fig = draw_layer_times([8, 64], {"one_hot": [(6.0, 4.0), (1.0, 1.0)], "table": [(1.0, 4.0), (2.0, 2.0)]})
    axes = fig.axes[0]
    bars = [(bar.get_y(), bar.get_height(), to_hex(bar.get_facecolor()).upper()) for bar in axes.patches]
    experts, carrying = colour(2), colour(0)
    want = [
        *((0, 40, experts), (40, 60, carrying), (0, 40, experts), (40, 10, carrying)),
        *((0, 25, experts), (25, 25, carrying), (0, 50, experts), (50, 50, carrying)),
    ]
    assert [look for _, _, look in bars] == [look for _, _, look in want]
    assert [v for bar in bars for v in bar[:2]] == pytest.approx([v for bar in want for v in bar[:2]])
    assert [text.get_text() for text in axes.texts] == ["10 ms", "5 ms", "2 ms", "4 ms"]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["one_hot\n8 tokens", "table\n8 tokens", "one_hot\n64 tokens", "table\n64 tokens"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["experts", "carrying tokens"]


def test_figures_are_closed():
    before = plt.get_fignums()
    figures = [
        draw_mask_and_table(ROUTING, 2),
        draw_growth([1, 2], {"a": [1, 2]}),
        draw_ways({"a": (1, 1, 1)}),
        draw_ratios(torch.ones(1, 1), [1], [1], [1.0]),
        draw_layer_times([1], {"a": [(1.0, 1.0)]}),
    ]
    assert all(isinstance(fig, Figure) for fig in figures)
    assert plt.get_fignums() == before


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"flops\['one'\] must have 2 points, one for each of tokens, got 1"):
        draw_growth([1, 2], {"one": [1]})
    with pytest.raises(ValueError, match=r"times_ms\['one'\] must have 2 pairs, one for each of tokens, got 1"):
        draw_layer_times([1, 2], {"one": [(1.0, 2.0)]})
    with pytest.raises(ValueError, match="capacity must be at least the largest load, 2"):
        draw_mask_and_table(ROUTING, 1)
