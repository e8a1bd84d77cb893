"""A second witness for the time of kernels: Triton's own profiler, proton, on a GPU."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from moe_lab.checks import check_fits, check_whole
from moe_lab.profiling.categories import category_of
from moe_lab.profiling.table import KernelRow


def profile_with_proton(function: Callable[[], object], *, warmup: int = 2, repeats: int = 5) -> list[KernelRow]:
    """Time the kernels of ``repeats`` calls with Triton's proton: a row each, the longest first.

    It sees PyTorch's kernels too, and no operator of the CPU. It writes no times of day, so there are no gaps, and a
    share is one of the time of all kernels. Calls and times are sums over all ``repeats``.

    Raises ValueError without a GPU, or where proton was switched off (TRITON_PROTON_DISABLE); ImportError without
    Triton.
    """
    check_whole("warmup", warmup, 0)
    check_whole("repeats", repeats, 1)
    if not torch.cuda.is_available():
        raise ValueError("proton needs a GPU, and there is none here; profile() takes a CPU too")
    from triton import profiler

    import moe_lab.kernels  # noqa: F401  (before Triton, always)

    for _ in range(warmup):
        function()
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        session = profiler.start(str(path))
        if session is None:
            raise ValueError("proton did not start; is TRITON_PROTON_DISABLE set?")
        try:
            for _ in range(repeats):
                function()
            torch.cuda.synchronize()
        finally:
            profiler.finalize(session)  # writes path.hatchet
        return read_proton(json.loads(path.with_suffix(".hatchet").read_text()))


def read_proton(database: list[dict]) -> list[KernelRow]:
    """Rows of what proton wrote, a tree of frames followed by a description of the device.

    A frame has a name, metrics of its own alone, and children; kernels are the frames that took time.

    Example:
        >>> kernel = {"frame": {"name": "_up"}, "metrics": {"time (ns)": 2000, "count": 4}, "children": []}
        >>> (row,) = read_proton([{"frame": {"name": "ROOT"}, "metrics": {}, "children": [kernel]}, {}])
        >>> row.name, row.calls, row.total_us
        ('_up', 4, 2.0)

    Raises ValueError for anything else.
    """
    totals: dict[str, tuple[int, float]] = {}
    try:
        for name, calls, time_ns in _kernels(database[0]):
            for what, value, kind in (("name", name, str), ("count", calls, int), ("time (ns)", time_ns, float)):
                check_fits(what, value, kind)
            before = totals.get(name, (0, 0.0))
            totals[name] = before[0] + calls, before[1] + time_ns / 1e3
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no tree of proton's frames ({error!r})") from error
    whole = sum(time_us for _, time_us in totals.values())
    rows = [KernelRow(name, category_of(name), *total, total[1] / whole) for name, total in totals.items()]
    return sorted(rows, key=lambda row: -row.total_us)


def _kernels(frame: dict) -> Iterator[tuple[str, int, float]]:
    metrics = frame["metrics"]
    if metrics.get("time (ns)", 0) > 0:
        yield frame["frame"]["name"], metrics["count"], metrics["time (ns)"]
    for child in frame["children"]:
        yield from _kernels(child)
