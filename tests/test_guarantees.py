"""The table of guarantees against the methods: what is promised holds, and what is not promised is seen to fail."""

import pytest
import torch

from moe_lab import GUARANTEES, METHODS, disturb, measure_balance, route
from moe_lab.inputs import make_router_logits, make_router_options

TOKENS, EXPERTS = 96, 8
KINDS = ("random", "correlated", "collapsed", "tied")


def routings(method):
    """Seeded batches of every kind, each with a function that routes it, or a changed one, with the same draws."""
    top_k = METHODS[method].only_top_k or 2
    for kind in KINDS:
        for seed in range(3):
            logits = make_router_logits(TOKENS, EXPERTS, kind, seed=seed)

            def route_batch(batch, seed=seed):
                return route(batch, top_k, method, **make_router_options(method, len(batch), EXPERTS, top_k, seed=seed))

            yield logits, route_batch, top_k


def test_every_method_has_its_guarantees():
    assert list(GUARANTEES) == list(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_promised_of_the_load(method):
    spreads, groups = [], make_router_options(method, TOKENS, EXPERTS, 2).get("num_groups")
    for logits, route_batch, _ in routings(method):
        load = route_batch(logits).load
        spreads.append(int(load.max() - load.min()))
        if GUARANTEES[method].load == "even groups":
            assert len(set(load.view(groups, -1).sum(dim=1).tolist())) == 1
    if GUARANTEES[method].load == "even":
        assert max(spreads) == 0
    else:
        assert max(spreads) > 0
    if GUARANTEES[method].load == "free":
        assert max(spreads) > TOKENS // 4


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_promised_to_every_token(method):
    exact, dropped = [], []
    for logits, route_batch, top_k in routings(method):
        routing = route_batch(logits)
        in_order = routing.experts.sort(dim=1).values
        distinct = bool((in_order[:, 1:] > in_order[:, :-1]).all()) if routing.slots > 1 else True
        exact.append(routing.slots == top_k and bool((routing.experts >= 0).all()) and distinct)
        dropped.append(bool(((routing.experts >= 0).sum(dim=1) < top_k).any()))
    assert all(exact) == GUARANTEES[method].exactly_top_k
    assert any(dropped) == GUARANTEES[method].drops


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_a_token_depends_on(method):
    """Replace one token, count who else changes; the table must be neither too bold nor too modest."""
    draw, earlier, later = torch.Generator().manual_seed(0), 0, 0
    for logits, route_batch, _ in routings(method):
        for token in (10, 47, 80):
            seen = disturb(route_batch, logits, token, 4 * torch.randn(EXPERTS, generator=draw))
            earlier, later = earlier + seen.earlier, later + seen.later
    depends_on = GUARANTEES[method].depends_on
    assert (earlier > 0) == (depends_on == "the batch")
    assert (later > 0) == (depends_on != "itself")


def test_balance_without_score_is_round_robin():
    """Why balance and score are always shown together."""
    logits = make_router_logits(512, 8)
    turns = torch.arange(512)[:, None] % 8
    assert measure_balance(torch.bincount(turns.flatten())).variance == 0.0
    fair = logits.gather(1, route(logits, 1, "balanced").experts).sum()
    assert float(logits.gather(1, turns).sum()) < 0.2 * float(fair)
