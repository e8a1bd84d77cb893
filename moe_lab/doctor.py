"""What can this machine run? In plain words, with the way to what is missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that the lab can use: is it here, what does that mean, and how to get it."""

    name: str
    found: bool
    needed: bool
    says: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, GPU, Triton and browser; imports nothing heavy but torch.

    Example:
        >>> [finding.name for finding in examine()][:3]
        ['python', 'cores', 'torch']
    """
    return [_python(), _cores(), _torch(), *_packages(), _gpu(), _triton(), _browser()]


def describe(findings: list[Finding]) -> str:
    """The findings as text for a terminal."""
    marks = {(True, True): "yes", (True, False): "yes", (False, True): "NO ", (False, False): "no "}
    lines = []
    for finding in findings:
        lines.append(f"  {marks[finding.found, finding.needed]}  {finding.name:<14}{finding.says}")
        if not finding.found and finding.remedy:
            lines.append(f"       {'':<14}to get it: {finding.remedy}")
    verdict = "Every lesson runs here." if lessons_run(findings) else "The lessons do not run here yet: see NO above."
    return "\n".join(["What this machine can run", *lines, verdict])


def lessons_run(findings: list[Finding]) -> bool:
    """Whether everything that the lessons need is here."""
    return all(finding.found for finding in findings if finding.needed)


def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    enough = sys.version_info >= (3, 11)
    return Finding(
        "python",
        enough,
        True,
        f"{platform.python_version()} on {platform.system()} ({platform.machine()})",
        "Python 3.11 or newer",
    )


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", True, True, f"{usable} usable; the lessons are made for 2")


def _torch() -> Finding:
    version = _version("torch")
    says = f"torch {version} is installed" if version else "torch is not installed"
    return Finding("torch", version is not None, True, says, "make setup")


def _packages() -> list[Finding]:
    uses = {
        "jupyterlab": "opens the lessons",
        "anywidget": "the widgets",
        "matplotlib": "the figures",
        "seaborn": "their style",
        "ipywidgets": "the link between widgets and Python",
        "safetensors": "the trained model",
        "scipy": 'the router "base"',
        "jaxtyping": "shapes in signatures",
        "transformers": "lesson 02 compares our layer with its blocks",
    }
    findings = []
    for package, use in uses.items():
        version = _version(package)
        says = f"{version}: {use}" if version else f"not installed: {use}"
        findings.append(Finding(package, version is not None, True, says, "make setup"))
    return findings


def _gpu() -> Finding:
    remedy = "a CUDA or ROCm GPU and a torch build for it; only live GPU timing needs one"
    if _version("torch"):
        try:
            import torch
        except Exception as error:  # whatever a broken installation raises, the reader gets a sentence
            return Finding("gpu", False, False, f"unknown: torch does not import ({error})", "make clean, then make")
        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(0)
            return Finding("gpu", True, False, f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    return Finding("gpu", False, False, "none: GPU times stay 'not measured'; everything else works", remedy)


def _triton() -> Finding:
    version = _version("triton")
    if version is None:
        remedy = "pip install triton (Linux only)"
        return Finding("triton", False, False, "not installed: kernels can be read but not run", remedy)
    interpreted = not _gpu().found
    says = f"{version}, in its interpreter: slow, but the same code" if interpreted else f"{version}, on the GPU"
    return Finding("triton", True, False, says)


def _browser() -> Finding:
    path = find_browser()
    says = f"{path}: the browser tests can run" if path else "no Chromium or Chrome: the browser tests are skipped"
    return Finding("browser", path is not None, False, says, "apt-get install chromium, or install Google Chrome")
