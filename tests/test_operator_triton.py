"""moe_lab::triton_mlp: each way through the kernels against the loop in float64; what PyTorch asks of an operator."""

import concurrent.futures
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.sort_tokens import most_tiles

from moe_lab import MoE, Routing, expert_mlp, flop_counter
from moe_lab.accounting.layer import expert_flops, linear_flops
from moe_lab.activations import ACTIVATIONS
from moe_lab.experts import SAVES
from moe_lab.inputs import SPREADS, make_layer_inputs
from moe_lab.operators import triton_mlp as module
from moe_lab.operators.triton_mlp import Plan, make_plan

GRADIENTS = ("dx", "dweights", "dw_gate_up", "dw_down")
WAYS = {  # what `make_plan` chooses among, and for which shapes it is forced here
    "permuted, all kept": (Plan(False, 16, False), "fast"),
    "gathered, all kept": (Plan(False, 16, True), "fast"),
    "permuted, little kept": (Plan(False, 32, False), "min"),
    "gathered, little kept": (Plan(False, 16, True), "min"),
}


def leaves_of(inputs, dtype=None):
    leaves = (inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down)
    return [leaf.detach().to(dtype or leaf.dtype).requires_grad_() for leaf in leaves]


def run(inputs, dtype=None, **options):
    """y and the four gradients."""
    x, weights, w_gate_up, w_down = leaves = leaves_of(inputs, dtype)
    routing = Routing.trusted(inputs.routing.experts, weights, inputs.routing.num_experts)
    y = expert_mlp(x, routing, w_gate_up, w_down, **options)
    gradients = torch.autograd.grad(y, leaves, inputs.dy.to(y.dtype), allow_unused=True, materialize_grads=True)
    return y.detach(), *gradients


def check(inputs, agree, tolerance=None, **options):
    """The candidate first: nothing of the reference may lie in the memory that it gets."""
    got = run(inputs, backend="triton", **options)
    options.pop("save", None)
    want = run(inputs, torch.float64, backend="loop", **options)
    for name, ours, exact in zip(("y", *GRADIENTS), got, want, strict=True):
        agree(name, ours, exact, tolerance)


@pytest.fixture
def forced(monkeypatch):
    """A function that makes every call go one way."""
    return lambda plan: monkeypatch.setattr(module, "make_plan", lambda *_: plan)


# ---- against the loop


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_way(way, dtype, forced, poisoned, agree):
    plan, save = WAYS[way]
    forced(plan)
    inputs = make_layer_inputs(21, 40, 24, 5, 2, spread="half_empty", empty_slots=0.2, dtype=dtype)
    # float16 rounds hidden values, activated ones and answers, each by 2^-11, before the gradients multiply them
    check(inputs, agree, {torch.float32: 2e-6, torch.float16: 5e-3}[dtype], save=save)
    assert len(poisoned) > 12


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("save", SAVES)
def test_every_activation(activation, save, poisoned, agree):
    check(make_layer_inputs(7, 12, 10, 4, 2, activation=activation), agree, activation=activation, save=save)


@pytest.mark.parametrize(
    "shape",
    [
        dict(tokens=0, d_model=8, d_expert=4, num_experts=3, top_k=2),
        dict(tokens=1, d_model=8, d_expert=4, num_experts=8, top_k=2),
        dict(tokens=1, d_model=97, d_expert=47, num_experts=1, top_k=1),
        dict(tokens=2, d_model=47, d_expert=17, num_experts=3, top_k=3),
        dict(tokens=20, d_model=16, d_expert=24, num_experts=4, top_k=1, spread="one_expert"),
        dict(tokens=6, d_model=24, d_expert=16, num_experts=4, top_k=2, empty_slots=1.0),
    ],
    ids=lambda shape: "-".join(map(str, shape.values())),
)
@pytest.mark.parametrize("save", SAVES)
def test_edges(shape, save, poisoned, agree):
    # a single number may be a small rest of large terms
    check(make_layer_inputs(**shape), agree, 4e-6, save=save)


