"""No row beats the roofline: one that seems to counts wrong, or did not do the work."""

from collections.abc import Callable, Sequence

from moe_lab.bench.rows import Measured
from moe_lab.roofline import BYTES

TRIES = 6


def least_ms(row: Measured, ceilings: dict) -> float:
    """The time that a row's FLOPs and bytes take at least, at the ceilings that were measured in the same run.

    A product in bfloat16 may be computed in a wider dtype, and some processors are faster so: its ceiling is the
    highest of all dtypes that are at least as wide.

    Example:
        >>> ceilings = {"flops_per_s": {"bfloat16": 1e9, "float32": 4e9}, "bytes_per_s": 1e9}
        >>> least_ms(Measured("a", "forward", {}, "bfloat16", flops=8_000_000, bytes=10**6), ceilings)
        2.0
    """
    rates = ceilings["flops_per_s"]
    wide = [rate for name, rate in rates.items() if BYTES[name] >= BYTES[row.dtype]] if row.dtype in BYTES else []
    compute = 1e3 * (row.flops or 0) / max(wide, default=float("inf"))
    return max(compute, 1e3 * (row.bytes or 0) / ceilings["bytes_per_s"])


def refuse_above_roofline(rows: Sequence[Measured], about: dict, measure_again: Callable[[], dict]) -> None:
    """Raise ValueError for a row that is faster than the roofline allows.

    Ceilings that were measured in a slow moment would refuse what is right: a machine that is shared can be twice as
    fast a minute later. So they are measured again first, up to `TRIES` times, and the best of all goes into ``about``,
    which the record keeps.
    """
    for _ in range(TRIES):
        if not any(_above(row, about["ceilings"]) for row in rows):
            return
        before, now = about["ceilings"], measure_again()
        rates = {
            name: max(before["flops_per_s"].get(name, 0.0), now["flops_per_s"].get(name, 0.0))
            for name in before["flops_per_s"] | now["flops_per_s"]
        }
        moved = max(before["bytes_per_s"], now["bytes_per_s"])
        about["ceilings"] = {"flops_per_s": rates, "bytes_per_s": moved}
    for row in rows:
        if _above(row, about["ceilings"]):
            least = least_ms(row, about["ceilings"])
            raise ValueError(
                f"{row.implementation} on {row.shape} took {row.ms_p50:.3f} ms, and the roofline of this machine "
                f"allows {least:.3f} at best: its FLOPs or bytes are counted wrong, or it did not do the work"
            )


def _above(row: Measured, ceilings: dict) -> bool:
    return row.ms_p50 is not None and row.ms_p50 < least_ms(row, ceilings)
