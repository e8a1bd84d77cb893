"""Figures of even routing: balance against score, prices and their bound, groups, room, and what evenness buys."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from moe_lab.plots.style import MARKERS, colour, finish, hatch, new_figure

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
CHOSEN, FORCED = 1, 5  # numbers of colours: orange, vermilion


def draw_pairs(points: dict[str, tuple[float, float]]) -> Figure:
    """Draw every router as a point: its cv in noise floors across, the score that it gives up in percent down.

    The axes are linear around 0 and logarithmic further out, so that 0, 1 and 50 can share them. Left is even, high has
    a good score; below 0 percent is more score than any even assignment has. The dotted line is what fair lots leave.

    Example:
        >>> fig = draw_pairs({"top_k": (5.0, -20.0), "round robin": (0.0, 100.0)})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['top_k', 'round robin']

    Raises ValueError for no point.
    """
    if not points:
        raise ValueError("points must hold at least one router, got none")
    fig, axes = new_figure(5.6, 3.6)
    axes.set_xscale("symlog", linthresh=1, linscale=1.4)
    axes.set_yscale("symlog", linthresh=1, linscale=0.7)
    axes.axvline(1, color="black", linestyle=":", linewidth=1.2)
    axes.axhline(0, color="black", linewidth=0.8)
    for number, point in enumerate(points.values()):
        look = {"marker": MARKERS[number % len(MARKERS)], "color": colour(number), "markeredgecolor": "black"}
        axes.plot(*point, linestyle="", markersize=8, zorder=3, clip_on=False, **look)
    axes.set(
        xlabel="cv of the load, in noise floors", ylabel="% of the score given up", xlim=(-0.05, 100), ylim=(200, -200)
    )
    axes.xaxis.set_major_locator(FixedLocator([0, 1, 10, 100]))
    axes.yaxis.set_major_locator(FixedLocator([-100, -10, -1, 0, 1, 10, 100]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    fig.canvas.draw()  # places are known only now
    _name_points(axes, points)
    return finish(fig)


def _name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write each name beside its point, at the one of eight places where it covers least of the others."""
    spots = [axes.transData.transform(point) for point in points.values()]
    covered = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    frame = tuple(axes.get_window_extent().extents)
    (across, _), (_, up) = axes.transData.transform([(1, 0), (0, 0)])
    lines = [(across - 2, frame[1], across + 2, frame[3]), (frame[0], up - 2, frame[2], up + 2)]
    for number, (name, point) in enumerate(points.items()):
        tried = []
        for across, up in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            place = {"textcoords": "offset points", "ha": ("right", "center", "left")[across + 1], "va": "center"}
            text = axes.annotate(name, point, (9 * across, 9 * up), fontsize=10, zorder=4, **place)
            box = tuple(text.get_window_extent().extents)
            outside = _shared(box, box) - _shared(box, frame)
            hidden = sum(_shared(box, other) for other in covered[:number] + covered[number + 1 :] + lines)
            tried.append((outside + hidden, text, box))
        best = min(tried, key=lambda candidate: candidate[0])
        for candidate in tried:
            if candidate is not best:
                candidate[1].remove()
        covered.append(best[2])


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def draw_bound(prices: list[float], bounds: list[float], takers: list[int], best: float) -> Figure:
    """Draw the bound that each price of one expert gives, how many would take it, and the best even score below.

    Example:
        >>> fig = draw_bound([0.0, 1.0, 2.0], [5.0, 3.5, 4.0], [4, 2, 0], best=3.5)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['4 takers', '2 takers', '0 takers', 'best even score 3.5']

    Raises ValueError for lists of unequal length.
    """
    _check_lengths(prices=prices, bounds=bounds, takers=takers)
    fig, axes = new_figure(5.6, 2.5)
    axes.plot(prices, bounds, color=colour(0), linewidth=2)
    axes.axhline(best, color=colour(5), linestyle="--", linewidth=1.5)
    for count in sorted(set(takers), reverse=True):
        here = [price for price, number in zip(prices, takers, strict=True) if number == count]
        text = f"{count} taker" + ("" if count == 1 else "s")
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
        axes.annotate(text, (sum(here) / len(here), 0.96), **place)
        if here[0] != prices[0]:
            axes.axvline(here[0], color="0.5", linestyle=":", linewidth=1.2)
    axes.annotate(f"best even score {best:g}", (prices[0], best), (4, -6), textcoords="offset points", va="top")
    low, high = min(best, *bounds), max(bounds)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 5, 10]))
    axes.set(xlabel="price of expert 0", ylabel="bound", ylim=(low - 0.2 * (high - low), high + 0.3 * (high - low)))
    return finish(fig)


