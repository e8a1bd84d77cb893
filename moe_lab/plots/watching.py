"""Figures of a watched model: loads of every layer and expert, and how uneven they are beside chance."""

import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from moe_lab.plots.style import SEQUENTIAL, colour, finish, new_figure

MARKED = 4096
"""Most cells of a heat map in which single experts are still marked."""


def draw_loads(names: list[str], loads: list[Int64[Tensor, " _"]]) -> Figure:
    """Draw loads as a heat map, a row a layer and a column an expert: assignments over the mean of the layer.

    A cross marks an expert without any, a ring the busiest of its layer.

    Example:
        >>> fig = draw_loads(["layers.0.mlp", "layers.1.mlp"], [torch.tensor([4, 0]), torch.tensor([3, 1])])
        >>> fig.axes[0].images[0].get_array().tolist(), [t.get_text() for t in fig.axes[0].get_yticklabels()]
        ([[2.0, 0.0], [1.5, 0.5]], ['0', '1'])

    Raises ValueError for no layers, or another number of names.
    """
    relative = relative_loads(names, loads)
    layers, experts = relative.shape
    fig, axes = new_figure(min(11.0, max(5.0, 0.22 * experts + 2.4)), min(12.0, 0.24 * layers + 1.6))
    top = max(1.0, float(relative.nan_to_num(0.0).max()))
    picture = axes.imshow(relative.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    fig.colorbar(picture, ax=axes, label="load / mean")
    if layers * experts <= MARKED:
        down, across = (relative == 0).nonzero().T.tolist()
        busiest = relative.nan_to_num(-1.0).argmax(dim=1)
        axes.scatter(across, down, marker="x", s=22, color="white", linewidths=1.2)
        there = [row for row in range(layers) if float(relative[row].nan_to_num(0.0).sum())]
        for ink, width in (("white", 3.0), ("black", 1.2)):  # seen on dark cells and on bright ones
            ring = {"marker": "o", "s": 36, "facecolors": "none", "edgecolors": ink, "linewidths": width}
            axes.scatter(busiest[there].tolist(), there, **ring)
    every = -(-layers // 40)
    axes.set_yticks(range(0, layers, every), short_names(names)[::every])
    axes.set(xlabel="expert", ylabel="layer")
    axes.grid(visible=False)
    return finish(fig)


def say_loads(names: list[str], loads: list[Int64[Tensor, " _"]]) -> str:
    """What `draw_loads` shows, in words.

    Example:
        >>> for sentence in say_loads(["0.mlp", "1.mlp"], [torch.tensor([4, 0]), torch.tensor([3, 1])]).split(". "):
        ...     print(sentence)
        Heat map of load over the layer's mean, 2 layers by 2 experts
        The busiest is expert 0 of 0.mlp with 2.00 times it
        Without a token: 1 of 4 experts, most of them in 0.mlp, 1 of 2.
    """
    relative = relative_loads(names, loads)
    many = sorted({len(load) for load in loads})
    shape = f"{len(names)} layer{'s' * (len(names) > 1)} by {' to '.join(map(str, many[:: max(1, len(many) - 1)]))}"
    words = f"Heat map of load over the layer's mean, {shape} experts."
    if not sum(int(load.sum()) for load in loads):
        return f"{words} No token was seen."
    layer, expert = divmod(int(relative.nan_to_num(-1.0).argmax()), relative.shape[1])
    words += (
        f" The busiest is expert {expert} of {_brief(names[layer])} with {float(relative[layer, expert]):.2f} times it."
    )
    dead = [int((load == 0).sum()) for load in loads]
    if not sum(dead):
        return f"{words} Every expert had a token."
    worst = max(range(len(dead)), key=dead.__getitem__)
    most = f"most of them in {_brief(names[worst])}, {dead[worst]} of {len(loads[worst])}"
    return f"{words} Without a token: {sum(dead)} of {sum(map(len, loads))} experts, {most}."


def draw_unevenness(names: list[str], cvs: list[float], chance: list[float]) -> Figure:
    """Draw the cv of every layer's load, and the one that fair lots would leave, over the layers.

    Example:
        >>> fig = draw_unevenness(["layers.0.mlp", "layers.1.mlp"], [0.5, 0.2], [0.1, 0.1])
        >>> [line.get_label() for line in fig.axes[0].lines]
        ['measured', 'fair lots']

    Raises ValueError for no layers, or another number of values.
    """
    _check(names, cvs)
    _check(names, chance)
    fig, axes = new_figure(min(11.0, max(5.0, 0.3 * len(names) + 2.4)), 2.8)
    across = range(len(names))
    axes.plot(across, cvs, color=colour(0), marker="o", label="measured")
    axes.plot(across, chance, color="0.5", linestyle="--", marker="s", markerfacecolor="none", label="fair lots")
    every = -(-len(names) // 40)
    axes.set_xticks(range(0, len(names), every), short_names(names)[::every])
    axes.set(xlabel="layer", ylabel="cv of the load", ylim=(0, None))
    axes.legend(frameon=False)
    return finish(fig)


def say_unevenness(names: list[str], cvs: list[float], chance: list[float]) -> str:
    """What `draw_unevenness` shows, in words.

    Example:
        >>> print(say_unevenness(["0.mlp", "1.mlp"], [0.5, 0.09], [0.1, 0.1]))
        Cv of the load, 2 layers: from 0.090 in 1.mlp to 0.500 in 0.mlp; above that of fair lots in 1 of them.
    """
    _check(names, cvs)
    low, high = min(range(len(cvs)), key=cvs.__getitem__), max(range(len(cvs)), key=cvs.__getitem__)
    above = sum(cv > fair for cv, fair in zip(cvs, chance, strict=True))
    layers = f"{len(cvs)} layer{'s' * (len(cvs) > 1)}"
    ends = f"from {cvs[low]:.3f} in {_brief(names[low])} to {cvs[high]:.3f} in {_brief(names[high])}"
    return f"Cv of the load, {layers}: {ends}; above that of fair lots in {above} of them."


def relative_loads(names: list[str], loads: list[Int64[Tensor, " _"]]) -> Float[Tensor, "layers experts"]:
    """Loads over their layer's mean, NaN behind the last expert of a layer that has fewer than another one.

    Example:
        >>> relative_loads(["a", "b"], [torch.tensor([1, 3, 2]), torch.tensor([1, 3])]).tolist()
        [[0.5, 1.5, 1.0], [0.5, 1.5, nan]]
    """
    _check(names, loads)
    relative = torch.full((len(loads), max(map(len, loads))), float("nan"), dtype=torch.float64)
    for row, load in zip(relative, loads, strict=True):
        row[: len(load)] = load / load.double().mean().clamp_min(1e-300)
    return relative


def short_names(names: list[str]) -> list[str]:
    """What tells paths apart: without the parts that all of them share.

    Example:
        >>> short_names(["model.layers.0.mlp.experts", "model.layers.11.mlp.experts"])
        ['0', '11']
    """
    parts = [name.split(".") for name in names]
    if len(set(map(len, parts))) > 1 or len(set(names)) < 2:
        return [_brief(name) for name in names]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return [".".join(part for part, shown in zip(path, differ, strict=True) if shown) for path in parts]


def _brief(name: str) -> str:
    return name if len(name) <= 40 else f"...{name[-37:]}"


def _check(names: list[str], values: list) -> None:
    if not names or len(names) != len(values):
        raise ValueError(f"there must be a name a layer, and at least one, got {len(names)} for {len(values)} layers")
