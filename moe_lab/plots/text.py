"""Figures of lesson 00: where the bytes of a text go."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from moe_lab.plots.style import colour, finish, hatch, new_figure
from moe_lab.types import Routing


def experts_by_byte(routings: list[Routing], pieces: list[str], slot: int = 0) -> Figure:
    """One row a layer, one column a byte: the expert that each byte visits as its choice number ``slot``.

    Example:
        >>> routing = Routing(torch.tensor([[3], [1]]), torch.ones(2, 1), num_experts=4)
        >>> [text.get_text() for text in experts_by_byte([routing, routing], ["h", "i"]).axes[0].texts]
        ['3', '1', '3', '1']

    Raises ValueError where pieces and tokens differ in number.
    """
    if any(routing.tokens != len(pieces) for routing in routings):
        raise ValueError(f"pieces must be one a token, got {len(pieces)} for {[r.tokens for r in routings]} tokens")
    fig, axes = new_figure(width=max(4.0, 0.27 * len(pieces) + 1.2), height=0.34 * len(routings) + 0.9)
    for layer, routing in enumerate(routings):
        for byte, expert in enumerate(routing.experts[:, slot].tolist()):
            axes.add_patch(
                FancyBboxPatch(
                    (byte - 0.42, layer - 0.4),
                    width=0.84,
                    height=0.8,
                    boxstyle="square,pad=0",
                    facecolor=colour(expert) + "55",  # see-through, so that the number stays readable on every colour
                    edgecolor="#666666",
                    linewidth=0.5,
                    hatch=hatch(expert),
                )
            )
            axes.text(
                byte,
                layer,
                str(expert),
                ha="center",
                va="center",
                fontsize=9,
                bbox=dict(facecolor="white", pad=1.0, lw=0),
            )
    axes.set_xlim(-0.6, len(pieces) - 0.4)
    axes.set_ylim(len(routings) - 0.4, -0.6)
    axes.set_xticks(range(len(pieces)), pieces, family="monospace")
    axes.set_yticks(range(len(routings)), [f"layer {layer}" for layer in range(len(routings))])
    axes.tick_params(length=0)
    axes.grid(False)
    return finish(fig)


def loads_by_layer(routings: list[Routing]) -> Figure:
    """Bars of every expert's load, a panel a layer, with the mean as a line.

    Example:
        >>> routing = Routing(torch.tensor([[3], [1], [1]]), torch.ones(3, 1), num_experts=4)
        >>> [int(bar.get_height()) for bar in loads_by_layer([routing]).axes[0].patches]
        [0, 2, 0, 1]
    """
    fig, panels = new_figure(7.5, 2.2, columns=len(routings), sharey=True, squeeze=False)
    for layer, (routing, axes) in enumerate(zip(routings, panels[0], strict=True)):
        load = routing.load.tolist()
        bars = axes.bar(range(routing.num_experts), load, edgecolor="black", linewidth=0.4)
        for expert, bar in enumerate(bars):
            bar.set(facecolor=colour(expert), hatch=hatch(expert))
        mean = sum(load) / len(load)
        axes.axhline(mean, color="black", linestyle="--", linewidth=1)
        axes.set(title=f"layer {layer}", xlabel="expert", xlim=(-0.7, routing.num_experts - 0.3))
        axes.set_xticks(range(0, routing.num_experts, 5))
    panels[0][0].set_ylabel("assignments")
    return finish(fig)


def learning_curve(losses: list[float], validation: list[list], window: int = 25) -> Figure:
    """Training loss, averaged over ``window`` steps, and validation loss, in nats a byte.

    Example:
        >>> curve = learning_curve([5.5, 4.5, 3.5, 2.5], [[2, 4.6], [4, 3.1]], window=2)
        >>> curve.axes[0].lines[0].get_ydata().tolist()
        [5.0, 4.0, 3.0]

    Raises ValueError for fewer losses than the window.
    """
    if len(losses) < window:
        raise ValueError(f"losses must number at least window={window}, got {len(losses)}")
    fig, axes = new_figure(height=2.8)
    smooth = torch.tensor(losses, dtype=torch.float64).unfold(0, window, 1).mean(dim=1)
    axes.plot(range(window, len(losses) + 1), smooth.numpy(), label=f"training, mean of {window} steps")
    steps, values = zip(*validation, strict=True)
    axes.plot(steps, values, "s--", label="held-out files")
    axes.set(xlabel="step", ylabel="loss (nats a byte)", ylim=(0, None))
    axes.legend()
    return finish(fig)


def moe_diagram() -> Figure:
    """A byte's way through one MoE layer: the router picks two of the experts, and their answers are added up.

    Example:
        >>> [text.get_text() for text in moe_diagram().axes[0].texts][:2]
        ['one byte', 'router']
    """
    fig, axes = new_figure(7.2, 2.6)
    heights = [3.3, 2.1, 0.9, -0.3]

    def box(x: float, y: float, words: str, chosen: bool, wide: float = 1.5) -> None:
        style = dict(facecolor=colour(4) if chosen else "white", edgecolor="black" if chosen else "#999999")
        axes.add_patch(FancyBboxPatch((x, y), wide, 0.8, boxstyle="round,pad=0.05", linewidth=1.2, **style))
        axes.text(x + wide / 2, y + 0.4, words, ha="center", va="center", color="black" if chosen else "#666666")

    def arrow(start: tuple, end: tuple, words: str = "", chosen: bool = True) -> None:
        line = dict(linestyle="-" if chosen else ":", color="black" if chosen else "#999999")
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, **line))
        if words:
            axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, words, ha="center", va="bottom")

    box(0.0, 1.5, "one byte", True)
    box(2.2, 1.5, "router", True)
    arrow((1.6, 1.9), (2.15, 1.9))
    names = ["expert 0", "expert 1", "expert 2", "... 15"]
    for y, name, weight in zip(heights, names, ["0.7", "", "0.3", ""], strict=True):
        box(5.0, y, name, bool(weight))
        arrow((3.8, 1.9), (4.9, y + 0.4), weight, bool(weight))
        if weight:
            arrow((6.6, y + 0.4), (7.9, 1.9))
    box(8.0, 1.5, "weighted sum", True, wide=2.0)
    axes.set(xlim=(-0.2, 10.3), ylim=(-0.6, 4.4))
    axes.axis("off")
    return finish(fig)
