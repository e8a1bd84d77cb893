"""Trace player: two recorded calls on one time axis, what ran in them, the gaps between, and what a roofline allows."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import traitlets

from moe_lab.checks import check_number, check_whole
from moe_lab.profiling import CATEGORIES, Trace, describe_call, device_lanes, provenance
from moe_lab.profiling.trace import CPU_LANE
from moe_lab.widgets.expert_roofline import say_time, three_digits
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.tile_map import many, per_cent

SIDES = ("A", "B")
MOST_TRACES, MOST_EVENTS, MOST_NAMED, MOST_ROWS = 16, 10_000, 3, 12
PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
NAME, CATEGORY, LANE, START, DURATION, FLOPS, BYTES = range(7)  # of an event, as it is sent


class TracePlayer(LabWidget):
    """Show one or two traces on a common time axis: every bar, the gaps, the time by category, the roofline's time.

    ``traces`` has them by the names under which the reader chooses ``first`` and ``second`` ("" for none);
    ``floors_us`` the time that the roofline allows for the calls of those that have one, in microseconds. ``brush`` is
    a stretch (from, to) of the time axis in microseconds, () for all of it; ``search`` a part of names, in any case of
    letters; ``bar`` the bar that is looked at, (0 or 1 for A or B, number of the event), () for none.

    Times by category are those of the `device_lanes`; where two run at once, the time is that of the one that began
    first, so that categories and gaps add up to the whole. All times are whole nanoseconds. Where the traces know how
    long their calls take without the profiler, those times are compared with each other and with the roofline.

    Example:
        >>> from moe_lab.profiling.trace import ABOUT, TraceEvent
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "device": "a desk", "shape": {}, "versions": {}}
        >>> loop = [TraceEvent("mm", "matrix product", "CPU", 4.0 * at, 1.0, flops=80) for at in range(5)]
        >>> dense = [TraceEvent("mm", "matrix product", "CPU", 0.0, 5.0, flops=800)]
        >>> TracePlayer({"loop": Trace(about, loop), "dense": Trace(about, dense)})  # doctest: +NORMALIZE_WHITESPACE
        TracePlayer: A, loop on a desk: 17 µs, 29 % in 5 operators (matrix product 29 %), 71 % in gaps. B, dense on a
        desk: 5 µs, 100 % in 1 operator (matrix product 100 %), 0 % in gaps. A takes 3.4 times as long as B, for 0.5
        times its FLOPs.

    Raises ValueError or TypeError for none or more than 16 traces, one of more than 10,000 events, a floor that is not
    above 0 or of no trace, an unknown first or second, a brush that does not run from 0 or later to a later time, and a
    bar that the trace does not have.
    """

    _esm = Path(__file__).with_name("trace_player.js")
    _css = Path(__file__).with_name("trace_player.css")
    of_the_reader = ("first", "second", "brush", "search", "bar")

    categories = traitlets.List(traitlets.Unicode(), [*CATEGORIES]).tag(sync=True)
    traces = traitlets.List(traitlets.Dict()).tag(sync=True)  # as `as_sent` makes them
    first = traitlets.Unicode().tag(sync=True)
    second = traitlets.Unicode().tag(sync=True)
    brush = traitlets.List(traitlets.Float()).tag(sync=True)
    search = traitlets.Unicode().tag(sync=True)
    bar = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        traces: dict[str, Trace],
        *,
        floors_us: dict[str, float | int] | None = None,
        first: str | None = None,
        second: str | None = None,
        brush: Sequence[float | int] = (),
        search: str = "",
        bar: Sequence[int] = (),
    ):
        floors_us = {} if floors_us is None else floors_us
        check_traces(traces, floors_us)
        names = list(traces)
        self._sent = {name: as_sent(name, trace, floors_us.get(name)) for name, trace in traces.items()}
        super().__init__(
            traces=list(self._sent.values()),
            first=names[0] if first is None else first,
            second=(names[1] if len(names) > 1 else "") if second is None else second,
            brush=list(brush),
            search=search,
            bar=list(bar),
        )
        # only now, or a bar that is given would be let go while the names arrive
        self.observe(self._let_go, ["first", "second"])

    @property
    def window_ns(self) -> tuple[int, int]:
        """What is shown of the common axis: the brush as far as it lies on it, or else all of it."""
        longest = self._longest()
        start, stop = map(as_ns, self.brush) if self.brush else (0, longest)
        return (start, min(stop, longest)) if start < longest else (0, longest)

    @property
    def is_whole(self) -> bool:
        """Whether all of the axis is shown."""
        return self.window_ns == (0, self._longest())

    def tally(self) -> list[dict[str, object]]:
        """What the widget counts of each trace that is shown, within the present stretch of time; see `tally_trace`."""
        return [tally_trace(sent, *self.window_ns, self.search) for sent in self._shown()]

    def top(self, side: int = 0) -> list[dict[str, object]]:
        """The names that took the most time in the trace of one side, at most 12 of them; see `rank`."""
        return rank(self._shown()[side], *self.window_ns)[:MOST_ROWS]

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        whole, (start, stop) = self.is_whole, self.window_ns
        found = self.tally()
        parts = [] if whole else [f"From {say_ns(start)} to {say_ns(stop)}."]
        parts += [
            say_trace(side, sent, one, whole) for side, sent, one in zip(SIDES, self._shown(), found, strict=False)
        ]
        if whole and len(found) == 2 and all(one["window"] for one in found):
            parts.append(compare(*self._shown(), *found))
        if self.search:
            hits = [say_hits(side, one["found"]) for side, one in zip(SIDES, found, strict=False)]
            parts.append(f"“{self.search}” is in {' and in '.join(hits)}.")
        return " ".join(parts)

    def say_bar(self) -> str:
        """The sentence about the bar that is looked at; nothing where there is none."""
        if not self.bar:
            return ""
        side, number = self.bar
        sent = self._shown()[side]
        event = sent["events"][number]
        lane = [other for other, one in enumerate(sent["events"]) if one[LANE] == event[LANE]]
        where = f"{SIDES[side]}, {sent['lanes'][event[LANE]]}, bar {lane.index(number)} of 0..{len(lane) - 1}"
        when = f"{say_ns(event[DURATION])} from {say_ns(event[START])} on"
        flops = say_work(event[FLOPS], "FLOP", event[DURATION])
        moved = say_work(event[BYTES], "B", event[DURATION])
        work = f"{flops or 'FLOPs not counted'}, {moved or 'bytes not counted'}"
        if not flops and not moved:
            work = "FLOPs and bytes not counted"
        return f"{where}: {sent['names'][event[NAME]]}, {self.categories[event[CATEGORY]]}, {when}; {work}."

    def __repr__(self) -> str:
        return f"TracePlayer: {self.summary()}"

    def _shown(self) -> list[dict]:
        # an unknown name is refused in a moment, where it comes together with a bar
        return [self._sent[name] for name in (self.first, self.second) if name in self._sent]

    def _longest(self) -> int:
        return max(1, *(sent["span"] for sent in self._shown()))

    def _let_go(self, change) -> None:
        if self.bar and self.bar[0] == (change["name"] == "second"):
            self.bar = []

    @traitlets.validate("first", "second")
    def _check_name(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        allowed = [*self._sent] if name == "first" else [*self._sent, ""]
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
        return value

    @traitlets.validate("brush")
    def _check_brush(self, proposal):
        brush = proposal["value"]
        if brush and not (len(brush) == 2 and 0 <= brush[0] < brush[1] < math.inf):
            raise ValueError(f"brush must be () or (from, to) in µs with 0 <= from < to, got {tuple(brush)}")
        return brush

    @traitlets.validate("bar")
    def _check_bar(self, proposal):
        bar, shown = proposal["value"], self._shown()
        if bar and len(bar) != 2:
            raise ValueError(f"bar must be () or (side, number of the event), got {tuple(bar)}")
        if bar:
            check_whole("bar[0]", bar[0], 0, len(shown) - 1)
            check_whole("bar[1]", bar[1], 0, len(shown[bar[0]]["events"]) - 1)
        return bar


def check_traces(traces: object, floors_us: dict[str, float | int]) -> None:
    """Refuse what is no dict of 1..16 traces by name, or too long to draw, and floors of other traces."""
    if not isinstance(traces, dict):
        raise TypeError(f"traces must be a dict of traces by name, got {type(traces).__name__}")
    if not 1 <= len(traces) <= MOST_TRACES:
        raise ValueError(f"traces must hold 1..{MOST_TRACES} traces, got {len(traces)}")
    for name, trace in traces.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"traces must have names, got {name!r}")
        if not isinstance(trace, Trace):
            raise TypeError(f"traces[{name!r}] must be a Trace, got {type(trace).__name__}")
        if len(trace.events) > MOST_EVENTS:
            raise ValueError(
                f"traces[{name!r}] has {len(trace.events):,} events, and at most {MOST_EVENTS:,} are drawn; "
                "record one call"
            )
    for name, floor in floors_us.items():
        if name not in traces:
            raise ValueError(f"floors_us must be of {', '.join(traces)}; got {name!r}")
        check_number(f"floors_us[{name!r}]", floor, above=0)


def as_sent(name: str, trace: Trace, floor_us: float | int | None = None) -> dict[str, object]:
    """A trace as the page gets it: whole nanoseconds, and numbers in place of names that come again."""
    lanes, names = trace.lanes, [*dict.fromkeys(event.name for event in trace.events)]
    at = {what: {one: number for number, one in enumerate(all_)} for what, all_ in (("lane", lanes), ("name", names))}
    events = [
        [
            at["name"][event.name],
            CATEGORIES.index(event.category),
            at["lane"][event.lane],
            as_ns(event.start_us),
            as_ns(event.end_us) - as_ns(event.start_us),
            event.flops,
            event.bytes,
        ]
        for event in trace.events
    ]
    return {
        **{"name": name, "device": trace.about["device"], "about": f"{describe_call(trace)} · {provenance(trace)}"},
        **{"lanes": lanes, "workers": [at["lane"][lane] for lane in device_lanes(trace)]},
        **{"names": names, "events": events, "span": as_ns(trace.span_us)},
        **{"floor": at_least_1_ns(floor_us), "bare": at_least_1_ns(trace.about.get("unprofiled_us"))},
    }


def as_ns(microseconds: float | int) -> int:
    """Whole nanoseconds, a half upwards, as the browser has it.

    Example:
        >>> as_ns(1.5), as_ns(0.0005)
        (1500, 1)
    """
    return math.floor(microseconds * 1000 + 0.5)


def at_least_1_ns(microseconds: float | int | None) -> int | None:
    """Whole nanoseconds above 0; None for None."""
    return None if microseconds is None else max(1, as_ns(microseconds))


def name_worker(sent: dict) -> str:
    """What the lanes run that a trace is about."""
    return "operator" if all(sent["lanes"][lane].startswith(CPU_LANE) for lane in sent["workers"]) else "kernel"


def touches(event: list, start: int, stop: int) -> bool:
    """Whether an event lies at least partly in a stretch of time; one that takes none lies where it starts."""
    return event[START] < stop and (event[START] >= start or event[START] + event[DURATION] > start)


def cover(events: list[list], start: int, stop: int) -> Iterator[tuple[list, int, int]]:
    """What each event adds to the time that is covered already, from the left: (event, from, to).

    Example:
        >>> [(first, last) for _, first, last in cover([[0, 0, 0, 1, 4], [0, 0, 0, 3, 5], [0, 0, 0, 3, 2]], 2, 7)]
        [(2, 5), (5, 7)]
    """
    done = start
    for event in events:
        last = min(stop, event[START] + event[DURATION])
        if last > max(done, event[START]):
            yield event, max(done, event[START]), last
            done = last


def tally_trace(sent: dict, start: int, stop: int, search: str = "") -> dict[str, object]:
    """What is counted of one trace within a stretch of time, in nanoseconds.

    ``window`` (as much of the stretch as the call lasts), ``events``, ``busy``, ``by_category`` (they add up to
    ``busy``), ``flops`` (of the events that were counted), and ``found``: of the events on any lane whose names hold
    ``search``, how many ``bars`` and how long on the ``CPU`` and on the ``GPU``.
    """
    workers = [event for event in sent["events"] if event[LANE] in sent["workers"]]
    by_category = dict.fromkeys(CATEGORIES, 0)
    for event, first, last in cover(workers, start, stop):
        by_category[CATEGORIES[event[CATEGORY]]] += last - first
    seen = [event for event in workers if touches(event, start, stop)]
    found = {"bars": 0, "CPU": 0, "GPU": 0}
    hits = {number for number, name in enumerate(sent["names"]) if search and search.lower() in name.lower()}
    for event in sent["events"]:
        if event[NAME] in hits and touches(event, start, stop):
            found["bars"] += 1
            lane = "CPU" if sent["lanes"][event[LANE]].startswith(CPU_LANE) else "GPU"
            found[lane] += min(stop, event[START] + event[DURATION]) - max(start, event[START])
    return {
        **{"window": max(0, min(stop, sent["span"]) - start), "events": len(seen), "busy": sum(by_category.values())},
        **{"by_category": by_category, "flops": sum(event[FLOPS] or 0 for event in seen), "found": found},
    }


def rank(sent: dict, start: int, stop: int) -> list[dict[str, object]]:
    """The names of one trace within a stretch of time, those that took the longest first.

    Each has its ``name``, ``category``, ``calls``, ``time`` (within the stretch), ``full`` (of the whole calls), and
    the ``flops`` and ``bytes`` of the whole calls, None where one of them was not counted.
    """
    rows: dict[int, dict[str, object]] = {}
    for event in sent["events"]:
        if event[LANE] in sent["workers"] and touches(event, start, stop):
            row = rows.setdefault(
                event[NAME],
                {"name": sent["names"][event[NAME]], "category": CATEGORIES[event[CATEGORY]]}
                | {"calls": 0, "time": 0, "full": 0, "flops": 0, "bytes": 0},
            )
            row["calls"] += 1
            row["time"] += min(stop, event[START] + event[DURATION]) - max(start, event[START])
            row["full"] += event[DURATION]
            for key, count in (("flops", event[FLOPS]), ("bytes", event[BYTES])):
                row[key] = None if row[key] is None or count is None else row[key] + count
    return sorted(rows.values(), key=lambda row: -row["time"])


def say_trace(side: str, sent: dict, found: dict, whole: bool) -> str:
    """One trace's part of the sentence."""
    who, window = f"{side}, {sent['name']} on {sent['device']}", found["window"]
    if not window:
        return f"{who}: {'nothing was recorded' if whole else 'over by then'}."
    longest = sorted(found["by_category"].items(), key=lambda item: -item[1])[:MOST_NAMED]
    named = ", ".join(f"{name} {per_cent(time, window)} %" for name, time in longest if time)
    busy = per_cent(found["busy"], window)
    said = f"{who}: {say_ns(window)}, {busy} % in {many(found['events'], name_worker(sent))}"
    said += f" ({named})" * bool(named) + f", {100 - busy} % in gaps"
    return f"{said}{say_whole(sent) if whole else ''}."


