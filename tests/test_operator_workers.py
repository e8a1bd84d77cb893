"""Experts side by side: when, with the same results, and without a trace in anybody's settings."""

import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moe_lab import expert_mlp, flop_counter
from moe_lab.inputs import make_layer_inputs
from moe_lab.operators import workers
from moe_lab.operators.workers import run_side_by_side, side_by_side

from .forked_child import forked, start_child, wait_for_child

CPU = torch.device("cpu")


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def always(two_cores, monkeypatch):
    """Whatever there is to do is enough; returns the threads that ran an expert."""
    monkeypatch.setattr(workers, "LEAST_NUMBERS", 0)
    seen, run = [], workers.run_side_by_side

    def watched(tasks, make_own):
        def note(task):
            def noted(own):
                seen.append(threading.get_ident())
                task(own)

            return noted

        return run([note(task) for task in tasks], make_own)

    monkeypatch.setattr("moe_lab.operators.chunks.run_side_by_side", watched)
    return seen


def outcome(inputs, backend):
    leaves = [inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down]
    x, weights, w_gate_up, w_down = leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    routing = type(inputs.routing)(inputs.routing.experts, weights, inputs.routing.num_experts)
    y = expert_mlp(x, routing, w_gate_up, w_down, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, leaves, inputs.dy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("empty_slots", [0.0, 0.4])
def test_the_same_as_the_specification_and_as_ever(dtype, empty_slots, always):
    inputs = make_layer_inputs(40, 12, 8, 8, 2, dtype=dtype, empty_slots=empty_slots)
    got, want = outcome(inputs, "grouped"), outcome(inputs, "loop")
    assert always and threading.get_ident() not in always
    for ours, theirs in zip(got, want, strict=True):
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert float(error) < (1e-6 if dtype == torch.float32 else 1e-2)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(outcome(inputs, "grouped"), got, strict=True))


def test_in_inference_mode(always):
    inputs = make_layer_inputs(40, 12, 8, 8, 2)
    want = expert_mlp(*inputs.arguments, backend="loop")
    with torch.inference_mode():
        x = inputs.x.clone()
        got = expert_mlp(x, *inputs.arguments[1:], backend="grouped")
    torch.testing.assert_close(got.clone(), want)
    assert always


def test_only_where_it_pays(two_cores):
    assert side_by_side([512] * 8, 2**20, CPU) and side_by_side([512, 0, 512], 2**20, CPU)
    assert not side_by_side([512] * 8, 1, CPU), "too little to do"
    assert not side_by_side([4096, 512], 2**20, CPU), "one would keep the others waiting"
    assert not side_by_side([], 2**20, CPU)
    assert not side_by_side([512] * 8, 2**20, torch.device("cuda"))
    torch.set_num_threads(1)
    assert not side_by_side([512] * 8, 2**20, CPU), "there is nobody to share with"


def test_under_somebodys_eyes_they_stay_in_this_thread_with_as_much_memory(two_cores):
    def task(own):
        ran.append((threading.get_ident(), own))

    for watcher in (flop_counter(), profile(activities=[ProfilerActivity.CPU])):
        ran = []
        with watcher:
            run_side_by_side([task] * 5, object)
        assert {thread for thread, _ in ran} == {threading.get_ident()} and len({id(own) for _, own in ran}) == 2
    run_side_by_side([task] * 5, object)
    assert ran[-1][0] != threading.get_ident()


def test_every_task_runs_once_on_one_core_and_nobody_elses_threads_change(two_cores):
    ran, cores, owns = [], [], []

    def task(number):
        def run(own):
            ran.append(number)
            cores.append(torch.get_num_threads())
            owns.append(own)

        return run

    run_side_by_side([task(number) for number in range(50)], object)
    assert sorted(ran) == list(range(50)) and set(cores) == {1} and 1 <= len(set(map(id, owns))) <= 2
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert torch.get_num_threads() == 2 and found == [2]
    torch.set_num_threads(3)
    run_side_by_side([task(number) for number in range(50)], object)
    assert 3 in workers._pools and torch.get_num_threads() == 3 and set(cores) == {1}


def test_an_error_comes_out_and_the_threads_live_on(two_cores):
    def broken(own):
        raise ZeroDivisionError("in a task")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="in a task"):
            run_side_by_side([broken, broken, broken], object)
    ran = []
    run_side_by_side([ran.append] * 4, object)
    assert len(ran) == 4


@forked
def test_a_forked_process_makes_threads_of_its_own(two_cores):
    def work():
        ran = []
        run_side_by_side([ran.append] * 4, object)
        assert len(ran) == 4

    run_side_by_side([lambda own: None] * 4, object)
    wait_for_child(start_child(work))