@given(
    tokens=st.integers(0, 12),
    d_model=st.integers(1, 20),
    d_expert=st.integers(1, 20),
    num_experts=st.integers(1, 6),
    spread=st.sampled_from(SPREADS),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
    way=st.sampled_from(sorted(WAYS)),
    data=st.data(),
)
@settings(max_examples=8, deadline=None)
def test_any_shape(tokens, d_model, d_expert, num_experts, spread, empty, way, data):
    top_k = data.draw(st.integers(1, num_experts))
    inputs = make_layer_inputs(tokens, d_model, d_expert, num_experts, top_k, spread=spread, empty_slots=empty)
    plan, save = WAYS[way]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_plan", lambda *_: plan)
        got = run(inputs, backend="triton", save=save)
    for ours, exact in zip(got, run(inputs, torch.float64, backend="loop"), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_decoding_is_for_few_tokens_without_a_gradient(agree, poisoned):
    inputs = make_layer_inputs(3, 24, 20, 8, 2, empty_slots=0.2)
    with torch.no_grad():
        y = expert_mlp(*inputs.arguments, backend="triton")
    assert [shape for shape in poisoned if len(shape) == 1] == [], "nothing was sorted"
    agree("y", y, run(inputs, torch.float64, backend="loop")[0])
    with flop_counter() as counter, torch.no_grad():
        expert_mlp(*inputs.arguments, backend="triton")
    assert list(counter.by_op) == ["moe_lab.decode_mlp"]


def test_non_contiguous_input_and_an_expanded_gradient(agree):
    inputs = make_layer_inputs(7, 12, 10, 4, 2)
    want = run(inputs, torch.float64, backend="loop")
    inputs = dataclasses.replace(
        inputs,
        x=inputs.x.T.contiguous().T,
        w_gate_up=inputs.w_gate_up.mT.contiguous().mT,
        w_down=inputs.w_down.mT.contiguous().mT,
        dy=inputs.dy.T.contiguous().T,
    )
    assert not any(t.is_contiguous() for t in (inputs.x, inputs.w_gate_up, inputs.w_down, inputs.dy))
    for name, ours, exact in zip(("y", *GRADIENTS), run(inputs, backend="triton"), want, strict=True):
        agree(name, ours, exact)
    x = inputs.x.clone().requires_grad_()
    expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="triton").sum().backward()
    (exact,) = torch.autograd.grad(
        expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="loop").sum(), x
    )
    torch.testing.assert_close(x.grad, exact)


def test_the_same_bits_again():
    inputs = make_layer_inputs(30, 24, 20, 4, 2, spread="skewed")
    for one, other in zip(run(inputs, backend="triton"), run(inputs, backend="triton"), strict=True):
        assert torch.equal(one, other)


def test_idle_experts_and_dropped_tokens_get_exact_zeros(poisoned):
    inputs = make_layer_inputs(9, 8, 6, 4, 1, spread="one_expert")
    inputs.routing.experts[3], inputs.routing.weights[3] = -1, 0.0
    y, dx, dweights, dw_gate_up, dw_down = run(inputs, backend="triton")
    assert not y[3].any() and not dx[3].any() and not dweights[3].any()
    assert not dw_gate_up[1:].any() and not dw_down[1:].any() and dw_down[0].any()


# ---- what is saved, and what is not computed


def saved_numbers(save, num_experts, tokens, d_model=32, d_expert=48, frozen=()):
    inputs = make_layer_inputs(tokens, d_model, d_expert, num_experts, 1)
    x, weights, w_gate_up, w_down = leaves_of(inputs)
    w_gate_up.requires_grad_("w_gate_up" not in frozen)
    w_down.requires_grad_("w_down" not in frozen)
    given, kept = {x.data_ptr(), w_gate_up.data_ptr(), w_down.data_ptr(), weights.data_ptr()}, []

    def pack(tensor):
        if tensor.is_floating_point() and tensor.data_ptr() not in given:
            kept.append(tensor.numel())
        return tensor

    routing = Routing.trusted(inputs.routing.experts, weights, num_experts)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        expert_mlp(x, routing, w_gate_up, w_down, backend="triton", save=save)
    return sum(kept)


@pytest.mark.parametrize(("num_experts", "tokens", "rows"), [(1, 64, 64), (4, 64, 4 * 16 + 3 * 16), (16, 3, 3 * 16)])
def test_what_each_mode_keeps(num_experts, tokens, rows):
    """The numbers of the docstring, and nothing else: whole tiles, and up to a tile more an expert."""
    assert (
        most_tiles(tokens, num_experts, make_plan(tokens, num_experts, "min").block_m)
        * (make_plan(tokens, num_experts, "min").block_m)
        == rows
    )
    assert saved_numbers("min", num_experts, tokens) == rows * 2 * 48
    assert saved_numbers("fast", num_experts, tokens) == rows * (32 + 3 * 48)
    assert saved_numbers("fast", num_experts, tokens, frozen=("w_gate_up",)) == rows * 3 * 48
    assert saved_numbers("fast", num_experts, tokens, frozen=("w_down",)) == rows * (32 + 2 * 48)


