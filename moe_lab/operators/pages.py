"""Memory for large results, in large pages where Linux has them.

A fresh tensor is memory that the system has not found yet: it does so when a page is first written, 4 KB at a time, and
that can take a tenth of a layer's time. With pages of 2 MB it asks 512 times less often. PyTorch can do so for all its
memory (the variable THP_MEM_ALLOC_ENABLE); here it is done for the few large tensors of an operator.
"""

import ctypes
import mmap
import sys

import torch

LARGE_BYTES = 2**22
"""From here on it pays; below, the allocator gives out memory that was used before."""

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", 14)


def empty_in_large_pages(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``, with a word to the system that large pages would be welcome; what it makes of it is its affair.

    Example:
        >>> empty_in_large_pages(2, 3, dtype=torch.float32, device=torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    tensor = torch.empty(*shape, dtype=dtype, device=device)
    size = tensor.numel() * tensor.element_size()
    if size >= LARGE_BYTES and device.type == "cpu" and sys.platform == "linux":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # the first whole page
        size -= start - tensor.data_ptr()
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_HUGEPAGE)
    return tensor


def _madvise(*arguments: object) -> None:
    """The system's own call. If it refuses, pages stay small, and nothing else changes."""
    ctypes.CDLL(None).madvise(*arguments)
