"""DeepSeek-V3's published exchange: what the simulator predicts for it, beside what DeepEP's makers measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moe_lab.checks import check_whole
from moe_lab.parallel.clusters import CLUSTERS, Cluster
from moe_lab.parallel.exchange import owners, wanted
from moe_lab.parallel.simulator import Wire, exchange_time, relay_copies
from moe_lab.parallel.traffic import count_copies
from moe_lab.roofline import SHAPES
from moe_lab.routers import route
from moe_lab.types import Routing

TOKENS = 4096
MOST_NODES = 4
"""A token's experts lie on four nodes at most."""
RANKS_PER_NODE = 8
DEEPEP = "DeepEP's own measurements on H800 (github.com/deepseek-ai/DeepEP, docs/legacy.md, normal kernels)"
MEASURED_GIGABYTES_PER_S = {
    8: {"dispatch": 153.0, "combine": 158.0},
    16: {"dispatch": 43.0, "combine": 43.0},
    32: {"dispatch": 58.0, "combine": 57.0},
    64: {"dispatch": 51.0, "combine": 50.0},
}
"""Ranks -> the bandwidth that DeepEP prints for FP8 dispatch and bfloat16 combine: see `counted_copies`."""


@dataclass(frozen=True)
class PublishedExchange:
    """One published figure: ``counted_bytes`` of a rank over its time, and the time that the simulator predicts."""

    ranks: int
    way: str
    counted_bytes: float
    measured_gigabytes_per_s: float
    predicted_ms: float
    link: str

    @property
    def measured_ms(self) -> float:
        """The time that the published bandwidth means."""
        return self.counted_bytes / self.measured_gigabytes_per_s / 1e6

    @property
    def predicted_gigabytes_per_s(self) -> float:
        """The bandwidth that DeepEP's count would give at the predicted time."""
        return self.counted_bytes / self.predicted_ms / 1e6


def draw_v3_routings(ranks: int, tokens: int = TOKENS, seed: int = 0) -> list[Routing]:
    """One random routing a rank as DeepSeek-V3 limits it: top-8 of 256 experts on at most four nodes, a group a node.

    Scores are independent, and a node's is its best expert's, as in DeepEP's own test.

    Example:
        >>> routings = draw_v3_routings(64, tokens=2)
        >>> len(routings), routings[0].experts.div(32, rounding_mode="floor")[0].unique().numel() <= 4
        (64, True)

    Raises ValueError for ranks that are no whole nodes of 8, or do not divide 256 experts.
    """
    shape = SHAPES["DeepSeek-V3"]
    check_whole("ranks", ranks, RANKS_PER_NODE, shape.num_experts)
    if ranks % RANKS_PER_NODE or shape.num_experts % ranks:
        raise ValueError(f"ranks must be whole nodes of {RANKS_PER_NODE} and divide {shape.num_experts}, got {ranks}")
    nodes, generator = ranks // RANKS_PER_NODE, torch.Generator().manual_seed(seed)
    groups = {"num_groups": nodes, "top_groups": min(MOST_NODES, nodes), "group_top": 1}
    return [
        route(torch.randn(tokens, shape.num_experts, generator=generator), shape.top_k, "group_limited", **groups)
        for _ in range(ranks)
    ]


def counted_copies(routings: Sequence[Routing]) -> float:
    """Copies of a rank, the mean of all, as DeepEP counts them for its bandwidths: those that never leave included.

    In one node: a copy for each rank that has an expert of a token, the token's own rank too. Over several: one for
    each node, the token's own too, since a copy crosses once a node.
    """
    ranks = len(routings)
    nodes = ranks // RANKS_PER_NODE
    if nodes == 1:
        return float(count_copies(routings, ranks).sum()) / ranks
    visits = sum(int(wanted(owners(one, one.num_experts, nodes), nodes).sum()) for one in routings)
    return visits / ranks


def compare_published(
    ranks: Sequence[int] = tuple(MEASURED_GIGABYTES_PER_S), tokens: int = TOKENS, cluster: Cluster = CLUSTERS["H800"]
) -> list[PublishedExchange]:
    """Predict every published figure: 4096 tokens a rank, FP8 with scales to the experts, bfloat16 back.

    What is counted: 7168 + 56 * 4 bytes a copy there, 2 * 7168 back; no experts' numbers and weights.
    """
    wire, found = Wire.of_fp8(SHAPES["DeepSeek-V3"].d_model), []
    for count in ranks:
        routings = draw_v3_routings(count, tokens)
        hops, counted = relay_copies(routings, count, RANKS_PER_NODE), counted_copies(routings)
        for way, sent, size in (
            ("dispatch", hops * wire.dispatch, wire.dispatch),
            ("combine", hops.T * wire.combine, wire.combine),
        ):
            time, measured = exchange_time(sent, cluster), MEASURED_GIGABYTES_PER_S[count][way]
            found.append(PublishedExchange(count, way, counted * size, measured, time.ms, time.link))
    return found


def describe_published(rows: Sequence[PublishedExchange]) -> str:
    """A line a figure, and under them what is measured, by whom, and what is predicted."""
    lines = [
        f"{row.ranks:3} ranks  {row.way:8}"
        f"  predicted {row.predicted_ms:5.2f} ms, {row.predicted_gigabytes_per_s:4.0f} GB/s"
        f"  published {row.measured_ms:5.2f} ms, {row.measured_gigabytes_per_s:4.0f} GB/s"
        f"  ratio {row.measured_ms / row.predicted_ms:.2f}  {row.link}"
        for row in rows
    ]
    return "\n".join(
        [*lines, f"published GB/s: {DEEPEP}; published ms follow from them; predicted: rates of links alone"]
    )
