"""Figures of benchmark records tell the truth: multiples, whiskers, where from; words where nothing was measured."""

import pytest

from moe_lab.bench import Measured
from moe_lab.bench.reading import Record
from moe_lab.plots.benchmarks import draw_multiples, say_multiples

ABOUT = {"device": "a desk", "driver": None, "threads": 2, "started": "2026-11-30T01:02:03Z", "commit": "0123456789ab"}
ABOUT |= {"versions": {"torch": "2.13"}}
SMALL = {"tokens": 2048, "d_model": 512, "d_expert": 1024, "num_experts": 8, "top_k": 2, "max_over_mean": 1.0}
LARGE = SMALL | {"num_experts": 64, "top_k": 8, "max_over_mean": 2.5}
FLOOR = "matrix products alone"


def row(name, ms=None, *, direction="forward", shape=SMALL, **values):
    times = {} if ms is None else {"ms_p20": 0.8 * ms, "ms_p50": float(ms), "ms_p80": 1.5 * ms}
    return Measured(name, direction, shape, "float32", **times, **values)


def record(*rows):
    return Record(ABOUT, list(rows))


def words(axes):
    return [text.get_text().replace("\n", " ") for text in axes.texts]


def marks(axes):
    """The middle and the ends of each mark, as they are drawn."""
    return [
        (one.lines[0].get_xdata()[0], one.lines[1][0].get_xdata()[0], one.lines[1][1].get_xdata()[0])
        for one in axes.containers
    ]


def test_marks_are_multiples_of_the_baseline_with_its_own_first():
    fig = draw_multiples(record(row("ours", 3), row("theirs", 8), row(FLOOR, 2)), FLOOR)
    (axes,) = fig.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [FLOOR, "ours", "theirs"]
    assert words(axes) == ["1.00", "1.50", "4.00"]
    assert marks(axes) == [pytest.approx((m, 0.8 * m, 1.5 * m)) for m in (1.0, 1.5, 4.0)]
    assert axes.get_xscale() == "log" and axes.get_xlim()[1] > 6 and axes.get_ylim()[0] > axes.get_ylim()[1]


def test_each_pass_is_over_the_baseline_of_its_own():
    both = "forward+backward"
    rows = [row(FLOOR, 2), row("ours", 3), row(FLOOR, 10, direction=both), row("ours", 12, direction=both)]
    fig = draw_multiples(record(*rows), FLOOR)
    assert words(fig.axes[0]) == ["1.00", "1.00", "1.50", "1.20"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["forward", both]
    first, second = fig.axes[0].containers[2:]
    assert first.lines[0].get_marker() != second.lines[0].get_marker()
    assert first.lines[0].get_ydata()[0] < 1 < second.lines[0].get_ydata()[0]


def test_a_panel_a_shape():
    fig = draw_multiples(record(row(FLOOR, 2), row("ours", 3), row(FLOOR, 4, shape=LARGE)), FLOOR)
    titles = [axes.get_title() for axes in fig.axes]
    assert titles[0] == "2,048 tokens, 512 x 1,024\n8 experts, top-2"
    assert titles[1].endswith("64 experts, top-8, busiest 2.5 x the mean")
    assert words(fig.axes[1]) == ["1.00", "not in this record"]


def test_what_was_not_measured_is_words_and_never_a_mark():
    fig = draw_multiples(record(row(FLOOR, 2), row("theirs", why_not="not installed"), row("ours", 3)), FLOOR)
    assert words(fig.axes[0]) == ["1.00", "not measured: not installed", "1.50"]
    assert len(marks(fig.axes[0])) == 2


@pytest.mark.parametrize(("first", "second"), [(3, None), (None, 3)])
def test_one_pass_without_the_other_says_which(first, second):
    both, why = "forward+backward", {"why_not": "it broke"}
    rows = [row(FLOOR, 2), row(FLOOR, 2, direction=both)]
    rows += [
        row("theirs", ms, direction=one, **({} if ms else why)) for one, ms in (("forward", first), (both, second))
    ]
    fig = draw_multiples(record(*rows), FLOOR)
    missing = both if second is None else "forward"
    assert sorted(words(fig.axes[0])) == sorted(["1.00", "1.00", "1.50", f"{missing} not measured: it broke"])
    assert len(marks(fig.axes[0])) == 3


@pytest.mark.parametrize("missing", ["forward", "forward+backward"])
def test_words_for_one_pass_cover_nothing_of_the_other(missing):
    """However long the reason is: words end where the mark of the other pass and its number begin."""
    passes, why = ("forward", "forward+backward"), "its backward pass would write 103 GB of zeros into memory"
    rows = [row(name, 3, direction=one) for name in (FLOOR, "b") for one in passes]
    rows += [row("a", None if one == missing else 3, direction=one, why_not=why) for one in passes]
    fig = draw_multiples(record(*rows), FLOOR)
    fig.canvas.draw()
    (axes,) = fig.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes += [mark.lines[0].get_window_extent() for mark in axes.containers]
    (said,) = [text for text in axes.texts if "not measured" in text.get_text()]
    others = [box for box in boxes if box.bounds != said.get_window_extent().bounds]
    assert len(others) == 10 and not any(said.get_window_extent().overlaps(box) for box in others)


def test_without_the_baseline_nothing_is_drawn():
    fig = draw_multiples(record(row(FLOOR, why_not="the suite's time was up"), row("ours", 3)), FLOOR)
    assert words(fig.axes[0]) == ["not measured: the suite's time was up", f"no {FLOOR} to compare with"]
    assert not fig.axes[0].containers


def test_the_record_is_named_below():
    below = draw_multiples(record(row(FLOOR, 2)), FLOOR)._supxlabel.get_text().replace("\n", " ")
    assert record().provenance in below and f"times the time of {FLOOR}" in below


def test_graphs_are_another_series():
    fig = draw_multiples(record(row(FLOOR, 2), row(FLOOR, 1, mode="graph")), FLOOR)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["forward", "forward, CUDA graph"]


def test_where_chooses_rows_and_too_many_shapes_are_refused():
    rows = [row(FLOOR, 2, shape=SMALL | {"tokens": tokens}) for tokens in range(1, 8)]
    assert len(draw_multiples(record(*rows), FLOOR, tokens=3).axes) == 1
    with pytest.raises(ValueError, match=r"where must choose rows of 1\.\.6 shapes, {} chooses 7"):
        draw_multiples(record(*rows), FLOOR)
    with pytest.raises(ValueError, match=r"{'dtype': 'bfloat16'} chooses 0"):
        say_multiples(record(*rows), FLOOR, dtype="bfloat16")


def test_the_sentence_has_least_and_most_and_what_is_missing():
    rows = [row(FLOOR, 2), row("ours", 3), row("theirs", why_not="x"), row(FLOOR, 2, shape=LARGE)]
    said = say_multiples(record(*rows, row("ours", 5, shape=LARGE)), FLOOR)
    assert said.endswith("over 2 shapes. forward: ours 1.50 to 2.50, not measured theirs.")
    many = [row(f"implementation number {number}", 3) for number in range(40)]
    assert len(say_multiples(record(row(FLOOR, 2), *many), FLOOR)) <= 600


def test_other_shapes_are_called_what_they_are_called():
    fig = draw_multiples(record(row("a", 1, shape={"tokens": 8192, "d_in": 64})), "a")
    assert fig.axes[0].get_title() == "tokens 8,192, d_in 64"
