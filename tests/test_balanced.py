"""Exactly even routing: counts for every kind of scores, the optimum of two other solvers, and prices by the book."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye, kron, vstack

from moe_lab import certify, measure_balance, route
from moe_lab.inputs import LOGITS, make_router_logits
from moe_lab.routers.balanced import assign_evenly
from moe_lab.routers.prices import RULES, Priced, even_prices, even_targets, kth_and_next, price_step
from moe_lab.routers.repair import repair


def assert_even(routing, tokens, top_k, num_experts):
    """Whole numbers: every load is the floor or the ceiling of the share, every token has top_k distinct experts."""
    load, (share, spare) = routing.load, divmod(tokens * top_k, num_experts)
    assert sorted(load.tolist()) == [share] * (num_experts - spare) + [share + 1] * spare
    in_order = routing.experts.sort(dim=1).values
    assert routing.experts.shape == (tokens, top_k) and (not tokens or int(in_order.min()) >= 0)
    assert bool((in_order[:, 1:] > in_order[:, :-1]).all())
    if spare == 0:
        assert measure_balance(routing).variance == 0.0


def total(logits, routing):
    return float(logits.double().gather(1, routing.experts).sum())


def linear_programme(logits, top_k):
    """The optimum by HiGHS; the matrix is totally unimodular, so its corner is a whole assignment."""
    tokens, num_experts = logits.shape
    share, spare = divmod(tokens * top_k, num_experts)
    loads = kron(np.ones((1, tokens)), eye(num_experts), format="csr")
    best = linprog(
        -logits.double().numpy().ravel(),
        A_ub=vstack([loads, -loads]),
        b_ub=np.concatenate([np.full(num_experts, share + (spare > 0)), np.full(num_experts, -share)]),
        A_eq=kron(eye(tokens), np.ones((1, num_experts)), format="csr"),
        b_eq=np.full(tokens, top_k),
        bounds=(0, 1),
        method="highs",
    )
    return -best.fun


def shortfall(logits, routing, optimum, top_k):
    """What is missing to the optimum, as a share of what the optimum gains over a random even assignment."""
    gain = optimum - float(logits.double().sum()) * top_k / logits.shape[1]
    return (optimum - total(logits, routing)) / gain if gain > 1e-9 else 0.0


@st.composite
def problems(draw):
    num_experts = draw(st.sampled_from([2, 3, 5, 8, 13, 16, 31, 64]))
    top_k = draw(st.integers(1, num_experts))
    tokens = draw(st.one_of(st.integers(0, 70), st.sampled_from([128, 255, 512])))
    kind, seed = draw(st.sampled_from(LOGITS)), draw(st.integers(0, 999))
    return make_router_logits(tokens, num_experts, kind, seed=seed), top_k


@given(problems())
@settings(max_examples=250, deadline=None)
@example((torch.zeros(1, 256), 1))
@example((torch.zeros(3, 256), 255))
@example((torch.full((7, 4), 1e30), 2))
@example((torch.tensor([[3e38, -3e38, 0.0]]).repeat(9, 1), 1))
def test_every_load_is_exact(problem):
    logits, top_k = problem
    tokens, num_experts = logits.shape
    assert_even(route(logits, top_k, "balanced"), tokens, top_k, num_experts)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"), [(8192, 64, 8), (8191, 256, 3), (4096, 256, 1), (1000, 2, 1), (300, 256, 255)]
)
def test_every_load_is_exact_at_full_size(kind, tokens, num_experts, top_k):
    logits = make_router_logits(tokens, num_experts, kind)
    assert_even(route(logits, top_k, "balanced"), tokens, top_k, num_experts)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"), [(256, 8, 2), (256, 32, 8), (250, 16, 3), (64, 64, 1), (60, 7, 5), (20, 32, 2)]
)
def test_the_optimum_of_the_linear_programme(kind, tokens, num_experts, top_k):
    logits = make_router_logits(tokens, num_experts, kind)
    optimum = linear_programme(logits, top_k)
    near, best = (route(logits, top_k, "balanced", optimal=optimal) for optimal in (False, True))
    assert_even(best, tokens, top_k, num_experts)
    assert total(logits, best) == pytest.approx(optimum, abs=1e-6, rel=1e-9)
    assert shortfall(logits, near, optimum, top_k) <= 1e-3
    for routing in (near, best):
        proof = certify(logits, routing)
        assert proof.even and proof.gap >= optimum - total(logits, routing) - 1e-6
    assert proof.gap_share < 1e-6  # of the optimum


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(("tokens", "num_experts"), [(512, 64), (1024, 16), (500, 24)])
def test_top_1_is_the_linear_assignment(kind, tokens, num_experts):
    """SciPy's solver, on one column a place."""
    logits = make_router_logits(tokens, num_experts, kind, seed=3)
    targets = route(logits, 1, "base").load.numpy()
    places = np.repeat(np.arange(num_experts), targets)
    rows, columns = linear_sum_assignment(logits.double().numpy()[:, places], maximize=True)
    optimum = logits.double().numpy()[rows, places[columns]].sum()
    for method, options in (("base", {}), ("balanced", {"optimal": True})):
        routing = route(logits, 1, method, **options)
        assert_even(routing, tokens, 1, num_experts)
        if tokens % num_experts == 0:
            assert total(logits, routing) == pytest.approx(optimum, rel=1e-9, abs=1e-6)
        else:  # its own choice of who has one more is at least as good as any that it would be given
            assert total(logits, routing) >= optimum - 1e-6


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 8), (64, 1), (256, 8)])
@pytest.mark.parametrize("kind", ["random", "correlated", "collapsed"])
def test_within_a_thousandth_cold_in_32_iterations_and_warm(kind, num_experts, top_k):
    logits, earlier = (make_router_logits(2048, num_experts, kind, seed=seed) for seed in (1, 2))
    best = route(logits, top_k, "balanced", optimal=True)
    warm = -assign_evenly(earlier, top_k).prices.float()
    assert assign_evenly(logits, top_k).iterations <= 32
    share = 2048 * top_k // num_experts
    for bias in (None, warm):
        routing = route(logits, top_k, "balanced", bias=bias)
        assert_even(routing, 2048, top_k, num_experts)
        assert shortfall(logits, routing, total(logits, best), top_k) <= 1e-3
    if kind != "random":  # where all experts are liked alike, no prices are good prices
        left = [
            even_prices(scores, torch.zeros(num_experts), top_k, iterations=2).chosen
            for scores in (logits, logits + warm)
        ]
        cold_excess, warm_excess = ((chosen.sum(dim=0) - share).clamp_min(0).sum() for chosen in left)
        assert warm_excess < 0.8 * cold_excess


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_optimum_moves_with_experts_and_not_with_rows(problem, random):
    logits, top_k = problem
    logits = logits.double()
    order = random.sample(range(logits.shape[1]), logits.shape[1])
    score = total(logits, route(logits, top_k, "balanced", optimal=True))
    turned = logits[:, order]
    assert total(turned, route(turned, top_k, "balanced", optimal=True)) == pytest.approx(score, abs=1e-6)
    shifts = torch.linspace(-3, 3, len(logits), dtype=torch.float64)[:, None]
    raised = logits + shifts
    found = total(raised, route(raised, top_k, "balanced", optimal=True))
    assert found == pytest.approx(score + top_k * float(shifts.sum()), abs=1e-6)


