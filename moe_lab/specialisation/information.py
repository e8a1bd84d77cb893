"""How many bits an expert's number says about a label: counts, entropy, mutual information, and its parts."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.checks import check_whole

Experts = Int64[Tensor, " tokens"] | Int64[Tensor, "tokens slots"]


def count_table(
    experts: Experts, labels: Int64[Tensor, " labels"], num_experts: int, num_labels: int | None = None
) -> Int64[Tensor, "num_labels num_experts"]:
    """Count assignments by label and expert; empty slots (-1) count nowhere.

    Example:
        >>> count_table(torch.tensor([[0, 2], [2, -1]]), torch.tensor([1, 0]), num_experts=3)
        tensor([[0, 0, 1],
                [1, 0, 1]])

    Raises ValueError where experts and labels differ in length, or a number is out of range.
    """
    experts, labels = check_tokens(experts, labels, num_experts)
    num_labels = int(labels.max()) + 1 if num_labels is None else check_whole("num_labels", num_labels, 1)
    if int(labels.max()) >= num_labels:
        raise ValueError(f"labels must lie in 0..{num_labels - 1}, found {int(labels.max())}")
    pairs = labels[:, None] * num_experts + experts
    counts = torch.bincount(pairs[experts >= 0], minlength=num_labels * num_experts)
    return counts.view(num_labels, num_experts)


def check_tokens(experts: Tensor, labels: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Experts as (tokens, slots) and labels as (tokens,), one a token, in range."""
    check_whole("num_experts", num_experts, 1)
    experts = experts[:, None] if experts.dim() == 1 else experts
    if len(experts) != len(labels) or labels.dim() != 1 or len(labels) == 0:
        raise ValueError(
            f"experts and labels must belong to the same tokens, at least one; got {len(experts)} and {len(labels)}"
        )
    if int(experts.min()) < -1 or int(experts.max()) >= num_experts:
        bad = int(experts.min()) if int(experts.min()) < -1 else int(experts.max())
        raise ValueError(f"experts must lie in -1..{num_experts - 1} (num_experts={num_experts}), found {bad}")
    if int(labels.min()) < 0:
        raise ValueError(f"labels must not be negative, found {int(labels.min())}")
    return experts, labels


def entropy(counts: Tensor) -> float:
    """Bits to name one thing drawn in proportion to the counts: -sum(p log2 p).

    Example:
        >>> entropy(torch.tensor([2, 1, 1]))
        1.5
    """
    counts = counts.double().reshape(-1)
    total = float(counts.sum())
    if total <= 0:
        return 0.0
    return math.log2(total) - float(torch.special.xlogy(counts, counts).sum()) / (total * math.log(2))


def information(table: Int64[Tensor, "num_labels num_experts"]) -> float:
    """Mutual information of a table of counts, in bits: H(labels) + H(experts) - H(both), never below 0.

    Example:
        >>> information(torch.tensor([[5, 0], [0, 5]])), information(torch.tensor([[4, 2], [2, 1]]))
        (1.0, 0.0)
    """
    bits = entropy(table.sum(dim=1)) + entropy(table.sum(dim=0)) - entropy(table)
    return max(0.0, round(bits, 12))  # what rounding leaves of nothing is nothing


def mutual_information(experts: Experts, labels: Int64[Tensor, " labels"], num_experts: int) -> float:
    """Bits that a token's expert says about its label: sum p(l, e) log2(p(l, e) / (p(l) p(e))), shares as counted.

    This plug-in value is too large for few tokens, by about `information_bias` where there is nothing to know: compare
    it with `shuffled_baseline`. At most H(labels) and log2(num_experts).

    Example:
        >>> experts, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0])
        >>> round(mutual_information(experts, labels, num_experts=2), 4)
        0.3113

    Raises ValueError where experts and labels differ in length, or a number is out of range.
    Source: Shannon 1948, A mathematical theory of communication, section 12.
    """
    return information(count_table(experts, labels, num_experts))


def information_bias(table: Int64[Tensor, "num_labels num_experts"]) -> float:
    """By how much the plug-in value exceeds the truth on average, to first order, for independent tokens.

    (rows - 1)(columns - 1) / (2 n ln 2) bits, with rows and columns that hold anything, and n counts. Neighbours in a
    text are not independent, so this is the least that chance adds.

    Example:
        >>> round(information_bias(torch.tensor([[50, 50], [50, 50]])), 5)
        0.00361

    Source: Miller 1955, Note on the bias of information estimates.
    """
    rows, columns = int((table.sum(dim=1) > 0).sum()), int((table.sum(dim=0) > 0).sum())
    total = int(table.sum())
    return (rows - 1) * (columns - 1) / (2 * total * math.log(2)) if total else 0.0


def pointwise_information(
    table: Int64[Tensor, "num_labels num_experts"],
) -> Float[Tensor, "num_labels num_experts"]:
    """log2(p(l, e) / (p(l) p(e))): how many times as often as by chance an expert has a label, in doublings.

    -inf where they never met; NaN where a label or an expert was never seen. Its mean over the counts is `information`.

    Example:
        >>> pointwise_information(torch.tensor([[3, 1], [1, 3]])).numpy().round(3).tolist()
        [[0.585, -1.0], [-1.0, 0.585]]
    """
    counts = table.double()
    expected = counts.sum(dim=1, keepdim=True) * counts.sum(dim=0, keepdim=True) / max(1.0, float(counts.sum()))
    return torch.log2(counts / expected)


def conditional_information(
    experts: Experts, labels: Int64[Tensor, " labels"], given: Int64[Tensor, " given"], num_experts: int
) -> float:
    """Bits that the expert says about the label to someone who knows ``given`` already: I(e; l, g) - I(e; g).

    Example:
        >>> experts, byte = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
        >>> conditional_information(experts, labels=byte, given=byte, num_experts=2)
        0.0

    Raises ValueError where the three differ in length, or a number is out of range.
    """
    return information(count_table(experts, combine(labels, given), num_experts)) - mutual_information(
        experts, given, num_experts
    )


def combine(labels: Int64[Tensor, " labels"], given: Int64[Tensor, " given"]) -> Int64[Tensor, " labels"]:
    """One label for each pair of labels that occurs."""
    if len(labels) != len(given):
        raise ValueError(f"labels and given must belong to the same tokens, got {len(labels)} and {len(given)}")
    return torch.unique(given * (int(labels.max()) + 1) + labels, return_inverse=True)[1]
