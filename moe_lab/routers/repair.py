"""From nearly even to exactly even: move the assignments that cost least."""

import itertools

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from moe_lab.routers.capacity import queue_positions

MANY_ROUNDS = 4  # more than scores without equals take


def repair(
    reduced: Float[Tensor, "tokens num_experts"],
    chosen: Bool[Tensor, "tokens num_experts"],
    targets: Int64[Tensor, " num_experts"],
) -> tuple[Bool[Tensor, "tokens num_experts"], float]:
    """Move assignments from overloaded to underloaded experts until every load is its target.

    ``reduced`` are scores less prices. In each round every token offers its cheapest legal move, and the offers are
    taken in the order of their cost while the expert they leave is too full and the one they enter has room. The
    cheapest is always taken, and where an expert has more tokens than another some token has the one and not the
    other: so a round always moves something, and rounds end.

    Returns the repaired mask and the sum of the costs: with prices whose top_k was ``chosen``, no even assignment
    is better by more than that.

    Example:
        >>> reduced = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
        >>> chosen, cost = repair(reduced, reduced > 0.9, torch.tensor([1, 1]))
        >>> chosen.tolist(), cost
        ([[True, False], [False, True]], 0.5)
    """
    chosen, cost, lean = chosen.clone(), 0.0, reduced
    surplus = chosen.sum(dim=0) - targets
    for number in itertools.count():
        if number == MANY_ROUNDS:
            lean = reduced + _preference(reduced)
        over, under = (surplus > 0).nonzero().squeeze(1), (surplus < 0).nonzero().squeeze(1)
        if not len(over):
            return chosen, cost
        leave, left = lean[:, over].masked_fill(~chosen[:, over], torch.inf).min(dim=1)
        enter, entered = lean[:, under].masked_fill(chosen[:, under], -torch.inf).max(dim=1)
        price, tokens = (leave - enter).sort(stable=True)
        tokens = tokens[price < torch.inf]
        fits = _place(left[tokens], len(over)) < surplus[over][left[tokens]]
        tokens = tokens[fits]
        fits = _place(entered[tokens], len(under)) < -surplus[under][entered[tokens]]
        tokens = tokens[fits]
        left, entered = over[left[tokens]], under[entered[tokens]]
        cost += float((reduced[tokens, left] - reduced[tokens, entered]).double().sum())
        chosen[tokens, left], chosen[tokens, entered] = False, True
        surplus -= torch.bincount(left, minlength=len(targets)) - torch.bincount(entered, minlength=len(targets))


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
