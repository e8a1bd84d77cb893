"""Experts side by side on a CPU's cores: each core takes whole experts, instead of a share of every product.

A product that two cores share ends with both of them waiting for each other, and so does each addition after it: a
dozen times an expert. Experts have nothing to wait for.

The cores are Python threads; PyTorch gives the interpreter back while it computes. Where the loads are so uneven that
one expert would keep all others waiting, or there is little to do, experts go one after the other, each on all cores.

A profiler or a dispatch mode watches the calling thread alone. Under one, experts go one after the other there, with as
much memory as side by side; so FLOPs and bytes are seen as they are, and times are not.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

from moe_lab.operators.guards import is_watched

LEAST_NUMBERS = 2**25
"""Multiply-adds below which waking the threads is not worth it: less than a millisecond."""
UNEVEN = 1.15
"""Most that the busiest core may have to do, as a multiple of the mean."""

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()


def side_by_side(load: Sequence[int], numbers_a_row: int, device: torch.device) -> bool:
    """Whether experts are worth a core each: enough to do, and no expert that all would wait for.

    ``numbers_a_row`` is the multiply-adds of one row. Experts go to cores largest first, each to the one that is free.

    Example:
        >>> cpu, threads = torch.device("cpu"), torch.get_num_threads()
        >>> side_by_side([512] * 8 * threads, 2**20, cpu) == (threads > 1), side_by_side([4096, 1], 2**20, cpu)
        (True, False)
    """
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores < 2 or sum(load) * numbers_a_row < LEAST_NUMBERS:
        return False
    busy = [0] * cores
    for rows in sorted(load, reverse=True):
        busy[busy.index(min(busy))] += rows
    return max(busy) * cores <= UNEVEN * sum(load)


def run_side_by_side(tasks: Sequence[Callable[[Any], None]], make_own: Callable[[], Any]) -> None:
    """Run the tasks, the first ones first, on as many threads as PyTorch has, each of them on one core.

    Each thread makes something of its own first, such as buffers, and hands that to its tasks. The first exception is
    raised here, once all threads have stopped.
    """
    left, inference, cores = iter(tasks), torch.is_inference_mode_enabled(), torch.get_num_threads()
    if is_watched():
        owns = [make_own() for _ in range(cores)]
        for number, task in enumerate(tasks):
            task(owns[number % cores])
        return
    taking = threading.Lock()

    def work() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are a matter of each thread
            own = make_own()
            while True:
                with taking:
                    task = next(left, None)
                if task is None:
                    return
                task(own)

    threads = _threads(cores)
    started = [threads.submit(work) for _ in range(min(cores, len(tasks)))]
    wait(started)
    for one in started:
        one.result()


def _threads(cores: int) -> ThreadPoolExecutor:
    """As many threads as PyTorch has for its own work, made once and kept."""
    with _making:
        if cores not in _pools:
            pool, ready = ThreadPoolExecutor(cores, "moe_lab experts", _use_one_core), threading.Barrier(cores + 1)
            for _ in range(cores):
                pool.submit(ready.wait)
            ready.wait()
            torch.set_num_threads(cores)  # what the last thread has set for itself counts for threads to come, too
            _pools[cores] = pool
        return _pools[cores]


def _use_one_core() -> None:
    torch.get_num_threads()  # PyTorch asks for its default when a thread first computes: now, and not later
    torch.set_num_threads(1)


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _making
    _pools.clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