@pytest.mark.parametrize("learning", [False, True])
def test_nothing_is_kept_where_nothing_learns(learning, forced, poisoned):
    forced(Plan(False, 16, False))
    inputs = make_layer_inputs(6, 8, 5, 3, 2)
    inputs.w_down.requires_grad_(learning)  # as in a layer that is evaluated
    with torch.no_grad():
        expert_mlp(*inputs.arguments, backend="triton")
    assert not [shape for shape in poisoned if shape[-1:] == (10,) and shape[0]], "hidden values were stored"


@pytest.mark.parametrize("save", SAVES)
def test_frozen_experts_cost_nothing(save, monkeypatch):
    inputs = make_layer_inputs(6, 8, 5, 3, 2)
    x = inputs.x.requires_grad_()
    y = expert_mlp(x, inputs.routing, inputs.w_gate_up, inputs.w_down, backend="triton", save=save)

    def never(*_):
        raise AssertionError("a weight gradient was computed for frozen experts")

    monkeypatch.setattr(module, "grouped_weight_gradient", never)
    (dx,) = torch.autograd.grad(y, x, inputs.dy)
    assert dx.any()


def arguments_of(save="fast", gather=False, activation="swiglu", **case):
    inputs = make_layer_inputs(**{**dict(tokens=7, d_model=6, d_expert=5, num_experts=4, top_k=2), **case})
    x, routing, w_gate_up, w_down = inputs.arguments
    return (x, routing.experts, routing.weights, w_gate_up, w_down, activation, 16, gather, save), inputs.dy


def backward_arguments_of(wanted, save="fast", gather=False, **case):
    arguments, dy = arguments_of(save, gather, **case)
    x, _, weights, w_gate_up, w_down, activation, block_m, *_ = arguments
    _, rows, hidden, inner, *table = torch.ops.moe_lab.triton_mlp(*arguments)
    permuted = save == "fast" and not gather
    source = rows if permuted else x
    return dy, source, permuted, hidden, inner, table, weights, w_gate_up, w_down, activation, block_m, list(wanted)


WANTED = [tuple(place == one for place in range(4)) for one in range(4)]  # each by itself
WANTED += [(True, False, False, True), (False, False, True, True), (False, False, False, False)]


@pytest.mark.parametrize("save", SAVES)
def test_each_gradient_is_the_same_whatever_else_is_wanted_and_empty_if_it_is_not(save):
    backward = backward_arguments_of([True] * 4, save, tokens=4)
    everything = torch.ops.moe_lab.triton_mlp_backward(*backward)
    for wanted in WANTED:
        with flop_counter() as counter:
            got = torch.ops.moe_lab.triton_mlp_backward(*backward[:-1], list(wanted))
        for ours, full, want in zip(got, everything, wanted, strict=True):
            assert torch.equal(ours, full) if want else ours.numel() == 0
        x, weights, up, down = wanted
        back = x or weights or up or (down and save == "min")
        first = linear_flops(8, 6, 10, input_grad=x, weight_grad=up)
        second = linear_flops(8, 5, 6, input_grad=back, weight_grad=down)
        assert counter.total_flops == first.backward + second.backward, wanted


# ---- what PyTorch asks of an operator


@pytest.mark.parametrize(("save", "gather"), [("fast", False), ("min", True), ("nothing", True)])
def test_opcheck_forward(save, gather):
    """All tiles that could be are in use here: rows of others are not written, and opcheck compares them."""
    arguments, _ = arguments_of(save, gather, empty_slots=0.3)
    torch.library.opcheck(torch.ops.moe_lab.triton_mlp.default, arguments)
    if save != "nothing":
        x, experts, *learning = arguments[:5]
        x, *learning = (tensor.clone().requires_grad_() for tensor in (x, *learning))
        torch.library.opcheck(torch.ops.moe_lab.triton_mlp.default, (x, experts, *learning, *arguments[5:]))


