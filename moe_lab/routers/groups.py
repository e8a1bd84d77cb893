"""Experts in groups, one group a device: group_limited, grouped_experts."""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.routers.registry import router
from moe_lab.routers.scores import score_logits, select, selection_scores, weigh
from moe_lab.types import Routing


@router()
def group_limited(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    num_groups: int,
    top_groups: int,
    group_top: int | None = None,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Choose top_groups groups of experts first, then the top_k best experts inside them.

    A group's score is the sum of its ``group_top`` highest (score + bias): 2 in DeepSeek-V3 and here (fewer in smaller
    groups), 1 (the maximum) in DeepSeek-V2. With a group a device, a token's traffic reaches at most ``top_groups``
    devices.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
        >>> group_limited(logits, 2, num_groups=2, top_groups=1, score="sigmoid").experts
        tensor([[2, 3]])

    Raises: see `route`; ValueError for groups that do not divide num_experts, ``top_groups`` outside
    ``1..num_groups``, or chosen groups that hold fewer than ``top_k`` experts.
    Source: DeepSeek-V3 (arXiv:2412.19437), section 2.1.2; DeepSeek-V2 (arXiv:2405.04434), section 2.2.2.
    """
    tokens, num_experts = logits.shape
    size = _group_size(num_experts, num_groups)
    check_whole("top_groups", top_groups, 1, num_groups)
    if top_groups * size < top_k:
        raise ValueError(f"top_groups={top_groups} groups of {size} experts hold fewer than top_k={top_k}")
    group_top = min(2, size) if group_top is None else check_whole("group_top", group_top, 1, size)
    scores = score_logits(logits, score)
    ranking = selection_scores(logits, scores, score, bias)
    group_ranking = scores.detach() if bias is None else ranking  # a sum of logits would be another rule
    best = group_ranking.reshape(tokens, num_groups, size).topk(group_top, dim=2).values
    # a power of two changes no order of sums, and no sum of large logits overflows
    best = (best * 0.5 ** (group_top - 1).bit_length()).sum(dim=2)
    chosen_groups = select(best, top_groups)
    allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, chosen_groups, True)
    # -inf, not 0: a biased score can be negative, and 0 would then win from outside the groups.
    ranking = ranking.masked_fill(~allowed.repeat_interleave(size, dim=1), float("-inf"))
    experts = select(ranking, top_k)
    return Routing.trusted(experts, weigh(scores, experts, score, renormalise, scale), num_experts)


@router()
def grouped_experts(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    num_groups: int,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Choose the best top_k / num_groups experts inside every group: equal load a group by construction.

    With a group a device, every device gets exactly tokens * top_k / num_groups rows, whatever the logits are;
    inside a group the load is free.

    Example:
        >>> grouped_experts(torch.tensor([[3.0, 2.0, 0.0, 1.0]]), 2, num_groups=2).experts
        tensor([[0, 3]])

    Raises: see `route`; ValueError where num_groups does not divide num_experts or top_k.
    Source: Pangu Pro MoE, "Mixture of Grouped Experts" (arXiv:2505.21411), section 2.
    """
    tokens, num_experts = logits.shape
    size = _group_size(num_experts, num_groups)
    if top_k % num_groups:
        raise ValueError(f"num_groups must divide top_k={top_k}, got {num_groups}")
    scores = score_logits(logits, score)
    ranking = selection_scores(logits, scores, score, bias).reshape(tokens * num_groups, size)
    inside = select(ranking, top_k // num_groups).view(tokens, num_groups, top_k // num_groups)
    first = torch.arange(0, num_experts, size, device=logits.device).view(1, num_groups, 1)
    experts = (inside + first).view(tokens, top_k)
    return Routing.trusted(experts, weigh(scores, experts, score, renormalise, scale), num_experts)


def _group_size(num_experts: int, num_groups: int) -> int:
    """Experts a group, where they divide."""
    if num_experts % check_whole("num_groups", num_groups, 1, num_experts):
        raise ValueError(f"num_groups must divide num_experts={num_experts}, got {num_groups}")
    return num_experts // num_groups
