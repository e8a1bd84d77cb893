"""How long an exchange, and a layer around it, would take on a cluster: predictions, from bytes and rates of links.

Nothing here is measured. A prediction leaves out what it does not know: congestion, the rank that started late, the
processors that copying takes from arithmetic. On links with data-sheet rates it is therefore a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.dispatch import expert_flops
from moe_lab.parallel.clusters import Cluster
from moe_lab.parallel.exchange import owners, wanted
from moe_lab.parallel.traffic import Traffic, count_copies
from moe_lab.roofline import DIRECTIONS, LayerShape
from moe_lab.types import Routing


@dataclass(frozen=True, eq=False)
class ExchangeTime:
    """A predicted exchange: milliseconds of each rank on each of its links, float64 (ranks,), and what binds.

    A rank's time = latencies of the links it uses + max(inside, between), each link the longer of its two directions.
    The exchange takes as long as its slowest rank. On a shared machine ``bus_ms`` is everyone's time, and all else 0.
    """

    cluster: Cluster
    latency_ms: Float[Tensor, " ranks"]
    inside_send_ms: Float[Tensor, " ranks"]
    inside_receive_ms: Float[Tensor, " ranks"]
    between_send_ms: Float[Tensor, " ranks"]
    between_receive_ms: Float[Tensor, " ranks"]
    bus_ms: float = 0.0

    @property
    def inside_ms(self) -> Float[Tensor, " ranks"]:
        """The longer direction inside the node."""
        return torch.maximum(self.inside_send_ms, self.inside_receive_ms)

    @property
    def between_ms(self) -> Float[Tensor, " ranks"]:
        """The longer direction between nodes."""
        return torch.maximum(self.between_send_ms, self.between_receive_ms)

    @property
    def by_rank_ms(self) -> Float[Tensor, " ranks"]:
        """Each rank's own time."""
        return self.latency_ms + torch.maximum(self.inside_ms, self.between_ms) + self.bus_ms

    @property
    def ms(self) -> float:
        """The exchange: its slowest rank."""
        return float(self.by_rank_ms.max())

    @property
    def slowest(self) -> int:
        """The rank that everyone waits for, the first of equal ones."""
        return int(self.by_rank_ms.argmax())

    @property
    def even_ms(self) -> float:
        """The same bytes, spread so that every rank sends and receives the mean on each link."""
        longest = max(float(self.inside_send_ms.mean()), float(self.between_send_ms.mean()))
        return float(self.latency_ms.max()) + longest + self.bus_ms

    @property
    def link(self) -> str:
        """Name of what the slowest rank waits for."""
        if self.cluster.bus is not None:
            return "cores of the machine"
        inside, between = float(self.inside_ms[self.slowest]), float(self.between_ms[self.slowest])
        if max(inside, between) <= float(self.latency_ms[self.slowest]):
            return "latency"
        return self.cluster.inside.name if inside >= between else self.cluster.between.name

    def describe(self) -> str:
        """One sentence."""
        return f"predicted: {self.ms:.3f} ms on {self.cluster.name}, rank {self.slowest} is slowest, {self.link} binds"


def exchange_time(bytes_sent: Int64[Tensor, "ranks ranks"], cluster: Cluster) -> ExchangeTime:
    """Predict one all-to-all in which row i's rank sends ``bytes_sent[i, j]`` to rank j: ranks 0, 1, ... of a cluster.

    Time of a link = max(bytes out, bytes in) / rate; of a rank = latencies + the longer of its two links; of the
    exchange = the slowest rank. What a rank keeps crosses no link. With a `Bus`: see there.

    Example:
        >>> from moe_lab.parallel.clusters import CLUSTERS
        >>> sent = torch.zeros(16, 16, dtype=torch.int64)
        >>> sent[0, 1], sent[0, 8] = 320_000_000, 50_000_000
        >>> time = exchange_time(sent, CLUSTERS["H800"])
        >>> round(time.ms, 3), time.slowest, time.link
        (2.007, 0, 'NVLink of the H800')

    Raises ValueError for a matrix that is not square, is larger than the cluster, or has bytes below 0.
    """
    ranks = _check_bytes(bytes_sent, cluster)
    if cluster.bus is not None:
        nothing = torch.zeros(ranks, dtype=torch.float64)
        return ExchangeTime(cluster, *[nothing] * 5, bus_ms=_bus_ms(bytes_sent, cluster))
    node = torch.arange(ranks) // cluster.ranks_per_node
    same = node[:, None] == node[None, :]
    crossing = bytes_sent.masked_fill(torch.eye(ranks, dtype=torch.bool), 0).double()
    latency, ways = torch.zeros(ranks, dtype=torch.float64), []
    for link, mask in ((cluster.inside, same), (cluster.between, ~same)):
        out, into = (crossing * mask).sum(dim=1), (crossing * mask).sum(dim=0)
        if link is None:
            ways += [torch.zeros_like(out)] * 2
            continue
        ways += [out / (link.gigabytes_per_s * 1e6), into / (link.gigabytes_per_s * 1e6)]
        latency += (out + into > 0) * (link.latency_us / 1e3)
    return ExchangeTime(cluster, latency, *ways)


