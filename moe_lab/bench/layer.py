"""Suite "layer": the experts of published models at the sizes of training and prefill, on a GPU."""

import torch

from moe_lab.bench.cpu import as_case
from moe_lab.bench.layers import Layer
from moe_lab.bench.peers import DIRECTIONS, PEERS
from moe_lab.bench.record import Case
from moe_lab.bench.shapes import MODELS, SKEWS, require_gpu, tiny

TOKENS = (32768, 8192, 1024)  # the largest first: if the time is up, it is for the others


def layer(quick: bool = False) -> list[Case]:
    """A case a model, number of tokens and pass, evenly loaded; then the largest ones as uneven as published."""
    if quick:
        return [as_case(tiny(direction)) for direction in DIRECTIONS]
    require_gpu("layer")

    def case(name: str, tokens: int, direction: str, skew: float = 1.1) -> Case:
        peers = tuple(PEERS) if skew == SKEWS[0] else tuple(n for n, peer in PEERS.items() if peer.ours or peer.limit)
        return as_case(Layer(MODELS[name], tokens, torch.bfloat16, direction, "cuda", skew, peers=peers))

    even = [case(name, tokens, direction) for tokens in TOKENS for name in MODELS for direction in DIRECTIONS]
    uneven = [
        case(name, TOKENS[0], "forward+backward", skew)
        for skew in SKEWS[1:]
        for name in ("Mixtral 8x7B", "OLMoE-1B-7B")
        if skew <= MODELS[name].num_experts / MODELS[name].top_k
    ]
    return [*even[: 2 * len(MODELS)], *uneven, *even[2 * len(MODELS) :]]
