"""What chance alone would say: labels dealt out anew, and texts drawn again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.specialisation.information import (
    Experts,
    check_tokens,
    combine,
    conditional_information,
    information,
    mutual_information,
)


@dataclass(frozen=True)
class Chance:
    """What a quantity came to when there was nothing to find, time after time.

    Example:
        >>> chance = Chance((0.1, 0.3, 0.2))
        >>> round(chance.mean, 3), chance.p_value(0.5), chance.p_value(0.25)
        (0.2, 0.25, 0.5)
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """From the 2.5th to the 97.5th percentile."""
        return percentiles(self.values)

    def p_value(self, found: float) -> float:
        """Share of all values, the found one among them, that are at least as large: (1 + above) / (1 + values)."""
        return (1 + sum(value >= found for value in self.values)) / (1 + len(self.values))


def percentiles(values: tuple[float, ...] | list[float], share: float = 0.95) -> tuple[float, float]:
    """The bounds between which the middle ``share`` of the values lies, a straight line between neighbours."""
    edges = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(values, dtype=torch.float64), edges).tolist()
    return low, high


def shuffled_baseline(
    experts: Experts,
    labels: Int64[Tensor, " labels"],
    num_experts: int,
    *,
    samples: int = 20,
    seed: int = 0,
    groups: Int64[Tensor, " groups"] | None = None,
    given: Int64[Tensor, " given"] | None = None,
) -> Chance:
    """Mutual information after the labels were dealt out anew, ``samples`` times.

    - With neither: every token gets another token's label. Right for labels that change from token to token.
    - ``groups`` (a number a token, its document): documents keep together and swap labels. Right for a label that a
      whole document has, such as its domain: ten documents are ten observations, however long they are.
    - ``given``: labels are dealt out among tokens of equal ``given``, and the quantity is `conditional_information`.

    Example:
        >>> experts = labels = torch.arange(100) % 4
        >>> chance = shuffled_baseline(experts, labels, num_experts=4)
        >>> mutual_information(experts, labels, num_experts=4), chance.interval[1] < 0.2
        (2.0, True)

    Raises ValueError for groups together with given, or for a group whose tokens have several labels.
    """
    check_tokens(experts, labels, num_experts)
    check_whole("samples", samples, 1)
    if groups is not None and given is not None:
        raise ValueError("groups and given are two baselines; got both")
    deal = _dealer(labels, groups, given, torch.Generator().manual_seed(seed))
    if given is None:
        return Chance(tuple(mutual_information(experts, deal(), num_experts) for _ in range(samples)))
    return Chance(tuple(conditional_information(experts, deal(), given, num_experts) for _ in range(samples)))


def _dealer(
    labels: Tensor, groups: Tensor | None, given: Tensor | None, generator: torch.Generator
) -> Callable[[], Tensor]:
    """A function that deals the labels out anew at each call."""
    if groups is not None:
        of_group = _labels_of_groups(labels, groups)
        return lambda: of_group[torch.randperm(len(of_group), generator=generator)][groups]
    if given is None:
        return lambda: labels[torch.randperm(len(labels), generator=generator)]
    combine(labels, given)  # checks the lengths
    places = given.argsort(stable=True)

    def within() -> Tensor:
        mixed = torch.randperm(len(labels), generator=generator)
        order = mixed[given[mixed].argsort(stable=True)]  # each value of `given` in its block, in random order
        return torch.empty_like(labels).scatter_(0, places, labels[order])

    return within


def _labels_of_groups(labels: Tensor, groups: Tensor) -> Tensor:
    """The one label of each group."""
    if len(labels) != len(groups):
        raise ValueError(f"labels and groups must belong to the same tokens, got {len(labels)} and {len(groups)}")
    of_group = torch.full((int(groups.max()) + 1,), -1, dtype=torch.int64)
    of_group[groups] = labels
    if bool((of_group[groups] != labels).any()):
        bad = int(groups[of_group[groups] != labels][0])
        raise ValueError(f"labels must be one a group where groups swap them; group {bad} has several")
    if bool((of_group < 0).any()):
        raise ValueError(f"groups must be numbered without a gap, none is {int((of_group < 0).nonzero()[0])}")
    return of_group


def bootstrap_interval(
    experts: Experts,
    labels: Int64[Tensor, " labels"],
    num_experts: int,
    blocks: Int64[Tensor, " blocks"],
    *,
    samples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95 % confidence interval of the mutual information, with whole blocks drawn again.

    Neighbours in a text resemble each other, so single tokens drawn again would pretend to more evidence than there is
    and give too narrow an interval. ``blocks`` numbers the pieces that count as independent: documents, or long
    stretches. The interval is the basic one, 2 found - percentiles: drawing again adds the plug-in bias a second time,
    and this takes it off.

    Example:
        >>> experts = labels = torch.arange(400) % 4
        >>> low, high = bootstrap_interval(experts, labels, 4, blocks=torch.arange(400) // 40)
        >>> round(low, 3), round(high, 3)
        (2.0, 2.0)

    Raises ValueError for fewer than two blocks.
    Source: Davison and Hinkley 1997, Bootstrap methods and their application, section 2.4; blocks: section 8.2.
    """
    experts, labels = check_tokens(experts, labels, num_experts)
    check_whole("samples", samples, 1)
    num_labels, names = int(labels.max()) + 1, blocks.unique(return_inverse=True)
    count = len(names[0])
    if len(blocks) != len(labels) or count < 2:
        raise ValueError(f"blocks must number at least two pieces of {len(labels)} tokens, got {count}")
    pairs = (names[1] * num_labels + labels)[:, None] * num_experts + experts
    size = num_labels * num_experts
    tables = torch.bincount(pairs[experts >= 0], minlength=count * size).view(count, size).double()  # exact to 2^53
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(samples):
        often = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count).double()
        drawn.append(information((often @ tables).long().view(num_labels, num_experts)))
    found = information(tables.sum(dim=0).long().view(num_labels, num_experts))
    low, high = percentiles(drawn)
    return max(0.0, 2 * found - high), 2 * found - low
