"""Figures of the roofline: roofs with what lies under them, regions of intensity, curves over tokens, and bytes."""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from moe_lab.plots.even_routing import LINES
from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure
from moe_lab.roofline import Device

Point = tuple[float | int, float | int]
APART = 13.0
"""Pixels between two lines of text, at least."""
UNITS = ((1e12, "T"), (1e9, "G"), (1.0, ""))


def draw_roof(device: Device, dtype: str, points: dict[str, dict[str, Point]]) -> Figure:
    """Draw the two ceilings of a device, and points (FLOP/byte, FLOP/s) below them, a mark a series.

    Each point carries the name that it has in its series. Both axes are logarithmic.

    Example:
        >>> device = Device("toy", {"float32": 8e9}, 2e9, "data sheet", "made up")
        >>> fig = draw_roof(device, "float32", {"product": {"big": (16, 6e9)}, "sum": {"": (0.25, 4e8)}})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['2 GB/s', '8 GFLOP/s', 'ridge 4', 'big']

    Raises ValueError for no point, or one that is not above 0.
    """
    flat = [point for series in points.values() for point in series.values()]
    if not flat or not all(value > 0 for point in flat for value in point):
        raise ValueError("points must hold at least one point, and all must lie above 0")
    ridge = device.ridge(dtype)
    size, prefix = _unit(device.peak(dtype))
    fig, axes = new_figure(5.8, 2.9)
    across = [min(ridge, *(x for x, _ in flat)) / 2, 2.5 * max(ridge, *(x for x, _ in flat))]
    _roof(axes, device, dtype, across, size, prefix)
    for number, (name, series) in enumerate(points.items()):
        look = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "markeredgecolor": "black"}
        places = list(series.values())
        axes.plot([x for x, _ in places], [y / size for _, y in places], linestyle="", markersize=7, label=name, **look)
        ha, offset = (("left", (6, -3)), ("right", (-6, -3)))[number % 2]  # or neighbours of two series collide
        for label, (x, y) in series.items():
            if label:
                beside = {"textcoords": "offset points", "ha": ha, "va": "top", "fontsize": 9}
                axes.annotate(label, (x, y / size), offset, color=colour(number), **beside)
    low, high = min(y for _, y in flat) / size / 2.5, 3 * device.peak(dtype) / size
    axes.set(xlim=across, ylim=(low, high), xlabel=f"FLOP/byte ({dtype})", ylabel=f"{prefix}FLOP/s")
    axes.legend(loc="lower right", fontsize=10)
    return finish(fig)


def _unit(rate: float | int) -> tuple[float, str]:
    """The unit in which a rate reads best, and its letter."""
    return next((size, letter) for size, letter in UNITS if rate >= size or size == 1.0)


def _roof(axes: Axes, device: Device, dtype: str, across: list[float], size: float, prefix: str) -> None:
    """Both ceilings, with their names, on logarithmic axes."""
    ridge, peak, slope = device.ridge(dtype), device.peak(dtype), device.bytes_per_s
    axes.plot([across[0], ridge, across[1]], [across[0] * slope / size, peak / size, peak / size], "k-", linewidth=2)
    axes.axvline(ridge, color="0.4", linestyle=":", linewidth=1.2)
    axes.set(xscale="log", yscale="log")
    middle = (across[0] * ridge) ** 0.5
    unit, letter = _unit(slope)
    place = {"textcoords": "offset points", "fontsize": 10}
    axes.annotate(f"{slope / unit:.3g} {letter}B/s", (middle, middle * slope / size), (-5, 4), ha="right", **place)
    axes.annotate(f"{peak / size:.3g} {prefix}FLOP/s", (across[1], peak / size), (-4, 4), ha="right", **place)
    axes.annotate(f"ridge {ridge:.3g}", (ridge, peak / size), (0, 4), ha="center", **place)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())


