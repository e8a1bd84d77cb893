"""expert_mlp: each backend against a loop over tokens in float64, forward and backward; edges; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab import Routing, expert_mlp
from moe_lab.activations import ACTIVATIONS, activate
from moe_lab.experts import BACKENDS
from moe_lab.inputs import SPREADS, make_layer_inputs
from moe_lab.operators.grouped import sort_rows

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def oracle(x, routing, w_gate_up, w_down, activation):
    """One token and one slot at a time: too slow for anything but being obviously right."""
    rows = []
    for token in range(x.shape[0]):
        y = torch.zeros(x.shape[1], dtype=x.dtype)
        for slot in range(routing.slots):
            expert = int(routing.experts[token, slot])
            if expert >= 0:
                hidden = activate(w_gate_up[expert] @ x[token], activation)
                y = y + routing.weights[token, slot] * (w_down[expert] @ hidden)
        rows.append(y)
    return torch.stack(rows) if rows else x.new_zeros(0, x.shape[1])


def run(function, inputs, dtype=None):
    """Output and the four gradients, in float64 for comparing."""
    leaves = [inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down]
    leaves = [leaf.detach().to(dtype or leaf.dtype).requires_grad_() for leaf in leaves]
    x, weights, w_gate_up, w_down = leaves
    routing = Routing.trusted(inputs.routing.experts, weights, inputs.routing.num_experts)
    y = function(x, routing, w_gate_up, w_down)
    gradients = torch.autograd.grad(y, leaves, inputs.dy.to(y.dtype), allow_unused=True, materialize_grads=True)
    return [t.detach().double() for t in (y, *gradients)]


def relative_error(got, want):
    return float((got - want).norm() / want.norm().clamp_min(1e-30)) if want.numel() else 0.0


# the kernels are interpreted here: each activation has a test of theirs (test_operator_triton.py)
CASES = [(backend, activation) for backend in ("loop", "grouped") for activation in ACTIVATIONS]


@pytest.mark.parametrize(("backend", "activation"), [*CASES, ("triton", "swiglu")])
@pytest.mark.parametrize("spread", SPREADS)
def test_outputs_and_gradients(backend, activation, spread):
    assert backend in BACKENDS
    inputs = make_layer_inputs(13, 6, 5, 7, 3, spread=spread, empty_slots=0.2, activation=activation)
    got = run(lambda *a: expert_mlp(*a, activation=activation, backend=backend), inputs)
    want = run(lambda *a: oracle(*a, activation), inputs, torch.float64)
    for name, ours, exact in zip(("y", "dx", "dweights", "dw_gate_up", "dw_down"), got, want, strict=True):
        assert ours.isfinite().all(), name
        assert relative_error(ours, exact) < TOLERANCE[torch.float32], name


# Triton's interpreter has no bfloat16 and the kernels no float64: both are refused (test_operator_triton.py)
DTYPES = [torch.float16, torch.bfloat16, torch.float64]
PAIRS = [(backend, dtype) for backend in ("loop", "grouped") for dtype in DTYPES] + [("triton", torch.float16)]


@pytest.mark.parametrize(("backend", "dtype"), PAIRS)
def test_dtypes(backend, dtype):
    inputs = make_layer_inputs(40, 16, 8, 4, 2, dtype=dtype)
    y = expert_mlp(*inputs.arguments, backend=backend)
    assert y.dtype == dtype
    got = run(lambda *a: expert_mlp(*a, backend=backend), inputs)
    want = run(lambda *a: oracle(*a, "swiglu"), inputs, torch.float64)
    for name, ours, exact in zip(("y", "dx", "dweights", "dw_gate_up", "dw_down"), got, want, strict=True):
        assert relative_error(ours, exact) < TOLERANCE[dtype], name


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_gradcheck(backend, activation):
    inputs = make_layer_inputs(5, 4, 3, 4, 2, dtype=torch.float64, empty_slots=0.2, activation=activation)

    def layer(x, weights, w_gate_up, w_down):
        # a weight in an empty slot must not matter: its gradient is 0
        routing = Routing.trusted(inputs.routing.experts, weights, 4)
        return expert_mlp(x, routing, w_gate_up, w_down, activation=activation, backend=backend)

    leaves = (inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down)
    assert torch.autograd.gradcheck(layer, [leaf.requires_grad_() for leaf in leaves])


@given(
    tokens=st.integers(0, 17),
    d_model=st.integers(1, 6),
    d_expert=st.integers(1, 6),
    num_experts=st.integers(1, 6),
    spread=st.sampled_from(SPREADS),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_grouped_is_the_loop(tokens, d_model, d_expert, num_experts, spread, empty, data):
    top_k = data.draw(st.integers(1, num_experts))
    inputs = make_layer_inputs(
        tokens, d_model, d_expert, num_experts, top_k, spread=spread, empty_slots=empty, dtype=torch.float64
    )
    loop = run(lambda *a: expert_mlp(*a, backend="loop"), inputs)
    grouped = run(lambda *a: expert_mlp(*a, backend="grouped"), inputs)
    for ours, exact in zip(grouped, loop, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_a_token_without_experts_gets_zero_and_gives_no_gradient():
    inputs = make_layer_inputs(4, 3, 3, 2, 1, empty_slots=1.0)
    y, dx, dweights, dw_gate_up, dw_down = run(lambda *a: expert_mlp(*a, backend="grouped"), inputs)
    for value in (y, dx, dweights, dw_gate_up, dw_down):
        assert bool((value == 0).all())


def test_buffers_are_written_whole(monkeypatch):
    """Fresh memory full of NaN must not show anywhere: every element of every buffer has an author."""
    poisoned_calls = []

    def poisoned(function):
        def allocate(*args, **options):
            poisoned_calls.append(function)
            return function(*args, **options).fill_(float("nan"))

        return allocate

    inputs = make_layer_inputs(9, 4, 3, 6, 2, spread="half_empty", empty_slots=0.3)
    want = run(lambda *a: expert_mlp(*a, backend="loop"), inputs)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    got = run(lambda *a: expert_mlp(*a, backend="grouped"), inputs)
    assert len(poisoned_calls) >= 4
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_cost_none(monkeypatch):
    inputs = make_layer_inputs(6, 4, 3, 4, 2)
    x = inputs.x.requires_grad_()
    y = expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="grouped")

    def never(*_):
        raise AssertionError("a weight gradient was computed for frozen experts")

    monkeypatch.setattr("moe_lab.operators.grouped.StackedGradient", never)
    (dx,) = torch.autograd.grad(y, x, inputs.dy)
    assert dx.shape == x.shape


def test_gradients_of_idle_experts_are_zero():
    inputs = make_layer_inputs(50, 4, 3, 8, 1, spread="one_expert")
    _, _, _, dw_gate_up, dw_down = run(lambda *a: expert_mlp(*a, backend="grouped"), inputs)
    assert bool((dw_gate_up[0] != 0).any()) and bool((dw_down[0] != 0).any())
    assert bool((dw_gate_up[1:] == 0).all()) and bool((dw_down[1:] == 0).all())


def test_no_second_derivative_says_so_instead_of_being_wrong():
    inputs = make_layer_inputs(4, 3, 3, 2, 1, dtype=torch.float64)
    x = inputs.x.requires_grad_()
    y = expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="grouped")
    with pytest.raises(RuntimeError, match='backend="loop" for create_graph=True'):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y = expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="loop")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert bool((x.grad != 0).any())


def test_sums_run_in_the_wider_dtype():
    """256 halves that float16 could not add up: 2048 + 1 is 2048 there."""
    routing = Routing(torch.arange(4)[None], torch.tensor([[2048.0, 1.0, 1.0, 1.0]]), 4)
    ones = torch.ones(1, 1, dtype=torch.float16)
    weights = torch.ones(4, 1, 1, dtype=torch.float16)
    for backend in BACKENDS:
        y = expert_mlp(ones, routing, weights, weights, activation="relu", backend=backend)
        assert y.item() == float(torch.tensor(2051.0).half())


def test_an_expanded_upstream_gradient_is_taken():
    """``y.sum().backward()`` sends a gradient without memory of its own; grouped kernels have tripped over it."""
    inputs = make_layer_inputs(7, 4, 3, 3, 2)
    w_down = inputs.w_down.requires_grad_()
    expert_mlp(inputs.x, inputs.routing, inputs.w_gate_up, w_down, backend="grouped").sum().backward()
    grouped, w_down.grad = w_down.grad, None
    expert_mlp(inputs.x, inputs.routing, inputs.w_gate_up, w_down, backend="loop").sum().backward()
    torch.testing.assert_close(grouped, w_down.grad)


def test_results_do_not_change_from_run_to_run():
    inputs = make_layer_inputs(300, 32, 16, 8, 2, spread="skewed")
    first, second = (run(lambda *a: expert_mlp(*a), inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@given(st.integers(0, 12), st.integers(1, 5), st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=50, deadline=None)
def test_sorted_rows_are_blocks_of_experts(tokens, num_experts, empty):
    routing = make_layer_inputs(tokens, 1, 1, num_experts, 1, empty_slots=empty).routing
    order, load = sort_rows(routing)
    assert torch.equal(load, routing.load)
    experts = routing.experts.flatten()[order]
    assert experts.tolist() == sorted(e for e in routing.experts.flatten().tolist() if e >= 0)
    for expert in range(num_experts):
        block = order[experts == expert]
        assert block.tolist() == sorted(block.tolist()), "tokens keep their order inside a block"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            dict(x=torch.zeros(3, 5)),
            ValueError,
            r"w_down must be \(num_experts, d_model=5, d_expert\), got \(2, 4, 3\)",
        ),
        (dict(x=torch.zeros(2, 4)), ValueError, r"routing has 3 tokens and x has 2"),
        (dict(x=torch.zeros(12)), ValueError, r"x must have 2 dimensions, got shape \(12,\)"),
        (dict(x=torch.zeros(3, 4).double()), TypeError, r"w_gate_up is torch.float32 and x is torch.float64"),
        (dict(x=torch.zeros(3, 4).long()), TypeError, r"x must be a floating-point tensor, got torch.int64"),
        (dict(x=torch.zeros(3, 4, device="meta")), ValueError, r"w_gate_up is on cpu and x on meta"),
        (dict(routing=None), TypeError, r"routing must be a Routing, got NoneType"),
        (dict(w_down=torch.zeros(5, 4, 3)), ValueError, r"routing has num_experts=2 and w_down 5"),
        (dict(w_gate_up=torch.zeros(2, 3, 4)), ValueError, r"w_gate_up must be \(2, 6, 4\) for .*swiglu.*\(2, 3, 4\)"),
        (dict(activation="tanh"), ValueError, r"activation must be one of swiglu, .*; got 'tanh'"),
        (dict(backend="fast"), ValueError, r"backend must be one of auto, loop, grouped, triton; got 'fast'"),
    ],
)
def test_refuses(change, error, says, unchecked_shapes):
    routing = Routing(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), 2)
    arguments = dict(x=torch.zeros(3, 4), routing=routing, w_gate_up=torch.zeros(2, 6, 4), w_down=torch.zeros(2, 4, 3))
    with pytest.raises(error, match=says):
        expert_mlp(**{**arguments, **change})
