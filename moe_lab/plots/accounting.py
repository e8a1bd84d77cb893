"""Figures of accounting: stored against used, published against counted, FLOPs, memory, and rates against a peak."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moe_lab.accounting.compare import Figure as PublishedFigure
from moe_lab.plots.balancing import spread_out
from moe_lab.plots.even_routing import LINES
from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure

PARTS = {
    "experts": ("experts",),
    "attention": ("attention", "recurrent"),
    "embeddings": ("embedding", "output"),
    "the rest": ("router", "shared_experts", "dense_mlp", "norms", "vision"),
}
"""Components as the bars group them: what is multiplied by the number of experts, and what is there once."""

VERDICTS = {"equal as printed": 0, "equal to one digit": 4, "within 0.5 %": 1, "differs, explained": 5, "differs": 7}
"""Verdict -> number of its mark and colour."""

PANELS = {
    "all parameters": ("total_params",),
    "used by a token (Switch: FLOPs)": ("active_params", "flops_per_sequence"),
}


def draw_stored_and_used(models: dict[str, tuple[dict[str, int], dict[str, int]]]) -> Figure:
    """Draw two bars a model, parameters stored and parameters that a token uses, in percent of those stored.

    ``models`` has, by name, the two dicts ``params_by_component`` and ``active_params_by_component``.

    Example:
        >>> fig = draw_stored_and_used({"toy": ({"experts": 8, "attention": 2}, {"experts": 2, "attention": 2})})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['10 stored', '4 used: 40%']

    Raises ValueError for no model, or for a component that no part has.
    """
    if not models:
        raise ValueError("models must hold at least one model, got none")
    by_part = [(_by_part(stored), _by_part(used)) for stored, used in models.values()]
    fig, axes = new_figure(6.6, 0.65 * len(models) + 1.1)
    for number, (stored, used) in enumerate(by_part):
        whole = sum(stored.values())
        for row, bar in ((3 * number, stored), (3 * number + 1, used)):
            _stack(axes, row, bar, whole, labelled=row == 0)
        share = sum(used.values()) / whole
        for row, start, text in (
            (3 * number, 1.0, f"{_short(whole)} stored"),
            (3 * number + 1, share, f"{_short(sum(used.values()))} used: {share:.0%}"),
        ):
            axes.annotate(text, (100 * start, row), (6, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks([3 * number + 0.5 for number in range(len(models))], list(models))
    axes.set(xlabel="% of the parameters stored", xlim=(0, 130), ylim=(3 * len(models) - 1.2, -0.8))
    axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    axes.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(PARTS), frameon=False)
    return finish(fig)


def _by_part(by_component: dict[str, int]) -> dict[str, int]:
    unknown = sorted(set(by_component) - {component for components in PARTS.values() for component in components})
    if unknown:
        raise ValueError(f"components must be those of a count, got {', '.join(unknown)}")
    return {part: sum(by_component.get(name, 0) for name in components) for part, components in PARTS.items()}


def _stack(axes: Axes, row: float | int, values: dict[str, int], whole: int, labelled: bool) -> None:
    """One horizontal bar in percent of the whole, a piece a value."""
    start = 0.0
    for number, (name, value) in enumerate(values.items()):
        look = {"color": colour(number), "hatch": hatch(number), "edgecolor": "black", "linewidth": 0.5}
        width = 100 * value / whole
        axes.barh(row, width, left=start, height=0.85, label=name if labelled else None, **look)
        start += width


def _short(number: int) -> str:
    """A number of parameters in three digits."""
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.1f} {letter}" if number < 100 * unit else f"{number / unit:,.0f} {letter}"
    return str(number)


def draw_deviations(models: dict[str, Sequence[PublishedFigure]]) -> Figure:
    """Draw how far each count lies above or below the published figure, in percent, with a mark for each verdict.

    Two panels, all parameters and what a token uses; a row a model, with the figures that `compare` gives. The grey bar
    is what the printed digits leave open, half a unit of the last one either way. The axis is linear to 1 percent and
    logarithmic beyond.

    Example:
        >>> from moe_lab.accounting.compare import compare
        >>> fig = draw_deviations({"Mixtral 8x7B": compare("mixtral-8x7b")[1]})
        >>> [axes.get_title() for axes in fig.axes][0], len(fig.axes[0].lines)
        ('all parameters', 2)

    Raises ValueError for no figure at all.
    """
    if not any(models.values()):
        raise ValueError("models must hold at least one published figure, got none")
    fig, panels = new_figure(8.0, 0.205 * len(models) + 1.2, columns=2, sharey=True)
    seen: dict[str, object] = {}
    for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
        for row, figures in enumerate(models.values()):
            for figure in figures:
                if figure.name in names:
                    seen.setdefault(figure.verdict, _deviation(axes, row, figure))
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=1, linscale=1.5)
        axes.set(title=title, xlabel="counted, % above the published", xlim=(-40, 40))
        axes.xaxis.set_major_locator(FixedLocator([-20, -5, -1, -0.5, 0, 0.5, 1, 5, 20]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="x", labelsize=9)
        axes.grid(axis="x", visible=False)
    panels[0].set_yticks(range(len(models)), list(models), fontsize=8.5)
    panels[0].set_ylim(len(models) - 0.4, -0.6)
    shown = [verdict for verdict in VERDICTS if verdict in seen]
    fig.legend([seen[verdict] for verdict in shown], shown, loc="outside upper center", ncols=4, frameon=False)
    return finish(fig)


def _deviation(axes: Axes, row: int, figure: PublishedFigure) -> object:
    """One mark over the bar of its rounding."""
    allowed = 50 * figure.step / figure.published
    axes.add_patch(Rectangle((-allowed, row - 0.36), 2 * allowed, 0.72, facecolor="0.82", edgecolor="none"))
    number = VERDICTS[figure.verdict]
    look = {"marker": MARKERS[number], "color": colour(number), "markeredgewidth": 0, "markersize": 6.5}
    return axes.plot(figure.difference_percent, row, linestyle="", zorder=3, **look)[0]


def draw_over_context(contexts: list[int], models: dict[str, list[float]], label: str) -> Figure:
    """Draw a line a model over the length of the context, which is on a logarithmic axis, with names at the ends.

    Example:
        >>> fig = draw_over_context([1024, 4096], {"toy": [10.0, 20.0]}, "% of the FLOPs")
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[0].get_ylabel()
        (['toy'], '% of the FLOPs')

    Raises ValueError for no model, or for a line of another length than contexts.
    """
    if not models:
        raise ValueError("models must hold at least one line, got none")
    for name, values in models.items():
        if len(values) != len(contexts):
            raise ValueError(f"{name} must have a value for each of {len(contexts)} contexts, got {len(values)}")
    fig, axes = new_figure(6.2, 3.2)
    for number, values in enumerate(models.values()):
        axes.plot(contexts, values, linewidth=2, color=colour(number), linestyle=LINES[number % len(LINES)])
    axes.set(xscale="log", xlabel="tokens of context", ylabel=label)
    axes.set_ylim(0, 1.06 * max(max(values) for values in models.values()))
    axes.set_xticks(contexts, [f"{tokens // 1024}k" if tokens >= 1024 else str(tokens) for tokens in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    _name_ends(axes, contexts[-1], {name: values[-1] for name, values in models.items()})
    return finish(fig)


def _name_ends(axes: Axes, across: int, heights: dict[str, float]) -> None:
    """Write names beside the last points of lines, apart from each other."""
    axes.figure.canvas.draw()  # places are known only now
    places = [float(axes.transData.transform((across, height))[1]) for height in heights.values()]
    for name, place, spread in zip(heights, places, spread_out(places, 12.0), strict=True):
        offset = (8, (spread - place) * 72 / axes.figure.dpi)
        axes.annotate(name, (across, heights[name]), offset, textcoords="offset points", va="center", fontsize=9)


def draw_seen(counters: dict[str, dict[str, int]]) -> Figure:
    """Draw a bar a counter, the FLOPs that it saw by operator, in percent of what the last counter saw.

    Example:
        >>> fig = draw_seen({"plain": {"aten.mm": 25}, "ours": {"aten.mm": 25, "aten._grouped_mm": 75}})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['25%', '100%']

    Raises ValueError for no counter, or a last one that saw nothing.
    """
    whole = sum(list(counters.values())[-1].values()) if counters else 0
    if not whole:
        raise ValueError("counters must hold at least one, and the last must have seen FLOPs")
    operators = list(dict.fromkeys(operator for seen in counters.values() for operator in seen))
    # matplotlib leaves names that begin with "_" out of a legend; which device a kernel is for, nobody asks here
    names = {name: name.removeprefix("aten.").lstrip("_").removesuffix("_for_cpu") for name in operators}
    fig, axes = new_figure(7.2, 0.55 * len(counters) + 1.1)
    for row, seen in enumerate(counters.values()):
        _stack(axes, row, {names[operator]: seen.get(operator, 0) for operator in operators}, whole, labelled=row == 0)
        end = 100 * sum(seen.values()) / whole
        axes.annotate(f"{end:.0f}%", (end, row), (6, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks(range(len(counters)), list(counters))
    axes.set(xlabel="% of the FLOPs", xlim=(0, 112), ylim=(len(counters) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(operators), frameon=False, fontsize=9)
    return finish(fig)


def draw_rates(rates: dict[str, float], peak: float | int, unit: str = "GFLOP/s") -> Figure:
    """Draw the rate of each layer in percent of the peak, a bar a layer, and the peak as a line.

    Example:
        >>> fig = draw_rates({"dense": 80.0, "loop": 50.0}, peak=100)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['80 GFLOP/s, 80%', '50 GFLOP/s, 50%', 'peak: 100 GFLOP/s']

    Raises ValueError for no layer, or a peak that is not above 0.
    """
    if not rates or not peak > 0:
        raise ValueError(f"rates must hold at least one layer and peak lie above 0, got {len(rates)} and {peak}")
    fig, axes = new_figure(7.2, 0.45 * len(rates) + 1.1)
    for row, rate in enumerate(rates.values()):
        look = {"color": colour(row), "hatch": hatch(row), "edgecolor": "black", "linewidth": 0.5}
        axes.barh(row, 100 * rate / peak, height=0.8, **look)
        text, place = f"{rate:.0f} {unit}, {rate / peak:.0%}", {"va": "center", "fontsize": 10}
        box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        axes.annotate(text, (0, row), (8, 0), textcoords="offset points", bbox=box, **place)
    axes.axvline(100, color="black", linestyle="--", linewidth=1.5)
    place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom", "fontsize": 10}
    axes.annotate(f"peak: {peak:.0f} {unit}", (100, 1.01), **place)
    axes.set_yticks(range(len(rates)), list(rates))
    highest = max(100.0, *(100 * rate / peak for rate in rates.values()))
    axes.set(xlabel="% of the peak", xlim=(0, 1.1 * highest), ylim=(len(rates) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    return finish(fig)
