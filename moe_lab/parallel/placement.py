"""Which device holds which expert, how often, and which replica a token goes to.

An expert of the model is *logical*; each of its replicas is a *physical* expert, which lives on one device. Hot experts
get more replicas, and replicas are packed so that devices have equal counts and nearly equal loads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.types import Routing


@dataclass(frozen=True, eq=False)  # two placements are compared by their tensors, which have no single answer
class Placement:
    """The experts of one layer on devices: device d holds the physical experts d * n .. (d + 1) * n - 1.

    ``physical_to_logical`` is int64 (replicas,): the expert that each physical expert is a replica of, and so the index
    that lays weights out, ``w[placement.physical_to_logical]``. n is replicas / num_devices, the same everywhere.
    ``Placement(torch.arange(num_experts), num_experts, num_devices)`` is the plain placement: in order, once each.

    Example:
        >>> placement = Placement(torch.tensor([0, 1, 0, 2]), num_experts=3, num_devices=2)
        >>> placement.devices, placement.replicas_per_expert
        (tensor([0, 0, 1, 1]), tensor([2, 1, 1]))
        >>> placement.device_load(torch.tensor([6, 1, 2]))
        tensor([4., 5.], dtype=torch.float64)

    Raises TypeError for a wrong dtype; ValueError for a wrong shape, an expert outside ``0..num_experts-1``, an expert
    without a replica, or devices that do not divide the replicas.
    """

    physical_to_logical: Int64[Tensor, " replicas"]
    num_experts: int
    num_devices: int

    def __post_init__(self):
        experts = self.physical_to_logical
        if not isinstance(experts, Tensor) or experts.dtype != torch.int64:
            kind = experts.dtype if isinstance(experts, Tensor) else type(experts).__name__
            raise TypeError(f"physical_to_logical must be an int64 tensor, got {kind}")
        if experts.dim() != 1 or not experts.numel():
            raise ValueError(f"physical_to_logical must be (replicas,), at least one, got {tuple(experts.shape)}")
        check_whole("num_experts", self.num_experts, 1)
        _check_devices(len(experts), self.num_devices)
        low, high = (int(v) for v in experts.aminmax())
        if low < 0 or high >= self.num_experts:
            found = low if low < 0 else high
            raise ValueError(f"physical_to_logical must lie in 0..{self.num_experts - 1}, found {found}")
        if bool((self.replicas_per_expert == 0).any()):
            missing = int(self.replicas_per_expert.argmin())
            raise ValueError(f"physical_to_logical must name every expert at least once, expert {missing} is missing")

    @property
    def num_replicas(self) -> int:
        """How many physical experts there are."""
        return len(self.physical_to_logical)

    @property
    def replicas_per_expert(self) -> Int64[Tensor, " num_experts"]:
        """How many replicas each expert has, int64 (num_experts,)."""
        return torch.bincount(self.physical_to_logical, minlength=self.num_experts)

    @property
    def devices(self) -> Int64[Tensor, " replicas"]:
        """The device of each physical expert, int64 (replicas,)."""
        physical = torch.arange(self.num_replicas, device=self.physical_to_logical.device)
        return physical // (self.num_replicas // self.num_devices)

    @property
    def logical_to_physical(self) -> Int64[Tensor, "num_experts most_replicas"]:
        """Each expert's replicas in ascending order, int64 (num_experts, most replicas), -1 behind the last one.

        Example:
            >>> Placement(torch.tensor([0, 1, 0, 2]), num_experts=3, num_devices=2).logical_to_physical.tolist()
            [[0, 2], [1, -1], [3, -1]]
        """
        count = self.replicas_per_expert
        rank = _turns(self.physical_to_logical, self.num_experts)
        table = torch.full((self.num_experts, int(count.max())), -1, device=count.device)
        table[self.physical_to_logical, rank] = torch.arange(self.num_replicas, device=count.device)
        return table

    def device_load(self, loads: Shaped[Tensor, " num_experts"]) -> Float[Tensor, " num_devices"]:
        """The load of each device, float64 (num_devices,), where every replica takes an equal share of its expert's.

        After the fact, ``placement.route(routing).load.view(num_devices, -1).sum(dim=1)`` counts what was really sent.

        Raises TypeError for loads that are no numbers; ValueError for another shape, negative or infinite ones.
        """
        loads = _check_loads(loads)
        if loads.shape != (self.num_experts,):
            raise ValueError(f"loads must be (num_experts={self.num_experts},), got {tuple(loads.shape)}")
        experts = self.physical_to_logical.cpu()
        shares = (loads / self.replicas_per_expert.cpu())[experts]
        return shares.view(self.num_devices, -1).sum(dim=1)

    def route(self, routing: Routing, *, start: int = 0) -> Routing:
        """The same routing over physical experts: each expert's tokens go to its replicas in turn, in token order.

        An expert's n-th assignment (n = 0, 1, ...) goes to replica (start + n) mod replicas, so that loads of replicas
        differ by at most one. Slots, weights and empty slots stay as they are, and ``expert_mlp`` gives the same
        answer: with weights ``w[placement.physical_to_logical]`` replicas are the same function.

        Every batch begins with replica ``start``. Where devices route batches of their own, let each start at its own
        number: all from 0, the leftovers of all would meet on the first replicas.

        Example:
            >>> placement = Placement(torch.tensor([0, 1, 0, 2]), num_experts=3, num_devices=2)
            >>> routing = Routing(torch.tensor([[0], [0], [2], [0], [-1]]), torch.tensor([[1.0]] * 4 + [[0.0]]), 3)
            >>> placement.route(routing).experts.flatten().tolist()
            [0, 2, 3, 0, -1]

        Raises TypeError for anything but a `Routing`; ValueError where its experts are not this placement's in number,
        or for a negative start.
        """
        if not isinstance(routing, Routing):
            raise TypeError(f"routing must be a Routing, got {type(routing).__name__}")
        if routing.num_experts != self.num_experts:
            raise ValueError(f"routing must be over num_experts={self.num_experts} experts, got {routing.num_experts}")
        check_whole("start", start, 0)
        device = routing.experts.device
        table, count = self.logical_to_physical.to(device), self.replicas_per_expert.to(device)
        flat = routing.experts.flatten()
        expert = flat.clamp_min(0)  # what an empty slot reads is covered below
        physical = table[expert, (_turns(flat, self.num_experts) + start) % count[expert]]
        physical = physical.masked_fill(flat < 0, -1).view_as(routing.experts)
        return Routing.trusted(physical, routing.weights, self.num_replicas, routing.top_k)


def place_experts(
    loads: Shaped[Tensor, "*layers num_experts"],
    num_replicas: int,
    num_devices: int,
    *,
    num_nodes: int = 1,
    num_groups: int = 1,
) -> Placement | list[Placement]:
    """Place experts on devices by the loads expected of them: one `Placement`, or a list for (layers, num_experts).

    Where num_nodes divides num_groups (hierarchical): `pack` the groups of experts onto nodes, `replicate` the hottest
    experts of each node, `pack` the replicas onto the node's devices. Expert e belongs to group
    e // (num_experts / num_groups), and no group is split between nodes, as routing limited to groups wants it. Else
    (global) all devices count as one node and groups are ignored.

    Within a node, the busiest and the idlest device differ by at most the load of the node's heaviest replica; nodes
    differ by at most the heaviest group. That is no optimum: a packing that is even may exist and be missed.

    Example:
        >>> placement = place_experts(torch.tensor([8, 1, 2, 3]), num_replicas=6, num_devices=2)
        >>> placement.physical_to_logical, placement.device_load(torch.tensor([8, 1, 2, 3])).tolist()
        (tensor([3, 0, 1, 0, 0, 2]), [6.666666666666666, 7.333333333333333])

    This works in float64, and of equal loads the lower number comes first. EPLB sorts in float32 and leaves the order
    of equal loads open in long rows: where shares are equal, or nearly so, its placements can differ from these.

    Raises TypeError for loads that are no numbers; ValueError for loads that are negative, infinite, NaN or of another
    shape; fewer replicas than experts; devices that do not divide num_replicas, groups num_experts, nodes num_devices.
    Source: EPLB (github.com/deepseek-ai/EPLB), the algorithm of its README; DeepSeek-V3 (arXiv:2412.19437), section
    3.4.1.
    """
    loads = _check_loads(loads)
    num_experts = loads.shape[-1]
    check_whole("num_replicas", num_replicas, num_experts)
    _check_devices(num_replicas, num_devices)
    _check_divides("num_nodes", num_nodes, "num_devices", num_devices)
    _check_divides("num_groups", num_groups, "num_experts", num_experts)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    placements = []
    for layer in loads.view(-1, num_experts).tolist():
        experts = _place_layer(layer, num_replicas, num_devices, num_nodes, num_groups)
        placements.append(Placement(torch.tensor(experts), num_experts, num_devices))
    return placements if loads.dim() == 2 else placements[0]


def _place_layer(loads: list[float], num_replicas: int, num_devices: int, num_nodes: int, num_groups: int) -> list[int]:
    """The expert of each physical expert, node by node and device by device."""
    size = len(loads) // num_groups
    physical = []
    for groups in pack([sum(loads[group * size : (group + 1) * size]) for group in range(num_groups)], num_nodes):
        experts = [group * size + place for group in groups for place in range(size)]
        replicas = [experts[place] for place in replicate([loads[e] for e in experts], num_replicas // num_nodes)]
        shares = [loads[expert] / replicas.count(expert) for expert in replicas]
        physical += [replicas[r] for device in pack(shares, num_devices // num_nodes) for r in device]
    return physical


def replicate(loads: Sequence[float | int], num_replicas: int) -> list[int]:
    """The expert of each replica: every expert once, then the one with the largest load a replica, again and again.

    No other way to hand out the replicas has a smaller largest load a replica. Of equal ones the lower number wins.

    Example:
        >>> replicate([8.0, 1.0, 3.0], num_replicas=6)
        [0, 1, 2, 0, 0, 2]

    Raises ValueError for fewer replicas than experts, or no expert.
    """
    if not loads:
        raise ValueError("loads must hold at least one expert, got none")
    check_whole("num_replicas", num_replicas, len(loads))
    replicas, count = list(range(len(loads))), [1] * len(loads)
    shares = [(-load, expert) for expert, load in enumerate(loads)]
    heapify(shares)
    while len(replicas) < num_replicas:
        _, hottest = shares[0]
        replicas.append(hottest)
        count[hottest] += 1
        heapreplace(shares, (-loads[hottest] / count[hottest], hottest))
    return replicas


def pack(loads: Sequence[float | int], num_packs: int) -> list[list[int]]:
    """The items of each pack, equally many: heaviest item first, each into the lightest pack that has room.

    The heaviest and the lightest pack differ by at most the heaviest item. Of equal items or packs the lower number
    comes first; with one item a pack, item i is in pack i.

    Example:
        >>> pack([1.0, 5.0, 4.0, 3.0], num_packs=2)
        [[1, 0], [2, 3]]

    Raises ValueError for packs that do not divide the items, or no item.
    """
    if not loads:
        raise ValueError("loads must hold at least one item, got none")
    _check_divides("num_packs", num_packs, "the number of loads", len(loads))
    if num_packs == len(loads):
        return [[item] for item in range(num_packs)]
    packs, room = [[] for _ in range(num_packs)], [(0.0, p) for p in range(num_packs)]
    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):  # stable: equal ones stay in order
        weight, lightest = heappop(room)
        packs[lightest].append(item)
        if len(packs[lightest]) < len(loads) // num_packs:
            heappush(room, (weight + loads[item], lightest))
    return packs


def _turns(experts: Tensor, num_experts: int) -> Tensor:
    """How many times each entry's expert was named before it; experts is flat, -1 an empty slot."""
    order = experts.argsort(stable=True)
    count = torch.bincount(experts + 1, minlength=num_experts + 1)
    first = count.cumsum(0) - count
    turns = torch.arange(len(experts), device=experts.device) - first[experts[order] + 1]
    return torch.empty_like(turns).index_copy(0, order, turns)


