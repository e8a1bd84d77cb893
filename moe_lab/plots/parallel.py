"""Figures of expert parallelism: bytes from rank to rank, each rank's time and the slowest, time over more ranks."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from moe_lab.plots.style import MARKERS, SEQUENTIAL, colour, finish, hatch, new_figure

LINES = ("-", "--", "-.", ":")
OTHER, SLOWEST = 0, 5  # numbers of colours: blue, vermilion
MOST_NUMBERED = 16  # ranks of which every field still has room for its number
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


def draw_bytes(sent: Int64[Tensor, "ranks ranks"]) -> Figure:
    """Draw who sends how much to whom: rows send, columns receive; what stays in its rank is hatched.

    Colours are of what crosses a link; up to 16 ranks each field has its number.

    Example:
        >>> import torch
        >>> fig = draw_bytes(torch.tensor([[9000, 2000], [4000, 0]]))
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[1].get_ylabel()
        (['9', '2', '4', '0'], 'kB')

    Raises ValueError for fewer than two ranks.
    """
    ranks, (scale, unit) = _check_ranks(sent), _unit(int(_crossing(sent).max()))
    fig, axes = new_figure(5.2, 3.9)
    values, top = sent.double() / scale, max(float(_crossing(sent).max()) / scale, 1e-9)
    image = axes.imshow(values.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=top)
    for rank in range(ranks):
        look = {"facecolor": "white", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((rank - 0.5, rank - 0.5), 1, 1, **look))
        for to in range(ranks) if ranks <= MOST_NUMBERED else ():
            value = float(values[rank, to])
            dark = rank != to and value < 0.55 * top
            box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"} if rank == to else None
            text = f"{value:.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"
            place = {"ha": "center", "va": "center", "fontsize": 11 if ranks <= 8 else 8, "bbox": box}
            axes.text(to, rank, text, color="white" if dark else "black", **place)
    axes.set(xlabel="to rank", ylabel="from rank")
    axes.grid(visible=False)
    if ranks <= MOST_NUMBERED:
        axes.set_xticks(range(ranks))
        axes.set_yticks(range(ranks))
    fig.colorbar(image, ax=axes, label=unit)
    return finish(fig)


def say_bytes(sent: Int64[Tensor, "ranks ranks"]) -> str:
    """The finding of `draw_bytes` as a sentence: what crosses links, the busiest sender and receiver, and the mean.

    Example:
        >>> import torch
        >>> print(say_bytes(torch.tensor([[9000, 2000], [4000, 0]])))
        Bytes from 2 ranks to 2: 6 kB cross links, 3 kB a rank. Most is sent by rank 1, 4 kB, and received by rank 0, \
