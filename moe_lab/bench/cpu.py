"""Suite "cpu": the experts on this processor, against their matrix products alone and every rival that runs here."""

import torch

from moe_lab.bench.layers import Layer, time_layer
from moe_lab.bench.peers import DIRECTIONS, PEERS
from moe_lab.bench.record import Case
from moe_lab.roofline import LayerShape

LAYERS = (
    # few wide experts with 512 rows each; many narrow ones with 256; twice as many with 64
    (2048, LayerShape(512, 1024, 8, 2)),
    (2048, LayerShape(512, 256, 64, 8)),
    (1024, LayerShape(1024, 512, 128, 8)),
)
DTYPES = (torch.float32, torch.bfloat16)


def cpu(quick: bool = False) -> list[Case]:
    """A case a layer, dtype and pass. Interleaved in each: the floor, our backends, the rivals."""
    here = tuple(name for name, peer in PEERS.items() if "cpu" in peer.devices)
    layers = ((48, LayerShape(16, 8, 4, 2)),) if quick else LAYERS
    found = [
        Layer(shape, tokens, dtype, direction, floor=True, peers=here)
        for dtype in DTYPES
        for direction in DIRECTIONS
        for tokens, shape in layers
    ]
    return [as_case(layer) for layer in found]


def as_case(layer: Layer) -> Case:
    """A layer as a suite runs it."""
    return Case(layer.name, lambda seconds: time_layer(layer, seconds), layer.not_measured)