def draw_regions(device: Device, dtype: str, layers: dict[str, dict[str, tuple[float, float]]]) -> Figure:
    """Draw a roof and, below it on the same axis, the range of FLOP/byte that each layer spans in each kind of use.

    ``layers`` has, by name of the layer and of the use, the lowest and the highest intensity. A bar that crosses the
    dotted line begins where memory limits and ends where arithmetic does.

    Example:
        >>> device = Device("toy", {"float32": 8e12}, 2e12, "data sheet", "made up")
        >>> fig = draw_regions(device, "float32", {"small": {"decode": (1.0, 4.0), "training": (2.0, 64.0)}})
        >>> [text.get_text() for text in fig.axes[1].texts]
        ['decode', 'training']

    Raises ValueError for no layer, or a range that does not rise from above 0.
    """
    ranges = [span for uses in layers.values() for span in uses.values()]
    if not ranges or not all(0 < low <= high for low, high in ranges):
        raise ValueError(f"layers must hold ranges (low, high) with 0 < low <= high, got {ranges}")
    uses = list(dict.fromkeys(use for layer in layers.values() for use in layer))
    rows = len(layers) * (len(uses) + 0.6)
    size, prefix = _unit(device.peak(dtype))
    ridge = device.ridge(dtype)
    fig, (upper, lower) = new_figure(6.4, 1.7 + 0.22 * rows, rows=2, sharex=True, height_ratios=(1.4, 0.22 * rows))
    across = [min(ridge, *(low for low, _ in ranges)) / 2, 3 * max(ridge, *(high for _, high in ranges))]
    _roof(upper, device, dtype, across, size, prefix)
    upper.set(xlim=across, ylim=(across[0] * device.bytes_per_s / size, 4 * device.peak(dtype) / size))
    upper.set_ylabel(f"at most {prefix}FLOP/s")
    lower.axvline(ridge, color="0.4", linestyle=":", linewidth=1.2)
    ticks = []
    for group, (_layer, spans) in enumerate(layers.items()):
        first = group * (len(uses) + 0.6)
        ticks.append(first + (len(uses) - 1) / 2)
        for use, (low, high) in spans.items():
            number = uses.index(use)
            look = {"color": colour(number), "hatch": hatch(number), "edgecolor": "black", "linewidth": 0.6}
            lower.barh(first + number, high - low, left=low, height=0.85, **look)
            place = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            lower.annotate(use, (high, first + number), (5, 0), **place)
    lower.set_yticks(ticks, list(layers))
    lower.set(ylim=(rows - 0.9, -0.8), xlabel=f"FLOP/byte ({dtype})")
    lower.grid(axis="y", visible=False)
    return finish(fig)


