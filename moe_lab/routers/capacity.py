"""Experts with a fixed number of places, overflow dropped or sent on: switch, gshard, capacity_top_k."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.chance import draw
from moe_lab.routers.registry import router
from moe_lab.routers.scores import score_logits, select, selection_scores, weigh
from moe_lab.types import Routing, may_read

OVERFLOWS = ("drop", "reroute")
PRIORITIES = ("order", "score", "random")


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
    experts: Int64[Tensor, "tokens slots"], num_experts: int, capacity: int | Int64[Tensor, " num_experts"]
) -> Bool[Tensor, "tokens slots"]:
    """Which assignments find a place, in the order of `queue_positions`; ``capacity`` is one number, or one an expert.

    Example:
        >>> within_capacity(torch.tensor([[0], [0], [1], [0]]), num_experts=2, capacity=2).flatten()
        tensor([ True,  True,  True, False])
    """
    positions = queue_positions(experts, num_experts)
    places = capacity if isinstance(capacity, int) else capacity[experts.clamp_min(0)]
    return (positions >= 0) & (positions < places)


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
    asked = select(selection_scores(logits, scores, score, bias), 1)
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
    if not isinstance(random_second, bool):
        raise TypeError(f"random_second must be True or False, got {random_second!r}")
    scores = score_logits(logits, score)
    asked = select(selection_scores(logits, scores, score, bias), 2)
    weights = weigh(scores, asked, score, renormalise, scale)
    keep = torch.ones_like(asked, dtype=torch.bool)
    if random_second:
        share = weigh(scores.detach(), asked, score, True, 1.0)[:, 1]
        keep[:, 1] = draw(torch.rand, (tokens,), generator, logits.device, torch.float64) < 2 * share
    wanted = asked.masked_fill(~keep, -1)
    kept = within_capacity(wanted, num_experts, capacity)
    return Routing.trusted(asked.masked_fill(~kept, -1), weights.masked_fill(~kept, 0.0), num_experts)


@router()
def capacity_top_k(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    capacity_factor: float = 1.0,
    overflow: str = "drop",
    priority: str = "order",
    generator: torch.Generator | None = None,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Let each token ask for its top_k best experts, and each expert serve only as many as it has places.

    An expert has ceil(capacity_factor * tokens * top_k / num_experts) places. All first choices are served before any
    second. Among equal choices ``priority`` says which token comes first: "order", the earlier one; "score", the one
    with the highest weight before ``renormalise`` and ``scale`` (equal ones: the earlier); "random", the first in
    an order drawn from ``generator``.

    ``overflow`` says what becomes of an assignment that finds no place. "drop": its slot stays empty. "reroute": in
    rounds, it asks for the token's next best expert that still has room and that the token does not hold, the best for
    the first slot that waits, and is served in the same order; it keeps its slot. Every round that refuses somebody
    fills an expert, so num_experts rounds are enough. A slot stays empty where the token already holds every expert
    with room. At capacity_factor 1, with logits N(0, 1) - s log(rank) and s = 1 to 4, that was 0.2 to 0.7 % of the
    slots for 8 experts and top_k 2, and under 0.02 % for 64 and 8; "drop" emptied 33 to 81 % of them.

    No load is above the capacity, and no token has an expert twice. Not causal with "score", "random" or "reroute":
    they read the whole batch. With "order" and "drop" a token's first choice depends on the earlier tokens and on how
    many tokens there are, its second choice on the first choices of all.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0], [1.0, 0.0, 0.5]])
        >>> for options in ({}, {"priority": "score"}, {"overflow": "reroute"}):
        ...     print(capacity_top_k(logits, 1, **options).experts.flatten())
        tensor([ 0, -1, -1])
        tensor([-1,  0, -1])
        tensor([0, 1, 2])

    Raises: see `route`; ValueError for a capacity factor that is not above 0, or for an unknown overflow or priority.
    Source: "score" is V-MoE's batch prioritised routing, Riquelme et al. 2021 (arXiv:2106.05974), section 4, by the
    maximum of the weights as in its code; "random" is DeepSpeed's random token selection (``use_rts`` in its top-1
    gate); rerouting in rounds is "No-Token-Left-Behind", Switch (arXiv:2101.03961), appendix B.
    """
    tokens, num_experts = logits.shape
    capacity = expert_capacity(capacity_factor, tokens, top_k, num_experts)
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be one of {', '.join(OVERFLOWS)}; got {overflow!r}")
    if priority not in PRIORITIES:
        raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}; got {priority!r}")
    scores = score_logits(logits, score)
    ranking = selection_scores(logits, scores, score, bias)
    asked = select(ranking, top_k)
    order = torch.arange(tokens, device=logits.device)
    if priority == "score":
        order = weigh(scores.detach(), asked, score, False, 1.0).amax(dim=1).argsort(descending=True, stable=True)
    elif priority == "random":
        order = draw(torch.rand, (tokens,), generator, logits.device, torch.float64).argsort(stable=True)
    in_order = asked[order]
    if overflow == "reroute":
        served = _serve_in_rounds(in_order, ranking[order], capacity)
    else:
        served = in_order.masked_fill(~within_capacity(in_order, num_experts, capacity), -1)
    experts = torch.empty_like(asked).index_copy(0, order, served)
    return Routing.trusted(experts, weigh(scores, experts, score, renormalise, scale), num_experts)


def _serve_in_rounds(
    asked: Int64[Tensor, "tokens slots"], ranking: Float[Tensor, "tokens num_experts"], capacity: int
) -> Int64[Tensor, "tokens slots"]:
    """The expert that each assignment ends at, where whatever is refused asks for the next best with room."""
    tokens, num_experts = ranking.shape
    room = torch.full((num_experts,), capacity, device=asked.device)
    experts = torch.full_like(asked, -1)
    for _ in range(num_experts):
        experts = torch.where(within_capacity(asked, num_experts, room), asked, experts)
        waits = experts < 0
        # one column more, in front, takes the empty slots
        held = waits.new_zeros(tokens, num_experts + 1).scatter(1, experts + 1, True)[:, 1:]
        room = capacity - held.sum(dim=0)
        open_to = (room > 0) & ~held
        best = select(ranking.masked_fill(~open_to, float("-inf")), asked.shape[1])
        best = best.masked_fill(~open_to.gather(1, best), -1)
        turn = (waits.cumsum(dim=1) - 1).clamp_min(0)
        asked = best.gather(1, turn).masked_fill(~waits, -1)
        if may_read(asked) and not bool((asked >= 0).any()):
            break
    return experts
