"""Suite "exchange": all-to-alls of gloo ranks on this machine, beside what a fit to other patterns predicts."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_lab.bench.reading import Record, newest_record
from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.parallel.clusters import Cluster
from moe_lab.parallel.measure import (
    FITTED,
    HELD_OUT,
    UNDISTURBED,
    Held,
    MeasuredExchange,
    Pattern,
    calibrate,
    hold_against,
    measure_exchanges,
)
from moe_lab.profiling import Timing
from moe_lab.roofline import RECORDS

FITTED_BYTES = (2**10, 2**16, 2**20, 2**22, 2**24)
HELD_OUT_BYTES = (2**12, 2**18, 3 * 2**19, 3 * 2**21, 3 * 2**22)
"""Bytes that a rank sends. The fit sees neither the sizes nor the kinds that are held out, nor any with three ranks."""
FITTED_RANKS, HELD_OUT_RANKS = (2, 4), (2, 3, 4)
IMPLEMENTATION = "gloo, "


def exchange(quick: bool = False) -> list[Case]:
    """One case: a prediction needs what others were measured to take in the same minutes."""
    if quick:
        fitted = [make(2, count) for make in FITTED for count in (2**10, 2**16)]
        held_out = [make(3, 2**12) for make in HELD_OUT]
    else:
        fitted = [make(ranks, count) for ranks in FITTED_RANKS for count in FITTED_BYTES for make in FITTED]
        held_out = [make(ranks, count) for ranks in HELD_OUT_RANKS for count in HELD_OUT_BYTES for make in HELD_OUT]
    return [Case("all", lambda _: compare_exchanges(fitted, held_out, repeats=3 if quick else 101))]


def compare_exchanges(fitted: list[Pattern], held_out: list[Pattern], repeats: int) -> list[Measured]:
    """Measure all patterns in the same rounds, fit to some, and write down the prediction beside each.

    A prediction is of the 20th percentile (`UNDISTURBED`). A row's ``call`` is the pattern itself: bytes from each rank
    to each rank, as JSON. Its error is the number of bytes that arrived wrong.
    """
    measured = measure_exchanges([*fitted, *held_out], repeats)
    cluster = calibrate(measured[: len(fitted)])
    beside = zip(measured, hold_against(measured, cluster), strict=True)
    return [_as_row(one, held.predicted_ms, number >= len(fitted)) for number, (one, held) in enumerate(beside)]


def _as_row(one: MeasuredExchange, predicted_ms: float, is_held_out: bool) -> Measured:
    pattern = one.pattern
    return Measured(
        IMPLEMENTATION + pattern.name,
        "forward",
        {
            "ranks": pattern.ranks,
            "carried_bytes": pattern.carried_bytes,
            "kept_bytes": pattern.kept_bytes,
            "held_out": int(is_held_out),
            "predicted_ms": round(predicted_ms, 6),
        },
        "uint8",
        error=float(one.wrong_bytes),
        tolerance=0.0,
        bytes=pattern.carried_bytes + pattern.kept_bytes,
        version=torch.__version__,
        call=json.dumps(pattern.rows),
        **as_percentiles(one.timing),
    )


@dataclass(frozen=True)
class RecordedExchange:
    """The newest record of the suite: the cluster fitted to its rows, and every row beside its prediction."""

    record: Record
    cluster: Cluster
    fitted: list[Held]
    held_out: list[Held]

    @property
    def provenance(self) -> str:
        """Where it is from, in one line."""
        return self.record.provenance

    def within(self, share: float = 0.25) -> tuple[int, int]:
        """How many held-out patterns are predicted within a share of their measured time, and how many there are."""
        return sum(abs(one.error) <= share for one in self.held_out), len(self.held_out)


def recorded_exchange(folder: Path = RECORDS, percentile: int = UNDISTURBED) -> RecordedExchange | None:
    """Read the newest record of the suite, and fit the cluster to a percentile of it again; None if there is none.

    Example:
        >>> recorded_exchange(Path("no such folder")) is None
        True

    Raises ValueError for a record whose rows are no exchanges.
    """
    record = newest_record("exchange", folder=folder)
    return None if record is None else read_exchange(record, percentile)


def read_exchange(record: Record, percentile: int = UNDISTURBED) -> RecordedExchange:
    """What a record of the suite says.

    Raises ValueError for rows that are no exchanges.
    """
    try:
        rows = {kind: [_as_exchange(row) for row in record.find(held_out=kind)] for kind in (0, 1)}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the record must be of the suite exchange, it has a row that is no exchange ({error})"
        ) from error
    cluster = calibrate(rows[0], record.about["device"], percentile)
    return RecordedExchange(record, cluster, *(hold_against(rows[kind], cluster, percentile) for kind in (0, 1)))


def _as_exchange(row: Measured) -> MeasuredExchange:
    pattern = Pattern(row.implementation.removeprefix(IMPLEMENTATION), tuple(map(tuple, json.loads(row.call))))
    return MeasuredExchange(pattern, Timing(row.ms_p20, row.ms_p50, row.ms_p80, row.repeats), int(row.error))
