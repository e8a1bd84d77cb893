"""Balancers: each rule by a plain reference, what they reach, and the law of fixed prices on fresh batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab import BiasBalancer, MoE, PriceBalancer, measure_balance, route
from moe_lab.balancers import BALANCERS, Balancer
from moe_lab.inputs import make_router_logits
from moe_lab.routers import bias_scale
from moe_lab.routers.prices import price_step


def test_the_bias_compares_with_the_mean():
    balancer = BiasBalancer(4, rate=1.0)
    balancer.update(torch.tensor([9, 1, 1, 1]))  # the median is 1, the mean 3
    assert balancer.bias.tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_bias_balances_a_skewed_router():
    draw = torch.Generator().manual_seed(0)
    skew, balancer = torch.linspace(0, 3, 8), BiasBalancer(8, rate=0.005)
    unevenness = []
    for _ in range(300):
        logits = torch.randn(1024, 8, generator=draw) + skew
        routing = route(logits, 2, "sigmoid_bias", bias=balancer.bias)
        unevenness.append(measure_balance(routing).max_violation)
        balancer.update(routing.load)
    assert unevenness[0] > 1.0
    assert max(unevenness[-20:]) < 0.3


def test_bias_balancer_refuses(unchecked_shapes):
    with pytest.raises(ValueError, match="rate must be a finite number above 0, got 0"):
        BiasBalancer(3, rate=0)
    with pytest.raises(ValueError, match=r"num_experts must be in 1..1048576, got 0"):
        BiasBalancer(0)
    with pytest.raises(ValueError, match=r"load must be \(3,\), got \(2,\)"):
        BiasBalancer(3).update(torch.tensor([1, 2]))


def fresh_cv(bias, tokens, top_k, seeds):
    """Mean CV of the loads of batches that the bias has not seen."""
    loads = [
        torch.bincount((make_router_logits(tokens, len(bias), seed=s) + bias).topk(top_k).indices.flatten())
        for s in seeds
    ]
    return sum(measure_balance(load, top_k=top_k).cv for load in loads) / len(loads)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 8), (64, 1)])
@pytest.mark.parametrize("batches", [1, 8])
def test_fixed_prices_follow_the_law_of_sampling(num_experts, top_k, batches):
    """CV = sqrt((E / k - 1) (1 / T + 1 / (n T))): the fresh batch samples, and so did those that made the prices."""
    tokens, found = 4096, []
    for trial in range(6):  # one set of prices is one draw from a wide distribution
        bias = torch.zeros(num_experts)
        for number in range(batches):
            balancer = PriceBalancer(num_experts)
            balancer.update(make_router_logits(tokens, num_experts, seed=trial * batches + number), top_k)
            bias += balancer.bias / batches
        found.append(fresh_cv(bias, tokens, top_k, range(100 + trial, 112, 3)))
    law = math.sqrt((num_experts / top_k - 1) * (1 / tokens + 1 / (batches * tokens)))
    assert sum(found) / len(found) == pytest.approx(law, rel=0.25)


def test_an_average_of_updates_follows_the_law_too():
    balancer = PriceBalancer(64, rate=1e-3)
    for seed in range(16):
        balancer.update(make_router_logits(4096, 64, seed=seed), 8)
    assert int(balancer.updates) == 16
    law = math.sqrt(7 * (1 / 4096 + 1 / (16 * 4096)))
    assert fresh_cv(balancer.bias, 4096, 8, range(100, 112)) == pytest.approx(law, rel=0.25)


@pytest.mark.parametrize("rule", ["quantile", "bip"])
def test_the_rivals_make_one_published_step(rule):
    scores, balancer = make_router_logits(300, 8).sigmoid(), PriceBalancer(8, rule=rule)
    prices = torch.zeros(8)
    for _ in range(3):
        balancer.update(scores, 2)
        prices = price_step(scores, prices, 2, rule)
        torch.testing.assert_close(balancer.bias, -prices)
    assert (rule == "bip") == bool((balancer.bias <= 0).all())


def test_a_clamp_robs_the_rich_and_does_not_help_the_poor():
    scores = (make_router_logits(4096, 64) * 1.0).softmax(dim=1)
    least = {}
    for rule in ("quantile", "bip"):
        balancer = PriceBalancer(64, rule=rule)
        for _ in range(8):
            balancer.update(scores, 8)
        load = torch.bincount((scores + balancer.bias).topk(8).indices.flatten(), minlength=64)
        least[rule] = int(load.min()) / 512
    assert least["bip"] < 0.5 < least["quantile"]


@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 99), st.sampled_from(sorted(BALANCERS)))
@settings(max_examples=60, deadline=None)
def test_every_balancer_learns_from_what_a_layer_keeps(num_experts, tokens, seed, name):
    layer = MoE(6, 4, num_experts, 1, balancer=BALANCERS[name](num_experts, 0.1), score="sigmoid")
    with pytest.raises(ValueError, match="needs a call of the layer"):
        layer.update_balancer()
    layer(torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed)))
    layer.update_balancer()
    assert bool(layer.balancer.bias.isfinite().all()) and not layer.balancer.bias.requires_grad
    layer(torch.randn(tokens, 6))


def test_a_layer_learns_on_the_scale_that_its_bias_is_added_to():
    seen = []

    class Listener(Balancer):
        def learn(self, routing, scores, group=None):
            seen.append((routing, scores))

    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    for options, transform in [
        ({"score": "sigmoid"}, torch.sigmoid),
        ({}, lambda logits: logits.softmax(dim=1)),
        ({"score": "softmax_after_top_k"}, lambda logits: logits),
        ({"method": "balanced"}, lambda logits: logits),
        ({"method": "balanced", "objective": "score"}, lambda logits: logits.softmax(dim=1)),
    ]:
        layer = MoE(6, 4, 5, 2, balancer=Listener(5), **options)
        layer(x)
        layer.update_balancer()
        routing, scores = seen.pop()
        assert routing is layer.routing
        torch.testing.assert_close(scores, transform(layer.logits.detach()))


def test_bias_scales():
    assert bias_scale("sigmoid_bias", {}) == "sigmoid"
    assert bias_scale("base", {"score": "sigmoid"}) == "logits"
    assert bias_scale("sinkhorn", {"objective": "score", "score": "sigmoid"}) == "sigmoid"


def test_training_exactly_and_running_by_prices():
    """What the whole construction is for: balanced in training, each token alone afterwards, nearly as even."""
    torch.manual_seed(0)
    layer = MoE(
        16,
        8,
        8,
        2,
        method="balanced",
        eval_method="top_k",
        balancer=PriceBalancer(8),
        score="sigmoid",
        objective="score",
    )
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(1)) + 0.7
    for _ in range(6):
        layer(x)
        assert measure_balance(layer.routing).variance == 0.0
        layer.update_balancer()
    layer.eval()
    fresh = torch.randn(4096, 16, generator=torch.Generator().manual_seed(2)) + 0.7
    layer(fresh)
    together, balance = layer.routing, measure_balance(layer.routing)
    assert balance.cv < 2.5 * balance.noise_floor_cv
    layer(fresh[7:8])
    assert torch.equal(layer.routing.experts, together.experts[7:8])
    unpriced = route(layer.logits.new_tensor((fresh @ layer.router.detach().T).tolist()), 2, score="sigmoid")
    assert measure_balance(unpriced).cv > 2 * balance.cv
    assert layer.score == "sigmoid" and "eval_method='top_k'" in repr(layer)


def test_nothing_to_learn_changes_nothing():
    balancer = PriceBalancer(4)
    balancer.update(torch.zeros(0, 4), 2)
    balancer.update(torch.randn(5, 4), 4)
    assert balancer.bias.tolist() == [0.0] * 4 and int(balancer.updates) == 0
    MoE(4, 4, 2, 1).update_balancer()  # no balancer


def test_prices_stay_in_float32_and_in_the_state():
    balancer = PriceBalancer(4)
    balancer.update(make_router_logits(64, 4), 2)
    kept = balancer.bias.clone()
    assert torch.equal(balancer.bfloat16().bias, kept)
    again = PriceBalancer(4)
    again.load_state_dict(balancer.state_dict())
    assert torch.equal(again.bias, kept) and int(again.updates) == 1


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: PriceBalancer(4, rule="auction"),
            ValueError,
            r"rule must be one of midpoint, quantile, bip; got 'auction'",
        ),
        (lambda: PriceBalancer(4, rate=0), ValueError, r"rate must be a finite number above 0, got 0"),
        (lambda: PriceBalancer(4, rate=1.5), ValueError, r"rate must be at most 1, got 1.5"),
        (
            lambda: PriceBalancer(4).update(torch.zeros(3, 5), 1),
            ValueError,
            r"scores must be \(tokens, 4\), got \(3, 5\)",
        ),
        (lambda: PriceBalancer(4).update(torch.zeros(3, 4), 5), ValueError, r"top_k must be in 1..4, got 5"),
        (lambda: PriceBalancer(2).update(torch.tensor([[0.0, torch.nan]]), 1), ValueError, r"scores must be finite"),
        (
            lambda: MoE(4, 4, 4, 1, "balanced", eval_method="top_k", balancer=PriceBalancer(4)),
            ValueError,
            r"bias would be added to logits under 'balanced' and softmax under 'top_k'; give objective='score'",
        ),
        (lambda: MoE(4, 4, 4, 1, eval_method="best"), ValueError, r"method must be one of .*; got 'best'"),
        (lambda: MoE(4, 4, 4, 1, eval_method="gshard"), ValueError, r"top_k must be 2 for method 'gshard', got 1"),
    ],
)
def test_refuses(make, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        make()
