"""Exactly balanced, token by token, without a look ahead: balanced_causal."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.registry import MOST_STEPS, NotFinite, opaque, router
from moe_lab.routers.scores import objective_scores, score_logits, weigh
from moe_lab.types import Routing


@router()
def balanced_causal(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    group_size: int | None = None,
    pacing: float | int = 0.1,
    adaptation: float | int | None = None,
    objective: str = "logits",
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Route tokens in their order, none by what comes later, so that every finished group is exactly balanced.

    A group is ``group_size`` tokens in a row (all tokens of the call by default); each expert has room for its even
    share of it. A token takes the top_k of score + bias - pacing * spread * pace, where pace says how far the expert's
    room is ahead of time, in units of sqrt(expected room), and spread is the standard deviation of the token's own
    scores. Two rules make the count exact: an expert without room is forbidden, and one whose room equals the tokens
    left is forced. With sum(room) = top_k * left and room <= left, never more than top_k are forced and never fewer
    than top_k allowed, and both hold after every token.

    So each token has top_k distinct experts, none is dropped, and the load of a finished group is its floor or ceiling:
    variance 0 where num_experts divides group_size * top_k. A last group that is not full is routed as the beginning of
    a full one: with a ``group_size``, routing a text and then more of it gives the same experts. A token still depends
    on the earlier tokens of its group.

    ``bias`` should be prices that a `PriceBalancer` learned; ``adaptation`` moves them within a group, where it is on:
    after each token by adaptation * spread / sqrt(1 + position / 5), up for experts that it left. 0.3 by default
    without a bias, 0 with one. Runs on the CPU in float64, all groups at once, one step a position.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> balanced_causal(logits, 1, group_size=2).experts.flatten()
        tensor([0, 1, 0, 1])

    Raises: see `route`; ValueError for a group size below 1, or a pacing or adaptation that is negative.
    Source: ours; feasibility by the theorem of Gale and Ryser 1957. Its nearest relatives are capacity with reroute in
    token order, and Expert Threshold (arXiv:2603.11535).
    """
    tokens, num_experts = logits.shape
    size = max(tokens, 1) if group_size is None else check_whole("group_size", group_size, 1, MOST_STEPS)
    check_number("pacing", pacing, at_least=0)
    adaptation = (0.3 if bias is None else 0.0) if adaptation is None else adaptation
    check_number("adaptation", adaptation, at_least=0)
    values = objective_scores(logits, score, bias, objective)
    experts = _assign_in_order(values, top_k, size, pacing, adaptation)
    experts = experts.gather(1, values.gather(1, experts).sort(dim=1, descending=True, stable=True).indices)
    weights = weigh(score_logits(logits, score), experts, score, renormalise, scale)
    return Routing.trusted(experts, weights, num_experts)


@opaque(
    "assign_in_order",
    "(Tensor values, int top_k, SymInt size, float pacing, float adaptation)",
    lambda values, top_k, *_: values.new_empty(values.shape[0], top_k, dtype=torch.int64),
)
def _assign_in_order(values: Tensor, top_k: int, size: int, pacing: float, adaptation: float) -> Tensor:
    """The experts of every token, in groups of ``size``."""
    tokens, num_experts = values.shape
    groups = -(-tokens // size)
    width = min(size, tokens)  # one group that is not full needs no more steps than it has tokens
    by_group = np.zeros((groups, width, num_experts))
    exact = values.double().cpu().numpy()
    # squares of larger scores could overflow; a factor of the token's own, or it would depend on later ones
    largest = np.abs(exact).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():  # in a compiled graph nobody has looked before
        raise NotFinite(f"scores must be finite, the largest is {largest.max()}")
    by_group.reshape(groups * width, num_experts)[:tokens] = exact / np.where(largest > 1e150, largest, 1.0)
    chosen = _in_order(by_group, top_k, _room(groups, size, top_k, num_experts), size, pacing, adaptation)
    return torch.from_numpy(chosen.reshape(groups * width, top_k)[:tokens]).to(values.device)


def _room(groups: int, size: int, top_k: int, num_experts: int) -> Int[np.ndarray, "groups num_experts"]:
    """Each group's even share; who takes one more moves on from group to group, so that their sum is even too."""
    share, spare = divmod(size * top_k, num_experts)
    turn = (np.arange(num_experts) - np.arange(groups)[:, None] * spare) % num_experts
    return share + (turn < spare).astype(np.int64)


def _in_order(
    scores: Float[np.ndarray, "groups length num_experts"],
    top_k: int,
    room: Int[np.ndarray, "groups num_experts"],
    size: int,
    pacing: float | int,
    adaptation: float | int,
) -> Int[np.ndarray, "groups length {top_k}"]:
    """The rule of `balanced_causal` for groups of ``size`` tokens, of which ``length`` have come."""
    groups, length, num_experts = scores.shape
    chosen = np.empty((groups, length, top_k), dtype=np.int64)
    spread = scores.std(axis=2)
    share, prices = room.copy(), np.zeros((groups, num_experts))
    rows = np.arange(groups)[:, None]
    for position in range(length):
        left = size - position
        expected = share * (left / size)
        pace = (expected - room) / np.sqrt(np.maximum(expected, 1.0))
        own = spread[:, position, None]
        value = scores[:, position] - prices - pacing * own * pace
        value[room == 0] = -np.inf
        value[room == left] = np.inf
        picked = np.argsort(-value, axis=1, kind="stable")[:, :top_k]
        chosen[:, position] = picked
        room[rows, picked] -= 1
        if adaptation:
            step = adaptation * own / np.sqrt(1 + position / 5)
            prices -= step * (top_k / num_experts)
            prices[rows, picked] += step
    return chosen
