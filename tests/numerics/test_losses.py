"""Losses and balancers where routers are certain, logits endless, tokens none, and logarithms those of 0."""

import itertools
import math

import pytest
import torch

from moe_lab import BiasBalancer, MoE, PriceBalancer, Routing, losses, measure_balance, route
from moe_lab.balancers import BALANCERS

from .extremes import SCORES, WIDEST, make_logits

ROUTED = {  # losses of logits and of what top_k makes of them
    "switch_aux": lambda x: losses.switch_aux(x, route(x, 2)),
    "switch_aux, sigmoid": lambda x: losses.switch_aux(x, route(x, 2), score="sigmoid"),
    "gshard": lambda x: losses.gshard(x, route(x, 2)),
    "sequence_aux": lambda x: losses.sequence_aux(x, route(x, 2), 1),
    "importance": lambda x: losses.importance(route(x, 2)),
    "importance, sigmoid": lambda x: losses.importance(route(x, 2, score="sigmoid")),
    "smooth_load": lambda x: losses.smooth_load(x, x, 1.0, 2),
    "z_loss": losses.z_loss,
}


def with_gradient(loss, logits):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


@pytest.mark.parametrize("name", ROUTED)
def test_values_and_gradients_at_every_extreme(name):
    """A token at a time, and all of them together: float32 as float64, unless a square leaves float32."""
    logits = make_logits()
    for rows in (*logits.split(1), logits):
        value, gradient = with_gradient(ROUTED[name], rows)
        want, want_gradient = with_gradient(ROUTED[name], rows.double())
        if name == "z_loss" and float(rows.amax(dim=1).abs().max()) > 1.8e19:
            assert want > 3.2e38 and value == math.inf
            continue
        if name == "importance, sigmoid" and float(rows.max()) < -88:
            assert value == 0.0 and not gradient.any()  # weights of exactly 0
            continue
        assert value.item() == pytest.approx(want.item(), rel=1e-4, abs=1e-6)
        assert bool(gradient.isfinite().all())
        torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("certainty", [1e4, 1e18, 1e38])
def test_a_certain_router_by_closed_forms(certainty, collapsed):
    """One expert a token: losses are 1 and 0. One for all: num_experts and num_experts - 1. No gradient is left."""
    logits = torch.zeros(8, 8)
    logits[torch.arange(8), 0 if collapsed else torch.arange(8)] = certainty
    routing = route(logits, 1)
    assert torch.equal(routing.weights, torch.ones(8, 1))
    want = {"switch_aux": (8.0, 1.0), "gshard": (8.0, 1.0), "importance": (7.0, 0.0), "smooth_load": (7.0, 0.0)}
    for name, loss in {
        "switch_aux": lambda x: losses.switch_aux(x, route(x, 1)),
        "gshard": lambda x: losses.gshard(x, route(x, 1)),
        "importance": lambda x: losses.importance(route(x, 1)),
        "smooth_load": lambda x: losses.smooth_load(x, x, 1.0, 1),
    }.items():
        value, gradient = with_gradient(loss, logits)
        assert value.item() == pytest.approx(want[name][not collapsed], abs=1e-6)
        assert not gradient.any()
    value, gradient = with_gradient(losses.z_loss, logits)
    assert value.item() == (pytest.approx(certainty**2) if certainty < 1.8e19 else math.inf)
    assert gradient.sum(1).tolist() == pytest.approx([certainty / 4] * 8)
    balance = measure_balance(routing)
    assert balance.entropy == pytest.approx(0.0 if collapsed else 1.0) and balance.dead == (7 if collapsed else 0)


def test_logarithms_of_nothing():
    for load in ([0, 0, 0], [5, 0, 0], [1], [0]):
        balance = measure_balance(torch.tensor(load))
        assert all(math.isfinite(value) for value in vars(balance).values())
    assert measure_balance(torch.tensor([5, 0, 0])).entropy == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ROUTED)
def test_no_tokens_have_no_loss_and_no_gradient(name, dtype):
    value, gradient = with_gradient(ROUTED[name], torch.zeros(0, 8, dtype=dtype))
    assert value.item() == 0.0 and gradient.shape == (0, 8)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("score", SCORES)
def test_weights_that_underflow_have_no_importance(score):
    """All weights 0: no mean to compare a variance with. Denormal ones are weights like any other."""
    logits = torch.full((4, 8), -200.0)
    value, gradient = with_gradient(lambda x: losses.importance(route(x, 2, score=score)), logits)
    assert value.item() == (0.0 if score == "sigmoid" else pytest.approx(3.0)) and bool(gradient.isfinite().all())
    small = Routing(torch.tensor([[0], [1]]), torch.tensor([[1e-40], [3e-40]]), 2)
    assert losses.importance(small).item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("power", [16, 24, 64])
