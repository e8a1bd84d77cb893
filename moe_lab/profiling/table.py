"""Where the time of a trace goes: by operator or kernel, by category, and where nothing ran."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from moe_lab.profiling.categories import CATEGORIES
from moe_lab.profiling.trace import CPU_LANE, Trace, TraceEvent

IDLE = "idle"
"""Beside `CATEGORIES`, for time in which no event ran; derived, and never in a trace."""


@dataclass(frozen=True)
class KernelRow:
    """All calls of one operator or kernel together.

    ``share`` is its time as a part of the call's. ``flops`` and ``bytes`` are sums over its calls, and None unless all
    of them were counted. ``least_us`` is what a roofline allows at best, the longer of flops / peak and bytes /
    bandwidth; None without counts or without ceilings.
    """

    name: str
    category: str
    calls: int
    total_us: float
    share: float
    flops: int | None = None
    bytes: int | None = None
    least_us: float | None = None

    @property
    def flops_per_s(self) -> float | None:
        """FLOP/s that it reached."""
        return None if self.flops is None or not self.total_us else 1e6 * self.flops / self.total_us

    @property
    def bytes_per_s(self) -> float | None:
        """Compulsory bytes/s that it reached; above the memory's rate where a cache held them."""
        return None if self.bytes is None or not self.total_us else 1e6 * self.bytes / self.total_us

    @property
    def of_roofline(self) -> float | None:
        """``least_us`` / ``total_us``: 1 is the roofline; above it, bytes came from a cache."""
        return None if self.least_us is None or not self.total_us else self.least_us / self.total_us

    def as_dict(self) -> dict:
        """The row with its rates, for JSON."""
        rates = {name: getattr(self, name) for name in ("flops_per_s", "bytes_per_s", "of_roofline")}
        return asdict(self) | rates


def device_lanes(trace: Trace) -> list[str]:
    """The lanes where the work is done: streams of the GPU if there are any, else the CPU's threads."""
    return [lane for lane in trace.lanes if not lane.startswith(CPU_LANE)] or trace.lanes


def kernel_table(
    trace: Trace, *, flops_per_s: float | int | None = None, bytes_per_s: float | int | None = None
) -> list[KernelRow]:
    """A row for each operator or kernel of the `device_lanes`, the longest first.

    ``flops_per_s`` (of the dtype that ran) and ``bytes_per_s`` are the ceilings; without them those in
    ``trace.about["ceilings"]`` count, if it has any. Shares add up to 1 less what was idle on one lane; on several
    lanes, which run at the same time, to more. The ceiling is of one dtype, so a product in another one (the router's,
    in float32) is held against the wrong one.

    Example:
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 20.0}
        >>> events = [TraceEvent("aten::mm", "matrix product", "CPU", at, 5.0, flops=1000) for at in (0.0, 10.0)]
        >>> (row,) = kernel_table(Trace(about, events), flops_per_s=4e8, bytes_per_s=1e9)
        >>> row.calls, row.total_us, row.share, row.flops_per_s, row.of_roofline
        (2, 10.0, 0.5, 200000000.0, 0.5)
    """
    known = trace.about.get("ceilings", {})
    peak = flops_per_s or known.get("flops_per_s", {}).get(trace.about["dtype"])
    bandwidth = bytes_per_s or known.get("bytes_per_s")
    lanes, groups = set(device_lanes(trace)), {}
    for event in trace.events:
        if event.lane in lanes:
            groups.setdefault((event.name, event.category), []).append(event)
    rows = [_row(*key, events, trace.span_us, peak, bandwidth) for key, events in groups.items()]
    return sorted(rows, key=lambda row: -row.total_us)


def _row(
    name: str, category: str, events: list[TraceEvent], span_us: float, peak: float | None, bandwidth: float | None
) -> KernelRow:
    total = sum(event.duration_us for event in events)
    flops, moved = _sum(event.flops for event in events), _sum(event.bytes for event in events)
    limits = [1e6 * count / rate for count, rate in ((flops, peak), (moved, bandwidth)) if count and rate]
    share = total / span_us if span_us else 0.0
    return KernelRow(name, category, len(events), total, share, flops, moved, max(limits, default=None))


def _sum(counts: Iterable[int | None]) -> int | None:
    counts = list(counts)
    return None if None in counts else sum(counts)


def time_by_category(trace: Trace) -> dict[str, float]:
    """Microseconds of each category on the `device_lanes`, in the order of `CATEGORIES`, and ``"idle"`` at the end.

    "idle" is the time of the call in which none of these lanes ran anything, so that on one lane all add up to the
    call's time.

    Example:
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 20.0}
        >>> trace = Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 2.0, 5.0)])
        >>> {category: time_us for category, time_us in time_by_category(trace).items() if time_us}
        {'matrix product': 5.0, 'idle': 15.0}
    """
    lanes, times = device_lanes(trace), dict.fromkeys(CATEGORIES, 0.0)
    for event in trace.events:
        if event.lane in lanes:
            times[event.category] += event.duration_us
    return times | {IDLE: sum(end - start for start, end in gaps(trace, lanes))}


