"""Figures of load balancing: collapse over the steps, coefficients, biases, drops, and all methods at once."""

import torch
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter
from torch import Tensor

from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure

LINES = ("-", "--", "-.", ":")
EVEN = 0.03  # below this a max violation is drawn on a straight stretch of the axis that ends at 0
TICKS = (0, 0.1, 0.3, 1, 3)
APART, COLUMN, WIDTH = (
    0.05,
    0.045,
    0.19,
)  # shares of `draw_tradeoff`: a line, a gap between columns, the width of a name


def draw_collapse(steps: list[int], loads: dict[str, Int64[Tensor, "samples num_experts"]], biggest: int = 3) -> Figure:
    """Draw the first of the named loads as shares over the steps, and below how many experts have none, in all of them.

    The ``biggest`` experts, by their mean share, have a band each, with their number; the others share the one above.

    Example:
        >>> fig = draw_collapse([10, 20], {"layer 0": torch.tensor([[9, 0, 1], [6, 0, 4]])}, biggest=1)
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[1].lines[0].get_ydata().tolist()
        (['expert 0', 'the other 2'], [1, 1])

    Raises ValueError for loads of another number of samples than there are steps.
    """
    _check_samples(steps, loads)
    name, load = next(iter(loads.items()))
    fig, (top, bottom) = new_figure(7.0, 3.8, rows=2, sharex=True, height_ratios=(3, 1))
    shares = load.double() / load.sum(dim=1, keepdim=True).clamp_min(1)
    first = shares.mean(dim=0).argsort(descending=True, stable=True)[:biggest].sort().values
    bands = torch.cat([shares[:, first], 1 - shares[:, first].sum(dim=1, keepdim=True)], dim=1)
    labels = [f"expert {expert}" for expert in first.tolist()] + [f"the other {load.shape[1] - len(first)}"]
    below = bands.cumsum(dim=1) - bands
    for at, (area, label) in enumerate(zip(top.stackplot(steps, bands.T.numpy()), labels, strict=True)):
        other = at == len(first)
        look = {"facecolor": "white"} if other else {"facecolor": colour(at), "hatch": hatch(at)}
        area.set(edgecolor="black", linewidth=0.6, **look)
        # side by side, so that names of thin bands do not cover each other
        sample = round((0.35 + 0.5 * at / len(first)) * (len(steps) - 1))
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        height = float(below[sample, at] + bands[sample, at] / 2)
        top.text(steps[sample], height, label, ha="center", va="center", fontsize=10, bbox=box)
    top.set(title=f"{name}: share of the assignments", xlim=(steps[0], max(steps[-1], steps[0] + 1)), ylim=(0, 1))
    for number, (name, load) in enumerate(loads.items()):
        dead = (load == 0).sum(dim=1)
        bottom.plot(steps, dead, label=name, color=colour(number), linestyle=LINES[number % len(LINES)])
    bottom.set(xlabel="step", ylim=(0, load.shape[1]))
    bottom.set_title("experts without a token")
    bottom.legend(loc="upper right", frameon=False)
    return finish(fig)


def draw_sweep(settings: list[str], measures: dict[str, list[list[float]]]) -> Figure:
    """Draw a panel a measure: a dot a seed over the settings, and a line through their means.

    A measure named "MaxVio" has the axis of the other figures, logarithmic with a 0.

    Example:
        >>> fig = draw_sweep(["0", "1e-2"], {"MaxVio": [[3.0, 4.0], [0.5, 0.4]]})
        >>> [float(y) for y in fig.axes[0].lines[0].get_ydata()]
        [3.5, 0.45]

    Raises ValueError for a measure of another number of settings.
    """
    _check_settings(settings, measures)
    fig, panels = new_figure(7.5, 2.4, columns=len(measures), squeeze=False)
    for number, (axes, (name, seeds)) in enumerate(zip(panels[0], measures.items(), strict=True)):
        means = [sum(values) / len(values) for values in seeds]
        axes.plot(range(len(settings)), means, color=colour(number), linestyle=LINES[number % len(LINES)])
        for place, values in enumerate(seeds):
            look = {"color": colour(number), "marker": MARKERS[number], "edgecolors": "black", "zorder": 3}
            axes.scatter([place] * len(values), values, **look)
        axes.set_xticks(range(len(settings)), settings)
        axes.set(title=name, xlim=(-0.4, len(settings) - 0.6))
        if name == "MaxVio":
            _violation_axis(axes.yaxis, axes.set_yscale)
    return finish(fig)


