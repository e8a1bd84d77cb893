"""The figures of even routing tell the truth: points, lines, bars and cells are those of the data."""

import itertools
import math

import pytest
import torch

from moe_lab.plots import even_routing as plots
from moe_lab.routers import route

POINTS = {"even": (0.0, 0.0), "also even": (0.0, 0.3), "near": (0.1, 8.0), "free": (30.0, -50.0), "lots": (1.0, 100.0)}


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend_texts(fig) -> list[str]:
    legends = [axes.get_legend() for axes in fig.axes if axes.get_legend()] + fig.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def line(axes, number):
    return list(axes.lines[number].get_xdata()), list(axes.lines[number].get_ydata())


# ---------------------------------------------------------------- balance against score


def test_every_router_is_a_point():
    axes = plots.draw_pairs(POINTS).axes[0]
    drawn = [(x[0], y[0]) for x, y in (line(axes, number) for number in range(len(axes.lines))) if len(x) == 1]
    assert drawn == list(POINTS.values())
    assert texts(axes) == list(POINTS)
    low, high = axes.get_ylim()
    assert low > high, "more score is higher"
    assert axes.get_xscale() == axes.get_yscale() == "symlog"


@pytest.mark.parametrize(
    "crowded",
    [
        {f"router {n}": (10.0 if n % 2 else 4.0, -(4.0 ** (3 - n // 2))) for n in range(8)},  # names over points
        {"upper": (2.0, 10.0), "lower": (2.0, 12.0)},  # names over names
    ],
)
def test_names_are_by_their_points_and_cover_no_other(crowded):
    fig = plots.draw_pairs(crowded)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    for one, other in itertools.combinations(boxes, 2):
        shared = plots._shared(tuple(one.extents), tuple(other.extents))
        assert shared < 0.2 * one.width * one.height
    for text, point in zip(fig.axes[0].texts, crowded.values(), strict=True):
        assert text.xy == point


def test_shared_area_by_hand():
    assert plots._shared((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)) == 1
    assert plots._shared((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)) == 0
    assert plots._shared((0.0, 0.0, 4.0, 1.0), (1.0, -5.0, 2.0, 5.0)) == 1


def test_pairs_want_a_router():
    with pytest.raises(ValueError, match="points must hold at least one router, got none"):
        plots.draw_pairs({})


# ---------------------------------------------------------------- the bound


def test_the_bound_is_a_line_with_its_takers():
    fig = plots.draw_bound([0.0, 0.5, 1.0, 1.5], [5.0, 4.0, 3.5, 3.5], [4, 4, 2, 1], best=3.5)
    axes = fig.axes[0]
    assert line(axes, 0) == ([0.0, 0.5, 1.0, 1.5], [5.0, 4.0, 3.5, 3.5])
    assert line(axes, 1)[1] == [3.5, 3.5]
    assert [line(axes, number)[0] for number in (2, 3)] == [[1.0, 1.0], [1.5, 1.5]], "a line where somebody leaves"
    places = {text.get_text(): text.xy for text in axes.texts}
    assert [places[text][0] for text in ("4 takers", "2 takers", "1 taker")] == [0.25, 1.0, 1.5]
    assert places["best even score 3.5"] == (0.0, 3.5)
    low, high = axes.get_ylim()
    assert low < 3.5 and high > 5.0


def test_series_must_match():
    with pytest.raises(ValueError, match="prices, bounds, takers must have one length, got 2, 1, 2"):
        plots.draw_bound([0.0, 1.0], [1.0], [1, 2], best=1.0)
    with pytest.raises(ValueError, match="must have one length, got 2, 1"):
        plots.draw_groups([1.0], 1.0, [32, 64], {"as written": [1.0]}, 32)
    with pytest.raises(ValueError, match="tokens, floor, measured a, law a must have one length, got 2, 2, 2, 1"):
        plots.draw_law([1, 2], {"a": ([1.0, 1.0], [1.0])}, [1.0, 1.0])


# ---------------------------------------------------------------- excess


def test_excess_is_a_line_a_rule_that_ends_at_zero():
    values = {"fast": [0.5, 0.25, 0.125, 0.0, 0.0], "stalls": [0.5, 0.4, 0.3, 0.3, 0.3]}
    axes = plots.draw_excess(values).axes[0]
    assert line(axes, 0) == ([0, 1, 2], [0.5, 0.25, 0.125])
    assert line(axes, 1) == ([0, 1, 2, 3, 4], [0.5, 0.4, 0.3, 0.3, 0.3])
    assert axes.get_yscale() == "log"
    assert {text.get_text(): text.xy for text in axes.texts} == {"fast": (2, 0.125), "stalls": (4, 0.3)}
    assert len({one.get_linestyle() for one in axes.lines}) == len({one.get_color() for one in axes.lines}) == 2


def test_names_at_the_ends_keep_apart():
    fig = plots.draw_excess({name: [1.0, 0.1 + 1e-6 * n] for n, name in enumerate("abcd")})
    fig.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in fig.axes[0].texts), key=lambda box: box.y0)
    assert all(one.y1 <= other.y0 + 3 for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("excess", [{}, {"a": []}, {"a": [0.0, 1.0]}])
def test_excess_wants_lines(excess):
    with pytest.raises(ValueError, match="excess must hold lines that begin above 0"):
        plots.draw_excess(excess)


# ---------------------------------------------------------------- groups


def test_groups_are_bars_and_lines():
    fig = plots.draw_groups([1.5, 2.5, 1.0], 1.3, [32, 64], {"as written": [9.0, 6.0], "shuffled": [7.0, 6.0]}, 256)
    left, right = fig.axes
    assert [bar.get_height() for bar in left.patches] == [1.5, 2.5, 1.0]
    assert [one.get_ydata()[0] for one in left.lines] == [1.0, 1.3]
    assert texts(left) == ["batch", "fair lots"]
    assert left.get_xlabel() == "passage of 256 tokens"
    assert line(right, 0) == ([32, 64], [9.0, 6.0]) and line(right, 1) == ([32, 64], [7.0, 6.0])
    assert {text.get_text(): text.xy for text in right.texts} == {"as written": (32, 9.0), "shuffled": (32, 7.0)}
    assert right.get_ylim()[0] == 0


# ---------------------------------------------------------------- room


def cells(axes) -> dict[tuple[int, int], set[str]]:
    """(token, expert) -> what its cell says: taken, forced, forbidden."""
    marks: dict[tuple[int, int], set[str]] = {}
    for patch in axes.patches:
        x, y = patch.get_xy()
        place = math.floor(x), math.floor(y)
        found = marks.setdefault(place, set())
        if patch.get_hatch():
            found.add("forbidden")
        elif not patch.get_fill():
            found.add("forced")
        elif patch.get_facecolor()[:3] != (1.0, 1.0, 1.0):
            found.add("taken")
    return marks


def test_room_counts_down_and_marks_what_is_forced_and_forbidden():
    axes = plots.draw_room(torch.tensor([[0], [0], [1], [1]]), num_experts=2).axes[0]
    room = {(math.floor(t.get_position()[0]), math.floor(t.get_position()[1])): t.get_text() for t in axes.texts}
    assert [[room[token, expert] for token in range(4)] for expert in range(2)] == [list("2100"), list("2221")]
    assert cells(axes) == {
        (0, 0): {"taken"},
        (0, 1): set(),
        (1, 0): {"taken"},
        (1, 1): set(),
        (2, 0): {"forbidden"},
        (2, 1): {"taken", "forced"},
        (3, 0): {"forbidden"},
        (3, 1): {"taken", "forced"},
    }


def test_room_of_the_causal_router_takes_what_is_forced_and_leaves_what_is_forbidden():
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)) + torch.tensor([2.0, 0, 0, -2.0])
    routing = route(logits, 2, "balanced_causal", pacing=0, adaptation=0)
    fig = plots.draw_room(routing.experts, 4)
    marks = cells(fig.axes[0])
    assert len(marks) == 12 * 4
    assert sum("taken" in found for found in marks.values()) == 24
    assert sum("forced" in found for found in marks.values()) > 0
    assert all("taken" in found for found in marks.values() if "forced" in found)
    assert not any({"taken", "forbidden"} <= found for found in marks.values())


def test_room_before_by_plain_counting():
    routing = route(torch.randn(13, 5, generator=torch.Generator().manual_seed(2)), 2, "balanced_causal")
    room = routing.load.tolist()
    for token, row in enumerate(plots.room_before(routing.experts, 5).tolist()):
        assert row == room
        for expert in routing.experts[token].tolist():
            room[expert] -= 1
    assert room == [0] * 5


def test_room_wants_an_even_group():
    with pytest.raises(ValueError, match=r"an even group over 2 experts, got the loads \[3, 1\]"):
        plots.draw_room(torch.tensor([[0], [0], [0], [1]]), num_experts=2)


# ---------------------------------------------------------------- law and gains


def test_law_has_marks_for_what_was_measured_and_lines_for_the_law():
    over = {"1 batch": ([0.5, 0.2], [0.4, 0.25]), "8 batches": ([0.3, 0.1], [0.35, 0.12])}
    axes = plots.draw_law([64, 256], over, [0.3, 0.15]).axes[0]
    for number, (measured, law) in enumerate(over.values()):
        assert line(axes, 2 * number) == ([64, 256], law)
        assert axes.lines[2 * number].get_marker() in ("", "None")
        assert line(axes, 2 * number + 1) == ([64, 256], measured)
        assert axes.lines[2 * number + 1].get_linestyle() == "None"
    assert line(axes, 4) == ([64, 256], [0.3, 0.15])
    assert legend_texts(axes.figure) == ["1 batch", "8 batches", "noise floor"]
    assert len({one.get_marker() for one in axes.lines if one.get_linestyle() == "None"}) == 2


def test_gains_are_bars_with_their_numbers():
    padding = {"64 experts": {"top_k": 13.0, "balanced": 0.0}, "256 experts": {"top_k": 40.0, "balanced": 0.0}}
    fig = plots.draw_gains(padding, {"top_k": 1.65, "balanced": 1.0})
    left, right = fig.axes
    assert sorted(bar.get_height() for bar in left.patches) == [0.0, 0.0, 13.0, 40.0]
    assert sorted(texts(left)) == ["0.0%", "0.0%", "13.0%", "40.0%"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["64 experts", "256 experts"]
    assert [bar.get_height() for bar in right.patches] == [1.65, 1.0]
    assert texts(right) == ["1.65", "1.00"]
    assert {bar.get_hatch() for bar in left.patches if bar.get_height()} != {
        bar.get_hatch() for bar in left.patches if not bar.get_height()
    }
    with pytest.raises(ValueError, match=r"padding of 64 experts must have the routers \['top_k'\]"):
        plots.draw_gains(padding, {"top_k": 1.0})


# ---------------------------------------------------------------- the figures in words


def test_words_of_a_bound_name_the_whole_flat_bottom():
    said = plots.say_bound([0.0, 0.5, 1.0, 1.5, 2.0], [4.0, 3.0, 2.5, 2.5, 2.75], [4, 3, 2, 2, 1])
    assert "lowest, 2.5, from 1 to 1.5 with 2," in said
    assert "4.0 at price 0 with 4 takers" in said and said.endswith("2.8 at 2 with 1.")


def test_words_of_groups_are_extremes_and_ends():
    said = plots.say_groups([1.5, 2.5, 2.0], 1.3, [32, 4096], {"as written": [50.4, 10.0], "shuffled": [30.0, 9.0]})
    assert "3 passages" in said and "1.5 to 2.5 times the mean, 2.0 on average; fair lots leave 1.3" in said
    assert "as written 10 over 4,096 tokens, 50 over 32; shuffled 9 over 4,096 tokens, 30 over 32" in said


@pytest.mark.parametrize(("worst", "percent"), [(0.22, 10), (0.17, 15)])
def test_words_of_a_law_tell_the_widest_distance_either_way(worst, percent):
    lines = {"one": ([0.4, 0.2], [0.4, 0.2]), "two": ([0.3, worst], [0.3, 0.2])}
    said = plots.say_law([64, 4096], lines, [0.1, 0.05])
    assert f"All within {percent}% of the law" in said
    assert f"with two from 0.30 at 64 tokens to {worst:.3f} at 4,096. The noise floor there is 0.050" in said


def test_words_of_gains_are_all_bars():
    said = plots.say_gains({"64": {"a": 12.5, "b": 0.0}, "256": {"a": 50.0, "b": 1.0}}, {"a": 1.652, "b": 1.0})
    assert all(part in said for part in ("64: a 12.5, b 0.0", "256: a 50.0, b 1.0", "a 1.65, b 1.00"))