def test_an_objective_of_scores_is_another_optimum():
    logits = make_router_logits(256, 8, seed=5) * 2
    by_score = route(logits, 2, "balanced", optimal=True, objective="score", score="sigmoid")
    by_logit = route(logits, 2, "balanced", optimal=True, score="sigmoid")
    assert float(by_score.weights.double().sum()) > float(by_logit.weights.double().sum())
    assert total(logits, by_logit) > total(logits, by_score)


def test_best_expert_first():
    logits = make_router_logits(128, 16)
    for method in ("balanced", "balanced_causal"):
        chosen = logits.gather(1, route(logits, 4, method).experts)
        assert bool((chosen[:, :-1] >= chosen[:, 1:]).all())


def test_a_bias_where_loads_divide_changes_no_optimum():
    logits = make_router_logits(256, 16).double()
    bias = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, moved = (route(logits, 2, "balanced", optimal=True, bias=b) for b in (None, bias))
    assert total(logits, plain) == pytest.approx(total(logits, moved), abs=1e-8)


# --- prices


def numpy_step(scores, prices, top_k, rule):
    """The alternation by full sorts, token by token and expert by expert."""
    tokens, num_experts = scores.shape
    bars = []
    for row in scores - prices:
        best = np.sort(row)[::-1]
        bars.append((best[top_k - 1] + best[top_k]) / 2 if rule == "midpoint" else best[top_k])
    share, spare, new = *divmod(tokens * top_k, num_experts), []
    for column in (scores - np.array(bars)[:, None]).T:
        best = np.sort(column)[::-1]
        middle = rule == "midpoint" and not spare
        new.append((best[share - 1] + best[share]) / 2 if middle else best[share])
    if rule == "bip":
        return np.maximum(new, 0)
    return np.array(new) - np.mean(new)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"), [(40, 5, 2), (41, 5, 2), (700, 6, 5), (3, 8, 1), (1024, 8, 1)]
)
def test_a_price_step_by_an_independent_reference(rule, tokens, num_experts, top_k):
    scores = make_router_logits(tokens, num_experts, seed=4, dtype=torch.float64)
    prices = torch.randn(num_experts, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = price_step(scores, prices, top_k, rule)
    np.testing.assert_allclose(found.numpy(), numpy_step(scores.numpy(), prices.numpy(), top_k, rule), atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_price_step_moves_with_the_experts_and_not_with_rows(rule):
    scores = make_router_logits(200, 7, seed=4, dtype=torch.float64)
    prices, order = torch.linspace(-1, 1, 7, dtype=torch.float64), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    step = price_step(scores, prices, 2, rule)
    torch.testing.assert_close(price_step(scores[:, order], prices[order], 2, rule), step[order])
    shifted = scores + torch.linspace(-5, 5, 200, dtype=torch.float64)[:, None]
    torch.testing.assert_close(price_step(shifted, prices, 2, rule), step)


@pytest.mark.parametrize("columns", [5, 512, 513, 2000])
def test_kth_and_next(columns):
    values = torch.randn(6, columns, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    best = values.sort(dim=1, descending=True).values
    for k in (1, 2, columns // 2, columns - 1):
        kth, following = kth_and_next(values, k)
        assert torch.equal(kth, best[:, k - 1]) and torch.equal(following, best[:, k])


def test_iterations_lower_the_excess_until_nothing_is_left():
    scores = make_router_logits(4096, 64)
    left = []
    for iterations in (0, 4, 16, 32):
        priced = even_prices(scores, torch.zeros(64), 8, iterations=iterations)
        assert priced.iterations <= iterations
        left.append(int((priced.chosen.sum(dim=0) - 512).clamp_min(0).sum()))
    assert left[0] > 10_000 and left[1] < 4000 and left[2] < 60 and left[3] <= 8


def test_a_router_that_knows_nothing_is_even_at_once():
    priced = even_prices(torch.zeros(128, 64), torch.zeros(64), 4, iterations=32)
    assert priced.iterations == 0 and priced.chosen.sum(dim=0).tolist() == [8] * 64


def test_targets_give_the_odd_ones_to_the_dearest():
    assert even_targets(5, 2, torch.tensor([0.5, 0.0, 2.0])).tolist() == [3, 3, 4]
    assert even_targets(5, 2, torch.zeros(4)).tolist() == [3, 3, 2, 2]


@pytest.mark.parametrize(("num_experts", "top_k"), [(16, 2), (16, 13), (7, 4)])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_the_prices_that_come_back_are_the_prices(num_experts, top_k, scale):
    """Also for more than half of the experts, where what is left out is assigned, and where scores are scaled down."""
    scores = make_router_logits(2048, num_experts) * scale
    prices = assign_evenly(scores, top_k).prices
    load = torch.bincount((scores - prices).topk(top_k).indices.flatten(), minlength=num_experts)
    free = torch.bincount(scores.topk(top_k).indices.flatten(), minlength=num_experts)
    assert int(load.max() - load.min()) < 0.02 * 2048 < 0.3 * int(free.max() - free.min())


# --- repair


@given(st.integers(0, 999), st.integers(2, 9), st.integers(20, 400), st.sampled_from(LOGITS), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_repair_says_what_it_gave_up(seed, num_experts, tokens, kind, iterations):
    scores = make_router_logits(tokens, num_experts, kind, seed=seed, dtype=torch.float64)
    top_k = 1 + seed % (num_experts - 1)
    priced = even_prices(scores, torch.zeros(num_experts, dtype=torch.float64), top_k, iterations=iterations)
    before = priced.chosen.clone()
    targets = even_targets(tokens, top_k, priced.prices)
    chosen, cost = repair(priced, targets)
    assert torch.equal(priced.chosen, before), "the mask that came in is left alone"
    assert chosen.sum(dim=0).tolist() == targets.tolist() and bool((chosen.sum(dim=1) == top_k).all())
    lost = priced.reduced[before].sum() - priced.reduced[chosen].sum()
    assert cost == pytest.approx(float(lost), abs=1e-9) and cost >= 0


def test_repair_takes_the_cheapest_offers():
    """One expert too full by 3: the three tokens that lose least go, wherever they stand."""
    margin = torch.tensor([0.9, 0.1, 0.8, 0.3, 0.7, 0.2])
    reduced = torch.stack([margin, torch.zeros(6)], dim=1)
    chosen, cost = repair(Priced(torch.zeros(2), reduced, reduced > 0, margin, 0), torch.tensor([3, 3]))
    assert chosen[:, 1].tolist() == [False, True, False, True, False, True]
    assert cost == pytest.approx(0.6)


# --- certificates


def test_a_certificate_sees_what_is_wrong():
    logits = make_router_logits(64, 8)
    assert not certify(logits, route(logits, 2)).even
    assert not certify(logits, route(logits, 2, "expert_choice")).even  # even loads, and not top_k experts a token
    assert "not even" in str(certify(logits, route(logits, 2)))
    random = certify(logits, route(logits, 2, "random", generator=torch.Generator().manual_seed(0)))
    assert random.gap > 0 and random.gap_share == pytest.approx(1.0, abs=0.3)
    free = certify(logits, route(logits, 2))
    assert free.price_share == pytest.approx(0.0, abs=1e-12) and free.gap == 0.0


def test_a_certificate_of_nothing_to_choose():
    everything = certify(torch.randn(5, 3), route(torch.randn(5, 3), 3, "balanced"))
    assert everything.even and everything.gap == pytest.approx(0.0, abs=1e-6)
    nothing = certify(torch.zeros(0, 3), route(torch.zeros(0, 3), 2, "balanced"))
    assert nothing.even and nothing.gap_share == 0.0


def test_certify_refuses(unchecked_shapes):
    routing = route(torch.zeros(4, 3), 1, "balanced")
    with pytest.raises(ValueError, match=r"scores must be .* = \(4, 3\) as the routing, got \(4, 2\)"):
        certify(torch.zeros(4, 2), routing)
    with pytest.raises(ValueError, match=r"logits\[0, 0\] is nan"):
        certify(torch.full((4, 3), torch.nan), routing)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"iterations": 0}, ValueError, r"iterations must be in 1..2147483647, got 0"),
        ({"iterations": 1.5}, TypeError, r"iterations must be a whole number"),
        ({"tolerance": -1.0}, ValueError, r"tolerance must be .* got -1.0"),
        ({"tolerance": float("nan")}, ValueError, r"tolerance must be .* got nan"),
        ({"optimal": 1}, TypeError, r"optimal must be True or False, got 1"),
        ({"objective": "probability"}, ValueError, r"objective must be one of logits, score; got 'probability'"),
        ({"bias": torch.zeros(2)}, ValueError, r"bias must be .* \(3,\), got \(2,\)"),
    ],
)
def test_balanced_refuses(options, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        route(torch.zeros(4, 3), 1, "balanced", **options)


@pytest.mark.parametrize("method", ["balanced", "balanced_causal", "base"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_loop_over_what_is_not_a_number(method, bad):
    logits = torch.zeros(4, 3)
    logits[2] = bad
    with pytest.raises(ValueError, match=rf"logits\[2, 0\] is {bad}"):
        route(logits, 1, method)


# --- bounds of time


@pytest.mark.parametrize("top_k", [1, 8])
def test_scores_that_prices_cannot_part_end_all_the_same(top_k):
    """One number a token times one an expert: prices converge slowly, and exchanges are bounded."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2048, 1, generator=draw) * torch.randn(1, 128, generator=draw)
    assignment = assign_evenly(logits, top_k)
    assert assignment.iterations <= 32 and assignment.cycles <= 4 * 128 + 100 + 128
    assert_even(route(logits, top_k, "balanced"), 2048, top_k, 128)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
def test_the_optimum_has_no_unit(scale):
    logits = make_router_logits(256, 8, "correlated", seed=3)
    best = total(logits, route(logits, 2, "balanced", optimal=True))
    scaled = (logits * scale).double()
    found = route(scaled, 2, "balanced", optimal=True)
    assert total(scaled, found) / scale == pytest.approx(best, rel=1e-5)
    assert certify(scaled, found).gap_share < 1e-9
