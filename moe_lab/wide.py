"""Buffers that keep their precision when the model around them is cast."""

from torch import nn


class WideBuffers(nn.Module):
    """A module that moves with its model, while the buffers named in ``wide`` keep their dtype.

    A selection bias that learns in steps of 0.001 stops learning in bfloat16, where the next number after 0.5 is 0.504.

    Example:
        >>> import torch
        >>> module = WideBuffers()
        >>> module.register_buffer("bias", torch.zeros(2))
        >>> module.wide = ("bias",)
        >>> module.bfloat16().bias.dtype
        torch.float32
    """

    wide: tuple[str, ...] = ()

    def _apply(self, fn, recurse=True):
        kept = {name: getattr(self, name) for name in self.wide}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = getattr(self, name)
            # memory that was only just given (``to_empty``) holds nothing worth keeping
            setattr(self, name, now.to(before.dtype) if before.is_meta else before.to(now.device))
        return self
