"""The layers that GPU suites time, and what stands for them where there is no GPU."""

import torch

from moe_lab.bench.layers import Layer
from moe_lab.roofline import SHAPES, LayerShape

MODELS = {
    **{name: SHAPES[name] for name in ("Mixtral 8x7B", "Qwen3-30B-A3B", "OLMoE-1B-7B", "DeepSeek-V3")},
    "gpt-oss-20b": LayerShape(2880, 2880, 32, 4),
}
SKEWS = (1.1, 2.5, 7.0)
"""Busiest expert over the mean: about even; Mixtral's published loads; OLMoE's most uneven layer."""


def require_gpu(suite: str) -> None:
    """Raise ValueError where there is none: nobody else's time is worth a row."""
    if not torch.cuda.is_available():
        raise ValueError(
            f"suite {suite!r} times kernels on a GPU, and torch sees none here: not measured; "
            "--quick --no-record shows that it runs, in Triton's interpreter"
        )


def tiny(direction: str = "forward", mode: str = "eager") -> Layer:
    """A layer for Triton's interpreter, on our kernels and PyTorch: to see that a suite runs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("dense, equal FLOPs", "moe_lab triton (save=fast)", "moe_lab triton (save=min)", "moe_lab grouped")
    return Layer(LayerShape(16, 8, 4, 2), 24, torch.float32, direction, device, mode=mode, peers=names)
