"""Timing layers: inputs, floor, peers that fail, memory. No claim on time itself."""

import dataclasses

import pytest
import torch

from moe_lab.bench import layers
from moe_lab.bench.floor import Floor
from moe_lab.bench.inputs import cache_bytes, copies_for_cold_caches, draw_inputs, draw_routing, take_turns
from moe_lab.bench.layers import FLOOR, WIDE_FLOOR, Layer, time_layer
from moe_lab.bench.peers import PEERS
from moe_lab.profiling.memory import measure_peak_bytes
from moe_lab.roofline import LayerShape, popularity

SMALL = LayerShape(16, 8, 4, 2)


@pytest.mark.parametrize(("num_experts", "top_k", "skew"), [(8, 2, 2.5), (64, 8, 7.0), (64, 8, 1.0), (5, 5, 1.0)])
def test_experts_are_drawn_with_their_chances(num_experts, top_k, skew):
    tokens = 20000
    routing = draw_routing(tokens, num_experts, top_k, max_over_mean=skew)
    assert all(len(set(row)) == top_k for row in routing.experts[:500].tolist())
    found = (routing.load / tokens).sort(descending=True).values.double()
    wanted = torch.tensor(popularity(num_experts, top_k, skew), dtype=torch.float64)
    assert float((found - wanted).abs().max()) < 5 * (0.25 / tokens) ** 0.5  # five sigma
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(tokens))


def test_inputs_are_of_order_one_and_come_from_their_seed():
    inputs = draw_inputs(LayerShape(64, 32, 4, 2), 256, dtype=torch.float32, seed=3)
    hidden = inputs.x @ inputs.w_gate_up[0].T
    assert 0.9 < float(hidden.std()) < 1.1 and inputs.routing.num_experts == 4
    again = draw_inputs(LayerShape(64, 32, 4, 2), 256, dtype=torch.float32, seed=3)
    other = draw_inputs(LayerShape(64, 32, 4, 2), 256, dtype=torch.float32, seed=4)
    assert torch.equal(inputs.w_down, again.w_down) and not torch.equal(inputs.w_down, other.w_down)


def test_small_inputs_get_copies_and_large_ones_do_not():
    assert copies_for_cold_caches(10 * cache_bytes()) == 1
    assert copies_for_cold_caches(cache_bytes() * 3 // 2) == 2
    assert copies_for_cold_caches(1) == 4
    calls = []
    turns = take_turns([lambda: calls.append("a"), lambda: calls.append("b"), lambda: calls.append("c")])
    for _ in range(4):
        turns()
    assert calls == ["a", "b", "c", "a"]


def test_the_floor_is_the_six_products():
    inputs = draw_inputs(SMALL, 20, dtype=torch.float32)
    floor = Floor(inputs)
    assert floor.error() < 1e-6
    order = inputs.routing.experts.flatten().argsort(stable=True)
    expert = inputs.routing.experts.flatten()[order]
    for row in range(len(order)):
        x = inputs.x[order[row] // 2]
        torch.testing.assert_close(floor.hidden[row], inputs.w_gate_up[expert[row]] @ x)
    floor.hidden.fill_(float("nan"))
    assert floor.error() < 1e-6, "it multiplies each time it is asked"
    wide = Floor(draw_inputs(SMALL, 20, dtype=torch.bfloat16), torch.float32)
    assert wide.w_down.dtype == torch.float32 and wide.error() < 1e-6


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_layer_is_verified_and_timed_in_every_implementation(direction):
    names = ("dense, equal FLOPs", "moe_lab grouped", "moe_lab loop", "torch grouped_mm", "Liger")
    layer = Layer(SMALL, 24, torch.bfloat16, direction, floor=True, peers=names)
    rows = {row.implementation: row for row in time_layer(layer, 0.1)}
    assert set(rows) == {*names, FLOOR, WIDE_FLOOR}
    liger = rows.pop("Liger")
    assert liger.ms_p50 is None and liger.why_not and not liger.verified
    for row in rows.values():
        assert row.verified and row.ms_p50 > 0 and row.repeats >= 1 and row.direction == direction
        assert row.flops == 6 * 48 * 16 * 8 * (1 if direction == "forward" else 3) and row.bytes > 0
    assert rows["moe_lab grouped"].peak_bytes > 0 and rows["torch grouped_mm"].call and rows["moe_lab grouped"].version


def test_a_rival_that_is_wrong_or_raises_is_a_row_and_our_own_is_an_error(monkeypatch):
    good = PEERS["torch grouped_mm"]

    def wrong(inputs):
        prepared = good.prepare(inputs)
        return dataclasses.replace(prepared, forward=lambda: prepared.forward() * 1.5)

    def broken(inputs):
        raise RuntimeError("no kernel image\nmore lines")

    layer = Layer(SMALL, 24, torch.float32, "forward", peers=("torch grouped_mm",))
    for prepare, says in ((wrong, "wrong: off by 0.5, allowed 1e-05"), (broken, "RuntimeError: no kernel image")):
        monkeypatch.setitem(layers.PEERS, good.name, dataclasses.replace(good, prepare=prepare))
        (row,) = time_layer(layer, 0.1)
        assert row.why_not == says and row.ms_p50 is None
        monkeypatch.setitem(layers.PEERS, good.name, dataclasses.replace(good, prepare=prepare, ours=True))
        with pytest.raises((ValueError, RuntimeError), match=r"is off by|no kernel image"):
            time_layer(layer, 0.1)


def test_the_most_memory_that_is_held_at_once():
    def call():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        return torch.empty(500), second

    assert measure_peak_bytes(call) == 4 * 3000
    assert measure_peak_bytes(lambda: None) == 0


def test_grouped_holds_less_than_what_grouped_mm_needs():
    """Not a timing: bytes that PyTorch's allocator gave out, the same each time."""
    names = ("moe_lab grouped", "torch grouped_mm")
    for direction in ("forward", "forward+backward"):
        layer = Layer(LayerShape(64, 32, 8, 4), 256, torch.float32, direction, peers=names)
        ours, theirs = time_layer(layer, 0.1)
        assert ours.peak_bytes < theirs.peak_bytes
