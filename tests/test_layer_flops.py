"""Closed forms of a layer's FLOPs against what is counted while it runs: equal to the FLOP, forward and backward."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moe_lab import LanguageModel, LanguageModelConfig, MoE, Routing, expert_mlp
from moe_lab.accounting.counter import attention_backward_flops, attention_flops, flop_counter
from moe_lab.accounting.layer import (
    PassFlops,
    dense_flops,
    expert_flops,
    layer_flops,
    linear_flops,
    router_flops,
)
from moe_lab.activations import ACTIVATIONS, GATED
from moe_lab.experts import BACKENDS
from moe_lab.inputs import SPREADS, make_layer_inputs

# which backends find the gradient of the routing weights by a product of their own, where nothing else is wanted
INNER_FOR_ROUTING = {"loop": False, "grouped": True, "triton": True}
# the kernels run in an interpreter here: theirs are the few shapes of the last tests of this section
QUICK = sorted(set(BACKENDS) - {"triton"})


def measure(function, *leaves, dy=None):
    """FLOPs of function(), then of its backward pass as far as anything wants a gradient."""
    with flop_counter() as forward:
        y = function()
    with flop_counter() as backward:
        if y.requires_grad:
            y.backward(torch.ones_like(y) if dy is None else dy)
    assert not forward.uncounted and not backward.uncounted
    return PassFlops(forward.total_flops, backward.total_flops)


@st.composite
def sizes(draw, multiple=1, most_tokens=24):
    """Sizes of a layer that divide nothing (or are multiples of what a kernel wants), and how its load lies."""
    num_experts = draw(st.integers(1, 9))
    return dict(
        tokens=draw(st.integers(0, most_tokens)),
        d_model=multiple * draw(st.integers(1, 17 // multiple)),
        d_expert=multiple * draw(st.integers(1, 13 // multiple)),
        num_experts=num_experts,
        top_k=draw(st.integers(1, num_experts)),
        spread=draw(st.sampled_from(SPREADS)),
        empty_slots=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        seed=draw(st.integers(0, 1000)),
    )


PLAIN = dict(tokens=7, d_model=4, d_expert=4, num_experts=4, top_k=2, spread="uniform", empty_slots=0.0, seed=0)
EDGES = {
    "no tokens": {**PLAIN, "tokens": 0},
    "one token": {**PLAIN, "tokens": 1},
    "one expert": {**PLAIN, "num_experts": 1, "top_k": 1},
    "top_k is num_experts": {**PLAIN, "top_k": 4},
    "all rows on one expert": {**PLAIN, "top_k": 1, "spread": "one_expert"},
    "experts without rows": {**PLAIN, "top_k": 1, "num_experts": 8, "spread": "half_empty"},
    "some dropped": {**PLAIN, "empty_slots": 0.3},
    "all dropped": {**PLAIN, "empty_slots": 1.0},
}


def edges(**others):
    """Every edge as an explicit example of a property test."""

    def decorate(test):
        for case in EDGES.values():
            test = example(case=case, **others)(test)
        return test

    return decorate


# ---- closed forms, by hand and by counting one at a time


def count_one_at_a_time(routing, d_model, d_expert, gated):
    """Every multiply-add of the layer's definition, forward, as 2 more."""
    flops = 0
    for token in range(routing.tokens):
        for slot in range(routing.slots):
            if routing.experts[token, slot] < 0:
                continue
            for _ in range(d_expert):
                for _ in range(d_model):
                    flops += 4 if gated else 2  # gate and up, or up
            for _ in range(d_model):
                for _ in range(d_expert):
                    flops += 2  # down
    return flops


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_experts_by_counting_one_at_a_time(activation):
    routing = make_layer_inputs(9, 5, 3, 4, 2, empty_slots=0.3).routing
    want = count_one_at_a_time(routing, 5, 3, activation in GATED)
    flops = expert_flops(int(routing.load.sum()), 5, 3, activation)
    assert flops == PassFlops(want, 2 * want) and want > 0


def test_values_by_hand():
    assert linear_flops(3, 4, 5) == PassFlops(120, 240)
    assert linear_flops(3, 4, 5, input_grad=False, weight_grad=False) == PassFlops(120, 0)
    assert router_flops(10, 16, 8) == PassFlops(2560, 5120)
    # Mixtral's layer: 3 matrices of 4096 * 14336, two experts a token
    assert expert_flops(2, 4096, 14336).forward == 2 * 2 * 3 * 4096 * 14336
    assert expert_flops(7, 4, 3, weight_grad=False) == PassFlops(504, 504)
    assert expert_flops(7, 4, 3, input_grad=False) == PassFlops(504, 504 + 168)
    assert expert_flops(7, 4, 3, input_grad=False, weight_grad=False) == PassFlops(504, 0)
    assert expert_flops(7, 4, 3, input_grad=False, weight_grad=False, inner_grad=True) == PassFlops(504, 168)


