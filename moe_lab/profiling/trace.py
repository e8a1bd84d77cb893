"""A trace: what ran when, for how long, and on which machine; kept as Chrome trace JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

from moe_lab.checkpoint import read_json
from moe_lab.checks import check_number, check_whole
from moe_lab.paths import check_new_or_ours
from moe_lab.profiling.categories import CATEGORIES
from moe_lab.writing import write_whole

KINDS = ("cpu", "cuda")
BEGINS = '{"otherData":'
"""How such a file begins, and so what a new one may replace."""
CPU_LANE = "CPU"
GPU_LANE = "GPU stream"
ABOUT = ("device", "kind", "date", "commit", "versions", "implementation", "direction", "dtype", "shape")
"""What every trace says of itself; more is welcome."""
_PROCESS = 1  # Chrome wants a process; there is one


@dataclass(frozen=True)
class TraceEvent:
    """One operator on a CPU or one kernel on a GPU: from ``start_us``, for ``duration_us`` microseconds.

    ``lane`` is what can run one event at a time: "CPU" (the thread that calls; further ones are "CPU thread 2" and so
    on) or "GPU stream 7". ``category`` is one of `CATEGORIES`. ``flops`` and ``bytes`` are None where nobody counted
    them, which is not 0.

    Example:
        >>> TraceEvent("aten::mm", "matrix product", "CPU", 10.0, 4.0, flops=240).end_us
        14.0

    Raises ValueError or TypeError for an unknown category, an empty name or lane, a time below 0, a count below 0.
    """

    name: str
    category: str
    lane: str
    start_us: float | int
    duration_us: float | int
    flops: int | None = None
    bytes: int | None = None

    def __post_init__(self):
        for field in ("name", "lane"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise ValueError(f"{field} must be a name, got {getattr(self, field)!r}")
        if self.category not in CATEGORIES:
            raise ValueError(f"category must be one of {', '.join(CATEGORIES)}; got {self.category!r}")
        for field in ("start_us", "duration_us"):
            check_number(field, getattr(self, field), at_least=0)
        for field in ("flops", "bytes"):
            if getattr(self, field) is not None:
                check_whole(field, getattr(self, field), 0)

    @property
    def end_us(self) -> float | int:
        """When it ended."""
        return self.start_us + self.duration_us


@dataclass
class Trace:
    """Events of one call, in the order of their starts, and ``about``: the machine, the versions and what ran.

    ``about`` has at least the keys of `ABOUT`; ``kind`` is "cpu" or "cuda", ``shape`` and ``versions`` are dicts.
    Time 0 is the start of the call.

    Example:
        >>> about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {"tokens": 4}, "versions": {"torch": "2.13"}}
        >>> trace = Trace(about, [TraceEvent("aten::mm", "matrix product", "CPU", 10.0, 4.0)])
        >>> trace.lanes, trace.span_us
        (['CPU'], 14.0)

    Raises ValueError for an ``about`` that lacks a key, an unknown kind, or a shape or versions that are no dict.
    """

    about: dict
    events: list[TraceEvent]

    def __post_init__(self):
        if not isinstance(self.about, dict):
            raise TypeError(f"about must be a dict, got {type(self.about).__name__}")
        if missing := [key for key in ABOUT if key not in self.about]:
            raise ValueError(f"about must have {', '.join(ABOUT)}; it lacks {', '.join(missing)}")
        if self.about["kind"] not in KINDS:
            raise ValueError(f"about['kind'] must be one of {', '.join(KINDS)}; got {self.about['kind']!r}")
        for key in ("shape", "versions"):
            if not isinstance(self.about[key], dict):
                raise ValueError(f"about[{key!r}] must be a dict, got {self.about[key]!r}")
        check_number("about['call_us']", self.about.get("call_us", 0.0), at_least=0)
        self.events = sorted(self.events, key=lambda event: (event.start_us, event.end_us))

    @property
    def lanes(self) -> list[str]:
        """Names of the lanes: CPU first, in the order of their first events."""
        names = dict.fromkeys(event.lane for event in self.events)
        return sorted(names, key=lambda name: not name.startswith(CPU_LANE))

    @property
    def span_us(self) -> float:
        """From the start of the call to the end of its last event, or of the call itself where ``about`` tells it."""
        return max([float(self.about.get("call_us", 0.0)), *(event.end_us for event in self.events)])

    def write(self, path: Path) -> Path:
        """Write the trace as Chrome trace JSON, which chrome://tracing and Perfetto open; one event a line.

        Raises ValueError for a file of that name that is no such trace, and CannotWrite.
        """
        lanes = {lane: number for number, lane in enumerate(self.lanes, start=1)}
        rows = [_lane_name(lane, number) for lane, number in lanes.items()]
        rows += [_as_chrome(event, lanes[event.lane]) for event in self.events]
        lines = ",\n".join(json.dumps(row) for row in rows)
        about = json.dumps(self.about)
        check_new_or_ours(path, BEGINS)
        text = f'{BEGINS} {about},\n"displayTimeUnit": "ms",\n"traceEvents": [\n{lines}\n]}}\n'
        return write_whole(path, text)

    @staticmethod
    def read(path: Path) -> "Trace":
        """Read what `write` wrote.

        Raises FileNotFoundError for no file; ValueError, with the path and the number of the event, for one that is cut
        off, is no trace of this lab, or holds an event that is not right.
        """
        path = Path(path)
        chrome = read_json(path)
        about, rows = chrome.get("otherData"), chrome.get("traceEvents")
        if not isinstance(about, dict) or not isinstance(rows, list):
            raise ValueError(f"{path} must have an object otherData and a list traceEvents; it is no trace of this lab")
        events = _read_rows(path, rows)
        try:
            return Trace(about, events)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def _read_rows(path: Path, rows: list) -> list[TraceEvent]:
    """Events, with the path and the number of the row in every error."""
    lanes, events = {}, []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise TypeError(f"must be an object, got {row!r}")
            if row["ph"] == "M":
                lanes[row["tid"]] = row["args"]["name"]
            else:
                events.append(_as_event(row, lanes))
        except KeyError as error:
            raise ValueError(f"{path}: traceEvents[{number}] lacks {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: traceEvents[{number}]: {error}") from error
    return events


def _lane_name(lane: str, number: int) -> dict:
    return {"ph": "M", "name": "thread_name", "pid": _PROCESS, "tid": number, "args": {"name": lane}}


def _as_chrome(event: TraceEvent, number: int) -> dict:
    counts = {"flops": event.flops, "bytes": event.bytes}
    return {
        "ph": "X",
        "name": event.name,
        "cat": event.category,
        "pid": _PROCESS,
        "tid": number,
        "ts": round(event.start_us, 3),
        "dur": round(event.duration_us, 3),
        "args": {name: value for name, value in counts.items() if value is not None},
    }


def _as_event(row: dict, lanes: dict[int, str]) -> TraceEvent:
    if not isinstance(row["args"], dict):
        raise ValueError(f"args must be an object, got {row['args']!r}")
    if row["ph"] != "X":
        raise ValueError(f"ph must be X or M, got {row['ph']!r}")
    if row["tid"] not in lanes:
        raise ValueError(f"tid must be one of the lanes named before, {list(lanes)}; got {row['tid']!r}")
    counts = row["args"]
    return TraceEvent(
        row["name"], row["cat"], lanes[row["tid"]], row["ts"], row["dur"], counts.get("flops"), counts.get("bytes")
    )
