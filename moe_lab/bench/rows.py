"""A row of a record: what was timed, how long it took, how right it was; or why it was not timed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from moe_lab.checks import check_fits
from moe_lab.profiling import Timing

MODES = ("eager", "graph")


@dataclass(frozen=True)
class Measured:
    """An implementation on a shape, verified before it was timed; ``why_not`` says why it was not timed, if so.

    ``mode`` is "graph" for calls that were captured in a CUDA graph, so that no launch is timed. ``bytes`` and
    ``flops`` are what the task asks for, not what was spent. ``peak_bytes`` is the most memory that PyTorch's
    allocator held beyond the inputs while it ran.
    """

    implementation: str
    direction: str
    shape: dict[str, int | float]
    dtype: str
    ms_p20: float | None = None
    ms_p50: float | None = None
    ms_p80: float | None = None
    error: float | None = None
    tolerance: float | None = None
    flops: int | None = None
    bytes: int | None = None
    mode: str = "eager"
    repeats: int | None = None
    peak_bytes: int | None = None
    version: str | None = None
    call: str | None = None
    why_not: str | None = None

    @property
    def verified(self) -> bool:
        """Whether the answer was right; a wrong one is not worth timing."""
        return self.error is not None and self.error <= self.tolerance

    @property
    def times(self) -> dict[str, float | None]:
        """The three percentiles, by their names."""
        return {"ms_p20": self.ms_p20, "ms_p50": self.ms_p50, "ms_p80": self.ms_p80}

    def as_dict(self) -> dict:
        """The row as the record holds it; ``pass`` is a word of Python's."""
        values = asdict(self)
        values["pass"] = values.pop("direction")
        return {**values, "verified": self.verified}

    @classmethod
    def from_dict(cls, values: dict) -> "Measured":
        """A row as it was recorded, by an older version too; KeyError, TypeError or ValueError for what is none."""
        kinds = {field.name: field.type for field in fields(cls)}
        row = cls(direction=values["pass"], **{name: value for name, value in values.items() if name in kinds})
        for name, kind in kinds.items():
            check_fits(name, getattr(row, name), kind)
        for name, time in row.times.items():
            if time is not None and time <= 0:
                raise ValueError(f"{name} must be a time above 0, got {time}")
        if row.error is not None and row.tolerance is None:
            raise ValueError(f"tolerance must go with the error {row.error}, got None")
        return row


def as_percentiles(timing: Timing, calls: int = 1) -> dict[str, float | int]:
    """A timing as a row holds it, of one of the ``calls`` that were timed as one.

    Example:
        >>> as_percentiles(Timing(2.0, 4.0, 6.0, repeats=5), calls=2)
        {'ms_p20': 1.0, 'ms_p50': 2.0, 'ms_p80': 3.0, 'repeats': 5}
    """
    return {
        "ms_p20": timing.p20_ms / calls,
        "ms_p50": timing.p50_ms / calls,
        "ms_p80": timing.p80_ms / calls,
        "repeats": timing.repeats,
    }


def show_table(rows: Sequence[Measured], baseline: str | None = None) -> str:
    """The rows as text, a block for each shape, dtype and pass; each time also as a multiple of the baseline's.

    Without a baseline in a block its rates stand there instead: FLOPs, or else bytes, over the median time.

    Example:
        >>> from moe_lab.bench import Measured, show_table
        >>> task = {"direction": "forward", "shape": {"n": 4}, "dtype": "float32"}
        >>> times = [Measured(name, **task, ms_p20=ms, ms_p50=ms, ms_p80=ms) for name, ms in (("a", 1.0), ("b", 3.0))]
        >>> print(show_table([*times, Measured("c", **task, why_not="not installed")], "a"))
        n=4  float32  forward
          a                                  1.000 ms  (1.000 to 1.000)   1.00 x a
          b                                  3.000 ms  (3.000 to 3.000)   3.00 x a
          c                             not measured: not installed
    """
    blocks: dict[tuple, list[Measured]] = {}
    for row in rows:
        blocks.setdefault((str(row.shape), row.dtype, row.direction, row.mode), []).append(row)
    return "\n".join(line for block in blocks.values() for line in _block(block, baseline))


def _block(rows: list[Measured], baseline: str | None) -> list[str]:
    first = rows[0]
    words = [" ".join(f"{name}={size}" for name, size in first.shape.items()), first.dtype, first.direction]
    base = next((row.ms_p50 for row in rows if row.implementation == baseline and row.ms_p50), None)
    lines = ["  ".join([*words, *(["CUDA graph"] if first.mode == "graph" else [])])]
    for row in rows:
        if row.ms_p50 is None:
            lines.append(f"  {row.implementation:28}  not measured: {row.why_not}")
            continue
        against = f"{row.ms_p50 / base:6.2f} x {baseline}" if base else _rate(row)
        memory = "" if row.peak_bytes is None else f"  peak {row.peak_bytes / 1e6:.0f} MB"
        between = [time for time in (row.ms_p20, row.ms_p80) if time is not None]
        times = f"{row.ms_p50:11.3f} ms  ({' to '.join(f'{time:.3f}' for time in between)})"
        lines.append(f"  {row.implementation:28} {times} {against}{memory}")
    return lines


def _rate(row: Measured) -> str:
    if row.flops:
        return f"{row.flops / row.ms_p50 / 1e9:8.4f} TFLOP/s"
    return f"{row.bytes / row.ms_p50 / 1e6:8.1f} GB/s" if row.bytes else ""
