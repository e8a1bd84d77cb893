"""MoE: the layer is its parts, holds its state, and refuses what it cannot be."""

import pytest
import torch
import torch.nn.functional as F

from moe_lab import METHODS, BiasBalancer, MoE, expert_mlp, route


def layer_of(**options):
    torch.manual_seed(0)
    return MoE(**{**dict(d_model=6, d_expert=5, num_experts=4, top_k=2), **options})


def test_layer_is_router_and_experts():
    layer, x = layer_of(renormalise=True), torch.randn(2, 3, 6)
    rows = x.view(-1, 6)
    routing = route(rows @ layer.router.T, 2, renormalise=True)
    want = expert_mlp(rows, routing, layer.w_gate_up, layer.w_down, backend="loop").view(2, 3, 6)
    torch.testing.assert_close(layer(x), want)
    assert torch.equal(layer.routing.experts, routing.experts)


def test_shared_experts_are_experts_that_everyone_visits():
    layer, x = layer_of(num_shared=2), torch.randn(7, 6)
    total = layer(x)
    hidden = F.linear(x, layer.shared_gate_up)
    shared = F.linear(F.silu(hidden[:, :10]) * hidden[:, 10:], layer.shared_down)
    routed = expert_mlp(x, layer.routing, layer.w_gate_up, layer.w_down)
    torch.testing.assert_close(total, routed + shared)


def test_all_parameters_learn():
    layer = layer_of(num_shared=1, renormalise=True)
    layer(torch.randn(64, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_in_a_layer(method):
    options = {"group_limited": dict(num_groups=2, top_groups=1), "grouped_experts": dict(num_groups=2)}
    layer = layer_of(method=method, top_k={"switch": 1, "base": 1}.get(method, 2), **options.get(method, {}))
    calls = {"token_ids": torch.arange(8)} if method == "hash" else {}
    y = layer(torch.randn(8, 6), **calls)
    assert y.shape == (8, 6) and bool(y.isfinite().all())


def test_half_precision_routes_in_float32():
    layer = layer_of().to(torch.bfloat16)
    y = layer(torch.randn(5, 6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert layer.logits.dtype == torch.float32 and layer.routing.weights.dtype == torch.float32


def test_a_bias_option_is_saved_with_the_layer():
    bias = torch.tensor([0.0, 5.0, 0.0, 0.0])
    layer = layer_of(method="sigmoid_bias", bias=bias)
    layer(torch.randn(9, 6))
    assert layer.routing.load[1] == 9
    assert torch.equal(layer.state_dict()["router_bias"], bias)


def test_a_balancer_steers_the_selection():
    balancer = BiasBalancer(4, rate=1.0)
    layer = layer_of(method="sigmoid_bias", balancer=balancer)
    balancer.update(torch.tensor([9, 0, 9, 9]))
    layer(torch.randn(5, 6))
    assert layer.routing.load[1] == 5
    assert "balancer.bias" in layer.state_dict()


def test_no_tokens():
    layer = layer_of(num_shared=1)
    y = layer(torch.zeros(0, 6))
    y.sum().backward()
    assert y.shape == (0, 6) and bool((layer.w_down.grad == 0).all())


def test_repr_shows_the_sizes():
    assert "num_experts=4, top_k=2, method='top_k'" in repr(layer_of())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(d_model=0), "d_model must be a whole number of at least 1, got 0"),
        (dict(num_experts=2.0), "num_experts must be a whole number of at least 1, got 2.0"),
        (dict(top_k=5), r"top_k must lie in 1..4 \(num_experts\), got 5"),
        (dict(num_shared=-1), "num_shared must be a whole number of at least 0, got -1"),
        (dict(method="best"), "method must be one of .*; got 'best'"),
        (dict(activation="tanh"), "activation must be one of .*; got 'tanh'"),
        (dict(capacity_factor=1.0), "'capacity_factor' is no option of method 'top_k'"),
        (dict(backend="fast"), "backend must be one of .*; got 'fast'"),
        (dict(balancer=BiasBalancer(4), bias=torch.zeros(4)), "balancer and the router option bias"),
    ],
)
def test_refuses(options, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        layer_of(**options)


def test_wrong_width_says_so(unchecked_shapes):
    with pytest.raises(ValueError, match=r"x must be \(..., d_model=6\), got \(3, 5\)"):
        layer_of()(torch.zeros(3, 5))
