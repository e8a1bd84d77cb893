"""Trace player in Python: its times are those of the trace moment by moment, and it refuses what it cannot show."""

import json
import random

import pytest
import traitlets

from moe_lab.profiling import CATEGORIES, Trace, TraceEvent
from moe_lab.profiling.trace import ABOUT
from moe_lab.widgets import TracePlayer
from moe_lab.widgets.trace_player import MOST_EVENTS, MOST_ROWS, as_sent, check_traces, rank, tally_trace


def about(kind="cuda", device="a GPU", **more):
    sizes = {"tokens": 64, "num_experts": 8}
    return dict.fromkeys(ABOUT, "?") | {
        "kind": kind,
        "device": device,
        "shape": sizes,
        "versions": {"torch": "2"},
        **more,
    }


def product(start, duration, lane="GPU stream 7", flops=4000, name="mm", moved=None):
    return TraceEvent(name, "matrix product", lane, start, duration, flops, moved)


def loop():
    """Three launches of 2 µs and three kernels of 4, 4 and 8 µs, 16 of 40 µs in all; the call ends at 40."""
    launches = [TraceEvent("cudaLaunchKernel", "other", "CPU", 10.0 * at, 2.0) for at in range(3)]
    copy = TraceEvent("Memcpy DtoD", "copy and fill", "GPU stream 7", 25.0, 8.0, None, 16_000)
    return Trace(about(call_us=40.0), [*launches, product(5.0, 4.0, moved=800), product(15.0, 4.0), copy])


def dense():
    return Trace(about(), [product(0.0, 10.0, flops=16_000, name="big MM")])


def player(**options):
    return TracePlayer({"loop": loop(), "dense": dense()}, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"floors_us": {"loop": 8, "dense": 8.0}},
            "A, loop on a GPU: 40 µs, 40 % in 3 kernels (matrix product 20 %, copy and fill 20 %), 60 % in gaps; 5 "
            "times the 8 µs that the roofline allows. B, dense on a GPU: 10 µs, 100 % in 1 kernel (matrix product "
            "100 %), 0 % in gaps; 1.25 times the 8 µs that the roofline allows. A takes 4 times as long as B, for "
            "0.5 times its FLOPs.",
        ),
        (
            {"brush": (7, 16), "search": "mm", "floors_us": {"loop": 8}},
            "From 7 µs to 16 µs. A, loop on a GPU: 9 µs, 33 % in 2 kernels (matrix product 33 %), 67 % in gaps. B, "
            "dense on a GPU: 3 µs, 100 % in 1 kernel (matrix product 100 %), 0 % in gaps. “mm” is in 2 bars of A (3 "
            "µs on the GPU) and in 1 bar of B (3 µs on the GPU).",
        ),
        (
            {"brush": (20, 70), "search": "launch"},
            "From 20 µs to 40 µs. A, loop on a GPU: 20 µs, 40 % in 1 kernel (copy and fill 40 %), 60 % in gaps. B, "
            "dense on a GPU: over by then. “launch” is in 1 bar of A (2 µs on the CPU) and in no bar of B.",
        ),
        (
            {"first": "dense", "second": ""},
            "A, dense on a GPU: 10 µs, 100 % in 1 kernel (matrix product 100 %), 0 % in gaps.",
        ),
        (
            {"first": "dense", "second": "dense", "brush": (50, 60)},
            "A, dense on a GPU: 10 µs, 100 % in 1 kernel (matrix product 100 %), 0 % in gaps. B, dense on a GPU: 10 "
            "µs, 100 % in 1 kernel (matrix product 100 %), 0 % in gaps. A takes as long as B, for as many FLOPs.",
        ),
    ],
)
def test_summary_says_where_the_time_went(options, sentence):
    widget = player(**options)
    assert widget.summary() == sentence and repr(widget) == f"TracePlayer: {sentence}"
    assert widget._repr_mimebundle_()[0]["text/plain"] == repr(widget)


def test_no_flops_no_claim_and_nothing_recorded():
    bare = Trace(about("cpu", "a desk"), [TraceEvent("copy", "copy and fill", "CPU", 1.0, 1.0)])
    widget = TracePlayer({"bare": bare, "empty": Trace(about(), []), "dense": dense()})
    assert widget.summary() == (
        "A, bare on a desk: 2 µs, 50 % in 1 operator (copy and fill 50 %), 50 % in gaps. B, empty on a GPU: nothing "
        "was recorded."
    )
    widget.second = "dense"
    assert widget.summary().endswith("A takes 0.2 times as long as B.")


def cells(trace, start, stop):
    """Category of every microsecond, by looking which events cover it; the earliest one counts."""
    mine = [event for event in trace.events if event.lane.startswith("GPU")]  # each of these traces has such a lane
    for moment in range(start, stop):
        here = [event for event in mine if event.start_us <= moment < event.end_us]
        yield here[0].category if here else None


