"""Figures of what experts learn: bits beside chance, classes by expert, documents apart, experts left idle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from moe_lab.plots.style import MARKERS, SEQUENTIAL, colour, finish, hatch, new_figure
from moe_lab.specialisation import Share

FOUND, CHANCE = 0, 1  # numbers of colours: blue, orange
MOST_NUMBERED = 170  # fields of a table that still have room for their numbers


@dataclass(frozen=True)
class Finding:
    """Bits that were found, their confidence interval, and the interval of chance; either may be unknown."""

    name: str
    found: float
    interval: tuple[float, float] | None = None
    chance: tuple[float, float] | None = None


def draw_findings(findings: Sequence[Finding]) -> Figure:
    """Draw a bar a finding with its confidence interval, and a hatched band over the range of chance.

    Bits are logarithmic, since chance is often a hundred times smaller: what touches its band is no finding.

    Example:
        >>> fig = draw_findings([Finding("byte", 2.5, (2.4, 2.6), (0.01, 0.02)), Finding("domain", 0.1)])
        >>> [text.get_text() for text in fig.axes[0].get_yticklabels()]
        ['byte', 'domain']

    Raises ValueError for no finding.
    """
    _check_some("findings", findings)
    fig, axes = new_figure(7.4, 0.5 * len(findings) + 1.3)
    floor = 0.5 * min(value for one in findings for value in (one.found, *(one.chance or ())) if value > 0)
    for row, one in enumerate(findings):
        axes.barh(row, one.found, height=0.55, color=colour(FOUND), label="found" if row == 0 else None)
        if one.interval is not None:
            low, high = max(one.interval[0], floor), one.interval[1]
            axes.plot([low, high], [row, row], color="black", linewidth=2, marker="|", markersize=10)
        if one.chance is not None:
            low, high = max(one.chance[0], floor), max(one.chance[1], floor)
            look = {"facecolor": colour(CHANCE), "edgecolor": "black", "hatch": hatch(CHANCE), "linewidth": 0.8}
            axes.add_patch(Rectangle((low, row - 0.38), max(high - low, 0.08 * low), 0.76, **look))
    axes.add_patch(Rectangle((0, -9), 0, 0, facecolor=colour(CHANCE), hatch=hatch(CHANCE), label="chance, 95 %"))
    axes.set(xscale="log", xlabel="bits, logarithmic", xlim=(floor, None), ylim=(len(findings) - 0.5, -0.5))
    axes.set_yticks(range(len(findings)), [one.name for one in findings])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    return finish(fig)


def say_findings(findings: Sequence[Finding]) -> str:
    """The finding of `draw_findings` as a sentence: bits, interval and chance of each.

    Example:
        >>> say_findings([Finding("byte", 2.5, (2.4, 2.6), (0.01, 0.02))])
        'Bits that experts say about labels. byte: 2.5, 95 % interval 2.4 to 2.6, chance 0.01 to 0.02.'

    Raises ValueError for no finding.
    """
    _check_some("findings", findings)
    said = []
    for one in findings:
        interval = f", 95 % interval {one.interval[0]:.2g} to {one.interval[1]:.2g}" if one.interval else ""
        chance = f", chance {one.chance[0]:.1g} to {one.chance[1]:.1g}" if one.chance else ""
        said.append(f"{one.name}: {one.found:.2g}{interval}{chance}.")
    return " ".join(["Bits that experts say about labels.", *said])


def draw_pointwise(
    points: Float[Tensor, "labels experts"], names: Sequence[str], as_chance: Bool[Tensor, "labels experts"]
) -> Figure:
    """Draw how many times as often as by chance each expert has each label, in doublings; "as chance" is hatched.

    Never together (-inf) says so, and a label that was never seen is left white.

    Example:
        >>> points = torch.tensor([[1.0, -float("inf")], [0.1, 0.0]]).double()
        >>> fig = draw_pointwise(points, ["digit", "space"], points.abs() < 0.5)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['1.0', 'never', '', '']

    Raises ValueError where there is not one name a label.
    """
    _check_names(points, names)
    labels, experts = points.shape
    fig, axes = new_figure(0.45 * experts + 2.2, 0.36 * labels + 1.3)
    shown = points.clamp(-4, 4)
    image = axes.imshow(shown.numpy(), cmap=SEQUENTIAL, vmin=-4, vmax=4, aspect="auto")
    for row in range(labels):
        for column in range(experts):
            value, plain = float(points[row, column]), bool(as_chance[row, column])
            if plain:
                look = {"facecolor": "none", "edgecolor": "white", "hatch": "////", "linewidth": 0}
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
            text = "" if plain or value != value else "never" if value == -float("inf") else f"{value:.1f}"
            place = {"ha": "center", "va": "center", "fontsize": 8, "color": "white" if value < 0.5 else "black"}
            if labels * experts <= MOST_NUMBERED:
                axes.text(column, row, text, **place)
    axes.set(xlabel="expert")
    axes.set_xticks(range(experts))
    axes.set_yticks(range(labels), names)
    axes.grid(visible=False)
    fig.colorbar(image, ax=axes, label="doublings")
    return finish(fig)


def say_pointwise(
    points: Float[Tensor, "labels experts"], names: Sequence[str], as_chance: Bool[Tensor, "labels experts"]
) -> str:
    """The finding of `draw_pointwise` as a sentence: the strongest pairs, and how many fields are as chance has them.

    Example:
        >>> points = torch.tensor([[1.5, -float("inf")], [0.1, 0.0]]).double()
        >>> say_pointwise(points, ["digit", "space"], points.abs() < 0.5)
        'Labels by expert, in doublings. Strongest: expert 0 with digit (2.8 times as often as by chance). 1 of 4 \
pairs never met, 2 are as chance has them.'

    Raises ValueError where there is not one name a label.
    """
    _check_names(points, names)
    experts, seen = points.shape[1], points.nan_to_num(nan=-100.0, neginf=-100.0).flatten()
    seen = seen.masked_fill(as_chance.flatten(), -100.0)
    top = [int(at) for at in seen.argsort(descending=True, stable=True)[:3] if seen[at] > 0]
    strongest = ", ".join(
        f"expert {at % experts} with {names[at // experts]} ({2 ** float(seen[at]):.1f} times as often as by chance)"
        for at in top
    )
    never = int((points == -float("inf")).sum())
    return (
        f"Labels by expert, in doublings. Strongest: {strongest or 'none'}. {never} of {points.numel()} pairs never "
        f"met, {int(as_chance.sum())} are as chance has them."
    )


def draw_apart(apart: Float[Tensor, "documents documents"], domains: Sequence[str]) -> Figure:
    """Draw how far the loads of every two documents are apart, with a frame around each domain.

    Documents come in the order of their domains.

    Example:
        >>> fig = draw_apart(torch.tensor([[0.0, 0.2], [0.2, 0.0]]).double(), ["code", "prose"])
        >>> len(fig.axes[0].patches), [text.get_text() for text in fig.axes[0].get_yticklabels()]
        (2, ['code', 'prose'])

    Raises ValueError where there is not one domain a document, or a domain comes in pieces.
    """
    blocks = _blocks(apart, domains)
    fig, axes = new_figure(6.0, 4.2)
    image = axes.imshow(apart.numpy(), cmap=SEQUENTIAL, vmin=0, aspect="auto")
    for start, end in blocks.values():
        look = {"facecolor": "none", "edgecolor": "white", "linewidth": 2.5}
        axes.add_patch(Rectangle((start - 0.5, start - 0.5), end - start, end - start, **look))
    middles = [(start + end - 1) / 2 for start, end in blocks.values()]
    axes.set_xticks(middles, blocks)
    axes.set_yticks(middles, blocks)
    axes.grid(visible=False)
    fig.colorbar(image, ax=axes, label="Jensen-Shannon divergence, bits")
    return finish(fig)


def say_apart(apart: Float[Tensor, "documents documents"], domains: Sequence[str]) -> str:
    """The finding of `draw_apart` as a sentence: the mean within each domain, and between domains.

    Example:
        >>> say_apart(torch.tensor([[0.0, 0.1, 0.4], [0.1, 0.0, 0.2], [0.4, 0.2, 0.0]]).double(), ["a", "a", "b"])
        'Divergence of loads of 3 documents, in bits. Between domains 0.300 on average; within a 0.100.'

    Raises ValueError where there is not one domain a document, or a domain comes in pieces.
    """
    blocks = _blocks(apart, domains)
    named = torch.tensor([list(blocks).index(domain) for domain in domains])
    between = apart[named[:, None] != named[None, :]]
    within = []
    for name, (start, end) in blocks.items():
        block = apart[start:end, start:end]
        if end - start > 1:
            within.append(f"{name} {float(block.sum()) / (block.numel() - len(block)):.3f}")
    said = f"; within {', '.join(within)}" if within else ""
    mean = float(between.mean()) if len(between) else 0.0
    return f"Divergence of loads of {len(apart)} documents, in bits. Between domains {mean:.3f} on average{said}."


def draw_idle(lines: Mapping[str, Sequence[tuple[int, Share]]]) -> Figure:
    """Draw the share of experts that texts of each length leave idle: found solid, chance dashed, one colour a name.

    Example:
        >>> fig = draw_idle({"layer 0": [(16, Share(0.28, 0.13)), (64, Share(0.06, 0.0))]})
        >>> [line.get_ydata().tolist() for line in fig.axes[0].lines]
        [[28.0, 6.0], [13.0, 0.0]]

    Raises ValueError for no line.
    """
    _check_some("lines", lines)
    fig, axes = new_figure(7.0, 3.2)
    for number, (name, points) in enumerate(lines.items()):
        lengths = [length for length, _ in points]
        found, chance = (torch.tensor([100 * getattr(one, way) for _, one in points]) for way in ("found", "chance"))
        look = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        axes.plot(lengths, found.double().round(decimals=4).numpy(), "-", label=f"{name}, found", **look)
        axes.plot(
            lengths, chance.double().round(decimals=4).numpy(), "--", label="chance", **look, markerfacecolor="white"
        )
    axes.set(xscale="log", xlabel="tokens of the text", ylabel="experts left idle (%)", ylim=(0, None))
    ticks = sorted({length for points in lines.values() for length, _ in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    return finish(fig)


def say_idle(lines: Mapping[str, Sequence[tuple[int, Share]]]) -> str:
    """The finding of `draw_idle` as a sentence: each length, found and by chance.

    Example:
        >>> say_idle({"layer 0": [(16, Share(0.28, 0.13)), (64, Share(0.06, 0.0))]})
        'Share of experts left idle. layer 0: with 16 tokens 28 % (chance 13 %), with 64 tokens 6 % (chance 0 %).'

    Raises ValueError for no line.
    """
    _check_some("lines", lines)
    said = []
    for name, points in lines.items():
        shares = [(length, 100 * one.found, 100 * one.chance) for length, one in points]
        parts = [f"with {length:,} tokens {found:.0f} % (chance {chance:.0f} %)" for length, found, chance in shares]
        said.append(f"{name}: {', '.join(parts)}.")
    return " ".join(["Share of experts left idle.", *said])


def _blocks(apart: Tensor, domains: Sequence[str]) -> dict[str, tuple[int, int]]:
    """First document and end of each domain."""
    if len(domains) != len(apart) or apart.shape[0] != apart.shape[1] or not len(domains):
        raise ValueError(f"domains must be one a document, got {len(domains)} for {tuple(apart.shape)}")
    blocks: dict[str, tuple[int, int]] = {}
    for at, domain in enumerate(domains):
        start, end = blocks.get(domain, (at, at))
        if end != at:
            raise ValueError(f"domains must come one after the other, {domain!r} comes in pieces")
        blocks[domain] = (start, at + 1)
    return blocks


def _check_names(points: Tensor, names: Sequence[str]) -> None:
    if len(names) != len(points):
        raise ValueError(f"names must be one a label, got {len(names)} for {len(points)}")


def _check_some(name: str, values: Sequence | Mapping) -> None:
    if not values:
        raise ValueError(f"{name} must hold at least one, got none")
