"""Suite "transformers": the experts of a model of Transformers, with each implementation it has and with ours."""

import torch

from moe_lab.bench.cpu import LAYERS, as_case
from moe_lab.bench.layers import Layer
from moe_lab.bench.peers import DIRECTIONS, PEERS
from moe_lab.bench.record import Case
from moe_lab.roofline import LayerShape


def transformers(quick: bool = False) -> list[Case]:
    """A case a layer, dtype and pass, on this processor: the layers of suite "cpu" with 64 experts or more."""
    here = tuple(name for name in PEERS if name.startswith("Transformers "))
    layers = [(tokens, shape) for tokens, shape in LAYERS if shape.num_experts >= 64]
    return [
        as_case(Layer(shape, tokens, dtype, direction, peers=here))
        for dtype in (torch.float32, torch.bfloat16)
        for direction in DIRECTIONS
        for tokens, shape in ([(48, LayerShape(16, 8, 4, 2))] if quick else layers)
    ]
