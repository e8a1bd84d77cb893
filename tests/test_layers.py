"""MoE: the layer is its parts, holds its state, and refuses what it cannot be."""

import concurrent.futures
import copy
import sys

import pytest
import torch
import torch.nn.functional as F

from moe_lab import METHODS, BiasBalancer, MoE, expert_mlp, route
from moe_lab.layers import FeedForward


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


def test_an_option_of_the_call_goes_before_the_layers_own():
    layer, x = layer_of(method="noisy_top_k", noise_std=5.0), torch.randn(50, 6)
    quiet = [layer(x, noise_std=0.0) for _ in range(2)]
    assert torch.equal(*quiet)
    assert not torch.equal(layer(x), quiet[0])


def test_a_copy_leaves_the_last_call_behind():
    layer = layer_of()
    y = layer(torch.randn(5, 6, requires_grad=True))
    twin = copy.deepcopy(layer)
    assert twin.routing is None and twin.logits is None
    assert layer.routing is not None
    x = torch.randn(3, 6)
    torch.testing.assert_close(twin(x), layer(x))
    y.sum().backward()


def test_biases_stay_in_float32_where_small_steps_count():
    balancer = BiasBalancer(2, rate=1e-3)
    layer = layer_of(num_experts=2, top_k=1, method="sigmoid_bias", balancer=balancer).to(torch.bfloat16)
    for _ in range(2000):
        balancer.update(torch.tensor([10, 0]))
    assert balancer.bias.dtype == torch.float32
    torch.testing.assert_close(balancer.bias, torch.tensor([-2.0, 2.0]), atol=1e-3, rtol=0)
    assert layer.w_down.dtype == torch.bfloat16
    fixed = layer_of(method="sigmoid_bias", bias=torch.full((4,), 0.1)).half()
    assert fixed.router_bias.dtype == torch.float32


def test_the_callers_bias_stays_the_callers():
    bias = torch.zeros(4)
    layer = layer_of(method="sigmoid_bias", bias=bias)
    bias[2] = 99.0
    assert layer.router_bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_autocast_leaves_the_router_alone_and_casts_the_experts(backend):
    layer, x = layer_of(backend=backend), torch.randn(200, 6)
    plain = layer(x)
    experts, logits = layer.routing.experts, layer.logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert layer.logits.dtype == torch.float32
    assert torch.equal(layer.logits, logits) and torch.equal(layer.routing.experts, experts)
    error = float((y - plain).detach().norm() / plain.detach().norm())
    assert 1e-4 < error < 2e-2  # rounded as bfloat16 rounds, and no further


def test_router_logits_do_not_lose_digits_in_half_precision():
    layer, x = layer_of().to(torch.bfloat16), torch.randn(64, 6, dtype=torch.bfloat16)
    layer(x)
    exact = x.double() @ layer.router.double().T
    assert float((layer.logits.double() - exact).detach().abs().max()) < 1e-5


def test_weights_start_with_outputs_of_order_one():
    torch.manual_seed(0)
    y = MoE(256, 256, 4, 1, renormalise=True)(torch.randn(400, 256))
    assert 0.1 < float(y.detach().std()) < 3.0


def test_threads_do_not_read_each_others_routing():
    layer = layer_of(renormalise=True)
    inputs = [torch.randn(9 + n, 6) for n in range(4)]
    with torch.no_grad():
        want = [layer(x) for x in inputs]
    wrong = []

    def call(number):
        with torch.no_grad():
            for _ in range(100):
                if not torch.equal(layer(inputs[number]), want[number]):
                    wrong.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(call, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_trial_of_the_options_draws_from_nobodys_chance():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        layer_of(method="noisy_top_k")
    assert torch.equal(before, torch.get_rng_state())
    state = torch.get_rng_state()
    layer = layer_of(method="gshard")
    torch.set_rng_state(state)
    layer._try_router("gshard")
    assert torch.equal(state, torch.get_rng_state())


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
        (dict(d_model=0), "d_model must be at least 1, got 0"),
        (dict(num_experts=2.0), "num_experts must be a whole number, at least 1; got 2.0"),
        (dict(top_k=5), r"top_k must be in 1..4, got 5"),
        (dict(num_shared=-1), "num_shared must be at least 0, got -1"),
        (dict(method="best"), "method must be one of .*; got 'best'"),
        (dict(activation="tanh"), "activation must be one of .*; got 'tanh'"),
        (dict(capacity_factor=1.0), "'capacity_factor' is no option of method 'top_k'"),
        (dict(backend="fast"), "backend must be one of .*; got 'fast'"),
        (dict(balancer=BiasBalancer(4), bias=torch.zeros(4)), "balancer and the router option bias"),
        (dict(method="switch"), "top_k must be 1 for method 'switch', got 2"),
        (dict(method="grouped_experts", num_groups=3), "num_groups must divide num_experts=4, got 3"),
        (dict(score="tanh"), "score must be one of .* got 'tanh'"),
        (dict(bias=torch.zeros(3)), r"bias must be \(num_experts,\) = \(4,\), got \(3,\)"),
        (dict(balancer=BiasBalancer(5)), r"bias must be \(num_experts,\) = \(4,\), got \(5,\)"),
        (dict(balancer=torch.nn.Identity()), r"balancer must be a module with a tensor .bias, got Identity"),
        (dict(method="expert_choice", balancer=BiasBalancer(4)), "'bias' is no option of method 'expert_choice'"),
    ],
)
def test_refuses(options, says, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=says):
        layer_of(**options)


def test_wrong_width_says_so(unchecked_shapes):
    with pytest.raises(ValueError, match=r"x must be \(..., d_model=6\), got \(3, 5\)"):
        layer_of()(torch.zeros(3, 5))


def test_mixed_shared_experts_are_the_formula():
    """Residual-MoE by hand: softmax of two numbers a token, one for the routed experts, one for the shared."""
    layer = layer_of(num_shared=1, mix_shared=True).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    y = layer(x)
    routed = expert_mlp(x, layer.routing, layer.w_gate_up, layer.w_down)
    gate, up = (x @ layer.shared_gate_up.T).chunk(2, dim=-1)
    shared = (gate * gate.sigmoid() * up) @ layer.shared_down.T
    weights = torch.exp(x @ layer.mixture.T)
    want = (weights[:, :1] * routed + weights[:, 1:] * shared) / weights.sum(dim=1, keepdim=True)
    assert torch.allclose(y, want, rtol=1e-12)
    y.backward(torch.randn_like(y))
    assert layer.mixture.grad.abs().sum() > 0


def test_mixing_needs_something_to_mix():
    with pytest.raises(ValueError, match="mix_shared needs num_shared to be at least 1, got 0"):
        layer_of(mix_shared=True)


def test_a_dense_layer_is_an_expert_that_everybody_visits():
    torch.manual_seed(3)
    dense = FeedForward(6, 5)
    torch.manual_seed(3)
    layer = MoE(6, 5, num_experts=1, top_k=1)
    x = torch.randn(2, 4, 6)
    assert torch.allclose(dense(x), layer(x), atol=1e-6)
    assert torch.equal(dense.w_down, layer.w_down[0])
