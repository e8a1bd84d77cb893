"""What every routing method guarantees, in one table that the tests hold against the methods themselves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.types import Routing


@dataclass(frozen=True)
class Guarantee:
    """Promises that hold for all logits.

    ``load``: "even" (no two loads differ by more than 1), "even groups" (of experts), "capped", "nearly even" or
    "free". ``exactly_top_k``: every token gets top_k distinct experts; ``drops``: assignments that were asked for can
    be lost. ``depends_on``: what a token's experts may depend on: "itself", "earlier tokens", or "the batch", later
    tokens included, which a decoder cannot know.
    """

    load: str
    exactly_top_k: bool
    drops: bool
    depends_on: str


GUARANTEES: dict[str, Guarantee] = {
    "top_k": Guarantee("free", True, False, "itself"),
    "sigmoid_bias": Guarantee("free", True, False, "itself"),
    "noisy_top_k": Guarantee("free", True, False, "itself"),
    "switch": Guarantee("capped", False, True, "earlier tokens"),
    "gshard": Guarantee("capped", False, True, "the batch"),
    "capacity_top_k": Guarantee("capped", False, True, "the batch"),
    "group_limited": Guarantee("free", True, False, "itself"),
    "grouped_experts": Guarantee("even groups", True, False, "itself"),
    "expert_choice": Guarantee("even", False, True, "the batch"),
    "hash": Guarantee("free", True, False, "itself"),
    "random": Guarantee("nearly even", True, False, "itself"),
    "sinkhorn": Guarantee("nearly even", True, False, "the batch"),
    "base": Guarantee("even", True, False, "the batch"),
    "balanced": Guarantee("even", True, False, "the batch"),
    "balanced_causal": Guarantee("even", True, False, "earlier tokens"),
}
"""Name of a method -> its guarantees with default options; "nearly even" is no guarantee but what is seen."""


@dataclass(frozen=True)
class Disturbance:
    """How many other tokens got other experts after one token was replaced: those before it, and those after it."""

    earlier: int
    later: int


def disturb(
    route_batch: Callable[[Tensor], Routing],
    logits: Float[Tensor, "tokens num_experts"],
    token: int,
    replacement: Float[Tensor, " num_experts"],
) -> Disturbance:
    """Replace one token's logits and count who else is routed to other experts: a probe for causality.

    A method whose earlier tokens ever change looks ahead. That none changed in a probe proves nothing by itself; the
    tests try many.

    Example:
        >>> from moe_lab.routers import route
        >>> logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> disturb(lambda batch: route(batch, 2), logits, 40, torch.zeros(8))
        Disturbance(earlier=0, later=0)
    """
    other = logits.clone()
    other[token] = replacement
    before, after = (_expert_sets(route_batch(batch)) for batch in (logits, other))
    changed = (before != after).any(dim=1)
    return Disturbance(int(changed[:token].sum()), int(changed[token + 1 :].sum()))


def _expert_sets(routing: Routing) -> Tensor:
    """A row of marks for every token; the order of its slots does not count."""
    marks = torch.zeros(routing.tokens, routing.num_experts + 1, dtype=torch.bool, device=routing.experts.device)
    return marks.scatter(1, routing.experts + 1, True)[:, 1:]
