"""Briefs: what somebody asks of a Mixture-of-Experts model, as budgets with units, on devices with named ceilings."""

from dataclasses import dataclass, fields

from moe_lab.checks import check_number, check_whole
from moe_lab.parallel.clusters import CLUSTERS, Cluster
from moe_lab.roofline import DEVICES, RECORDS, Device, measured_device

AT_MOST = (
    "flops_per_token",
    "memory_bytes",
    "decode_ms",
    "prefill_ms",
    "exchange_bytes",
    "exchange_ms",
    "busiest_over_mean",
)
"""Budgets that a design must stay within; None in a brief where nothing is asked."""
AT_LEAST = ("total_params", "active_params")
"""Budgets that a design must reach, embeddings left out: what experts store, and what a token is worth."""
PROMISES = ("no token dropped", "causal", "whole context")
"""What every brief asks of the router and of attention, with no number to it."""


@dataclass(frozen=True)
class Brief:
    """Who asks for what, on which devices, and the budgets; see `AT_MOST` and `AT_LEAST`.

    On each of up to ``devices`` devices ``sequences`` texts of ``context`` tokens are written at the same time, and
    ``prompt`` tokens are read at once. ``cluster`` has the links between devices, None where there is one device.

    - ``flops_per_token``: forward, for a token that attends to ``context`` tokens;
    - ``memory_bytes``: weights and cache on each device;
    - ``decode_ms``: until each sequence has its next token; ``prefill_ms``: until the prompt is read;
    - ``exchange_bytes``, ``exchange_ms``: between nodes, the busiest device's, and on all links, prefill, all layers;
    - ``busiest_over_mean``: rows of the busiest device over the mean, in the brief's batch;
    - ``total_params``, ``active_params``: at least so many, without embeddings.

    Example:
        >>> BRIEFS["gpu"].memory_bytes / 1e9, BRIEFS["gpu"].sequences, BRIEFS["gpu"].device.name
        (135.0, 64, 'H200')

    Raises ValueError or TypeError for sizes that are no whole numbers above 0, budgets that are not above 0, and
    several devices without a cluster that has room for them.
    """

    name: str
    asks: str
    device: Device
    devices: int
    cluster: Cluster | None
    vocab_size: int
    context: int
    sequences: int
    prompt: int
    total_params: float | int
    active_params: float | int
    flops_per_token: float | int
    memory_bytes: float | int
    decode_ms: float | int
    prefill_ms: float | int
    exchange_bytes: float | int | None = None
    exchange_ms: float | int | None = None
    busiest_over_mean: float | int | None = None

    def __post_init__(self):
        for name in ("devices", "vocab_size", "context", "sequences", "prompt"):
            check_whole(name, getattr(self, name), 1)
        for name in (*AT_MOST, *AT_LEAST):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.devices > 1 and (self.cluster is None or self.cluster.ranks < self.devices):
            room = 1 if self.cluster is None else self.cluster.ranks
            raise ValueError(f"cluster must have room for devices={self.devices}, got room for {room}")
        between = self.exchange_bytes, self.exchange_ms, self.busiest_over_mean
        if self.devices == 1 and between != (None, None, None):
            raise ValueError("exchange_bytes, exchange_ms and busiest_over_mean must be None for one device")

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of everything that a design is held against, in the order of a report."""
        asked = [name for name in (*AT_MOST, *AT_LEAST) if getattr(self, name) is not None]
        return (*asked, *PROMISES)

    def describe(self) -> str:
        """The brief in a few lines of text."""
        where = f"{self.devices} x {self.device.name}" if self.devices > 1 else self.device.name
        lines = [f"{self.name}: {self.asks}", f"{where} ({self.device.kind}: {self.device.source})"]
        if self.cluster is not None:
            lines.append(f"links of {self.cluster.name}, {self.cluster.ranks_per_node} devices a node")
        each = " a device" if self.devices > 1 else ""
        lines.append(
            f"{self.sequences} sequence{'s' * (self.sequences > 1)} of {self.context:,} tokens{each} being written, "
            f"prompts of {self.prompt:,} tokens{each}, vocabulary {self.vocab_size:,}"
        )
        return "\n".join(lines)

    def _repr_pretty_(self, printer, cycle) -> None:
        printer.text(self.describe())


assert {*AT_MOST, *AT_LEAST} <= {field.name for field in fields(Brief)}  # noqa: S101 - of these lines

LAPTOP_RECORD = "ceilings-cpu-2026-11-24-f6fc7847a.json"
"""The brief's two cores: this record and no newer one, so that the brief stays what it is."""


def _read_laptop() -> Device:
    """The ceilings of two cores that this lab has measured."""
    return measured_device(RECORDS / LAPTOP_RECORD)


BRIEFS = {
    brief.name: brief
    for brief in (
        Brief(
            name="laptop",
            asks="one person, off the network, wants code completed faster than she reads; two cores, 4.5 GB to spare",
            device=_read_laptop(),
            devices=1,
            cluster=None,
            vocab_size=32_000,
            context=2048,
            sequences=1,
            prompt=512,
            total_params=1.5e9,
            active_params=0.3e9,
            flops_per_token=1.6e9,
            memory_bytes=4.5e9,
            decode_ms=27,
            prefill_ms=2000,
        ),
        Brief(
            name="gpu",
            asks="a clinic keeps its texts in the house: one GPU, 64 people at a time, long documents",
            device=DEVICES["H200"],
            devices=1,
            cluster=None,
            vocab_size=100_352,
            context=16_384,
            sequences=64,
            prompt=16_384,
            total_params=38e9,
            active_params=2.5e9,
            flops_per_token=20e9,
            memory_bytes=135e9,
            decode_ms=33.3,
            prefill_ms=250,
        ),
        Brief(
            name="nodes",
            asks="a company serves everybody from two nodes of eight GPUs, and sells milliseconds",
            device=DEVICES["H100 SXM"],
            devices=16,
            cluster=CLUSTERS["H100"],
            vocab_size=129_280,
            context=8192,
            sequences=32,
            prompt=512,
            total_params=200e9,
            active_params=12e9,
            flops_per_token=45e9,
            memory_bytes=76e9,
            decode_ms=28,
            prefill_ms=32,
            exchange_bytes=0.4e9,
            exchange_ms=10,
            busiest_over_mean=1.2,
        ),
    )
}
"""The three briefs of lesson 15, by name. Their budgets are ours, chosen so that another one is tight in each."""
