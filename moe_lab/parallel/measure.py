"""All-to-alls of real gloo ranks on this machine, timed; and the four numbers of a `Bus`, fitted to them.

The fit sees some patterns, and is held against others that it has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from scipy.optimize import nnls
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.parallel.clusters import Bus, Cluster
from moe_lab.parallel.exchange import wanted
from moe_lab.parallel.launch import MOST_RANKS, run_ranks
from moe_lab.parallel.messages import time_on_this_rank
from moe_lab.parallel.simulator import exchange_time
from moe_lab.profiling.timing import Timing, summarise

UNDISTURBED = 20
"""The percentile of the times that is fitted and predicted: calls in which every rank had a core when it needed one.

With more ranks than cores a median jumps between those calls and the ones in which a rank had to wait to be woken up.
"""
FASTEST_GIGABYTES_PER_S = 1000.0
"""What a rate is taken for that no pattern shows: a thousand GB/s, so that its bytes cost next to nothing."""
ROUTED_EXPERTS_A_RANK, ROUTED_TOP_K, ROUTED_ROW_BYTES = 4, 2, 512


@dataclass(frozen=True)
class Pattern:
    """Who sends how many bytes to whom: row i is what rank i sends, the diagonal what it keeps.

    Example:
        >>> pattern = Pattern("one way", ((5, 10), (0, 0)))
        >>> pattern.ranks, pattern.carried_bytes, pattern.kept_bytes
        (2, 10, 5)

    Raises ValueError for rows that make no square, or bytes below 0.
    """

    name: str
    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        check_whole("ranks", len(self.rows), 1, MOST_RANKS)
        for row in self.rows:
            if len(row) != len(self.rows):
                raise ValueError(f"rows must be (ranks, ranks), got {[len(row) for row in self.rows]}")
            for count in row:
                check_whole("rows", count, 0)

    @property
    def ranks(self) -> int:
        """How many ranks take part."""
        return len(self.rows)

    @property
    def bytes_sent(self) -> Int64[Tensor, "ranks ranks"]:
        """The rows as `exchange_time` takes them."""
        return torch.tensor(self.rows, dtype=torch.int64)

    @property
    def kept_bytes(self) -> int:
        """Bytes that ranks send to themselves."""
        return sum(row[rank] for rank, row in enumerate(self.rows))

    @property
    def carried_bytes(self) -> int:
        """Bytes that ranks send to others."""
        return sum(map(sum, self.rows)) - self.kept_bytes


@dataclass(frozen=True)
class MeasuredExchange:
    """A pattern, how long its slowest rank took, and how many received bytes were wrong."""

    pattern: Pattern
    timing: Timing
    wrong_bytes: int

    def ms(self, percentile: int = UNDISTURBED) -> float:
        """A percentile of its times: 20, 50 or 80."""
        if percentile not in (20, 50, 80):
            raise ValueError(f"percentile must be 20, 50 or 80, got {percentile}")
        return getattr(self.timing, f"p{percentile}_ms")


@dataclass(frozen=True)
class Held:
    """A measured exchange held against its prediction; ``error`` is predicted / measured - 1."""

    pattern: Pattern
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Above 0 where the prediction is too long."""
        return self.predicted_ms / self.measured_ms - 1