def _bus_ms(bytes_sent: Tensor, cluster: Cluster) -> float:
    bus, ranks = cluster.bus, len(bytes_sent)
    kept = int(bytes_sent.diagonal().sum())
    carried = int(bytes_sent.sum()) - kept
    idle_us = bus.start_us + bus.message_us * ranks * (ranks - 1)
    return idle_us / 1e3 + (carried / bus.carried_gigabytes_per_s + kept / bus.kept_gigabytes_per_s) / 1e6


def _check_bytes(bytes_sent: Tensor, cluster: Cluster) -> int:
    if bytes_sent.dim() != 2 or bytes_sent.shape[0] != bytes_sent.shape[1]:
        raise ValueError(f"bytes_sent must be (ranks, ranks), got {tuple(bytes_sent.shape)}")
    ranks = len(bytes_sent)
    if not 1 <= ranks <= cluster.ranks:
        raise ValueError(f"bytes_sent must be of 1..{cluster.ranks} ranks on {cluster.name}, got {ranks}")
    if int(bytes_sent.min()) < 0:
        raise ValueError(f"bytes_sent must not be negative, found {int(bytes_sent.min())}")
    return ranks


def relay_copies(routings: Sequence[Routing], ranks: int, ranks_per_node: int) -> Int64[Tensor, "ranks ranks"]:
    """Copies of tokens on every hop, where a token crosses once to each node that it has experts on.

    It goes to the rank of its own number in that node, which hands it on inside the node: hop (a, i) -> (b, i) once
    for each token with an expert on node b, and hop (b, i) -> (b, j) once for each with an expert on rank (b, j). So a
    node's bytes between nodes grow with the nodes that tokens visit, and not with the experts. Answers come back the
    same ways, added up in the node: the transpose. The diagonal counts copies that were there already and cross no
    link. One routing a rank, experts in equal blocks, as in `count_copies`.

    Example:
        >>> routing = Routing(torch.tensor([[2, 3]]), torch.full((1, 2), 0.5), num_experts=4)
        >>> nothing = Routing(torch.tensor([[-1, -1]]), torch.zeros(1, 2), num_experts=4)
        >>> relay_copies([routing, nothing, nothing, nothing], ranks=4, ranks_per_node=2)[[0, 2]]
        tensor([[0, 0, 1, 0],
                [0, 0, 1, 1]])

    Raises: see `count_copies`; ValueError for nodes that do not divide the ranks.
    Source: DeepSeek-V3 (arXiv:2412.19437), section 3.2.2.
    """
    copies = count_copies(routings, ranks)
    check_whole("ranks_per_node", ranks_per_node, 1, ranks)
    if ranks % ranks_per_node:
        raise ValueError(f"ranks_per_node must divide ranks={ranks}, got {ranks_per_node}")
    nodes, hops = ranks // ranks_per_node, torch.zeros_like(copies)
    number, node_first = torch.arange(ranks) % ranks_per_node, torch.arange(nodes) * ranks_per_node
    for rank, routing in enumerate(routings):
        visited = wanted(owners(routing, routing.num_experts, nodes), nodes).sum(dim=0)
        relays = node_first + number[rank]  # the rank of the same number in every node
        here = rank // ranks_per_node
        visited[here] = 0
        hops[rank, relays] += visited
        onward = copies[rank].view(nodes, ranks_per_node)
        hops.view(ranks, nodes, ranks_per_node)[relays, torch.arange(nodes)] += onward
    return hops


