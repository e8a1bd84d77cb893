"""The top-k gate against the library's own router, and against plain Python in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels.topk_gate import MOST_EXPERTS, SCORES, SHAPES, make_inputs, topk_gate, topk_gate_reference

from moe_lab import route
from moe_lab.tracing import trace

SMALL = [name for name in SHAPES if name not in ("qwen3", "deepseek")]
KINDS = ("plain", "tied", "equal", "huge")


def make_logits(tokens, num_experts, kind="plain", seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, num_experts, generator=draw)
    if kind == "tied":
        return logits.round()  # -0.0 among them, which is no less than 0.0
    return {"plain": logits, "equal": torch.zeros_like(logits), "huge": logits * 1e4}[kind]


def make_bias(num_experts, seed=1):
    return 0.3 * torch.randn(num_experts, generator=torch.Generator().manual_seed(seed))


def by_hand(logits, top_k, score="softmax", bias=None, renormalise=False, scale=1.0):
    """One token and one expert at a time, in Python's own float64."""
    weights, experts = [], []
    for row in logits.double().tolist():
        if score == "softmax":
            raised = [math.exp(x - max(row)) for x in row]
            scores = [value / math.fsum(raised) for value in raised]
        else:
            scores = [1 / (1 + math.exp(-x)) if x > -700 else 0.0 for x in row] if score == "sigmoid" else row
        ranking = row if bias is None else [s + b for s, b in zip(scores, bias.double().tolist(), strict=True)]
        best = sorted(range(len(row)), key=lambda e: (-ranking[e], e))[:top_k]
        chosen = [scores[e] for e in best]
        if score == "softmax_after_top_k":
            raised = [math.exp(x - max(chosen)) for x in chosen]
            chosen = [value / math.fsum(raised) for value in raised]
        if renormalise:
            chosen = [value / (math.fsum(chosen) + 1e-20) for value in chosen]
        weights.append([scale * value for value in chosen])
        experts.append(best)
    shape = len(logits), top_k
    return torch.tensor(weights, dtype=torch.float64).reshape(shape), torch.tensor(experts).reshape(shape)


def check(logits, top_k, **options):
    """The kernel first, then the library's router: the same experts, weights to 1e-6."""
    weights, experts = topk_gate(logits, top_k, **options)
    assert weights.dtype == torch.float32 and experts.dtype == torch.int32
    want = route(logits, top_k, **options)
    assert torch.equal(experts.long(), want.experts)
    torch.testing.assert_close(weights, want.weights, rtol=1e-6, atol=1e-6)
    return weights, experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_every_shape_in_float64(name, dtype):
    logits, top_k = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    weights, experts = check(logits, top_k)
    want, want_experts = by_hand(logits, top_k)
    assert torch.equal(experts.long(), want_experts)
    error = (weights - want).norm() / want.norm()
    assert float(error) < 3e-7 and float((weights - want).abs().max()) < 3e-7


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_every_option(score, biased, renormalise, scale):
    bias = make_bias(13) if biased else None
    options = {"score": score, "bias": bias, "renormalise": renormalise, "scale": scale}
    for kind in KINDS:
        logits = make_logits(10, 13, kind)
        check(logits, 4, **options)
        want, experts = by_hand(logits, 4, **options)
        exact = topk_gate_reference(logits.double(), 4, **options)
        assert torch.equal(exact[1].long(), experts)
        torch.testing.assert_close(exact[0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_experts", [1, 3, 97, 256, MOST_EXPERTS])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_edges(tokens, num_experts):
    """No token, one token; one expert, any number of them; the whole range of top_k."""
    for top_k in {1, min(2, num_experts), num_experts if num_experts <= 97 else 8}:
        weights, experts = check(make_logits(tokens, num_experts), top_k)
        assert weights.shape == experts.shape == (tokens, top_k)


def test_all_experts_chosen_are_all_experts():
    _, experts = check(make_logits(5, 97), 97, bias=make_bias(97))
    assert torch.equal(experts.sort(dim=1).values, torch.arange(97, dtype=torch.int32).expand(5, 97))


def test_ties_go_to_the_lower_expert():
    logits = torch.tensor([[0.0, -0.0, 1.0, 0.0, 1.0], [-0.0, 0.0, -0.0, -1.0, 0.0]])
    assert check(logits, 4)[1].tolist() == [[2, 4, 0, 1], [0, 1, 2, 4]]
    # logits are ranked, not sigmoids, which are 1 for all of these
    assert check(torch.tensor([[20.0, 22.0, 21.0, 22.0]]), 3, score="sigmoid")[1].tolist() == [[1, 3, 2]]
    # with a bias, even of zeros, they are
    assert check(torch.tensor([[20.0, 22.0, 21.0]]), 2, score="sigmoid", bias=torch.zeros(3))[1].tolist() == [[0, 1]]


def test_a_bias_selects_and_never_weighs():
    logits, bias = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0.0, 0.0, 5.0])
    weights, experts = check(logits, 2, bias=bias)
    assert experts.tolist() == [[2, 0]]
    torch.testing.assert_close(weights, logits.softmax(dim=1)[:, [2, 0]])


