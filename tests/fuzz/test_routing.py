"""Routers: every method on any logits against its promises and weights in float64; and what has to be refused."""

import math

import torch
from hypothesis import strategies as st

from moe_lab import GUARANTEES, METHODS, Routing, measure_balance, route
from moe_lab.dispatch import DISPATCHES, assign_places, carry, index_table
from moe_lab.inputs import make_router_options
from moe_lab.routers import expert_capacity, options_of, shared_defaults
from moe_lab.routers.scores import SCORES

from .cases import attempt, fuzzed, one_wrong
from .tensors import LAYOUTS, lay_out

DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
KINDS = ("plain", "plain", "tied", "equal", "large", "tiny", "collapsed")
CAPPED = {"switch": 1.25, "gshard": 1.25, "capacity_top_k": 1.0, "expert_choice": 1.0}
BY_LOGITS = ("top_k", "sigmoid_bias", "grouped_experts", "group_limited")
"""Methods whose selection ranks the logits of a token, or its biased scores, and nothing else."""


@st.composite
def problems(draw):
    """Logits (tokens, num_experts) in any dtype and layout, top_k, and a method with the options that it needs."""
    method = draw(st.sampled_from(sorted(METHODS)))
    pinned = METHODS[method].only_top_k
    num_experts = draw(st.one_of(st.integers(pinned or 1, 9), st.sampled_from((16, 33, 64))))
    top_k = pinned or draw(st.one_of(st.integers(1, min(num_experts, 8)), st.just(num_experts)))
    tokens, seed = draw(st.one_of(st.integers(0, 20), st.sampled_from((1, 65)))), draw(st.integers(0, 2**31 - 1))
    values = torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kind = draw(st.sampled_from(KINDS))
    values = {"tied": values.round(), "equal": values * 0, "large": values * 1e4, "tiny": values * 1e-30}.get(
        kind, values
    )
    if kind == "collapsed":
        values[:, 0] += 20.0
    logits = lay_out(values.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS)))
    options = make_router_options(method, tokens, num_experts, top_k, seed=seed % 1000)
    if draw(st.booleans()):
        options["renormalise"] = draw(st.booleans())
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from((1.0, 2.5, 0.0, -1.0, 16, 1e-3)))
    if draw(st.booleans()):
        options["score"] = draw(st.sampled_from(SCORES[:2] if method == "expert_choice" else SCORES))
    if "bias" in options_of(METHODS[method]) and draw(st.booleans()):
        bias = torch.randn(num_experts, generator=torch.Generator().manual_seed(seed + 1))
        options["bias"] = bias.to(torch.promote_types(logits.dtype, torch.float32))
    return method, logits.requires_grad_(draw(st.booleans())), top_k, options


def draw_again(options):
    """The same options with a generator that has not been drawn from."""
    return {name: torch.Generator().manual_seed(3) if name == "generator" else value for name, value in options.items()}


def scores_of(row, score):
    """What becomes a weight, for one token, in plain Python."""
    if score == "sigmoid":
        return [1 / (1 + math.exp(-x)) if x > -700 else 0.0 for x in row]
    largest = max(row)
    powers = [math.exp(x - largest) for x in row]
    return [power / math.fsum(powers) for power in powers]


def weights_of(row, experts, score, renormalise, scale):
    """The weights of the chosen experts, for one token, from the definition."""
    if score == "softmax_after_top_k":
        weights = scores_of([row[expert] for expert in experts], "softmax") if experts else []
    else:
        every = scores_of(row, score)
        weights = [every[expert] for expert in experts]
    if renormalise:
        weights = [weight / (math.fsum(weights) + 1e-20) for weight in weights]
    return [scale * weight for weight in weights]


@fuzzed("routing", cases=2200, few=70, problem=problems())
def test_routers_keep_their_promises(problem):
    method, logits, top_k, options = problem
    routing = attempt("routing", lambda: route(logits, top_k, method, **draw_again(options)), must="answer")
    again = route(logits, top_k, method, **draw_again(options))
    assert torch.equal(routing.experts, again.experts) and torch.equal(routing.weights, again.weights)
    Routing(routing.experts, routing.weights, routing.num_experts)  # which looks at every value
    check_load(method, routing, *logits.shape, top_k)
    check_weights(method, routing, logits.detach().double().tolist(), options)
    if method in BY_LOGITS:
        check_selection(method, routing, logits, top_k, options)
    assert routing.weights.requires_grad == (logits.requires_grad and routing.weights.grad_fn is not None)


