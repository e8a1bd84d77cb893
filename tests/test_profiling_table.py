"""Tables of a trace: sums, shares, rates against ceilings, gaps; and what proton writes. Made-up traces, no clock."""

import json

import pytest
import torch

from moe_lab.profiling import (
    Trace,
    TraceEvent,
    device_lanes,
    gaps,
    kernel_table,
    provenance,
    show_profile,
    time_by_category,
    total_flops,
)
from moe_lab.profiling.proton import profile_with_proton, read_proton
from moe_lab.profiling.table import as_json, compare_traces

ABOUT = {
    "device": "a desk",
    "kind": "cpu",
    "date": "2026-01-02",
    "commit": "0123456789abcdef",
    "versions": {"torch": "2.13"},
    "implementation": "loop",
    "direction": "forward",
    "dtype": "float32",
    "shape": {"tokens": 4},
    "threads": 2,
    "call_us": 100.0,
    "unprofiled_us": 80.0,
}
CPU = [
    TraceEvent("aten::mm", "matrix product", "CPU", 10.0, 30.0, flops=6000, bytes=600),
    TraceEvent("aten::silu", "activation", "CPU", 40.0, 5.0, bytes=100),
    TraceEvent("aten::mm", "matrix product", "CPU", 50.0, 10.0, flops=2000, bytes=200),
    TraceEvent("aten::sort", "sort and routing", "CPU", 90.0, 8.0),
]
GPU = [
    TraceEvent("launch", "other", "CPU", 0.0, 60.0),
    TraceEvent("_up", "matrix product", "GPU stream 7", 20.0, 30.0, flops=3000),
    TraceEvent("_sort", "sort and routing", "GPU stream 8", 40.0, 20.0),
    TraceEvent("_up", "matrix product", "GPU stream 7", 70.0, 10.0),
]


def test_rows_are_sums_over_the_calls_and_the_longest_come_first():
    rows = kernel_table(Trace(ABOUT, CPU))
    assert [(row.name, row.calls, row.total_us, row.share) for row in rows] == [
        ("aten::mm", 2, 40.0, 0.4),
        ("aten::sort", 1, 8.0, 0.08),
        ("aten::silu", 1, 5.0, 0.05),
    ]
    assert [(row.flops, row.bytes) for row in rows] == [(8000, 800), (None, None), (None, 100)]
    assert rows[0].flops_per_s == pytest.approx(8000 / 40e-6) and rows[0].bytes_per_s == pytest.approx(800 / 40e-6)
    assert all(row.least_us is None and row.of_roofline is None for row in rows), "no ceilings, no roofline"


@pytest.mark.parametrize(
    ("peak", "bandwidth", "least"),
    [(4e8, 1e9, 20.0), (4e8, 2e7, 40.0), (None, 2e7, 40.0), (4e8, None, 20.0)],
)
def test_the_longer_of_both_limits_counts(peak, bandwidth, least):
    row = kernel_table(Trace(ABOUT, CPU), flops_per_s=peak, bytes_per_s=bandwidth)[0]
    assert row.least_us == pytest.approx(least) and row.of_roofline == pytest.approx(least / 40)


def test_ceilings_may_travel_with_the_trace():
    ceilings = {"flops_per_s": {"float32": 4e8, "bfloat16": 1.0}, "bytes_per_s": 1e9}
    trace = Trace(ABOUT | {"ceilings": ceilings}, CPU)
    assert kernel_table(trace)[0].of_roofline == pytest.approx(0.5)
    assert kernel_table(trace, flops_per_s=8e8)[0].of_roofline == pytest.approx(0.25), "one that is given goes first"
    other = Trace(trace.about | {"dtype": "float16"}, CPU)
    assert kernel_table(other)[0].least_us == pytest.approx(0.8), "no ceiling for this dtype: bytes alone"


def test_a_count_that_one_call_lacks_is_no_sum():
    row = kernel_table(Trace(ABOUT | {"kind": "cuda"}, GPU))[0]
    assert row.name == "_up" and row.flops is None and row.flops_per_s is None


def test_on_a_gpu_its_streams_count_and_launches_do_not():
    trace = Trace(ABOUT | {"kind": "cuda"}, GPU)
    assert device_lanes(trace) == ["GPU stream 7", "GPU stream 8"]
    assert [row.name for row in kernel_table(trace)] == ["_up", "_sort"]
    times = time_by_category(trace)
    assert times["matrix product"] == 40 and times["sort and routing"] == 20 and times["other"] == 0
    assert gaps(trace) == [(0.0, 20.0), (60.0, 70.0), (80.0, 100.0)] and times["idle"] == 50
    assert gaps(trace, ["GPU stream 7"]) == [(0.0, 20.0), (50.0, 70.0), (80.0, 100.0)]


