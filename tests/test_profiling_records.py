"""The traces in data/: readable, small, named by what ran, and of layers whose experts do equal FLOPs."""

from pathlib import Path

import pytest

from moe_lab.profiling import Trace, time_by_category, total_flops
from moe_lab.profiling.layer import trace_path

FOLDER = Path(__file__).parents[1] / "data" / "traces"
TRACES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_a_recorded_trace_is_whole(path):
    trace = Trace.read(path)
    assert path.stat().st_size < 150_000
    assert trace_path(FOLDER, trace) == path
    assert len(trace.about["commit"]) == 40
    assert trace.about["ceilings"]["flops_per_s"][trace.about["dtype"]] > 0
    on_one_lane = len(trace.lanes) == 1
    assert not on_one_lane or sum(time_by_category(trace).values()) == pytest.approx(trace.span_us, rel=1e-3)


def test_flops_are_the_dense_layers_and_the_routers():
    traces = {path.name: Trace.read(path) for path in TRACES}
    dense = traces["dense-forward-float32-cpu.json"]
    shape = dense.about["shape"]
    router = 2 * shape["tokens"] * shape["d_model"] * shape["num_experts"]
    for name in ("grouped-forward-float32-cpu.json", "loop-forward-float32-cpu.json"):
        assert traces[name].about["shape"] == shape
        assert total_flops(traces[name]) == total_flops(dense) + router
