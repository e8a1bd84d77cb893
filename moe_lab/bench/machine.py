"""What a record says of its run, and which runs nobody could repeat."""

import importlib.metadata
import os
import subprocess
import sys

import torch

import moe_lab.kernels
from moe_lab.profiling.machine import describe_machine, git
from moe_lab.roofline import best_rates, measure_ceilings


def refuse_what_cannot_be_repeated() -> None:
    """Raise ValueError for a tree with uncommitted changes, no git at all, or Triton's interpreter."""
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"a record names its commit, which git does not tell ({error}); try --no-record") from error
    if changed:
        raise ValueError(f"a record needs a clean tree, changed: {changed.splitlines()[0].strip()}; try --no-record")
    asked = os.environ.get("TRITON_INTERPRET", "0").lower() not in ("", "0", "false", "off", "no")
    if asked and not moe_lab.kernels.SWITCHED_ON:  # by the bridge: there is no GPU, and no suite times a kernel then
        raise ValueError("TRITON_INTERPRET is set: the interpreter's times say nothing; try --no-record")


def device_id() -> str:
    """The device in a file's name: "cpu", or the GPU's own name."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-").split("(")[0].strip("-")


def describe_run(suite: str, started: str) -> dict:
    """Command, commit, device, driver, versions and the ceilings that the machine reached just before the run."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe_machine(kind)
    return {
        "suite": suite,
        "started": started,
        "command": " ".join(["python -m moe_lab", *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD"),
        "dirty": False,
        "device": machine["device"],
        "device_id": device_id(),
        "cores": machine["cores"],
        "threads": machine["threads"],
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
        "driver": torch.version.cuda if kind == "cuda" else None,
        "versions": machine["versions"] | _versions("triton", "transformers"),
        "ceilings": measure(seconds=0.15, repeats=5),
    }


def measure(seconds: float, repeats: int) -> dict:
    """The best rates of products and copies right now: a busy machine shows. The suite "ceilings" has better ones."""
    found = measure_ceilings(seconds=seconds, copy_bytes=2**28, repeats=repeats)
    # a ceiling is what can be reached: the fast calls, not the typical ones
    flops_per_s, bytes_per_s = best_rates((one.dtype, one.flops, one.bytes, one.timing.p20_ms) for one in found)
    return {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s}


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