def test_categories_and_idle_add_up_to_the_call_on_one_lane():
    trace = Trace(ABOUT, CPU)
    assert gaps(trace) == [(0.0, 10.0), (45.0, 50.0), (60.0, 90.0), (98.0, 100.0)]
    assert sum(time_by_category(trace).values()) == trace.span_us == 100
    assert total_flops(trace) == 8000
    assert gaps(Trace(ABOUT, [])) == [(0.0, 100.0)]


def test_a_short_event_beside_a_long_one_opens_no_gap():
    long = TraceEvent("_up", "other", "GPU stream 1", 0.0, 50.0)
    short = TraceEvent("_down", "other", "GPU stream 2", 9.0, 5.0)
    assert gaps(Trace(ABOUT | {"kind": "cuda"}, [long, short])) == [(50.0, 100.0)]


def test_the_text_says_what_ran_where_and_how_long():
    text = show_profile(Trace(ABOUT | {"dirty": True}, CPU), most=2)
    assert text.splitlines()[:3] == [
        "loop, forward, float32, tokens=4",
        "a desk, 2 threads · 2026-01-02 · commit 012345678 with changes · torch 2.13",
        "0.10 ms (0.08 ms without the profiler), 4 events, 0.000 GFLOP in products",
    ]
    assert "idle                       0.05 ms   47.0%" in text
    assert "and 1 more, 0.01 ms" in text and "aten::silu" not in text
    assert ", 1 thread ·" in provenance(Trace(ABOUT | {"threads": 1}, []))
    assert "thread" not in provenance(Trace(ABOUT | {"kind": "cuda"}, GPU))


def test_json_has_every_row_with_its_rates():
    (found,) = json.loads(as_json([Trace(ABOUT, CPU)]))
    assert found["about"] == ABOUT and found["categories_us"]["idle"] == 47
    assert len(found["rows"]) == 3 and found["rows"][0]["flops_per_s"] == pytest.approx(2e8)


def test_traces_are_compared_with_the_last():
    dense = Trace(ABOUT | {"implementation": "dense", "unprofiled_us": 40.0}, CPU[:1])
    lines = compare_traces([Trace(ABOUT, CPU), dense]).splitlines()
    assert lines[1].split() == ["loop", "0.08", "0.000", "2.00", "1.33"]
    assert lines[2].split() == ["dense", "0.04", "0.000", "1.00", "1.00"]


# ---------------------------------------------------------------- proton


def frame(name, time_ns=0, count=0, children=()):
    metrics = {"time (ns)": time_ns, "count": count, "device_id": "0"} if time_ns else {}
    return {"frame": {"name": name, "type": "function"}, "metrics": metrics, "children": list(children)}


def test_protons_tree_becomes_rows():
    scope = frame("scope", children=[frame("_grouped_up_kernel", 6000, 3), frame("_combine_kernel", 1000, 3)])
    tree = frame("ROOT", children=[scope, frame("_grouped_up_kernel", 3000, 1)])
    rows = read_proton([tree, {"CUDA": {"0": {"arch": "90"}}}])
    assert [(row.name, row.category, row.calls, row.total_us, row.share) for row in rows] == [
        ("_grouped_up_kernel", "matrix product", 4, 9.0, 0.9),
        ("_combine_kernel", "gather and scatter", 3, 1.0, 0.1),
    ]
    assert read_proton([frame("ROOT"), {}]) == []


@pytest.mark.parametrize("damaged", [[], [{}], [frame("ROOT") | {"children": 7}], [None]])
def test_what_is_no_tree_of_protons_is_refused(damaged, unchecked_shapes):
    with pytest.raises(ValueError, match="no tree of proton's frames"):
        read_proton(damaged)


def test_proton_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"proton needs a GPU.*profile\(\) takes a CPU too"):
        profile_with_proton(lambda: None)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        profile_with_proton(lambda: None, repeats=0)


@pytest.mark.gpu
def test_proton_sees_the_kernels(gpu):
    x = torch.randn(256, 256, device=gpu)
    rows = profile_with_proton(lambda: x @ x, repeats=3)
    assert sum(row.calls for row in rows) >= 3 and all(row.total_us > 0 for row in rows)
    assert rows[0].category == "matrix product"