def say_whole(sent: dict) -> str:
    """How long a whole call takes without the profiler, and beside the roofline, as far as either is known."""
    parts = [f"without the profiler {say_ns(sent['bare'])}"] if sent["bare"] else []
    if sent["floor"]:
        ratio = three_digits((sent["bare"] or sent["span"]) / sent["floor"])
        parts.append(f"{ratio} times the {say_ns(sent['floor'])} that the roofline allows")
    return f"; {', '.join(parts)}" if parts else ""


def compare(sent_a: dict, sent_b: dict, a: dict, b: dict) -> str:
    """How the times of two whole calls compare, and how their FLOPs do where both were counted."""
    bare = sent_a["bare"] and sent_b["bare"]
    longer = three_digits(sent_a["bare"] / sent_b["bare"] if bare else sent_a["span"] / sent_b["span"])
    said = "Without the profiler " if bare else ""
    said += f"A takes {'' if longer == '1' else f'{longer} times '}as long as B"
    if not a["flops"] or not b["flops"]:
        return f"{said}."
    more = three_digits(a["flops"] / b["flops"])
    return f"{said}, for {'as many FLOPs' if more == '1' else f'{more} times its FLOPs'}."


def say_hits(side: str, found: dict) -> str:
    """What a search found in one trace."""
    if not found["bars"]:
        return f"no bar of {side}"
    times = ", ".join(f"{say_ns(found[lane])} on the {lane}" for lane in ("CPU", "GPU") if found[lane])
    return f"{many(found['bars'], 'bar')} of {side}" + f" ({times})" * bool(times)