@pytest.mark.parametrize(("save", "wanted"), [("fast", (True, True, True, True)), ("min", (False, True, False, False))])
def test_opcheck_backward(save, wanted):
    arguments = backward_arguments_of(wanted, save, empty_slots=0.3)
    torch.library.opcheck(torch.ops.moe_lab.triton_mlp_backward.default, arguments)


def test_opcheck_decode():
    arguments, _ = arguments_of(empty_slots=0.3)
    torch.library.opcheck(torch.ops.moe_lab.decode_mlp.default, arguments[:6])


def test_the_counter_counts_what_was_asked_for():
    """Forward and backward equal the closed form, padding left out."""
    for save in SAVES:
        inputs = make_layer_inputs(9, 6, 5, 4, 2, empty_slots=0.3)
        x, weights, w_gate_up, w_down = leaves_of(inputs)
        routing = Routing.trusted(inputs.routing.experts, weights, 4)
        with flop_counter() as counter:
            expert_mlp(x, routing, w_gate_up, w_down, backend="triton", save=save).sum().backward()
        flops = expert_flops(int(routing.load.sum()), 6, 5)
        by_op = {"moe_lab.triton_mlp": flops.forward, "moe_lab.triton_mlp_backward": flops.backward}
        assert counter.by_op == by_op and not counter.uncounted


# ---- plans and refusals


