"""Figures of dispatch: the one-hot mask beside the index table, FLOPs that grow, and measured times."""

import matplotlib.pyplot as plt
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from torch import Tensor

from moe_lab.dispatch import assign_places, index_table
from moe_lab.plots.style import MARKERS, SEQUENTIAL, colour, finish, hatch, new_figure
from moe_lab.types import Routing

PARTS = ("carrying tokens", "padding", "the experts' own rows")
LINES = ("-", "--", "-.", ":")


def draw_mask_and_table(routing: Routing, capacity: int) -> Figure:
    """Draw the same facts twice: the one-hot mask (tokens x places), and the table (experts x places) of token ids.

    Example:
        >>> import torch
        >>> routing = Routing(torch.tensor([[1], [0], [1]]), torch.ones(3, 1), num_experts=2)
        >>> [axes.get_title() for axes in draw_mask_and_table(routing, capacity=2).axes]
        ['one-hot mask: 12 numbers', 'index table: 4 numbers']

    Raises ValueError for a capacity below the largest load.
    """
    places, table = assign_places(routing, capacity), index_table(routing, capacity)
    width = routing.num_experts * capacity
    fig, (left, right) = new_figure(width=8.0, height=2.9, columns=2, width_ratios=(width, max(3, capacity * 1.6)))
    left.set_title(f"one-hot mask: {routing.tokens * width} numbers")
    for token in range(routing.tokens):
        for place in range(width):
            filled = bool((places[token] == place).any())
            _cell(left, place, token, "1" if filled else "0", place // capacity if filled else None)
    for edge in range(0, width + 1, capacity):
        left.axvline(edge, color="black", linewidth=1.5)
    _frame(left, width, routing.tokens)
    left.set(xlabel="places of each expert", ylabel="token")
    left.set_xticks([e * capacity + capacity / 2 for e in range(routing.num_experts)])
    left.set_xticklabels([f"expert {e}" for e in range(routing.num_experts)])
    left.set_yticks([t + 0.5 for t in range(routing.tokens)], range(routing.tokens))
    right.set_title(f"index table: {width} numbers")
    for expert, row in enumerate(table.tolist()):
        for position, token in enumerate(row):
            _cell(right, position, expert, "-" if token < 0 else str(token), None if token < 0 else expert)
    _frame(right, capacity, routing.num_experts)
    right.set_xlabel("place")
    right.set_xticks([p + 0.5 for p in range(capacity)], range(capacity))
    right.set_yticks([e + 0.5 for e in range(routing.num_experts)], [f"expert {e}" for e in range(routing.num_experts)])
    return finish(fig)


def _cell(axes, column: int, row: int, text: str, expert: int | None) -> None:
    """One square; in its expert's colour and pattern if it is taken."""
    look = {"facecolor": "white"} if expert is None else {"facecolor": colour(expert), "hatch": hatch(expert)}
    axes.add_patch(Rectangle((column, row), 1, 1, edgecolor="0.75", linewidth=0.6, **look))
    label = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"} if expert is not None else None
    shade = "0.6" if expert is None else "black"
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=shade, fontsize=11, bbox=label)


def _frame(axes, columns: int, rows: int) -> None:
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.grid(visible=False)
    axes.tick_params(length=0)


def draw_growth(tokens: list[int], flops: dict[str, list[int]], crossing: float | int | None = None) -> Figure:
    """Draw FLOPs over tokens, both logarithmic, a line a name; ``crossing`` marks a number of tokens.

    Example:
        >>> fig = draw_growth([1, 2, 4], {"quadratic": [1, 4, 16], "linear": [8, 16, 32]}, crossing=8)
        >>> [line.get_label() for line in fig.axes[0].get_lines()][:2]
        ['quadratic', 'linear']

    Raises ValueError for a line with another number of points than ``tokens``.
    """
    _check_lengths("flops", flops, "points", tokens)
    fig, axes = new_figure(width=7.0, height=3.3)
    for number, (name, values) in enumerate(flops.items()):
        style = {"marker": MARKERS[number], "linestyle": LINES[number % len(LINES)], "color": colour(number)}
        axes.plot(tokens, values, label=name, **style)
    if crossing is not None:
        axes.axvline(crossing, color="0.3", linestyle=":", linewidth=1.2)
        text = f"equal at {crossing:,.0f} tokens "
        axes.annotate(text, (crossing, 0.03), xycoords=("data", "axes fraction"), fontsize=10, ha="right")
    axes.set(xscale="log", yscale="log", xlabel="tokens routed together", ylabel="FLOPs")
    _ticks(axes, tokens)
    fig.legend(loc="outside upper center", ncols=3, frameon=False)
    return finish(fig)


def draw_ways(flops: dict[str, tuple[int, int, int]]) -> Figure:
    """Draw the FLOPs of ways to compute one layer as stacked bars: carrying tokens, padding, the experts' own rows.

    Example:
        >>> fig = draw_ways({"one-hot": (40, 10, 50), "grouped": (0, 0, 50)})
        >>> [text.get_text() for text in fig.legends[0].get_texts()]
        ['carrying tokens', 'padding', "the experts' own rows"]
    """
    fig, axes = new_figure(width=7.5, height=2.7)
    names = list(flops)
    start = [0.0] * len(names)
    for part in reversed(range(len(PARTS))):  # the work that every way shares begins at 0, to be compared by eye
        values = [flops[name][part] / 1e6 for name in names]
        look = {"color": colour(part), "hatch": hatch(part), "edgecolor": "black", "linewidth": 0.5}
        axes.barh(names, values, left=start, label=PARTS[part], **look)
        start = [a + b for a, b in zip(start, values, strict=True)]
    for row, total in enumerate(start):
        axes.annotate(f" {total:,.0f}", (total, row), va="center", fontsize=10)
    axes.set(xlabel="million FLOPs", xlim=(0, 1.12 * max(start)))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3, frameon=False)
    return finish(fig)


