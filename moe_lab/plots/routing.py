"""Figures of routing: one token's scores, who goes where, loads and overflow, and all methods side by side."""

import torch
from jaxtyping import Bool, Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from moe_lab.plots.style import SEQUENTIAL, colour, finish, hatch, new_figure
from moe_lab.types import Routing

PLAIN, CHOSEN, LOST = 0, 1, 5  # numbers of colours and patterns: blue, orange, vermilion
SHOWN = {" ": "\N{MIDDLE DOT}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}


def draw_scores(logits: Float[Tensor, " num_experts"], top_k: int) -> Figure:
    """Draw one token's logits, softmax and sigmoid side by side, its ``top_k`` highest logits marked.

    Example:
        >>> fig = draw_scores(torch.tensor([2.0, 0.0, 1.0]), top_k=1)
        >>> [axes.get_title() for axes in fig.axes]
        ['logits', 'softmax', 'sigmoid']

    Raises ValueError for a ``top_k`` outside ``1..num_experts``.
    """
    if not 1 <= top_k <= len(logits):
        raise ValueError(f"top_k must lie in 1..{len(logits)} (num_experts), got {top_k}")
    order = logits.argsort(descending=True, stable=True)  # equal logits as `route` has them: the lower expert first
    scores = {"logits": logits, "softmax": logits.softmax(0), "sigmoid": logits.sigmoid()}
    fig, panels = new_figure(8.0, 3.0, columns=3)
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        for label, experts, look in (("chosen", order[:top_k], CHOSEN), ("not chosen", order[top_k:], PLAIN)):
            _bars(axes, experts, values[experts], look, label)
        axes.set_title(name)
    panels[0].axhline(0, color="black", linewidth=0.8)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return finish(fig)


def draw_assignments(routing: Routing, labels: list[str]) -> Figure:
    """Draw tokens across and experts down; a digit ranks the experts of a token, the shade is the weight.

    Example:
        >>> routing = Routing(torch.tensor([[2, 0], [1, -1]]), torch.tensor([[0.7, 0.3], [1.0, 0.0]]), 3)
        >>> [(text.get_position(), text.get_text()) for text in draw_assignments(routing, ["a", "b"]).axes[0].texts]
        [((0, 2), '1'), ((0, 0), '2'), ((1, 1), '1')]

    Raises ValueError for another number of labels than tokens.
    """
    if len(labels) != routing.tokens:
        raise ValueError(f"labels must be one for each of {routing.tokens} tokens, got {len(labels)}")
    most = float(routing.weights.max())
    grid = torch.full((routing.num_experts, routing.tokens), float("nan"))
    fig, axes = new_figure(8.0, 1.0 + 0.2 * routing.num_experts)
    for token, (experts, weights) in enumerate(zip(routing.experts.tolist(), routing.weights.tolist(), strict=True)):
        for rank, (expert, weight) in enumerate(zip(experts, weights, strict=True), 1):
            if expert >= 0:
                grid[expert, token] = weight
                ink = "white" if weight < 0.5 * most else "black"
                axes.text(token, expert, str(rank), color=ink, ha="center", va="center", fontsize=9)
    image = axes.imshow(grid.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=most, aspect="auto")
    axes.set_xticks(range(routing.tokens), [SHOWN.get(label, label) for label in labels], family="monospace")
    axes.set_yticks(range(routing.num_experts))
    axes.tick_params(labelsize=9)
    axes.grid(visible=False)
    axes.set(xlabel="token", ylabel="expert")
    fig.colorbar(image, label="weight", pad=0.01)
    return finish(fig)


def draw_loads(loads: dict[str, Int64[Tensor, " num_experts"]]) -> Figure:
    """Draw a panel a method: assignments of every expert as bars, their mean as a dashed line.

    Example:
        >>> fig = draw_loads({"top_k": torch.tensor([3, 1]), "base": torch.tensor([2, 2])})
        >>> [[int(bar.get_height()) for bar in axes.patches] for axes in fig.axes]
        [[3, 1], [2, 2]]

    Raises ValueError for no load at all.
    """
    if not loads:
        raise ValueError("loads must hold at least one load, got none")
    fig, panels = new_figure(8.0, 2.8, columns=len(loads), sharey=True, squeeze=False)
    for axes, (name, load) in zip(panels[0], loads.items(), strict=True):
        _bars(axes, torch.arange(len(load)), load, PLAIN, None)
        mean = float(load.double().mean())
        axes.axhline(mean, color="black", linestyle="--", linewidth=1.2, label=f"mean {mean:g}")
        axes.set_title(f"{name}: highest {int(load.max())}")
    panels[0, 0].set_ylabel("assignments")
    fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right")
    return finish(fig)


def draw_overflow(asked: Int64[Tensor, " num_experts"], kept: Int64[Tensor, " num_experts"], capacity: int) -> Figure:
    """Draw what each expert was asked for: the part it kept, and above it the part that was dropped.

    Example:
        >>> fig = draw_overflow(torch.tensor([5, 1]), torch.tensor([3, 1]), capacity=3)
        >>> [(int(bar.get_y()), int(bar.get_height())) for bar in fig.axes[0].patches]
        [(0, 3), (0, 1), (3, 2), (1, 0)]

    Raises ValueError for an expert that kept more than it was asked for, or more than its capacity.
    """
    if bool((kept > asked).any()) or int(kept.max()) > capacity:
        raise ValueError(f"kept must be at most asked and at most capacity={capacity}, got {kept.tolist()}")
    fig, axes = new_figure(7.0, 2.8)
    experts = torch.arange(len(asked))
    _bars(axes, experts, kept, PLAIN, f"kept ({int(kept.sum())})")
    _bars(axes, experts, asked - kept, LOST, f"dropped ({int((asked - kept).sum())})", bottom=kept)
    axes.axhline(capacity, color="black", linestyle="--", linewidth=1.2, label=f"capacity {capacity}")
    axes.set_xticks(experts)
    axes.set_ylabel("tokens")
    fig.legend(loc="outside upper center", ncols=3)
    return finish(fig)


def draw_text(text: str, marked: Bool[Tensor, " tokens"], columns: int = 64) -> Figure:
    """Draw a text in lines of ``columns`` characters, each marked one bold and in a box.

    Example:
        >>> fig = draw_text("abcd", torch.tensor([False, True, False, True]), columns=2)
        >>> [box.get_xy() for box in fig.axes[0].patches]
        [(0.5, -0.5), (0.5, 0.5)]

    Raises ValueError for another number of marks than characters.
    """
    if len(text) != len(marked):
        raise ValueError(f"marked must be one for each of {len(text)} characters, got {len(marked)}")
    lines = -(-len(text) // columns)
    fig, axes = new_figure(8.0, 0.3 + 0.3 * lines)
    for token, (letter, mark) in enumerate(zip(text, marked.tolist(), strict=True)):
        line, column = divmod(token, columns)
        if mark:
            axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, facecolor=colour(CHOSEN), edgecolor="black"))
        ink, weight = ("black", "bold") if mark else ("dimgrey", "normal")
        shown = SHOWN.get(letter, letter)
        axes.text(
            column, line, shown, color=ink, weight=weight, family="monospace", fontsize=10, ha="center", va="center"
        )
    axes.set(xlim=(-0.6, min(columns, len(text)) - 0.4), ylim=(lines - 0.4, -0.6))
    axes.axis("off")
    return finish(fig)


