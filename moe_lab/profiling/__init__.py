"""How long a thing takes, and where the time goes."""

from moe_lab.profiling.categories import CATEGORIES, category_of
from moe_lab.profiling.profiler import profile
from moe_lab.profiling.table import (
    IDLE,
    KernelRow,
    describe_call,
    device_lanes,
    gaps,
    kernel_table,
    provenance,
    show_profile,
    time_by_category,
    total_flops,
)
from moe_lab.profiling.timing import Timing, time_interleaved
from moe_lab.profiling.trace import Trace, TraceEvent

__all__ = [
    "CATEGORIES",
    "IDLE",
    "KernelRow",
    "Timing",
    "Trace",
    "TraceEvent",
    "category_of",
    "describe_call",
    "device_lanes",
    "gaps",
    "kernel_table",
    "profile",
    "provenance",
    "show_profile",
    "time_by_category",
    "time_interleaved",
    "total_flops",
]
