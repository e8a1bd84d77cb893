"""Lesson 09: the pretended machines that judge the answers, and what they are judged by, are right themselves."""

import math

import pytest

from moe_lab.exercises.lesson_09 import (
    EXERCISES,
    H200,
    NESTED,
    Workload,
    draw_events,
    least_time,
    make_trace,
    own_time,
    record_calls,
)
from moe_lab.profiling import gaps, time_by_category
from moe_lab.profiling.pretend import PretendGpu

from ..mutants.answers_09 import first_over_later, own_times

# ---------------------------------------------------------------- the pretended GPU


def test_a_kernel_starts_after_its_launch_and_after_the_kernel_before():
    gpu = PretendGpu(launch_us=5)
    for duration_us in (20, 1, 1):
        gpu.launch("gemm", duration_us)
    assert gpu.now() == pytest.approx(15e-6), "the CPU did not wait"
    kernels = [event for event in gpu.trace("x").events if event.lane != "CPU"]
    assert [(event.start_us, event.end_us) for event in kernels] == [(5, 25), (25, 26), (26, 27)]
    gpu.synchronize()
    assert gpu.now() == pytest.approx(27e-6)
    gpu.synchronize()
    assert gpu.now() == pytest.approx(27e-6), "an empty queue keeps nobody waiting"


def test_small_kernels_wait_for_their_launches_and_a_graph_needs_one():
    eager, graph = PretendGpu(launch_us=5), PretendGpu(launch_us=5)
    for _ in range(4):
        eager.launch("gemm", 2)
    graph.replay([("gemm", 2)] * 4)
    for gpu in (eager, graph):
        gpu.synchronize()
    assert round(1e6 * eager.now()) == 4 * 5 + 2 and round(1e6 * graph.now()) == 5 + 4 * 2
    trace = eager.trace("eager")
    assert time_by_category(trace)["idle"] == pytest.approx(22 - 8) and len(gaps(trace)) == 4
    assert trace.lanes == ["CPU", "GPU stream 0"] and trace.about["kind"] == "cuda"


def test_a_chip_that_grows_hot_slows_what_starts_later():
    gpu = PretendGpu(launch_us=0, slowdown=lambda us: 1 + us / 100)
    gpu.launch("a", 100)
    gpu.launch("b", 100)
    gpu.synchronize()
    assert gpu.now() == pytest.approx(300e-6)


def test_a_pretended_trace_says_that_it_is_none(tmp_path):
    gpu = PretendGpu()
    gpu.launch("gemm", 3)
    about = gpu.trace("gemm").about
    assert "pretended" in about["device"] and about["date"] == "no measurement"
    assert len(type(gpu.trace("x")).read(gpu.trace("x").write(tmp_path / "x.json")).events) == 2


@pytest.mark.parametrize("call", [lambda gpu: gpu.launch("a", -1), lambda gpu: gpu.work("a", -1)])
def test_times_below_zero_are_refused(call):
    with pytest.raises(ValueError, match="duration_us"):
        call(PretendGpu())
    with pytest.raises(ValueError, match="launch_us"):
        PretendGpu(launch_us=-1)


# ---------------------------------------------------------------- what the answers are judged by


def test_a_workload_takes_what_its_spec_says():
    workload = Workload({"a": 30, "b": 50})
    for name, function in workload.functions().items():
        start = workload.gpu.now()
        function()
        workload.gpu.synchronize()
        assert 1e3 * (workload.gpu.now() - start) == pytest.approx(workload.spec_ms()[name])


def test_the_example_of_nested_events_by_hand():
    assert own_time(NESTED, 16) == {"idle": 4, "other": 4, "matrix product": 5, "activation": 3}


@pytest.mark.parametrize("seed", range(8))
def test_own_time_against_every_microsecond(seed):
    events = draw_events(seed)
    spec = dict.fromkeys(("idle", *(event[3] for event in events)), 0)
    for moment in range(256):
        over = [event for event in events if event[1] <= moment < event[2]]
        spec[min(over, key=lambda event: event[2] - event[1])[3] if over else "idle"] += 1
    assert own_time(events, 256) == {category: time for category, time in spec.items() if time}
    assert sum(own_times(events, 256).values()) == 256


def test_drawn_events_are_nested_deep_enough_to_fool_somebody():
    depths = [sum(one[1] < event[1] and event[2] < one[2] for one in draw_events(3)) for event in draw_events(3)]
    assert max(depths) >= 2


def test_the_limits_by_hand():
    peak, bandwidth = H200
    assert least_time([(peak, bandwidth / 2)], *H200, 5e-6) == (1.0, "compute")
    assert least_time([(peak / 4, bandwidth), (peak, bandwidth / 4)], *H200, 0) == (2.0, "memory"), "a tie"
    assert least_time([(1, 1)] * 1000, *H200, 5e-6) == (pytest.approx(5e-3), "launches")
    assert math.isclose(peak / bandwidth, 206.125)


@pytest.mark.parametrize("slow", [1.0, 3.0, 20.0])
def test_cold_and_warm_recordings_are_far_apart(slow):
    for seed in range(20):
        assert first_over_later(record_calls(cold=True, seed=seed)) > 2
        assert 0.9 < first_over_later(record_calls(cold=False, slow=slow, spike_us=3000, seed=seed)) < 1.1


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_made_trace_has_its_parts(kind):
    times = time_by_category(make_trace({"matrix product": 60, "activation": 10}, idle_us=30, kind=kind))
    assert {category: time for category, time in times.items() if time} == {
        "matrix product": 60,
        "activation": 10,
        "idle": 30,
    }


def test_what_is_no_dict_of_times_is_told_so():
    for answer in (lambda *_: [1, 2], lambda *_: {"a": 1.0}, lambda *_: None):
        assert "give a dict with a, b" in EXERCISES["09.1"].examine(answer).says
