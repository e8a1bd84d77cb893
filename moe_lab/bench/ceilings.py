"""Suite "ceilings": the best that this machine reaches, in arithmetic and in memory: the two lines of a roofline."""

from collections.abc import Callable

from moe_lab.bench.record import Measured
from moe_lab.roofline import BYTES, Ceiling, measure_copies, measure_products


def ceilings(quick: bool = False) -> list[Callable[[], list[Measured]]]:
    """One case a dtype, of square matrix products, and one of copies."""
    options = {"sizes": (64, 96, 128), "repeats": 3} if quick else {"seconds": 2.0, "repeats": 15}
    copies = (2**20, 3) if quick else (2**29, 15)
    products = [lambda dtype=dtype: as_rows(measure_products(dtype, **options)) for dtype in BYTES]
    return [*products, lambda: as_rows(measure_copies(*copies))]


def as_rows(found: list[Ceiling]) -> list[Measured]:
    """What was measured, in the record's form."""
    return [
        Measured(
            one.implementation,
            "forward",
            one.shape,
            one.dtype,
            one.timing.p20_ms,
            one.timing.p50_ms,
            one.timing.p80_ms,
            one.error,
            one.tolerance,
            one.flops,
            one.bytes,
        )
        for one in found
    ]
