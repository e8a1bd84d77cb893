"""Capacity bins in Python: its numbers are the router's, its logits follow Zipf, and it refuses what it cannot show."""

import itertools
import math

import pytest
import torch
import traitlets

from moe_lab import Routing, measure_balance, route
from moe_lab.routers.capacity import OVERFLOWS, PRIORITIES
from moe_lab.widgets import CapacityBins
from moe_lab.widgets.capacity_bins import draw_logits, draw_order


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("priority", ["order", "score"])
def test_routing_is_the_routers(overflow, priority):
    widget = CapacityBins(tokens=40, top_k=3, capacity_factor=0.9, skew=1.5, overflow=overflow, priority=priority)
    options = dict(capacity_factor=0.9, overflow=overflow, priority=priority)
    want = route(widget.logits, 3, "capacity_top_k", **options)
    assert isinstance(widget.routing, Routing)
    assert torch.equal(widget.routing.experts, want.experts) and torch.equal(widget.routing.weights, want.weights)


def test_a_drawn_order_serves_those_tokens_first():
    widget = CapacityBins(tokens=32, num_experts=4, top_k=1, capacity_factor=0.5, priority="random")
    experts, first = widget.routing.experts.flatten().tolist(), widget.logits.argmax(dim=1).tolist()
    room = [4] * 4  # 0.5 * 32 / 4 places each
    for token in draw_order(0, 32):
        assert experts[token] == (first[token] if room[first[token]] else -1)
        room[first[token]] -= room[first[token]] > 0
    others = [CapacityBins(tokens=32, top_k=1, priority="random", seed=seed).routing.experts for seed in (0, 1)]
    assert not torch.equal(*others)


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("priority", PRIORITIES)
def test_counts_add_up(overflow, priority):
    for seed, factor in itertools.product(range(5), (0.5, 1.0, 1.25, 3.0)):
        widget = CapacityBins(seed=seed, capacity_factor=factor, overflow=overflow, priority=priority)
        found, routing = widget.count(), widget.routing
        balance = measure_balance(routing)
        assert found["asked"] == 48 and found["places"] == 6 * found["capacity"]
        assert found["dropped"] / 48 == pytest.approx(balance.dropped_fraction)
        assert found["empty"] == sum(found["capacity"] - load for load in routing.load.tolist())
        assert found["asked"] - found["dropped"] == found["places"] - found["empty"]
        assert found["early"] + found["late"] <= found["dropped"]
        assert (found["rerouted"] == 0) if overflow == "drop" else (found["dropped"] <= 24)


def test_early_and_late_are_thirds_of_the_tokens():
    widget = CapacityBins(tokens=11, num_experts=3, top_k=1, capacity_factor=0.5, seed=4)  # a third is 3 of 11
    lost = (widget.routing.experts < 0).flatten().tolist()
    assert (widget.count()["early"], widget.count()["late"]) == (sum(lost[:3]), sum(lost[8:]))
    assert sum(lost[:3]) != sum(lost[8:])


def test_first_come_drops_the_late_and_a_drawn_order_drops_alike():
    late = {}
    for priority in ("order", "random"):
        found = [CapacityBins(tokens=63, top_k=1, priority=priority, seed=seed).count() for seed in range(40)]
        late[priority] = sum(one["late"] for one in found) / sum(one["dropped"] for one in found)
    assert late["order"] > 0.5
    assert late["random"] == pytest.approx(1 / 3, abs=0.05)


def test_first_choices_follow_zipf():
    for skew in (0.0, 1.0, 2.0):
        rows = [row for seed in range(60) for row in draw_logits(seed, 64, 5, skew)]
        shares = torch.tensor(rows).argmax(dim=1).bincount(minlength=5) / len(rows)
        popularity = torch.tensor([1 / rank**skew for rank in range(1, 6)])
        torch.testing.assert_close(shares, popularity / popularity.sum(), atol=0.03, rtol=0)


def test_skew_moves_the_logits_and_not_the_noise():
    flat, skewed = (torch.tensor(draw_logits(7, 8, 4, skew), dtype=torch.float64) for skew in (0.0, 1.0))
    shift = torch.tensor([math.log(rank) for rank in range(1, 5)], dtype=torch.float64)
    torch.testing.assert_close(flat - skewed, shift.expand(8, 4), atol=1 / 4096, rtol=0)


def test_summary_repr_and_plain_text():
    widget = CapacityBins(overflow="reroute", capacity_factor=1)
    assert widget.summary() == (
        "Capacity factor 1.00, 8 places an expert: 16 of 48 assignments rerouted and 0 dropped, 0 of 48 places empty."
    )
    assert repr(widget) == f"CapacityBins: {widget.summary()}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)
    alone = CapacityBins(tokens=8, num_experts=16, top_k=1, capacity_factor=0.5, skew=2).summary()
    assert alone.startswith("Capacity factor 0.50, 1 place an expert: ") and "lost" in alone


def test_fewer_experts_lower_top_k():
    widget = CapacityBins(top_k=4)
    widget.num_experts = 3
    assert widget.top_k == 3 and widget.routing.experts.shape == (24, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": 7}, ValueError, r"tokens must be in 8\.\.64, got 7"),
        ({"tokens": 24.0}, TypeError, r"tokens must be a whole number, in 8\.\.64; got 24\.0"),
        ({"num_experts": 17}, ValueError, r"num_experts must be in 2\.\.16, got 17"),
        ({"top_k": 5}, ValueError, r"top_k must be in 1\.\.4, got 5"),
        ({"num_experts": 2, "top_k": 3}, ValueError, r"top_k must be in 1\.\.2, got 3"),
        ({"capacity_factor": 0.4}, ValueError, r"capacity_factor must lie in 0\.5\.\.3, got 0\.4"),
        ({"capacity_factor": math.nan}, ValueError, r"capacity_factor must be a finite number, got nan"),
        ({"capacity_factor": "1"}, TypeError, r"capacity_factor must be a finite number, got '1'"),
        ({"skew": -0.1}, ValueError, r"skew must lie in 0\.\.2, got -0\.1"),
        ({"overflow": "wait"}, ValueError, r"overflow must be one of drop, reroute; got 'wait'"),
        ({"priority": "fifo"}, ValueError, r"priority must be one of order, score, random; got 'fifo'"),
        ({"seed": 2**31}, ValueError, r"seed must be in 0\.\.2147483647, got 2147483648"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        CapacityBins(**options)


def test_bad_assignments_are_refused():
    widget = CapacityBins(num_experts=3)
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.3, got 4"):
        widget.top_k = 4
    for name, value in (("tokens", 65), ("capacity_factor", 3.1), ("skew", 2.5), ("overflow", "wait")):
        with pytest.raises(traitlets.TraitError, match=f"'{name}' trait"):
            setattr(widget, name, value)
    assert (widget.top_k, widget.tokens, widget.overflow) == (2, 24, "drop")
