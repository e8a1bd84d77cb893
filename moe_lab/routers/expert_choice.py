"""Experts choose their tokens: expert_choice."""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.routers.capacity import expert_capacity
from moe_lab.routers.registry import router
from moe_lab.routers.scores import score_logits, weigh, widen
from moe_lab.types import Routing


@router()
def expert_choice(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    capacity_factor: float = 1.0,
    score: str = "softmax",
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Let every expert take its best tokens: equal load by construction, unequal service for the tokens.

    Each expert takes the ceil(capacity_factor * tokens * top_k / num_experts) tokens with its highest scores, at most
    all of them; equal scores go to the earlier token. A token gets between 0 and num_experts experts, so ``slots`` is
    the most that any token got. Not causal: which experts a token gets depends on later tokens, so a decoder
    must not use it.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> routing = expert_choice(logits, 1)
        >>> routing.experts.tolist(), routing.load.tolist()
        ([[0], [0], [1], [1]], [2, 2])

    Raises: see `route`; ValueError for a capacity factor that is not above 0, or for
    ``score="softmax_after_top_k"``, which has no meaning where experts choose.
    Source: Zhou et al. 2022 (arXiv:2202.09368), section 3.2; their c is capacity_factor * top_k.
    """
    if score == "softmax_after_top_k":
        raise ValueError('score must be "softmax" or "sigmoid" for expert_choice, got "softmax_after_top_k"')
    tokens, num_experts = logits.shape
    capacity = min(tokens, expert_capacity(capacity_factor, tokens, top_k, num_experts))
    scores = score_logits(logits, score)
    # a sigmoid keeps the order of an expert's logits, and loses it where it rounds to 1
    ranking = widen(logits).detach() if score == "sigmoid" else scores.detach()
    taken = ranking.sort(dim=0, descending=True, stable=True).indices[:capacity]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(0, taken, True)
    slots = int(chosen.sum(dim=1).max()) if tokens else 0
    best_first = scores.detach().masked_fill(~chosen, -1.0).sort(dim=1, descending=True, stable=True).indices
    experts = best_first[:, :slots]
    experts = experts.masked_fill(~chosen.gather(1, experts), -1)
    weights = weigh(scores, experts, score, renormalise, scale)
    return Routing.trusted(experts, weights, num_experts, top_k=top_k)
