"""Memory for large results: in large pages where Linux has them, and used again once nobody holds it.

A fresh tensor is memory that the system has not found yet: it does so when a page is first written, 4 KB at a time, and
clears it. That can take a tenth of a layer's time. With pages of 2 MB it is asked 512 times less often; and what a step
gave back, the next one takes again, as PyTorch does on a GPU.

What waits to be taken again and what is in use are together never more than was in use at once; and at most a sixteenth
of the memory that this process may have waits. The oldest goes first.
"""

import contextlib
import ctypes
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from pathlib import Path

import torch

from moe_lab.operators.guards import is_watched

LARGE_BYTES = 2**22
"""From here on it pays; below, the allocator gives out memory that was used before."""
PAGE_BYTES = 2**21
SHARE = 16
"""What may wait is this part of the memory there is."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may have, in its two versions."""

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", 14)


def empty_in_large_pages(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``, in memory that a large tensor of ours had before, or else in large pages if the system has some.

    Under a profiler or a dispatch mode it is a tensor like any other, so that its bytes are seen.

    Example:
        >>> empty_in_large_pages(2, 3, dtype=torch.float32, device=torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES or device.type != "cpu" or is_watched():
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.frombuffer(SHELF.lend(size), dtype=dtype, count=math.prod(shape)).view(shape)


class Shelf:
    """Memory that was given back, and how much is lent.

    Example:
        >>> shelf = Shelf(most_waiting=2**30)
        >>> first = shelf.lend(10)
        >>> place = ctypes.addressof(first)
        >>> del first
        >>> ctypes.addressof(shelf.lend(20)) == place
        True
    """

    def __init__(self, most_waiting: int):
        self.most_waiting, self.lent, self.most_lent = most_waiting, 0, 0
        self.waiting: list[torch.Tensor] = []  # oldest first
        # A tensor can end at any moment, in any thread, even while the lock is held: it is put here, in one step, and
        # whoever has the lock next sorts it in.
        self._back: deque[torch.Tensor] = deque()
        self._lock = threading.Lock()

    def lend(self, size: int) -> ctypes.Array:
        """Memory of at least this size. It comes back when nobody holds what is returned, or a tensor made of it."""
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        with self._lock:
            self._sort_in()
            memory = next((one for one in reversed(self.waiting) if len(one) == size), None)
            self.waiting = [one for one in self.waiting if one is not memory]
            self.lent += size
            self.most_lent = max(self.most_lent, self.lent)
            if memory is None:
                self._let_go()
        if memory is None:
            try:
                memory = fresh_pages(size)
            except BaseException:  # there is none: then none was lent
                with self._lock:
                    self.lent -= size
                raise
        lent = (ctypes.c_char * size).from_address(memory.data_ptr())
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    def _take_back(self, memory: torch.Tensor) -> None:
        self._back.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._sort_in()
                self._let_go()
            finally:
                self._lock.release()

    def after_fork(self) -> None:
        """In a forked process: whoever held the lock is not here to let go of it."""
        self._lock = threading.Lock()

    def _sort_in(self) -> None:
        while self._back:
            self.waiting.append(self._back.popleft())
            self.lent -= len(self.waiting[-1])

    def _let_go(self) -> None:
        """Of the oldest, until what waits is little enough."""
        room = min(self.most_waiting, self.most_lent - self.lent)
        while self.waiting and sum(map(len, self.waiting)) > room:
            del self.waiting[0]


def fresh_pages(size: int) -> torch.Tensor:
    """So many bytes, with a word to the system that large pages would be welcome; what it makes of it is its affair."""
    memory = torch.empty(size, dtype=torch.uint8)
    if sys.platform == "linux":
        start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # the first whole page
        rest = size - (start - memory.data_ptr())
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(rest), ctypes.c_int(_MADV_HUGEPAGE))
    return memory


def memory_there_is() -> int:
    """Bytes that this process may have: the machine's, or its container's if those are fewer.

    Example:
        >>> memory_there_is() > 2**28
        True
    """
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**32]
    for limit in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            known.append(int(Path(limit).read_text()))
    return min(known)


def _madvise(*arguments: object) -> None:
    """The system's own call. If it refuses, pages stay small, and nothing else changes."""
    ctypes.CDLL(None).madvise(*arguments)


SHELF = Shelf(memory_there_is() // SHARE)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHELF.after_fork)