4 kB.

    Raises ValueError for fewer than two ranks.
    """
    ranks, crossing = _check_ranks(sent), _crossing(sent)
    out, into = crossing.sum(dim=1), crossing.sum(dim=0)
    return (
        f"Bytes from {ranks} ranks to {ranks}: {_say_bytes(int(crossing.sum()))} cross links, "
        f"{_say_bytes(int(crossing.sum()) / ranks)} a rank. Most is sent by rank {int(out.argmax())}, "
        f"{_say_bytes(int(out.max()))}, and received by rank {int(into.argmax())}, {_say_bytes(int(into.max()))}."
    )


def draw_rank_times(times: Mapping[str, Float[Tensor, " ranks"]]) -> Figure:
    """Draw a panel a name: a bar a rank, the slowest in another colour and pattern, a dotted line at the mean.

    Panels share their axis of milliseconds. The times are predictions, and the axis says so.

    Example:
        >>> import torch
        >>> fig = draw_rank_times({"even": torch.tensor([2.0, 2.0]).double(), "hot": torch.tensor([3.0, 1.0]).double()})
        >>> [axes.get_title() for axes in fig.axes], fig.axes[1].texts[0].get_text()
        (['even', 'hot'], 'rank 0: 3.00 ms')

    Raises ValueError for no name.
    """
    _check_some("times", times)
    fig, panels = new_figure(7.6, 3.2, columns=len(times), sharey=True, squeeze=False)
    top = max(float(one.max()) for one in times.values())
    for axes, (name, by_rank) in zip(panels[0], times.items(), strict=True):
        slowest = int(by_rank.argmax())
        for rank, value in enumerate(by_rank.tolist()):
            kind = SLOWEST if rank == slowest else OTHER
            axes.bar(rank, value, width=0.8, color=colour(kind), hatch=hatch(kind) if rank == slowest else "")
        axes.axhline(float(by_rank.mean()), color="black", linestyle=":", linewidth=1.4)
        text, side = f"rank {slowest}: {by_rank.max():.2f} ms", "left" if slowest < len(by_rank) / 2 else "right"
        axes.annotate(text, (slowest, float(by_rank.max())), (0, 3), textcoords="offset points", ha=side, fontsize=10)
        axes.set(xlabel="rank", title=name, ylim=(0, 1.15 * top))
        axes.grid(axis="x", visible=False)
    panels[0][0].set_ylabel("ms, predicted")
    return finish(fig)


def say_rank_times(times: Mapping[str, Float[Tensor, " ranks"]]) -> str:
    """The finding of `draw_rank_times` as a sentence: for each name the mean, the slowest and their ratio.

    Example:
        >>> import torch
        >>> say_rank_times({"hot": torch.tensor([3.0, 1.0]).double()})
        'Predicted time by rank. hot: mean 2.00 ms, rank 0 is slowest with 3.00 ms, 1.50 times the mean.'

    Raises ValueError for no name.
    """
    _check_some("times", times)
    said = []
    for name, by_rank in times.items():
        mean, most = float(by_rank.mean()), float(by_rank.max())
        ratio = f", {most / mean:.2f} times the mean" if mean else ""
        said.append(f"{name}: mean {mean:.2f} ms, rank {int(by_rank.argmax())} is slowest with {most:.2f} ms{ratio}.")
    return " ".join(["Predicted time by rank.", *said])


def draw_over_ranks(lines: Mapping[str, Sequence[tuple[int, float | int]]], what: str = "ms, predicted") -> Figure:
    """Draw (ranks, milliseconds) of several clusters over the number of ranks, both logarithmic.

    Example:
        >>> fig = draw_over_ranks({"fast": [(8, 1.0), (16, 1.1)], "slow": [(8, 2.0)]})
        >>> [text.get_text() for text in fig.legends[0].get_texts()]
        ['fast', 'slow']

    Raises ValueError for no line.
    """
    _check_some("lines", lines)
    fig, axes = new_figure(7.2, 3.6)
    for number, (name, points) in enumerate(lines.items()):
        look = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)], "markersize": 6}
        axes.plot(*zip(*points, strict=True), label=name, color=colour(number), markeredgecolor="black", **look)
    axes.set(xscale="log", yscale="log", xlabel="ranks that share the experts", ylabel=what)
    ticks = sorted({ranks for points in lines.values() for ranks, _ in points})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    low, high = axes.get_ylim()
    rounded = [lead * 10.0**power for power in range(-4, 6) for lead in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in rounded if low <= tick <= high]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e4 else f"{value:,.0f}")
    fig.legend(loc="outside upper center", ncols=min(4, len(lines)), frameon=False)
    return finish(fig)


def say_over_ranks(lines: Mapping[str, Sequence[tuple[int, float | int]]]) -> str:
    """The finding of `draw_over_ranks` as a sentence: each line's two ends.

    Example:
        >>> say_over_ranks({"fast": [(8, 1.0), (16, 1.1)], "slow": [(8, 2.0)]})
        'Predicted time over ranks. fast: 1.00 ms with 8, 1.10 with 16. slow: 2.00 ms with 8.'

    Raises ValueError for no line.
    """
    _check_some("lines", lines)
    said = []
    for name, points in lines.items():
        (first, start), (last, end) = points[0], points[-1]
        more = f", {end:.2f} with {last:,}" if last != first else ""
        said.append(f"{name}: {start:.2f} ms with {first:,}{more}.")
    return " ".join(["Predicted time over ranks.", *said])


def _crossing(sent: Tensor) -> Tensor:
    """What crosses a link: everything but the diagonal."""
    return sent - sent.diagonal().diag()


def _unit(most: int) -> tuple[float, str]:
    return next((scale, unit) for scale, unit in UNITS if most >= scale or unit == "bytes")


def _say_bytes(count: float | int) -> str:
    scale, unit = _unit(int(count))
    return f"{count / scale:.3g} {unit}"


def _check_ranks(sent: Tensor) -> int:
    if len(sent) < 2:
        raise ValueError(f"sent must be of at least two ranks, got {len(sent)}")
    return len(sent)


def _check_some(name: str, values: Mapping) -> None:
    if not values:
        raise ValueError(f"{name} must hold at least one, got none")