def say_bound(prices: list[float], bounds: list[float], takers: list[int]) -> str:
    """The finding of `draw_bound` as a sentence: the bound at the first price, where it is lowest, and at the last.

    Example:
        >>> say_bound([0.0, 1.0, 1.5, 2.0], [5.0, 3.5, 3.5, 4.0], [4, 2, 2, 0])
        'The bound over the price of expert 0: 5.0 at price 0 with 4 takers, lowest, 3.5, from 1 to 1.5 with 2, and \
4.0 at 2 with 0.'

    Raises ValueError for lists of unequal length.
    """
    _check_lengths(prices=prices, bounds=bounds, takers=takers)
    at = [number for number, bound in enumerate(bounds) if bound < min(bounds) + 1e-4]
    return (
        f"The bound over the price of expert 0: {bounds[0]:.1f} at price {prices[0]:.3g} with {takers[0]} takers, "
        f"lowest, {min(bounds):.1f}, from {prices[at[0]]:.3g} to {prices[at[-1]]:.3g} with {takers[at[0]]}, and "
        f"{bounds[-1]:.1f} at {prices[-1]:.3g} with {takers[-1]}."
    )


def draw_excess(excess: dict[str, list[float]]) -> Figure:
    """Draw the share of assignments in excess over the iterations, a line a rule, on a logarithmic axis.

    A line has its name at its end, and ends where it reaches 0.

    Example:
        >>> fig = draw_excess({"midpoint": [0.5, 0.1, 0.0], "sign": [0.5, 0.4, 0.3]})
        >>> [len(line.get_xdata()) for line in fig.axes[0].lines]
        [2, 3]

    Raises ValueError for no line, or a line that begins with 0.
    """
    if not excess or any(not values or values[0] == 0 for values in excess.values()):
        raise ValueError("excess must hold lines that begin above 0")
    fig, axes = new_figure(6.4, 2.9)
    ends = []
    for number, (name, values) in enumerate(excess.items()):
        points = values.index(0.0) if 0.0 in values else len(values)
        axes.plot(range(points), values[:points], color=colour(number), linestyle=LINES[number % len(LINES)])
        ends.append((points - 1, values[points - 1], name))
    axes.set(yscale="log", xlabel="iterations", ylabel="share in excess", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _name_ends(axes, ends)
    return finish(fig)


def draw_groups(
    busiest: list[float], lots: float, sizes: list[int], costs: dict[str, list[float]], passage: int
) -> Figure:
    """Draw max over mean in each passage of an even batch, and what evenness costs over the size of its group.

    ``lots`` is the max over mean that fair lots leave in a passage; costs are in percent.

    Example:
        >>> fig = draw_groups([1.5, 2.0], 1.4, [32, 64], {"as written": [9.0, 6.0]}, passage=64)
        >>> [float(bar.get_height()) for bar in fig.axes[0].patches]
        [1.5, 2.0]

    Raises ValueError for costs of another length than sizes.
    """
    _check_lengths(sizes=sizes, **costs)
    fig, (left, right) = new_figure(7.4, 2.5, columns=2)
    left.bar(range(len(busiest)), busiest, color=colour(0), edgecolor="black", linewidth=0.5)
    for height, line in ((1.0, "-"), (lots, "--")):
        left.axhline(height, color="black", linestyle=line, linewidth=1.5)
    end = len(busiest) - 0.4
    left.set(xlabel=f"passage of {passage} tokens", ylabel="busiest expert / mean", xlim=(-0.6, end))
    _name_ends(left, [(end, 1.0, "batch"), (end, lots, "fair lots")])
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(axis="x", visible=False)
    for number, (name, values) in enumerate(costs.items()):
        look = {"color": colour(number), "linestyle": LINES[number], "marker": MARKERS[number]}
        right.plot(sizes, values, **look)
        middle = len(sizes) // 2 - 1  # the first line's name above it, the others' below
        place = {"textcoords": "offset points", "ha": "right" if number else "left", "va": "center", "fontsize": 10}
        right.annotate(name, (sizes[middle], values[middle]), (-3, -11) if number else (3, 10), **place)
    right.set(xscale="log", xlabel="tokens in a group", ylabel="score given up (%)", ylim=(0, None))
    _ticks(right, sizes)
    return finish(fig)


def say_groups(busiest: list[float], lots: float, sizes: list[int], costs: dict[str, list[float]]) -> str:
    """The finding of `draw_groups` as a sentence: passages beside lots, the cost of the largest and of the least group.

    Example:
        >>> say_groups([1.5, 2.0], 1.4, [32, 64], {"as written": [9.0, 6.0]})
        "Left, 2 passages of a batch that is exactly even: the busiest expert gets 1.5 to 2.0 times the mean, 1.8 on \
average; fair lots leave 1.4. Right, the cost of evenness in percent of free choice's score: as written 6 over 64 \
tokens, 9 over 32."

    Raises ValueError for costs of another length than sizes.
    """
    _check_lengths(sizes=sizes, **costs)
    said = [
        f"{name} {cost[-1]:.0f} over {sizes[-1]:,} tokens, {cost[0]:.0f} over {sizes[0]}"
        for name, cost in costs.items()
    ]
    return (
        f"Left, {len(busiest)} passages of a batch that is exactly even: the busiest expert gets {min(busiest):.1f} to "
        f"{max(busiest):.1f} times the mean, {sum(busiest) / len(busiest):.1f} on average; fair lots leave {lots:.1f}. "
        f"Right, the cost of evenness in percent of free choice's score: {'; '.join(said)}."
    )


def room_before(experts: Int64[Tensor, "tokens top_k"], num_experts: int) -> Int64[Tensor, "tokens {num_experts}"]:
    """How much of its even share each expert of a group still has when each token comes.

    Example:
        >>> room_before(torch.tensor([[0], [0], [1], [1]]), num_experts=2)
        tensor([[2, 2],
                [1, 2],
                [0, 2],
                [0, 1]])

    Raises ValueError for a group that is not exactly even.
    """
    taken = torch.zeros(len(experts), num_experts, dtype=torch.int64).scatter(1, experts, 1)
    load = taken.sum(dim=0)
    if int(load.max() - load.min()) > 1:
        raise ValueError(f"experts must be an even group over {num_experts} experts, got the loads {load.tolist()}")
    return load - taken.cumsum(dim=0) + taken


def draw_room(experts: Int64[Tensor, "tokens top_k"], num_experts: int) -> Figure:
    """Draw one even group in its order: in each cell the room that an expert has left when the token comes.

    Taken cells are orange; stripes mark an expert without room, which is forbidden, and a thick frame one that has as
    much room as tokens are left, and is forced. Room is the expert's part of an even load.

    Example:
        >>> fig = draw_room(torch.tensor([[0], [0], [1], [1]]), num_experts=2)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['2', '2', '1', '2', '0', '2', '0', '1']

    Raises ValueError for a group that is not exactly even.
    """
    tokens, room = len(experts), room_before(experts, num_experts)
    fig, axes = new_figure(max(5.0, 1.2 + 0.55 * tokens), 1.5 + 0.42 * num_experts)
    for token in range(tokens):
        for expert in range(num_experts):
            taken, places = bool((experts[token] == expert).any()), int(room[token, expert])
            _room_cell(axes, token, expert, places, tokens - token, taken)
    axes.set(xlim=(0, tokens), ylim=(num_experts, 0), xlabel="token (tokens left, itself included)", ylabel="expert")
    axes.set_xticks(
        [token + 0.5 for token in range(tokens)], [f"{token}\n({tokens - token})" for token in range(tokens)]
    )
    axes.set_yticks([expert + 0.5 for expert in range(num_experts)], range(num_experts))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return finish(fig)


def _room_cell(axes: Axes, token: int, expert: int, room: int, left: int, taken: bool) -> None:
    """One expert as one token finds it."""
    look = {"facecolor": colour(CHOSEN) if taken else "white", "edgecolor": "0.7", "linewidth": 0.6}
    if not room:
        look = {"facecolor": "0.9", "edgecolor": "0.4", "hatch": "////", "linewidth": 0.6}
    axes.add_patch(Rectangle((token, expert), 1, 1, **look))
    if room == left:
        inside = (token + 0.06, expert + 0.08), 0.88, 0.84
        axes.add_patch(Rectangle(*inside, fill=False, edgecolor=colour(FORCED), linewidth=2.5))
    label = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"} if not room else None
    axes.text(token + 0.5, expert + 0.5, str(room), ha="center", va="center", fontsize=11, bbox=label)


def draw_law(tokens: list[int], over_tokens: dict[str, tuple[list[float], list[float]]], floor: list[float]) -> Figure:
    """Draw cvs over the tokens of a batch: marks where they were measured, a line for the law, dots for the floor.

    ``over_tokens`` holds pairs (measured, law), a value for each of ``tokens``.

    Example:
        >>> fig = draw_law([64, 256], {"1 batch": ([0.4, 0.2], [0.42, 0.21])}, floor=[0.3, 0.15])
        >>> [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
        ['1 batch', 'noise floor']

    Raises ValueError for lists of unequal length.
    """
    for name, (measured, law) in over_tokens.items():
        _check_lengths(tokens=tokens, floor=floor, **{f"measured {name}": measured, f"law {name}": law})
    fig, axes = new_figure(5.4, 2.8)
    for number, (name, (measured, law)) in enumerate(over_tokens.items()):
        axes.plot(tokens, law, color=colour(number), linestyle=LINES[number])
        axes.plot(tokens, measured, color=colour(number), linestyle="", marker=MARKERS[number], label=name)
    axes.plot(tokens, floor, color="black", linestyle=":", label="noise floor")
    axes.set(xscale="log", yscale="log", xlabel="tokens in a batch", ylabel="cv of a fresh batch")
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.4]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=10)
    _ticks(axes, tokens)
    return finish(fig)


