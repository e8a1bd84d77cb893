"""Figures of profiles tell the truth: bars are the events, colours have patterns, and the machine is named."""

import pytest
from matplotlib.colors import to_hex

from moe_lab.figures import MAX_ALT
from moe_lab.plots import profiling as plots
from moe_lab.plots.style import COLOURS, HATCHES
from moe_lab.profiling import CATEGORIES, Trace, TraceEvent
from moe_lab.profiling.trace import ABOUT

ABOUT_IT = dict.fromkeys(ABOUT, "?") | {
    "device": "a desk",
    "date": "2026-01-02",
    "commit": "0123456789abcdef",
    "kind": "cpu",
    "shape": {},
    "versions": {"torch": "2.13"},
    "call_us": 4000.0,
}
DENSE = Trace(
    ABOUT_IT,
    [
        TraceEvent("aten::mm", "matrix product", "CPU", 0.0, 2000.0, flops=2 * 10**9),
        TraceEvent("aten::silu", "activation", "CPU", 2000.0, 500.0),
        TraceEvent("aten::mm", "matrix product", "CPU", 3000.0, 1000.0, flops=10**9),
    ],
)
GPU = Trace(
    ABOUT_IT | {"kind": "cuda", "device": "a card", "call_us": 6000.0},
    [
        TraceEvent("launch", "other", "CPU", 0.0, 100.0),
        TraceEvent("_up", "matrix product", "GPU stream 7", 1000.0, 3000.0),
        TraceEvent("_sort", "sort and routing", "GPU stream 8", 500.0, 500.0),
    ],
)


def spans(collection):
    """From where to where the bars of a collection go."""
    boxes = [path.get_extents() for path in collection.get_paths()]
    return [(round(box.x0, 9), round(box.x1, 9)) for box in boxes]


def legend_texts(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_the_timeline_has_a_bar_for_each_event_at_its_time():
    fig = plots.draw_timeline({"dense": DENSE, "layer": GPU})
    axes = fig.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["dense", "layer, CPU", "layer, GPU stream 8", "layer, GPU stream 7"]
    drawn = {(spans(one)[0], to_hex(one.get_facecolor()[0]), one.get_hatch()) for one in axes.collections if spans(one)}
    assert ((0.0, 2.0), COLOURS[0].lower(), HATCHES[0]) in drawn
    assert ((2.0, 2.5), COLOURS[1].lower(), HATCHES[1]) in drawn
    assert ((0.5, 1.0), COLOURS[3].lower(), HATCHES[3]) in drawn
    assert sum(len(spans(one)) for one in axes.collections) == len(DENSE.events) + len(GPU.events)
    assert [bar.get_width() for bar in axes.patches] == [4, 6, 6, 6], "the call, in white"
    assert axes.get_xlabel() == "ms since the call"
    assert axes.yaxis_inverted(), "the first trace is on top"


def test_categories_are_stacked_and_what_is_left_is_idle():
    fig = plots.draw_time_by_category({"dense": DENSE})
    axes = fig.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches if bar.get_width()]
    assert bars == [(0, 3), (3, 0.5), (3.5, 0.5)]
    looks = {(to_hex(bar.get_facecolor()), bar.get_hatch() or "") for bar in axes.patches if bar.get_width()}
    assert len(looks) == 3 and ("#ffffff", "") in looks
    assert [text.get_text() for text in axes.texts] == ["4.0 ms, 3.00 GFLOP"]


def test_one_category_has_one_look_in_both_figures_and_all_differ():
    looks = [tuple(plots._look(number).values()) for number in range(len(CATEGORIES))]
    assert len({look[0] for look in looks}) == len({look[1] for look in looks}) == len(CATEGORIES)
    for draw in (plots.draw_timeline, plots.draw_time_by_category):
        assert legend_texts(draw({"dense": DENSE})) == ["matrix product", "activation", "idle"]


@pytest.mark.parametrize("draw", [plots.draw_timeline, plots.draw_time_by_category])
def test_every_figure_names_its_machines_once_each(draw):
    text = draw({"dense": DENSE, "again": DENSE, "layer": GPU}).get_supxlabel()
    assert text.splitlines() == [
        "a desk · 2026-01-02 · commit 012345678 · torch 2.13",
        "a card · 2026-01-02 · commit 012345678 · torch 2.13",
    ]


def test_the_alt_text_is_the_finding():
    said = plots.say_time_by_category({"dense": DENSE, "layer": GPU}, most=2)
    assert said == (
        "Bars of time by category. dense: 4.0 ms for 3.00 GFLOP, matrix product 75 %, activation 12 %. "
        "layer: 6.0 ms for 0.00 GFLOP, matrix product 50 %, idle 42 %."
    )
    assert len(plots.say_time_by_category({f"implementation {n}": DENSE for n in range(4)})) < MAX_ALT


@pytest.mark.parametrize("traces", [{}, {"empty": Trace(ABOUT_IT, [])}])
def test_nothing_is_no_figure(traces):
    for draw in (plots.draw_timeline, plots.draw_time_by_category, plots.say_time_by_category):
        with pytest.raises(ValueError, match="traces must hold at least one trace, and each at least one event"):
            draw(traces)
