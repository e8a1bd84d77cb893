"""Figures of claims: each on an axis of its own, one implementation beside many baselines, and an operation's share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from moe_lab.plots.even_routing import LINES
from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure

CLAIMED = 1  # number of its colour and pattern
LOOKS = {"measured": 0, "counted": 2, "simulated": 3, "printed": 4}
"""How a value was found -> the number of its colour and marker, the same in every figure."""
MOST_STRIPS = 10


@dataclass(frozen=True)
class Strip:
    """One claim: the range that it names, open where an end is None, and what was found, by how it came about."""

    title: str
    axis: str
    low: float | int | None
    high: float | int | None
    found: Mapping[str, Sequence[float | int]]


def draw_strips(strips: Sequence[Strip]) -> Figure:
    """Draw a panel a claim, each with an axis of its own, since they are different quantities.

    The hatched band is what was claimed; marks are what was found, a shape for each way of finding. Where nothing was
    found, the panel says so in words.

    Example:
        >>> fig = draw_strips([Strip("a", "x", 7, None, {"measured": [6.0]}), Strip("b", "x", 4, 8, {})])
        >>> [axes.get_title(loc="left") for axes in fig.axes], fig.axes[1].texts[0].get_text()
        (['a', 'b'], 'not measured')

    Raises ValueError for no strip, or more than 10.
    """
    if not 1 <= len(strips) <= MOST_STRIPS:
        raise ValueError(f"strips must hold 1..{MOST_STRIPS} claims, got {len(strips)}")
    fig, every = new_figure(7.4, 0.7 + 0.95 * len(strips), rows=len(strips), squeeze=False)
    kinds = list(dict.fromkeys(kind for strip in strips for kind in strip.found))
    for (axes,), strip in zip(every, strips, strict=True):
        _draw_strip(axes, strip)
    handles = [Patch(facecolor="white", edgecolor=colour(CLAIMED), hatch=hatch(CLAIMED), label="claimed")]
    handles += [Line2D([], [], linestyle="", label=kind, **_look(kind)) for kind in kinds]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10)
    return finish(fig)


def say_strips(strips: Sequence[Strip]) -> str:
    """The finding of `draw_strips` in words, for its alt text.

    Example:
        >>> say_strips([Strip("a", "x", 7, None, {"measured": [6.0, 6.2]}), Strip("b", "x", 4, 8, {})])
        'Each claim on an axis of its own. a: claimed 7 or more, measured 6 to 6.2. b: claimed 4 to 8, not measured.'
    """
    said = []
    for strip in strips:
        found = [f"{kind} {_span(values)}" for kind, values in strip.found.items() if values]
        said.append(f"{strip.title}: claimed {_claimed(strip)}, {', '.join(found) or 'not measured'}.")
    return " ".join(["Each claim on an axis of its own.", *said])


def draw_baselines(times_ms: Mapping[str, float], ours: str) -> Figure:
    """Draw how many times longer each implementation took than ``ours``, a bar each, the longest on top, logarithmic.

    Example:
        >>> fig = draw_baselines({"ours": 2.0, "a loop": 16.0, "dense": 1.0}, "ours")
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['8.0x', '1.0x', '0.5x']

    Raises ValueError where ``ours`` has no time, or nothing else has.
    """
    ratios = _ratios(times_ms, ours)
    fig, axes = new_figure(7.4, 1.1 + 0.4 * len(ratios))
    for place, ratio in enumerate(ratios.values()):
        look = {"facecolor": colour(place), "hatch": hatch(place), "edgecolor": "black"}
        axes.barh(place, ratio - 1, left=1, height=0.62, **look)
        axes.annotate(f"{ratio:.1f}x", (max(ratio, 1), place), (6, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="black", linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *ratios.values()) * 0.9, max(2.0, *ratios.values()) * 1.6)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(-4, 11)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xlabel(f"time over the time of {ours}")
    return finish(fig)


def say_baselines(times_ms: Mapping[str, float], ours: str) -> str:
    """The finding of `draw_baselines` in words, for its alt text.

    Example:
        >>> say_baselines({"ours": 2.0, "a loop": 16.0, "dense": 1.0}, "ours")
        'One implementation, ours, and its speedup over each other one: a loop 8.0x, dense 0.5x.'
    """
    rest = {name: ratio for name, ratio in _ratios(times_ms, ours).items() if name != ours}
    listed = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in rest.items())
    return f"One implementation, {ours}, and its speedup over each other one: {listed}."


def draw_shares(ratios: Sequence[float | int], marked: float) -> Figure:
    """Draw what the whole gains where a part becomes so many times faster, over the part's share of the time.

    1 / (1 - share + share / ratio), Amdahl's law; a dotted line marks one share.

    Example:
        >>> fig = draw_shares([10, 6], 0.1)
        >>> [line.get_label() for line in fig.axes[0].lines[:2]]
        ['part 10x', 'part 6x']

    Raises ValueError for no ratio, or a share outside 0..1.
    """
    if not ratios or not 0 <= marked <= 1:
        raise ValueError(f"ratios must hold at least one, and marked lie in 0..1; got {list(ratios)} and {marked}")
    fig, axes = new_figure(7.0, 3.2)
    shares = [step / 100 for step in range(101)]
    for number, ratio in enumerate(ratios):
        gains = [whole_gain(ratio, share) for share in shares]
        axes.plot(shares, gains, color=colour(number), linestyle=LINES[number % len(LINES)], label=f"part {ratio:g}x")
    axes.axvline(marked, color="black", linestyle=":", linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="share of the part in the whole's time, before", ylabel="gain of the whole")
    axes.legend(frameon=False)
    return finish(fig)


def say_shares(ratios: Sequence[float | int], marked: float) -> str:
    """The finding of `draw_shares` in words, for its alt text.

    Example:
        >>> say_shares([10], 0.1)
        'Gain of the whole over the share of a part. At a share of 10%: 1.10x for a part that is 10x faster.'
    """
    parts = [f"{whole_gain(ratio, marked):.2f}x for a part that is {ratio:g}x faster" for ratio in ratios]
    return f"Gain of the whole over the share of a part. At a share of {marked:.0%}: {', '.join(parts)}."


def whole_gain(ratio: float | int, share: float | int) -> float:
    """Amdahl's law: how many times faster the whole becomes.

    Example:
        >>> whole_gain(6, 0.3)
        1.3333333333333333
    """
    return 1 / (1 - share + share / ratio)


def _draw_strip(axes: Axes, strip: Strip) -> None:
    values = [value for found in strip.found.values() for value in found]
    ends = [*values, *(end for end in (strip.low, strip.high) if end is not None)]
    room = 0.25 * ((max(ends) - min(ends)) or abs(ends[0]) or 1)
    least = -0.1 * room if min(ends) >= 0 else min(ends) - room  # no room for what cannot be
    left, right = max(min(ends) - room, least), max(ends) + room
    start, stop = (left if strip.low is None else strip.low), (right if strip.high is None else strip.high)
    thin = (right - left) / 150  # a single number is a band, too
    start, stop = (start - thin, stop + thin) if stop - start < thin else (start, stop)
    axes.axvspan(start, stop, facecolor="white", edgecolor=colour(CLAIMED), hatch=hatch(CLAIMED), zorder=0)
    for kind, found in strip.found.items():
        axes.plot(found, [0] * len(found), linestyle="", zorder=3, **_look(kind))
    if not values:
        beside = {"transform": axes.transAxes, "va": "center", "fontsize": 10, "style": "italic"}
        axes.text(0.02, 0.5, "not measured", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, **beside)
    axes.set_xlim(left, right)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.tick_params(labelsize=9)
    axes.set_title(fill(strip.title, 70), loc="left", fontsize=10)
    axes.set_xlabel(strip.axis, fontsize=9)


def _look(kind: str) -> dict:
    number = LOOKS[kind]
    return {"color": colour(number), "marker": MARKERS[number], "markersize": 8, "markeredgecolor": "black"}


def _claimed(strip: Strip) -> str:
    if strip.low is None:
        return f"{strip.high:g} or less" if strip.high else f"{strip.high:g}"
    return f"{strip.low:g} or more" if strip.high is None else f"{strip.low:g} to {strip.high:g}"


def _span(values: Sequence[float | int]) -> str:
    ends = dict.fromkeys(f"{end:.3g}" for end in (min(values), max(values)))
    return " to ".join(ends)


def _ratios(times_ms: Mapping[str, float], ours: str) -> dict[str, float]:
    """Name -> time over ours, the longest first."""
    if ours not in times_ms or len(times_ms) < 2 or not all(math.isfinite(ms) and ms > 0 for ms in times_ms.values()):
        raise ValueError(f"times_ms must hold times above 0 of {ours!r} and of another one, got {dict(times_ms)}")
    return {name: ms / times_ms[ours] for name, ms in sorted(times_ms.items(), key=lambda pair: -pair[1])}