def made_up(rng, events=20):
    """Events of whole microseconds, on up to three lanes; they overlap across lanes."""
    found = []
    for lane in rng.sample(["CPU", "CPU thread 2", "GPU stream 7", "GPU stream 13"], 3):
        at = rng.randint(0, 5)
        for _ in range(events):
            long = rng.choice([0, 1, 1, 2, 5, 20])
            work = [rng.choice([None, 0, rng.randint(1, 10**13)]) for _ in range(2)]
            found.append(
                TraceEvent(
                    rng.choice(["aten::mm", "Mm", "silu", "x"]),
                    rng.choice(CATEGORIES),
                    lane,
                    float(at),
                    float(long),
                    *work,
                )
            )
            at += long + rng.choice([0, 0, 1, 3])
    return Trace(about(call_us=rng.choice([0, 700])), found)


@pytest.mark.parametrize("seed", range(8))
def test_times_are_those_of_every_moment(seed):
    rng = random.Random(seed)
    trace = made_up(rng)
    span = int(trace.span_us)
    start, stop = sorted(rng.sample(range(span + 50), 2))
    for low, high in ((0, span), (start, stop)):
        found = tally_trace(as_sent("x", trace), 1000 * low, 1000 * high, "MM")
        shown = [*cells(trace, low, min(high, span))]
        assert found["window"] == 1000 * len(shown)
        assert found["by_category"] == {name: 1000 * shown.count(name) for name in CATEGORIES}
        assert found["busy"] == found["window"] - 1000 * shown.count(None)
        inside = [one for one in trace.events if any(one.start_us <= at < one.end_us for at in range(low, high))]
        inside += [one for one in trace.events if not one.duration_us and low <= one.start_us < high]
        hits = [one for one in inside if one.name != "silu" and one.name != "x"]
        assert found["found"]["bars"] == len(hits)
        for lane in ("CPU", "GPU"):
            clipped = [min(high, one.end_us) - max(low, one.start_us) for one in hits if one.lane.startswith(lane)]
            assert found["found"][lane] == 1000 * sum(clipped)
        mine = [one for one in inside if one.lane.startswith("GPU")]
        assert (found["events"], found["flops"]) == (len(mine), sum(one.flops or 0 for one in mine))
        rows = {row["name"]: row for row in rank(as_sent("x", trace), 1000 * low, 1000 * high)}
        assert list(rows) == sorted(rows, key=lambda name: -rows[name]["time"])
        for name, row in rows.items():
            calls = [one for one in mine if one.name == name]
            assert row["calls"] == len(calls) and row["full"] == 1000 * sum(one.duration_us for one in calls)
            for key in ("flops", "bytes"):
                counts = [getattr(one, key) for one in calls]
                assert row[key] == (None if None in counts else sum(counts))


@pytest.mark.parametrize(
    ("bar", "sentence"),
    [
        ((), ""),
        ((0, 0), "A, CPU, bar 0 of 0..2: cudaLaunchKernel, other, 2 µs from 0 µs on; FLOPs and bytes not counted."),
        (
            (0, 1),
            "A, GPU stream 7, bar 0 of 0..2: mm, matrix product, 4 µs from 5 µs on; 4 kFLOP at 1 GFLOP/s, 800 B at "
            "200 MB/s.",
        ),
        (
            (0, 5),
            "A, GPU stream 7, bar 2 of 0..2: Memcpy DtoD, copy and fill, 8 µs from 25 µs on; FLOPs not counted, 16 "
            "kB at 2 GB/s.",
        ),
        (
            (1, 0),
            "B, GPU stream 7, bar 0 of 0..0: big MM, matrix product, 10 µs from 0 µs on; 16 kFLOP at 1.6 GFLOP/s, "
            "bytes not counted.",
        ),
    ],
)
def test_a_bar_has_a_name_a_time_and_its_work(bar, sentence):
    assert player(bar=bar).say_bar() == sentence


def test_top_names_what_took_longest():
    assert [(row["name"], row["calls"], row["time"]) for row in player().top()] == [
        ("mm", 2, 8000),
        ("Memcpy DtoD", 1, 8000),
    ]
    assert [row["time"] for row in player(brush=(26, 30)).top()] == [4000] and player().top(1)[0]["flops"] == 16_000
    many = [product(float(at), 0.5, name=f"kernel {at}") for at in range(30)]
    assert len(TracePlayer({"many": Trace(about(), many)}).top()) == MOST_ROWS


