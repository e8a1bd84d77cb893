"""Figures of kernels: numbers and their sectors, rows in padded tiles, counted over least, times over steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure

Named = tuple[str, float | int, float | int]


def draw_touched(loads: dict[str, Sequence[int]], numbers: int, per_sector: int = 8) -> Figure:
    """Draw memory as a strip a load: the numbers that it touches, and the sectors that have to come for them.

    Example:
        >>> fig = draw_touched({"neighbours": [0, 1, 2, 3], "far apart": [0, 9]}, numbers=16)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['4 numbers, 1 sector', '2 numbers, 2 sectors']

    Raises ValueError for no load, or one that leaves the strip.
    """
    if not loads or any(not 0 <= number < numbers for touched in loads.values() for number in touched):
        raise ValueError(f"loads must hold at least one, with numbers in 0..{numbers - 1}; got {loads}")
    fig, axes = new_figure(7.6, 0.55 * len(loads) + 0.9)
    for line, touched in enumerate(loads.values()):
        sectors = {number // per_sector for number in touched}
        for sector in range(-(-numbers // per_sector)):
            width = min(per_sector, numbers - sector * per_sector)
            comes = {"facecolor": "#d9e6f2", "hatch": hatch(1)} if sector in sectors else {"facecolor": "white"}
            box = Rectangle((sector * per_sector, line + 0.15), width, 0.7, edgecolor="0.35", linewidth=1.0, **comes)
            axes.add_patch(box)
        for number in set(touched):
            axes.add_patch(Rectangle((number + 0.12, line + 0.27), 0.76, 0.46, facecolor=colour(0), edgecolor="black"))
        many = f"{len(set(touched))} numbers, {len(sectors)} sector{'s' * (len(sectors) > 1)}"
        axes.text(numbers + 1, line + 0.5, many, ha="left", va="center", fontsize=10)
    axes.set(xlim=(0, numbers), ylim=(len(loads), 0), xlabel=f"number in memory; a box is a sector of {per_sector}")
    axes.set_yticks([line + 0.5 for line in range(len(loads))], list(loads))
    axes.set_xticks(range(0, numbers + 1, per_sector))
    return _bare(fig, axes)


def draw_rows(row_assignment: Sequence[int], tile_expert: Sequence[int], block_m: int) -> Figure:
    """Draw the rows of a sorted batch: tiles in their expert's colour, the assignment in each row, padding empty.

    Give the tiles in use only, and their rows.

    Example:
        >>> fig = draw_rows([0, 3, -1, -1, 1, -1, -1, -1], [0, 2], block_m=4)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['0', '3', '1', 'expert 0', 'expert 2']

    Raises ValueError where there are not block_m rows a tile.
    """
    if not tile_expert or len(row_assignment) != len(tile_expert) * block_m:
        raise ValueError(
            f"row_assignment must have {block_m} rows for each of {len(tile_expert)} tiles, got {len(row_assignment)}"
        )
    fig, axes = new_figure(max(4.0, 0.5 * len(row_assignment) + 0.6), 1.5)
    for row, assignment in enumerate(row_assignment):
        expert = tile_expert[row // block_m]
        taken = {"facecolor": colour(expert) + "55", "hatch": hatch(expert)} if assignment >= 0 else {"facecolor": "w"}
        axes.add_patch(Rectangle((row, 0), 1, 1, edgecolor="0.5", linewidth=0.8, **taken))
        if assignment >= 0:
            box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.15"}
            axes.text(row + 0.5, 0.5, str(assignment), ha="center", va="center", fontsize=12, bbox=box)
    for tile, expert in enumerate(tile_expert):
        axes.add_patch(Rectangle((tile * block_m, 0), block_m, 1, fill=False, edgecolor="black", linewidth=2.2))
        axes.text((tile + 0.5) * block_m, -0.12, f"expert {expert}", ha="center", va="bottom", fontsize=11)
    axes.set(xlim=(-0.05, len(row_assignment) + 0.05), ylim=(1.05, -0.5), xlabel="row")
    axes.set_yticks([])
    axes.set_xticks([row + 0.5 for row in range(len(row_assignment))], range(len(row_assignment)))
    return _bare(fig, axes)


def draw_over_least(ratios: dict[str, dict[str, float]]) -> Figure:
    """Draw what each kernel did over the least that any must do, bars by kernel and quantity; the least is a line at 1.

    Example:
        >>> fig = draw_over_least({"permute": {"bytes": 1.25}, "product": {"bytes": 2.0, "FLOPs": 1.5}})
        >>> [float(bar.get_width()) for bar in fig.axes[0].patches]
        [1.25, 2.0, 1.5]

    Raises ValueError for no ratio, or one that is not above 0.
    """
    flat = [ratio for kernel in ratios.values() for ratio in kernel.values()]
    if not flat or min(flat) <= 0:
        raise ValueError(f"ratios must hold at least one, and all must lie above 0; got {ratios}")
    quantities = list(dict.fromkeys(name for kernel in ratios.values() for name in kernel))
    fig, axes = new_figure(6.6, 0.42 * sum(map(len, ratios.values())) + 1.0)
    place, ticks, named = 0.0, [], set()
    for kernel in ratios.values():
        ticks.append(place + (len(kernel) - 1) / 2)
        for quantity, ratio in kernel.items():
            number = quantities.index(quantity)
            look = {"color": colour(number), "hatch": hatch(number), "edgecolor": "black", "linewidth": 0.6}
            axes.barh(place, ratio, 0.8, label=None if quantity in named else quantity, **look)
            named.add(quantity)
            axes.annotate(f"{ratio:.2f}", (ratio, place), (4, 0), textcoords="offset points", va="center", fontsize=10)
            place += 1.0
        place += 0.5
    axes.axvline(1, color="black", linestyle="--", linewidth=1.4)
    axes.set(xlim=(0, 1.15 * max(flat)), xlabel="counted / least")
    axes.set_yticks(ticks, list(ratios))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=10, loc="lower right")
    return finish(fig)


def draw_times(series: dict[str, list[Named]], line: tuple[str, float, float], xlabel: str, ylabel: str) -> Figure:
    """Draw times over steps, a mark a series, points as (name, steps, time); ``line`` is a name, a start and a slope.

    Both axes are logarithmic.

    Example:
        >>> fig = draw_times({"serial": [("8", 100, 12.0), ("4", 200, 22.0)]}, ("2 + 0.1 s", 2.0, 0.1), "steps", "us")
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[0].lines[0].get_label()
        (['8', '4'], '2 + 0.1 s')

    Raises ValueError for no point, or one that is not above 0.
    """
    flat = [point[1:] for points in series.values() for point in points]
    if not flat or not all(value > 0 for point in flat for value in point):
        raise ValueError(f"series must hold at least one point, and all must lie above 0; got {series}")
    fig, axes = new_figure(6.6, 3.2)
    name, start, slope = line
    low, high = min(x for x, _ in flat) / 1.5, max(x for x, _ in flat) * 1.5
    across = [low * (high / low) ** (number / 40) for number in range(41)]
    axes.plot(across, [start + slope * x for x in across], color="black", linestyle="--", linewidth=1.4, label=name)
    for number, (label, points) in enumerate(series.items()):
        look = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "markeredgecolor": "black"}
        axes.plot([x for _, x, _ in points], [y for _, _, y in points], linestyle="", markersize=8, label=label, **look)
        for text, x, y in points:
            if text:
                axes.annotate(text, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=10)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, xlim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.margins(y=0.15)
    axes.legend(fontsize=10)
    return finish(fig)


def _bare(fig: Figure, axes) -> Figure:
    """A picture of things, not of quantities: no grid, no frame."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return finish(fig)