def test_float16_overflows_nothing():
    logits = torch.tensor([[65504.0, -65504.0, 65472.0, 0.0]], dtype=torch.float16)
    for score in SCORES:
        check(logits, 3, score=score, renormalise=True)
        check(logits, 3, score=score, renormalise=True, bias=torch.zeros(4, dtype=torch.float16))


@st.composite
def problems(draw):
    num_experts = draw(st.integers(1, 40))
    logits = make_logits(draw(st.integers(0, 9)), num_experts, draw(st.sampled_from(KINDS)), draw(st.integers(0, 999)))
    options = {"score": draw(st.sampled_from(SCORES)), "renormalise": draw(st.booleans())}
    return logits, draw(st.integers(1, num_experts)), options


@given(problems())
@settings(max_examples=30, deadline=None)
def test_it_is_the_librarys_router(problem):
    logits, top_k, options = problem
    check(logits, top_k, **options)


def test_logits_may_lie_anywhere():
    dense = make_logits(26, 9)
    every_other, transposed = dense[::2], dense.T
    assert not every_other.is_contiguous() and not transposed.is_contiguous()
    check(every_other, 3)
    check(transposed, 3, bias=make_bias(52)[::2])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_written_whole_and_nothing_else_is_read(name, score, poisoned, surrounded):
    logits, top_k = make_inputs(**SHAPES[name], dtype=torch.float32, device="cpu")
    options = {"score": score, "bias": make_bias(logits.shape[1]), "renormalise": True}
    around = options | {"bias": surrounded(options["bias"])}
    weights, experts = topk_gate(surrounded(logits), top_k, **around)
    assert poisoned[:2] == [weights.shape] * 2
    want, want_experts = by_hand(logits, top_k, **options)
    assert torch.equal(experts.long(), want_experts)
    torch.testing.assert_close(weights.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_every_address_is_inside(score):
    """Nothing beyond the last expert or token is touched, not even to be thrown away."""
    logits, top_k = make_inputs(**SHAPES["odd"], dtype=torch.float32, device="cpu")
    with trace() as record:
        topk_gate(logits, top_k, score=score, bias=make_bias(97))
    assert record.outside == []


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter takes the maximum of a row in NumPy
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bias", [None, torch.zeros(4)])
def test_what_route_refuses_keeps_experts_distinct_and_in_range(score, bias):
    """-inf and NaN are not looked for: they do what they do in PyTorch, and no index leaves its range."""
    inf, nan = math.inf, math.nan
    rows = [[-inf, 1.0, -inf, -inf], [-inf] * 4, [1.0, nan, 2.0, -nan], [nan] * 4, [1.0, inf, 2.0, inf], [inf] * 4]
    logits = torch.tensor(rows)
    for top_k in (1, 3, 4):
        with np.errstate(all="ignore"):  # inf - inf, which the interpreter leaves to NumPy
            weights, experts = topk_gate(logits, top_k, score=score, bias=bias, renormalise=True)
        want, want_experts = topk_gate_reference(logits, top_k, score=score, bias=bias, renormalise=True)
        assert torch.equal(experts, want_experts)
        torch.testing.assert_close(weights, want, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert all(len(set(row)) == top_k and min(row) >= 0 and max(row) <= 3 for row in experts.tolist())
        assert bool(weights[3].isnan().all()), "a NaN must show"


def test_bad_arguments_are_named():
    logits = torch.zeros(3, 5)
    for top_k in (0, 6, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"top_k must be a whole number in 1\.\.5, got"):
            topk_gate(logits, top_k)
    with pytest.raises(ValueError, match=r"score must be one of softmax, sigmoid, softmax_after_top_k; got 'relu'"):
        topk_gate(logits, 2, score="relu")
    for bias in (torch.zeros(4), torch.zeros(1, 5), torch.zeros(())):
        with pytest.raises(ValueError, match=r"bias must be \(num_experts,\) = \(5,\), got"):
            topk_gate(logits, 2, bias=bias)
    with pytest.raises(TypeError, match=r"bias must be float32, .*; got float64"):
        topk_gate(logits, 2, bias=torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"num_experts in 1\.\.1024, got \(2, 1025\)"):
        topk_gate(torch.zeros(2, 1025), 2)
    for shape in ((5,), (2, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"logits must be \(tokens, num_experts\)"):
            topk_gate(torch.zeros(shape), 1)
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(TypeError, match=r"logits must be float32, float16, bfloat16; got"):
            topk_gate(logits.to(dtype), 2)
    with pytest.raises(TypeError, match=r"renormalise must be True or False, got 1"):
        topk_gate(logits, 2, renormalise=1)
    for scale in (True, "1", math.nan, math.inf):
        with pytest.raises(ValueError, match=r"scale must be a finite number, got"):
            topk_gate(logits, 2, scale=scale)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU bfloat16 is right")
def test_bfloat16_is_refused_in_the_interpreter():
    with pytest.raises(TypeError, match=r"logits is bfloat16, which Triton's interpreter computes wrongly"):
        topk_gate(torch.zeros(3, 5, dtype=torch.bfloat16), 2)
    with pytest.raises(TypeError, match=r"bias is bfloat16"):
        topk_gate(torch.zeros(3, 5), 2, bias=torch.zeros(5, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_big_batches_on_a_gpu(gpu, dtype):
    logits, top_k = make_inputs(**SHAPES["deepseek"], dtype=dtype, device=gpu)
    for score in SCORES:
        weights, experts = topk_gate(logits, top_k, score=score, renormalise=True)
        want, want_experts = topk_gate_reference(logits.double(), top_k, score=score, renormalise=True)
        assert torch.equal(experts, want_experts)  # bfloat16 logits are full of ties
        assert float((weights - want).abs().max()) < 2e-6
        again = topk_gate(logits, top_k, score=score, renormalise=True)
        assert torch.equal(weights, again[0]) and torch.equal(experts, again[1])


@pytest.mark.gpu
def test_edges_on_a_gpu(gpu):
    for tokens, num_experts, top_k in ((0, 8, 2), (1, 1, 1), (3, 97, 97), (5, 1024, 16)):
        for kind in KINDS:
            logits = make_logits(tokens, num_experts, kind).to(gpu)
            weights, experts = topk_gate(logits, top_k)
            want, want_experts = topk_gate_reference(logits.double(), top_k)
            assert torch.equal(experts, want_experts)
            torch.testing.assert_close(weights.double(), want, rtol=1e-5, atol=1e-6)
    rows = [[math.nan, 1.0, -math.nan, -math.inf], [-math.inf] * 4, [-0.0, 0.0, -0.0, 0.0], [math.inf] * 4]
    logits = torch.tensor(rows, device=gpu)
    assert torch.equal(topk_gate(logits, 3)[1], topk_gate_reference(logits, 3)[1])


@pytest.mark.gpu
def test_a_cuda_graph_replays_it(gpu, replayed):
    logits, bias = make_logits(512, 128).to(gpu), make_bias(128).to(gpu)
    weights, experts = replayed(lambda: topk_gate(logits, 8, score="sigmoid", bias=bias))
    want, want_experts = topk_gate(logits, 8, score="sigmoid", bias=bias)
    assert torch.equal(weights, want) and torch.equal(experts, want_experts)