@dataclass(frozen=True)
class Wire:
    """Bytes that one copy of a token takes on each of its four ways.

    ``dispatch``: the token to an expert; ``combine``: the answer back. In the backward pass ``answer_gradient`` goes
    to the expert, and ``token_gradient`` comes back.

    Example:
        >>> Wire.of_exchange(d_model=4, slots=2, number_bytes=2, weight_bytes=4)
        Wire(dispatch=24, combine=8, answer_gradient=8, token_gradient=16)
        >>> Wire.of_fp8(d_model=7168).dispatch
        7392

    Raises ValueError for bytes below 0.
    """

    dispatch: int
    combine: int
    answer_gradient: int
    token_gradient: int

    def __post_init__(self):
        for name in ("dispatch", "combine", "answer_gradient", "token_gradient"):
            check_whole(name, getattr(self, name), 0)

    @classmethod
    def of_exchange(cls, d_model: int, slots: int, number_bytes: int, weight_bytes: int) -> "Wire":
        """What this lab's own exchange sends (`Traffic`), without the 8 bytes that announce each message."""
        traffic = Traffic(torch.tensor([[0, 1], [0, 0]]), d_model, slots, number_bytes, weight_bytes)
        ways = traffic.dispatch[0, 1], traffic.combine[1, 0], traffic.backward[0, 1], traffic.backward[1, 0]
        return cls(*map(int, ways))

    @classmethod
    def of_fp8(cls, d_model: int, block: int = 128) -> "Wire":
        """FP8 to the experts with a float32 scale a block of numbers, bfloat16 back; the same in the backward pass.

        Experts' numbers and weights are not counted: some bytes a copy, against thousands.
        Source: DeepSeek-V3 (arXiv:2412.19437), section 3.3.3; DeepEP counts a token so in its own tests.
        """
        there = d_model + 4 * -(-check_whole("d_model", d_model, 1) // check_whole("block", block, 1))
        return cls(there, 2 * d_model, there, 2 * d_model)


@dataclass(frozen=True, eq=False)
class StepTime:
    """A predicted layer: its exchanges, the experts of each rank, and how much of one hides behind the other.

    ms = exchange + experts - overlap * min(exchange, experts): one after the other with ``overlap`` 0; with 1 the
    longer of the two, as where two micro-batches take turns.
    """

    exchanges: tuple[ExchangeTime, ...]
    experts_ms: Float[Tensor, " ranks"]
    overlap: float

    @property
    def exchange_ms(self) -> float:
        """All exchanges, one after the other."""
        return sum(one.ms for one in self.exchanges)

    @property
    def busiest_ms(self) -> float:
        """The experts of the rank with the most rows."""
        return float(self.experts_ms.max())

    @property
    def ms(self) -> float:
        """The layer."""
        return self._together(self.exchange_ms, self.busiest_ms)

    @property
    def even_ms(self) -> float:
        """The layer if every rank sent, received and computed the mean: what exact balance would leave."""
        return self._together(sum(one.even_ms for one in self.exchanges), float(self.experts_ms.mean()))

    def _together(self, exchange_ms: float, experts_ms: float) -> float:
        return exchange_ms + experts_ms - self.overlap * min(exchange_ms, experts_ms)

    def describe(self) -> str:
        """One sentence, which says that nobody has measured it."""
        return (
            f"predicted: {self.ms:.2f} ms on {self.exchanges[0].cluster.name} (exchanges {self.exchange_ms:.2f}, "
            f"experts of the busiest rank {self.busiest_ms:.2f}, overlap {self.overlap:.0%}); "
            f"{self.even_ms:.2f} ms with even loads"
        )


def step_time(
    routings: Sequence[Routing],
    cluster: Cluster,
    shape: LayerShape,
    wire: Wire,
    *,
    direction: str = "forward",
    overlap: float | int = 0.0,
    relayed: bool = True,
) -> StepTime:
    """Predict one MoE layer on as many ranks as there are routings: dispatch, experts, combine; and backward.

    Experts take `expert_flops` of a rank's rows at the cluster's rate, three times that for "training". ``relayed``
    says whether a token crosses once a node (`relay_copies`) or once a rank (`count_copies`).

    Example:
        >>> from moe_lab.parallel.clusters import CLUSTERS
        >>> shape = LayerShape(d_model=1024, d_expert=512, num_experts=16, top_k=1)
        >>> routing = Routing(torch.arange(4096)[:, None] % 16, torch.ones(4096, 1), 16)
        >>> step = step_time([routing] * 16, CLUSTERS["H800"], shape, Wire.of_fp8(1024))
        >>> step.describe().split(";")[0]
        'predicted: 0.15 ms on H800 (exchanges 0.14, experts of the busiest rank 0.01, overlap 0%)'

    Raises ValueError for an unknown direction, an overlap outside 0..1, a cluster without ``tflop_s``, or routings that
    do not fit the shape or the cluster.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}; got {direction!r}")
    if check_number("overlap", overlap, at_least=0) > 1:
        raise ValueError(f"overlap must lie in 0..1, got {overlap}")
    if cluster.tflop_s is None:
        raise ValueError(f"cluster must say its tflop_s, {cluster.name} does not")
    ranks, training = len(routings), direction == "training"
    copies = (
        relay_copies(routings, ranks, min(ranks, cluster.ranks_per_node)) if relayed else count_copies(routings, ranks)
    )
    if routings[0].num_experts != shape.num_experts:
        raise ValueError(f"routings must be over num_experts={shape.num_experts}, got {routings[0].num_experts}")
    ways = [copies * wire.dispatch, copies.T * wire.combine]
    if training:
        ways += [copies * wire.answer_gradient, copies.T * wire.token_gradient]
    rows = torch.stack([routing.load for routing in routings]).sum(dim=0).view(ranks, -1).sum(dim=1)
    flops = [expert_flops(count, shape.d_model, shape.d_expert) for count in rows.tolist()]
    experts_ms = torch.tensor(flops, dtype=torch.float64) * ((3 if training else 1) / cluster.tflop_s / 1e9)
    return StepTime(tuple(exchange_time(way, cluster) for way in ways), experts_ms, float(overlap))