def draw_service(routing: Routing) -> Figure:
    """Draw how many tokens have no expert, one expert, two, and so on.

    Example:
        >>> routing = Routing(torch.tensor([[2, 0], [1, -1], [-1, -1]]), torch.zeros(3, 2), 3)
        >>> [int(bar.get_height()) for bar in draw_service(routing).axes[0].patches]
        [1, 1, 1]
    """
    counts = torch.bincount((routing.experts >= 0).sum(dim=1), minlength=routing.slots + 1)
    fig, axes = new_figure(7.0, 2.6)
    _bars(axes, torch.arange(len(counts)), counts, PLAIN, None)
    for experts, tokens in enumerate(counts.tolist()):
        axes.annotate(str(tokens), (experts, tokens), ha="center", va="bottom", fontsize="small")
    axes.set(xlabel="experts that a token got", ylabel="tokens", ylim=(0, 1.12 * int(counts.max())))
    axes.set_xticks(range(len(counts)))
    return finish(fig)


def draw_methods(cv: dict[str, float], noise_floor: dict[str, float]) -> Figure:
    """Draw the cv of every method's load as a bar, and as a diamond the cv that chance alone would leave.

    Example:
        >>> fig = draw_methods({"top_k": 1.2, "base": 0.0}, {"top_k": 0.2, "base": 0.3})
        >>> [float(bar.get_width()) for bar in fig.axes[0].patches]
        [1.2, 0.0]

    Raises ValueError for methods that differ.
    """
    if list(cv) != list(noise_floor):
        raise ValueError(f"noise_floor must have the methods of cv, {', '.join(cv)}; got {', '.join(noise_floor)}")
    fig, axes = new_figure(7.0, 0.8 + 0.27 * len(cv))
    places = range(len(cv))
    axes.barh(places, cv.values(), color=colour(PLAIN), edgecolor="black", linewidth=0.5, label="cv of the load")
    look = {"color": colour(CHOSEN), "marker": "D", "linestyle": "", "markeredgecolor": "black", "zorder": 3}
    axes.plot(noise_floor.values(), places, label="noise floor", **look)
    axes.set_yticks(places, [f"{name}  {value:.2f}" for name, value in cv.items()])
    axes.set(xlabel="coefficient of variation (cv) of the load", xlim=(0, None))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=2)
    return finish(fig)


def _bars(axes: Axes, experts: Tensor, heights: Tensor, look: int, label: str | None, bottom: Tensor | int = 0) -> None:
    """Bars over expert numbers, in a colour and its pattern."""
    bottom = bottom.tolist() if isinstance(bottom, Tensor) else bottom
    box = {"color": colour(look), "hatch": hatch(look), "edgecolor": "black", "linewidth": 0.5}
    axes.bar(experts.tolist(), heights.tolist(), bottom=bottom, label=label, **box)
    axes.set_xlabel("expert")
    axes.grid(axis="x", visible=False)
