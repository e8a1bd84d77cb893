"""Measures of balance: values by hand, limits, and the noise floor met by chance itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab import Routing, device_load, measure_balance, route, tile_padding


def test_values_by_hand():
    balance = measure_balance(torch.tensor([6, 2, 0, 4]))  # mean 3, deviations 3 -1 -3 1
    assert balance.variance == 5.0
    assert balance.cv == pytest.approx(math.sqrt(5) / 3)
    assert balance.max_over_mean == 2.0 and balance.max_violation == 1.0
    want = -(1 / 2 * math.log(1 / 2) + 1 / 6 * math.log(1 / 6) + 1 / 3 * math.log(1 / 3)) / math.log(4)
    assert balance.entropy == pytest.approx(want)
    # half the mean absolute difference over all ordered pairs, relative to the mean
    pairs = [abs(a - b) for a in (6, 2, 0, 4) for b in (6, 2, 0, 4)]
    assert balance.gini == pytest.approx(sum(pairs) / 16 / (2 * 3))
    assert (balance.dead, balance.dropped_fraction, balance.unserved_fraction) == (1, 0.0, 0.0)
    assert balance.noise_floor_cv == pytest.approx(math.sqrt((4 - 1) / 12))


def test_even_and_collapsed_are_the_limits():
    even = measure_balance(torch.full((8,), 5))
    assert (even.variance, even.cv, even.gini, even.max_violation, even.dead) == (0.0, 0.0, 0.0, 0.0, 0)
    assert even.entropy == pytest.approx(1.0)
    collapsed = measure_balance(torch.tensor([40] + [0] * 7))
    assert collapsed.entropy == 0.0 and collapsed.dead == 7
    assert collapsed.max_over_mean == 8.0 and collapsed.gini == pytest.approx(7 / 8)


def test_nothing_routed_is_defined():
    balance = measure_balance(route(torch.empty(0, 3), 2))
    assert (balance.cv, balance.max_over_mean, balance.max_violation, balance.gini) == (0.0, 0.0, 0.0, 0.0)
    assert (balance.dead, balance.noise_floor_cv, balance.dropped_fraction) == (3, 0.0, 0.0)


def test_one_expert_is_even():
    assert measure_balance(torch.tensor([7])).entropy == 1.0
    assert measure_balance(torch.tensor([7])).noise_floor_cv == 0.0


def test_dropped_and_unserved_are_two_things():
    routing = Routing(torch.tensor([[0, 1], [0, -1], [-1, -1]]), torch.tensor([[1.0, 1], [1, 0], [0, 0]]), 2)
    balance = measure_balance(routing)
    assert balance.dropped_fraction == pytest.approx(3 / 6)
    assert balance.unserved_fraction == pytest.approx(1 / 3)


def test_expert_choice_drops_nothing_and_serves_unequally():
    draw = torch.Generator().manual_seed(0)
    confidence = 4 * torch.rand(256, 1, generator=draw)  # no expert takes a token that prefers nobody
    logits = torch.randn(256, 8, generator=draw) * confidence
    balance = measure_balance(route(logits, 2, "expert_choice"))
    assert balance.dropped_fraction == 0.0
    assert balance.variance == 0.0
    assert balance.unserved_fraction > 0.0


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(2048, 64, 8), (512, 8, 2), (4096, 16, 1)])
def test_chance_lands_on_the_noise_floor(tokens, num_experts, top_k):
    draw = torch.Generator().manual_seed(0)
    drawn = [
        measure_balance(route(torch.zeros(tokens, num_experts), top_k, "random", generator=draw)) for _ in range(60)
    ]
    rms = math.sqrt(sum(balance.cv**2 for balance in drawn) / len(drawn))
    assert rms == pytest.approx(drawn[0].noise_floor_cv, rel=0.1)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
@settings(deadline=None)
def test_measures_keep_their_ranges_and_ignore_order_and_scale(load):
    balance = measure_balance(torch.tensor(load))
    assert 0 <= balance.entropy <= 1 + 1e-12
    assert -1e-12 <= balance.gini <= 1
    shuffled = measure_balance(torch.tensor(sorted(load)))
    scaled = measure_balance(torch.tensor(load) * 7)
    for name in ("cv", "entropy", "gini", "max_over_mean", "dead"):
        assert getattr(shuffled, name) == pytest.approx(getattr(balance, name))
        assert getattr(scaled, name) == pytest.approx(getattr(balance, name))


@pytest.mark.parametrize(
    ("load", "error", "says"),
    [
        (torch.tensor([1.0]), TypeError, "a tensor of whole numbers, got torch.float32"),
        ([1, 2], TypeError, "a tensor of whole numbers, got list"),
        (torch.tensor([1, -2]), ValueError, r"load must not be negative, got \[1, -2\]"),
        (torch.zeros(2, 2).long(), ValueError, r"load must be \(num_experts,\) .* got \(2, 2\)"),
        (torch.zeros(0).long(), ValueError, r"at least one expert, got \(0,\)"),
    ],
)
def test_refuses(load, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        measure_balance(load)


def test_a_routing_knows_its_own_numbers():
    with pytest.raises(ValueError, match="top_k and tokens go with a bare load"):
        measure_balance(route(torch.zeros(4, 3), 1), top_k=2)
    with pytest.raises(ValueError, match=r"top_k must be in 1..3, got 4"):
        measure_balance(torch.tensor([1, 1, 1]), top_k=4)
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        measure_balance(torch.tensor([1, 1, 1]), top_k=2, tokens=1)
    half = measure_balance(torch.tensor([1, 1, 2]), top_k=2, tokens=4)
    assert half.dropped_fraction == 0.5 and half.noise_floor_cv == pytest.approx(math.sqrt((3 / 2 - 1) / 4))


def test_the_floor_of_expert_choice_follows_top_k_and_not_its_slots():
    routing = route(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), 2, "expert_choice")
    assert routing.slots != 2
    assert measure_balance(routing).noise_floor_cv == pytest.approx(math.sqrt((8 / 2 - 1) / 64))


def test_tile_padding_by_counting_tiles():
    load = torch.tensor([0, 1, 128, 129, 300])
    tiles = sum(-(-rows // 128) for rows in load.tolist())
    assert tile_padding(load) == pytest.approx(tiles * 128 / 558 - 1)
    assert tile_padding(torch.tensor([256, 128])) == 0.0 and tile_padding(torch.zeros(3, dtype=torch.int64)) == 0.0


def test_devices_average_out_what_their_experts_differ_by():
    load = torch.tensor([9, 1, 5, 5, 2, 8])
    assert device_load(load, 3).tolist() == [10, 10, 10]
    assert device_load(load, 6).tolist() == load.tolist()


def test_loads_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"num_devices must divide num_experts=3, got 2"):
        device_load(torch.tensor([1, 2, 3]), 2)
    with pytest.raises(ValueError, match=r"tile must be at least 1, got 0"):
        tile_padding(torch.tensor([1]), tile=0)
    with pytest.raises(TypeError, match=r"load must be a tensor of whole numbers"):
        tile_padding([1, 2])
