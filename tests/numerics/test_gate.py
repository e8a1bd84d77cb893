"""Scores, selection and weights at the ends of the number line: `route`, and the kernel, against plain Python."""

import itertools

import pytest
import torch
from moe_lab.kernels.topk_gate import topk_gate
from moe_lab.kernels.topk_gate_backward import topk_gate_backward, topk_gate_backward_reference

from moe_lab import METHODS, route
from moe_lab.inputs import make_router_options
from moe_lab.operators.gate import gate

from .extremes import ROWS, SCORES, THOROUGH, WIDEST, by_hand, make_logits

BIASES = {"zeros": [0.0] * 8, "one of 1e30": [0.0] * 6 + [1e30, -1e30], "denormal": [1e-45] + [0.0] * 7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("score", SCORES)
def test_experts_and_weights(score, dtype):
    """Every row of `ROWS`, or the most of it that the dtype can hold, as exact arithmetic has it."""
    logits = make_logits(dtype)
    for top_k, renormalise in itertools.product((1, 3, 8), (False, True)):
        options = {"score": score, "renormalise": renormalise}
        experts, weights = zip(*(by_hand(row, top_k, **options) for row in logits.double().tolist()), strict=True)
        found = route(logits, top_k, **options)
        assert torch.equal(found.experts, torch.tensor(experts))
        floor = 1e-17 if renormalise else 3e-38  # below the least normal number, and that over the guard of 1e-20
        want = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(found.weights.double(), want, rtol=2e-5, atol=floor)


@pytest.mark.parametrize("score", SCORES)
def test_a_bias_of_1e30_decides_alone_and_never_weighs(score):
    logits, bias = make_logits()[:4], torch.tensor(BIASES["one of 1e30"])
    found = route(logits, 7, score=score, bias=bias)
    assert (found.experts[:, 0] == 6).all() and not (found.experts == 7).any()
    scores = logits if score == "softmax_after_top_k" else logits.softmax(1) if score == "softmax" else logits.sigmoid()
    scores = scores.gather(1, found.experts)
    assert torch.equal(found.weights, scores.softmax(1) if score == "softmax_after_top_k" else scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("score", SCORES)
def test_the_kernel_is_route(score, dtype):
    logits = make_logits(dtype)
    for renormalise, bias in itertools.product(
        (False, True), (None, *BIASES.values()) if THOROUGH else (None, BIASES["zeros"])
    ):
        given = None if bias is None else torch.tensor(bias)
        options = {"score": score, "renormalise": renormalise, "bias": given}
        want = route(logits, 3, **options)
        weights, experts = topk_gate(logits, 3, **options)
        assert torch.equal(experts.long(), want.experts)
        torch.testing.assert_close(weights, want.weights, rtol=2e-5, atol=1e-17 if renormalise else 7e-39)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_gradients_are_finite_and_those_of_float64(score, renormalise):
    logits, options = make_logits(), {"score": score, "renormalise": renormalise}
    upstream = torch.randn(len(logits), 3, generator=torch.Generator().manual_seed(0))
    leaf = logits.clone().requires_grad_()
    routing = route(leaf, 3, **options)
    (routing.weights * upstream).sum().backward()
    experts = routing.experts.int()
    want = topk_gate_backward_reference(upstream.double(), logits.double(), experts, **options)
    for found in (leaf.grad, topk_gate_backward(upstream, logits, experts, **options)):
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("score", ["softmax", "softmax_after_top_k"])
def test_a_certain_router_has_weights_of_0_and_1_and_no_gradient(score):
    logits = torch.eye(8).mul(1e4).requires_grad_()
    routing = route(logits, 2, score=score)
    assert torch.equal(routing.experts[:, 0], torch.arange(8))
    assert torch.equal(routing.weights, torch.tensor([[1.0, 0.0]]).expand(8, 2))
    (routing.weights * torch.tensor([[3.0, -5.0]])).sum().backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_ties_go_to_the_lower_expert_however_wide(dtype):
    """bfloat16 has few numbers, so logits of a wide router are full of equals; a row alone is as in a batch."""
    draw = torch.Generator().manual_seed(1)
    for num_experts, top_k in ((2, 1), (8, 2), (64, 8), (256, 8), (1000, 31)):
        logits = torch.randn(5, num_experts, generator=draw).div(4).to(torch.bfloat16).to(dtype)
        assert any(len(set(row)) < num_experts for row in logits.tolist()) or num_experts == 2
        want = torch.tensor([by_hand(row, top_k, score="softmax_after_top_k")[0] for row in logits.double().tolist()])
        assert torch.equal(route(logits, top_k).experts, want)
        assert torch.equal(torch.cat([route(row[None], top_k).experts for row in logits]), want)
        if (
            dtype in (torch.float32, torch.float16) and top_k <= 8
        ):  # the kernels' interpreter has no bfloat16, nor haste
            assert torch.equal(topk_gate(logits, top_k)[1].long(), want)


def test_equals_of_torch_topk_come_in_its_own_order():
    """So Transformers, which selects by it, chooses experts of the same scores, but not always the same experts."""
    logits = torch.zeros(4, 64).bfloat16()
    logits[:, 40:] = torch.arange(24) // 5
    ours, theirs = route(logits, 8).experts, logits.topk(8).indices
    assert torch.equal(logits.gather(1, ours), logits.gather(1, theirs))
    assert ours.tolist() == [[60, 61, 62, 63, 55, 56, 57, 58]] * 4


def test_scores_that_differ_by_less_than_rounding_beside_the_bias_are_equal():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    for score in ("softmax", "sigmoid"):
        assert route(logits, 2, score=score, bias=torch.full((4,), 1.0)).experts.tolist() == [[3, 2]]
        assert route(logits, 2, score=score, bias=torch.full((4,), 1e9)).experts.tolist() == [[0, 1]]
        wide = torch.full((4,), 1e9, dtype=torch.float64)  # a wider bias brings a wider sum
        assert route(logits, 2, score=score, bias=wide).experts.tolist() == [[3, 2]]


@pytest.mark.parametrize("method", ["top_k", "capacity_top_k", "group_limited", "grouped_experts", "switch", "gshard"])
def test_a_bias_that_overflows_a_logit_is_refused(method):
    """Else both ends would be infinite: equal to each other, and to what a router forbids."""
    top_k = METHODS[method].only_top_k or 2
    options = {"score": "softmax_after_top_k", **make_router_options(method, 3, 8, top_k)}
    for value in (WIDEST, -WIDEST):
        logits, bias = torch.zeros(3, 8), torch.zeros(8)
        logits[:, 5], bias[5] = value, value
        with pytest.raises(ValueError, match=r"bias must leave the logits finite; the largest is 3\.0"):
            route(logits, top_k, method, **{**options, "bias": bias})
        assert bool(route(logits, top_k, method, **{**options, "bias": -bias}).weights.isfinite().all())


def test_a_group_of_large_logits_is_no_less_than_one_of_larger():
    """Their float32 sums are both infinite."""
    logits = torch.tensor([[3e38, 3e38, 0.0, 0.0, 3.1e38, 3.2e38, 0.0, 0.0]])
    for group_top in (1, 2, 3, 4):
        options = {"num_groups": 2, "top_groups": 1, "group_top": group_top, "score": "softmax_after_top_k"}
        assert route(logits, 2, "group_limited", **options).experts.tolist() == [[5, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_a_scale_that_float32_cannot_hold_is_refused(method):
    """Weights would be infinite, and NaN in empty slots."""
    top_k = METHODS[method].only_top_k or 2
    logits = make_logits()[:6]
    options = make_router_options(method, *logits.shape, top_k)
    for scale in (1e39, -1e39):
        with pytest.raises(ValueError, match=r"scale must be a finite number in torch\.float32, got -?1e\+39"):
            route(logits, top_k, method, scale=scale, **options)
    for scale in (3.4e38, 1e-45, -2.0):
        routing = route(logits, top_k, method, scale=scale, **options)
        assert bool(routing.weights.isfinite().all()) and not routing.weights[routing.experts < 0].any()
    assert bool(route(logits.double(), top_k, method, scale=1e39, **options).weights.isfinite().all())


def test_the_kernel_refuses_such_a_scale():
    for launch in (gate, topk_gate, lambda x, k, scale: topk_gate_backward(x[:, :k], x, x[:, :k].int(), scale=scale)):
        with pytest.raises(ValueError, match=r"scale must be a finite number, got 1e\+39; weights are float32"):
            launch(torch.zeros(2, 4), 2, scale=1e39)


def test_renormalised_weights_sum_to_1_until_their_scores_come_near_the_guard():
    names = list(ROWS)
    totals = dict(
        zip(names, route(make_logits(), 3, score="sigmoid", renormalise=True).weights.sum(1).tolist(), strict=True)
    )
    low = [by_hand(ROWS[name], 3, score="sigmoid", renormalise=True)[1] for name in names]
    for name, weights in zip(names, low, strict=True):
        assert totals[name] == pytest.approx(sum(weights), rel=1e-5, abs=1e-17)
    assert 0.5 < totals["the guard of 1e-20"] < 0.999 and totals["all lowest"] == 0.0
    assert sum(abs(total - 1) < 1e-6 for total in totals.values()) == len(names) - 3
