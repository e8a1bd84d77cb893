"""Running a suite, and the immutable record of the run."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

import moe_lab.kernels
from moe_lab.checkpoint import write_json
from moe_lab.roofline import best_rates, measure_ceilings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """One row: an implementation on a shape, verified before it was timed."""

    implementation: str
    direction: str
    shape: dict[str, int]
    dtype: str
    ms_p20: float
    ms_p50: float
    ms_p80: float
    error: float
    tolerance: float
    flops: int | None = None
    bytes: int | None = None

    @property
    def verified(self) -> bool:
        """Whether the answer was right; a wrong one is not worth timing."""
        return self.error <= self.tolerance

    def as_dict(self) -> dict:
        """The row as the record holds it; ``pass`` is a word of Python's."""
        values = asdict(self)
        values["pass"] = values.pop("direction")
        return {**values, "verified": self.verified}


def run(
    suite: str, cases: Iterable[Callable[[], list[Measured]]], folder: Path | None
) -> tuple[list[Measured], Path | None]:
    """Run every case with a progress bar; write the record into ``folder``, or none if that is None.

    Raises ValueError for a row that is not right, and, where a record is wanted, for a tree with uncommitted changes
    or Triton's interpreter: neither could be repeated.
    """
    if folder is not None:
        _refuse_what_cannot_be_repeated()
    about = {} if folder is None else _about_this_machine()  # before the run, in case somebody commits meanwhile
    started, rows = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), []
    for case in tqdm(list(cases), desc=suite, unit="case"):
        rows += case()
        for row in rows:
            if not row.verified:
                raise ValueError(f"{row.implementation} on {row.shape} is off by {row.error}, allowed {row.tolerance}")
    if folder is None:
        return rows, None
    about = {"suite": suite, "started": started, **about}
    path = folder / f"{suite}-{about['device_id']}-{started[:10]}-{about['commit'][:9]}.json"
    if path.exists():
        raise ValueError(f"{path} is a record of the same commit and day, and records are immutable; delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"run": about, "rows": [row.as_dict() for row in rows]})
    return rows, path


def show_table(rows: list[Measured], baseline: str) -> str:
    """The rows as text, with the time of each as a multiple of the baseline's on the same shape.

    Where no row is the baseline, its rate stands there instead: what it counts, FLOPs or bytes, over its median time.
    """
    base = {str(row.shape): row.ms_p50 for row in rows if row.implementation == baseline}
    last = f"x {baseline}" if base else "rate"
    lines = [f"{'shape':42} {'implementation':24} {'p20':>9} {'p50 ms':>9} {'p80':>9}  {last}"]
    for row in rows:
        shape = " ".join(f"{name}={size}" for name, size in row.shape.items())
        ratio = f"{row.ms_p50 / base[str(row.shape)]:8.2f}" if str(row.shape) in base else "       -"
        lines.append(
            f"{shape:42} {row.implementation:24} {row.ms_p20:9.2f} {row.ms_p50:9.2f} {row.ms_p80:9.2f}  "
            f"{ratio if base else _rate(row)}"
        )
    return "\n".join(lines)


def _rate(row: Measured) -> str:
    if row.flops:
        return f"{row.flops / row.ms_p50 / 1e9:8.4f} TFLOP/s, {row.dtype}"
    return f"{row.bytes / row.ms_p50 / 1e6:8.1f} GB/s" if row.bytes else "       -"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _refuse_what_cannot_be_repeated() -> None:
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"a record names its commit, which git does not tell ({error}); try --no-record") from error
    if changed:
        raise ValueError(f"a record needs a clean tree, changed: {changed.splitlines()[0].strip()}; try --no-record")
    asked = os.environ.get("TRITON_INTERPRET", "0").lower() not in ("", "0", "false", "off", "no")
    if asked and not moe_lab.kernels.SWITCHED_ON:  # by the bridge: there is no GPU, and no suite runs a kernel then
        raise ValueError("TRITON_INTERPRET is set: the interpreter's times say nothing; try --no-record")


def _about_this_machine() -> dict:
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else _processor()
    return {
        "command": " ".join(["python -m moe_lab", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": False,
        "device": device,
        "device_id": device.lower().replace(" ", "-").split("(")[0].strip("-") if cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "driver": torch.version.cuda if cuda else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "ceilings": _brief_ceilings(),
    }


def _brief_ceilings() -> dict:
    """What the machine reached in about a second just before the run: a busy one shows. The suite has better ones."""
    found = measure_ceilings(seconds=0.15, copy_bytes=2**28, repeats=5)
    flops_per_s, bytes_per_s = best_rates((one.dtype, one.flops, one.bytes, one.timing.p50_ms) for one in found)
    return {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s}


def _processor() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