def uniform(ranks: int, rank_bytes: int) -> Pattern:
    """Every rank sends every rank, itself too, the same.

    Example:
        >>> uniform(2, 10).rows
        ((5, 5), (5, 5))
    """
    return Pattern("uniform", ((rank_bytes // ranks,) * ranks,) * ranks)


def hot_receiver(ranks: int, rank_bytes: int) -> Pattern:
    """Every rank sends half of its bytes to rank 0, and the other half evenly to the others.

    Example:
        >>> hot_receiver(3, 12).rows[1]
        (6, 3, 3)
    """
    return Pattern("hot receiver", ((rank_bytes // 2, *(rank_bytes // (2 * ranks - 2),) * (ranks - 1)),) * ranks)


def silent_rank(ranks: int, rank_bytes: int) -> Pattern:
    """The last rank sends nothing, though it receives; the others send evenly.

    Example:
        >>> silent_rank(2, 10).rows
        ((5, 5), (0, 0))
    """
    return Pattern("silent rank", (*uniform(ranks, rank_bytes).rows[1:], (0,) * ranks))


def one_way(ranks: int, rank_bytes: int) -> Pattern:
    """Every rank sends all of its bytes to the next, and keeps none.

    Example:
        >>> one_way(2, 10).rows
        ((0, 10), (10, 0))
    """
    rows = tuple(tuple(rank_bytes * (to == (rank + 1) % ranks) for to in range(ranks)) for rank in range(ranks))
    return Pattern("one way", rows)


def routed(ranks: int, rank_bytes: int, seed: int = 0) -> Pattern:
    """Tokens of 512 bytes, top-2 of four experts a rank whose popularity falls as 1 / rank: copies as they are sent.

    Example:
        >>> pattern = routed(4, 2**16)
        >>> pattern.bytes_sent.sum(dim=0).argmax()
        tensor(0)
    """
    num_experts = ROUTED_EXPERTS_A_RANK * ranks
    generator = torch.Generator().manual_seed(seed)
    chances = 1 / torch.arange(1, num_experts + 1, dtype=torch.float64)
    tokens = max(1, rank_bytes // (ROUTED_TOP_K * ROUTED_ROW_BYTES))
    rows = []
    for _ in range(ranks):
        experts = torch.multinomial(chances.expand(tokens, -1), ROUTED_TOP_K, generator=generator)
        copies = wanted(experts // ROUTED_EXPERTS_A_RANK, ranks).sum(dim=0)
        rows.append(tuple((copies * ROUTED_ROW_BYTES).tolist()))
    return Pattern("routed", tuple(rows))


FITTED = (uniform, one_way)
HELD_OUT = (hot_receiver, silent_rank, routed)


def measure_exchanges(patterns: Sequence[Pattern], repeats: int = 15) -> list[MeasuredExchange]:
    """Time ``torch.distributed.all_to_all_single`` for each pattern, on as many gloo ranks as it has.

    In rounds: each does every pattern of the same ranks once, and each starts with another one. A barrier goes before
    every exchange, and its time is that of its slowest rank. The first round is not counted; in it what every rank
    received is compared with what it had to receive. Buffers are there before, and stay.

    Raises ValueError for no patterns or repeats below 1; RuntimeError where a rank fails.
    """
    if not patterns:
        raise ValueError("patterns must hold at least one, got none")
    check_whole("repeats", repeats, 1)
    found: dict[int, MeasuredExchange] = {}
    for ranks in sorted({pattern.ranks for pattern in patterns}):
        chosen = [place for place, pattern in enumerate(patterns) if pattern.ranks == ranks]
        by_rank = run_ranks(time_on_this_rank, ranks, [patterns[place].rows for place in chosen], repeats)
        for number, place in enumerate(chosen):
            slowest = np.max([calls[number] for calls, _ in by_rank], axis=0)
            timing = summarise(slowest.tolist())
            wrong_bytes = sum(wrong[number] for _, wrong in by_rank)
            found[place] = MeasuredExchange(patterns[place], timing, wrong_bytes)
    return [found[place] for place in range(len(patterns))]


def calibrate(
    measured: Sequence[MeasuredExchange], name: str = "this machine", percentile: int = UNDISTURBED
) -> Cluster:
    """Fit the four numbers of a `Bus` to measured exchanges: the least sum of squared relative errors, none below 0.

    Times are linear in the four, so the fit is exact: non-negative least squares, each row divided by its time. Without
    patterns of several numbers of ranks, the time of a call and that of a message are one number.

    Raises ValueError for fewer than four exchanges.
    """
    if len(measured) < 4:
        raise ValueError(f"measured must hold at least four exchanges for four numbers, got {len(measured)}")
    times = np.array([one.ms(percentile) for one in measured])
    causes = [(1, p.ranks * (p.ranks - 1), p.carried_bytes, p.kept_bytes) for p in (one.pattern for one in measured)]
    scale = np.array([1e3, 1e3, 1e6, 1e6])  # microseconds, and bytes of a GB/s, in a millisecond
    shares, _ = nnls(np.array(causes) / scale / times[:, None], np.ones(len(times)))
    start_us, message_us, carried, kept = shares.tolist()
    rates = [1 / max(share, 1 / FASTEST_GIGABYTES_PER_S) for share in (carried, kept)]
    ranks = max(one.pattern.ranks for one in measured)
    source = f"fitted to {len(measured)} measured exchanges of up to {ranks} ranks"
    return Cluster(name, MOST_RANKS, MOST_RANKS, None, None, None, source, Bus(start_us, message_us, *rates))


def hold_against(measured: Sequence[MeasuredExchange], cluster: Cluster, percentile: int = UNDISTURBED) -> list[Held]:
    """Every measured exchange, at a percentile of its times, beside what a cluster predicts for it."""
    predicted = [exchange_time(one.pattern.bytes_sent, cluster).ms for one in measured]
    return [Held(one.pattern, one.ms(percentile), ms) for one, ms in zip(measured, predicted, strict=True)]
