"""Loads of documents side by side, experts that stay for the next token, experts that a text leaves idle."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.specialisation.chance import Chance
from moe_lab.specialisation.information import Experts, check_tokens, count_table, entropy


@dataclass(frozen=True)
class Share:
    """A share that was found, beside the one that chance gives.

    Example:
        >>> print(Share(0.2801, 0.125))
        28.0 % (chance 12.5 %)
    """

    found: float
    chance: float

    def __str__(self) -> str:
        return f"{100 * self.found:.1f} % (chance {100 * self.chance:.1f} %)"


def loads_by_group(
    experts: Experts, groups: Int64[Tensor, " groups"], num_experts: int
) -> Int64[Tensor, "documents num_experts"]:
    """The load of every expert in every document: `count_table` with documents as labels.

    Example:
        >>> loads_by_group(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_experts=2)
        tensor([[1, 1],
                [0, 1]])
    """
    return count_table(experts, groups, num_experts)


def jensen_shannon(first: Tensor, second: Tensor) -> float:
    """How far two loads are apart, in bits: 0 for equal shares, 1 where no expert serves both.

    With shares p and q: H((p + q) / 2) - (H(p) + H(q)) / 2. It is the mutual information of expert and text, where
    each text is taken half of the time.

    Example:
        >>> jensen_shannon(torch.tensor([3, 1]), torch.tensor([30, 10])), jensen_shannon(
        ...     torch.tensor([1, 0]), torch.tensor([0, 1]))
        (0.0, 1.0)

    Raises ValueError for loads of different length, or without any assignment.
    Source: Lin 1991, Divergence measures based on the Shannon entropy.
    """
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(f"loads must be two vectors of one length, got {tuple(first.shape)} and {tuple(second.shape)}")
    if float(first.sum()) <= 0 or float(second.sum()) <= 0:
        raise ValueError("loads must hold at least one assignment each, got none")
    p, q = first.double() / first.sum(), second.double() / second.sum()
    return max(0.0, round(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 12))


def domain_shift(
    loads: Int64[Tensor, "documents num_experts"], domains: Sequence[int], *, samples: int = 200, seed: int = 0
) -> tuple[float, float, Chance]:
    """Mean `jensen_shannon` of two documents of different domains, of the same domain, and of random domains.

    Documents of one domain differ too. The third is the mean between when documents swap domains: what "different"
    gives where domains mean nothing.

    Example:
        >>> between, within, chance = domain_shift(torch.tensor([[9, 1], [9, 1], [1, 9], [1, 9]]), [0, 0, 1, 1])
        >>> round(between, 3), within, chance.mean < between
        (0.531, 0.0, True)

    Raises ValueError where there is not at least one pair of either kind.
    """
    check_whole("samples", samples, 1)
    named = torch.tensor(list(domains))
    if len(named) != len(loads):
        raise ValueError(f"domains must be one a document, got {len(named)} for {len(loads)}")
    apart = torch.zeros(len(loads), len(loads), dtype=torch.float64)
    for one in range(len(loads)):
        for other in range(one):
            apart[one, other] = jensen_shannon(loads[one], loads[other])
    pairs = torch.tril(torch.ones_like(apart), diagonal=-1) > 0
    same = named[:, None] == named[None, :]
    if not bool((pairs & same).any()) or not bool((pairs & ~same).any()):
        raise ValueError(f"domains must hold a pair of equal and a pair of different ones, got {list(domains)}")
    generator, drawn = torch.Generator().manual_seed(seed), []
    for _ in range(samples):
        dealt = named[torch.randperm(len(named), generator=generator)]
        drawn.append(float(apart[pairs & (dealt[:, None] != dealt[None, :])].mean()))
    return float(apart[pairs & ~same].mean()), float(apart[pairs & same].mean()), Chance(tuple(drawn))


def _members(experts: Tensor, num_experts: int) -> Int64[Tensor, "tokens num_experts"]:
    """1 where a token visits an expert."""
    members = torch.zeros(len(experts), num_experts + 1, dtype=torch.int64)
    return members.scatter_(1, torch.where(experts < 0, num_experts, experts), 1)[:, :num_experts]


def repetition(experts: Experts, num_experts: int, groups: Int64[Tensor, " groups"] | None = None) -> Share:
    """Share of neighbours, within a document, that visit a common expert, beside that of two tokens drawn at random.

    For one expert a token chance is sum(p^2), with p an expert's share: 1 / num_experts only where the load is even.
    With several slots it is the share of all pairs of tokens whose sets of experts meet.

    Example:
        >>> print(repetition(torch.tensor([0, 0, 1, 1, 1, 0]), num_experts=2))
        60.0 % (chance 50.0 %)

    Raises ValueError where no two tokens are neighbours.
    Source: Jiang et al. 2024 (arXiv:2401.04088), table 5, where chance is that of even loads.
    """
    groups = torch.zeros(len(experts), dtype=torch.int64) if groups is None else groups
    experts, groups = check_tokens(experts, groups, num_experts)
    beside = groups[1:] == groups[:-1]
    if not bool(beside.any()):
        raise ValueError("groups must hold two tokens that are neighbours, found none")
    members = _members(experts, num_experts)
    met = ((members[1:] * members[:-1]).sum(dim=1) > 0)[beside]
    sets, often = members.unique(dim=0, return_counts=True)
    sets, often = sets.double(), often.double()
    meeting = sum(float(((part @ sets.T > 0).double() @ often) @ count) for part, count in _parts(sets, often))
    return Share(float(met.double().mean()), meeting / float(often.sum()) ** 2)


def _parts(sets: Tensor, often: Tensor, rows: int = 512):
    """Some rows at a time: all pairs of sets at once would not fit for a thousand experts."""
    return zip(sets.split(rows), often.split(rows), strict=True)


def idle_experts(experts: Experts, num_experts: int, length: int) -> Share:
    """Mean share of experts that a text of ``length`` tokens leaves without any, beside tokens drawn at random.

    The texts are stretches in a row, cut one after the other; what is left at the end is left out. Chance keeps the
    loads: an expert that a share p of all tokens visits stays idle with (1 - p)^length.

    Example:
        >>> print(idle_experts(torch.tensor([0, 0, 0, 1, 1, 1]), num_experts=2, length=3))
        50.0 % (chance 12.5 %)

    Raises ValueError for fewer tokens than one length.
    """
    check_whole("length", length, 1)
    experts, _ = check_tokens(experts, torch.zeros(len(experts), dtype=torch.int64), num_experts)
    if len(experts) < length:
        raise ValueError(f"experts must be of at least length={length} tokens, got {len(experts)}")
    whole = len(experts) // length * length
    members = _members(experts[:whole], num_experts)
    idle = members.view(-1, length, num_experts).sum(dim=1) == 0
    chance = (1 - members.double().mean(dim=0)) ** length
    return Share(float(idle.double().mean()), float(chance.mean()))


def saturation(early: Int64[Tensor, "tokens slots"], final: Int64[Tensor, "final_tokens final_slots"]) -> float:
    """Share of a token's experts that an earlier checkpoint chose already: mean of |early and final| / slots.

    Chance, for fair lots, is slots / num_experts.

    Example:
        >>> saturation(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 4], [3, 2]]))
        0.75

    Raises ValueError for tables of different shapes.
    Source: Muennighoff et al. 2024 (arXiv:2409.02060), section 5.1.
    """
    if early.shape != final.shape or early.dim() != 2 or early.numel() == 0:
        raise ValueError(f"both must be one (tokens, slots), got {tuple(early.shape)} and {tuple(final.shape)}")
    both = (early[:, :, None] == final[:, None, :]) & (early[:, :, None] >= 0)
    return float(both.any(dim=2).double().mean())
