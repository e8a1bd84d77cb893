"""moe_lab::grouped_mlp: what PyTorch asks of an operator, its buffers, its FLOPs against the products that it runs."""

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from moe_lab import MoE, expert_mlp, flop_counter
from moe_lab.accounting.layer import expert_flops
from moe_lab.activations import ACTIVATIONS, GATED, activate, activate_backward, activate_into
from moe_lab.inputs import SPREADS, make_layer_inputs
from moe_lab.operators import chunks
from moe_lab.operators.grouped import grouped_mlp, grouped_mlp_backward

from .dispatched import Dispatched

CASES = {
    "plain": dict(tokens=7, num_experts=4, top_k=2),
    "some dropped": dict(tokens=9, num_experts=4, top_k=2, empty_slots=0.4),
    "all dropped": dict(tokens=3, num_experts=4, top_k=1, empty_slots=1.0),
    "no tokens": dict(tokens=0, num_experts=4, top_k=2),
    "one expert": dict(tokens=5, num_experts=1, top_k=1),
    "half of the experts idle": dict(tokens=6, num_experts=6, top_k=2, spread="half_empty"),
    "half precision": dict(tokens=7, num_experts=4, top_k=2, dtype=torch.bfloat16),
}

TRACED = ("some dropped", "no tokens", "half precision")  # each is traced several times


def arguments_of(activation="swiglu", d_model=6, d_expert=5, **case):
    """The operator's arguments, and an upstream gradient."""
    inputs = make_layer_inputs(d_model=d_model, d_expert=d_expert, activation=activation, **case)
    x, routing, w_gate_up, w_down = inputs.arguments
    return (x, routing.experts, routing.weights, w_gate_up, w_down, activation, True), inputs.dy


def backward_arguments_of(wanted, **case):
    arguments, dy = arguments_of(**case)
    return (dy, arguments[0], *grouped_mlp(*arguments)[1:], *arguments[2:-1], list(wanted))


# ---- what PyTorch asks of an operator


