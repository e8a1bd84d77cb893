"""Short real profiles on this machine: what is in the trace, never how long it took."""

import itertools
import json

import pytest
import torch

from moe_lab import flop_counter
from moe_lab.__main__ import main
from moe_lab.profiling import Trace, profile, profiler, total_flops
from moe_lab.profiling.layer import (
    PEER,
    SHAPES,
    ProfileShape,
    make_calls,
    profile_layers,
    read_shape,
    trace_path,
    triton_costs,
)
from moe_lab.profiling.machine import describe_machine

ABOUT = {"implementation": "mine", "direction": "forward", "dtype": "float32", "shape": {"n": 8}}
TINY = ProfileShape(tokens=24, d_model=16, d_expert=8, num_experts=4, top_k=2)
EXPERTS_FLOPS = 24 * 2 * 6 * 16 * 8
ROUTER_FLOPS = 2 * 24 * 16 * 4


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread on a busy machine only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- profile


def test_a_trace_holds_one_call_and_says_where_it_is_from():
    a, calls = torch.ones(8, 8), []

    def function():
        calls.append(a @ a)

    trace = profile(function, about=ABOUT, warmup=1, repeats=3)
    assert len(calls) == 1 + 3 + 3, "warm-up, without the profiler, with it"
    assert [(event.name, event.flops, event.bytes) for event in trace.events] == [("aten::mm", 1024, 768)]
    about = trace.about
    assert {**ABOUT, **about} == about and about["kind"] == "cpu" and about["threads"] == 1
    assert sorted(about["calls_us"])[1] == about["call_us"] and about["unprofiled_us"] > 0
    assert 0 <= trace.events[0].start_us and trace.events[0].end_us <= about["call_us"]
    assert {**about, **describe_machine("cpu")} == about


def test_the_traced_call_is_the_one_of_median_duration(monkeypatch):
    """Three calls that each do something else: the trace holds the operators of the middle one."""
    kinds = iter(["silu", "mm", "topk"] * 2)
    x = torch.ones(8, 8)
    kind_of = {"silu": torch.nn.functional.silu, "mm": lambda x: x @ x, "topk": lambda x: x.topk(2)}
    record = profiler._record

    def slowed(*arguments):
        events = record(*arguments)
        calls = [event for event in events if event.name == profiler.CALL]
        for call, duration in zip(calls, (1e6, 3e6, 2e6), strict=True):
            call.time_range.end = call.time_range.start + duration
        return events

    monkeypatch.setattr(profiler, "_record", slowed)
    trace = profile(lambda: kind_of[next(kinds)](x), about=ABOUT, warmup=0, repeats=3)
    assert [event.name for event in trace.events] == ["aten::topk"]
    assert trace.about["calls_us"] == [1e6, 2e6, 3e6] and trace.about["call_us"] == 2e6


def test_costs_replace_what_nobody_can_count():
    x = torch.ones(8, 8)
    trace = profile(lambda: x.topk(2), about=ABOUT, repeats=1, costs={"aten::topk": (7, 9)})
    assert [(event.name, event.flops, event.bytes) for event in trace.events] == [("aten::topk", 7, 9)]