def test_numbers_beyond_64_bits_stay_exact():
    flops = expert_flops(10**15, 16384, 53248)
    assert flops.total == 18 * 10**15 * 16384 * 53248 > 2**63


def test_components_of_a_layer():
    flops = layer_flops(10, 6, 5, 8, 2, num_shared=3)
    assert list(flops) == ["router", "experts", "shared_experts"]
    assert flops["router"] == router_flops(10, 6, 8)
    assert flops["experts"] == expert_flops(20, 6, 5) and flops["shared_experts"] == expert_flops(30, 6, 5)
    assert layer_flops(10, 6, 5, 8, 2, rows=13)["experts"] == expert_flops(13, 6, 5)
    assert layer_flops(10, 6, 5, 8, 2, rows=0)["experts"] == PassFlops()
    assert sum(flops.values(), PassFlops()).total == sum(count.total for count in flops.values())


@given(st.integers(0, 99), st.integers(1, 99), st.integers(1, 99), st.integers(1, 9), st.integers(0, 3))
def test_the_dense_layer_costs_what_the_experts_cost(tokens, d_model, d_expert, top_k, num_shared):
    moe = layer_flops(tokens, d_model, d_expert, 9, top_k, num_shared, "gelu")
    dense = dense_flops(tokens, d_model, d_expert, top_k, num_shared, "gelu")
    assert dense == moe["experts"] + moe["shared_experts"]
    wide = (top_k + num_shared) * d_expert  # two matrices of d_model * wide
    assert dense == PassFlops(4 * tokens * d_model * wide, 8 * tokens * d_model * wide)


def test_pass_flops_add_up_with_their_like_alone():
    with pytest.raises(TypeError):
        PassFlops(1, 2) + 3


# ---- our own backends


@pytest.mark.parametrize("backend", QUICK)
@edges(activation="swiglu", x_grad=True, weight_grad=True, routing_grad=True)
@edges(activation="relu", x_grad=False, weight_grad=True, routing_grad=True)
@edges(activation="gelu", x_grad=True, weight_grad=False, routing_grad=False)
@edges(activation="geglu", x_grad=False, weight_grad=False, routing_grad=True)
@given(
    case=sizes(),
    activation=st.sampled_from(ACTIVATIONS),
    x_grad=st.booleans(),
    weight_grad=st.booleans(),
    routing_grad=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_experts_run_what_the_closed_form_says(backend, case, activation, x_grad, weight_grad, routing_grad):
    check_experts(backend, case, activation, x_grad, weight_grad, routing_grad)


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES)
def test_kernels_run_what_the_closed_form_says(case):
    check_experts("triton", case, "relu" if case is EDGES["one token"] else "swiglu", True, True, True)


@pytest.mark.parametrize(
    ("x_grad", "weight_grad", "routing_grad"), [(False, True, False), (True, False, False), (False, False, True)]
)
def test_kernels_run_no_product_that_nobody_wants(x_grad, weight_grad, routing_grad):
    check_experts("triton", EDGES["some dropped"], "swiglu", x_grad, weight_grad, routing_grad)


def check_experts(backend, case, activation, x_grad, weight_grad, routing_grad):
    inputs = make_layer_inputs(**case, activation=activation)
    x, routing, w_gate_up, w_down = inputs.arguments
    x.requires_grad_(x_grad)
    w_gate_up.requires_grad_(weight_grad)
    w_down.requires_grad_(weight_grad)
    weights = routing.weights.requires_grad_(routing_grad)
    routing = Routing.trusted(routing.experts, weights, routing.num_experts)
    got = measure(
        lambda: expert_mlp(x, routing, w_gate_up, w_down, activation=activation, backend=backend), dy=inputs.dy
    )
    inner = True if routing_grad and INNER_FOR_ROUTING[backend] else None
    want = expert_flops(
        int(routing.load.sum()),
        case["d_model"],
        case["d_expert"],
        activation,
        input_grad=x_grad,
        weight_grad=weight_grad,
        inner_grad=inner,
    )
    assert got == want


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("wanted", ["w_gate_up", "w_down"])
def test_experts_of_which_one_matrix_is_frozen(backend, wanted):
    inputs = make_layer_inputs(11, 6, 5, 7, 3, empty_slots=0.2)
    x, routing, w_gate_up, w_down = inputs.arguments
    {"w_gate_up": w_gate_up, "w_down": w_down}[wanted].requires_grad_()
    rows = int(routing.load.sum())
    up = wanted == "w_gate_up"
    want = linear_flops(rows, 6, 10, input_grad=False, weight_grad=up)
    want += linear_flops(rows, 5, 6, input_grad=up, weight_grad=not up)
    # what "min" computes again is a product more: see test_operator_triton.py
    assert measure(lambda: expert_mlp(x, routing, w_gate_up, w_down, backend=backend), dy=inputs.dy) == want