def draw_over_tokens(
    tokens: Sequence[int],
    curves: dict[str, list[float]],
    xlabel: str,
    ylabel: str,
    level: tuple[str, float] | None = None,
    marks: dict[str, list[float]] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Draw a line a layer over tokens (or rows), on a logarithmic axis, each with its name.

    Names stand at the ends of the lines, or in a legend where the ends come together. ``level`` is a name and a height,
    drawn as a dotted line across; ``marks`` are further values for some of the curves, drawn as points in their colour.

    Example:
        >>> fig = draw_over_tokens([1, 10], {"a": [1.0, 4.0]}, "tokens", "ratio", ("even", 2.0), {"a": [1.1, 3.9]})
        >>> [text.get_text() for text in fig.axes[0].texts], len(fig.axes[0].lines)
        (['a', 'even'], 3)

    Raises ValueError for no curve, one of another length than ``tokens``, or marks without a curve.
    """
    marks = marks or {}
    if not curves or not set(marks) <= set(curves):
        raise ValueError(f"curves must hold at least one and all of the marks, got {list(curves)} and {list(marks)}")
    for name, values in [*curves.items(), *marks.items()]:
        if len(values) != len(tokens):
            raise ValueError(f"{name} must have a value for each of {len(tokens)} tokens, got {len(values)}")
    fig, axes = new_figure(5.8, 2.5)
    axes.set(xscale="log", yscale="log" if logarithmic else "linear", xlabel=xlabel, ylabel=ylabel)
    if level is not None:
        axes.axhline(level[1], color="black", linestyle=":", linewidth=1.4)
    for number, (name, values) in enumerate(curves.items()):
        look = {"color": colour(number), "linestyle": LINES[number % len(LINES)], "linewidth": 2}
        dots = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5, "markeredgecolor": "black", "linestyle": ""}
        axes.plot(tokens, values, label=name, **look)
        if name in marks:
            axes.plot(tokens, marks[name], color=colour(number), **dots)
    if not logarithmic:
        axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(FixedLocator(_thinned(tokens)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    _name_curves(axes, tokens[-1], {name: values[-1] for name, values in curves.items()})
    if level is not None:
        _name_level(axes, *level, curves=[list(zip(tokens, values, strict=True)) for values in curves.values()])
    return finish(fig)


def _thinned(tokens: Sequence[int]) -> list[int]:
    """No more than six of the values, in even steps from the first."""
    step = -(-len(tokens) // 6)
    return list(tokens)[::step]


def _name_curves(axes: Axes, across: int, heights: dict[str, float]) -> None:
    """Write names beside the last points of lines, or a legend where these are too close to be told apart."""
    axes.figure.canvas.draw()  # places are known only now
    places = [float(axes.transData.transform((across, height))[1]) for height in heights.values()]
    if any(after - before < APART for before, after in itertools.pairwise(sorted(places))):
        axes.legend(fontsize=10, handlelength=3)
        return
    for number, name in enumerate(heights):
        look = {"textcoords": "offset points", "va": "center", "fontsize": 10, "color": colour(number)}
        axes.annotate(name, (across, heights[name]), (6, 0), **look)


def _name_level(axes: Axes, name: str, height: float, curves: list[list[Point]]) -> None:
    """Write a name above or below a level, at its left or right end, where the fewest points of curves are covered."""
    axes.figure.canvas.draw()
    places = [axes.transData.transform(curve).tolist() for curve in curves]
    tried = []
    for end, ha, va in itertools.product((0.0, 1.0), ("left", "right"), ("bottom", "top")):
        if (end == 0.0) != (ha == "left"):
            continue
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 10}
        offset = (4 if ha == "left" else -4, 2 if va == "bottom" else -3)
        text = axes.annotate(name, (end, height), offset, ha=ha, va=va, **place)
        box, frame = text.get_window_extent(), axes.get_window_extent()
        crossed = sum(_crosses(box, one, other) for way in places for one, other in itertools.pairwise(way))
        tried.append((crossed + 100 * (box.y0 < frame.y0 or box.y1 > frame.y1), text))
    best = min(tried, key=lambda candidate: candidate[0])[1]
    for _, text in tried:
        if text is not best:
            text.remove()


def _crosses(box: Bbox, one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one of nine points on the way from one place to the other lies in the box."""
    way = (
        (one[0] + part * (other[0] - one[0]), one[1] + part * (other[1] - one[1])) for part in (n / 8 for n in range(9))
    )
    return any(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 for x, y in way)


def draw_bytes(batches: dict[str, dict[str, float]]) -> Figure:
    """Draw a bar a batch, the bytes that must move by what they are for, in percent, with the sum in GB at its end.

    Example:
        >>> fig = draw_bytes({"64 tokens": {"weights": 1.5e9, "gradient": 0.5e9}})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['2 GB']

    Raises ValueError for no batch, one that moves nothing, or batches with different parts.
    """
    parts = list(next(iter(batches.values()), {}))
    if not parts or any(list(moved) != parts or sum(moved.values()) <= 0 for moved in batches.values()):
        raise ValueError("batches must hold at least one, all with the same parts, and more than 0 bytes each")
    fig, axes = new_figure(6.6, 0.4 * len(batches) + 1.1)
    for row, moved in enumerate(batches.values()):
        start, whole = 0.0, sum(moved.values())
        for number, (part, value) in enumerate(moved.items()):
            look = {"color": colour(number), "hatch": hatch(number), "edgecolor": "black", "linewidth": 0.5}
            axes.barh(row, 100 * value / whole, left=start, label=part if row == 0 else None, **look)
            start += 100 * value / whole
        axes.annotate(f"{whole / 1e9:.3g} GB", (100, row), (6, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks(range(len(batches)), list(batches))
    axes.set(xlabel="% of the bytes", xlim=(0, 115), ylim=(len(batches) - 0.4, -0.6))
    axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    axes.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(parts), frameon=False, fontsize=10)
    return finish(fig)