def test_profile_refuses_what_is_wrong(monkeypatch, unchecked_shapes):
    with pytest.raises(TypeError, match="must be callable"):
        profile(7, about=ABOUT)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        profile(lambda: None, about=ABOUT, repeats=0)
    with pytest.raises(ValueError, match="warmup must be"):
        profile(lambda: None, about=ABOUT, warmup=-1)
    with pytest.raises(ValueError, match=r"about must have.*it lacks dtype, shape"):
        profile(lambda: None, about={"implementation": "x", "direction": "forward"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "tpu"):
        with pytest.raises(ValueError, match=f"device must be one of cpu, cuda.*got '{device}'"):
            profile(lambda: None, about=ABOUT, device=device)


@pytest.mark.gpu
def test_kernels_are_on_streams(gpu):
    x = torch.randn(512, 512, device=gpu)
    trace = profile(lambda: x @ x, about=ABOUT, device="cuda", repeats=2)
    kernels = [event for event in trace.events if event.lane.startswith("GPU stream")]
    assert trace.about["kind"] == "cuda" and "matrix product" in {event.category for event in kernels}
    with pytest.raises(ValueError, match="the profiler saw no kernel"):
        profile(lambda: torch.ones(3), about=ABOUT, device="cuda", repeats=1)


# ---------------------------------------------------------------- the layer


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", ["loop", "grouped", PEER, "dense"])
def test_flops_of_a_trace_are_those_of_the_flop_counter(name, direction):
    call = make_calls(TINY, [name], direction)[name]
    with flop_counter() as counter:
        call()
    assert not counter.uncounted
    trace = profile(call, about=ABOUT, warmup=1, repeats=1)
    assert total_flops(trace) == counter.total_flops > 0
    assert trace.lanes == ["CPU"]
    for before, after in itertools.pairwise(trace.events):
        assert before.end_us <= after.start_us + 1e-3, f"{before.name} and {after.name} overlap"


def test_dense_has_the_experts_flops_and_no_router():
    (dense, moe) = profile_layers(TINY, ["dense", "grouped"], "forward", "float32", repeats=1)
    assert total_flops(dense) == EXPERTS_FLOPS and total_flops(moe) == EXPERTS_FLOPS + ROUTER_FLOPS
    assert dense.about["shape"] == moe.about["shape"] == TINY._asdict()
    categories = {event.category for event in moe.events}
    assert {"matrix product", "activation", "gather and scatter", "sort and routing"} <= categories
    assert {event.category for event in dense.events} == {"matrix product", "activation"}


def test_bfloat16_of_the_peer_is_checked_before_it_is_rounded():
    calls = make_calls(TINY, [PEER, "grouped", "dense"], "forward", "bfloat16")
    assert {name: call().dtype for name, call in calls.items()} == dict.fromkeys(calls, torch.bfloat16)


def test_a_wrong_answer_is_not_profiled(monkeypatch):
    from moe_lab.layers import MoE

    forward = MoE.forward
    monkeypatch.setattr(MoE, "forward", lambda self, x: forward(self, x) * (1 + (self.backend == "grouped") / 100))
    with pytest.raises(ValueError, match=r"grouped is off by 0.01 from the loop, allowed 0.0001"):
        make_calls(TINY, ["grouped"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["loop", "sparse"],), "names must be among loop, grouped, triton, transformers, dense; got 'sparse'"),
        ((["loop"], "backward"), r"direction must be one of forward, forward\+backward; got 'backward'"),
        ((["loop"], "forward", "float8"), "dtype must be one of float32, bfloat16, float16; got 'float8'"),
        ((["triton"],), "names must be without 'triton' where there is no GPU"),
    ],
)
def test_make_calls_refuses_what_is_wrong(arguments, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        make_calls(TINY, *arguments)


def test_shapes_by_name_and_by_numbers():
    assert read_shape("medium") == SHAPES["medium"] and read_shape("24,16,8,4,2") == TINY
    few, medium = SHAPES["few experts"], SHAPES["medium"]
    assert few.top_k * few.d_expert == medium.top_k * medium.d_expert, "equal FLOPs"
    for wrong in ("large", "1,2,3", "1,2,3,4,5,6", "a,b,c,d,e", ""):
        with pytest.raises(ValueError, match="shape must be one of small, medium, few experts, or tokens,d_model"):
            read_shape(wrong)
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.4"):
        read_shape("24,16,8,4,5")


def test_costs_of_the_triton_kernels_are_the_experts_flops():
    costs = triton_costs(TINY, item_bytes=2)
    assert sum(flops for flops, _ in costs.values()) == EXPERTS_FLOPS
    assert all(moved > 0 for _, moved in costs.values())


# ---------------------------------------------------------------- the command


@pytest.fixture
def quick_ceilings(monkeypatch):
    import moe_lab.__main__ as command

    rates = {"flops_per_s": {"float32": 1e9}, "bytes_per_s": 1e9}
    monkeypatch.setattr(command, "_measured_rates", lambda dtype: rates)


def test_the_command_prints_tables_and_writes_traces(capsys, tmp_path, quick_ceilings):
    arguments = [
        "profile",
        "--shape",
        "24,16,8,4,2",
        "--backend",
        "grouped",
        "dense",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "grouped, forward, float32, tokens=24 d_model=16" in shown and "of roofline" in shown
    assert "(as multiples of dense)" in shown
    traces = {path.name: Trace.read(path) for path in tmp_path.iterdir()}
    assert set(traces) == {"grouped-forward-float32-cpu.json", "dense-forward-float32-cpu.json"}
    assert total_flops(traces["dense-forward-float32-cpu.json"]) == EXPERTS_FLOPS
    assert traces["dense-forward-float32-cpu.json"].about["ceilings"]["bytes_per_s"] == 1e9


def test_the_command_prints_json(capsys, quick_ceilings):
    arguments = ["profile", "--shape", "24,16,8,4,2", "--backend", "dense", "--repeats", "1", "--json"]
    assert main([*arguments, "--direction", "forward+backward"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["about"]["direction"] == "forward+backward"
    assert next(row for row in found["rows"] if row["name"] == "aten::mm")["flops"] == 3 * EXPERTS_FLOPS


def test_the_command_refuses_with_one_line(capsys, quick_ceilings):
    assert main(["profile", "--out", "trace.json"]) == 1
    assert "--out trace.json is one file, and 4 backends were asked for" in capsys.readouterr().err
    assert main(["profile", "--shape", "huge"]) == 1
    assert "moe-lab profile: shape must be one of" in capsys.readouterr().err


def test_a_file_name_says_what_ran(tmp_path):
    trace = Trace({**ABOUT, **describe_machine("cpu"), "direction": "forward+backward"}, [])
    assert trace_path(tmp_path, trace) == tmp_path / "mine-forward-backward-float32-cpu.json"
    assert trace_path(tmp_path / "a.json", trace) == tmp_path / "a.json"
