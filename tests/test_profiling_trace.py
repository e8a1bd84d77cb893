"""The format of a trace: what it refuses, that it comes back from its file, and that the file is Chrome's."""

import dataclasses
import json

import pytest

from moe_lab.profiling import Trace, TraceEvent
from moe_lab.profiling.trace import ABOUT

ABOUT_IT = dict.fromkeys(ABOUT, "?") | {"kind": "cuda", "shape": {"tokens": 4}, "versions": {"torch": "2.13"}}
EVENTS = [
    TraceEvent("_up_kernel", "matrix product", "GPU stream 7", 12.5, 30.25, flops=480, bytes=96),
    TraceEvent("aten::topk", "sort and routing", "CPU", 1.0, 4.0),
    TraceEvent("aten::mm", "matrix product", "CPU", 6.0, 2.125, flops=0),
]


def test_events_are_in_order_and_lanes_begin_with_the_cpu():
    trace = Trace(ABOUT_IT, EVENTS)
    assert [event.name for event in trace.events] == ["aten::topk", "aten::mm", "_up_kernel"]
    assert trace.lanes == ["CPU", "GPU stream 7"]
    assert trace.span_us == 42.75
    assert Trace(ABOUT_IT | {"call_us": 50.0}, EVENTS).span_us == 50.0, "the call went on after its last event"
    assert Trace(ABOUT_IT, []).span_us == 0 and Trace(ABOUT_IT, []).lanes == []


def test_a_trace_comes_back_from_its_file(tmp_path):
    trace = Trace(ABOUT_IT | {"calls_us": [1.0, 2.0], "dirty": False}, EVENTS)
    path = trace.write(tmp_path / "folder" / "trace.json")
    again = Trace.read(path)
    assert again == trace
    assert again.events[1].flops == 0 and again.events[0].flops is None, "0 is a count, None is none"


def test_the_file_is_what_chrome_reads(tmp_path):
    chrome = json.loads(Trace(ABOUT_IT, EVENTS).write(tmp_path / "trace.json").read_text())
    assert chrome["otherData"] == ABOUT_IT
    names = {row["tid"]: row["args"]["name"] for row in chrome["traceEvents"] if row["ph"] == "M"}
    assert names == {1: "CPU", 2: "GPU stream 7"}
    rows = [row for row in chrome["traceEvents"] if row["ph"] == "X"]
    assert len(rows) == 3 and all({"name", "cat", "pid", "tid", "ts", "dur", "args"} <= set(row) for row in rows)
    assert rows[2] == {
        "ph": "X",
        "name": "_up_kernel",
        "cat": "matrix product",
        "pid": 1,
        "tid": 2,
        "ts": 12.5,
        "dur": 30.25,
        "args": {"flops": 480, "bytes": 96},
    }


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "", "name must be a name"),
        ("lane", "", "lane must be a name"),
        ("category", "idle", "category must be one of matrix product, activation"),
        ("start_us", -1.0, "start_us must be a finite number of at least 0"),
        ("duration_us", float("nan"), "duration_us must be a finite number"),
        ("flops", -1, "flops must be at least 0"),
        ("bytes", -1, "bytes must be at least 0"),
    ],
)
def test_events_refuse_what_is_wrong(field, value, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(EVENTS[0], **{field: value})


def test_traces_refuse_what_is_wrong():
    with pytest.raises(ValueError, match=r"about must have device.*it lacks date, commit"):
        Trace({key: value for key, value in ABOUT_IT.items() if key not in ("date", "commit")}, [])
    with pytest.raises(ValueError, match=r"about\['kind'\] must be one of cpu, cuda; got 'tpu'"):
        Trace(ABOUT_IT | {"kind": "tpu"}, [])
    with pytest.raises(ValueError, match=r"about\['shape'\] must be a dict"):
        Trace(ABOUT_IT | {"shape": "4"}, [])


def damage(change):
    """The text of a good file with one thing changed in its JSON."""

    def damaged(text):
        chrome = json.loads(text)
        change(chrome)
        return json.dumps(chrome)

    return damaged


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (lambda text: text[:-40], "is not valid JSON.*cut off"),
        (lambda text: "[]", "must hold a JSON object"),
        (lambda text: '{"traceEvents": []}', "must have an object otherData and a list traceEvents"),
        (damage(lambda chrome: chrome["otherData"].pop("device")), "trace.json: about must have"),
        (damage(lambda chrome: chrome["traceEvents"][3].pop("dur")), r"traceEvents\[3\] lacks 'dur'"),
        (damage(lambda chrome: chrome["traceEvents"][3].pop("ph")), r"traceEvents\[3\] lacks 'ph'"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(dur=-1)), r"traceEvents\[3\]: duration_us must be"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(dur="long")), r"traceEvents\[3\]: duration_us must be"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(cat="?")), r"traceEvents\[3\]: category must be"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(ph="B")), r"traceEvents\[3\]: ph must be X or M"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(tid=9)), r"traceEvents\[3\]: tid must be one of"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(args=None)), r"traceEvents\[3\]: args must be"),
        (damage(lambda chrome: chrome["traceEvents"][3].update(name=None)), r"traceEvents\[3\]: name must be a name"),
        (damage(lambda chrome: chrome["traceEvents"].append(7)), r"traceEvents\[5\]: must be an object"),
    ],
)
def test_damaged_files_are_refused_by_name_and_place(tmp_path, damaged, says, unchecked_shapes):
    path = Trace(ABOUT_IT, EVENTS).write(tmp_path / "trace.json")
    path.write_text(damaged(path.read_text()))
    with pytest.raises(ValueError, match=says) as caught:
        Trace.read(path)
    assert str(path) in str(caught.value)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Trace.read(tmp_path / "none.json")
