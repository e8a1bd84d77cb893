"""Large results: their memory is used again once nobody holds it, and never before."""

import random
import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moe_lab import expert_mlp, flop_counter
from moe_lab.inputs import make_layer_inputs
from moe_lab.operators import pages
from moe_lab.operators.pages import PAGE_BYTES, SHELF, Shelf, empty_in_large_pages, memory_there_is

from .forked_child import forked, start_child, wait_for_child

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    """A new one, for tensors of any size."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 1)
    monkeypatch.setattr(pages, "SHELF", Shelf(2**30))
    return pages.SHELF


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


def test_what_nobody_holds_is_used_again_and_what_somebody_holds_is_not(shelf):
    first = floats(3, 5)
    place, view = first.data_ptr(), first[1:]
    assert floats(3, 5).data_ptr() != place
    del first
    assert floats(3, 5).data_ptr() != place, "a view still holds it"
    del view
    held = [floats(3, 5), floats(4, 4)]
    assert place in [tensor.data_ptr() for tensor in held], "in whatever shape"
    assert shelf.lent == 2 * PAGE_BYTES and not shelf.waiting


def test_other_sizes_stay_where_they_are(shelf):
    large, small = floats(2**20), floats(3)
    place = large.data_ptr()
    del large, small
    again = floats(2**20)
    assert again.data_ptr() == place and len(shelf.waiting) == 1


def test_only_so_much_waits_and_the_oldest_goes_first(shelf):
    shelf.most_waiting = 3 * PAGE_BYTES
    held = [floats(3) for _ in range(5)]
    places = [tensor.data_ptr() for tensor in held]
    while held:
        held.pop(0)
    assert [memory.data_ptr() for memory in shelf.waiting] == places[2:]
    shelf.most_waiting = 0
    floats(3)
    assert not shelf.waiting and shelf.lent == 0


def test_what_waits_and_what_is_lent_is_never_more_than_was_lent_at_once(shelf):
    draw, held, most = random.Random(0), [], 0
    for _ in range(400):
        if held and draw.random() < 0.5:
            held.pop(draw.randrange(len(held)))
        else:
            held.append(floats(draw.randrange(1, 4) * PAGE_BYTES // 4))
        lent = sum(4 * tensor.numel() for tensor in held)
        most = max(most, lent)
        assert shelf.lent == lent and shelf.lent + sum(map(len, shelf.waiting)) <= most
        assert len({tensor.data_ptr() for tensor in held}) == len(held)


def test_memory_that_is_not_there_was_not_lent(shelf, monkeypatch):
    def none(size):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(pages, "fresh_pages", none)
    with pytest.raises(RuntimeError, match="not enough memory"):
        floats(3)
    assert shelf.lent == 0


def test_a_containers_limit_counts_where_it_is_less(tmp_path, monkeypatch):
    machine, limit = memory_there_is(), tmp_path / "memory.max"
    monkeypatch.setattr(pages, "LIMITS", (str(tmp_path / "none"), str(limit)))
    for words, known in (("max\n", machine), ("2097152\n", 2097152), (str(2**63), machine)):
        limit.write_text(words)
        assert memory_there_is() == known


def test_under_somebodys_eyes_it_is_fresh_memory(shelf):
    for watcher in (flop_counter(), profile(activities=[ProfilerActivity.CPU])):
        with watcher:
            floats(3, 5)
    assert shelf.most_lent == 0


def test_threads_never_share_one(shelf):
    wrong, start = [], threading.Barrier(4)

    def work(number):
        start.wait()
        for _ in range(200):
            mine, other = floats(64).fill_(number), floats(64).fill_(-number)
            if not (bool((mine == number).all()) and bool((other == -number).all())):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    floats(3)
    assert not wrong and shelf.lent == 0 and 0 < len(shelf.waiting) <= 16, "each had two pairs"


@forked
def test_a_process_forked_at_a_bad_moment_does_not_wait_for_ever():
    with SHELF._lock:
        child = start_child(lambda: SHELF.lend(1))
    wait_for_child(child)


def test_a_step_is_right_in_memory_full_of_another_and_spoils_none(shelf, monkeypatch):
    """What comes back is filled with NaN; the gradients that the first step gave stay as they were."""
    take_back = shelf._take_back
    monkeypatch.setattr(shelf, "_take_back", lambda memory: take_back(memory.fill_(255)))
    inputs = make_layer_inputs(9, 4, 3, 6, 2, spread="half_empty", empty_slots=0.3)
    leaves = [leaf.requires_grad_() for leaf in (inputs.x, inputs.w_gate_up, inputs.w_down)]

    def step(backend):
        y = expert_mlp(inputs.x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend=backend)
        return [y, *torch.autograd.grad(y, leaves, inputs.dy)]

    want, first = step("loop"), step("grouped")
    for got in (first, step("grouped"), step("grouped"), first):
        for ours, exact in zip(got, want, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    assert shelf.waiting
