"""Figures of profiles: what ran when, and how long each category of work took."""

from collections.abc import Mapping
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moe_lab.plots.style import colour, finish, hatch, new_figure
from moe_lab.profiling import CATEGORIES, IDLE, Trace, provenance, time_by_category, total_flops

IDLE_COLOUR = "white"


def draw_timeline(traces: Mapping[str, Trace]) -> Figure:
    """Draw the lanes of each trace over time, all on one scale; colour and pattern tell the category of an event.

    White is time in which nothing ran on the lane. Below stands where the traces are from.

    Example:
        >>> from moe_lab.profiling import TraceEvent
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 20.0}
        >>> trace = Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 2.0, 5.0)])
        >>> [label.get_text() for label in draw_timeline({"dense": trace}).axes[0].get_yticklabels()]
        ['dense']

    Raises ValueError for no trace, or none with an event.
    """
    rows = [(name, trace, lane) for name, trace in _check(traces).items() for lane in trace.lanes]
    fig, axes = new_figure(7.6, 1.5 + 0.5 * len(rows))
    for row, (_, trace, lane) in enumerate(rows):
        axes.barh(row, trace.span_us / 1e3, color=IDLE_COLOUR, edgecolor="0.4", linewidth=0.8, height=0.8)
        for number, category in enumerate(CATEGORIES):
            events = [event for event in trace.events if event.lane == lane and event.category == category]
            bars = [(event.start_us / 1e3, event.duration_us / 1e3) for event in events]
            axes.broken_barh(bars, (row - 0.4, 0.8), **_look(number), linewidth=0.2)
    several = {name for name, trace in traces.items() if len(trace.lanes) > 1}
    axes.set_yticks(range(len(rows)), [f"{name}, {lane}" if name in several else name for name, _, lane in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.02 * max(trace.span_us for trace in traces.values()) / 1e3))
    axes.set_xlabel("ms since the call")
    return _finish(fig, axes, traces)


def draw_time_by_category(traces: Mapping[str, Trace]) -> Figure:
    """Draw a bar a trace: the time of each category, one after another, and what is left of the call in white.

    At the end stand the call's time and its FLOPs in matrix products; below, where the traces are from. On a GPU with
    several streams the categories may add up to more than the call.

    Example:
        >>> from moe_lab.profiling import TraceEvent
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 2e3}
        >>> trace = Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 2.0, 5e2, flops=3 * 10**9)])
        >>> [text.get_text() for text in draw_time_by_category({"dense": trace}).axes[0].texts]
        ['2.0 ms, 3.00 GFLOP']

    Raises ValueError for no trace, or none with an event.
    """
    _check(traces)
    fig, axes = new_figure(7.6, 1.5 + 0.5 * len(traces))
    longest = 0.0
    for row, trace in enumerate(traces.values()):
        start = 0.0
        for number, (category, time_us) in enumerate(time_by_category(trace).items()):
            look = {"color": IDLE_COLOUR, "edgecolor": "0.4"} if category == IDLE else _look(number)
            axes.barh(row, time_us / 1e3, left=start, height=0.7, linewidth=0.5, **look)
            start += time_us / 1e3
        longest = max(longest, start)
        place = {"textcoords": "offset points", "va": "center", "fontsize": 10}
        axes.annotate(
            f"{trace.span_us / 1e3:.1f} ms, {total_flops(trace) / 1e9:.2f} GFLOP", (start, row), (6, 0), **place
        )
    axes.set_yticks(range(len(traces)), list(traces))
    axes.set(ylim=(len(traces) - 0.4, -0.6), xlim=(0, 1.42 * longest), xlabel="ms, one category after another")
    return _finish(fig, axes, traces)


def say_time_by_category(traces: Mapping[str, Trace], most: int = 3) -> str:
    """The finding of `draw_time_by_category` as a sentence, for its alt text: the ``most`` longest parts of each bar.

    Example:
        >>> from moe_lab.profiling import TraceEvent
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 2e3}
        >>> trace = Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 0.0, 5e2, flops=3 * 10**9)])
        >>> say_time_by_category({"dense": trace})
        'Bars of time by category. dense: 2.0 ms for 3.00 GFLOP, idle 75 %, matrix product 25 %.'
    """
    said = []
    for name, trace in _check(traces).items():
        times = time_by_category(trace)
        longest = [category for category in sorted(times, key=lambda one: -times[one])[:most] if times[category]]
        parts = ", ".join(
            f"{category} {times[category] / trace.span_us:.0%}".replace("%", " %") for category in longest
        )
        said.append(f"{name}: {trace.span_us / 1e3:.1f} ms for {total_flops(trace) / 1e9:.2f} GFLOP, {parts}.")
    return " ".join(["Bars of time by category.", *said])


def _check(traces: Mapping[str, Trace]) -> Mapping[str, Trace]:
    if not traces or not all(trace.events for trace in traces.values()):
        raise ValueError("traces must hold at least one trace, and each at least one event")
    return traces


def _look(number: int) -> dict:
    """Colour and pattern of a category, by its place in `CATEGORIES`."""
    return {"facecolor": colour(number), "hatch": hatch(number), "edgecolor": "black"}


def _finish(fig: Figure, axes, traces: Mapping[str, Trace]) -> Figure:
    """A legend of the categories that occur, and below the figure where the traces are from."""
    seen = {event.category for trace in traces.values() for event in trace.events}
    handles = [Patch(label=name, **_look(number)) for number, name in enumerate(CATEGORIES) if name in seen]
    handles.append(Patch(facecolor=IDLE_COLOUR, edgecolor="0.4", label=IDLE))
    fig.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    sources = dict.fromkeys(provenance(trace) for trace in traces.values())
    fig.supxlabel("\n".join(fill(source, 110) for source in sources), fontsize=8, color="0.3")
    axes.grid(axis="y", visible=False)
    return finish(fig)
