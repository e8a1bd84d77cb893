"""All-to-all board: experts on ranks, the bytes that ranks then exchange, and the rank that everyone waits for."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import traitlets

from moe_lab.checks import check_number, check_whole
from moe_lab.parallel.clusters import CLUSTERS, Cluster
from moe_lab.parallel.placement import Placement, place_experts, replicate
from moe_lab.parallel.simulator import ExchangeTime, StepTime, Wire, relay_copies, step_time
from moe_lab.parallel.traffic import count_copies
from moe_lab.roofline import LayerShape
from moe_lab.routers import route
from moe_lab.types import Routing
from moe_lab.widgets.expert_roofline import say_time, three_digits
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.route_one_batch import check_range, uniform
from moe_lab.widgets.trace_player import say_count

MOST_RANKS, MOST_EXPERTS_PER_RANK, MOST_TOP_K = 16, 8, 8
MOST_EXPERTS = MOST_RANKS * MOST_EXPERTS_PER_RANK
FEWEST_TOKENS, MOST_TOKENS = 16, 512
NUMBER_BYTES, WEIGHT_BYTES = 2, 4  # bfloat16 tokens with float32 weights
FITTED = ("nodes", "top_k", "node_limit", "replicas", "homes")


class AllToAllBoard(LabWidget):
    """Move experts between ranks, and see what tokens then make the ranks exchange, compute and wait for.

    Every rank has ``tokens`` tokens, whose logits are drawn from ``seed``, the same in the browser as here: Gumbel
    noise - skew * log(popularity rank), and which expert is how popular is drawn as well. They are routed by "top_k",
    or with ``node_limit`` by "group_limited", where each node's share of the experts, in order, is a group. Expert e
    lies on rank ``homes[e]``, by default in order. ``replicas`` more go to the hottest experts (`replicate`), each onto
    the lightest rank that has none of it; under a node limit, of its own node if it can. Replicas and `pack` know this
    sample's loads, where a real system knows only earlier ones.

    Times are those of `moe_lab.parallel.simulator`: predictions. ``cluster`` names one of ``clusters`` (`CLUSTERS` by
    default), whose links and arithmetic are used for ``ranks`` in ``nodes``. A token goes to each rank that has one of
    its experts, in bfloat16, with the numbers and weights that this lab's exchange sends: straight, or with ``relay``
    once to each node and on from there (`relay_copies`).

    Example:
        >>> AllToAllBoard(ranks=4, tokens=64, seed=1)  # doctest: +NORMALIZE_WHITESPACE
        AllToAllBoard: Predicted for one layer on H800, 4 ranks in 2 nodes: 69.6 µs = dispatch 27.1 µs + experts 15.4 µs
        + combine 27.1 µs. Rank 2 is slowest in all three. Dispatch waits for rank 2, which receives 1 MB over NDR
        InfiniBand, 1.26 times the mean; the experts for rank 2, which computes 173 of 512 rows, 1.35 times the mean;
        combine for rank 2, which sends 1 MB over NDR InfiniBand, 1.26 times the mean. Of 4.72 MB dispatched to other
        ranks, 3.2 MB go to another node. Predicted with even loads: 57.4 µs.

    Raises ValueError or TypeError for no clusters, two of a name, one that does not say its arithmetic or an unknown
    one; ranks outside 2..16, experts_per_rank or top_k outside 1..8, tokens outside 16..512, a skew outside 0..2, a
    seed outside 0..2147483647; nodes that do not divide the ranks, or more than one without a link between; a
    node_limit whose nodes have fewer than top_k experts, replicas outside 0..ranks - 1, and homes that are not a rank
    for each expert.
    """

    _esm = Path(__file__).with_name("all_to_all_board.js")
    _css = Path(__file__).with_name("all_to_all_board.css")
    of_the_reader = ("cluster", "ranks", "experts_per_rank", *FITTED, "tokens", "skew", "relay", "even", "seed")

    clusters = traitlets.List(traitlets.Dict()).tag(sync=True)
    cluster = traitlets.Unicode().tag(sync=True)
    ranks = traitlets.Int(8, min=2, max=MOST_RANKS).tag(sync=True)
    nodes = traitlets.Int(2, min=1, max=MOST_RANKS).tag(sync=True)
    experts_per_rank = traitlets.Int(4, min=1, max=MOST_EXPERTS_PER_RANK).tag(sync=True)
    top_k = traitlets.Int(2, min=1, max=MOST_TOP_K).tag(sync=True)
    tokens = traitlets.Int(256, min=FEWEST_TOKENS, max=MOST_TOKENS).tag(sync=True)
    skew = traitlets.Float(1.0, min=0.0, max=2.0).tag(sync=True)
    node_limit = traitlets.Int(None, allow_none=True).tag(sync=True)
    relay = traitlets.Bool(False).tag(sync=True)
    replicas = traitlets.Int(0, min=0, max=MOST_RANKS - 1).tag(sync=True)
    homes = traitlets.List(traitlets.Int()).tag(sync=True)
    even = traitlets.Bool(True).tag(sync=True)  # whether even loads are shown beside
    seed = traitlets.Int(0, min=0, max=2**31 - 1).tag(sync=True)
    layer = traitlets.Dict().tag(sync=True)  # as `layer_of` makes it

    def __init__(
        self,
        ranks: int = 8,
        nodes: int = 2,
        experts_per_rank: int = 4,
        top_k: int = 2,
        tokens: int = 256,
        skew: float | int = 1.0,
        cluster: str | None = None,
        *,
        node_limit: int | None = None,
        relay: bool = False,
        replicas: int = 0,
        homes: Sequence[int] | None = None,
        even: bool = True,
        seed: int = 0,
        d_model: int = 7168,
        d_expert: int = 2048,
        clusters: Sequence[Cluster] | None = None,
    ):
        clusters = [*CLUSTERS.values()] if clusters is None else list(clusters)
        self._clusters = {one.name: one for one in clusters}
        if not clusters or len(self._clusters) < len(clusters):
            raise ValueError(f"clusters must be at least one, each with its own name; got {[c.name for c in clusters]}")
        for one in clusters:
            if one.tflop_s is None:
                raise ValueError(f"clusters must say their tflop_s, {one.name} does not")
        check_range("skew", check_number("skew", skew), 0, 2)
        state = {
            "cluster": clusters[0].name if cluster is None else cluster,
            "ranks": check_whole("ranks", ranks, 2, MOST_RANKS),
            "experts_per_rank": check_whole("experts_per_rank", experts_per_rank, 1, MOST_EXPERTS_PER_RANK),
            "tokens": check_whole("tokens", tokens, FEWEST_TOKENS, MOST_TOKENS),
            "seed": check_whole("seed", seed, 0, 2**31 - 1),
        }
        self._check("cluster", state["cluster"], state)
        homes = in_order(ranks, experts_per_rank) if homes is None else list(homes)
        given = {"nodes": nodes, "top_k": top_k, "node_limit": node_limit, "replicas": replicas, "homes": homes}
        for name in FITTED:
            state[name] = self._check(name, given[name], state)
        state.update(clusters=[asdict(one) for one in clusters], layer=layer_of(d_model, d_expert))
        super().__init__(**state, skew=float(skew), relay=relay, even=even)
        # only now, or the settings would be compared while some of them are missing
        self.observe(self._fit, ["cluster", "ranks", "experts_per_rank", *FITTED])

    @property
    def routings(self) -> list[Routing]:
        """Each rank's tokens over the experts, before anybody asks where those lie."""
        limit = (self.nodes, self.node_limit) if self.node_limit else None
        found = route_sample(self.seed, self.ranks, self.tokens, len(self.homes), self.skew, self.top_k, limit)
        parts = zip(found.experts.split(self.tokens), found.weights.split(self.tokens), strict=True)
        return [Routing(experts, weights, found.num_experts) for experts, weights in parts]

    @property
    def loads(self) -> torch.Tensor:
        """Rows of each expert, of all ranks together, int64 (num_experts,)."""
        return torch.stack([routing.load for routing in self.routings]).sum(dim=0)

    @property
    def held(self) -> list[list[int]]:
        """The experts of each rank, replicas last."""
        node = self.ranks // self.nodes if self.node_limit else self.ranks
        return place_replicas(self.loads.tolist(), self.homes, self.replicas, self.ranks, node)

    @property
    def placement(self) -> Placement:
        """The same as a `Placement`; a rank that holds fewer than another has places of an expert nobody asks for."""
        held, num_experts = self.held, len(self.homes)
        places = max(map(len, held))
        filled = [[*experts, *[num_experts] * (places - len(experts))] for experts in held]
        empty = any(len(experts) < places for experts in held)
        return Placement(torch.tensor(filled).flatten(), num_experts + empty, self.ranks)

    @property
    def placed(self) -> list[Routing]:
        """Each rank's tokens over the places that experts have on ranks; rank r starts with replica r of each."""
        placement = self.placement
        return [
            placement.route(replace(routing, num_experts=placement.num_experts), start=rank)
            for rank, routing in enumerate(self.routings)
        ]

    def step(self) -> StepTime:
        """What the widget predicts, by `step_time`."""
        placed, chosen = self.placed, self._clusters[self.cluster]
        cluster = replace(chosen, ranks=self.ranks, ranks_per_node=self.ranks // self.nodes)
        d_model, d_expert = self.layer["d_model"], self.layer["d_expert"]
        shape = LayerShape(d_model, d_expert, placed[0].num_experts, self.top_k)
        wire = Wire.of_exchange(d_model, self.top_k, NUMBER_BYTES, WEIGHT_BYTES)
        return step_time(placed, cluster, shape, wire, relayed=self.relay)

    def count(self) -> dict[str, torch.Tensor]:
        """What the widget counts, all int64.

        ``dispatch`` and ``combine``: bytes from the row's rank to the column's, with those that a rank keeps; ``rows``:
        tokens that the experts of each rank compute, one for each of a token's experts.

        Example:
            >>> found = AllToAllBoard(ranks=2, nodes=1, experts_per_rank=1, top_k=2, tokens=16, d_model=4).count()
            >>> found["rows"].tolist(), found["combine"].tolist()
            ([32, 32], [[128, 128], [128, 128]])
        """
        placed = self.placed
        layer, node = self.layer, self.ranks // self.nodes
        copies = relay_copies(placed, self.ranks, node) if self.relay else count_copies(placed, self.ranks)
        rows = torch.stack([routing.load for routing in placed]).sum(dim=0).view(self.ranks, -1).sum(dim=1)
        dispatch = copies * (layer["row_bytes"] + self.top_k * layer["slot_bytes"])
        return {"dispatch": dispatch, "combine": copies.T * layer["row_bytes"], "rows": rows}

    def between(self) -> tuple[int, int]:
        """Dispatched bytes that leave their rank, and how many of those leave their node."""
        sent, rank = self.count()["dispatch"], torch.arange(self.ranks)
        node = rank // (self.ranks // self.nodes)
        return int(sent[rank[:, None] != rank].sum()), int(sent[node[:, None] != node].sum())

    def pack(self) -> None:
        """Give the experts to ranks by their loads, equally many each: `place_experts` without replicas.

        Under a node limit an expert stays in its node, or tokens would need more nodes than they are allowed.
        """
        nodes = self.nodes if self.node_limit else 1
        packed = place_experts(self.loads, len(self.homes), self.ranks, num_nodes=nodes, num_groups=nodes)
        self.homes = packed.devices[packed.logical_to_physical[:, 0]].tolist()

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        step, rows = self.step(), self.count()["rows"].tolist()
        dispatch, combine = step.exchanges
        busiest = int(step.experts_ms.argmax())
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        same = dispatch.cluster.bus is None and dispatch.slowest == busiest == combine.slowest
        headline = f"Rank {busiest} is slowest in all three. " if same else ""
        even = f" Predicted with even loads: {say_time(step.even_ms)}." if self.even else ""
        return (
            f"Predicted for one layer on {self.cluster}, {self.ranks} ranks in {nodes}: {say_time(step.ms)} = "
            f"dispatch {say_time(dispatch.ms)} + experts {say_time(step.busiest_ms)} + combine {say_time(combine.ms)}. "
            f"{headline}Dispatch waits for {say_wait(dispatch)}; the experts for rank {busiest}, which computes "
            f"{rows[busiest]:,} of {sum(rows):,} rows, {say_ratio(rows, busiest)}; combine for "
            f"{say_wait(combine)}.{self._say_crossing()}{even}"
        )

    def _say_crossing(self) -> str:
        if self.nodes == 1:
            return ""
        crossing, between = (say_count(count, "B") for count in self.between())
        return f" Of {crossing} dispatched to other ranks, {between} go to another node."

    def __repr__(self) -> str:
        return f"AllToAllBoard: {self.summary()}"

    def _check(self, name: str, value: object, state: dict) -> object:
        """Refuse what does not fit the other settings."""
        ranks, crosses = state["ranks"], name == "cluster" or self._crosses(state["cluster"])
        num_experts = ranks * state["experts_per_rank"]
        if name == "cluster" and value not in self._clusters:
            raise ValueError(f"cluster must be one of {', '.join(self._clusters)}; got {value!r}")
        if name == "nodes" and (ranks % check_whole(name, value, 1, ranks) or (value > 1 and not crosses)):
            allowed = f"divide ranks={ranks}" if crosses else f"be 1 on {state['cluster']}"
            raise ValueError(f"nodes must {allowed}, got {value}")
        if name == "top_k":
            check_whole(name, value, 1, min(MOST_TOP_K, num_experts))
        if name == "node_limit" and value is not None:
            check_whole(name, value, fewest_nodes(state["top_k"], num_experts, state["nodes"]), state["nodes"])
        if name == "replicas":
            check_whole(name, value, 0, ranks - 1)
        if name == "homes" and (len(value) != num_experts or not set(value) <= set(range(ranks))):
            raise ValueError(
                f"homes must be {num_experts} numbers in 0..{ranks - 1}, a rank for each expert; got {value}"
            )
        return value

    def _crosses(self, cluster: str) -> bool:
        return self._clusters[cluster].between is not None

    @traitlets.validate("cluster", *FITTED)
    def _check_trait(self, proposal):
        state = {name: getattr(self, name) for name in ("cluster", "ranks", "experts_per_rank", "top_k", "nodes")}
        return self._check(proposal["trait"].name, proposal["value"], state)

    def _fit(self, _change):
        state = {name: getattr(self, name) for name in ("ranks", "experts_per_rank", *FITTED)}
        with self.hold_trait_notifications():
            for name, value in fit(state, self._crosses(self.cluster)).items():
                setattr(self, name, value)


def layer_of(d_model: int, d_expert: int) -> dict[str, int]:
    """Widths of the layer, and what a copy of a token takes on its way: its row, and for each slot what belongs to it.

    Example:
        >>> layer_of(4, 8)
        {'d_model': 4, 'd_expert': 8, 'row_bytes': 8, 'slot_bytes': 8}
    """
    shape = LayerShape(d_model, d_expert, 1, 1)
    wire = Wire.of_exchange(shape.d_model, 1, NUMBER_BYTES, WEIGHT_BYTES)
    slot_bytes = wire.dispatch - wire.combine
    return {"d_model": d_model, "d_expert": d_expert, "row_bytes": wire.combine, "slot_bytes": slot_bytes}


def in_order(ranks: int, experts_per_rank: int) -> list[int]:
    """The rank of each expert where they lie in order.

    Example:
        >>> in_order(2, 3)
        [0, 0, 0, 1, 1, 1]
    """
    return [rank for rank in range(ranks) for _ in range(experts_per_rank)]


def fewest_nodes(top_k: int, num_experts: int, nodes: int) -> int:
    """How many nodes a token needs for top_k experts."""
    return -(-top_k * nodes // num_experts)


def fit(state: dict, crosses: bool) -> dict[str, object]:
    """The settings that depend on others, as near to what they were as the others allow.

    ``crosses`` says whether the cluster has a link between nodes. A limit that limits nothing is None.

    Example:
        >>> state = {"ranks": 6, "experts_per_rank": 1, "nodes": 4, "top_k": 8, "node_limit": 1, "replicas": 7}
        >>> fit({**state, "homes": [0, 0]}, crosses=True)
        {'nodes': 3, 'top_k': 6, 'node_limit': None, 'replicas': 5, 'homes': [0, 1, 2, 3, 4, 5]}
    """
    ranks, num_experts = state["ranks"], state["ranks"] * state["experts_per_rank"]
    nodes = max(n for n in range(1, state["nodes"] + 1) if ranks % n == 0) if crosses else 1
    top_k, limit, homes = min(state["top_k"], num_experts), state["node_limit"], state["homes"]
    if limit is not None:
        limit = max(limit, fewest_nodes(top_k, num_experts, nodes))
    if len(homes) != num_experts or max(homes) >= ranks:
        homes = in_order(ranks, state["experts_per_rank"])
    return {
        "nodes": nodes,
        "top_k": top_k,
        "node_limit": None if limit is None or limit >= nodes else limit,
        "replicas": min(state["replicas"], ranks - 1),
        "homes": homes,
    }


@functools.lru_cache(maxsize=4)
def draw_noise(seed: int, ranks: int, tokens: int, num_experts: int) -> torch.Tensor:
    """Gumbel noise, float64 (ranks * tokens, num_experts); it depends on its place and not on the table's size."""
    places = [
        MOST_EXPERTS * (MOST_TOKENS * rank + token) + expert
        for rank in range(ranks)
        for token in range(tokens)
        for expert in range(num_experts)
    ]
    chances = torch.tensor([uniform(seed, place) for place in places], dtype=torch.float64)
    return -(-(chances + 2**-33).log()).log().view(-1, num_experts)  # strictly between 0 and 1


def draw_logits(seed: int, ranks: int, tokens: int, num_experts: int, skew: float | int) -> torch.Tensor:
    """Noise - skew * log(popularity rank), float64 (ranks * tokens, num_experts), in steps of 1/4096.

    The steps are powers of two, so that ties are ties in both languages, whose logarithms differ in the last bit. Which
    expert is how popular follows from the seed too.

    Example:
        >>> few, many = draw_logits(0, 1, 2, 4, 0.5), draw_logits(0, 2, 3, 4, 0.5)
        >>> torch.equal(few, many[:2])
        True
    """
    first = MOST_EXPERTS * MOST_TOKENS * MOST_RANKS
    order = sorted(range(num_experts), key=lambda expert: uniform(seed, first + expert))
    popularity = torch.empty(num_experts, dtype=torch.float64)
    popularity[order] = torch.arange(1, num_experts + 1, dtype=torch.float64)
    values = draw_noise(seed, ranks, tokens, num_experts) - skew * popularity.log()
    return (4096 * values + 0.5).floor() / 4096


@functools.lru_cache(maxsize=4)
def route_sample(
    seed: int,
    ranks: int,
    tokens: int,
    num_experts: int,
    skew: float | int,
    top_k: int,
    limit: tuple[int, int] | None,
) -> Routing:
    """All tokens over the experts, those of rank 0 first; ``limit`` is how many nodes there are, and a token's most."""
    logits = draw_logits(seed, ranks, tokens, num_experts, skew)
    if limit is None:
        return route(logits, top_k)
    return route(logits, top_k, "group_limited", num_groups=limit[0], top_groups=limit[1])


def place_replicas(
    loads: Sequence[int], homes: Sequence[int], extra: int, ranks: int, ranks_per_node: int
) -> list[list[int]]:
    """The experts of each rank: each at home, and ``extra`` replicas of the hottest, largest share of load first.

    A replica goes to the lightest rank that does not hold its expert, in the node of the expert's home if one is left.

    Example:
        >>> place_replicas([6, 1, 2], homes=[0, 0, 1], extra=1, ranks=2, ranks_per_node=2)
        [[0, 1], [2, 0]]
    """
    replicas = replicate(loads, len(loads) + extra)
    shares = [load / replicas.count(expert) for expert, load in enumerate(loads)]
    held, weights = [[] for _ in range(ranks)], [0.0] * ranks

    def put(expert: int, rank: int) -> None:
        held[rank].append(expert)
        weights[rank] += shares[expert]

    for expert, home in enumerate(homes):
        put(expert, home)
    for expert in sorted(replicas[len(loads) :], key=lambda expert: -shares[expert]):
        node = homes[expert] // ranks_per_node
        free = [rank for rank in range(ranks) if expert not in held[rank]]
        put(expert, min(free, key=lambda rank: (rank // ranks_per_node != node, weights[rank], rank)))
    return held


def say_ratio(values: Sequence[float | int], place: int) -> str:
    """One of several numbers as a multiple of their mean.

    Example:
        >>> say_ratio([1, 3], 1)
        '1.5 times the mean'
    """
    return f"{three_digits(values[place] * len(values) / sum(values))} times the mean"


def say_wait(time: ExchangeTime) -> str:
    """The rank that an exchange waits for, and why."""
    if time.cluster.bus is not None:
        return "every rank alike, which share the cores of the machine"
    rank = time.slowest
    if time.link == "latency":
        return f"rank {rank}, whose latencies are longer than its bytes take"
    place = "inside" if float(time.inside_ms[rank]) >= float(time.between_ms[rank]) else "between"
    send, receive = (getattr(time, f"{place}_{way}_ms") for way in ("send", "receive"))
    way, ms = ("sends", send) if send[rank] >= receive[rank] else ("receives", receive)
    sizes = [round(one * getattr(time.cluster, place).gigabytes_per_s * 1e6) for one in ms.tolist()]
    return f"rank {rank}, which {way} {say_count(sizes[rank], 'B')} over {time.link}, {say_ratio(sizes, rank)}"