def check_load(method, routing, tokens, num_experts, top_k):
    counted = [0] * num_experts
    for row in routing.experts.tolist():
        for expert in row:
            if expert >= 0:
                counted[expert] += 1
    assert routing.load.tolist() == counted
    guarantee, balance = GUARANTEES[method], measure_balance(routing)
    assert balance.dead == counted.count(0)
    if not guarantee.drops:
        assert sum(counted) == tokens * top_k and balance.dropped_fraction == 0
    if guarantee.load == "even":
        assert max(counted) - min(counted) <= 1
    if method in CAPPED:
        assert max(counted) <= expert_capacity(CAPPED[method], tokens, top_k, num_experts)
    if tokens:
        assert balance.max_over_mean == 0 or math.isclose(
            balance.max_over_mean, max(counted) * num_experts / sum(counted), rel_tol=1e-12
        )


def check_weights(method, routing, logits, options):
    if method in ("noisy_top_k", "gshard"):  # the one weighs noisy logits, the other before it drops
        return
    how = {name: options.get(name, default) for name, default in shared_defaults(METHODS[method]).items()}
    exact = routing.weights.dtype == torch.float64
    allowed = dict(rel_tol=1e-9 if exact else 2e-5, abs_tol=(1e-12 if exact else 1e-6) * abs(how["scale"]))
    for row, experts, weights in zip(logits, routing.experts.tolist(), routing.weights.tolist(), strict=True):
        chosen = [expert for expert in experts if expert >= 0]
        kept = [weight for weight, expert in zip(weights, experts, strict=True) if expert >= 0]
        want = weights_of(row, chosen, **how)
        if how["renormalise"] and how["score"] != "softmax_after_top_k":
            every = scores_of(row, how["score"])
            if math.fsum(every[expert] for expert in chosen) < 1e-6:
                continue  # scores that underflow are not the same numbers in two precisions
        for ours, exactly in zip(kept, want, strict=True):
            assert math.isclose(ours, exactly, **allowed), (ours, exactly, row, how)


