"""Inputs as large as real layers: drawn where they are used, with loads as uneven as real ones."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_lab.inputs import LayerInputs
from moe_lab.roofline import LayerShape, popularity
from moe_lab.types import Routing


def draw_routing(
    tokens: int, num_experts: int, top_k: int, *, max_over_mean: float = 1.0, device: str = "cpu", seed: int = 0
) -> Routing:
    """Draw each token's experts so that the busiest expects ``max_over_mean`` times the mean load; weights add up to 1.

    An expert of chance p (`moe_lab.roofline.popularity`) is among a token's top_k with just that chance: one random
    number a token, and steps of 1 from there, along the chances laid end to end (systematic sampling).

    Example:
        >>> load = draw_routing(4096, 64, 8, max_over_mean=2.5).load
        >>> round(float(load.max() / load.double().mean()), 1)
        2.5
    """
    generator = torch.Generator().manual_seed(seed)
    chances = torch.tensor(popularity(num_experts, top_k, max_over_mean), dtype=torch.float64)
    shuffled = torch.randperm(num_experts, generator=generator)
    edges = chances[shuffled].cumsum(0)
    edges[-1] = top_k  # whatever rounding left
    points = torch.rand(tokens, 1, generator=generator, dtype=torch.float64) + torch.arange(top_k)
    experts = shuffled[torch.searchsorted(edges, points, right=True).clamp_max(num_experts - 1)]
    weights = torch.rand(tokens, top_k, generator=generator) + 0.1
    return Routing((experts).to(device), (weights / weights.sum(1, keepdim=True)).to(device), num_experts)


def draw_inputs(
    shape: LayerShape,
    tokens: int,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    max_over_mean: float = 1.0,
    seed: int = 0,
) -> LayerInputs:
    """Draw the inputs of a layer on the device itself: N(0, 1), matrices N(0, 1 / inputs), so that y is of order 1.

    Example:
        >>> draw_inputs(LayerShape(8, 4, 3, 2), 5, dtype=torch.float32).w_gate_up.shape
        torch.Size([3, 8, 8])
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=dtype, device=device).mul_(scale)

    d_model, d_expert, num_experts = shape.d_model, shape.d_expert, shape.num_experts
    return LayerInputs(
        x=normal(tokens, d_model),
        routing=draw_routing(tokens, num_experts, shape.top_k, max_over_mean=max_over_mean, device=device, seed=seed),
        w_gate_up=normal(num_experts, 2 * d_expert, d_model, scale=d_model**-0.5),
        w_down=normal(num_experts, d_model, d_expert, scale=d_expert**-0.5),
        dy=normal(tokens, d_model),
    )


def copies_for_cold_caches(bytes_each: int, most: int = 4) -> int:
    """How many copies of inputs to take in turns, so that none is still in the cache when it is used again.

    Three times the cache in all; large inputs drive themselves out.
    """
    return max(1, min(most, -(-3 * cache_bytes() // max(1, bytes_each))))


def cache_bytes() -> int:
    """The largest cache: the GPU's L2, or the CPU's L3 where the system tells it (else 32 MiB)."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).L2_cache_size

    try:
        return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), 2**20)
    except (ValueError, OSError, AttributeError):
        return 2**25


def take_turns(functions: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One function that calls another one of these each time.

    Example:
        >>> count = take_turns([lambda: 1, lambda: 2])
        >>> count(), count(), count()
        (1, 2, 1)
    """
    turn = -1

    def call() -> object:
        nonlocal turn
        turn = (turn + 1) % len(functions)
        return functions[turn]()

    return functions[0] if len(functions) == 1 else call