@pytest.mark.parametrize("backend", QUICK)
@edges(num_shared=0, activation="swiglu", x_grad=True, weight_grad=True)
@edges(num_shared=2, activation="relu", x_grad=False, weight_grad=True)
@edges(num_shared=1, activation="swiglu", x_grad=True, weight_grad=False)
@given(
    case=sizes(),
    num_shared=st.integers(0, 3),
    activation=st.sampled_from(ACTIVATIONS),
    x_grad=st.booleans(),
    weight_grad=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_runs_what_the_closed_form_says(backend, case, num_shared, activation, x_grad, weight_grad):
    tokens, top_k = case["tokens"], case["top_k"]
    widths = case["d_model"], case["d_expert"], case["num_experts"], top_k
    dropping = dict(method="capacity_top_k", capacity_factor=0.5) if case["empty_slots"] else {}
    layer = MoE(*widths, num_shared=num_shared, backend=backend, activation=activation, **dropping)
    layer.requires_grad_(weight_grad)
    x = torch.randn(tokens, case["d_model"], generator=torch.Generator().manual_seed(case["seed"]))
    got = measure(lambda: layer(x.requires_grad_(x_grad)))
    rows = int(layer.routing.load.sum())
    want = layer_flops(tokens, *widths, num_shared, activation, rows, input_grad=x_grad, weight_grad=weight_grad)
    assert got == sum(want.values(), PassFlops())
    assert rows == tokens * top_k or dropping


def test_each_component_of_a_layer_by_leaving_the_others_out():
    layer = MoE(6, 5, 8, 2, num_shared=2)
    x = torch.randn(10, 6)
    want = layer_flops(10, 6, 5, 8, 2, num_shared=2)
    with flop_counter() as counter:
        layer(x)
    assert counter.total_flops == sum(count.forward for count in want.values())
    with flop_counter() as counter:
        expert_mlp(x, layer.routing, layer.w_gate_up, layer.w_down)
    assert counter.total_flops == want["experts"].forward


def test_a_whole_model():
    config = LanguageModelConfig(
        d_model=12, num_layers=3, num_heads=2, d_expert=7, num_experts=5, top_k=2, num_shared=1
    )
    model, tokens, head = LanguageModel(config), torch.randint(0, 256, (3, 11)), torch.empty(3, 2, 11, 6)
    attention = PassFlops(attention_flops(head, head, head), attention_backward_flops(head, head, head, head))
    block = [linear_flops(33, 12, 36), attention, linear_flops(33, 12, 12)]
    block += layer_flops(33, 12, 7, 5, 2, num_shared=1).values()
    want = sum(config.num_layers * block, linear_flops(33, 12, 256))
    assert measure(lambda: model(tokens)) == want


# ---- Transformers' backends


def transformers_experts(backend, case, dtype=torch.float32):
    """Mixtral's experts and their arguments; a dropped assignment names expert num_experts, as on parallel devices."""
    inputs = make_layer_inputs(**case, dtype=dtype)
    config = MixtralConfig(
        hidden_size=case["d_model"],
        intermediate_size=case["d_expert"],
        num_local_experts=case["num_experts"],
        num_experts_per_tok=case["top_k"],
    )
    config._experts_implementation = backend
    experts = MixtralExperts(config).to(dtype)
    experts._is_expert_parallel = True
    with torch.no_grad():
        experts.gate_up_proj.copy_(inputs.w_gate_up)
        experts.down_proj.copy_(inputs.w_down)
    empty = inputs.routing.experts < 0
    index = inputs.routing.experts.masked_fill(empty, case["num_experts"])
    return experts, inputs, (inputs.x, index, inputs.routing.weights.to(dtype))


def check_transformers(backend, case, x_grad, weight_grad, routing_grad):
    experts, inputs, (x, index, weights) = transformers_experts(backend, case)
    experts.requires_grad_(weight_grad)
    x.requires_grad_(x_grad)
    weights.requires_grad_(routing_grad)
    got = measure(lambda: experts(x, index, weights), dy=inputs.dy)
    # A batched product cannot leave a dropped assignment out: it multiplies it, and weighs it with 0. The grouped one
    # does so with a single expert: it counts the load by torch.histc(min=0, max=0), and equal bounds mean "no bounds".
    every_slot = backend == "batched_mm" or (backend == "grouped_mm" and case["num_experts"] == 1)
    rows = case["tokens"] * case["top_k"] if every_slot else int(inputs.routing.load.sum())
    grads = dict(input_grad=x_grad, weight_grad=weight_grad)
    assert got == expert_flops(rows, case["d_model"], case["d_expert"], **grads)


GRADS = dict(x_grad=st.booleans(), weight_grad=st.booleans(), routing_grad=st.booleans())


@pytest.mark.parametrize("backend", ["eager", "batched_mm"])
@edges(x_grad=True, weight_grad=True, routing_grad=True)
@edges(x_grad=False, weight_grad=True, routing_grad=False)
@given(case=sizes(), **GRADS)
@settings(max_examples=60, deadline=None)
def test_transformers_backends(backend, case, x_grad, weight_grad, routing_grad):
    check_transformers(backend, case, x_grad, weight_grad, routing_grad)


@edges(x_grad=True, weight_grad=True, routing_grad=True)
@edges(x_grad=False, weight_grad=True, routing_grad=False)
@given(case=sizes(multiple=4), **GRADS)
@settings(max_examples=60, deadline=None)
def test_transformers_grouped_mm(case, x_grad, weight_grad, routing_grad):
    """PyTorch's kernel wants rows of 16 bytes: widths in fours for float32."""
    check_transformers("grouped_mm", case, x_grad, weight_grad, routing_grad)


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("weight_grad", [True, False])
def test_transformers_fallback_finds_both_gradients_wanted_or_not(case, weight_grad):
    """Where PyTorch has no grouped product, Transformers' own operator stands in for it."""
    experts, inputs, _ = transformers_experts("grouped_mm", case, torch.float64)
    load = inputs.routing.load
    rows, offsets = int(load.sum()), load.cumsum(0).int()
    x = torch.randn(rows + 2, case["d_model"], dtype=torch.float64, requires_grad=True)  # 2 rows beyond the last group
    experts.requires_grad_(weight_grad)

    def run():
        hidden = torch.ops.transformers.grouped_mm_fallback(x, experts.gate_up_proj.mT, offs=offsets)
        inner = hidden[:, : case["d_expert"]] * hidden[:, case["d_expert"] :]
        return torch.ops.transformers.grouped_mm_fallback(inner, experts.down_proj.mT, offs=offsets)

    assert measure(run) == expert_flops(rows, case["d_model"], case["d_expert"], input_grad=True, weight_grad=True)


# ---- refusals


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: linear_flops(-1, 1, 1), "rows must be at least 0, got -1"),
        (lambda: linear_flops(1, 0, 1), "inputs must be at least 1, got 0"),
        (lambda: linear_flops(1, 1, 2.0), "outputs must be a whole number, at least 1; got 2.0"),
        (lambda: router_flops(-1, 1, 1), "tokens must be at least 0, got -1"),
        (lambda: router_flops(1, 0, 1), "d_model must be at least 1, got 0"),
        (lambda: router_flops(1, 1, 0), "num_experts must be at least 1, got 0"),
        (lambda: expert_flops(True, 1, 1), "rows must be a whole number, at least 0; got True"),
        (lambda: expert_flops(1, 0, 1), "d_model must be at least 1, got 0"),
        (lambda: expert_flops(1, 1, 0), "d_expert must be at least 1, got 0"),
        (lambda: expert_flops(1, 1, 1, "tanh"), "activation must be one of .*; got 'tanh'"),
        (
            lambda: expert_flops(1, 1, 1, inner_grad=False),
            "inner_grad must not be False with input_grad or weight_grad",
        ),
        (lambda: layer_flops(-1, 1, 1, 4, 2), "tokens must be at least 0, got -1"),
        (lambda: layer_flops(3, 1, 1, 0, 1), "num_experts must be at least 1, got 0"),
        (lambda: layer_flops(3, 1, 1, 4, 5), r"top_k must be in 1..4, got 5"),
        (lambda: layer_flops(3, 1, 1, 4, 2, -1), "num_shared must be at least 0, got -1"),
        (lambda: layer_flops(3, 1, 1, 4, 2, rows=13), r"rows must be in 0..12, got 13"),
        (lambda: dense_flops(3, 1, 0, 2), "d_expert must be at least 1, got 0"),
        (lambda: dense_flops(3, 1, 1, 0), "top_k must be at least 1, got 0"),
        (lambda: dense_flops(3, 1, 1, 1, -1), "num_shared must be at least 0, got -1"),
        (lambda: dense_flops(-3, 1, 1, 1), "tokens must be at least 0, got -3"),
    ],
)
def test_refuses(call, says, unchecked_shapes):
    with pytest.raises((TypeError, ValueError), match=says):
        call()