def say_law(tokens: list[int], over_tokens: dict[str, tuple[list[float], list[float]]], floor: list[float]) -> str:
    """The finding of `draw_law` as a sentence: first and last cv of each line, and the widest distance from the law.

    Example:
        >>> say_law([64, 256], {"1 batch": ([0.4, 0.2], [0.42, 0.21])}, floor=[0.3, 0.15])
        'The cv of fresh batches over their tokens: with 1 batch from 0.40 at 64 tokens to 0.200 at 256. The noise \
floor there is 0.150. All within 5% of the law.'

    Raises ValueError for lists of unequal length.
    """
    off, said = 0.0, []
    for name, (measured, law) in over_tokens.items():
        _check_lengths(tokens=tokens, floor=floor, **{f"measured {name}": measured, f"law {name}": law})
        off = max(off, *(abs(cv / lawful - 1) for cv, lawful in zip(measured, law, strict=True)))
        said.append(f"with {name} from {measured[0]:.2f} at {tokens[0]} tokens to {measured[-1]:.3f} at {tokens[-1]:,}")
    return (
        f"The cv of fresh batches over their tokens: {'; '.join(said)}. The noise floor there is {floor[-1]:.3f}. "
        f"All within {off:.0%} of the law."
    )


def draw_gains(padding: dict[str, dict[str, float]], step: dict[str, float]) -> Figure:
    """Draw padded rows in percent, a group of bars a size and a bar a router; and the step's length on many devices.

    Example:
        >>> fig = draw_gains({"64 experts": {"top_k": 12.9, "balanced": 0.0}}, {"top_k": 1.65, "balanced": 1.0})
        >>> [text.get_text() for text in fig.axes[0].texts], [text.get_text() for text in fig.axes[1].texts]
        (['12.9%', '0.0%'], ['1.65', '1.00'])

    Raises ValueError for sizes or steps with other routers.
    """
    routers = list(step)
    for size, values in padding.items():
        if list(values) != routers:
            raise ValueError(f"padding of {size} must have the routers {routers}, got {list(values)}")
    fig, (left, right) = new_figure(7.4, 2.6, columns=2, width_ratios=(1.3, 1))
    for number, name in enumerate(routers):
        look = {"color": colour(number), "hatch": hatch(number), "edgecolor": "black", "linewidth": 0.5}
        for group, values in enumerate(padding.values()):
            place = group * (len(routers) + 1) + number
            left.bar(place, values[name], width=0.9, label=name if group == 0 else None, **look)
            left.annotate(f"{values[name]:.1f}%", (place, values[name]), ha="center", va="bottom", fontsize=9)
        right.bar(number, step[name], width=0.8, **look)
        right.annotate(f"{step[name]:.2f}", (number, step[name]), ha="center", va="bottom", fontsize=10)
    middle = (len(routers) - 1) / 2
    left.set_xticks([group * (len(routers) + 1) + middle for group in range(len(padding))], list(padding))
    left.set(ylabel="% of rows padded", ylim=(0, 1.15 * max(max(values.values()) for values in padding.values()) + 0.1))
    right.set_xticks(range(len(routers)), routers, fontsize=9)
    right.set(ylabel="step, in even steps", ylim=(0, 1.15 * max(step.values())))
    for axes in (left, right):
        axes.grid(axis="x", visible=False)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(routers), frameon=False)
    return finish(fig)


