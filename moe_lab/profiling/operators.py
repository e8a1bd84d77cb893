"""From what PyTorch's profiler saw to the events of a trace: each moment counted once."""

from collections.abc import Iterable

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from moe_lab.profiling.categories import CATEGORIES, category_of
from moe_lab.profiling.counting import count_operator
from moe_lab.profiling.trace import CPU_LANE, GPU_LANE, TraceEvent

_VIEWS = """
alias as_strided as_strided_ chunk detach detach_ empty empty_like empty_strided expand expand_as flatten lift_fresh
mT mH narrow new_empty new_empty_strided numpy_T permute positive promote_types reshape resize_ resolve_conj
resolve_neg result_type select set_ slice split split_with_sizes squeeze swapaxes t to transpose unbind unflatten
unsafe_split unsqueeze view view_as _conj _reshape_alias _unsafe_view _to_copy
"""
VIEWS = {f"aten::{name}" for name in _VIEWS.split()}
"""Operators that by themselves neither compute nor move numbers: views, and memory that is asked for and not filled."""
OWN_SHARE = 0.5
"""An operator that spends this share of its time itself is one event; of any other, the operators that it calls are."""


def cpu_events(roots: Iterable[FunctionEvent], start_us: float, with_flops: bool = True) -> list[TraceEvent]:
    """Events of the CPU below ``roots``, with times from ``start_us``; none lies inside another one.

    PyTorch's operators call each other (``linear`` calls ``matmul`` calls ``mm``), so their times overlap and must not
    be added up. Going down from the roots, an operator becomes an event if it calls none that works, or if it spends
    half of its time or more itself and calls no matrix product (``sort`` beside the ``copy_`` inside of it); its whole
    time counts then. Otherwise the operators that it calls take its place, so that no product is ever hidden. What no
    event covers is Python, PyTorch's dispatch, views and the allocation of memory (`VIEWS`), and the profiler's own
    work, about a microsecond an operator.

    A lane is the thread that called. Threads among which an operator shares out its work have no events of their own.
    """
    chosen = [event for root in roots for event in _events_of(root)]
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(event.thread for event in chosen), start=1)}
    return [_as_cpu_event(event, start_us, threads[event.thread], with_flops) for event in chosen]


def _events_of(event: FunctionEvent) -> list[FunctionEvent]:
    working = [child for child in event.cpu_children if _works(child)]
    if not working:
        return [event] if _works(event) else []
    taken = sum(child.time_range.elapsed_us() for child in working)
    mostly_own = taken <= (1 - OWN_SHARE) * event.time_range.elapsed_us()
    if _is_operator(event) and mostly_own and not any(_holds_product(child) for child in working):
        return [event]
    return [found for child in working for found in _events_of(child)]


def _works(event: FunctionEvent) -> bool:
    """Whether it, or anything that it calls, computes or moves numbers."""
    return (_is_operator(event) and event.name not in VIEWS) or any(_works(child) for child in event.cpu_children)


def _holds_product(event: FunctionEvent) -> bool:
    return category_of(event.name) == CATEGORIES[0] or any(_holds_product(child) for child in event.cpu_children)


def _is_operator(event: FunctionEvent) -> bool:
    """Neither a label, nor a step of autograd, nor a call of the GPU's driver: those only wrap operators."""
    return "::" in event.name and not event.name.startswith(("autograd::", "torch::autograd::"))


def _as_cpu_event(event: FunctionEvent, start_us: float, thread: int, with_flops: bool) -> TraceEvent:
    lane = CPU_LANE if thread == 1 else f"{CPU_LANE} thread {thread}"
    flops, moved = count_operator(event.name, event.input_shapes, event.input_dtypes) if with_flops else (None, None)
    span = event.time_range
    return TraceEvent(event.name, category_of(event.name), lane, span.start - start_us, span.elapsed_us(), flops, moved)


def gpu_events(events: Iterable[FunctionEvent], start_us: float, end_us: float) -> list[TraceEvent]:
    """Kernels, copies and fills that a GPU began between two times, each on the lane of its stream.

    A kernel has the FLOPs and bytes of the operator that launched it, where that operator launched no other: several
    kernels share out an operator's work, and nobody wrote down how.
    """
    events = list(events)
    kernels = [event for event in events if _is_kernel(event) and start_us <= event.time_range.start <= end_us]
    launched: dict[int, list[FunctionEvent]] = {}
    for kernel in kernels:
        launched.setdefault(kernel.linked_correlation_id, []).append(kernel)
    operators = {event.id: event for event in events if event.device_type == DeviceType.CPU and _is_operator(event)}
    found = []
    for kernel in kernels:
        operator, span = operators.get(kernel.linked_correlation_id), kernel.time_range
        alone = operator is not None and len(launched[operator.id]) == 1
        counts = count_operator(operator.name, operator.input_shapes, operator.input_dtypes) if alone else (None, None)
        lane, category = f"{GPU_LANE} {kernel.device_resource_id}", category_of(kernel.name)
        found.append(TraceEvent(kernel.name, category, lane, span.start - start_us, span.elapsed_us(), *counts))
    return found


def _is_kernel(event: FunctionEvent) -> bool:
    """On the GPU, and no label: PyTorch repeats labels of the CPU there."""
    label = event.is_user_annotation or event.activity_type == "gpu_user_annotation"
    return event.device_type == DeviceType.CUDA and not label
