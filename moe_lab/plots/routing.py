"""Figures of routing: one token's scores, who goes where, loads, what was dropped, and all methods side by side."""

import torch
from jaxtyping import Bool, Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from moe_lab.plots.style import colour, finish, hatch, new_figure
from moe_lab.types import Routing

CHOSEN, OTHER, LIMIT = 1, 0, 5  # numbers of the colours: orange, blue, vermilion


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
    fig, panels = new_figure(width=8.0, height=2.8, columns=3)
    chosen = set(logits.argsort(descending=True, stable=True)[:top_k].tolist())
    scores = {"logits": logits, "softmax": logits.softmax(0), "sigmoid": logits.sigmoid()}
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        for expert, value in enumerate(values.tolist()):
            look = CHOSEN if expert in chosen else OTHER
            label = ("chosen" if look == CHOSEN else "not chosen") if expert == len(logits) - 1 else None
            axes.bar(
                expert, value, color=colour(look), hatch=hatch(look), edgecolor="black", linewidth=0.5, label=label
            )
        axes.set(title=name, xlabel="expert")
        axes.set_xticks(range(0, len(logits), max(1, len(logits) // 5)))
        axes.grid(axis="x", visible=False)
    return finish(fig)
