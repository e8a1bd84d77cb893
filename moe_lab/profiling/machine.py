"""The machine and the commit, as records name them."""

import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from moe_lab.operators.processor import say_cpuinfo

ROOT = Path(__file__).parents[2]


def describe_machine(kind: str) -> dict:
    """Device, versions, commit and date: what makes a number one that can be judged; ``kind`` is "cpu" or "cuda".

    ``commit`` is "unknown" where git does not tell it; ``dirty`` says whether the tree had changes, which makes the
    commit a hint at most.

    Example:
        >>> sorted(describe_machine("cpu"))
        ['commit', 'cores', 'date', 'device', 'dirty', 'kind', 'threads', 'versions']
    """
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else processor_name(),
        "kind": kind,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit or "unknown",
        "dirty": bool(changed),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions | ({"cuda": torch.version.cuda} if kind == "cuda" else {}),
    }


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    return say_cpuinfo("model name") or platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """What git says of this project; raises what running it raises."""
    # the git that the reader's PATH has, as in a terminal; no shell, and our own words alone
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _git(*arguments: str) -> str:
    try:
        return git(*arguments)
    except (OSError, subprocess.CalledProcessError):
        return ""