@pytest.mark.parametrize("case", TRACED)
def test_opcheck_forward(case):
    """Schema, autograd registration, fake shapes, and eager against traced, all of them with dynamic shapes too."""
    arguments, _ = arguments_of(**CASES[case])
    learning = [a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
    for given in (arguments, learning):
        torch.library.opcheck(torch.ops.moe_lab.grouped_mlp.default, tuple(given))


@pytest.mark.parametrize("case", TRACED)
@pytest.mark.parametrize("wanted", [(True, True, True, True), (False, True, False, False)])
def test_opcheck_backward(case, wanted):
    arguments = backward_arguments_of(wanted, **CASES[case])
    torch.library.opcheck(torch.ops.moe_lab.grouped_mlp_backward.default, arguments)


def test_opcheck_of_a_transposed_input():
    """Its layout is nobody's business: results are contiguous, traced or not."""
    (x, *others), _ = arguments_of(**CASES["plain"])
    torch.library.opcheck(torch.ops.moe_lab.grouped_mlp.default, (x.T.contiguous().T, *others))


def test_a_layer_imports_neither_dynamo_nor_triton(fresh):
    """`moe_lab.kernels` has to come before Triton, and a layer should not cost the two seconds of torch._dynamo."""
    code = (
        "import sys, torch, moe_lab\n"
        "layer = moe_lab.MoE(4, 4, 2, 1)\n"
        "layer(torch.randn(3, 4)).sum().backward()\n"
        "assert layer.w_down.grad is not None\n"
        "print(sorted({'torch._dynamo', 'triton'} & set(sys.modules)))"
    )
    done = fresh.run(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# ---- buffers


@pytest.mark.parametrize("spread", SPREADS)
def test_rows_of_empty_slots_come_last_and_hold_nothing(spread, monkeypatch):
    arguments, _ = arguments_of(tokens=11, num_experts=5, top_k=3, spread=spread, empty_slots=0.4)
    x, experts, _, w_gate_up, *_ = arguments
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **o: new_empty(*a, **o).fill_(-(2**40)))
    _, hidden, order, load = grouped_mlp(*arguments)
    count = int((experts >= 0).sum())
    assert 0 < count < experts.numel() == len(hidden) == len(order)
    assert bool((order[count:] == -1).all()) and bool((hidden[count:] == 0).all())
    expert = experts.flatten()[order[:count]]
    assert expert.tolist() == sorted(expert.tolist()) and load.tolist() == torch.bincount(expert, minlength=5).tolist()
    want = torch.stack([w_gate_up[e] @ x[t] for e, t in zip(expert, order[:count] // 3, strict=True)])
    torch.testing.assert_close(hidden[:count], want)


def test_what_a_dropped_token_holds_reaches_nobody():
    (x, experts, weights, *rest), dy = arguments_of(tokens=8, num_experts=4, top_k=2)
    experts[3], weights[3] = -1, 0.0
    want = grouped_mlp(x, experts, weights, *rest)[0]
    x[3], weights[3] = float("nan"), float("nan")
    y, *kept = grouped_mlp(x, experts, weights, *rest)
    assert torch.equal(y, want) and bool((y[3] == 0).all())
    dx, dweights, *dw = grouped_mlp_backward(dy, x, *kept, weights, *rest[:-1], [True] * 4)
    assert all(bool(gradient.isfinite().all()) for gradient in (dx, dweights, *dw))
    assert bool((dx[3] == 0).all()) and bool((dweights[3] == 0).all())


def test_only_y_has_a_gradient():
    arguments, _ = arguments_of(**CASES["plain"])
    y, *kept = torch.ops.moe_lab.grouped_mlp(arguments[0].requires_grad_(), *arguments[1:])
    assert y.requires_grad and not any(tensor.requires_grad for tensor in kept)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=4)))
def test_each_gradient_is_the_same_whatever_else_is_wanted_and_empty_if_it_is_not(wanted):
    everything = grouped_mlp_backward(*backward_arguments_of([True] * 4, **CASES["some dropped"]))
    got = grouped_mlp_backward(*backward_arguments_of(wanted, **CASES["some dropped"]))
    for ours, full, want in zip(got, everything, wanted, strict=True):
        assert torch.equal(ours, full) if want else ours.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_derived_as_autograd_does(activation, dtype):
    hidden = (3 * torch.randn(9, 8)).to(dtype).requires_grad_()
    with torch.no_grad():
        hidden[0] = 0.0
    y = activate(hidden, activation)
    dinner = torch.randn(9, y.shape[1]).to(dtype)
    (want,) = torch.autograd.grad(y, hidden, dinner)
    parts = hidden.detach().chunk(2, dim=1) if activation in GATED else (hidden.detach(),)
    assert torch.equal(activate_into(torch.empty_like(dinner), parts, activation), y)
    got = activate_backward([torch.empty_like(part) for part in parts], dinner, parts, activation)
    assert got[0].dtype == dtype and torch.equal(torch.cat(list(got), dim=1), want)


# ---- chunks, and products in a wider dtype

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


@pytest.mark.parametrize("instructions", [True, False], ids=["in its dtype", "widened"])
@pytest.mark.parametrize(("chunk_rows", "units"), [(1, 12), (5, 12), (5, 5), (1024, 12), (1024, 4)])
@pytest.mark.parametrize("large", [1, 97], ids=["whole", "the last two in halves"])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_same_in_chunks_and_blocks_of_any_size_and_in_either_dtype(
    dtype, activation, large, chunk_rows, units, instructions, monkeypatch
):
    """97 rows in float64 are the judge; an expert has 40 of them, another none. 5 does not divide 12 hidden units."""
    monkeypatch.setattr(chunks, "_has_instructions", lambda _: instructions)
    case = dict(tokens=49, num_experts=5, top_k=2, spread="skewed", empty_slots=0.1, d_model=24, d_expert=12)
    case["activation"] = activation
    (x, experts, weights, *matrices, activation, keep), dy = arguments_of(**case)
    wide = torch.promote_types(dtype, torch.float32)
    given = (x.to(dtype), experts, weights.to(wide), *(matrix.to(dtype) for matrix in matrices), activation, keep)
    exact = tuple(v.double() if torch.is_tensor(v) and v.is_floating_point() else v for v in given)

    def outcome(arguments, dy):
        y, *kept = grouped_mlp(*arguments)
        return y, *grouped_mlp_backward(dy, arguments[0], *kept, *arguments[2:-1], [True] * 4)

    want = outcome(exact, dy.to(dtype).double())
    for name, value in dict(
        CHUNK_ROWS=chunk_rows, HALF_CHUNK_ROWS=chunk_rows, BLOCK_UNITS=units, BLOCK_NUMBERS=1, LARGE=large
    ).items():
        monkeypatch.setattr(chunks, name, value)
    for ours, right in zip(outcome(given, dy.to(dtype)), want, strict=True):
        assert float((ours.double() - right).norm() / right.norm()) < TOLERANCE[dtype]


def test_a_half_precision_is_widened_only_where_the_processor_lacks_it(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has in (True, False):
        monkeypatch.setattr(chunks, "_has_instructions", lambda _, has=has: has)
        for half in (torch.bfloat16, torch.float16):
            assert chunks.working_dtype(half, cpu) == (half if has else torch.float32)
            assert chunks.working_dtype(half, cuda) == half
        assert chunks.working_dtype(torch.float64, cpu) == torch.float64


def test_without_a_gradient_nothing_is_kept():
    (*arguments, _), _ = arguments_of(**CASES["some dropped"])
    y, hidden, *_ = grouped_mlp(*arguments, False)
    kept, *_ = grouped_mlp(*arguments, True)
    assert torch.equal(y, kept) and hidden.shape == (0, 10)
    inputs = make_layer_inputs(9, 6, 5, 4, 2)
    with Dispatched() as dispatched:
        with torch.no_grad():
            expert_mlp(inputs.x.requires_grad_(), *inputs.arguments[1:], backend="grouped")
        expert_mlp(*inputs.arguments, backend="grouped")
    operator = torch.ops.moe_lab.grouped_mlp.default
    assert [arguments[-1] for called, arguments in dispatched.calls if called is operator] == [False, True]


# ---- FLOPs: the formulas against the products inside


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_the_formulas_are_the_products_that_run(case, activation):
    """Called as plain functions the operators are not taken whole: the counter meets each ``mm``."""
    arguments, _ = arguments_of(activation, **case)
    rows = int((arguments[1] >= 0).sum())
    with flop_counter() as inside:
        grouped_mlp(*arguments)
    with flop_counter() as whole:
        torch.ops.moe_lab.grouped_mlp(*arguments)
    assert set(inside.by_op) <= {"aten.mm"} and whole.by_op == {"moe_lab.grouped_mlp": inside.total_flops}
    assert whole.total_flops == expert_flops(rows, 6, 5, activation).forward
    for wanted in itertools.product([True, False], repeat=4):
        backward = backward_arguments_of(wanted, activation=activation, **case)
        with flop_counter() as inside:
            grouped_mlp_backward(*backward)
        with flop_counter() as whole:
            torch.ops.moe_lab.grouped_mlp_backward(*backward)
        assert whole.by_op == {"moe_lab.grouped_mlp_backward": inside.total_flops}, wanted
        assert set(inside.by_op) <= {"aten.mm"} and not whole.uncounted


def test_the_counter_names_the_operators():
    inputs = make_layer_inputs(9, 6, 5, 4, 2)
    x, routing, w_gate_up, w_down = inputs.arguments
    with flop_counter() as counter:
        expert_mlp(x, routing, w_gate_up.requires_grad_(), w_down.requires_grad_(), backend="grouped").sum().backward()
    flops = expert_flops(18, 6, 5, input_grad=False)
    assert counter.by_op == {"moe_lab.grouped_mlp": flops.forward, "moe_lab.grouped_mlp_backward": flops.backward}


@pytest.mark.parametrize("method", ["balanced", "balanced_causal", "sinkhorn"])
def test_selections_that_are_operators_have_no_products(method):
    layer = MoE(6, 5, 4, 2, method)
    with flop_counter() as counter:
        layer(torch.randn(9, 6))
    assert counter.total_flops == 2 * 9 * 6 * 4 + expert_flops(18, 6, 5).forward and not counter.uncounted


def test_without_values_every_slot_counts():
    arguments, _ = arguments_of(**CASES["some dropped"])
    want = expert_flops(18, 6, 5).forward
    with flop_counter() as counter:
        torch.ops.moe_lab.grouped_mlp(*(a.to("meta") if torch.is_tensor(a) else a for a in arguments))
    assert counter.total_flops == want
    with FakeTensorMode() as fake, flop_counter() as counter:
        torch.ops.moe_lab.grouped_mlp(*(fake.from_tensor(a) if torch.is_tensor(a) else a for a in arguments))
    assert counter.total_flops == want
