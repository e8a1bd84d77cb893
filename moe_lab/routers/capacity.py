"""Experts with a fixed number of places, overflow dropped: switch, gshard."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.chance import draw
from moe_lab.routers.registry import router
from moe_lab.routers.scores import score_logits, select, selection_scores, weigh
from moe_lab.types import Routing


def expert_capacity(capacity_factor: float, tokens: int, top_k: int, num_experts: int) -> int:
    """Places an expert has: ceil(capacity_factor * tokens * top_k / num_experts), at least 1 where there are tokens.

    Example:
        >>> expert_capacity(1.25, tokens=6, top_k=1, num_experts=3)
        3

    Raises ValueError for a capacity factor that is not above 0.
    Source: GShard (arXiv:2006.16668), section 2.2; Switch (arXiv:2101.03961), equation 3.
    """
    check_number("capacity_factor", capacity_factor, above=0)
    check_whole("tokens", tokens, 0)
    check_whole("num_experts", num_experts, 1)
    # round: 1.1 * 50 / 5 is 11.000000000000002 in floating point, and must not become 12 places
    places = math.ceil(round(min(capacity_factor, num_experts) * tokens * top_k / num_experts, 9))
    return max(places, min(tokens, 1))


def queue_positions(experts: Int64[Tensor, "tokens slots"], num_experts: int) -> Int64[Tensor, "tokens slots"]:
    """How many assignments an expert had before this one: first choices before second, earlier tokens before later.

    -1 in an empty slot. Work: one stable sort of tokens * slots numbers.

    Example:
        >>> queue_positions(torch.tensor([[0], [0], [-1], [1], [0]]), num_experts=2).flatten()
        tensor([ 0,  1, -1,  0,  2])
    """
    asked = experts.T.reshape(-1)  # every first choice, then every second one
    order = asked.argsort(stable=True)
    in_order = asked[order]
    first = torch.searchsorted(in_order, torch.arange(num_experts, device=asked.device))
    before = torch.arange(len(asked), device=asked.device) - first[in_order.clamp_min(0)]
    positions = torch.empty_like(asked).index_copy(0, order, before.masked_fill(in_order < 0, -1))
    return positions.view(experts.shape[1], experts.shape[0]).T


def within_capacity(
    experts: Int64[Tensor, "tokens slots"], num_experts: int, capacity: int
) -> Bool[Tensor, "tokens slots"]:
    """Which assignments find a place, in the order of `queue_positions`.

    Example:
        >>> within_capacity(torch.tensor([[0], [0], [1], [0]]), num_experts=2, capacity=2).flatten()
        tensor([ True,  True,  True, False])
    """
    positions = queue_positions(experts, num_experts)
    return (positions >= 0) & (positions < capacity)


@router(only_top_k=1)
def switch(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    capacity_factor: float = 1.25,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Send each token to its best expert while that has places; later tokens are dropped.

    An expert has ceil(capacity_factor * tokens / num_experts) places. A dropped token has an empty slot:
    the layer adds nothing to it, and only the residual stream carries it on. Places are counted over all tokens of the
    call; Transformers' Switch counts them for each sequence, which is one call a sequence here.

    Example:
        >>> switch(torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), 1, capacity_factor=1.0).experts.flatten()
        tensor([ 0,  0, -1])

    Raises: see `route`; ValueError for ``top_k`` other than 1 or a capacity factor that is not above 0.
    Source: Fedus, Zoph and Shazeer 2021 (arXiv:2101.03961), sections 2.1 and 2.2; capacity factors of 1.0 to 2.0.
    """
    tokens, num_experts = logits.shape
    capacity = expert_capacity(capacity_factor, tokens, top_k, num_experts)
    scores = score_logits(logits, score)
    asked = select(selection_scores(logits, scores, bias), 1)
    experts = asked.masked_fill(~within_capacity(asked, num_experts, capacity), -1)
    return Routing.trusted(experts, weigh(scores, experts, score, renormalise, scale), num_experts)


@router(only_top_k=2)
def gshard(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    capacity_factor: float = 1.25,
    random_second: bool = True,
    generator: torch.Generator | None = None,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Send each token to its best expert, to the second one with a probability, both within capacity.

    The second choice is kept with probability min(1, 2 * g2), g2 = second score / (first + second): a weak second is
    not worth a place. All first choices are placed before any second. Weights are normalised over the two choices
    before anything is dropped, as in the paper, so a token that loses one does not grow the other. A second choice that
    the draw gives up counts as dropped, like one that finds no place.

    Example:
        >>> logits = torch.tensor([[2.0, 1.9, -9.0], [2.0, -9.0, 1.9]])
        >>> gshard(logits, 2, capacity_factor=1.0, random_second=False).experts
        tensor([[0, 1],
                [0, 2]])

    Raises: see `route`; ValueError for ``top_k`` other than 2 or a capacity factor that is not above 0.
    Source: GShard, Lepikhin et al. 2020 (arXiv:2006.16668), section 2.2 and algorithm 1. That a second choice which the
    draw gives up takes no place is how Mesh-TensorFlow's code has it.
    """
    tokens, num_experts = logits.shape
    capacity = expert_capacity(capacity_factor, tokens, top_k, num_experts)
    scores = score_logits(logits, score)
    asked = select(selection_scores(logits, scores, bias), 2)
    weights = weigh(scores, asked, score, renormalise, scale)
    keep = torch.ones_like(asked, dtype=torch.bool)
    if random_second:
        share = weigh(scores.detach(), asked, score, True, 1.0)[:, 1]
        keep[:, 1] = draw(torch.rand, (tokens,), generator, logits.device, torch.float64) < 2 * share
    wanted = asked.masked_fill(~keep, -1)
    kept = within_capacity(wanted, num_experts, capacity)
    return Routing.trusted(asked.masked_fill(~kept, -1), weights.masked_fill(~kept, 0.0), num_experts)
