"""How routers draw: where the generator lives, so that a seed means the same draws on every device."""

from collections.abc import Callable

import torch
from torch import Tensor


def draw(
    sampler: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Numbers from ``torch.rand`` or ``torch.randn``, drawn on the generator's device and brought to ``device``.

    Example:
        >>> seeded = torch.Generator().manual_seed(0)
        >>> draw(torch.rand, (2,), seeded, torch.device("cpu"), torch.float32)
        tensor([0.4963, 0.7682])
    """
    if generator is None:  # not handed on: with one, even None, torch.compile wants a shape that never changes
        return sampler(shape, device=device, dtype=dtype)
    return sampler(shape, generator=generator, device=generator.device, dtype=dtype).to(device)