def draw_violations(
    steps: list[int], max_violation: dict[str, Float[Tensor, "seeds samples"]], chance: float | int
) -> Figure:
    """Draw max violation over the steps, logarithmic: a line a method, the mean of its seeds, with bars of their range.

    The dotted line is ``chance``, what fair lots leave. Names stand at the right end of their lines.

    Example:
        >>> fig = draw_violations([10, 20], {"none": torch.tensor([[6.0, 3.0], [6.0, 5.0]])}, chance=0.1)
        >>> [float(y) for y in fig.axes[0].lines[0].get_ydata()], fig.axes[0].texts[0].get_text()
        ([6.0, 4.0], 'none')

    Raises ValueError for a method with another number of samples than there are steps.
    """
    _check_samples(steps, {name: values.T for name, values in max_violation.items()})
    fig, axes = new_figure(7.5, 2.8)
    for number, values in enumerate(max_violation.values()):
        look = {"color": colour(number), "linestyle": LINES[number % len(LINES)]}
        axes.plot(steps, values.mean(dim=0).tolist(), linewidth=2, **look)
        axes.vlines(steps, values.amin(dim=0).tolist(), values.amax(dim=0).tolist(), color=colour(number), linewidth=1)
    axes.axhline(float(chance), color="black", linestyle=(0, (1, 2)), linewidth=1.5)
    axes.set(xlabel="step", ylabel="MaxVio", xlim=(steps[0], steps[-1]), yscale="log")
    ends = [float(values[:, -1].mean()) for values in max_violation.values()]
    names = {**dict(zip(max_violation, ends, strict=True)), "chance": float(chance)}
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5) if low <= tick <= high]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]) for y in names.values()]
    for number, (name, height) in enumerate(zip(names, spread_out(heights, 0.075), strict=True)):
        ink = "black" if name == "chance" else colour(number)
        place = {"xycoords": "axes fraction", "textcoords": "axes fraction", "va": "center", "fontsize": 11}
        arrow = {"arrowstyle": "-", "color": ink, "linewidth": 1, "relpos": (0, 0.5)}
        axes.annotate(name, (1, heights[number]), (1.03, height), arrowprops=arrow, annotation_clip=False, **place)
    return finish(fig)


def draw_drops(by_position: dict[str, list[float]]) -> Figure:
    """Draw which share of the assignments is dropped in each stretch of the batch, a line a priority.

    Example:
        >>> fig = draw_drops({"order": [0.1, 0.5], "random": [0.3, 0.3]})
        >>> [line.get_label() for line in fig.axes[0].lines]
        ['order', 'random']
    """
    fig, axes = new_figure(6.0, 2.5)
    for number, (name, shares) in enumerate(by_position.items()):
        look = {"color": colour(number), "marker": MARKERS[number], "linestyle": LINES[number % len(LINES)]}
        axes.plot([(at + 0.5) / len(shares) for at in range(len(shares))], shares, label=name, **look)
    axes.set(xlabel="position in the batch", ylabel="dropped", xlim=(0, 1), ylim=(0, None))
    axes.set_xticks([0, 1], ["first token", "last token"])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    fig.legend(loc="outside upper center", ncols=len(by_position), frameon=False)
    return finish(fig)


def draw_tradeoff(
    methods: dict[str, tuple[list[float], list[float]]], kinds: dict[str, str], chance: float | int
) -> Figure:
    """Draw each method at its max violation (across, logarithmic with a 0) and its held-out loss (up), by name.

    A method is two lists with a number a seed; the mark is their mean, the cross their range. ``kinds`` puts each
    method under a colour and a marker. The dotted line is ``chance``, what fair lots leave.

    Example:
        >>> methods = {"none": ([3.0, 5.0], [1.9, 2.0]), "balanced": ([0.0, 0.0], [2.0, 2.1])}
        >>> fig = draw_tradeoff(methods, {"none": "no balancing", "balanced": "rules"}, chance=0.1)
        >>> sorted(text.get_text() for text in fig.axes[0].texts)
        ['balanced', 'chance', 'none']

    Raises ValueError for kinds of other methods.
    """
    if list(kinds) != list(methods):
        raise ValueError(f"kinds must have the methods, {', '.join(methods)}; got {', '.join(kinds)}")
    fig, axes = new_figure(8.5, 4.6)
    groups = list(dict.fromkeys(kinds.values()))
    centres = {name: [sum(values) / len(values) for values in pair] for name, pair in methods.items()}
    for number, group in enumerate(groups):
        names = [name for name in methods if kinds[name] == group]
        look = {"color": colour(number), "marker": MARKERS[number], "edgecolors": "black", "s": 75, "zorder": 3}
        axes.scatter(*zip(*(centres[name] for name in names), strict=True), label=group, **look)
        for name in names:
            (across, up), (x, y) = methods[name], centres[name]
            axes.plot([min(across), max(across)], [y, y], color=colour(number), linewidth=1.4)
            axes.plot([x, x], [min(up), max(up)], color=colour(number), linewidth=1.4)
    _violation_axis(axes.xaxis, axes.set_xscale)
    axes.axvline(float(chance), color="black", linestyle=(0, (1, 2)), linewidth=1.5)
    axes.set(xlabel="MaxVio on held-out text", ylabel="held-out loss, nats a byte", xlim=(-0.008, 17))
    axes.grid(visible=False)
    below = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 10}
    axes.text(0.95 * float(chance), 0.02, "chance", **below)
    fig.legend(loc="outside upper center", ncols=len(groups), frameon=False)
    fig.canvas.draw()  # the names are placed on the page, so the scales must be final
    _name_points(axes, centres)
    return finish(fig)