@pytest.mark.parametrize("num_experts", [1, 8, 128])
def test_tiles_are_the_next_power_of_two_of_rows_an_expert(num_experts):
    for assignments in range(0, 300 * num_experts, max(1, num_experts // 4)):
        rows = -(-assignments // num_experts)
        want = min(128, max(16, 1 << (rows - 1).bit_length() if rows else 16))
        assert make_plan(assignments, num_experts, "fast").block_m == want


def test_who_decodes_and_who_gathers():
    assert make_plan(8, 128, "nothing").decode and not make_plan(8, 128, "min").decode
    assert not make_plan(65, 128, "nothing").decode and not make_plan(17, 8, "nothing").decode
    assert make_plan(255, 1, "min").gather and not make_plan(256, 1, "min").gather
    assert not make_plan(8, 128, "fast").gather


def test_no_second_derivative_says_so():
    inputs = make_layer_inputs(4, 3, 3, 2, 1)
    y = expert_mlp(inputs.x.requires_grad_(), *inputs.arguments[1:], backend="triton")
    with pytest.raises(RuntimeError, match='backend="loop" for create_graph=True'):
        torch.autograd.grad(y.sum(), inputs.x, create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own use of it
def test_no_forward_mode_derivative_says_so():
    inputs = make_layer_inputs(4, 3, 3, 2, 1)
    for backend in ("grouped", "triton"):
        with pytest.raises(
            RuntimeError, match=f'"{backend}" backend has no forward-mode derivative; use backend="loop"'
        ):
            torch.func.jvp(
                lambda x, backend=backend: expert_mlp(x, *inputs.arguments[1:], backend=backend),
                (inputs.x,),
                (torch.ones_like(inputs.x),),
            )


def test_what_is_no_expert_is_an_empty_slot_for_every_plan(forced):
    """Only `Routing.trusted` lets such a number through."""
    inputs = make_layer_inputs(3, 8, 5, 4, 2)
    wild = Routing.trusted(inputs.routing.experts.clone(), inputs.routing.weights, 4)
    wild.experts[:, 1] = torch.tensor([4, 9, -7])
    known = Routing.trusted(wild.experts.clamp(-1, 4).where(wild.experts < 4, -1), inputs.routing.weights, 4)
    want = expert_mlp(inputs.x, known, inputs.w_gate_up, inputs.w_down, backend="loop")
    for plan in (Plan(True, 16, False), Plan(False, 16, False)):
        forced(plan)
        y = expert_mlp(inputs.x, wild, inputs.w_gate_up, inputs.w_down, backend="triton")
        torch.testing.assert_close(y, want)


def test_threads_do_not_mix():
    """Triton's interpreter keeps its grid in a global."""
    inputs = make_layer_inputs(20, 8, 5, 4, 2)
    want = run(inputs, backend="triton")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got in [pool.submit(run, inputs, backend="triton") for _ in range(4)]:
            assert all(torch.equal(one, other) for one, other in zip(got.result(), want, strict=True))


def test_an_optimiser_made_before_the_first_call_is_no_obstacle(fresh):
    """An optimiser imports Triton, and without a GPU the interpreter must be on by then: the layer sees to it."""
    code = (
        "import torch, moe_lab\n"
        "layer = moe_lab.MoE(8, 8, 2, 1, backend='triton')\n"
        "optimiser = torch.optim.AdamW(layer.parameters())\n"
        "layer(torch.randn(3, 8)).sum().backward()\n"
        "assert layer.w_down.grad is not None\n"
    )
    fresh.run(code, without=("TRITON_INTERPRET",), check=True)


@pytest.mark.skipif(not INTERPRET, reason="bfloat16 is right on a GPU")
def test_bfloat16_in_the_interpreter_is_refused():
    inputs = make_layer_inputs(4, 3, 3, 2, 1, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="bfloat16, which Triton's interpreter computes wrongly"):
        expert_mlp(*inputs.arguments, backend="triton")


def test_float64_is_refused():
    inputs = make_layer_inputs(4, 3, 3, 2, 1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"routing.weights must be float32 or narrower .* got torch.float64"):
        expert_mlp(*inputs.arguments, backend="triton")
    narrow = Routing(inputs.routing.experts, inputs.routing.weights.float(), 2)
    with pytest.raises(TypeError, match="x must be float32, float16, bfloat16; got float64"):
        expert_mlp(inputs.x, narrow, inputs.w_gate_up, inputs.w_down, backend="triton")


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="save must be one of fast, min; got 'all'"):
        expert_mlp(*make_layer_inputs(4, 3, 3, 2, 1).arguments, save="all")
    with pytest.raises(ValueError, match="save must be one of fast, min; got 'none'"):
        MoE(4, 4, 2, 1, save="none")


# ---- on a GPU


def qwen3_inputs(gpu, tokens, **options):
    return make_layer_inputs(tokens, 2048, 768, 128, 8, dtype=torch.bfloat16, device=gpu, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("spread", ["uniform", "skewed"])
def test_on_the_gpu(gpu, agree, save, tokens, spread):
    """bfloat16 against float32 by the grouped backend; four roundings of 2^-9 before the last gradient."""
    inputs = qwen3_inputs(gpu, tokens, spread=spread, empty_slots=0.1)
    got = run(inputs, backend="triton", save=save)
    again = run(inputs, backend="triton", save=save)
    for one, other in zip(got, again, strict=True):
        assert torch.equal(one, other), "not the same bits again"
    for name, ours, exact in zip(("y", *GRADIENTS), got, run(inputs, torch.float32, backend="grouped"), strict=True):
        agree(name, ours, exact, 3e-2)


@pytest.mark.gpu
def test_more_than_31_bits_of_hidden_values_on_the_gpu(gpu):
    """tokens * top_k * 2 * d_expert beyond 2^31; the last tokens are held against a layer of their own."""
    tokens, num_experts, top_k, d_model, d_expert = 65536, 16, 8, 256, 2304
    assert tokens * top_k * 2 * d_expert > 2**31
    inputs = make_layer_inputs(tokens, d_model, d_expert, num_experts, top_k, dtype=torch.bfloat16, device=gpu)
    y, dx, dweights, _, _ = run(inputs, backend="triton", save="min")
    last = slice(tokens - 64, tokens)
    routing = Routing(inputs.routing.experts[last], inputs.routing.weights[last], num_experts)
    few = type(inputs)(inputs.x[last], routing, inputs.w_gate_up, inputs.w_down, inputs.dy[last])
    want = run(few, torch.float32, backend="grouped")
    for ours, exact in zip((y[last], dx[last], dweights[last]), want, strict=False):
        assert float((ours.float() - exact.float()).norm() / exact.float().norm()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [4, 512])
def test_a_cuda_graph_holds_for_every_routing(gpu, replayed, tokens):
    """Captured on one routing, replayed into NaN on another that was copied into the same memory."""
    inputs, other = qwen3_inputs(gpu, tokens), qwen3_inputs(gpu, tokens, spread="skewed", seed=1)
    want = expert_mlp(other.x, other.routing, inputs.w_gate_up, inputs.w_down, backend="triton")

    def change():
        inputs.x.copy_(other.x)
        inputs.routing.experts.copy_(other.routing.experts)
        inputs.routing.weights.copy_(other.routing.weights)

    (y,) = replayed(lambda: expert_mlp(*inputs.arguments, backend="triton"), before=change)
    assert torch.equal(y, want)
