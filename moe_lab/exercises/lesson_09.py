"""Exercises of lesson 09: a fair timing, nested events, the limit of a sequence of kernels, a cold trace, Amdahl."""

import math
import random
from collections.abc import Callable, Mapping, Sequence

from moe_lab.exercises import Exercise, Property
from moe_lab.profiling import CATEGORIES, IDLE, Trace, TraceEvent
from moe_lab.profiling.pretend import PretendGpu
from moe_lab.roofline import DEVICES

# ---------------------------------------------------------------- 09.1: a fair timing


class Workload:
    """Rivals on a pretended GPU: kernels that last so many microseconds, and what may go wrong in timing them.

    ``left`` is work that somebody left in the queue; ``first_us`` what the CPU does at the first call of each, such as
    compiling; with ``spike_us`` every fifth call takes so much longer, and every seventh only half of its time;
    ``slowdown`` is of `PretendGpu`.
    """

    def __init__(
        self,
        kernels_us: Mapping[str, float | int],
        *,
        left: float | int = 0,
        first_us: float | int = 0,
        spike_us: float | int = 0,
        slowdown: Callable[[float], float | int] = lambda us: 1.0,
    ):
        self.gpu, self.kernels_us = PretendGpu(2.0, slowdown), dict(kernels_us)
        self.first_us, self.spike_us, self.left = first_us, spike_us, left
        self.calls = dict.fromkeys(kernels_us, 0)

    def functions(self) -> dict[str, Callable[[], None]]:
        """The rivals, by name."""
        if self.left:
            self.gpu.launch("left by somebody", self.left)
        return {name: lambda name=name: self._call(name) for name in self.kernels_us}

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.calls[name] == 1 and self.first_us:
            self.gpu.work("compile", self.first_us)
        duration_us = self.kernels_us[name]
        if self.spike_us and self.calls[name] % 5 == 0:
            duration_us += self.spike_us
        elif self.spike_us and self.calls[name] % 7 == 0:
            duration_us /= 2
        self.gpu.launch(name, duration_us)

    def spec_ms(self) -> dict[str, float]:
        """What each takes: its launch and its kernel."""
        return {name: (self.gpu.launch_us + us) / 1e3 for name, us in self.kernels_us.items()}


REPEATS = 11


def _measure(answer, workload: Workload) -> dict[str, float]:
    found = answer(workload.functions(), workload.gpu.synchronize, workload.gpu.now, REPEATS)
    if not isinstance(found, Mapping) or set(found) != set(workload.kernels_us):
        raise ValueError(f"give a dict with {', '.join(workload.kernels_us)}, not {found!r}"[:200])
    return {name: float(ms) for name, ms in found.items()}


def _times(kernels_us: dict[str, float | int], **trouble: object) -> Property:
    """The answer gives each rival's milliseconds, on a GPU with this trouble."""

    def holds(answer) -> str | None:
        workload = Workload(kernels_us, **trouble)
        found, spec = _measure(answer, workload), workload.spec_ms()
        for name in spec:
            if not math.isclose(found[name], spec[name], rel_tol=1e-6):
                return f"{name}: yours {found[name]:.4g} ms, spec {spec[name]:.4g} ms"
        return None

    return holds


def _enough_calls(answer) -> str | None:
    workload = Workload({"a": 30, "b": 20})
    _measure(answer, workload)
    short = {name: count for name, count in workload.calls.items() if not REPEATS < count <= 2 * REPEATS}
    return None if not short else f"repeats {REPEATS}: yours calls {short}; spec: so often after at least one warm-up"


def _in_turns(answer) -> str | None:
    """Two equal rivals on a chip that grows hot: only in turns do they look equal."""
    workload = Workload({"one": 1000, "its twin": 1000}, slowdown=lambda us: 1 + us / 10_000)
    one, twin = _measure(answer, workload).values()
    if one <= 0 or twin <= 0:
        return f"yours {one:.3g} and {twin:.3g} ms"
    ratio = twin / one
    if 0.8 < ratio < 1.25:
        return None
    return f"two equal functions, on a chip that grows hot: yours makes one {max(ratio, 1 / ratio):.1f} times the other"


