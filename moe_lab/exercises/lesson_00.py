"""Exercises of lesson 00: reading a routing."""

from collections.abc import Callable

import torch

from moe_lab.exercises import Exercise, Property
from moe_lab.types import Routing


def _random_routing(tokens: int, num_experts: int, top_k: int, seed: int) -> Routing:
    draw = torch.Generator().manual_seed(seed)
    experts = torch.rand(tokens, num_experts, generator=draw).argsort(dim=1)[:, :top_k]
    return Routing(experts, torch.full((tokens, top_k), 1.0 / top_k), num_experts)


def _busiest(routing: Routing) -> int:
    return int(routing.load.argmax())


def _share_used(routing: Routing) -> float:
    return float((routing.load > 0).sum()) / routing.num_experts


def _agrees_on(routing: Routing, spec: Callable[[Routing], float]) -> Property:
    def holds(answer) -> str | None:
        yours, right = answer(routing), spec(routing)
        agrees = abs(float(yours) - right) < 1e-6
        return None if agrees else f"yours {yours}, spec {right}, load {routing.load.tolist()}"

    return holds


_SKEWED = Routing(torch.tensor([[3, 1], [3, 0], [3, 2], [0, 3]]), torch.full((4, 2), 0.5), 5)
_DROPPED = Routing(torch.tensor([[2], [-1], [2], [-1], [-1]]), torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.0]]), 4)
_LAST = Routing(torch.tensor([[4], [4], [0]]), torch.ones(3, 1), 5)
_NOBODY = Routing(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), 3)

EXERCISES = {
    "00.1": Exercise(
        "Find the busiest expert of a routing",
        {
            "four tokens that prefer expert 3": _agrees_on(_SKEWED, _busiest),
            "a thousand tokens over 16 experts": _agrees_on(_random_routing(1000, 16, 2, seed=1), _busiest),
            "the last expert is the busiest": _agrees_on(_LAST, _busiest),
            "empty slots are nobody's": _agrees_on(_DROPPED, _busiest),
        },
        hints=(
            "A routing knows its load: how many assignments each expert has.",
            "routing.load is a tensor of num_experts whole numbers; you want the place of the largest.",
            "return int(routing.load.argmax())",
        ),
    ),
    "00.2": Exercise(
        "Share of a layer's experts that a routing uses",
        {
            "four of five experts": _agrees_on(_SKEWED, _share_used),
            "two of five, one of them the last": _agrees_on(_LAST, _share_used),
            "empty slots are no expert": _agrees_on(_DROPPED, _share_used),
            "all of sixteen": _agrees_on(_random_routing(1000, 16, 2, seed=1), _share_used),
            "a few of sixteen": _agrees_on(_random_routing(3, 16, 2, seed=2), _share_used),
            "no tokens use no experts": _agrees_on(_NOBODY, _share_used),
        },
        hints=(
            "An expert is used if its load is above 0.",
            "(routing.load > 0) is a tensor of True and False; its sum counts the True ones.",
            "return float((routing.load > 0).sum()) / routing.num_experts",
        ),
    ),
}
