"""Exercises of lesson 04: the bound, one step of the prices, the causal rule, and the least variance."""

import itertools

import torch
from torch import Tensor

from moe_lab.exercises import Exercise, Property
from moe_lab.routers import route
from moe_lab.routers.balanced import assign_evenly
from moe_lab.routers.prices import price_step


def _draw(tokens: int, num_experts: int, seed: int) -> Tensor:
    """Scores of order 1 for experts that are not equally popular."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, num_experts, generator=draw) + torch.linspace(1, 0, num_experts)


def _says(yours: object, spec: float, case: str, tolerance: float = 1e-4) -> str | None:
    """None if two numbers are as good as equal, else both."""
    close = abs(float(yours) - spec) <= tolerance * max(1.0, abs(spec))
    return None if close else f"yours {float(yours):.6g}, spec {spec:.6g} for {case}"


_HAND = torch.tensor([[2.0, 0.0], [1.5, 0.0], [1.0, 0.0], [0.5, 0.0]])


# ---------------------------------------------------------------- 04.1: a bound on every even routing


def _bound(scores: list[list[float]], prices: list[float], top_k: int) -> float:
    """The bound in plain loops."""
    share, spare = divmod(len(scores) * top_k, len(prices))
    best = sum(sum(sorted((s - p for s, p in zip(row, prices, strict=True)), reverse=True)[:top_k]) for row in scores)
    return best + share * sum(prices) + sum(sorted(prices, reverse=True)[:spare])


def _bounds(scores: Tensor, prices: Tensor, top_k: int, case: str) -> Property:
    def holds(answer) -> str | None:
        spec = _bound(scores.tolist(), prices.tolist(), top_k)
        return _says(answer(scores.clone(), prices.clone(), top_k), spec, case)

    return holds


def _ignores_what_all_pay(answer) -> str | None:
    scores, prices = _draw(13, 5, seed=1), torch.linspace(-1, 1, 5)
    before, after = float(answer(scores, prices, 2)), float(answer(scores, prices + 3, 2))
    return _says(after, before, "prices that are all 3 higher: nothing should change, yours moved")


def _never_below(answer) -> str | None:
    for seed in range(20):
        scores = _draw(24, 6, seed)
        even = assign_evenly(scores, 2).chosen
        reached, bound = float(scores[even].sum()), float(answer(scores, _draw(1, 6, seed + 50)[0], 2))
        if bound < reached - 1e-4:
            return f"yours {bound:.4f}, and an even routing reaches {reached:.4f}: no bound"
    return None


def _tight(answer) -> str | None:
    scores = _draw(40, 8, seed=7)
    best = assign_evenly(scores, 1, tolerance=0)
    return _says(answer(scores, best.prices, 1), float(scores[best.chosen].sum()), "the best prices, where they meet")


# ---------------------------------------------------------------- 04.2: one step of the prices


def _steps(scores: Tensor, prices: Tensor, top_k: int) -> Property:
    def holds(answer) -> str | None:
        given = scores.clone(), prices.clone()
        yours, spec = answer(*given, top_k), price_step(scores, prices, top_k)
        if not isinstance(yours, Tensor) or yours.shape != spec.shape:
            got = tuple(yours.shape) if isinstance(yours, Tensor) else type(yours).__name__
            return f"yours is {got}, spec a tensor {tuple(spec.shape)}"
        if not torch.equal(given[0], scores) or not torch.equal(given[1], prices):
            return "it changed the tensors that it was given"
        expert = int((yours - spec).abs().argmax())
        case = f"expert {expert} ({len(scores)} tokens, {len(prices)} experts, top_k {top_k})"
        return _says(yours[expert], float(spec[expert]), case)

    return holds


def _sum_to_zero(answer) -> str | None:
    total = float(answer(_draw(32, 8, seed=3) + 5, torch.zeros(8), 2).sum())
    return _says(total, 0.0, "the sum of the prices")


def _evens_out(answer) -> str | None:
    scores, prices = _draw(512, 8, seed=4), torch.zeros(8)
    for _ in range(30):
        prices = answer(scores, prices, 2)
    load = torch.bincount((scores - prices).topk(2).indices.flatten(), minlength=8).tolist()
    return (
        None if max(load) - min(load) <= 4 else f"after 30 of your steps the loads are {load}, spec 128 each, or close"
    )


# ---------------------------------------------------------------- 04.3: the next token of the causal router


def _next(scores: list[float], room: list[int], left: int, top_k: int) -> list[int]:
    """Forced experts first, then the best of those with room; in order of their number."""
    forced = [expert for expert, places in enumerate(room) if places == left]
    free = [expert for expert, places in enumerate(room) if 0 < places < left]
    free.sort(key=lambda expert: (-scores[expert], expert))
    return sorted(forced + free[: top_k - len(forced)])


def _picks(scores: list[float], room: list[int], left: int, top_k: int) -> Property:
    def holds(answer) -> str | None:
        given = torch.tensor(scores), torch.tensor(room)
        yours, spec = _chosen(answer, *given, left, top_k), _next(given[0].tolist(), room, left, top_k)
        if given[0].tolist() != torch.tensor(scores).tolist() or given[1].tolist() != room:
            return "it changed the tensors that it was given"
        case = f"scores {scores}, room {room}, {left} tokens left, top_k {top_k}"
        return None if yours == spec else f"yours {yours}, spec {spec} for {case}"

    return holds


def _chosen(answer, scores: Tensor, room: Tensor, left: int, top_k: int) -> list[int]:
    yours = answer(scores, room, left, top_k)
    return sorted(int(expert) for expert in yours)


def _finishes(tokens: int, num_experts: int, top_k: int, seed: int) -> Property:
    """Routed by the answer, a whole group ends with no room left, as a plain loop has it."""

    def holds(answer) -> str | None:
        scores = 5 * _draw(tokens, num_experts, seed)
        room = torch.tensor(
            [tokens * top_k // num_experts + (e < tokens * top_k % num_experts) for e in range(num_experts)]
        )
        for token in range(tokens):
            spec = _next(scores[token].tolist(), room.tolist(), tokens - token, top_k)
            yours = _chosen(answer, scores[token].clone(), room.clone(), tokens - token, top_k)
            if yours != spec:
                return f"token {token} of {tokens}, room {room.tolist()}: yours {yours}, spec {spec}"
            room[yours] -= 1
        return None if not bool(room.any()) else f"room {room.tolist()} is left, spec none"

    return holds


def _routes_like_the_library(answer) -> str | None:
    logits, top_k = _draw(48, 6, seed=11), 2
    spec = route(logits, top_k, "balanced_causal", pacing=0, adaptation=0).experts.sort(dim=1).values.tolist()
    room = torch.full((6,), 16)
    for token in range(48):
        yours = _chosen(answer, logits[token].clone(), room.clone(), 48 - token, top_k)
        if yours != spec[token]:
            return f"token {token}: yours {yours}, ml.route(..., 'balanced_causal') {spec[token]}"
        room[yours] -= 1
    return None


# ---------------------------------------------------------------- 04.4: the least variance


def _least(tokens: int, top_k: int, num_experts: int, spec: float) -> Property:
    def holds(answer) -> str | None:
        case = f"{tokens} tokens, top_k {top_k}, {num_experts} experts"
        return _says(answer(tokens, top_k, num_experts), spec, case, tolerance=1e-9)

    return holds


def _least_of_all(answer) -> str | None:
    """Every load of a few assignments is tried."""
    for tokens, top_k, num_experts in ((5, 1, 3), (3, 2, 4), (7, 1, 4), (2, 3, 5), (4, 1, 4)):
        asked = tokens * top_k
        loads = (load for load in itertools.product(range(asked + 1), repeat=num_experts) if sum(load) == asked)
        spec = min(sum((number - asked / num_experts) ** 2 for number in load) / num_experts for load in loads)
        fault = _least(tokens, top_k, num_experts, spec)(answer)
        if fault is not None:
            return fault
    return None


EXERCISES = {
    "04.1": Exercise(
        "Bound what any even routing can score",
        {
            "four tokens by hand, no prices": _bounds(_HAND, torch.zeros(2), 1, "prices 0, 0"),
            "four tokens by hand, the price in the middle": _bounds(
                _HAND, torch.tensor([1.25, 0]), 1, "prices 1.25, 0"
            ),
            "too dear": _bounds(_HAND, torch.tensor([2.5, 0]), 1, "prices 2.5, 0"),
            "two experts a token": _bounds(_draw(12, 4, 5), torch.tensor([1.0, 0.5, 0, -1.5]), 2, "12 tokens, top-2"),
            "loads that do not divide: the dearest get one more": _bounds(
                _draw(7, 4, 6), torch.tensor([0.2, 1.0, -0.5, 0.7]), 2, "7 tokens, 4 experts, top-2"
            ),
            "also where all prices are negative": _bounds(
                _draw(5, 3, 8), torch.tensor([-0.2, -1.0, -3.0]), 1, "5 tokens, prices -0.2, -1, -3"
            ),
            "a price that all pay changes nothing": _ignores_what_all_pay,
            "never below an even routing": _never_below,
            "equal to the best even routing at the best prices": _tight,
        },
        hints=(
            "Let every token buy the top_k experts with the greatest score - price. What do they pay, and who gets it?",
            "The experts get price * load, and an even load is floor(tokens * top_k / num_experts), for some one more: "
            "for as many as the division leaves over. A bound must assume that those are the dearest.",
            "share, spare = divmod(len(scores) * top_k, len(prices)); "
            "free = (scores - prices).topk(top_k, dim=1).values.sum(); "
            "return float(free + share * prices.sum() + prices.topk(spare).values.sum())",
        ),
    ),
    "04.2": Exercise(
        "Make one midpoint step of the prices",
        {
            "four tokens by hand": _steps(_HAND, torch.zeros(2), 1),
            "from prices that are there already": _steps(_HAND, torch.tensor([0.3, -0.3]), 1),
            "two experts a token": _steps(_draw(30, 6, 1), torch.zeros(6), 2),
            "three of five, from other prices": _steps(_draw(35, 5, 2), torch.linspace(-1, 1, 5), 3),
            "all but one": _steps(_draw(24, 4, 9), torch.linspace(0.5, -0.5, 4), 3),
            "equal scores need no prices": _steps(torch.zeros(8, 4), torch.zeros(4), 1),
            "prices sum to 0": _sum_to_zero,
            "thirty steps even the load out": _evens_out,
        },
        hints=(
            "Two halves. First a bar for every token: halfway between the top_k-th and the next of its scores less "
            "prices.",
            "Then a price for every expert: with c = tokens * top_k / num_experts, halfway between the c-th and the "
            "next of (score - bar) in its column. The old prices are not subtracted this time. At last take out the "
            "mean.",
            "reduced = (scores - prices).sort(dim=1, descending=True).values; "
            "bars = (reduced[:, top_k - 1] + reduced[:, top_k]) / 2; "
            "above = (scores - bars[:, None]).sort(dim=0, descending=True).values; "
            "c = len(scores) * top_k // len(prices); "
            "new = (above[c - 1] + above[c]) / 2; return new - new.mean()",
        ),
    ),
    "04.3": Exercise(
        "Choose the next token's experts, so that the group will end even",
        {
            "room for all: the best": _picks([0.1, 0.9, 0.5, 0.3], [3, 3, 3, 3], 6, 2),
            "no room: forbidden, however high the score": _picks([9.0, 0.9, 0.5, 0.3], [0, 4, 4, 4], 6, 2),
            "as much room as tokens left: forced, however low": _picks([-9.0, 0.9, 0.5, 0.3], [6, 2, 2, 2], 6, 2),
            "negative scores": _picks([-0.5, -3.0, -2.0, -4.0], [0, 4, 4, 4], 6, 2),
            "scores of a million": _picks([1e6, 2e6, 3e6, -1e6], [2, 2, 2, 6], 6, 2),
            "nothing is left to choose": _picks([0.1, 0.2, 0.9, 0.8], [3, 3, 0, 0], 3, 2),
            "equal scores: the lower expert": _picks([0.0] * 8, [2] * 8, 4, 4),
            "a group of 30 tokens ends even": _finishes(30, 5, 2, seed=12),
            "23 tokens over 7 experts, which does not divide": _finishes(23, 7, 3, seed=13),
            "every expert for every token": _finishes(6, 3, 3, seed=14),
            "the library's own, without its pacing": _routes_like_the_library,
        },
        hints=(
            "Room for everybody until the end is sum(room) = top_k * left. An expert with room == left must serve all "
            "tokens that are left, this one too.",
            "Give such experts a score that beats everything and experts without room one that beats nothing: infinity "
            "and minus infinity, in a copy. A large number or 0 will meet a larger number or a negative score one day.",
            "value = scores.masked_fill(room == 0, float('-inf')).masked_fill(room == left, float('inf')); "
            "return value.argsort(descending=True, stable=True)[:top_k]",
        ),
    ),
    "04.4": Exercise(
        "Compute the least variance that whole numbers allow",
        {
            "5 assignments for 3 experts": _least(5, 1, 3, 2 / 9),
            "where it divides, 0": _least(4096, 8, 64, 0.0),
            "100 tokens, top-3 of 16": _least(100, 3, 16, 0.1875),
            "fewer assignments than experts": _least(3, 2, 64, 6 * 58 / 64**2),
            "never more than a quarter": _least(8, 1, 16, 0.25),
            "one expert": _least(7, 1, 1, 0.0),
            "the least of all loads there are": _least_of_all,
        },
        hints=(
            "Loads are whole numbers: r experts get one assignment more than the others. What is r?",
            "r = tokens * top_k % num_experts. Distances from the mean: 1 - r/E for r experts, r/E for E - r of them.",
            "spare = tokens * top_k % num_experts; return spare * (num_experts - spare) / num_experts**2",
        ),
    ),
}
