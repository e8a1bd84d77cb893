"""Exercises of lesson 00: reading a routing."""

import torch

from moe_lab.exercises import Exercise, Property
from moe_lab.types import Routing


def _random_routing(tokens: int, num_experts: int, top_k: int, seed: int) -> Routing:
    draw = torch.Generator().manual_seed(seed)
    experts = torch.rand(tokens, num_experts, generator=draw).argsort(dim=1)[:, :top_k]
    return Routing(experts, torch.full((tokens, top_k), 1.0 / top_k), num_experts)


def _busiest(routing: Routing) -> int:
    return int(routing.load.argmax())


def _agrees_on(routing: Routing) -> Property:
    def holds(answer) -> str | None:
        yours, spec = answer(routing), _busiest(routing)
        return None if int(yours) == spec else f"yours {yours}, spec {spec}, load {routing.load.tolist()}"

    return holds


_SKEWED = Routing(torch.tensor([[3, 1], [3, 0], [3, 2], [0, 3]]), torch.full((4, 2), 0.5), 5)
_DROPPED = Routing(torch.tensor([[2], [-1], [2], [-1], [-1]]), torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.0]]), 4)

EXERCISES = {
    "00.1": Exercise(
        "Find the busiest expert of a routing",
        {
            "four tokens that prefer expert 3": _agrees_on(_SKEWED),
            "a thousand tokens over 16 experts": _agrees_on(_random_routing(1000, 16, 2, seed=1)),
            "the last expert is the busiest": _agrees_on(Routing(torch.tensor([[4], [4], [0]]), torch.ones(3, 1), 5)),
            "empty slots are nobody's": _agrees_on(_DROPPED),
        },
        hints=(
            "A routing knows its load: how many assignments each expert has.",
            "routing.load is a tensor of num_experts whole numbers; you want the place of the largest.",
            "return int(routing.load.argmax())",
        ),
    ),
}
