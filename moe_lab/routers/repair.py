"""From nearly even to exactly even: move the assignments that cost least."""

import itertools

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from moe_lab.routers.capacity import queue_positions
from moe_lab.routers.prices import Priced

MANY_ROUNDS = 4  # more than scores without equals take


def repair(priced: Priced, targets: Int64[Tensor, " num_experts"]) -> tuple[Bool[Tensor, "tokens num_experts"], float]:
    """Move assignments from overloaded to underloaded experts until every load is its target.

    In each round every token offers its cheapest legal move, by score less price, and the offers are taken in the order
    of their cost while the expert they leave is too full and the one they enter has room. The cheapest is always taken,
    and where an expert has more tokens than another some token has the one and not the other: so a round always moves
    something, and rounds end.

    First only the tokens with the least margins are asked, twelve for each assignment to move, and only moves that cost
    no more than the greatest margin among them are taken: nobody else could offer less. Then all tokens.

    Returns the repaired mask and the sum of the costs: no even assignment is better by more than that.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
        >>> priced = Priced(torch.zeros(2), scores, scores > 0.9, torch.tensor([1.0, 0.5]), 0)
        >>> chosen, cost = repair(priced, torch.tensor([1, 1]))
        >>> chosen.tolist(), cost
        ([[True, False], [False, True]], 0.5)
    """
    chosen, tokens = priced.chosen.clone(), len(priced.chosen)
    surplus = chosen.sum(dim=0) - targets
    few, cost = 12 * int(surplus.clamp_min(0).sum()), 0.0
    if 0 < few < tokens // 2:
        limit = priced.margin.kthvalue(few).values
        asked = (priced.margin <= limit).nonzero().squeeze(1)
        some = chosen[asked]
        cost = _move(priced.reduced[asked], some, surplus, limit)
        chosen[asked] = some
    return chosen, cost + _move(priced.reduced, chosen, surplus, priced.margin.new_tensor(torch.inf))


def _move(
    reduced: Float[Tensor, "tokens num_experts"],
    chosen: Bool[Tensor, "tokens num_experts"],
    surplus: Int64[Tensor, " num_experts"],
    limit: Float[Tensor, ""],
) -> float:
    """Change ``chosen`` and ``surplus`` in place, by rounds of moves that cost at most the limit; their total cost."""
    cost, lean = 0.0, reduced
    for number in itertools.count():
        if number == MANY_ROUNDS:
            lean = reduced + _preference(reduced)
        over, under = (surplus > 0).nonzero().squeeze(1), (surplus < 0).nonzero().squeeze(1)
        if not len(over):
            return cost
        leave, left = lean[:, over].masked_fill(~chosen[:, over], torch.inf).min(dim=1)
        enter, entered = lean[:, under].masked_fill(chosen[:, under], -torch.inf).max(dim=1)
        price, tokens = (leave - enter).sort(stable=True)
        tokens = tokens[(price <= limit) & (price < torch.inf)]
        if not len(tokens):
            return cost
        tokens = tokens[_place(left[tokens], len(over)) < surplus[over][left[tokens]]]
        tokens = tokens[_place(entered[tokens], len(under)) < -surplus[under][entered[tokens]]]
        left, entered = over[left[tokens]], under[entered[tokens]]
        cost += float((reduced[tokens, left] - reduced[tokens, entered]).sum(dtype=torch.float64))
        chosen[tokens, left], chosen[tokens, entered] = False, True
        surplus -= torch.bincount(left, minlength=len(surplus)) - torch.bincount(entered, minlength=len(surplus))


def _place(experts: Int64[Tensor, " tokens"], num_experts: int) -> Int64[Tensor, " tokens"]:
    """How many before this one named the same expert."""
    return queue_positions(experts[:, None], num_experts).squeeze(1)


def _preference(reduced: Float[Tensor, "tokens num_experts"]) -> Float[Tensor, "tokens num_experts"]:
    """A millionth of the spread, another for every token and expert.

    Tokens that cannot tell two experts apart then go to both, where all would queue for the lower one: a round an
    expert.
    """
    token, expert = (torch.arange(size, device=reduced.device) for size in reduced.shape)
    return (token[:, None] * 7919 + expert * 104_729) % 1009 * (1e-9 * reduced.std())
