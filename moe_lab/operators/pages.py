"""Memory for large results: in large pages where Linux has them, and used again once nobody holds it.

A fresh tensor is memory that the system has not found yet: it does so when a page is first written, 4 KB at a time, and
clears it. That can take a tenth of a layer's time. With pages of 2 MB it is asked 512 times less often; and what a step
gave back, the next one takes again, as PyTorch does on a GPU. What waits for that is at most a sixteenth of the
machine's memory, the oldest of it goes first.
"""

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections import deque

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

LARGE_BYTES = 2**22
"""From here on it pays; below, the allocator gives out memory that was used before."""
PAGE_BYTES = 2**21
MOST_KEPT = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16 if hasattr(os, "sysconf") else 2**28
"""Bytes that may wait to be used again."""

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", 14)
# What came back, oldest first. Only append and popleft touch it, each in one piece: a tensor can end at any moment, in
# any thread.
_kept: deque[torch.Tensor] = deque()


def empty_in_large_pages(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``, in memory that a large tensor of ours had before, or else in large pages if the system has some.

    Under a profiler or a dispatch mode it is a tensor like any other, so that its bytes are seen.

    Example:
        >>> empty_in_large_pages(2, 3, dtype=torch.float32, device=torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    watched = _get_current_dispatch_mode_stack() or torch.autograd._profiler_enabled()
    if size < LARGE_BYTES or device.type != "cpu" or watched:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = _take(-(-size // PAGE_BYTES) * PAGE_BYTES)
    lent = (ctypes.c_char * len(memory)).from_address(memory.data_ptr())
    weakref.finalize(lent, _give_back, memory).atexit = False
    return torch.frombuffer(lent, dtype=dtype, count=math.prod(shape)).view(shape)


def _take(size: int) -> torch.Tensor:
    """Memory of just this size that came back, or new one."""
    for _ in range(len(_kept)):
        try:
            memory = _kept.popleft()
        except IndexError:  # another thread was faster
            break
        if len(memory) == size:
            return memory
        _kept.append(memory)
    memory = torch.empty(size, dtype=torch.uint8)
    if sys.platform == "linux":
        start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # the first whole page
        _madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(size - (start - memory.data_ptr())), ctypes.c_int(_MADV_HUGEPAGE)
        )
    return memory


def _give_back(memory: torch.Tensor) -> None:
    _kept.append(memory)
    while sum(map(len, tuple(_kept))) > MOST_KEPT:
        try:
            _kept.popleft()
        except IndexError:
            return


def _madvise(*arguments: object) -> None:
    """The system's own call. If it refuses, pages stay small, and nothing else changes."""
    ctypes.CDLL(None).madvise(*arguments)
