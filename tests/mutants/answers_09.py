"""Answers to the exercises of lesson 09: right ones, and wrong ones that must be refused with a reason."""

import itertools
import math
import statistics

from moe_lab.profiling import time_by_category

ARGUMENTS = {
    "09.1": "functions, synchronize, clock, repeats",
    "09.2": "events, span_us",
    "09.3": "kernels, flops_per_s, bytes_per_s, launch_s",
    "09.4": "first, second",
    "09.5": "trace, category, factor",
}


def timing(
    *,
    before=True,
    after=True,
    warmup=1,
    turns=True,
    middle=statistics.median,
    unit=1e3,
    count=lambda repeats: repeats,
):
    """A timing function with each of its parts to leave out."""

    def answer(functions, synchronize, clock, repeats):
        samples = {name: [] for name in functions}
        for function in functions.values():
            for _ in range(warmup):
                function()
        plan = [name for _ in range(count(repeats)) for name in functions]
        for name in plan if turns else sorted(plan, key=list(functions).index):
            if before:
                synchronize()
            start = clock()
            functions[name]()
            if after:
                synchronize()
            samples[name].append(unit * (clock() - start))
        return {name: middle(calls) for name, calls in samples.items()}

    return answer


def own_times(events, span_us):
    cuts, times = sorted({0, span_us, *(e[1] for e in events), *(e[2] for e in events)}), {}
    for low, high in itertools.pairwise(cuts):
        over = [event for event in events if event[1] <= low and high <= event[2]]
        inner = min(over, key=lambda event: event[2] - event[1], default=(0, 0, 0, "idle"))
        times[inner[3]] = times.get(inner[3], 0) + high - low
    return times


def least(kernels, flops_per_s, bytes_per_s, launch_s):
    times = [(flops / flops_per_s, moved / bytes_per_s) for flops, moved in kernels]
    device, launches = sum(max(pair) for pair in times), launch_s * len(kernels)
    if launches > device:
        return launches, "launches"
    compute = sum(c for c, m in times if c > m)
    return device, "compute" if compute > device - compute else "memory"


def first_over_later(trace):
    times = {}
    for name, _, took in sorted(trace, key=lambda event: event[1]):
        times.setdefault(name, []).append(took)
    return statistics.median(took[0] / statistics.median(took[1:]) for took in times.values())


def by_score(score):
    """The trace with the higher score is the cold one."""
    return lambda first, second: "first" if score(first) > score(second) else "second"


def gain(trace, category, factor):
    times = time_by_category(trace)
    whole, part = sum(times.values()), times[category]
    return whole / (whole - part + part / factor)


RIGHT = {
    "09.1": timing(),
    "09.2": own_times,
    "09.3": least,
    "09.4": by_score(first_over_later),
    "09.5": gain,
}


# ---------------------------------------------------------------- the same answers, differently written