@pytest.mark.parametrize("name", [name for name in ROUTED if name != "z_loss"])
def test_a_scaled_loss_has_the_gradient_scaled_and_the_same_digits(name, power):
    """A power of two moves the exponent alone. A float16 gradient that overflows is no number, as a scaler expects."""
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    _, gradient = with_gradient(ROUTED[name], logits)
    _, scaled = with_gradient(lambda x: ROUTED[name](x) * 2.0**power, logits)
    assert torch.equal(scaled, gradient * 2.0**power)
    _, narrow = with_gradient(lambda x: ROUTED[name](x) * 2.0**power, logits.half())
    _, wide = with_gradient(lambda x: ROUTED[name](x) * 2.0**power, logits.half().float())
    assert not narrow[wide.abs() > 65520].isfinite().any()


def test_noise_of_almost_nothing_is_refused_where_it_would_be_nothing():
    """0 / 0 is NaN where two logits are equal; the least normal number tells a tie from a difference."""
    logits = torch.zeros(5, 4)
    for tiny in (5e-324, 1e-46, 1e-45):
        with pytest.raises(
            ValueError, match=r"noise_std must be at least 1\.18e-38 with logits in torch\.float32, got"
        ):
            losses.smooth_load(logits, logits, tiny, 1)
    with pytest.raises(ValueError, match=r"with a minimum of 9\.99\d+e-41, and 1\.18e-38 is the least"):
        losses.smooth_load(logits, logits, torch.full((5, 4), 1e-40), 1)
    for least in (1.2e-38, 3.4e38, 1e300):
        assert losses.smooth_load(logits, logits, least, 1).item() == pytest.approx(0.0, abs=1e-12)
    assert losses.smooth_load(logits.double(), logits.double(), 1e-300, 1).item() == 0.0


# --- balancers


@pytest.mark.parametrize("rule", ["midpoint", "quantile", "bip"])
def test_prices_of_scores_from_denormal_to_the_end_of_float32(rule):
    draw = torch.Generator().manual_seed(1)
    scores = torch.rand(64, 8, generator=draw) * 2 - 1
    for scale in (1e-45, 1e-40, 1.0, 1e37):
        balancer = PriceBalancer(8, rule=rule)
        for _ in range(3):
            balancer.update(scores * scale, 2)
        assert bool(balancer.bias.isfinite().all())
    balancer = PriceBalancer(8, rule="midpoint")
    balancer.update(scores, 2)
    before = balancer.bias.clone()
    with pytest.raises(ValueError, match=r"scores must be small enough for finite prices, the largest is 3\.\d+e\+38"):
        balancer.update(scores * 3.4e38, 2)
    assert torch.equal(balancer.bias, before) and int(balancer.updates) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", BALANCERS)
def test_a_bias_that_is_not_finite_is_refused_by_the_router_and_no_score_makes_one(name, value):
    layer = MoE(4, 4, 3, 1, score="sigmoid", balancer=BALANCERS[name](3, 0.5))
    layer(torch.ones(2, 4))
    layer.logits = torch.full_like(layer.logits, value)
    if name != "sign":  # that one learns from whole numbers
        with pytest.raises(ValueError, match="scores must be finite, found NaN or infinity"):
            layer.balancer.update(layer.logits.detach(), 1)
    assert bool(layer.balancer.bias.isfinite().all())
    layer.balancer.bias[1] = value
    with pytest.raises(ValueError, match="bias must be finite, got"):
        layer(torch.ones(2, 4))


def test_a_rate_that_runs_away_ends_at_the_router():
    balancer = BiasBalancer(2, rate=1e38)
    for _ in range(5):
        balancer.update(torch.tensor([3, 1]))
    assert balancer.bias.tolist() == [-math.inf, math.inf]
    with pytest.raises(ValueError, match=r"bias must be finite, got \[-inf, inf\]"):
        route(torch.zeros(2, 2), 1, bias=balancer.bias)


def test_every_loss_of_every_score_is_finite_for_what_a_router_can_give():
    """The widest logits of all, and every score: what a layer adds to its loss is a number, or z_loss's infinity."""
    logits = torch.tensor([[WIDEST, -WIDEST, 0.0, 1.0]] * 3)
    for score, top_k in itertools.product(SCORES, (1, 4)):
        routing = route(logits, top_k, score=score)
        for loss in (losses.switch_aux(logits, routing), losses.gshard(logits, routing), losses.importance(routing)):
            assert math.isfinite(loss.item())
    assert losses.z_loss(logits).item() == math.inf
