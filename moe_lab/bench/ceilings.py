"""Suite "ceilings": the best that this machine reaches, in arithmetic and in memory: the two lines of a roofline."""

from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.roofline import BYTES, Ceiling, measure_copies, measure_products


def ceilings(quick: bool = False) -> list[Case]:
    """One case a dtype, of square matrix products, and one of copies."""
    options = {"sizes": (64, 96, 128), "repeats": 3} if quick else {"seconds": 2.0, "repeats": 15}
    copies = (2**20, 3) if quick else (2**29, 15)
    products = [Case(dtype, lambda _, dtype=dtype: as_rows(measure_products(dtype, **options))) for dtype in BYTES]
    return [*products, Case("copies", lambda _: as_rows(measure_copies(*copies)))]


def as_rows(found: list[Ceiling]) -> list[Measured]:
    """What was measured, in the record's form."""
    return [
        Measured(
            one.implementation,
            "forward",
            one.shape,
            one.dtype,
            error=one.error,
            tolerance=one.tolerance,
            flops=one.flops,
            bytes=one.bytes,
            **as_percentiles(one.timing),
        )
        for one in found
    ]