def test_a_trace_that_was_written_is_played_alike(tmp_path):
    back = {name: Trace.read(trace.write(tmp_path / name)) for name, trace in (("loop", loop()), ("dense", dense()))}
    assert TracePlayer(back).summary() == player().summary() and TracePlayer(back).traces == player().traces


def test_the_machine_and_the_versions_are_on_the_page():
    told = about("cpu", "a desk", implementation="loop", commit="0123456789abcdef", threads=2, date="2026-01-02")
    line = as_sent("x", Trace(told, []))["about"]
    for part in ("loop", "tokens=64", "a desk, 2 threads", "2026-01-02", "torch 2", "commit 012345678"):
        assert part in line, part


def test_times_without_the_profiler_are_those_that_are_compared():
    bare = {"loop": Trace(about(call_us=40.0, unprofiled_us=30.0), loop().events), "dense": dense()}
    widget = TracePlayer(bare, floors_us={"loop": 8.0})
    said = widget.summary()
    assert "60 % in gaps; without the profiler 30 µs, 3.75 times the 8 µs that the roofline allows. B" in said
    assert said.endswith("A takes 4 times as long as B, for 0.5 times its FLOPs."), "one of two is no comparison"
    bare["dense"].about["unprofiled_us"] = 5.0
    said = TracePlayer(bare).summary()
    assert "0 % in gaps; without the profiler 5 µs. Without the profiler A takes 6 times as long as B, for 0.5" in said


def test_a_long_trace_is_sent_in_few_bytes():
    events = [product(2.0 * at, 1.25, name=f"void kernel<{at % 9}>" * 8, moved=10**8) for at in range(3000)]
    widget = TracePlayer({"long": Trace(about(), events)})
    assert len(json.dumps(widget.traces)) < 130_000
    assert widget.tally()[0]["busy"] == 3000 * 1250


def test_another_trace_lets_the_bar_go():
    widget = player(bar=(1, 0), brush=(1, 2))
    widget.first = "dense"
    assert widget.bar == [1, 0] and widget.brush == [1, 2]
    widget.second = "loop"
    assert widget.bar == [] and widget.say_bar() == ""
    widget.bar = [1, 5]
    widget.second = ""
    assert widget.bar == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floors_us": {"grouped": 1}}, "floors_us must be of loop, dense; got 'grouped'"),
        ({"floors_us": {"loop": 0}}, r"floors_us\['loop'\] must be a finite number above 0"),
        ({"first": "grouped"}, "first must be one of 'loop', 'dense'; got 'grouped'"),
        ({"first": ""}, "first must be one of 'loop', 'dense'; got ''"),
        ({"second": "x"}, "second must be one of 'loop', 'dense', ''; got 'x'"),
        ({"brush": (3, 3)}, r"brush must be \(\) or \(from, to\) in µs with 0 <= from < to, got \(3"),
        ({"brush": (-1, 3)}, r"brush must be \(\) or \(from, to\)"),
        ({"brush": (1, 2, 3)}, r"brush must be \(\) or \(from, to\)"),
        ({"brush": (0, float("nan"))}, r"brush must be \(\) or \(from, to\)"),
        ({"bar": (2, 0)}, r"bar\[0\] must be in 0\.\.1, got 2"),
        ({"bar": (0, 6)}, r"bar\[1\] must be in 0\.\.5, got 6"),
        ({"bar": (1, 0), "second": ""}, r"bar\[0\] must be in 0\.\.0, got 1"),
        ({"bar": (0,)}, r"bar must be \(\) or \(side, number of the event\), got \(0,\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        player(**options)


def test_what_are_no_traces_is_refused():
    for traces, error, message in (
        ({}, ValueError, r"traces must hold 1\.\.16 traces, got 0"),
        ([loop()], TypeError, "traces must be a dict of traces by name, got list"),
        ({"": loop()}, ValueError, "traces must have names, got ''"),
        ({"a": "loop"}, TypeError, r"traces\['a'\] must be a Trace, got str"),
    ):
        with pytest.raises(error, match=message):
            check_traces(traces, {})


def test_traces_that_are_too_long_are_refused():
    with pytest.raises(
        ValueError, match=r"traces\['x'\] has 10,001 events, and at most 10,000 are drawn; record one call"
    ):
        TracePlayer({"x": Trace(about(), [product(0.0, 1.0)] * (MOST_EVENTS + 1))})


def test_bad_assignments_are_refused_and_change_nothing():
    widget = player(bar=(0, 1), brush=(1, 2))
    for name, value in (("first", "x"), ("second", 3), ("brush", [2, 1]), ("bar", [0, 99]), ("bar", [-1, 0])):
        with pytest.raises((ValueError, traitlets.TraitError)):
            setattr(widget, name, value)
    assert (widget.first, widget.second, widget.brush, widget.bar) == ("loop", "dense", [1, 2], [0, 1])