def gaps(trace: Trace, lanes: Iterable[str] | None = None) -> list[tuple[float, float]]:
    """From when to when, in microseconds, none of the lanes ran anything; the `device_lanes` if none are named.

    Example:
        >>> from moe_lab.profiling.trace import ABOUT
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {}, "versions": {}, "call_us": 20.0}
        >>> gaps(Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 2.0, 5.0)]))
        [(0.0, 2.0), (7.0, 20.0)]
    """
    lanes = set(device_lanes(trace) if lanes is None else lanes)
    found, reached = [], 0.0
    for event in trace.events:  # in the order of their starts
        if event.lane in lanes:
            if event.start_us > reached:
                found.append((reached, event.start_us))
            reached = max(reached, event.end_us)
    return [*found, (reached, trace.span_us)] if trace.span_us > reached else found


def total_flops(trace: Trace) -> int:
    """FLOPs of all events that were counted; what has no count is no product, or a product that nobody could count."""
    return sum(event.flops or 0 for event in trace.events)


def provenance(trace: Trace) -> str:
    """Device, date, commit and versions in one line, for a table or a figure."""
    about = trace.about
    changed = " with changes" if about.get("dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    count = about.get("threads", 0) if about["kind"] == "cpu" else 0
    threads = f", {count} {'thread' if count == 1 else 'threads'}" if count else ""
    return f"{about['device']}{threads} · {about['date']} · commit {about['commit'][:9]}{changed} · {versions}"


def describe_call(trace: Trace) -> str:
    """What ran, in one line."""
    about = trace.about
    shape = " ".join(f"{name}={size}" for name, size in about["shape"].items())
    return f"{about['implementation']}, {about['direction']}, {about['dtype']}, {shape}"


def show_profile(trace: Trace, most: int = 12) -> str:
    """The trace as text: what ran and where, the time of each category, and the ``most`` longest rows."""
    rows, span = kernel_table(trace), trace.span_us
    unprofiled = trace.about.get("unprofiled_us")
    beside = f" ({unprofiled / 1e3:.2f} ms without the profiler)" if unprofiled else ""
    counted = total_flops(trace)
    lines = [
        describe_call(trace),
        provenance(trace),
        f"{span / 1e3:.2f} ms{beside}, {sum(row.calls for row in rows)} events, {counted / 1e9:.3f} GFLOP in products",
        "",
        *(
            f"{category:20} {time_us / 1e3:10.2f} ms {time_us / span:7.1%}"
            for category, time_us in time_by_category(trace).items()
        ),
        "",
        f"{'':34} {'category':20} {'calls':>6} {'ms':>9} {'share':>7} {'GFLOP/s':>9} {'GB/s':>8} {'of roofline':>11}",
        *(_show_row(row) for row in rows[:most]),
    ]
    if rest := rows[most:]:
        lines.append(f"and {len(rest)} more, {sum(row.total_us for row in rest) / 1e3:.2f} ms")
    return "\n".join(lines)


def _show_row(row: KernelRow) -> str:
    name = row.name if len(row.name) <= 34 else f"{row.name[:31]}..."
    rates = [
        f"{'-':>9}" if row.flops_per_s is None else f"{row.flops_per_s / 1e9:9.1f}",
        f"{'-':>8}" if row.bytes_per_s is None else f"{row.bytes_per_s / 1e9:8.1f}",
        f"{'-':>11}" if row.of_roofline is None else f"{row.of_roofline:11.0%}",
    ]
    return f"{name:34} {row.category:20} {row.calls:6} {row.total_us / 1e3:9.2f} {row.share:7.1%} {' '.join(rates)}"


def compare_traces(traces: Iterable[Trace]) -> str:
    """One line a trace: time without the profiler, FLOPs in products, and both as multiples of the last trace's.

    The traces were made one after another, so a busy moment of the machine meets one and not the other: ``bench``
    compares in turns.
    """
    traces = list(traces)
    last = traces[-1]
    lines = [
        f"{'':24} {'ms':>9} {'GFLOP':>9} {'time':>7} {'FLOPs':>7}  (as multiples of {last.about['implementation']})"
    ]
    for trace in traces:
        time_us, flops = trace.about["unprofiled_us"], total_flops(trace)
        time, work = time_us / last.about["unprofiled_us"], flops / max(1, total_flops(last))
        name = trace.about["implementation"]
        lines.append(f"{name:24} {time_us / 1e3:9.2f} {flops / 1e9:9.3f} {time:7.2f} {work:7.2f}")
    return "\n".join(lines)


def as_json(traces: Iterable[Trace]) -> str:
    """What `show_profile` shows of each trace, in full, as JSON."""
    return json.dumps(
        [
            {
                "about": trace.about,
                "categories_us": time_by_category(trace),
                "rows": [row.as_dict() for row in kernel_table(trace)],
            }
            for trace in traces
        ],
        indent=2,
    )
