"""Exactly even in token order: the rule by a plain loop, finished groups, and nobody who looks ahead."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_lab import certify, disturb, route
from moe_lab.inputs import LOGITS, make_router_logits
from moe_lab.routers.balanced import assign_evenly


def by_the_rule(scores, top_k, size, pacing, adaptation):
    """One token after another, one expert after another, straight from the docstring."""
    tokens, num_experts = scores.shape
    share, spare = divmod(size * top_k, num_experts)
    rows = []
    for token in range(tokens):
        group, position = divmod(token, size)
        if position == 0:
            start = [share + ((e - group * spare) % num_experts < spare) for e in range(num_experts)]
            room, prices = list(start), [0.0] * num_experts
        left, spread = size - position, float(np.std(scores[token]))
        values = []
        for e in range(num_experts):
            expected = start[e] * left / size
            pace = (expected - room[e]) / max(expected, 1.0) ** 0.5
            value = scores[token, e] - prices[e] - pacing * spread * pace
            values.append(-np.inf if room[e] == 0 else np.inf if room[e] == left else value)
        picked = sorted(range(num_experts), key=lambda e: -values[e])[:top_k]
        step = adaptation * spread / (1 + position / 5) ** 0.5
        for e in range(num_experts):
            prices[e] += step * ((e in picked) - top_k / num_experts)
            room[e] -= e in picked
        rows.append(sorted(picked))
    return rows


@st.composite
def problems(draw):
    num_experts = draw(st.integers(1, 12))
    top_k, tokens = draw(st.integers(1, num_experts)), draw(st.integers(0, 60))
    size = draw(st.one_of(st.none(), st.integers(1, 70)))
    logits = make_router_logits(tokens, num_experts, draw(st.sampled_from(LOGITS)), seed=draw(st.integers(0, 99)))
    return logits, top_k, size


@given(problems())
@settings(max_examples=150, deadline=None)
@example((torch.zeros(5, 3), 2, 1))
@example((torch.tensor([[3e38, -3e38, 0.0]]).repeat(9, 1), 1, 3))
def test_finished_groups_are_exact(problem):
    logits, top_k, size = problem
    routing = route(logits, top_k, "balanced_causal", group_size=size)
    in_order = routing.experts.sort(dim=1).values
    assert bool((in_order[:, 1:] > in_order[:, :-1]).all()) and (not len(logits) or int(in_order.min()) >= 0)
    size = size or max(1, len(logits))
    for start in range(0, len(logits) - size + 1, size):
        load = torch.bincount(in_order[start : start + size].flatten(), minlength=logits.shape[1])
        assert int(load.max() - load.min()) <= (1 if size * top_k % logits.shape[1] else 0)
    if len(logits) % size == 0:
        assert int(routing.load.max() - routing.load.min()) <= 1  # the odd ones take turns


@given(problems(), st.sampled_from([(0.1, 0.0), (0.1, 0.3), (1.0, 0.0), (0.0, 0.0)]))
@settings(max_examples=60, deadline=None)
def test_by_a_plain_loop(problem, options):
    logits, top_k, size = problem
    logits, (pacing, adaptation) = logits.double(), options
    routing = route(logits, top_k, "balanced_causal", group_size=size, pacing=pacing, adaptation=adaptation)
    want = by_the_rule(logits.numpy(), top_k, size or max(1, len(logits)), pacing, adaptation)
    assert routing.experts.sort(dim=1).values.tolist() == want


@given(problems(), st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_a_beginning_is_routed_like_the_beginning_of_more(problem, length):
    logits, top_k, size = problem
    size = size or 7
    whole, part = (route(text, top_k, "balanced_causal", group_size=size) for text in (logits, logits[:length]))
    assert torch.equal(whole.experts[:length], part.experts)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "size"), [(512, 16, 2, None), (300, 7, 3, 50), (128, 64, 8, 64)]
)
def test_no_earlier_token_changes(kind, tokens, num_experts, top_k, size):
    logits = make_router_logits(tokens, num_experts, kind)
    draw, later = torch.Generator().manual_seed(0), 0
    for token in torch.randint(tokens, (12,), generator=draw).tolist():
        replacement = torch.randn(num_experts, generator=draw) * 5
        seen = disturb(
            lambda batch: route(batch, top_k, "balanced_causal", group_size=size), logits, token, replacement
        )
        assert seen.earlier == 0
        later += seen.later
    assert later > 0  # the price: who comes later in the group has what is left


@pytest.mark.parametrize("size", [None, 32])
def test_an_absurd_later_token_changes_no_earlier_one(size):
    logits = make_router_logits(96, 8).double()
    plain = route(logits, 2, "balanced_causal", group_size=size)
    logits[60] *= 1e250  # its square would overflow
    absurd = route(logits, 2, "balanced_causal", group_size=size)
    assert torch.equal(plain.experts[:60], absurd.experts[:60]) and set(absurd.load.tolist()) == {24}


@pytest.mark.parametrize("kind", ["random", "correlated", "collapsed"])
def test_within_two_hundredths_with_learned_prices(kind):
    """4096 tokens, 64 experts, top 8; the optimum looks at the whole batch, the router at none of what comes."""
    learned = torch.stack([assign_evenly(make_router_logits(4096, 64, kind, seed=s), 8).prices for s in range(1, 5)])
    logits = make_router_logits(4096, 64, kind, seed=9)
    proof = certify(logits, route(logits, 8, "balanced_causal", bias=-learned.mean(dim=0)))
    assert proof.even and proof.min_load == proof.max_load == 512
    assert proof.gap_share <= 0.02
    unlearned = certify(logits, route(logits, 8, "balanced_causal"))
    assert unlearned.even and unlearned.gap_share <= 0.04


def test_the_defaults_are_what_the_docstring_says():
    logits, bias = make_router_logits(200, 8), torch.linspace(-1, 1, 8)
    for options, explicit in [({}, {"adaptation": 0.3}), ({"bias": bias}, {"adaptation": 0.0, "bias": bias})]:
        found = route(logits, 2, "balanced_causal", **options)
        assert torch.equal(found.experts, route(logits, 2, "balanced_causal", pacing=0.1, **explicit).experts)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"group_size": 0}, ValueError, r"group_size must be in 1..2147483647, got 0"),
        ({"group_size": 2.5}, TypeError, r"group_size must be a whole number, in 1..2147483647; got 2.5"),
        ({"pacing": -0.1}, ValueError, r"pacing must be .* got -0.1"),
        ({"adaptation": float("nan")}, ValueError, r"adaptation must be .* got nan"),
    ],
)
def test_refuses(options, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        route(torch.zeros(4, 3), 1, "balanced_causal", **options)
