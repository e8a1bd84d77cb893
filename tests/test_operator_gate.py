"""The gate as an operator: what PyTorch asks of one, gradients, the compiler, and the library's own router."""

import numpy as np
import pytest
import torch
from moe_lab.kernels.topk_gate import SCORES

from moe_lab import Routing, flop_counter, route
from moe_lab.operators.gate import gate, topk_gate, topk_gate_backward


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "plain": (normal(9, 8), 2, "softmax", None, False, 1.0),
    "biased": (normal(9, 13), 3, "sigmoid", normal(13, seed=1), True, 2.5),
    "half": (normal(5, 8).half(), 8, "softmax_after_top_k", None, False, 1.0),
    "no_tokens": (normal(0, 8), 2, "softmax", None, True, 1.0),
    "one_expert": (normal(3, 1), 1, "softmax", None, False, 1.0),
    "transposed": (normal(8, 9).T, 2, "softmax", None, False, 1.0),
}


def passes(operator, *arguments):
    """Schema, gradient, shapes, and the compiler with sizes that change: PyTorch's own tests of an operator."""
    results = torch.library.opcheck(operator, arguments)
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_accepts_both_operators(name, wants_gradient):
    logits, top_k, score, bias, renormalise, scale = CASES[name]
    leaf = logits.clone().requires_grad_(wants_gradient)
    passes(topk_gate, leaf, top_k, score, bias, renormalise, scale)
    weights, experts = topk_gate(logits, top_k, score, bias, renormalise, scale)
    passes(topk_gate_backward, torch.ones_like(weights), logits, experts, score, renormalise, scale)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bias", [None, 0.3 * normal(13, seed=2)])
def test_it_is_route_with_its_gradients(score, renormalise, bias):
    options = {"score": score, "renormalise": renormalise, "bias": bias, "scale": 2.5}
    ours = normal(10, 13).requires_grad_()
    exact = ours.detach().double().requires_grad_()
    routing, want = gate(ours, 4, **options), route(exact, 4, **options)
    Routing(routing.experts, routing.weights, routing.num_experts)  # looks at the values, which `gate` does not
    assert torch.equal(routing.experts, want.experts) and routing.num_experts == 13
    assert routing.weights.dtype == torch.float32 and not routing.experts.requires_grad
    torch.testing.assert_close(routing.weights.double(), want.weights, rtol=1e-6, atol=1e-6)
    upstream = normal(10, 4, seed=3)
    (got,) = torch.autograd.grad(routing.weights, ours, upstream, retain_graph=True)
    (gradient,) = torch.autograd.grad(want.weights, exact, upstream.double())
    torch.testing.assert_close(got.double(), gradient, rtol=1e-5, atol=1e-6)
    (again,) = torch.autograd.grad(routing.weights, ours, upstream)
    assert torch.equal(got, again)


def test_half_precision_logits_get_a_gradient_of_their_own_kind():
    logits = normal(6, 8).half().requires_grad_()
    routing = gate(logits, 2)
    assert routing.weights.dtype == torch.float32
    routing.weights.sum().backward()
    assert logits.grad.dtype == torch.float16
    exact = logits.detach().double().requires_grad_()
    route(exact, 2).weights.sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


def test_a_bias_learns_nothing_here():
    logits, bias = normal(6, 8).requires_grad_(), torch.zeros(8, requires_grad=True)
    gate(logits, 2, bias=bias).weights.sum().backward()
    assert logits.grad is not None and bias.grad is None


def test_frozen_logits_have_no_backward():
    assert not gate(normal(6, 8), 2).weights.requires_grad
    with torch.no_grad():
        assert not gate(normal(6, 8).requires_grad_(), 2).weights.requires_grad


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_the_compiler_takes_it_whole(unchecked_shapes):
    def loss(logits, bias):
        routing = gate(logits * 2, 2, score="sigmoid", bias=bias, renormalise=True)
        return (routing.weights * torch.arange(2)).sum(), routing.experts

    bias = normal(8, seed=1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 5):
        eager, traced = normal(tokens, 8).requires_grad_(), normal(tokens, 8).requires_grad_()
        want, want_experts = loss(eager, bias)
        got, experts = compiled(traced, bias)
        assert torch.equal(got, want) and torch.equal(experts, want_experts)
        want.backward()
        got.backward()
        assert torch.equal(traced.grad, eager.grad)


