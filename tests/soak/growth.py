"""What a process holds while it does the same thing again and again, and whether that grows.

The resident memory that the system counts is coarse; these counts are exact. What C's allocator has given out holds
every tensor and every larger object of Python's. Python's own allocator counts the blocks of the smaller ones, up to
512 bytes. The garbage collector knows the containers, and each of them knows how many entries it has. So a tensor that
is forgotten each round is some hundred bytes of C's, any other object of 100 bytes is a block, and whoever keeps it has
an entry more.
"""

import ctypes
import gc
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SMALL = 512
"""Bytes of the largest object that Python's own allocator takes."""
SIZED = (list, dict, set, deque, OrderedDict)
WHOLE = bool(os.environ.get("MOE_LAB_SOAK"))
"""Whether this is `make soak`, and not the slice of it that `make test` has time for."""


FIELDS = {
    "heap_bytes": 0.0,
    "blocks": 0.0,
    "objects": 0.5,
    "entries": 0.5,
    "tensors": 0.05,
    "resident_bytes": 0.0,
    "files": 0.0,
    "threads": 0.0,
    "children": 0.0,
}
"""What is counted, and the most that it may grow by a round."""
ONCE = {"heap_bytes": 100_000, "blocks": 500, "resident_bytes": 1_000_000}
"""What a process may take besides, in all: for hundreds of rounds PyTorch takes a block a round more, and then no more.

So in ten thousand rounds eleven bytes a round of C's memory are too much, a ninth of what is looked for.
"""
LONG = 5000
"""So many rounds are judged by their mean, too. In few rounds what warms up leaps, and the median leaves that out."""
STRETCHES = 8 if WHOLE else 4
TABLES: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
"""What was measured, by the heads of the columns, for the end of `make soak`."""


class _Given(ctypes.Structure):
    """glibc's mallinfo2; uordblks and hblkhd are the bytes in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


C = ctypes.CDLL(None)
C.mallinfo2.restype = _Given


def size_of(kept: object) -> np.ndarray:
    """What lists of numbers take that are kept on purpose: as the fields from heap_bytes to resident_bytes."""
    if isinstance(kept, list):
        items = sys.getsizeof(kept) - sys.getsizeof([])
        own = [items, 1] if items > SMALL else [0, 2]
        return np.array([*own, 1, len(kept), 0, 80 + items]) + sum(map(size_of, kept), np.zeros(6, int))
    return np.array([0, 1, 0, 0, 0, 32] if isinstance(kept, float) or kept > 256 else [0] * 6)


def count_entries(objects: list) -> int:
    """The entries of all containers: those made since the test run began, and those of our modules."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("moe_lab", "tests")]
    found = [*objects, *(value for module in ours for value in vars(module).values())]
    return sum(len(one) for one in {id(one): one for one in found if type(one) in SIZED}.values())


def count_children() -> int:
    """The processes that this one has started and not waited for, dead or alive."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return sum(int(parent) == os.getpid() for _, parent, *_ in stats)


class Diary:
    """Readings of what the process holds, in memory of its own that does not grow either; ``limit`` are the most."""

    def __init__(self, limit: int = 100):
        self.rounds, self.numbers = np.zeros(limit, np.int64), np.zeros((limit, len(FIELDS)), np.int64)
        self.taken = 0

    def note(self, rounds: int, *kept: list) -> None:
        """Take a reading, without what is ``kept`` on purpose."""
        gc.collect()
        C.malloc_trim(0)  # what is free goes back to the system, so that it is not counted as resident
        given, objects = C.mallinfo2(), gc.get_objects()
        counts = [
            given.uordblks + given.hblkhd,
            sys.getallocatedblocks(),
            len(objects),
            count_entries(objects),
            sum(issubclass(type(one), torch.Tensor) for one in objects),  # not isinstance: some answer for others
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            len([*Path("/proc/self/fd").iterdir()]),
            threading.active_count(),
            count_children(),
        ]
        del objects
        self.rounds[self.taken], self.numbers[self.taken] = rounds, counts
        self.numbers[self.taken, :6] -= sum(map(size_of, kept), np.zeros(6, int))
        self.taken += 1

    def growth(self, field: str) -> tuple[float, float, float]:
        """Growth a round: its median over the stretches between readings, and the mean with its standard error.

        The mean is the slope of the line with the least squares; the median does not see a single jump.
        """
        rounds = self.rounds[: self.taken].astype(float)
        values = self.numbers[: self.taken, [*FIELDS].index(field)].astype(float)
        median = float(np.median(np.diff(values) / np.diff(rounds)))
        spread = rounds - rounds.mean()
        slope = float(spread @ values / (spread @ spread))
        rest = values - values.mean() - slope * spread
        return median, slope, float(np.sqrt(rest @ rest / max(1, self.taken - 2) / (spread @ spread)))


def repeat(what: str, once: Callable[[], object], rounds: int, warm: int, whole: bool = WHOLE) -> None:
    """Do a thing ``warm`` times, then ``rounds`` times with a reading each stretch, and fail where something grows."""
    diary, done = Diary(), 0
    for stretch in (warm, *[rounds // STRETCHES] * STRETCHES):
        for _ in range(stretch):
            once()
        diary.note(done := done + stretch)
    check_steady(what, diary, whole)


def check_steady(what: str, diary: Diary, whole: bool = WHOLE) -> None:
    """Fail where something grows. A slice is too short for what is in `ONCE`, and is judged by the other counts."""
    found = {field: diary.growth(field) for field in FIELDS}
    rounds = diary.rounds[: diary.taken]
    span = int(rounds[-1] - rounds[0])
    means = (f"{mean:.3f} ± {error:.3f}" for _, mean, error in found.values())
    TABLES.setdefault(("a round of", "rounds", *FIELDS), []).append((what, f"{rounds[0]:,} to {rounds[-1]:,}", *means))
    growing = []
    for field, (median, mean, error) in found.items():
        most = FIELDS[field] + ONCE.get(field, 0) / span
        grows = median > most or (span >= LONG and mean > max(most, 0.01))
        if grows and (whole or field not in ONCE):
            growing.append(f"{field}: median {median:.3f}, mean {mean:.3f} ± {error:.3f} a round")
    assert not growing, f"{what} grows. {'; '.join(growing)}\n{rounds}\n{diary.numbers[: diary.taken]}"
