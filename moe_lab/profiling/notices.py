"""What PyTorch's profiler prints by itself."""

import os

import torch


def hush() -> None:
    """Without a GPU PyTorch 2.13 prints two lines about every profile, and nothing that matters in them."""
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
