"""Devices and their two ceilings: from data sheets, or read from records of this lab's own measurements."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_lab.accounting.precision import BITS
from moe_lab.checkpoint import read_json
from moe_lab.checks import check_fits, check_number
from moe_lab.folders import DATA

BYTES = {dtype: BITS[dtype] // 8 for dtype in ("bfloat16", "float16", "float32")}
"""Bytes of one number, for the dtypes that ceilings are known for."""
KINDS = ("measured", "data sheet")
RECORDS = DATA / "benchmarks"


def check_dtype(dtype: str) -> str:
    """Refuse a dtype outside of `BYTES`."""
    if dtype not in BYTES:
        raise ValueError(f"dtype must be one of {', '.join(BYTES)}; got {dtype!r}")
    return dtype


@dataclass(frozen=True)
class Device:
    """Two ceilings: floating-point operations a second for each dtype, and bytes a second between chip and memory.

    ``kind`` is "measured" (a large matrix product and a large copy, on one machine) or "data sheet" (the vendor's
    figures, which no program reaches); ``source`` says where they are from.

    Example:
        >>> device = Device("toy", {"float32": 8e12}, 2e12, "data sheet", "made up")
        >>> device.ridge("float32")
        4.0

    Raises ValueError for ceilings that are not above 0, dtypes outside of `BYTES`, none at all, and an unknown kind.
    """

    name: str
    flops_per_s: dict[str, float | int]
    bytes_per_s: float | int
    kind: str
    source: str

    def __post_init__(self):
        if not self.flops_per_s:
            raise ValueError("flops_per_s must hold at least one dtype, got none")
        for dtype, rate in self.flops_per_s.items():
            check_dtype(dtype)
            check_number(f"flops_per_s[{dtype!r}]", rate, above=0)
        check_number("bytes_per_s", self.bytes_per_s, above=0)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")

    def peak(self, dtype: str) -> float | int:
        """FLOP/s in this dtype; ValueError where the device has no ceiling for it."""
        if dtype not in self.flops_per_s:
            raise ValueError(f"dtype must be one of {', '.join(self.flops_per_s)} on {self.name}, got {dtype!r}")
        return self.flops_per_s[dtype]

    def ridge(self, dtype: str) -> float:
        """FLOP/byte at which both ceilings take the same time: below it memory limits, above it arithmetic."""
        return self.peak(dtype) / self.bytes_per_s


def _data_sheet(name: str, half: float, single: float, terabytes: float, source: str, bfloat16: bool = True) -> Device:
    """A GPU from its vendor's figures: TFLOP/s in 16 bits on the matrix units without sparsity, in float32, TB/s."""
    flops_per_s = {"bfloat16": half * 1e12} if bfloat16 else {}
    flops_per_s |= {"float16": half * 1e12, "float32": single * 1e12}
    return Device(name, flops_per_s, terabytes * 1e12, "data sheet", source)


_SPARSE = "which quotes 1,979 TFLOP/s in 16 bits with sparsity, so half of it dense"
DEVICES = {
    device.name: device
    for device in (
        _data_sheet("H200", 989.4, 67.0, 4.8, f"NVIDIA H200 Tensor Core GPU data sheet, {_SPARSE}"),
        _data_sheet("H100 SXM", 989.4, 67.0, 3.35, f"NVIDIA H100 Tensor Core GPU data sheet, {_SPARSE}"),
        _data_sheet("A100 80GB", 312.0, 19.5, 2.039, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
        _data_sheet("MI300X", 1307.4, 163.4, 5.3, "AMD Instinct MI300X Accelerator data sheet"),
        _data_sheet("T4", 65.0, 8.1, 0.32, "NVIDIA T4 product brief; it has no bfloat16", bfloat16=False),
    )
}
"""Data-sheet GPUs by name: dense, never sparse, figures; float32 is what the GPU does without TF32."""


def measured_device(path: Path | None = None) -> Device:
    """Read the ceilings of a machine from a record of ``python -m moe_lab bench ceilings``.

    Without a path: the newest ``ceilings-*.json`` in data/benchmarks. The best of the recorded sizes counts for each
    dtype, each size by the median of its calls.

    Raises FileNotFoundError where there is no record, ValueError for a record of another suite.
    """
    if path is None:
        newest = measured_devices()
        if not newest:
            raise FileNotFoundError(f"no ceilings in {RECORDS}; measure them: python -m moe_lab bench ceilings")
        return newest[0]
    return _read_device(path)[1]


def measured_devices() -> list[Device]:
    """The newest ceilings of every machine in data/benchmarks, the newest first; none if none was recorded."""
    found = [_read_device(path) for path in sorted(RECORDS.glob("ceilings-*.json"))]
    newest: dict[str, Device] = {}
    for run, device in sorted(found, key=lambda one: one[0]["started"], reverse=True):
        newest.setdefault(run["device"], device)
    return list(newest.values())


def _read_device(path: Path) -> tuple[dict, Device]:
    """What a record says of its run, and the device with its ceilings."""
    record = read_json(path)
    run, rows = record.get("run"), record.get("rows")
    suite = run.get("suite") if isinstance(run, dict) else None
    if suite != "ceilings":
        raise ValueError(f"{path} must be a record of the suite ceilings, it is of {suite!r}")
    try:
        for name in ("device", "started"):
            check_fits(f"run.{name}", run[name], str)
        threads = "" if run["driver"] else f", {run['threads']} {'thread' if run['threads'] == 1 else 'threads'}"
        samples = [(row["dtype"], row["flops"], row["bytes"], row["ms_p50"]) for row in rows]
        device = Device(f"{run['device']}{threads}, {run['started'][:10]}", *best_rates(samples), "measured", path.name)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path} is no record of ceilings ({type(error).__name__}: {error})") from error
    return run, device


def best_rates(
    samples: Iterable[tuple[str, float | int | None, float | int | None, float | int]],
) -> tuple[dict[str, float], float]:
    """The best FLOP/s of each dtype and the best bytes/s, of samples (dtype, flops, bytes, milliseconds).

    Example:
        >>> best_rates([("float32", 2e9, None, 10.0), ("float32", 2e9, None, 8.0), ("float32", None, 4e9, 1e3)])
        ({'float32': 250000000000.0}, 4000000000.0)

    Raises ValueError for samples without a product or without a copy.
    """
    flops_per_s: dict[str, float] = {}
    bytes_per_s = 0.0
    for dtype, flops, moved, ms in samples:
        if flops:
            flops_per_s[dtype] = max(flops_per_s.get(dtype, 0.0), 1e3 * flops / ms)
        if moved:
            bytes_per_s = max(bytes_per_s, 1e3 * moved / ms)
    if not flops_per_s or not bytes_per_s:
        raise ValueError(
            f"samples must have a product and a copy, got {len(flops_per_s)} dtypes, {bytes_per_s} bytes/s"
        )
    return flops_per_s, bytes_per_s
