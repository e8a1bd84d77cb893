"""Profiling a function with PyTorch's profiler: one call of it, operator by operator, as a trace."""

from collections.abc import Callable, Mapping

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from moe_lab.checks import check_whole
from moe_lab.profiling.machine import describe_machine
from moe_lab.profiling.notices import hush
from moe_lab.profiling.operators import cpu_events, gpu_events
from moe_lab.profiling.timing import time_interleaved
from moe_lab.profiling.trace import KINDS, Trace, TraceEvent

CALL = "moe_lab profiled call"
ABOUT_CALL = ("implementation", "direction", "dtype", "shape")
"""What only the caller knows."""

Costs = Mapping[str, tuple[int | None, int | None]]


def profile(
    function: Callable[[], object],
    *,
    about: Mapping[str, object],
    device: str = "cpu",
    warmup: int = 2,
    repeats: int = 5,
    costs: Costs | None = None,
) -> Trace:
    """Call a function ``repeats`` times under PyTorch's profiler, and return the call of median duration as a trace.

    ``about`` says what runs: implementation, direction, dtype and shape; machine, versions, commit and date are added.
    So are, in microseconds, ``call_us``, how long the traced call took; ``calls_us``, all of them; and
    ``unprofiled_us``, the median of as many calls before them without the profiler, which takes about a microsecond
    for each operator: believe this one where the two differ.

    Which operators become events says `cpu_events`, which kernels `gpu_events`. On a CPU an event's time is the calling
    thread's, from calling an operator until it returns, however many threads helped. With ``device="cuda"`` kernels
    have lanes of their own, an event on the lane "CPU" is a launch, and the call ends when the GPU has finished.

    ``costs`` gives (FLOPs, bytes) of one call by the name of an operator or kernel that PyTorch cannot count, such as
    Triton's.

    Example:
        >>> a = torch.ones(64, 64)
        >>> about = {"implementation": "mm", "direction": "forward", "dtype": "float32", "shape": {"n": 64}}
        >>> trace = profile(lambda: a @ a, about=about, repeats=1)
        >>> [(event.name, event.lane, event.flops) for event in trace.events]
        [('aten::mm', 'CPU', 524288)]

    Raises TypeError for what cannot be called; ValueError for ``repeats`` below 1, a ``warmup`` below 0, another
    ``device``, an ``about`` that lacks one of the four, or a GPU of which the profiler saw nothing.
    """
    check_whole("repeats", repeats, 1)
    if missing := [key for key in ABOUT_CALL if key not in about]:
        raise ValueError(f"about must have {', '.join(ABOUT_CALL)}; it lacks {', '.join(missing)}")
    if device not in KINDS or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device must be one of {', '.join(KINDS)}, and there if it is a GPU; got {device!r}")
    unprofiled = time_interleaved({"call": function}, repeats=repeats, warmup=warmup)["call"]
    events = _record(function, repeats, device)
    calls = sorted((event for event in events if event.name == CALL and not _on_gpu(event)), key=_duration)
    call = calls[(len(calls) - 1) // 2]
    start, end = call.time_range.start, call.time_range.end
    kernels = gpu_events(events, start, end)
    if device == "cuda" and not kernels:
        raise ValueError("the profiler saw no kernel: does the function use the GPU, and may this user profile it?")
    found = cpu_events(call.cpu_children, start, with_flops=device == "cpu") + kernels
    times = {"call_us": _duration(call), "calls_us": [_duration(one) for one in calls]}
    times["unprofiled_us"] = round(1e3 * unprofiled.p50_ms, 3)
    machine = describe_machine(device)
    return Trace({**about, **machine, **times}, [_with_cost(event, costs or {}) for event in found])


def _record(function: Callable[[], object], repeats: int, device: str) -> list[FunctionEvent]:
    """What the profiler saw of all calls, each under a label."""
    hush()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch_profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for _ in range(repeats):
            with record_function(CALL):
                function()
                if device == "cuda":
                    torch.cuda.synchronize()
    return list(profiler.events())


def _on_gpu(event: FunctionEvent) -> bool:
    return event.device_type != torch.autograd.DeviceType.CPU


def _duration(event: FunctionEvent) -> float:
    return round(event.time_range.elapsed_us(), 3)


def _with_cost(event: TraceEvent, costs: Costs) -> TraceEvent:
    """The event with the cost that somebody gave for its name."""
    if event.name not in costs:
        return event
    flops, moved = costs[event.name]
    return TraceEvent(event.name, event.category, event.lane, event.start_us, event.duration_us, flops, moved)