# ---------------------------------------------------------------- 09.2: nested events

Event = tuple[str, float | int, float | int, str]
"""(name, start_us, end_us, category)"""

NESTED = [
    ("linear", 1, 10, "other"),
    ("matmul", 2, 9, "other"),
    ("mm", 3, 8, "matrix product"),
    ("silu", 12, 15, "activation"),
]


def own_time(events: Sequence[Event], span_us: float | int) -> dict[str, float | int]:
    """Microseconds of each category, each moment given to the innermost event; what no event covers is idle."""
    times = {IDLE: span_us}
    for _, start, end, category in events:
        times[category] = times.get(category, 0) + end - start
        outside = [one for one in events if one[1] <= start and end <= one[2] and one[:3] != (_, start, end)]
        parent = min(outside, key=lambda one: one[2] - one[1], default=None)
        times[parent[3] if parent else IDLE] = times.get(parent[3] if parent else IDLE, 0) - (end - start)
    return {category: time for category, time in times.items() if time}


def _adds_up(events: list[Event], span_us: float | int) -> Property:
    def holds(answer) -> str | None:
        return _compare_times(answer(list(events), span_us), own_time(events, span_us))

    return holds


def _compare_times(yours, spec: dict) -> str | None:
    if not isinstance(yours, Mapping):
        return f"give a dict of microseconds by category, not a {type(yours).__name__}"
    for category in [*spec, *yours]:
        if not math.isclose(yours.get(category, 0), spec.get(category, 0), abs_tol=1e-6):
            return f"{category}: yours {yours.get(category, 0):g} µs, spec {spec.get(category, 0):g} µs"
    return None


def draw_events(seed: int, depth: int = 4) -> list[Event]:
    """Events that lie inside each other, at whole microseconds from 0 to 256, in no order."""
    draw, found = random.Random(seed), []

    def fill(start: int, stop: int, level: int) -> None:
        if level == depth or stop - start < 4:
            return
        cuts = sorted(draw.sample(range(start, stop), 4))
        for low, high in (cuts[:2], cuts[2:]):
            found.append((f"operator {len(found)}", low, high, draw.choice(CATEGORIES)))
            fill(low + 1, high, level + 1)

    fill(0, 256, 0)
    draw.shuffle(found)
    return found


def _many_trees(answer) -> str | None:
    for seed in range(30):
        events = draw_events(seed)
        fault = _compare_times(answer(list(events), 256), own_time(events, 256))
        if fault is not None:
            return f"{len(events)} events drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 09.3: what limits a sequence of kernels


def least_time(
    kernels: Sequence[tuple[float | int, float | int]],
    flops_per_s: float | int,
    bytes_per_s: float | int,
    launch_s: float | int,
) -> tuple[float, str]:
    """Seconds that a sequence takes at least, and what limits it."""
    compute = [flops / flops_per_s for flops, _ in kernels]
    memory = [moved / bytes_per_s for _, moved in kernels]
    device, launches = sum(map(max, compute, memory)), launch_s * len(kernels)
    if launches > device:
        return launches, "launches"
    by_compute = sum(c for c, m in zip(compute, memory, strict=True) if c > m)
    return device, "compute" if by_compute > device - by_compute else "memory"


H200 = (DEVICES["H200"].peak("bfloat16"), DEVICES["H200"].bytes_per_s)
"""FLOP/s and bytes/s, from the data sheet."""


def _limit(kernels: list[tuple[float | int, float | int]], launch_s: float | int, machine=H200) -> Property:
    def holds(answer) -> str | None:
        seconds, limit = answer(list(kernels), *machine, launch_s)
        spec_s, spec = least_time(kernels, *machine, launch_s)
        if not math.isclose(seconds, spec_s, rel_tol=1e-6):
            return f"yours {1e6 * seconds:.4g} µs, spec {1e6 * spec_s:.4g} µs"
        return None if limit == spec else f"yours {limit!r}, spec {spec!r}"

    return holds


