"""Large results: their memory is used again once nobody holds it, and never before."""

import threading
from collections import deque

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moe_lab import expert_mlp, flop_counter
from moe_lab.inputs import make_layer_inputs
from moe_lab.operators import pages
from moe_lab.operators.pages import empty_in_large_pages

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(pages, "_kept", deque())
    monkeypatch.setattr(pages, "LARGE_BYTES", 1)


def floats(*shape):
    return empty_in_large_pages(*shape, dtype=torch.float32, device=CPU)


def test_it_is_a_tensor_like_any_other():
    tensor = floats(3, 5)
    assert tensor.shape == (3, 5) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.equal(tensor.fill_(2.0).sum(), torch.tensor(30.0))
    assert empty_in_large_pages(7, dtype=torch.bfloat16, device=CPU).dtype == torch.bfloat16
    assert floats(0, 5).shape == (0, 5) and floats(2, 3, 4).requires_grad_().requires_grad
    with torch.inference_mode():
        assert floats(3, 5).is_inference()


def test_what_nobody_holds_is_used_again_and_what_somebody_holds_is_not():
    first = floats(3, 5)
    place, view = first.data_ptr(), first[1:]
    assert floats(3, 5).data_ptr() != place
    del first
    assert floats(3, 5).data_ptr() != place, "a view still holds it"
    del view
    held = [floats(3, 5), floats(4, 4)]
    assert place in [tensor.data_ptr() for tensor in held], "in whatever shape"


def test_other_sizes_stay_where_they_are():
    large, small = floats(2**20), floats(3)
    place = large.data_ptr()
    del large, small
    again = floats(2**20)
    assert again.data_ptr() == place and len(pages._kept) == 1


def test_only_so_much_is_kept_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(pages, "MOST_KEPT", 3 * pages.PAGE_BYTES)
    held = [floats(3) for _ in range(5)]
    places = [tensor.data_ptr() for tensor in held]
    while held:
        held.pop(0)
    assert [kept.data_ptr() for kept in pages._kept] == places[2:]
    monkeypatch.setattr(pages, "MOST_KEPT", 0)
    floats(3)
    assert not pages._kept


def test_under_somebodys_eyes_it_is_fresh_memory():
    for watcher in (flop_counter(), profile(activities=[ProfilerActivity.CPU])):
        with watcher:
            floats(3, 5)
    assert not pages._kept


def test_threads_never_share_one():
    wrong, start = [], threading.Barrier(4)

    def work(number):
        start.wait()
        for _ in range(200):
            mine = floats(64).fill_(number)
            other = floats(64).fill_(-number)
            if not (bool((mine == number).all()) and bool((other == -number).all())):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pages._kept


def test_a_step_is_right_in_memory_full_of_another_and_spoils_none(monkeypatch):
    """What comes back is filled with NaN; the gradients that the first step gave stay as they were."""

    def poison(memory):
        pages._kept.append(memory.fill_(255))

    monkeypatch.setattr(pages, "_give_back", poison)
    inputs = make_layer_inputs(9, 4, 3, 6, 2, spread="half_empty", empty_slots=0.3)
    leaves = [leaf.requires_grad_() for leaf in (inputs.x, inputs.w_gate_up, inputs.w_down)]

    def step(backend):
        y = expert_mlp(inputs.x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend=backend)
        return [y, *torch.autograd.grad(y, leaves, inputs.dy)]

    want, first = step("loop"), step("grouped")
    for got in (first, step("grouped"), step("grouped"), first):
        for ours, exact in zip(got, want, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    assert pages._kept