def timing_with_rotation(functions, synchronize, clock, repeats):
    """Three warm-ups, and each round begins with another one."""
    names, found = list(functions), {}
    for _ in range(3):
        for name in names:
            functions[name]()
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            start = clock()
            functions[name]()
            synchronize()
            found.setdefault(name, []).append(clock() - start)
    return {name: sorted(calls)[len(calls) // 2] * 1000 for name, calls in found.items()}


def own_times_with_a_stack(events, span_us):
    """Each event's time, less that of the events right inside of it."""
    times, stack = {"idle": span_us}, []
    for _, start, end, category in sorted(events, key=lambda event: (event[1], -event[2])):
        while stack and stack[-1][0] <= start:
            stack.pop()
        outer = stack[-1][1] if stack else "idle"
        times[outer] -= end - start
        times[category] = times.get(category, 0) + end - start
        stack.append((end, category))
    return times


def least_by_intensity(kernels, flops_per_s, bytes_per_s, launch_s):
    """A kernel above the ridge is limited by compute."""
    ridge, limits = flops_per_s / bytes_per_s, {"memory": 0.0, "compute": 0.0}
    for flops, moved in kernels:
        above = flops > ridge * moved
        limits["compute" if above else "memory"] += flops / flops_per_s if above else moved / bytes_per_s
    total = sum(limits.values())
    limit = max(limits, key=limits.get)
    return [max(total, launch_s * len(kernels)), "launches" if launch_s * len(kernels) > total else limit]


def first_call_over_second(trace):
    """The first event of every operator together, over the second of every operator together."""
    times = {}
    for name, _, took in sorted(trace, key=lambda event: event[1]):
        times.setdefault(name, []).append(took)
    return sum(took[0] for took in times.values()) / sum(took[1] for took in times.values())


def gain_by_events(trace, category, factor):
    lanes = [lane for lane in trace.lanes if lane.startswith("GPU")] or trace.lanes
    part = sum(event.duration_us for event in trace.events if event.lane in lanes and event.category == category)
    share = part / trace.span_us
    return 1 / (1 - share + share / factor)


ALSO_RIGHT = {
    "09.1": timing_with_rotation,
    "09.2": own_times_with_a_stack,
    "09.3": least_by_intensity,
    "09.4": by_score(first_call_over_second),
    "09.5": gain_by_events,
}


# ---------------------------------------------------------------- wrong answers


def all_calls_at_once(functions, synchronize, clock, repeats):
    """The queue never runs dry: launches hide behind kernels."""
    found = {}
    for name, function in functions.items():
        function()
        synchronize()
        start = clock()
        for _ in range(repeats):
            function()
        synchronize()
        found[name] = 1e3 * (clock() - start) / repeats
    return found


def one_call_each(functions, synchronize, clock, repeats):
    found = {}
    for name, function in functions.items():
        function()
        synchronize()
        start = clock()
        function()
        synchronize()
        found[name] = 1e3 * (clock() - start)
    return found


def leaves_only(events, span_us):
    times = {}
    for _, start, end, category in events:
        if not any(start <= one[1] and one[2] <= end and one[1:3] != (start, end) for one in events):
            times[category] = times.get(category, 0) + end - start
    return times | {"idle": span_us - sum(times.values())}


def roots_only(events, span_us):
    times = {}
    for _, start, end, category in events:
        if not any(one[1] <= start and end <= one[2] and one[1:3] != (start, end) for one in events):
            times[category] = times.get(category, 0) + end - start
    return times | {"idle": span_us - sum(times.values())}


def everything(events, span_us):
    times = {}
    for _, start, end, category in events:
        times[category] = times.get(category, 0) + end - start
    return times | {"idle": max(0, span_us - sum(times.values()))}


def less_all_inside(events, span_us):
    """Takes the grandchildren off as well, which their parents have in them already."""
    times = {"idle": span_us}
    for _, start, end, category in events:
        inside = [one for one in events if start <= one[1] and one[2] <= end and one[1:3] != (start, end)]
        times[category] = times.get(category, 0) + end - start - sum(one[2] - one[1] for one in inside)
        if not any(one[1] <= start and end <= one[2] and one[1:3] != (start, end) for one in events):
            times["idle"] -= end - start
    return times


def stack_without_sorting(events, span_us):
    times, stack = {"idle": span_us}, []
    for _, start, end, category in events:
        while stack and stack[-1][0] <= start:
            stack.pop()
        outer = stack[-1][1] if stack else "idle"
        times[outer] -= end - start
        times[category] = times.get(category, 0) + end - start
        stack.append((end, category))
    return times


def bound(
    *,
    of_kernel=lambda c, m: max(c, m),
    whole=max,
    launches=lambda count: count,
    name=None,
):
    """A bound with its parts to replace."""

    def answer(kernels, flops_per_s, bytes_per_s, launch_s):
        times = [(flops / flops_per_s, moved / bytes_per_s) for flops, moved in kernels]
        device, launch = sum(of_kernel(c, m) for c, m in times), launch_s * launches(len(kernels))
        limit = name or least(kernels, flops_per_s, bytes_per_s, launch_s)[1]
        return whole(device, launch), limit

    return answer


def all_kernels_as_one(kernels, flops_per_s, bytes_per_s, launch_s):
    """As if the arithmetic of one could hide behind the bytes of another."""
    compute = sum(flops for flops, _ in kernels) / flops_per_s
    memory = sum(moved for _, moved in kernels) / bytes_per_s
    launches = launch_s * len(kernels)
    names = {"compute": compute, "memory": memory, "launches": launches}
    return max(names.values()), max(names, key=names.get)


def limit_by_sums(kernels, flops_per_s, bytes_per_s, launch_s):
    """The right time; but the limit by sums of all FLOPs and all bytes."""
    seconds, _ = least(kernels, flops_per_s, bytes_per_s, launch_s)
    return seconds, all_kernels_as_one(kernels, flops_per_s, bytes_per_s, launch_s)[1]


def limit_by_count(kernels, flops_per_s, bytes_per_s, launch_s):
    """The right time; but the limit of most kernels, however short."""
    seconds, limit = least(kernels, flops_per_s, bytes_per_s, launch_s)
    above = sum(flops / flops_per_s > moved / bytes_per_s for flops, moved in kernels)
    return seconds, limit if limit == "launches" else ("compute" if 2 * above > len(kernels) else "memory")


def gain_of(change):
    """Amdahl's law on times that were changed before."""

    def answer(trace, category, factor):
        times = change(trace)
        whole, part = sum(times.values()), times.get(category, 0.0)
        return whole / (whole - part + part / factor)

    return answer


def all_events(trace):
    times = {"idle": 0.0}
    for event in trace.events:
        times[event.category] = times.get(event.category, 0.0) + event.duration_us
    times["idle"] = max(0.0, trace.span_us - sum(times.values()))
    return times


WRONG = {
    "09.1": {
        "no wait after the call": timing(after=False),
        "no wait at all": timing(before=False, after=False),
        "no warm-up": timing(warmup=0, middle=statistics.fmean),
        "no warm-up, but the median": timing(warmup=0),
        "the mean": timing(middle=statistics.fmean),
        "the fastest": timing(middle=min),
        "the slowest": timing(middle=max),
        "one after the other": timing(turns=False),
        "seconds": timing(unit=1.0),
        "microseconds": timing(unit=1e6),
        "all calls at once": all_calls_at_once,
        "one call each": one_call_each,
        "the sum of all": timing(middle=sum),
        "three repeats, whatever was asked": timing(count=lambda repeats: 3),
        "nothing": lambda functions, synchronize, clock, repeats: {},
        "always the same": lambda functions, synchronize, clock, repeats: dict.fromkeys(functions, 0.032),
        "the first one's time for all": lambda *given: dict.fromkeys(given[0], next(iter(timing()(*given).values()))),
        "zero": lambda functions, synchronize, clock, repeats: dict.fromkeys(functions, 0.0),
    },
    "09.2": {
        "all events added up": everything,
        "only what calls nothing": leaves_only,
        "only what nothing calls": roots_only,
        "less everything inside": less_all_inside,
        "a stack, without sorting": stack_without_sorting,
        "no idle time": lambda events, span_us: {k: v for k, v in own_times(events, span_us).items() if k != "idle"},
        "shares": lambda events, span_us: {k: v / max(1, span_us) for k, v in own_times(events, span_us).items()},
        "an empty dict": lambda events, span_us: {},
        "all idle": lambda events, span_us: {"idle": span_us},
        "always the example": lambda events, span_us: {"idle": 4, "other": 4, "matrix product": 5, "activation": 3},
        "a list": lambda events, span_us: list(own_times(events, span_us).values()),
        "sorted by end": lambda events, span_us: stack_without_sorting(sorted(events, key=lambda e: e[2]), span_us),
        "span of the events": lambda events, span_us: own_times(events, max(e[2] for e in events)),
    },
    "09.3": {
        "all kernels as one": all_kernels_as_one,
        "limit by sums": limit_by_sums,
        "limit by count": limit_by_count,
        "sums of both": bound(of_kernel=lambda c, m: c + m),
        "the shorter of both": bound(of_kernel=min),
        "only FLOPs": bound(of_kernel=lambda c, m: c),
        "only bytes": bound(of_kernel=lambda c, m: m),
        "launches added": bound(whole=lambda device, launch: device + launch),
        "no launches": bound(whole=lambda device, launch: device),
        "one launch": bound(launches=lambda count: min(count, 1)),
        "always compute": bound(name="compute"),
        "always memory": bound(name="memory"),
        "always launches": bound(name="launches"),
        "the longest kernel": lambda kernels, *rates: max(least([kernel], *rates) for kernel in kernels),
        "microseconds": lambda *given: (1e6 * least(*given)[0], least(*given)[1]),
        "nothing": lambda *given: (0.0, "memory"),
    },
    "09.4": {
        "the longer recording": by_score(lambda trace: sum(took for _, _, took in trace)),
        "the shorter recording": by_score(lambda trace: -sum(took for _, _, took in trace)),
        "the longest event": by_score(lambda trace: max(took for _, _, took in trace)),
        "the longest over the mean": by_score(
            lambda trace: max(took for _, _, took in trace) / statistics.fmean(took for _, _, took in trace)
        ),
        "the longest first event": by_score(lambda trace: trace[0][2]),
        "where it begins": by_score(lambda trace: -trace[0][1]),
        "fewer events": by_score(lambda trace: -len(trace)),
        "mean event": by_score(lambda trace: statistics.fmean(took for _, _, took in trace)),
        "first half over second half": by_score(
            lambda trace: sum(e[2] for e in trace[: len(trace) // 2]) / sum(e[2] for e in trace[len(trace) // 2 :])
        ),
        "first": lambda first, second: "first",
        "second": lambda first, second: "second",
        "the warm one": by_score(lambda trace: -first_over_later(trace)),
        "a number": lambda first, second: 0 if first_over_later(first) > first_over_later(second) else 1,
    },
    "09.5": {
        "the factor itself": lambda trace, category, factor: factor,
        "nothing gained": lambda trace, category, factor: 1.0,
        "the share": lambda trace, category, factor: time_by_category(trace)[category] / trace.span_us,
        "no idle time": gain_of(lambda trace: {k: v for k, v in time_by_category(trace).items() if k != "idle"}),
        "all events, launches too": gain_of(all_events),
        "always in no time": lambda trace, category, factor: gain(trace, category, math.inf),
        "always twice as fast": lambda trace, category, factor: gain(trace, category, 2),
        "always products": lambda trace, category, factor: gain(trace, "matrix product", factor),
        "the part is gone": lambda trace, category, factor: gain(trace, category, math.inf if factor > 1 else factor),
        "the new time": lambda trace, category, factor: trace.span_us / gain(trace, category, factor),
        "upside down": lambda trace, category, factor: 1 / gain(trace, category, factor),
        "everything but the part": lambda trace, category, factor: (
            trace.span_us / (time_by_category(trace)[category] + 1e-9)
        ),
        "faster by the share times the factor": lambda trace, category, factor: (
            1 + time_by_category(trace)[category] / trace.span_us * (factor - 1)
        ),
        "at least one": lambda trace, category, factor: max(1.0, gain(trace, category, factor)),
    },
}

HINT_NAMES = {"time_by_category": time_by_category}
