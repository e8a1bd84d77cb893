"""Suite "decode": a handful of tokens, where reading the experts' matrices is all there is to do."""

import torch

from moe_lab.bench.cpu import as_case
from moe_lab.bench.layers import Layer
from moe_lab.bench.record import Case
from moe_lab.bench.rows import MODES
from moe_lab.bench.shapes import MODELS, require_gpu, tiny

TOKENS = (1, 4, 16, 64, 128)


def decode(quick: bool = False) -> list[Case]:
    """A case a model, number of tokens and mode: each launch from Python, or all of them in a CUDA graph."""
    if quick:
        return [as_case(tiny())]
    require_gpu("decode")
    return [
        as_case(Layer(shape, tokens, torch.bfloat16, "forward", "cuda", mode=mode))
        for tokens in TOKENS
        for shape in MODELS.values()
        for mode in reversed(MODES)
    ]
