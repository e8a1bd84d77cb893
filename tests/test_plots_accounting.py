"""The figures of accounting tell the truth: bars, marks and lines are those of the data."""

import itertools

import pytest
from matplotlib.patches import Rectangle

from moe_lab.accounting.compare import Figure as PublishedFigure
from moe_lab.accounting.counts import count
from moe_lab.accounting.parts import COMPONENTS
from moe_lab.plots import accounting as plots
from moe_lab.plots.style import MARKERS, colour


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend_texts(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def pieces(axes):
    """Row -> widths of its pieces, in order; each begins where the one before ends."""
    rows = {}
    for bar in axes.patches:
        middle = round(bar.get_y() + bar.get_height() / 2, 6)
        widths = rows.setdefault(middle, [])
        assert bar.get_x() == pytest.approx(sum(widths))
        widths.append(bar.get_width())
    return rows


# ---------------------------------------------------------------- stored and used


def test_stored_and_used_are_bars_in_percent_of_what_is_stored():
    stored = {"embedding": 10, "attention": 20, "router": 5, "experts": 150, "output": 15}
    used = {"embedding": 10, "attention": 20, "router": 5, "experts": 50, "output": 15}
    fig = plots.draw_stored_and_used({"one": (stored, used), "two": (stored, stored)})
    axes = fig.axes[0]
    assert pieces(axes) == {
        0: [75, 10, 12.5, 2.5],
        1: [25, 10, 12.5, 2.5],
        3: [75, 10, 12.5, 2.5],
        4: [75, 10, 12.5, 2.5],
    }
    assert texts(axes) == ["200 stored", "100 used: 50%", "200 stored", "200 used: 100%"]
    assert legend_texts(fig) == list(plots.PARTS)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert len({bar.get_hatch() for bar in axes.patches}) == 4
    low, high = axes.get_ylim()
    assert low > high, "the first model is on top"


def test_every_component_belongs_to_one_part():
    assert sorted(name for names in plots.PARTS.values() for name in names) == sorted(COMPONENTS)


def test_a_real_model_adds_up():
    counts = count("deepseek-v3")
    axes = plots.draw_stored_and_used({"V3": (counts.params_by_component, counts.active_params_by_component)}).axes[0]
    stored, used = pieces(axes).values()
    assert sum(stored) == pytest.approx(100) and sum(used) == pytest.approx(
        100 * counts.active_params / counts.total_params
    )
    assert texts(axes) == ["671 B stored", "37.6 B used: 6%"]


def test_stored_and_used_want_models_and_known_components():
    with pytest.raises(ValueError, match="models must hold at least one model, got none"):
        plots.draw_stored_and_used({})
    with pytest.raises(ValueError, match="components must be those of a count, got wings"):
        plots.draw_stored_and_used({"bird": ({"wings": 2}, {"wings": 2})})


@pytest.mark.parametrize(
    ("number", "short"),
    [(999, "999"), (1_500_000, "1.5 M"), (46_702_792_704, "46.7 B"), (1_026_408_209_408, "1,026 B")],
)
def test_numbers_in_three_digits(number, short):
    assert plots._short(number) == short


# ---------------------------------------------------------------- deviations


FOUND = {
    "exact": [PublishedFigure("total_params", 1000, 1004, 10), PublishedFigure("active_params", 100, 96, 10)],
    "near": [PublishedFigure("total_params", 1000, 1003, 2)],
    "off": [PublishedFigure("total_params", 1000, 980, 10, "a reason"), PublishedFigure("active_params", 100, 110, 1)],
    "flops": [PublishedFigure("flops_per_sequence", 1000, 1150, 100, "a reason")],
}


def test_every_published_figure_is_a_mark_at_its_deviation():
    fig = plots.draw_deviations(FOUND)
    left, right = fig.axes
    marks = [
        [(float(one.get_xdata()[0]), int(one.get_ydata()[0]), one.get_marker()) for one in axes.lines[:-1]]
        for axes in fig.axes
    ]
    equal, near, explained, off = (
        MARKERS[plots.VERDICTS[verdict]]
        for verdict in ("equal as printed", "within 0.5 %", "differs, explained", "differs")
    )
    assert marks[0] == [(pytest.approx(0.4), 0, equal), (pytest.approx(0.3), 1, near), (-2.0, 2, explained)]
    assert marks[1] == [(-4.0, 0, equal), (10.0, 2, off), (15.0, 3, explained)]
    assert legend_texts(fig) == [verdict for verdict in plots.VERDICTS if verdict != "equal to one digit"]
    assert left.get_xscale() == right.get_xscale() == "symlog"
    assert [label.get_text() for label in left.get_yticklabels()] == list(FOUND)
    low, high = left.get_ylim()
    assert low > 3 > 0 > high, "the first model is on top"


def test_verdicts_have_marks_and_colours_of_their_own():
    numbers = list(plots.VERDICTS.values())
    assert len({MARKERS[number] for number in numbers}) == len({colour(number) for number in numbers}) == 5


def test_a_bar_is_what_the_printed_digits_leave_open():
    for axes, allowed in zip(plots.draw_deviations(FOUND).axes, ([0.5, 0.1, 0.5], [5.0, 0.5, 5.0]), strict=True):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [bar.get_x() for bar in bars] == pytest.approx([-one for one in allowed])
        assert [bar.get_width() for bar in bars] == pytest.approx([2 * one for one in allowed])
        for bar, mark in zip(bars, axes.lines[:-1], strict=True):
            inside = bar.get_x() - 1e-9 <= float(mark.get_xdata()[0]) <= -bar.get_x() + 1e-9
            assert inside == (mark.get_marker() == MARKERS[0]), "inside the bar is equal as printed"


def test_deviations_want_a_figure():
    with pytest.raises(ValueError, match="models must hold at least one published figure, got none"):
        plots.draw_deviations({"silent": []})


# ---------------------------------------------------------------- over the context


def test_models_are_lines_over_the_context_with_names_at_their_ends():
    axes = plots.draw_over_context([512, 1024, 4096], {"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]}, "% of FLOPs").axes[
        0
    ]
    lines = [(list(one.get_xdata()), list(one.get_ydata())) for one in axes.lines]
    assert lines == [([512, 1024, 4096], [1.0, 2.0, 9.0]), ([512, 1024, 4096], [1.0, 1.0, 3.0])]
    assert {text.get_text(): text.xy for text in axes.texts} == {"a": (4096, 9.0), "b": (4096, 3.0)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "1k", "4k"]
    assert axes.get_ylabel() == "% of FLOPs" and axes.get_xscale() == "log" and axes.get_ylim()[0] == 0
    assert len({one.get_linestyle() for one in axes.lines}) == len({one.get_color() for one in axes.lines}) == 2


def test_names_at_the_ends_keep_apart_and_in_order():
    fig = plots.draw_over_context([1024, 2048], {name: [1.0, 2 - 1e-6 * n] for n, name in enumerate("abcd")}, "share")
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert all(lower.y1 <= upper.y0 + 4 for upper, lower in itertools.pairwise(boxes))


def test_lines_must_be_as_long_as_the_contexts():
    with pytest.raises(ValueError, match="a must have a value for each of 2 contexts, got 1"):
        plots.draw_over_context([1, 2], {"a": [1.0]}, "share")
    with pytest.raises(ValueError, match="models must hold at least one line, got none"):
        plots.draw_over_context([1, 2], {}, "share")


# ---------------------------------------------------------------- counters


def test_counters_are_bars_in_percent_of_the_last():
    ours = {"aten.mm": 20, "aten._grouped_mm": 70, "aten._attention_for_cpu": 10}
    fig = plots.draw_seen({"plain": {"aten.mm": 20}, "ours": ours})
    assert pieces(fig.axes[0]) == {0: [20, 0, 0], 1: [20, 70, 10]}
    assert texts(fig.axes[0]) == ["20%", "100%"]
    assert legend_texts(fig) == ["mm", "grouped_mm", "attention"], "none begins with _, or the legend would drop it"


@pytest.mark.parametrize("counters", [{}, {"plain": {"aten.mm": 1}, "ours": {}}])
def test_counters_want_flops(counters):
    with pytest.raises(ValueError, match="counters must hold at least one, and the last must have seen FLOPs"):
        plots.draw_seen(counters)


# ---------------------------------------------------------------- rates


def test_rates_are_bars_in_percent_of_the_peak():
    axes = plots.draw_rates({"dense": 40.0, "loop": 10.0}, peak=50).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [80.0, 20.0]
    assert [one.get_xdata()[0] for one in axes.lines] == [100]
    assert texts(axes) == ["40 GFLOP/s, 80%", "10 GFLOP/s, 20%", "peak: 50 GFLOP/s"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "loop"]
    assert len({bar.get_hatch() for bar in axes.patches}) == 2


def test_a_rate_above_the_peak_is_seen():
    axes = plots.draw_rates({"too good": 200.0}, peak=100).axes[0]
    assert axes.get_xlim()[1] > 200


@pytest.mark.parametrize(("rates", "peak"), [({}, 1), ({"a": 1.0}, 0), ({"a": 1.0}, -1.0)])
def test_rates_want_layers_and_a_peak(rates, peak):
    with pytest.raises(ValueError, match="rates must hold at least one layer and peak lie above 0"):
        plots.draw_rates(rates, peak)