def _check_loads(loads: Tensor) -> Tensor:
    """Loads as float64 on the CPU: (num_experts,) or (layers, num_experts), finite, none negative."""
    if not isinstance(loads, Tensor) or loads.dtype == torch.bool or loads.is_complex():
        kind = loads.dtype if isinstance(loads, Tensor) else type(loads).__name__
        raise TypeError(f"loads must be a tensor of numbers, got {kind}")
    if loads.dim() not in (1, 2) or not loads.numel():
        raise ValueError(
            f"loads must be (num_experts,) or (layers, num_experts), neither of them 0, got {tuple(loads.shape)}"
        )
    loads = loads.detach().double().cpu()
    allowed = loads.isfinite() & (loads >= 0)
    if not bool(allowed.all()):
        raise ValueError(f"loads must be finite and not negative, found {float(loads[~allowed][0])}")
    if not bool(loads.sum(dim=-1).isfinite().all()):
        raise ValueError(f"loads must have a finite sum, found numbers up to {float(loads.max())}")
    return loads


def _check_devices(num_replicas: int, num_devices: int) -> None:
    """Refuse devices that cannot hold equally many replicas."""
    _check_divides("num_devices", num_devices, "num_replicas", num_replicas)


def _check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """Refuse a value that does not divide the whole."""
    if whole % check_whole(name, value, 1, whole):
        raise ValueError(f"{name} must divide {whole_name}={whole}, got {value}")