def spread_out(places: list[float], apart: float) -> list[float]:
    """Move places as little as need be, and keep their order, so that all stand at least ``apart``.

    Example:
        >>> spread_out([0.5, 0.5, 0.9], 0.25)
        [0.375, 0.625, 0.9]
    """

    def span(cluster: list[int]) -> tuple[float, float]:
        centre, half = sum(places[at] for at in cluster) / len(cluster), (len(cluster) - 1) / 2 * apart
        return centre - half, centre + half

    clusters: list[list[int]] = []
    for at in sorted(range(len(places)), key=lambda number: places[number]):
        clusters.append([at])
        while len(clusters) > 1 and span(clusters[-1])[0] - span(clusters[-2])[1] < apart:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    moved = list(places)
    for cluster in clusters:
        for number, at in enumerate(cluster):
            moved[at] = span(cluster)[0] + number * apart
    return moved


def _name_points(axes: Axes, points: dict[str, list[float]]) -> None:
    """Names beside their points, in columns on the side that has more room, each with a line to its point."""
    to_page = axes.transData + axes.transAxes.inverted()
    on_page = {name: to_page.transform(point) for name, point in points.items()}
    columns: list[list[str]] = []
    for name in sorted(points, key=lambda name: float(on_page[name][0])):
        if not columns or on_page[name][0] - on_page[columns[-1][-1]][0] > COLUMN:
            columns.append([])
        columns[-1].append(name)
    for names in columns:
        x, y = zip(*(on_page[name] for name in names), strict=True)
        others = [on_page[name] for name in points if name not in names]
        level = [at for at, up in others if min(y) - 2 * APART < up < max(y) + 2 * APART]  # these can be in the way
        to_left = min(x) - max([0.0, *(at for at in level if at < min(x))])
        to_right = min([1.0, *(at for at in level if at > max(x))]) - max(x)
        across, side = (min(x) - 0.02, "right") if to_left > 1.5 * to_right else (max(x) + 0.02, "left")
        reach = (across - WIDTH, across) if side == "right" else (across, across + WIDTH)
        in_the_way = [up for at, up in others if reach[0] < at < reach[1]]
        heights = spread_out([float(on_page[name][1]) for name in names], APART)
        for name, height in zip(names, heights, strict=True):
            if any(abs(height - up) < APART for up in in_the_way):
                height += APART
            place = {"xycoords": "data", "textcoords": "axes fraction", "va": "center", "fontsize": 10}
            arrow = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
            arrow["relpos"] = (1, 0.5) if side == "right" else (0, 0.5)
            axes.annotate(name, points[name], (float(across), height), ha=side, arrowprops=arrow, **place)


def _violation_axis(axis, set_scale) -> None:
    """Logarithmic down to `EVEN`, then straight to 0, which an exactly even load has."""
    set_scale("symlog", linthresh=EVEN, linscale=0.2)
    axis.set_major_locator(FixedLocator(TICKS))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(FixedLocator([]))


def _check_samples(steps: list[int], series: dict[str, Tensor]) -> None:
    for name, values in series.items():
        if len(values) != len(steps):
            raise ValueError(f"there must be {len(steps)} samples, one a step, got {len(values)} for {name!r}")


def _check_settings(settings: list, measures: dict[str, list]) -> None:
    for name, values in measures.items():
        if len(values) != len(settings):
            raise ValueError(f"there must be {len(settings)} values, one a setting, got {len(values)} for {name!r}")
