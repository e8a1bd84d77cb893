"""time_interleaved: who is called when, what is reported, what is refused. A made-up clock, no claim on real time."""

import pytest
import torch

from moe_lab.profiling import Timing, time_interleaved, timing


class Clock:
    """A clock that stands still, except while a function under test runs."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def takes(clock, durations_ms):
    """A function whose calls last so long, one after another."""
    left = iter(durations_ms)

    def function():
        clock.seconds += next(left) / 1e3

    return function


def spread(timing: Timing):
    return timing.p20_ms, timing.p50_ms, timing.p80_ms


def test_percentiles_in_milliseconds_without_the_warmup(clock):
    slow = takes(clock, [900.0, 5.0, 1.0, 3.0, 2.0, 4.0])
    fast = takes(clock, [900.0] + [0.25] * 5)
    timings = time_interleaved({"slow": slow, "fast": fast}, repeats=5, warmup=1)
    # 1 2 3 4 5: the percentile p lies at place 4 * p, counted from 0
    assert spread(timings["slow"]) == pytest.approx((1.8, 3.0, 4.2))
    assert spread(timings["fast"]) == pytest.approx((0.25, 0.25, 0.25))
    assert timings["slow"].repeats == timings["fast"].repeats == 5


def test_functions_take_turns_and_each_begins_a_round():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_interleaved(functions, repeats=4, warmup=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert list(timings) == ["a", "b", "c"]


def test_before_each_timed_call_there_is_a_rest_that_does_not_count(clock, monkeypatch):
    rests = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: rests.append(seconds))
    functions = {"a": takes(clock, [1.0] * 4), "b": takes(clock, [2.0] * 4)}
    timings = time_interleaved(functions, repeats=3, warmup=1, rest_s=0.5)
    assert rests == [0.5] * 6 and spread(timings["b"]) == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match=r"rest_s must be"):
        time_interleaved(functions, rest_s=-1)


def test_no_warmup_and_one_repeat(clock):
    timing = time_interleaved({"once": takes(clock, [7.0])}, repeats=1, warmup=0)["once"]
    assert spread(timing) == pytest.approx((7.0, 7.0, 7.0))
    assert timing.repeats == 1


def test_threads_are_set_while_timing_and_put_back():
    before = torch.get_num_threads()
    seen = []
    time_interleaved({"look": lambda: seen.append(torch.get_num_threads())}, repeats=2, warmup=1, threads=1)
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == before
    time_interleaved({"look": lambda: seen.append(torch.get_num_threads())}, repeats=1, warmup=0)
    assert seen[-1] == before


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"breaks": lambda: 1 / 0}, threads=1 if before > 1 else 2)
    assert torch.get_num_threads() == before


def test_the_gpu_is_waited_for_before_and_after_a_call(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    time_interleaved({"call": lambda: events.append("call")}, repeats=2, warmup=0)
    assert events == ["wait", "call", "wait"] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"functions": {}}, ValueError, r"functions must name at least one function, got none"),
        ({"functions": {"a": 3}}, TypeError, r"functions\['a'\] must be callable without arguments, got int"),
        ({"repeats": 0}, ValueError, r"repeats must be a whole number of at least 1, got 0"),
        ({"repeats": 2.5}, ValueError, r"repeats must be a whole number of at least 1, got 2.5"),
        ({"warmup": -1}, ValueError, r"warmup must be a whole number of at least 0, got -1"),
        ({"threads": 0}, ValueError, r"threads must be a whole number of at least 1, got 0"),
        ({"threads": True}, ValueError, r"threads must be a whole number of at least 1, got True"),
    ],
)
def test_refuses(arguments, error, says, unchecked_shapes):
    called = []
    with pytest.raises(error, match=says):
        time_interleaved(**{"functions": {"a": lambda: called.append(1)}, **arguments})
    assert called == [], "nothing is timed before the arguments are understood"
