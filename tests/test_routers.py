"""Every routing method: what it promises, for any logits; and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moe_lab import GUARANTEES, METHODS, Routing, route
from moe_lab.inputs import make_router_options
from moe_lab.routers import options_of
from moe_lab.routers.capacity import OVERFLOWS, PRIORITIES, expert_capacity, within_capacity

NEVER_DROPS = [name for name, guarantee in GUARANTEES.items() if not guarantee.drops]
PINNED_TOP_K = {name: method.only_top_k for name, method in METHODS.items() if method.only_top_k}


@st.composite
def problems(draw):
    """A method with logits that it can take: any size, O(1) or tied or large values."""
    method = draw(st.sampled_from(sorted(METHODS)))
    num_experts = draw(st.integers(PINNED_TOP_K.get(method, 1), 9))
    top_k = PINNED_TOP_K.get(method) or draw(st.integers(1, num_experts))
    tokens = draw(st.integers(0, 20))
    seed = draw(st.integers(0, 10_000))
    values = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    kind = draw(st.sampled_from(["plain", "tied", "equal", "large", "collapsed"]))
    if kind == "tied":
        values = values.round()
    elif kind == "equal":
        values = torch.zeros_like(values)
    elif kind == "large":
        values = values * 1e4
    elif kind == "collapsed":
        values[:, 0] += 20.0
    return method, values, top_k, seed


def routed(problem) -> Routing:
    method, logits, top_k, seed = problem
    return route(logits, top_k, method, **make_router_options(method, *logits.shape, top_k, seed=seed))


@given(problems())
@settings(max_examples=400, deadline=None)
def test_routing_is_well_formed(problem):
    method, logits, top_k, _ = problem
    routing = routed(problem)
    # the constructor refuses ids out of range, doubles, weights in empty slots, NaN: let it look at this one
    Routing(routing.experts, routing.weights, routing.num_experts)
    tokens, num_experts = logits.shape
    assert routing.tokens == tokens and routing.num_experts == num_experts
    assert routing.weights.dtype == logits.dtype
    assert bool((routing.weights >= 0).all())
    if method != "expert_choice":
        assert routing.slots == top_k
    assert int(routing.load.sum()) == int((routing.experts >= 0).sum())
    if method in NEVER_DROPS:
        assert int(routing.load.sum()) == tokens * top_k


@given(problems())
@settings(max_examples=150, deadline=None)
def test_same_input_gives_the_same_bits(problem):
    first, second = routed(problem), routed(problem)
    assert torch.equal(first.experts, second.experts)
    assert torch.equal(first.weights, second.weights)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_capacity_is_kept(problem):
    method, logits, top_k, _ = problem
    routing, (tokens, num_experts) = routed(problem), logits.shape
    if method in ("switch", "gshard", "capacity_top_k"):
        factor = 1.0 if method == "capacity_top_k" else 1.25
        assert int(routing.load.max()) <= expert_capacity(factor, tokens, top_k, num_experts)
    if method == "expert_choice":
        capacity = min(tokens, expert_capacity(1.0, tokens, top_k, num_experts))
        assert routing.load.tolist() == [capacity] * num_experts
    if method == "base":
        assert int(routing.load.max()) - int(routing.load.min()) <= (1 if tokens % num_experts else 0)
    if method == "grouped_experts":
        groups = make_router_options(method, tokens, num_experts, top_k)["num_groups"]
        assert routing.load.view(groups, -1).sum(1).tolist() == [tokens * top_k // groups] * groups


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_after_top_k"])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_by_an_independent_reference(score, renormalise, biased):
    """NumPy in float64, expert by expert, straight from the definitions."""
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.linspace(-1, 1, 7, dtype=torch.float64) if biased else None
    routing = route(logits, 3, score=score, renormalise=renormalise, scale=2.5, bias=bias)
    for token, row in enumerate(logits.numpy()):
        scores = {"softmax": np.exp(row) / np.exp(row).sum(), "sigmoid": 1 / (1 + np.exp(-row))}.get(score, row)
        ranking = scores + (bias.numpy() if biased else 0)
        experts = sorted(range(7), key=lambda e: -ranking[e])[:3]
        weights = np.array([scores[e] for e in experts])
        if score == "softmax_after_top_k":
            weights = np.exp(weights) / np.exp(weights).sum()
        if renormalise:
            weights = weights / weights.sum()
        assert routing.experts[token].tolist() == experts
        np.testing.assert_allclose(routing.weights[token].numpy(), 2.5 * weights, rtol=1e-12)


@pytest.mark.parametrize("method", ["top_k", "sigmoid_bias", "sinkhorn", "group_limited", "grouped_experts"])
def test_equal_logits_go_to_the_lower_expert(method):
    routing = route(torch.zeros(3, 8), 2, method, **make_router_options(method, 3, 8, 2))
    want = [0, 4] if method == "grouped_experts" else [0, 1]
    assert routing.experts.tolist() == [want] * 3


def test_saturated_sigmoids_still_rank_by_logit():
    assert route(torch.tensor([[30.0, 40.0, 50.0]]), 2, score="sigmoid").experts.tolist() == [[2, 1]]


def test_bias_selects_and_never_weighs():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    routing = route(logits, 2, "sigmoid_bias", bias=torch.tensor([0, 0, 0, 0, 0, 9.0]), renormalise=False)
    assert bool((routing.experts == 5).any(dim=1).all())
    torch.testing.assert_close(routing.weights, logits.sigmoid().gather(1, routing.experts))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_weights_send_gradients_to_the_logits(method):
    top_k = PINNED_TOP_K.get(method, 2)
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)

    def weights(values):
        return route(values, top_k, method, **make_router_options(method, 12, 4, top_k)).weights

    assert torch.autograd.gradcheck(weights, (logits,))
    upstream = torch.rand(12, weights(logits).shape[1], dtype=torch.float64) + 0.5
    (gradient,) = torch.autograd.grad(weights(logits), logits, upstream)
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_routed_in_float32(method, dtype):
    top_k = PINNED_TOP_K.get(method, 2)
    logits = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    half = route(logits, top_k, method, **make_router_options(method, 16, 8, top_k))
    assert half.weights.dtype == torch.float32
    full = route(logits.float(), top_k, method, **make_router_options(method, 16, 8, top_k))
    assert torch.equal(half.experts, full.experts) and torch.equal(half.weights, full.weights)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_tokens_and_one_expert(method):
    top_k = PINNED_TOP_K.get(method, 1)
    empty = route(torch.empty(0, 4), top_k, method, **make_router_options(method, 0, 4, top_k))
    assert empty.tokens == 0 and empty.load.tolist() == [0] * 4
    if top_k == 1:
        alone = route(torch.randn(5, 1), 1, method, **make_router_options(method, 5, 1, 1), renormalise=True)
        assert alone.experts.tolist() == [[0]] * 5
        assert alone.weights.tolist() == [[1.0]] * 5


def test_every_expert_asked_is_every_expert_got():
    for method in set(METHODS) - set(PINNED_TOP_K) - {"expert_choice"}:
        routing = route(torch.randn(6, 4), 4, method, **make_router_options(method, 6, 4, 4))
        assert routing.experts.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 6, method


def test_groups_are_respected():
    logits = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    limited = route(logits, 3, "group_limited", num_groups=4, top_groups=2)
    assert max(len(set(row)) for row in (limited.experts // 3).tolist()) <= 2
    spread = route(logits, 4, "grouped_experts", num_groups=4)
    assert (spread.experts // 3).sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 64


def test_negative_biased_scores_do_not_let_a_forbidden_group_in():
    """With 0 instead of -inf outside the groups, experts 2 and 3 would win here."""
    bias = torch.tensor([-2.0, -2.0, -3.0, -3.0])
    routing = route(torch.zeros(1, 4), 2, "group_limited", num_groups=2, top_groups=1, score="sigmoid", bias=bias)
    assert routing.experts.tolist() == [[0, 1]]


def test_capacity_serves_first_choices_first_and_early_tokens_first():
    asked = torch.tensor([[0, 1], [1, 0], [1, 0]])
    assert within_capacity(asked, 2, capacity=2).tolist() == [[True, False], [True, True], [True, False]]
    assert within_capacity(torch.tensor([[-1], [0], [-1], [0]]), 1, 1).flatten().tolist() == [False, True, False, False]


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
@example(tokens=5, slots=2, num_experts=2, capacity=0, seed=0)
def test_capacity_against_counting_by_hand(tokens, slots, num_experts, capacity, seed):
    draw = torch.Generator().manual_seed(seed)
    asked = torch.randint(-1, num_experts, (tokens, slots), generator=draw)
    kept, places = within_capacity(asked, num_experts, capacity), [capacity] * num_experts
    for slot, token in itertools.product(range(slots), range(tokens)):
        expert = int(asked[token, slot])
        fits = expert >= 0 and places[expert] > 0
        assert bool(kept[token, slot]) == fits
        places[expert] -= fits


def serve_by_hand(ranking, top_k, capacity, order, overflow):
    """The rule of capacity_top_k in plain Python: whom each token ends with, one assignment after the other."""
    preferences = [sorted(range(len(row)), key=lambda expert: -row[expert]) for row in ranking]
    asked = [row[:top_k] for row in preferences]
    got, room = [[-1] * top_k for _ in ranking], [capacity] * len(ranking[0])
    while any(expert >= 0 for row in asked for expert in row):
        for slot, token in itertools.product(range(top_k), order):
            expert = asked[token][slot]
            if expert >= 0 and room[expert]:
                got[token][slot] = expert
                room[expert] -= 1
        asked = [[-1] * top_k for _ in ranking]
        for token, row in enumerate(got):
            still = iter([expert for expert in preferences[token] if room[expert] and expert not in row])
            if overflow == "reroute":
                asked[token] = [next(still, -1) if expert < 0 else -1 for expert in row]
    return got


@given(st.data(), st.sampled_from(OVERFLOWS), st.sampled_from(PRIORITIES), st.booleans(), st.integers(0, 9999))
@settings(max_examples=300, deadline=None)
def test_capacity_top_k_by_hand(data, overflow, priority, tied, seed):
    tokens, num_experts = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 6))
    top_k, factor = data.draw(st.integers(1, num_experts)), data.draw(st.sampled_from([0.3, 0.8, 1.0, 1.5, 9.0]))
    logits = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits -= data.draw(st.sampled_from([0.0, 1.0, 4.0])) * torch.arange(num_experts)
    bias = data.draw(st.sampled_from([None, torch.linspace(-0.3, 0.3, num_experts, dtype=torch.float64)]))
    logits = logits.round() if tied else logits
    options = dict(capacity_factor=factor, overflow=overflow, priority=priority, bias=bias, score="sigmoid")
    routing = route(logits, top_k, "capacity_top_k", **options, generator=torch.Generator().manual_seed(seed))

    ranking = logits if bias is None else logits.sigmoid() + bias
    chosen = logits.gather(1, ranking.sort(dim=1, descending=True, stable=True).indices[:, :top_k])
    drawn = torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    keys = {"order": [0.0] * tokens, "score": (-chosen.amax(dim=1)).tolist(), "random": drawn}[priority]
    order = sorted(range(tokens), key=lambda token: keys[token])
    capacity = expert_capacity(factor, tokens, top_k, num_experts)
    assert routing.experts.tolist() == serve_by_hand(ranking.tolist(), top_k, capacity, order, overflow)
    Routing(routing.experts, routing.weights, num_experts)  # refuses an expert that a token has twice
    assert int(routing.load.max()) <= capacity
    if overflow == "reroute":  # a slot stays empty only where the token holds every expert that has room
        room = set((routing.load < capacity).nonzero().flatten().tolist())
        assert all(-1 not in row or room <= set(row) for row in routing.experts.tolist())


@pytest.mark.parametrize("score", ["softmax", "softmax_after_top_k"])
def test_priority_by_score_serves_the_highest_weight_first(score):
    logits = 2 * torch.randn(40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for renormalise in (False, True):  # renormalised weights of a token would all sum to 1, and rank nothing at top-1
        weights = np.exp(logits.numpy())
        best = np.sort(weights, axis=1)[:, ::-1][:, :2]
        share = best[:, 0] / (weights.sum(1) if score == "softmax" else best.sum(1))
        want = serve_by_hand(logits.tolist(), 2, 8, np.argsort(-share).tolist(), "drop")
        options = dict(priority="score", score=score, renormalise=renormalise, capacity_factor=0.5, scale=-1.0)
        assert route(logits, 2, "capacity_top_k", **options).experts.tolist() == want


def test_capacity_top_k_in_order_is_switch_and_gshard():
    logits = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) - torch.arange(6) / 2
    for method, top_k, options in (("switch", 1, {}), ("gshard", 2, {"random_second": False})):
        other = route(logits, top_k, method, capacity_factor=1.25, **options).experts
        assert torch.equal(route(logits, top_k, "capacity_top_k", capacity_factor=1.25).experts, other)
        assert bool((other < 0).any())


def test_capacity_top_k_knows_the_past_for_first_choices_alone():
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(30, 4, generator=draw), torch.randn(30, 4, generator=draw)
    other = torch.cat([before[:15], after[15:]])  # the same first half, another second half
    for priority, changes in (("order", [False, True]), ("score", [True, True])):
        options = dict(priority=priority, capacity_factor=0.5)
        one, two = (route(logits, 2, "capacity_top_k", **options).experts[:15] for logits in (before, other))
        assert (one != two).any(dim=0).tolist() == changes, priority
    for last, second in (([0.0, 1.0], -1), ([1.0, 0.0], 1)):  # the last token takes the place left, or does not
        logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], last])
        routing = route(logits, 1, "capacity_top_k", capacity_factor=0.5, overflow="reroute")
        assert routing.experts[:2].flatten().tolist() == [0, second]


def test_rerouting_fills_what_dropping_leaves_empty():
    """The figures of the docstring: 0.2 to 0.7 % of the slots stay empty where dropping leaves 33 to 81 %."""
    empty = {overflow: [] for overflow in OVERFLOWS}
    for skew, seed in itertools.product((1.0, 2.0, 4.0), range(5)):
        logits = torch.randn(2048, 8, generator=torch.Generator().manual_seed(seed))
        logits -= skew * torch.arange(1, 9).log()
        for overflow in OVERFLOWS:
            experts = route(logits, 2, "capacity_top_k", overflow=overflow).experts
            empty[overflow].append(float((experts < 0).double().mean()))
    assert 0 < sum(empty["reroute"]) / 15 < 0.01
    assert 0.3 < min(empty["drop"]) and max(empty["drop"]) < 0.82


def test_gshard_drops_weak_second_choices_by_chance():
    logits = torch.tensor([[0.0, -1.0, -50.0]]).repeat(20_000, 1)
    routing = route(logits, 2, "gshard", capacity_factor=3.0, generator=torch.Generator().manual_seed(0))
    kept = float((routing.experts[:, 1] >= 0).double().mean())
    want = 2 * float(torch.tensor(-1.0).sigmoid())  # g2 = 1 / (1 + e) after normalising
    assert kept == pytest.approx(want, abs=0.015)


def test_sinkhorn_balances_more_than_top_k():
    logits = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 3, 8)
    plain, softly = route(logits, 1).load, route(logits, 1, "sinkhorn").load
    assert float(softly.double().std()) < 0.25 * float(plain.double().std())


@pytest.mark.parametrize(("tokens", "num_experts"), [(12, 4), (13, 4), (3, 5), (40, 3)])
def test_base_reaches_the_optimum_of_the_linear_programme(tokens, num_experts):
    """HiGHS on the transport problem with loads between floor and ceiling, another solver and another form."""
    logits = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)
    one_each = np.kron(np.eye(tokens), np.ones(num_experts))
    loads = np.kron(np.ones(tokens), np.eye(num_experts))
    low, high = tokens // num_experts, -(-tokens // num_experts)
    best = linprog(
        -logits.numpy().ravel(),
        A_ub=np.vstack([loads, -loads]),
        b_ub=np.concatenate([np.full(num_experts, high), np.full(num_experts, -low)]),
        A_eq=one_each,
        b_eq=np.ones(tokens),
        bounds=(0, 1),
    )
    routing = route(logits, 1, "base")
    value = float(logits.gather(1, routing.experts).sum())
    assert value == pytest.approx(-best.fun, abs=1e-9)


def test_hash_depends_on_the_id_alone():
    ids = torch.arange(5000) % 100
    routing = route(torch.randn(5000, 16), 2, "hash", token_ids=ids)
    assert torch.equal(routing.experts[:100].repeat(50, 1), routing.experts)
    other = route(torch.randn(5000, 16), 2, "hash", token_ids=ids, seed=1)
    assert not torch.equal(other.experts, routing.experts)
    many = route(torch.zeros(100_000, 16), 1, "hash", token_ids=torch.arange(100_000)).load.double()
    assert float(many.std() / many.mean()) < 3 * (15 / 100_000) ** 0.5  # as even as chance: no clumping


@pytest.mark.parametrize(
    ("logits", "top_k", "method", "options", "error", "says"),
    [
        (torch.full((2, 3), float("nan")), 1, "top_k", {}, ValueError, r"logits\[0, 0\] is nan"),
        (torch.tensor([[0.0, float("inf")]]), 1, "top_k", {}, ValueError, r"logits\[0, 1\] is inf"),
        (torch.zeros(2, 3), 0, "top_k", {}, ValueError, r"top_k must be in 1..3, got 0"),
        (torch.zeros(2, 3), 4, "top_k", {}, ValueError, r"top_k must be in 1..3, got 4"),
        (torch.zeros(2, 3), 1.0, "top_k", {}, TypeError, r"top_k must be a whole number, in 1..3; got 1.0"),
        (torch.zeros(2, 3), True, "top_k", {}, TypeError, r"top_k must be a whole number, in 1..3; got True"),
        (torch.zeros(3), 1, "top_k", {}, ValueError, r"\(tokens, num_experts\) .* got \(3,\)"),
        (torch.zeros(3, 0), 1, "top_k", {}, ValueError, r"at least one expert, got \(3, 0\)"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, "top_k", {}, TypeError, r"floating point .*, got torch.int64"),
        ([[0.0]], 1, "top_k", {}, TypeError, r"logits must be a torch.Tensor, got list"),
        (torch.zeros(2, 3), 1, "best", {}, ValueError, r"method must be one of top_k, .*; got 'best'"),
        (torch.zeros(2, 3), 1, "top_k", {"capacity_factor": 1.0}, ValueError, r"'capacity_factor' is no option of"),
        (torch.zeros(2, 3), 1, "top_k", {"score": "tanh"}, ValueError, r"score must be one of .* got 'tanh'"),
        (torch.zeros(2, 3), 1, "top_k", {"bias": torch.zeros(2)}, ValueError, r"bias must be .* \(3,\), got \(2,\)"),
        (torch.zeros(2, 3), 1, "top_k", {"bias": [0.0] * 3}, TypeError, r"bias must be a floating-point tensor"),
        (torch.zeros(2, 3), 1, "top_k", {"bias": torch.full((3,), float("nan"))}, ValueError, r"bias must be finite"),
        (torch.zeros(2, 3), 1, "top_k", {"bias": torch.zeros(3, device="meta")}, ValueError, r"bias is on meta"),
        (torch.zeros(2, 3), 2, "switch", {}, ValueError, r"top_k must be 1 for method 'switch', got 2"),
        (torch.zeros(2, 3), 1, "gshard", {}, ValueError, r"top_k must be 2 for method 'gshard', got 1"),
        (torch.zeros(2, 3), 1, "switch", {"capacity_factor": 0}, ValueError, r"capacity_factor must be .* got 0"),
        (torch.zeros(2, 3), 1, "capacity_top_k", {"capacity_factor": 0.0}, ValueError, r"capacity_factor .* got 0.0"),
        (torch.zeros(2, 3), 1, "capacity_top_k", {"overflow": "wait"}, ValueError, r"one of drop, reroute; got 'wait'"),
        (torch.zeros(2, 3), 1, "capacity_top_k", {"priority": None}, ValueError, r"order, score, random; got None"),
        (torch.zeros(2, 3), 1, "capacity_top_k", {"generator": 0}, TypeError, r"generator must be a torch.Generator"),
        (torch.zeros(2, 3), 1, "expert_choice", {"capacity_factor": -1.0}, ValueError, r"capacity_factor .* got -1.0"),
        (torch.zeros(2, 3), 1, "expert_choice", {"score": "softmax_after_top_k"}, ValueError, r"score must be"),
        (torch.zeros(2, 3), 1, "hash", {}, ValueError, r"method 'hash' needs the option token_ids"),
        (torch.zeros(2, 3), 1, "hash", {"token_ids": torch.zeros(3).long()}, ValueError, r"token_ids .* 2 tokens"),
        (torch.zeros(2, 4), 1, "group_limited", {"num_groups": 3, "top_groups": 1}, ValueError, r"num_groups .* got 3"),
        (torch.zeros(2, 4), 1, "group_limited", {"num_groups": 2, "top_groups": 3}, ValueError, r"top_groups .* got 3"),
        (torch.zeros(2, 4), 3, "group_limited", {"num_groups": 2, "top_groups": 1}, ValueError, r"fewer than top_k=3"),
        (
            torch.zeros(2, 4),
            2,
            "group_limited",
            {"num_groups": 2, "top_groups": 1, "group_top": 3},
            ValueError,
            r"group_top .* got 3",
        ),
        (torch.zeros(2, 4), 3, "grouped_experts", {"num_groups": 2}, ValueError, r"num_groups must divide top_k=3"),
        (torch.zeros(2, 3), 1, "noisy_top_k", {"noise_std": -1.0}, ValueError, r"noise_std .* got -1.0"),
        (torch.zeros(2, 3), 1, "noisy_top_k", {"noise_std": torch.zeros(3)}, ValueError, r"noise_std .* \(2, 3\)"),
        (torch.zeros(2, 3), 1, "sinkhorn", {"temperature": 0.0}, ValueError, r"temperature .* got 0.0"),
        (torch.zeros(2, 3), 1, "sinkhorn", {"iterations": 0}, ValueError, r"iterations .* got 0"),
        (torch.ones(2, 3), 1, "sinkhorn", {"temperature": 1e-300}, ValueError, r"temperature .* got 1e-300"),
        (torch.zeros(2, 3).to_sparse(), 1, "top_k", {}, TypeError, r"dense tensor, got the layout torch.sparse_coo"),
        (torch.zeros(2, 3).cfloat(), 1, "top_k", {}, TypeError, r"floating point .*, got torch.complex64"),
        (torch.zeros(2, 3), 1, "top_k", {"scale": float("nan")}, ValueError, r"scale must be a finite number, got nan"),
        (torch.zeros(2, 3), 1, "top_k", {"scale": torch.ones(3)}, TypeError, r"scale must be a finite number, got"),
        (torch.zeros(2, 3), 1, "top_k", {"renormalise": "no"}, TypeError, r"renormalise .* got 'no'"),
        (torch.zeros(2, 3), 1, "switch", {"capacity_factor": float("inf")}, ValueError, r"capacity_factor .* got inf"),
        (torch.zeros(2, 3), 1, "switch", {"capacity_factor": "2"}, TypeError, r"capacity_factor .* got '2'"),
        (torch.zeros(2, 3), 1, "random", {"generator": 0}, TypeError, r"generator must be a torch.Generator .* got 0"),
        (
            torch.zeros(2, 3),
            1,
            "hash",
            {"token_ids": torch.zeros(2).long(), "seed": 1.5},
            TypeError,
            r"seed .* got 1.5",
        ),
        (torch.zeros(2, 4), 1, "group_limited", {"num_groups": 0, "top_groups": 1}, ValueError, r"num_groups .* got 0"),
        (torch.zeros(2, 4), 1, "group_limited", {"num_groups": 2, "top_groups": 1.5}, TypeError, r"top_groups .* 1.5"),
        (torch.zeros(2, 3), 1, "noisy_top_k", {"noise_std": float("nan")}, ValueError, r"noise_std .* got nan"),
        (torch.zeros(2, 3), 1, "noisy_top_k", {"noise_std": 1e39}, ValueError, r"noise_std must be small enough"),
        (torch.zeros(2, 3), 1, "noisy_top_k", {"noise_std": torch.full((2, 3), torch.nan)}, ValueError, r"noise_std"),
    ],
)
def test_refuses(logits, top_k, method, options, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        route(logits, top_k, method, **options)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"noisy_top_k", "expert_choice"}))
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_after_top_k"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_every_method_weighs_its_selection_by_the_definition(method, score, renormalise):
    """NumPy in float64: whatever was selected, its weights follow from score, renormalise and scale alone."""
    top_k = PINNED_TOP_K.get(method, 2)
    logits = torch.randn(40, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = make_router_options(method, 40, 8, top_k)
    routing = route(logits, top_k, method, score=score, renormalise=renormalise, scale=1.7, **options)
    if method == "gshard":  # it weighs both choices before it drops any
        both = route(logits, 2)
        assert bool(((routing.experts == both.experts) | (routing.experts < 0)).all())
        experts = both.experts.numpy()
    else:
        experts = routing.experts.numpy()
    for token, row in enumerate(logits.numpy()):
        chosen = [e for e in experts[token] if e >= 0]
        scores = {"softmax": np.exp(row) / np.exp(row).sum(), "sigmoid": 1 / (1 + np.exp(-row))}.get(score)
        weights = np.exp(row[chosen]) / np.exp(row[chosen]).sum() if scores is None else scores[chosen]
        weights = 1.7 * (weights / weights.sum() if renormalise and chosen else weights)
        kept = [weight for weight, e in zip(weights, routing.experts[token].tolist(), strict=False) if e >= 0]
        np.testing.assert_allclose(routing.weights[token][routing.experts[token] >= 0].numpy(), kept, rtol=1e-10)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_expert_choice_by_an_independent_reference(score):
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    routing = route(logits, 2, "expert_choice", score=score, scale=3.0)
    values = logits.numpy()
    scores = {"softmax": np.exp(values) / np.exp(values).sum(1, keepdims=True), "sigmoid": 1 / (1 + np.exp(-values))}[
        score
    ]
    taken = {(int(t), e) for e in range(5) for t in np.argsort(-scores[:, e], kind="stable")[:12]}
    found = {}
    for token in range(30):
        row = [e for e in routing.experts[token].tolist() if e >= 0]
        assert row == sorted(row, key=lambda e: -scores[token, e]), "best first"
        found.update({(token, e): float(w) for e, w in zip(row, routing.weights[token].tolist(), strict=False)})
    assert set(found) == taken
    for (token, expert), weight in found.items():
        assert weight == pytest.approx(3.0 * scores[token, expert])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"expert_choice", "group_limited"}))
def test_a_strong_bias_brings_its_expert_into_every_selection(method):
    top_k = PINNED_TOP_K.get(method, 2)
    logits = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    options = make_router_options(method, 16, 8, top_k)
    bias = torch.zeros(8)
    bias[5] = 50.0
    if method in ("switch", "gshard", "capacity_top_k"):
        options["capacity_factor"] = 8.0
    plain = route(logits, top_k, method, **options)
    options = {**options, **{k: torch.Generator().manual_seed(0) for k in options if k == "generator"}}
    routing = route(logits, top_k, method, bias=bias, **options)
    if method in ("sinkhorn", "base", "balanced", "balanced_causal"):  # they balance against it: the load stays
        assert int(routing.load.max() - plain.load.max()) <= (1 if method == "sinkhorn" else 0)
    else:
        assert bool((routing.experts == 5).any(dim=1).all())
        assert not bool((plain.experts == 5).any(dim=1).all())


def test_a_bias_says_which_expert_of_base_stays_idle():
    short = torch.zeros(3, 4)  # three tokens, four experts: one stays idle
    for idle in range(4):
        bias = torch.ones(4)
        bias[idle] = -1.0
        assert route(short, 1, "base", bias=bias).load[idle] == 0


def test_sinkhorn_meets_its_tolerance_and_its_temperature():
    logits = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 4, 8)
    spread = [float(route(logits, 1, "sinkhorn", iterations=n).load.double().std()) for n in (1, 100)]
    assert spread[1] < 0.7 * spread[0]
    assert not torch.equal(
        route(logits, 2, "sinkhorn", temperature=0.2).experts, route(logits, 2, "sinkhorn", temperature=5.0).experts
    )


def test_noise_learns():
    noise_std = torch.rand(6, 4, requires_grad=True)
    route(torch.randn(6, 4), 2, "noisy_top_k", noise_std=noise_std).weights.sum().backward()
    assert bool((noise_std.grad != 0).any())


def test_capacities_are_not_off_by_rounding():
    assert expert_capacity(1.1, tokens=50, top_k=1, num_experts=5) == 11  # 11.000000000000002 in floating point
    assert expert_capacity(1e-12, tokens=8, top_k=1, num_experts=4) == 1
    assert expert_capacity(1e308, tokens=8, top_k=1, num_experts=4) == 8
    assert expert_capacity(1.0, tokens=0, top_k=1, num_experts=4) == 0


def test_ranks_by_logit_where_scores_round_to_the_same():
    logits = torch.tensor([[300.0, 0, 1, 2, -5, -4, -3, -2]])
    assert route(logits, 3, "group_limited", num_groups=2, top_groups=1).experts.tolist() == [[0, 3, 2]]
    tall = torch.tensor([[30.0], [50.0], [40.0], [60.0]])
    assert route(tall, 1, "expert_choice", score="sigmoid", capacity_factor=0.5).load.tolist() == [2]
    assert route(tall, 1, "expert_choice", score="sigmoid", capacity_factor=0.25).experts.flatten().tolist() == [
        -1,
        -1,
        -1,
        0,
    ]


def test_strided_logits_are_taken():
    logits = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    for method in sorted(METHODS):
        top_k = PINNED_TOP_K.get(method, 2)
        options = [make_router_options(method, 12, 8, top_k) for _ in range(2)]
        turned, whole = (
            route(v, top_k, method, **o) for v, o in zip((logits.T, logits.T.clone()), options, strict=True)
        )
        assert torch.equal(turned.experts, whole.experts), method


def test_numpy_numbers_are_numbers(unchecked_shapes):
    routing = route(torch.zeros(4, 3), np.int64(2), scale=np.float32(2.0))
    assert routing.slots == 2


def test_every_method_documents_itself():
    for name, method in METHODS.items():
        assert method.__name__ == name
        for part in ("Example:", "Raises", "Source:"):
            assert part in method.__doc__, f"{name} has no {part}"
        assert options_of(method)
