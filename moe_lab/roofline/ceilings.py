"""Measuring the ceilings of the machine at hand: large matrix products and large copies, verified and timed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.operators.products import multiply_into
from moe_lab.profiling import Timing, time_interleaved
from moe_lab.roofline.devices import BYTES, check_dtype

TOLERANCES = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
"""Relative error (Frobenius) that a product may have against float64."""
SMALLEST, LARGEST = 256, 8192
WARMUP = 1


@dataclass(frozen=True)
class Ceiling:
    """One large operation, verified and timed: a "matrix product" counts ``flops``, a "copy" counts ``bytes``."""

    implementation: str
    shape: dict[str, int]
    dtype: str
    timing: Timing
    error: float
    tolerance: float
    flops: int | None = None
    bytes: int | None = None


def measure_ceilings(
    *, seconds: float | int = 1.0, copy_bytes: int = 2**29, repeats: int = 9, sizes: Sequence[int] = ()
) -> list[Ceiling]:
    """Measure the machine at hand, its GPU if it has one: square matrix products in each dtype, and copies.

    Products are those of our own layers, by the library that is the fastest here.

    Products double in size from 256 for as long as ``repeats`` of the next would take about ``seconds``; the last
    three sizes are timed (or exactly ``sizes``, if given). A dtype whose smallest product takes longer is left out:
    some CPUs have no float16. A copy of n bytes counts 2 n, read and written, in arrays of ``copy_bytes`` and half of
    it; they should be far larger than the caches.

    Example:
        >>> found = measure_ceilings(sizes=(32,), copy_bytes=2**16, repeats=1)
        >>> [(one.implementation, one.dtype, one.flops or one.bytes) for one in found][2:]
        [('matrix product', 'float32', 65536), ('copy', 'float32', 131072), ('copy', 'float32', 65536)]

    Raises ValueError for seconds that are not above 0, copy_bytes below 8, repeats or sizes below 1.
    """
    options = {"seconds": seconds, "repeats": repeats, "sizes": sizes}
    products = [one for dtype in BYTES for one in measure_products(dtype, **options)]
    return products + measure_copies(copy_bytes, repeats)


def measure_products(
    dtype: str, *, seconds: float | int = 1.0, repeats: int = 9, sizes: Sequence[int] = ()
) -> list[Ceiling]:
    """Time square matrix products in one dtype; see `measure_ceilings`. Empty where the smallest takes too long."""
    check_dtype(dtype)
    check_whole("repeats", repeats, 1)
    budget_ms = 1e3 * check_number("seconds", seconds, above=0) / (repeats + WARMUP)
    sizes = [check_whole("sizes", size, 1) for size in sizes] or _sizes_within(dtype, budget_ms)
    errors, functions = {}, {}
    for size in sizes:
        functions[str(size)], errors[size] = _product(dtype, size)
    if not sizes:
        return []
    timings = time_interleaved(functions, repeats=repeats, warmup=WARMUP)
    return [
        Ceiling("matrix product", {"size": n}, dtype, timings[str(n)], errors[n], TOLERANCES[dtype], flops=2 * n**3)
        for n in sizes
    ]


def measure_copies(copy_bytes: int = 2**29, repeats: int = 9) -> list[Ceiling]:
    """Time copies of ``copy_bytes`` and of half as many; see `measure_ceilings`."""
    check_whole("copy_bytes", copy_bytes, 8)
    errors, functions, counts = {}, {}, [copy_bytes // 4, copy_bytes // 8]
    for count in counts:
        functions[str(count)], errors[count] = _copy(count)
    timings = time_interleaved(functions, repeats=repeats, warmup=WARMUP)
    return [
        Ceiling("copy", {"elements": n}, "float32", timings[str(n)], errors[n], 0.0, bytes=2 * 4 * n) for n in counts
    ]


def _product(dtype: str, size: int) -> tuple[Callable[[], object], float]:
    """A product to call, and its relative error against float64 on its first rows."""
    a, b = (_draw(size, size, seed=seed).to(getattr(torch, dtype)) for seed in (0, 1))
    out = multiply_into(torch.empty_like(a), a, b)
    want = a[:16].double() @ b.double()
    error = float((out[:16].double() - want).norm() / want.norm())
    return lambda: multiply_into(out, a, b), error


def _copy(count: int) -> tuple[Callable[[], object], float]:
    """A copy to call, and how many of its numbers came out wrong."""
    source = torch.arange(count, dtype=torch.float32, device=_device())
    target = torch.full_like(source, math.nan)
    target.copy_(source)
    return lambda: target.copy_(source), float((source != target).sum())


def _sizes_within(dtype: str, budget_ms: float) -> list[int]:
    """The last three doublings of which one call keeps within the budget."""
    sizes, size, next_ms = [], SMALLEST, 0.0
    while size <= LARGEST and next_ms <= budget_ms:
        function, _ = _product(dtype, size)
        last_ms = time_interleaved({"": function}, repeats=1, warmup=WARMUP)[""].p50_ms
        if last_ms > budget_ms:
            break
        sizes, size, next_ms = [*sizes, size], 2 * size, 8 * last_ms
    return sizes[-3:]


def _draw(*shape: int, seed: int) -> Tensor:
    """N(0, 1), since zeros make some GPUs draw less power and run faster than any real input does."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
