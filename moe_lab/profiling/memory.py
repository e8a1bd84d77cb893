"""The most memory that a call holds at once."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from moe_lab.profiling.notices import hush


def measure_peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """Call ``function`` once, and say how many bytes it held at most beyond what was there before, its result included.

    On a CPU that is what PyTorch's allocator gave out and took back, as its profiler tells; on a GPU, what the caching
    allocator counts. Memory that a library below asks the system for by itself is not seen.

    Example:
        >>> measure_peak_bytes(lambda: torch.ones(1000) + torch.ones(1000))
        12000
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    hush()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    held, most = 0, 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
