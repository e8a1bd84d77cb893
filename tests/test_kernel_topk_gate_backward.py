"""The gate's gradient against the library's router under autograd, finite differences, and what must hold of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels.topk_gate import SCORES, topk_gate
from moe_lab.kernels.topk_gate_backward import (
    SHAPES,
    make_inputs,
    topk_gate_backward,
    topk_gate_backward_reference,
)

from moe_lab import route
from moe_lab.tracing import trace

SMALL = [name for name in SHAPES if name not in ("qwen3", "deepseek")]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_problem(tokens, num_experts, top_k, score="softmax", seed=0, scale_logits=1.0):
    """Upstream gradients, logits, and the experts that the kernel itself chooses."""
    logits = normal(tokens, num_experts, seed=seed) * scale_logits
    return normal(tokens, top_k, seed=seed + 1), logits, topk_gate(logits, top_k, score=score)[1]


def librarys_own(dweights, logits, top_k, **options):
    """The gradient that autograd finds in float64 behind `route`."""
    leaf = logits.double().requires_grad_()
    weights = route(leaf, top_k, **options).weights
    return torch.autograd.grad(weights, leaf, dweights.double())[0]


SMALL_GRADIENT = torch.tensor([0.1])


def check(got, want, tolerance=1e-6, cancels=SMALL_GRADIENT):
    """Relative Frobenius error, and the worst element; gradients that cancel are held against what cancels, not 0."""
    assert got.shape == want.shape
    if want.numel():
        error = got.double() - want
        for size in (torch.linalg.norm, lambda values: values.abs().max()):
            assert float(size(error)) <= tolerance * max(float(size(cancels)), float(size(want)))


def what_cancels(dweights, renormalise=False, **_):
    """Renormalised, g - g * c / S is left, which is 0 for one expert a token: its rounding goes with g itself."""
    return dweights if renormalise else SMALL_GRADIENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_every_shape_in_float64(name, dtype):
    dweights, logits, experts = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    got = topk_gate_backward(dweights, logits, experts)
    assert got.dtype == dtype
    want = topk_gate_backward_reference(dweights.double(), logits.double(), experts)
    check(got, want, tolerance=1e-6 if dtype == torch.float32 else 5e-4)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_every_option_against_autograd_of_the_librarys_router(score, renormalise, scale):
    options = {"score": score, "renormalise": renormalise, "scale": scale}
    for seed, size in ((0, 1.0), (7, 6.0)):
        dweights, logits, experts = make_problem(10, 13, 4, score, seed, size)
        got = topk_gate_backward(dweights, logits, experts, **options)
        check(got, librarys_own(dweights, logits, 4, **options))
        exact = topk_gate_backward_reference(dweights.double(), logits.double(), experts, **options)
        torch.testing.assert_close(exact, librarys_own(dweights, logits, 4, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_the_bias_takes_no_part(score):
    """It chose the experts; the gradient is that of their weights, which never saw it."""
    bias = 0.5 * normal(13, seed=3)
    dweights, logits, _ = make_problem(10, 13, 4)
    experts = topk_gate(logits, 4, score=score, bias=bias)[1]
    got = topk_gate_backward(dweights, logits, experts, score=score, renormalise=True)
    check(got, librarys_own(dweights, logits, 4, score=score, bias=bias, renormalise=True))


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_the_reference_against_finite_differences(score, renormalise):
    """Moving one logit by a little moves dweights . weights by a little times its gradient."""
    dweights, logits, experts = make_problem(2, 5, 3, score)
    dweights, logits, step = dweights.double(), logits.double(), 1e-6
    got = topk_gate_backward_reference(dweights, logits, experts, score=score, renormalise=renormalise)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        values = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[tuple(place)] += sign * step
            routing = route(moved, 3, score=score, renormalise=renormalise)
            assert torch.equal(routing.experts, experts.long())
            values.append(float((dweights * routing.weights).sum()))
        assert abs((values[0] - values[1]) / (2 * step) - float(got[tuple(place)])) < 1e-8


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("num_experts", [1, 3, 97, 256])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_edges(tokens, num_experts, score):
    for top_k in {1, min(2, num_experts), num_experts if num_experts <= 97 else 8}:
        dweights, logits, experts = make_problem(tokens, num_experts, top_k, score)
        got = topk_gate_backward(dweights, logits, experts, score=score, renormalise=True)
        check(got, librarys_own(dweights, logits, top_k, score=score, renormalise=True), cancels=dweights)


@pytest.mark.parametrize("score", SCORES)
def test_huge_and_equal_logits(score):
    for factor in (0.0, 1e4):
        dweights, logits, experts = make_problem(9, 13, 4, score, scale_logits=factor)
        got = topk_gate_backward(dweights, logits, experts, score=score)
        assert bool(got.isfinite().all())
        check(got, librarys_own(dweights, logits, 4, score=score))
    # 1 - sigmoid(16) as a difference of float32 has one digit left
    logits, dweights = torch.tensor([[16.0, 0.0, 12.0]]), torch.tensor([[1.0, 1.0]])
    got = topk_gate_backward(dweights, logits, torch.tensor([[0, 2]], dtype=torch.int32), score="sigmoid")
    want = logits.double().sigmoid() * (-logits.double()).sigmoid() * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0.0)


@st.composite
def problems(draw):
    num_experts = draw(st.integers(1, 40))
    top_k = draw(st.integers(1, num_experts))
    score = draw(st.sampled_from(SCORES))
    problem = make_problem(draw(st.integers(0, 9)), num_experts, top_k, score, draw(st.integers(0, 999)))
    return *problem, {"score": score, "renormalise": draw(st.booleans())}


@given(problems())
@settings(max_examples=10, deadline=None)
def test_it_is_the_gradient_and_the_order_of_slots_is_none_of_its_business(problem):
    dweights, logits, experts, options = problem
    got = topk_gate_backward(dweights, logits, experts, **options)
    want = librarys_own(dweights, logits, experts.shape[1], **options)
    check(got, want, cancels=what_cancels(dweights, **options))
    assert torch.equal(topk_gate_backward(dweights.flip(1), logits, experts.flip(1), **options), got)
    if options["score"] != "sigmoid":  # adding a number to all logits changes no weight
        torch.testing.assert_close(got.sum(dim=1), torch.zeros(len(got)), rtol=0.0, atol=1e-5)


def test_an_empty_slot_passes_nothing_on():
    dweights, logits, experts = make_problem(9, 8, 3)
    experts[:, 1], experts[4] = -1, -1
    spoilt = dweights.masked_fill(experts < 0, float("nan"))
    for score in ("softmax", "sigmoid"):
        got = topk_gate_backward(spoilt, logits, experts, score=score)
        assert bool((got[4] == 0).all())
        known = dweights.masked_fill(experts < 0, 0.0).double()
        check(got, topk_gate_backward_reference(known, logits.double(), experts.clamp_min(0), score=score))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy, in the interpreter
def test_a_token_without_experts_divides_nothing_by_nothing():
    dweights, logits, experts = make_problem(9, 8, 3)
    experts[4] = -1
    got = topk_gate_backward(dweights, logits, experts, score="softmax_after_top_k")
    assert bool(got.isfinite().all()) and got.any(dim=1).tolist() == [token != 4 for token in range(9)]


def test_tensors_may_lie_anywhere():
    dweights, logits, experts = make_problem(10, 9, 3)
    want = topk_gate_backward(dweights, logits, experts)
    wide = torch.stack([dweights, dweights], dim=2)[..., 0], logits.T.contiguous().T, experts.T.contiguous().T
    assert not any(tensor.is_contiguous() for tensor in wide)
    assert torch.equal(topk_gate_backward(*wide), want)
    ones = torch.ones(1, 1).expand(10, 3)  # what sum().backward() sends
    want = topk_gate_backward(torch.ones(10, 3), logits, experts)
    assert torch.equal(topk_gate_backward(ones, logits, experts), want)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_is_written_whole_and_nothing_else_is_read(name, score, poisoned, surrounded):
    inputs = make_inputs(**SHAPES[name], dtype=torch.float32, device="cpu")
    got = topk_gate_backward(*(surrounded(tensor) for tensor in inputs), score=score)
    assert got.shape in poisoned
    check(got, topk_gate_backward_reference(inputs[0].double(), inputs[1].double(), inputs[2], score=score))


def test_every_address_is_inside():
    with trace() as record:
        topk_gate_backward(*make_inputs(**SHAPES["odd"], dtype=torch.float32, device="cpu"))
    assert record.outside == []


def test_bad_arguments_are_named():
    dweights, logits, experts = make_problem(3, 5, 2)
    with pytest.raises(ValueError, match=r"score must be one of"):
        topk_gate_backward(dweights, logits, experts, score="relu")
    for wrong in (experts[:2], experts[:, :1], experts[0]):
        with pytest.raises(ValueError, match=r"dweights and experts must both be \(3, top_k\), got \(3, 2\) and"):
            topk_gate_backward(dweights, logits, wrong)
    with pytest.raises(ValueError, match=r"dweights and experts must both be \(2, top_k\)"):
        topk_gate_backward(dweights, logits[:2], experts)
    with pytest.raises(TypeError, match=r"experts must be int32; got int64"):
        topk_gate_backward(dweights, logits, experts.long())
    with pytest.raises(TypeError, match=r"dweights must be float32; got float16"):
        topk_gate_backward(dweights.half(), logits, experts)
    with pytest.raises(TypeError, match=r"logits must be float32, float16, bfloat16; got int32"):
        topk_gate_backward(dweights, experts, experts)
    with pytest.raises(ValueError, match=r"experts is on meta and logits on cpu"):
        topk_gate_backward(dweights, logits, experts.to("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU bfloat16 is right")
def test_bfloat16_is_refused_in_the_interpreter():
    dweights, logits, experts = make_problem(3, 5, 2)
    with pytest.raises(TypeError, match=r"logits is bfloat16, which Triton's interpreter computes wrongly"):
        topk_gate_backward(dweights, logits.bfloat16(), experts)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_big_batches_on_a_gpu(gpu, dtype):
    dweights, logits, experts = make_inputs(**SHAPES["deepseek"], dtype=dtype, device=gpu)
    for score in SCORES:
        options = {"score": score, "renormalise": True, "scale": 2.5}
        got = topk_gate_backward(dweights, logits, experts, **options)
        assert got.dtype == dtype
        want = topk_gate_backward_reference(dweights.double(), logits.double(), experts, **options)
        check(got, want, tolerance={torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}[dtype])
        assert torch.equal(topk_gate_backward(dweights, logits, experts, **options), got)


@pytest.mark.gpu
def test_a_cuda_graph_replays_it(gpu, replayed):
    inputs = make_inputs(512, 128, 8, dtype=torch.bfloat16, device=gpu)
    (got,) = replayed(lambda: topk_gate_backward(*inputs))
    assert torch.equal(got, topk_gate_backward(*inputs))
