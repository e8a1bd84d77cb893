"""Clusters that exchanges are predicted for: links with named sources, or one machine whose ranks share its cores."""

from dataclasses import dataclass

from moe_lab.checks import check_number, check_whole
from moe_lab.roofline import DEVICES


@dataclass(frozen=True)
class Link:
    """What one rank sends on a kind of link: GB/s in one direction (both at the same time), and the time of no bytes.

    Example:
        >>> LINKS["NDR InfiniBand"].gigabytes_per_s
        50.0

    Raises ValueError for a rate that is not above 0, or a latency below 0.
    """

    name: str
    gigabytes_per_s: float
    latency_us: float
    source: str

    def __post_init__(self):
        check_number("gigabytes_per_s", self.gigabytes_per_s, above=0)
        check_number("latency_us", self.latency_us, at_least=0)


@dataclass(frozen=True)
class Bus:
    """What an exchange costs where all ranks run on the same few cores, which copy every byte themselves.

    milliseconds = start + message * pairs of ranks + carried bytes / carried rate + kept bytes / kept rate

    ``start_us``: a call, however few ranks; ``message_us``: each of the ranks * (ranks - 1) messages, empty ones too,
    since gloo sends those as well. Both rates are of all ranks together: ``carried_gigabytes_per_s`` of bytes to other
    ranks, which the kernel copies from one process into a socket and from there into another; ``kept_gigabytes_per_s``
    of bytes for the rank itself, one copy in memory. A sum, since no two ranks have cores of their own to overlap on.

    Raises ValueError for a time below 0 or a rate that is not above 0.
    """

    start_us: float
    message_us: float
    carried_gigabytes_per_s: float
    kept_gigabytes_per_s: float

    def __post_init__(self):
        for name in ("start_us", "message_us"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("carried_gigabytes_per_s", "kept_gigabytes_per_s"):
            check_number(name, getattr(self, name), above=0)


@dataclass(frozen=True)
class Cluster:
    """Ranks in equal nodes: rank r is number r % ranks_per_node of node r // ranks_per_node.

    Each rank has a link of its own ``inside`` its node and one ``between`` nodes (None where there is one node), and
    computes ``tflop_s`` at best (None where nobody has said). With a `Bus` the ranks share one machine, and no link.

    Example:
        >>> cluster = Cluster("toy", 4, 2, Link("fast", 100.0, 1.0, "toy"), Link("slow", 10.0, 5.0, "toy"), 1.0, "toy")
        >>> cluster.nodes, CLUSTERS["H800"].nodes
        (2, 256)

    Raises ValueError for ranks that nodes do not divide, a link that is missing or one too many; TypeError or
    ValueError for sizes that are no whole numbers above 0.
    """

    name: str
    ranks: int
    ranks_per_node: int
    inside: Link | None
    between: Link | None
    tflop_s: float | None
    source: str
    bus: Bus | None = None

    def __post_init__(self):
        check_whole("ranks", self.ranks, 1)
        check_whole("ranks_per_node", self.ranks_per_node, 1, self.ranks)
        if self.ranks % self.ranks_per_node:
            raise ValueError(f"ranks_per_node must divide ranks={self.ranks}, got {self.ranks_per_node}")
        if self.tflop_s is not None:
            check_number("tflop_s", self.tflop_s, above=0)
        if self.bus is not None:
            if self.inside or self.between or self.nodes > 1:
                raise ValueError("bus is for ranks that share one machine: one node, and neither inside nor between")
        elif self.inside is None:
            raise ValueError("inside must be a Link, got None and no bus")
        elif self.nodes > 1 and self.between is None:
            raise ValueError(f"between must be a Link where there are {self.nodes} nodes, got None")

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.ranks // self.ranks_per_node


_V3 = "DeepSeek-V3 (arXiv:2412.19437), section 3.2.2"
_LATENCY = "latency: DeepSeek-AI 2025 (arXiv:2505.09343), table 5, 64 bytes seen from the CPU"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet"

LINKS = {
    link.name: link
    for link in (
        Link("NVLink 4", 450.0, 3.33, f"{_H100}: 900 GB/s, both directions together; {_LATENCY}, on an H800"),
        Link("NVLink of the H800", 160.0, 3.33, f"{_V3}: what can be reached; {_LATENCY}"),
        Link(
            "NVLink 5", 900.0, 0.0, "NVIDIA GB200 NVL72 page: 1.8 TB/s, both directions; latency not known, counted 0"
        ),
        Link("NDR InfiniBand", 50.0, 3.7, f"400 Gb/s: {_V3} has 50 GB/s; {_LATENCY}, through two layers of switches"),
        Link("PCIe 5 x16", 64.0, 0.0, f"{_H100}: 128 GB/s, both directions together; latency not known, counted 0"),
    )
}
"""Links by name, GB/s of one GPU in one direction: rates of data sheets are upper bounds, 160 GB/s is a reached one."""

_HOPPER_TFLOP_S = DEVICES["H100 SXM"].flops_per_s["bfloat16"] / 1e12
CLUSTERS = {
    cluster.name: cluster
    for cluster in (
        Cluster(
            "H800",
            2048,
            8,
            LINKS["NVLink of the H800"],
            LINKS["NDR InfiniBand"],
            _HOPPER_TFLOP_S,
            "DeepSeek-V3 (arXiv:2412.19437), section 3.1: 2048 GPUs, 8 a node; arithmetic as the H100, which fits the "
            "432 TFLOP/s that arXiv:2505.09343, table 4, calls 43.73 % of the peak",
        ),
        Cluster(
            "H100",
            1024,
            8,
            LINKS["NVLink 4"],
            LINKS["NDR InfiniBand"],
            _HOPPER_TFLOP_S,
            f"{DEVICES['H100 SXM'].source}; nodes of 8, a 400 Gb/s adapter a GPU; how many nodes is our choice",
        ),
        Cluster(
            "PCIe",
            64,
            8,
            LINKS["PCIe 5 x16"],
            LINKS["NDR InfiniBand"],
            _HOPPER_TFLOP_S,
            "the H100 cluster with PCIe in the place of NVLink: made up, to see what NVLink is for",
        ),
        Cluster(
            "GB200 NVL72",
            72,
            72,
            LINKS["NVLink 5"],
            None,
            2500.0,
            "NVIDIA GB200 NVL72 page: 72 GPUs on one NVLink, 360 PFLOP/s in 16 bits with sparsity, so half of it dense",
        ),
    )
}
"""Clusters by name. ``tflop_s`` is the data sheet's dense bfloat16 rate, which no program reaches."""