def draw_ratios(
    ratios: Float[Tensor, "experts tokens"], num_experts: list[int], tokens: list[int], flop_ratio: list[float]
) -> Figure:
    """Draw how many times faster the table was: a map over experts and tokens, and its median against the FLOP ratio.

    Squares at or above 6 are striped; in the right-hand panel a dotted line stands at 6.

    Example:
        >>> import torch
        >>> fig = draw_ratios(torch.tensor([[1.0, 9.0]]), [4], [8, 512], [20.0, 1280.0])
        >>> sorted(text.get_text() for text in fig.axes[0].texts)
        ['1.0', '9.0']
    """
    fig, (left, right) = new_figure(width=9.0, height=3.3, columns=2, width_ratios=(1.15, 1))
    highest = max(float(ratios.max()), 6.5)
    image = left.imshow(ratios.numpy(), cmap=SEQUENTIAL, norm=LogNorm(1, highest), aspect="auto", origin="lower")
    left.grid(visible=False)
    for row, line in enumerate(ratios.tolist()):
        for column, ratio in enumerate(line):
            bright = ratio > highest**0.45
            text = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
            left.text(column, row, text, ha="center", va="center", color="black" if bright else "white")
            if ratio >= 6:
                square = (column - 0.48, row - 0.47), 0.96, 0.94
                left.add_patch(
                    Rectangle(*square, fill=False, hatch="//", edgecolor="black" if bright else "white", alpha=0.35)
                )
    left.set_xticks(range(len(tokens)), tokens)
    left.set_yticks(range(len(num_experts)), num_experts)
    left.set(xlabel="tokens", ylabel="experts", title="times faster than one-hot (striped: 6 or more)")
    bar = fig.colorbar(image, ax=left)
    bar.ax.yaxis.set_major_locator(FixedLocator([t for t in (1, 2, 6, 20, 60, 200) if t <= highest]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    measured = ratios.median(dim=0).values.tolist()
    right.plot(tokens, flop_ratio, label="FLOPs, closed form", color=colour(1), marker=MARKERS[1], linestyle="--")
    right.plot(tokens, measured, label="time, measured", color=colour(0), marker=MARKERS[0])
    right.axhline(6, color=colour(5), linestyle=":", label="6 times")
    right.set(xscale="log", yscale="log", xlabel="tokens", title="one-hot / table, median over experts")
    right.set_ylim(top=100 * max(flop_ratio))  # room for the legend above the lines
    _ticks(right, tokens)
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    right.legend(fontsize=10, loc="upper left")
    return finish(fig)


def draw_layer_times(tokens: list[int], times_ms: dict[str, list[tuple[float, float]]]) -> Figure:
    """Draw a layer's time as stacked bars: (carrying, experts) for each way, in groups by the number of tokens.

    Bars are shares of the slowest way's time for the same tokens, so that the groups can be compared.

    Example:
        >>> fig = draw_layer_times([8], {"one_hot": [(6.0, 4.0)], "table": [(1.0, 4.0)]})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['10 ms', '5 ms']

    Raises ValueError for a way with another number of times than ``tokens``.
    """
    _check_lengths("times_ms", times_ms, "pairs", tokens)
    fig, axes = new_figure(width=7.0, height=3.2)
    ticks, names = [], []
    for group in range(len(tokens)):
        slowest = max(sum(pairs[group]) for pairs in times_ms.values())
        for number, (way, pairs) in enumerate(times_ms.items()):
            at, (carrying, experts) = group * (len(times_ms) + 0.7) + number, pairs[group]
            for start, part, look, label in ((0.0, experts, 2, "experts"), (experts, carrying, 0, "carrying tokens")):
                shown = {"label": label} if group == number == 0 else {}
                bar = {"color": colour(look), "hatch": hatch(look), "edgecolor": "black", "linewidth": 0.5}
                axes.bar(at, 100 * part / slowest, bottom=100 * start / slowest, width=0.85, **bar, **shown)
            total = carrying + experts
            text = f"{total:.0f} ms" if total >= 5 else f"{total:.2g} ms"
            axes.annotate(text, (at, 100 * total / slowest), ha="center", va="bottom", fontsize=10)
            ticks.append(at)
            names.append(f"{way}\n{tokens[group]} tokens")
    axes.set_xticks(ticks, names, fontsize=9)
    axes.set(ylabel="% of the slower way", ylim=(0, 112))
    axes.grid(axis="x", visible=False)
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    return finish(fig)


def _ticks(axes: plt.Axes, tokens: list[int]) -> None:
    """Write the numbers of tokens that were used, not powers of ten."""
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _check_lengths(argument: str, series: dict[str, list], unit: str, tokens: list[int]) -> None:
    """Refuse a series that has not one value for each number of tokens."""
    for name, values in series.items():
        if len(values) != len(tokens):
            raise ValueError(
                f"{argument}[{name!r}] must have {len(tokens)} {unit}, one for each of tokens, got {len(values)}"
            )