def say_gains(padding: dict[str, dict[str, float]], step: dict[str, float]) -> str:
    """The finding of `draw_gains` as a sentence: every bar.

    Example:
        >>> say_gains({"64 experts": {"top_k": 12.9, "balanced": 0.0}}, {"top_k": 1.65, "balanced": 1.0})
        'Left, percent of rows padded. 64 experts: top_k 12.9, balanced 0.0. Right, the step in even steps: top_k \
1.65, balanced 1.00.'
    """
    sizes = [
        f"{size}: " + ", ".join(f"{name} {value:.1f}" for name, value in row.items()) for size, row in padding.items()
    ]
    steps = ", ".join(f"{name} {value:.2f}" for name, value in step.items())
    return f"Left, percent of rows padded. {'; '.join(sizes)}. Right, the step in even steps: {steps}."


def _name_ends(axes: Axes, ends: list[tuple[float | int, float, str]]) -> None:
    """Write names beside the last points of lines (across, height, name), upwards where they would cover each other."""
    axes.figure.canvas.draw()  # places are known only now
    lowest = float("-inf")
    for across, height, name in sorted(ends, key=lambda end: end[1]):
        _, place = axes.transData.transform((across, height))
        up = max(place, lowest + 15) - place
        lowest = place + up
        offset = (6, up * 72 / axes.figure.dpi)
        axes.annotate(name, (across, height), offset, textcoords="offset points", va="center", fontsize=10)


def _ticks(axes: Axes, values: list[int]) -> None:
    """Ticks at these values and nowhere else, written as whole numbers."""
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _check_lengths(**series: Sequence) -> None:
    """Refuse series of unequal length, by name."""
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(series)} must have one length, got {', '.join(map(str, lengths.values()))}")
