"""For every test and every notebook: no trace in the reader's own progress file, and what nbval compares."""

import os
import tempfile
from pathlib import Path

import torch

import moe_lab  # sets OpenMP's waiting before torch loads it, here and for the notebooks' kernels
import moe_lab.kernels  # noqa: F401  (without a GPU, switches Triton's interpreter on before anything imports triton)

os.environ["MOE_LAB_PROGRESS"] = str(Path(tempfile.mkdtemp(prefix="moe-lab-")) / "progress.json")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail, not wait
torch.set_num_threads(1)  # the tests' matrices are small: a second thread only waits, and waiting threads spin


def pytest_collectstart(collector):
    """Compare text, not pictures: a figure's sentence in text/plain says what its data said."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr")