def say_ns(nanoseconds: int) -> str:
    """A time with the unit in which it reads best.

    Example:
        >>> say_ns(0), say_ns(12_345), say_ns(1_234_567)
        ('0 µs', '12.3 µs', '1.23 ms')
    """
    return say_time(nanoseconds / 1e6)


def say_count(number: float | int, unit: str) -> str:
    """A number by its first three digits, with a decimal prefix to its unit.

    Example:
        >>> say_count(2_147_483_648, "FLOP"), say_count(512, "B"), say_count(3.35e12, "B/s")
        ('2.15 GFLOP', '512 B', '3.35 TB/s')
    """
    prefix, size = next(((prefix, size) for prefix, size in PREFIXES if number >= size), ("", 1))
    return f"{three_digits(number / size)} {prefix}{unit}"


def say_work(count: int | None, unit: str, duration: int) -> str:
    """How much was done and at what rate; nothing where nobody counted.

    Example:
        >>> say_work(4096, "FLOP", 2_000), say_work(0, "B", 10), say_work(None, "B", 10)
        ('4.1 kFLOP at 2.05 GFLOP/s', '0 B', '')
    """
    if count is None:
        return ""
    rate = f" at {say_count(count / (duration / 1e9), f'{unit}/s')}" if count and duration else ""
    return say_count(count, unit) + rate
