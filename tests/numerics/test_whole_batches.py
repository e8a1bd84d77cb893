"""Routers that assign a whole batch, and places of experts, at the ends of the number line."""

import itertools

import pytest
import torch

from moe_lab import METHODS, Routing, certify, route
from moe_lab.dispatch import assign_places, capacity_mlp, index_table
from moe_lab.inputs import make_router_options
from moe_lab.routers.capacity import expert_capacity

from .extremes import WIDEST, by_hand

SCALES = (1e-45, 1e-40, 1e-30, 1.0, 1e30, 1e38, WIDEST)
EVEN = ("balanced", "base", "balanced_causal")


def skewed_logits(scale, tokens=96, num_experts=8):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, num_experts, generator=draw) + torch.linspace(0, 2, num_experts)
    return (logits.double() * scale).clamp(-WIDEST, WIDEST).float()


@pytest.mark.parametrize("method", EVEN)
@pytest.mark.parametrize("scale", SCALES)
def test_even_loads_whatever_the_scale_of_the_logits(scale, method):
    """At 1e-45 there are but a few different logits, at 3e38 half of them are the largest: ties everywhere."""
    logits, top_k = skewed_logits(scale), METHODS[method].only_top_k or 2
    routing = route(logits, top_k, method)
    assert set(routing.load.tolist()) == {96 * top_k // 8}
    assert bool(routing.weights.isfinite().all())
    if method != "balanced_causal":
        certificate = certify(logits.double() / logits.abs().max(), routing)
        assert certificate.even and certificate.gap_share < 2e-3


def test_even_loads_of_float64_up_to_its_end():
    logits = (
        torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-1.7, 1.7) * 1e308
    )
    for method in EVEN:
        top_k = METHODS[method].only_top_k or 2
        assert set(route(logits, top_k, method).load.tolist()) == {64 * top_k // 8}


@pytest.mark.parametrize("temperature", [1e5, 1e8, 1e30, 3e38])
def test_a_hot_sinkhorn_plan_asks_no_prices(temperature):
    """It is even as it is. What rounding says of its columns is more than what tells the experts apart."""
    logits = skewed_logits(1.0)
    assert torch.equal(route(logits, 2, "sinkhorn", temperature=temperature).experts, route(logits, 2).experts)


def test_a_sinkhorn_of_scores_that_underflow_is_top_k():
    logits = skewed_logits(1.0) - 90
    found = route(logits, 2, "sinkhorn", score="sigmoid", objective="score")
    assert torch.equal(found.experts, route(logits, 2, bias=torch.zeros(8), score="sigmoid").experts)


def test_sinkhorn_up_to_where_differences_overflow():
    logits = skewed_logits(1e37)
    assert bool(route(logits, 1, "sinkhorn").weights.isfinite().all())
    apart = torch.tensor([[WIDEST, -WIDEST, 0.0]] * 3)
    with pytest.raises(ValueError, match=r"logits must have finite differences, the largest is 3\.0\d+e\+38"):
        route(apart, 1, "sinkhorn")
    for temperature in (1e39, 1e300):
        with pytest.raises(ValueError, match="temperature must be finite in float32, got"):
            route(logits, 1, "sinkhorn", temperature=temperature)
    for temperature in (1e-46, 5e-324, 1e-3):
        with pytest.raises(ValueError, match="temperature must leave the logits finite, got"):
            route(logits, 1, "sinkhorn", temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_among_equal_scores_an_expert_takes_the_earlier_token(score, dtype):
    """Saturated sigmoids are no ties while their logits differ."""
    for rows in ([[1.0, 1.0]] * 6, [[20.0 + t, -20.0 - t] for t in range(6)], [[3e38, -3e38], [0.0, 0.0]] * 3):
        logits = torch.tensor(rows).to(dtype)
        routing = route(logits, 1, "expert_choice", score=score)
        for expert in range(2):
            column = logits[:, expert].tolist()
            if score == "softmax":  # in float32, as the router has it
                column = logits.float().softmax(1)[:, expert].tolist()
            best = sorted(range(6), key=lambda token: (-column[token], token))[:3]
            assert sorted(best) == (routing.experts == expert).any(dim=1).nonzero().flatten().tolist()


def test_every_overflow_and_priority_at_extreme_logits():
    logits = torch.cat([skewed_logits(scale, 12) for scale in SCALES])
    for overflow, priority in itertools.product(("drop", "reroute"), ("order", "score", "random")):
        for factor in (5e-324, 1.0, 1e308):
            routing = route(logits, 2, "capacity_top_k", overflow=overflow, priority=priority, capacity_factor=factor)
            assert int(routing.load.max()) <= expert_capacity(factor, len(logits), 2, 8)
            assert bool(routing.weights.isfinite().all()) and not routing.weights[routing.experts < 0].any()
            if factor > 2:
                assert torch.equal(routing.experts, route(logits, 2).experts)


@pytest.mark.parametrize("method", ["group_limited", "grouped_experts", "noisy_top_k", "hash", "random"])
def test_the_other_methods_weigh_by_the_definition(method):
    logits = torch.cat([skewed_logits(scale, 4) for scale in SCALES])
    options = make_router_options(method, *logits.shape, 2)
    if method == "noisy_top_k":
        options["noise_std"] = 0.0
    found = route(logits, 2, method, score="sigmoid", renormalise=True, **options)
    for row, experts, weights in zip(logits.tolist(), found.experts.tolist(), found.weights.tolist(), strict=True):
        own = [row[expert] for expert in experts]
        order, want = by_hand(own, 2, score="sigmoid", renormalise=True)
        assert [weights[slot] for slot in order] == pytest.approx(want, rel=1e-5, abs=1e-17)


def test_noise_too_large_for_float32_is_refused():
    for noise_std in (1e39, 3e38, torch.full((4, 8), 3e38)):
        with pytest.raises(ValueError, match="noise_std must be small enough for finite logits"):
            route(torch.zeros(4, 8), 1, "noisy_top_k", noise_std=noise_std, generator=torch.Generator().manual_seed(0))


def test_capacities_from_almost_nothing_to_almost_everything(unchecked_shapes):
    assert expert_capacity(5e-324, tokens=2**62, top_k=8, num_experts=8) == 1
    assert expert_capacity(1e308, tokens=10**18, top_k=8, num_experts=8) == 8 * 10**18
    routing = Routing(torch.tensor([[0], [1]]), torch.ones(2, 1), 2)
    matrices = torch.ones(2, 6, 4), torch.ones(2, 4, 3)
    for capacity in (2**62, 2**63, 2**200):
        for use in (assign_places, index_table, lambda r, c: capacity_mlp(torch.ones(2, 4), r, *matrices, c)):
            with pytest.raises(
                ValueError, match=r"capacity must be at most 4611686018427387903 for 2 experts, got \d+"
            ):
                use(routing, capacity)
    assert assign_places(routing, 2**62 - 1).flatten().tolist() == [0, 2**62 - 1]
