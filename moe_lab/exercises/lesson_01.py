"""Exercises of lesson 01: weights by hand, dropped tokens, who learns, experts in groups."""

import torch
from torch import Tensor

from moe_lab.exercises import Exercise, Property
from moe_lab.routers import expert_capacity, route


def _draw(tokens: int, num_experts: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- 01.1: experts and weights, as in Mixtral


def _weighs_like_mixtral(logits: Tensor, top_k: int) -> Property:
    def holds(answer) -> str | None:
        spec = route(logits, top_k, renormalise=True)
        experts, weights = answer(logits.clone(), top_k)
        if experts.shape != spec.experts.shape or weights.shape != spec.weights.shape:
            return f"yours {tuple(experts.shape)} and {tuple(weights.shape)}, spec {tuple(spec.experts.shape)} twice"
        if (token := _first((experts != spec.experts).any(dim=1))) is not None:
            return f"token {token}: experts yours {_row(experts, token)}, spec {_row(spec.experts, token)}"
        if (token := _first(~torch.isclose(weights.float(), spec.weights, atol=1e-5).all(dim=1))) is not None:
            return f"token {token}: weights yours {_row(weights, token)}, spec {_row(spec.weights, token)}"
        return None

    return holds


def _first(marks: Tensor) -> int | None:
    """The place of the first mark, or None."""
    return int(marks.nonzero()[0]) if bool(marks.any()) else None


def _row(table: Tensor, token: int) -> list:
    return [round(value, 3) for value in table[token].tolist()]


_BY_HAND = torch.tensor([[8.0, 4, 2, 2], [1, 1, 4, 2], [6, 1, 2, 1], [1, 3, 3, 1]]).log()


# ---------------------------------------------------------------- 01.2: how many assignments are dropped


def _drops(load: list[int], capacity_factor: float, spec: int) -> Property:
    def holds(answer) -> str | None:
        yours = answer(torch.tensor(load), capacity_factor)
        return None if yours == spec else f"yours {yours}, spec {spec}"

    return holds


def _drops_like_switch(answer) -> str | None:
    for seed, capacity_factor in enumerate((0.5, 1.0, 1.25, 2.0)):
        logits = _draw(203, 8, seed)
        spec = 203 - int(route(logits, 1, "switch", capacity_factor=capacity_factor).load.sum())
        yours = answer(route(logits, 1).load, capacity_factor)
        if yours != spec:
            capacity = expert_capacity(capacity_factor, 203, 1, 8)
            return f"capacity factor {capacity_factor} gives capacity {capacity}: yours {yours}, spec {spec}"
    return None


# ---------------------------------------------------------------- 01.3: which logits a gradient reaches


def _learns(logits: Tensor, top_k: int, spec: str, **options) -> Property:
    """``spec`` says who learns: "all", "chosen" or "none" of the experts; a token without an expert, nothing."""

    def router(values: Tensor):
        return route(values, top_k, **options)

    routing = router(logits)
    served = (routing.experts >= 0).any(dim=1, keepdim=True)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, routing.experts.clamp_min(0), True)
    expected = {"all": torch.ones_like(chosen), "chosen": chosen, "none": torch.zeros_like(chosen)}[spec] & served

    def holds(answer) -> str | None:
        given = logits.clone()
        yours = answer(router, given)
        if given.requires_grad or not torch.equal(given, logits):
            return "it changed the logits that it was given (a copy: logits.detach().clone())"
        if yours.dtype != torch.bool or yours.shape != logits.shape:
            return f"yours is {yours.dtype} {tuple(yours.shape)}, spec torch.bool {tuple(logits.shape)}"
        if (token := _first((yours != expected).any(dim=1))) is not None:
            experts, spec_experts = (marks[token].nonzero().flatten().tolist() for marks in (yours, expected))
            return f"token {token}: yours {experts}, spec {spec_experts}"
        return None

    return holds


_EQUAL_PAIR = torch.tensor([[2.0, 2.0, 0.0, -1.0], [0.0, 1.0, -1.0, 1.0]])
_CROWD = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 1.0], [0.5, 0.0]])


# ---------------------------------------------------------------- 01.4: the best experts of the best groups


def _chooses(
    scores: Tensor, bias: Tensor, top_k: int, num_groups: int, top_groups: int, spec: list[list[int]] | None = None
) -> Property:
    def holds(answer) -> str | None:
        options = {"num_groups": num_groups, "top_groups": top_groups, "score": "sigmoid", "bias": bias}
        expected = spec or route(scores.logit(), top_k, "group_limited", **options).experts.sort(dim=1).values.tolist()
        yours = answer(scores.clone(), bias.clone(), top_k, num_groups, top_groups).sort(dim=1).values.tolist()
        if len(yours) != len(expected):
            return f"yours has {len(yours)} tokens, spec {len(expected)}"
        for token, (row, expected_row) in enumerate(zip(yours, expected, strict=True)):
            if row != expected_row:
                return f"token {token}: yours {row}, spec {expected_row}"
        return None

    return holds


_FOUR = torch.tensor([[0.9, 0.1, 0.6, 0.5]])
_SIX = torch.tensor([[0.90, 0.05, 0.04, 0.50, 0.43, 0.30]])
_NO_BIAS = torch.zeros(4)


