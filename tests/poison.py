"""What memory holds that nobody should read, or write over."""

import torch


def fill_with_poison(memory):
    """NaN, or half the lowest whole number: whoever reads it or writes over it shows."""
    return memory.fill_(float("nan") if memory.is_floating_point() else torch.iinfo(memory.dtype).min // 2)


def is_poison(memory):
    return memory.isnan() if memory.is_floating_point() else memory == torch.iinfo(memory.dtype).min // 2