def check_selection(method, routing, logits, top_k, options):
    """Nobody outside of the selection ranks higher than anybody inside; where groups bind, in the group."""
    values = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    score = options.get("score", shared_defaults(METHODS[method])["score"])
    if "bias" in options:
        values = {"softmax": values.softmax(1), "sigmoid": values.sigmoid()}.get(score, values) + options["bias"]
    groups = options["num_groups"] if method == "grouped_experts" else 1
    size = values.shape[1] // groups
    for row, experts in zip(values.tolist(), routing.experts.tolist(), strict=True):
        allowed = range(len(row))
        if method == "group_limited":
            held = {expert // (len(row) // options["num_groups"]) for expert in experts}
            assert len(held) <= options["top_groups"]
            allowed = [expert for expert in allowed if expert // (len(row) // options["num_groups"]) in held]
        for group in range(groups):
            inside = [expert for expert in experts if expert // size == group]
            outside = [expert for expert in allowed if expert // size == group and expert not in inside]
            assert len(inside) == top_k // groups and inside == sorted(
                inside, key=lambda expert: (-row[expert], expert)
            )
            if outside and inside:
                assert (-row[inside[-1]], inside[-1]) < min((-row[expert], expert) for expert in outside)


@st.composite
def routings(draw):
    """Any routing that can be: experts drawn for each token, some slots empty, any weights."""
    num_experts = draw(st.integers(1, 9))
    tokens, slots = draw(st.integers(0, 17)), draw(st.integers(0, num_experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    experts = torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :slots]
    if draw(st.booleans()):
        experts = experts.masked_fill(torch.rand(experts.shape, generator=generator) < 0.4, -1)
    if draw(st.booleans()) and slots == 1:
        experts = torch.zeros_like(experts)
    weights = torch.randn(experts.shape, generator=generator).masked_fill(experts < 0, 0.0)
    return Routing(experts, weights.to(draw(st.sampled_from((torch.float32, torch.float64)))), num_experts)


@fuzzed("routing", cases=500, few=25, routing=routings(), room=st.integers(0, 3), dispatch=st.sampled_from(DISPATCHES))
def test_dispatch_is_a_queue_for_each_expert(routing, room, dispatch):
    capacity = int(routing.load.max()) + room
    places = attempt("routing", lambda: assign_places(routing, capacity), must="answer")
    queues = [[] for _ in range(routing.num_experts)]
    for slot in range(routing.slots):
        for token in range(routing.tokens):
            expert = int(routing.experts[token, slot])
            want = expert * capacity + len(queues[expert]) if expert >= 0 else -1
            assert int(places[token, slot]) == want
            if expert >= 0:
                queues[expert].append(token)
    assert index_table(routing, capacity).tolist() == [queue + [-1] * (capacity - len(queue)) for queue in queues]
    x = torch.randn(routing.tokens, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = carry(x, routing, capacity, dispatch=dispatch)
    torch.testing.assert_close(y, x * routing.weights.double().sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-6)


WRONG_NUMBERS = (None, "2", True, [], math.nan, math.inf, -math.inf, 10**400, 10**5000, -(10**5000), 1 + 2j, {})
WRONG = {
    "logits": (None, [[0.0]], torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.zeros(1, 2, 3),
               torch.tensor(1.0),
               torch.zeros(3, 0), torch.full((2, 3), math.nan), torch.full((2, 3), -math.inf), torch.zeros(2,
               3).to_sparse(),
               torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3).cfloat(), torch.zeros(2,
               3).to(torch.float8_e4m3fn)),
    "top_k": (0, -1, 4, 2**70, 1.0, *WRONG_NUMBERS),
    "method": ("best", "", None, 7, [], {}, ("top_k",), "TOP_K"),
    "score": ("tanh", None, 3, [], {}, "SOFTMAX"),
    "bias": (torch.zeros(2), torch.full((3,), math.nan), torch.zeros(3, dtype=torch.int64), [0.0] * 3, 0.0,
             torch.zeros(3, 1),
             torch.tensor(1.0), torch.zeros(3, device="meta")),
    "renormalise": (1, "no", None, [], torch.tensor(True)),
    "scale": WRONG_NUMBERS,
    "capacity_factor": (0, -1.0, *WRONG_NUMBERS),
    "overflow": ("wait", None, 1, []),
    "priority": ("last", None, 1, {}),
    "random_second": (1, "no", None, []),
    "generator": (0, "seed", []),
    "num_groups": (0, 2, -1, 2**70, 1.5, *WRONG_NUMBERS),
    "top_groups": (0, 4, -1, *WRONG_NUMBERS),
    "group_top": (0, 4, *(value for value in WRONG_NUMBERS if value is not None)),
    "token_ids": (None, [1, 2], torch.zeros(3).long(), torch.zeros(2), torch.zeros(2, dtype=torch.int32), 7),
    "seed": (-1, 2**70, 1.5, *WRONG_NUMBERS),
    "noise_std": (-1.0, torch.zeros(3), torch.full((2, 3), -1.0), torch.full((2, 3), math.nan), 1e39, *WRONG_NUMBERS),
    "temperature": (0.0, -1.0, *WRONG_NUMBERS),
    "tolerance": (-1.0, *WRONG_NUMBERS),
    "iterations": (0, -1, 1.5, *WRONG_NUMBERS),
    "objective": ("loss", None, 1, []),
    "group_size": (0, -1, 1.5, *(value for value in WRONG_NUMBERS if value is not None)),
    "pacing": (-0.1, *WRONG_NUMBERS),
    "adaptation": (-0.1, *(value for value in WRONG_NUMBERS if value is not None)),
    "optimal": (1, "yes", None),
}  # fmt: skip
"""Argument or option of a router -> values that it cannot have, with two tokens, three experts and top_k 1."""


@st.composite
def wrong_calls(draw):
    """A call of a router that is right but for one argument, and the name of that."""
    method = draw(st.sampled_from(sorted(METHODS)))
    allowed = ["logits", "top_k", "method", *(name for name in options_of(METHODS[method]) if name in WRONG)]
    name = draw(st.sampled_from(allowed))
    return method, name, draw(st.integers(0, len(WRONG[name]) - 1))


@fuzzed("routing", cases=500, few=60, wrong=wrong_calls())
def test_wrong_arguments_are_refused_by_name(wrong):
    method, name, number = wrong
    top_k = METHODS[method].only_top_k or 1
    call = dict(logits=torch.zeros(2, 3), top_k=top_k, method=method, **make_router_options(method, 2, 3, top_k))
    call[name] = WRONG[name][number]
    attempt("routing", lambda: route(**call), must="refuse", refuses=name)


EXPERTS, WEIGHTS = torch.tensor([[0, 2], [2, -1]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]])
WRONG_FIELDS = {
    "experts": (None, [[0]], EXPERTS.int(), EXPERTS.double(), EXPERTS[0], EXPERTS + 1, EXPERTS - 2, EXPERTS * 0 + 1,
                EXPERTS * 2**62, torch.tensor([[2**63 - 1, 0], [0, 1]]), torch.tensor([[-(2**63), 0], [0, 1]])),
    "weights": (None, [[0.5]], WEIGHTS.long(), WEIGHTS[0], WEIGHTS + 1, WEIGHTS / 0, WEIGHTS * math.nan,
                WEIGHTS.to("meta")),
    "num_experts": (0, -1, 2, 1.5, 2**31, *WRONG_NUMBERS),
    "top_k": (0, -1, 4, 1.5, *(value for value in WRONG_NUMBERS if value is not None)),
}  # fmt: skip


@fuzzed("routing", cases=200, few=25, wrong=one_wrong(WRONG_FIELDS))
def test_routings_that_cannot_be_are_refused(wrong):
    name, number = wrong
    call = dict(experts=EXPERTS, weights=WEIGHTS, num_experts=3, top_k=None) | {name: WRONG_FIELDS[name][number]}
    attempt("routing", lambda: Routing(**call), must="refuse", refuses=name)