def test_shapes_without_values():
    logits = torch.empty(7, 20, device="meta", requires_grad=True)
    routing = gate(logits, 3)
    assert routing.weights.shape == routing.experts.shape == (7, 3)
    assert (routing.weights.dtype, routing.experts.dtype) == (torch.float32, torch.int64)
    routing.weights.sum().backward()
    assert logits.grad.shape == (7, 20)


def test_it_holds_no_products_and_says_so():
    with flop_counter() as counter:
        gate(normal(9, 8).requires_grad_(), 2).weights.sum().backward()
    assert counter.by_op == {"moe_lab.topk_gate": 0, "moe_lab.topk_gate_backward": 0}
    assert counter.total_flops == 0 and counter.uncounted == {}


def test_nothing_is_said_of_a_second_derivative():
    logits = normal(4, 8).requires_grad_()
    (first,) = torch.autograd.grad(gate(logits, 2).weights.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"moe_lab\.topk_gate_backward"):
        first.sum().backward()


def test_bad_arguments_are_named(unchecked_shapes):
    logits = normal(3, 5)
    for top_k in (0, 6):
        with pytest.raises(ValueError, match=r"top_k must be in 1\.\.5, got"):
            gate(logits, top_k)
    with pytest.raises(TypeError, match=r"top_k must be a whole number"):
        gate(logits, 1.5)
    with pytest.raises(ValueError, match=r"score must be one of"):
        gate(logits, 2, score="relu")
    with pytest.raises(ValueError, match=r"bias must be \(num_experts,\)"):
        gate(logits, 2, bias=torch.zeros(4))
    with pytest.raises(TypeError, match=r"logits must be float32, float16, bfloat16; got float64"):
        gate(logits.double(), 2)
    with pytest.raises(ValueError, match=r"logits must be \(tokens, num_experts\) with num_experts in 1\.\.1024"):
        gate(torch.zeros(2, 1025), 2)
    with pytest.raises(ValueError, match=r"logits must be \(tokens, num_experts\)"):
        gate(torch.zeros(5), 2)
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, got list"):
        gate([[1.0, 2.0]], 1)
    assert gate(logits, np.int64(2)).slots == 2


def test_importing_the_package_brings_no_triton(fresh):
    code = "import sys, moe_lab; moe_lab.MoE(4, 4, 2, 1); assert 'triton' not in sys.modules"
    fresh.run(code, check=True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu(gpu):
    for dtype in (torch.bfloat16, torch.float32):
        logits = normal(4096, 256).to(gpu, dtype).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        routing, want = gate(logits, 8, renormalise=True), route(exact, 8, renormalise=True)
        assert torch.equal(routing.experts, want.experts)
        upstream = normal(4096, 8, seed=1).to(gpu)
        routing.weights.backward(upstream)
        want.weights.backward(upstream.double())
        error = (logits.grad.double() - exact.grad).norm() / exact.grad.norm()
        assert float(error) < (4e-3 if dtype == torch.bfloat16 else 2e-6)
        passes(topk_gate, logits.detach().requires_grad_(), 8, "softmax", None, True, 1.0)


@pytest.mark.gpu
def test_a_cuda_graph_replays_it(gpu, replayed):
    logits = normal(512, 128).to(gpu)
    weights, experts = replayed(lambda: topk_gate(logits, 8, "softmax", None, False, 1.0))
    want = route(logits, 8)
    assert torch.equal(experts.long(), want.experts)
    torch.testing.assert_close(weights, want.weights, rtol=1e-5, atol=1e-6)