EXERCISES = {
    "01.1": Exercise(
        "Compute experts and weights as Mixtral does",
        {
            "the first three tokens of the worked example": _weighs_like_mixtral(_BY_HAND[:3], 2),
            "equal logits go to the lower expert": _weighs_like_mixtral(_BY_HAND[3:], 1),
            "100 tokens, 16 experts, top-4": _weighs_like_mixtral(_draw(100, 16, seed=1), 4),
            "top_k of all experts": _weighs_like_mixtral(_draw(5, 3, seed=2), 3),
            "one expert a token weighs 1": _weighs_like_mixtral(_draw(9, 4, seed=3), 1),
            "logits in the hundreds": _weighs_like_mixtral(_draw(20, 8, seed=4, spread=300.0), 2),
            "many equal logits": _weighs_like_mixtral(_draw(50, 8, seed=5).round(), 3),
        },
        hints=(
            "Three steps: order the experts of each token by falling logit, keep the first top_k, "
            "make their scores sum to 1.",
            "logits.sort(dim=1, descending=True, stable=True) gives values and indices; stable keeps equal logits in "
            "the order of the experts. Renormalised softmax scores are the softmax of the chosen logits alone.",
            "best = logits.sort(dim=1, descending=True, stable=True); "
            "return best.indices[:, :top_k], best.values[:, :top_k].softmax(dim=1)",
        ),
    ),
    "01.2": Exercise(
        "Predict how many assignments a capacity drops",
        {
            "an even load drops nothing": _drops([4, 4, 4], 1.0, 0),
            "7, 3, 1, 1 with capacity factor 1": _drops([7, 3, 1, 1], 1.0, 4),
            "everybody to one expert": _drops([12, 0, 0, 0], 1.0, 9),
            "a capacity is rounded up": _drops([4, 0, 1, 0], 1.0, 2),
            "room for all": _drops([9, 5, 0, 1], 3.0, 0),
            "half the room": _drops([4, 4, 4, 4], 0.5, 8),
            "the same number as ml.route(..., method='switch')": _drops_like_switch,
            "1.1 * 50 / 5 is 11 places, not 12": _drops([13, 12, 11, 10, 4], 1.1, 3),
        },
        hints=(
            "Each expert keeps at most `capacity` of the assignments that it was asked for; the rest is dropped. "
            "No expert can drop fewer than none.",
            "capacity = ceil(capacity_factor * load.sum() / len(load)). In floating point 1.1 * 50 / 5 is "
            "11.000000000000002: round to 9 digits before you take the ceiling.",
            "capacity = math.ceil(round(capacity_factor * int(load.sum()) / len(load), 9)); "
            "return int((load - capacity).clamp_min(0).sum())",
        ),
    ),
    "01.3": Exercise(
        "Diagnose which logits a gradient reaches",
        {
            "softmax over all experts: all learn": _learns(_draw(6, 5, seed=1), 2, "all"),
            "renormalised (Mixtral): the chosen learn": _learns(_draw(6, 5, seed=2), 2, "chosen", renormalise=True),
            "sigmoid, not renormalised: the chosen learn": _learns(_draw(6, 5, seed=3), 3, "chosen", score="sigmoid"),
            "one expert, renormalised: nobody learns": _learns(_draw(6, 5, seed=4), 1, "none", renormalise=True),
            "two equal weights still learn": _learns(_EQUAL_PAIR, 2, "chosen", score="softmax_after_top_k"),
            "a dropped token teaches nobody": _learns(_CROWD, 1, "all", method="switch", capacity_factor=1.0),
        },
        hints=(
            "Copy the logits, let them require a gradient, route them, and differentiate the weights. "
            "What is the sum of renormalised weights, and the gradient of a constant?",
            "Differentiate one slot at a time, so that gradients of two weights cannot cancel: "
            "torch.autograd.grad(routing.weights[:, slot].sum(), logits, retain_graph=True).",
            "\n    logits = logits.detach().clone().requires_grad_()\n"
            "    weights = router(logits).weights\n"
            "    slots = [torch.autograd.grad(w.sum(), logits, retain_graph=True)[0] for w in weights.unbind(1)]\n"
            "    return torch.stack(slots).abs().amax(dim=0) > 1e-6",
        ),
    ),
    "01.4": Exercise(
        "Implement the selection of DeepSeek-V3: the best experts of the best groups",
        {
            "a group counts by its two best, not its best": _chooses(_FOUR, _NO_BIAS, 2, 2, 1, [[2, 3]]),
            "two best, not the whole group": _chooses(_SIX, torch.zeros(6), 2, 2, 1, [[0, 1]]),
            "the bias moves the choice": _chooses(_FOUR, torch.tensor([0.4, 0.0, 0.0, 0.0]), 2, 2, 1, [[0, 1]]),
            "negative scores stay in their group": _chooses(_FOUR, torch.full((4,), -2.0), 2, 2, 1, [[2, 3]]),
            "200 tokens, 4 groups of 4": _chooses(_draw(200, 16, 1).sigmoid(), 0.1 * _draw(1, 16, 2)[0], 3, 4, 2),
            "200 tokens, 5 groups of 3, bias around -1": _chooses(
                _draw(200, 15, 3).sigmoid(), _draw(1, 15, 4)[0] - 1, 4, 5, 2
            ),
            "all groups allowed": _chooses(_draw(50, 8, 5).sigmoid(), _draw(1, 8, 6)[0], 2, 4, 4),
        },
        hints=(
            "Rank by scores + bias throughout. To score groups, view it as (tokens, num_groups, experts a group).",
            "A group's score is the sum of its two highest. Give every expert outside the best groups a value that can "
            "never win. Is 0 such a value, if a bias may be negative?",
            "\n    ranking = (scores + bias).view(len(scores), num_groups, -1)\n"
            "    groups = ranking.topk(2, dim=2).values.sum(dim=2).topk(top_groups, dim=1).indices\n"
            "    out = torch.ones(ranking.shape[:2], dtype=torch.bool).scatter(1, groups, False)\n"
            "    return ranking.masked_fill(out[..., None], float('-inf')).flatten(1).topk(top_k, dim=1).indices",
        ),
    ),
}
