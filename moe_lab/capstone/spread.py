"""A design's experts on the devices of a brief: who gets how many rows of a batch, and what its exchanges take."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_lab.accounting.counts import Counts
from moe_lab.balance import measure_balance
from moe_lab.capstone.briefs import Brief
from moe_lab.capstone.design import Design
from moe_lab.inputs import make_router_logits
from moe_lab.parallel.placement import Placement, place_experts
from moe_lab.parallel.simulator import StepTime, Wire, step_time
from moe_lab.roofline import BYTES, LayerShape
from moe_lab.routers import find_method, route
from moe_lab.routers.registry import options_of
from moe_lab.types import Routing

LEARNED_TOKENS = 512
LEARNED, JUDGED = 0, 1
"""Seeds of two batches of the same data: replicas are placed by the first, and everything is judged on the second."""


@dataclass(frozen=True, eq=False)
class Spread:
    """One layer's batch: the share of assignments that was dropped, rows by device, and the exchanges, if any."""

    dropped_fraction: float
    busiest_over_mean: float
    step: StepTime | None

    @property
    def exchange_ms(self) -> float:
        """Dispatch and combine of one layer."""
        return self.step.exchange_ms if self.step else 0.0

    @property
    def between_bytes(self) -> float:
        """What the busiest device sends or receives between nodes, in both exchanges of one layer."""
        if self.step is None or self.step.exchanges[0].cluster.between is None:
            return 0.0
        rate = self.step.exchanges[0].cluster.between.gigabytes_per_s
        return sum(float(one.between_ms.max()) for one in self.step.exchanges) * rate * 1e6


def route_tokens(design: Design, counts: Counts, tokens: int, seed: int) -> list[Routing]:
    """Route ``tokens`` tokens on each device, every device its own, by the design's router.

    Logits are `make_router_logits` of kind "correlated": topics of unequal frequency, experts of unequal popularity.
    What a method draws is seeded, and a hash gets ids of tokens.

    Raises: see `route`, whose errors name the option.
    """
    a, known = counts.architecture, options_of(find_method(design.method))
    logits = _drawn_logits(tokens * design.devices, a.num_experts, seed)
    more = {"generator": torch.Generator().manual_seed(seed)} if "generator" in known else {}
    if "token_ids" in known:
        more["token_ids"] = torch.arange(tokens) * 7919 % 1009  # any ids will do, as long as many differ
    return [route(part, a.top_k, design.method, **design.options, **more) for part in logits.chunk(design.devices)]


@functools.lru_cache(maxsize=4)  # designs that are compared have the same batches
def _drawn_logits(tokens: int, num_experts: int, seed: int) -> Tensor:
    return make_router_logits(tokens, num_experts, seed=seed)


def place_design(design: Design, counts: Counts, brief: Brief) -> Placement:
    """Experts in order, or with replicas, packed by the loads of the batch they are learned from.

    Groups of a router that has them (``num_groups``) stay whole on a node, where nodes divide them.

    Raises ValueError for devices that do not divide the places of experts, or that fill no whole nodes.
    """
    experts, devices = counts.architecture.num_experts, design.devices
    places = experts + design.extra_experts
    if places % devices:
        have = f"{experts} experts + {design.extra_experts} extra_experts"
        raise ValueError(f"devices must divide the places of a layer, {have}; got {devices}")
    a_node = brief.cluster.ranks_per_node if brief.cluster else devices
    if devices > a_node and devices % a_node:
        raise ValueError(f"devices must fill whole nodes of {a_node}, got {devices}")
    if devices == 1 or not design.extra_experts:
        return Placement(torch.arange(places) % experts, experts, devices)
    loads = sum(part.load for part in route_tokens(design, counts, LEARNED_TOKENS, LEARNED))
    groups = design.options.get("num_groups", 1)
    return place_experts(loads, places, devices, num_nodes=max(1, devices // a_node), num_groups=groups)


def spread(design: Design, counts: Counts, brief: Brief, tokens: int, placement: Placement) -> Spread:
    """Route a batch of ``tokens`` tokens a device to the placed experts, and predict one layer's exchanges."""
    parts = route_tokens(design, counts, tokens, JUDGED)
    dropped = sum(measure_balance(part).dropped_fraction for part in parts) / len(parts)
    if design.devices == 1:
        return Spread(dropped, 1.0, None)
    placed = [placement.route(part, start=rank) for rank, part in enumerate(parts)]
    rows = sum(part.load for part in placed).view(design.devices, -1).sum(dim=1).double()
    shape, wire = _layer(design, counts, placement, placed[0].slots)
    return Spread(dropped, float(rows.max() / rows.mean()), step_time(placed, brief.cluster, shape, wire))


def _layer(design: Design, counts: Counts, placement: Placement, slots: int) -> tuple[LayerShape, Wire]:
    """The sizes that the simulator needs, and the bytes of a copy: tokens in the design's dtype, float32 weights."""
    a = counts.architecture
    d_expert = [w for w in a.weights if w.component == "experts" and w.use == "product"][-1].shape[-1]
    shape = LayerShape(a.d_model, d_expert, placement.num_replicas, a.top_k)
    return shape, Wire.of_exchange(a.d_model, slots, BYTES[design.dtype], torch.float32.itemsize)