def _many_limits(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(200):
        kernels = [(10 ** draw.uniform(6, 12), 10 ** draw.uniform(4, 9)) for _ in range(draw.randint(1, 12))]
        fault = _limit(kernels, draw.choice([0, 5e-6, 1e-4]))(answer)
        if fault is not None:
            return f"{len(kernels)} kernels drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 09.4: the trace without warm-up


def record_calls(
    *,
    cold: bool,
    calls: int = 6,
    slow: float | int = 1.0,
    spike_us: float | int = 0,
    spike_call: int = 3,
    start_us: float | int = 0,
    first_us: float | int = 400,
    seed: int = 0,
) -> list[tuple[str, float, float]]:
    """Events (name, start_us, duration_us) of ``calls`` calls of a layer; a cold recording has the very first call.

    Every operator of that one takes ``first_us`` more. A machine may be ``slow``, and a later call may have a spike.
    """
    draw, at, found = random.Random(seed), float(start_us), []
    for call in range(calls):
        for name, usual_us in (("aten::topk", 40), ("aten::mm", 300), ("aten::silu", 60), ("aten::index_add_", 90)):
            duration = slow * usual_us * draw.uniform(0.95, 1.05)
            duration += first_us * (cold and call == 0) + spike_us * (call == spike_call and name == "aten::mm")
            found.append((name, at, duration))
            at += duration + 5
    return found


def _finds(cold: dict, warm: dict) -> Property:
    """The answer names the cold one, whether it comes first or second."""

    def holds(answer) -> str | None:
        for seed in range(4):
            one = record_calls(**{"cold": True, "seed": seed} | cold)
            other = record_calls(**{"cold": False, "seed": seed + 9} | warm)
            for pair, spec in (((one, other), "first"), ((other, one), "second")):
                yours = answer(*(list(trace) for trace in pair))
                if yours != spec:
                    return f"yours {yours!r}, spec {spec!r}"
        return None

    return holds


# ---------------------------------------------------------------- 09.5: Amdahl's law


def make_trace(parts_us: Mapping[str, float | int], *, idle_us: float | int = 0, kind: str = "cpu") -> Trace:
    """A trace of one call with so much time of each category; on a GPU a launch on the CPU stands before each event."""
    lane, at, events = "CPU" if kind == "cpu" else "GPU stream 7", 0.0, []
    for category, time_us in parts_us.items():
        for _ in range(2):
            if kind == "cuda":
                events.append(TraceEvent("aten::mm", "matrix product", "CPU", at, time_us / 4))
            events.append(TraceEvent(f"a {category}", category, lane, at, time_us / 2))
            at += time_us / 2
    about = {"device": "made up", "kind": kind, "date": "", "commit": "", "versions": {}, "implementation": ""}
    about |= {"direction": "forward", "dtype": "float32", "shape": {}, "call_us": at + idle_us}
    return Trace(about, events)


PARTS = {"matrix product": 600, "activation": 100, "gather and scatter": 200, "sort and routing": 50}


def _gains(category: str, factor: float | int, spec: float | int, **options: object) -> Property:
    """The answer gives ``spec`` for the trace of `PARTS`, or of ``parts_us``."""
    parts_us = options.pop("parts_us", PARTS)

    def holds(answer) -> str | None:
        yours = answer(make_trace(parts_us, **options), category, factor)
        return None if math.isclose(yours, spec, rel_tol=1e-6) else f"yours {yours:.4g}, spec {spec:.4g}"

    return holds


def _many_gains(answer) -> str | None:
    draw = random.Random(0)
    for turn in range(40):
        parts = {category: draw.randint(1, 500) for category in CATEGORIES}
        category, factor, idle = draw.choice(CATEGORIES), draw.choice([1.5, 2, 7, math.inf]), draw.randint(0, 900)
        whole = sum(parts.values()) + idle
        spec = whole / (whole - parts[category] + parts[category] / factor)
        options = {"parts_us": parts, "idle_us": idle, "kind": ("cpu", "cuda")[turn % 2]}
        fault = _gains(category, factor, spec, **options)(answer)
        if fault is not None:
            return f"{category} {factor:g} times as fast, {parts[category]} of {whole} µs: {fault}"
    return None


EXERCISES = {
    "09.1": Exercise(
        "Write a fair timing function",
        {
            "two kernels, milliseconds": _times({"a": 30, "b": 3000}),
            "calls each after a warm-up": _enough_calls,
            "work that somebody left in the queue": _times({"a": 30, "b": 50}, left=40_000),
            "first calls that compile": _times({"a": 30, "b": 50}, first_us=90_000),
            "some calls late, one early": _times({"a": 30, "b": 50}, spike_us=700),
            "a chip that grows hot": _in_turns,
            "all of it at once": _times({"a": 75, "b": 20, "c": 41}, left=999, first_us=5000, spike_us=300),
        },
        hints=(
            "A launch returns before its kernel has run. What must be finished before you read the clock the first "
            "time, and what before you read it again? And what do first calls pay for?",
            "Call each once, untimed. Then go round: in each round every function once, with synchronize() before "
            "the first reading and before the second. Keep all differences; the median does not mind a few late ones.",
            "\n    import statistics\n"
            "    samples = {name: [] for name in functions}\n"
            "    for function in functions.values(): function()\n"
            "    for _ in range(repeats):\n"
            "        for name, function in functions.items():\n"
            "            synchronize(); start = clock(); function(); synchronize()\n"
            "            samples[name].append(1e3 * (clock() - start))\n"
            "    return {name: statistics.median(calls) for name, calls in samples.items()}",
        ),
    ),
    "09.2": Exercise(
        "Add up a profile in which operators call operators",
        {
            "the four events above": _adds_up(NESTED, 16),
            "side by side": _adds_up([("mm", 0, 5, "matrix product"), ("silu", 5, 7, "activation")], 7),
            "two inside one": _adds_up(
                [("layer", 0, 20, "other"), ("mm", 1, 9, "matrix product"), ("mm", 10, 18, "matrix product")], 20
            ),
            "one that begins with its caller": _adds_up([("matmul", 2, 9, "other"), ("mm", 2, 8, "matrix product")], 9),
            "in no order": _adds_up(NESTED[::-1], 30),
            "no event at all": _adds_up([], 12),
            "a caller that works itself": _adds_up(
                [("sort", 0, 90, "sort and routing"), ("copy_", 10, 20, "copy and fill")], 100
            ),
            "many, drawn by chance": _many_trees,
        },
        hints=(
            "Time inside of mm is also inside of matmul and of linear. To whom should each moment belong?",
            "Give each moment to the innermost event that covers it: the shortest one. Cut the time at all starts and "
            "ends; between two cuts nothing changes.",
            "\n    cuts, times = sorted({0, span_us, *(e[1] for e in events), *(e[2] for e in events)}), {}\n"
            "    for low, high in zip(cuts, cuts[1:]):\n"
            "        over = [e for e in events if e[1] <= low and high <= e[2]]\n"
            "        inner = min(over, key=lambda e: e[2] - e[1], default=(0, 0, 0, 'idle'))\n"
            "        times[inner[3]] = times.get(inner[3], 0) + high - low\n"
            "    return times",
        ),
    ),
    "09.3": Exercise(
        "Bound a sequence of kernels, and name the limit",
        {
            "one large product": _limit([(4e12, 1e9)], 5e-6),
            "one copy": _limit([(0, 2e9)], 5e-6),
            "a product, then a copy": _limit([(989e9, 48e6), (0, 2.4e9)], 5e-6),
            "a copy, then a larger product": _limit([(0, 2.4e9), (1978e9, 48e6)], 5e-6),
            "a hundred small ones": _limit([(1e6, 1e6)] * 100, 5e-6),
            "the same from a graph": _limit([(1e6, 1e6)] * 100, 0),
            "no product alone limits, memory does": _limit([(5e11, 2.3e9), (5e11, 2.5e9), (4e11, 2.4e9)], 5e-6),
            "another machine": _limit([(1e9, 1e6), (2e9, 9e8)], 1e-4, machine=(1e12, 3e10)),
            "many, drawn by chance": _many_limits,
        },
        hints=(
            "Kernels run one after another. Can the arithmetic of one hide behind the bytes of the next?",
            "Each kernel takes at least the longer of flops / flops_per_s and bytes / bytes_per_s; add those up. The "
            "CPU needs launch_s a kernel; it works while the GPU does, so the longer of the two sums counts.",
            "\n    times = [(f / flops_per_s, b / bytes_per_s) for f, b in kernels]\n"
            "    device, launches = sum(max(t) for t in times), launch_s * len(kernels)\n"
            "    if launches > device: return launches, 'launches'\n"
            "    compute = sum(c for c, m in times if c > m)\n"
            "    return device, 'compute' if compute > device - compute else 'memory'",
        ),
    ),
    "09.4": Exercise(
        "Find the trace that was taken without warm-up",
        {
            "the same machine": _finds({}, {}),
            "the warm one on a slow machine": _finds({}, {"slow": 20}),
            "the cold one on a slow machine": _finds({"slow": 3}, {}),
            "one late event in the warm one": _finds({}, {"spike_us": 3000}),
            "late in its second call": _finds({}, {"spike_us": 3000, "spike_call": 1}),
            "more calls of the warm one": _finds({"calls": 4}, {"calls": 12}),
            "recorded later": _finds({"start_us": 5000}, {"start_us": 70}),
            "everything at once": _finds({"calls": 5}, {"calls": 9, "slow": 2.5, "spike_us": 2000, "start_us": 900}),
        },
        hints=(
            "How long a recording is says how fast the machine was, or how many calls it has. What does only a first "
            "call show?",
            "Hold each operator against itself: its first event over the median of its later ones. About 1 means warm. "
            "One late event moves neither.",
            "\n    import statistics\n"
            "    def first_over_later(trace):\n"
            "        times = {}\n"
            "        for name, _, took in sorted(trace, key=lambda e: e[1]):\n"
            "            times.setdefault(name, []).append(took)\n"
            "        return statistics.median(t[0] / statistics.median(t[1:]) for t in times.values())\n"
            "    return 'first' if first_over_later(first) > first_over_later(second) else 'second'",
        ),
    ),
    "09.5": Exercise(
        "Say what a faster kernel can give the whole",
        {
            "products twice as fast": _gains("matrix product", 2, 1000 / 700, idle_us=50),
            "products in no time": _gains("matrix product", math.inf, 2.5, idle_us=50),
            "activations in no time": _gains("activation", math.inf, 1000 / 900, idle_us=50),
            "what is not there": _gains("copy and fill", 10, 1),
            "nothing changes": _gains("matrix product", 1, 1, idle_us=300),
            "slower": _gains("gather and scatter", 0.5, 950 / 1150),
            "half of the call idle": _gains("matrix product", math.inf, 1900 / 1300, idle_us=950),
            "a GPU, with launches": _gains("matrix product", 3, 1000 / 600, idle_us=50, kind="cuda"),
            "many, drawn by chance": _many_gains,
        },
        hints=(
            "Only one part gets shorter. What stays, idle time included?",
            "New time = whole - part + part / factor, with the parts of time_by_category: their sum is the call. Do "
            "not add up trace.events, since on a GPU the launches are among them.",
            "\n    times = time_by_category(trace)\n"
            "    whole, part = sum(times.values()), times[category]\n"
            "    return whole / (whole - part + part / factor)",
        ),
    ),
}
