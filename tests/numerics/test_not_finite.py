"""NaN and infinity in: a refusal that names the place, or NaN out; never an expert and a weight like any other."""

import itertools

import pytest
import torch

from moe_lab import GUARANTEES, METHODS, MoE, Routing, certify, losses, route
from moe_lab.inputs import make_router_options
from moe_lab.layers import FeedForward
from moe_lab.operators.gate import gate
from moe_lab.routers import options_of
from moe_lab.routers.registry import NotFinite
from moe_lab.routers.scores import score_logits

from .extremes import INF, NAN, SCORES, THOROUGH, without_values

TOP_K = {name: method.only_top_k or 2 for name, method in METHODS.items()}
SEES_THE_BATCH = ("sinkhorn", "base", "balanced", "balanced_causal")
MASKED = {"one": [4], "all but top_k": [0, 2, 3, 4, 6, 7], "all but one": [0, 2, 3, 4, 5, 6, 7], "all": list(range(8))}


def plain_logits():
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(3))


def routed(logits, method, **options):
    return route(
        logits, TOP_K[method], method, **{**make_router_options(method, *logits.shape, TOP_K[method]), **options}
    )


@pytest.mark.parametrize("method", METHODS)
def test_route_refuses_them_by_their_place(method):
    for value, said in ((NAN, "nan"), (INF, "inf"), (-INF, "-inf")):
        logits = plain_logits()
        logits[3, 5] = value
        with pytest.raises(ValueError, match=rf"logits must be finite, logits\[3, 5\] is {said}$"):
            routed(logits, method)
    for columns in MASKED.values():
        logits = plain_logits()
        logits[3, columns] = -INF
        with pytest.raises(ValueError, match=rf"logits must be finite, logits\[3, {columns[0]}\] is -inf$"):
            routed(logits, method)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_losses_and_certificates_refuse_them(value):
    logits, bad = plain_logits(), plain_logits()
    bad[3, 5] = value
    routing = route(logits, 2)
    for measure in (
        lambda: losses.switch_aux(bad, routing),
        lambda: losses.gshard(bad, routing),
        lambda: losses.sequence_aux(bad, routing, 2),
        lambda: losses.asked_load(bad, routing),
        lambda: losses.z_loss(bad),
        lambda: losses.smooth_load(bad, logits, 1.0, 2),
        lambda: losses.smooth_load(logits, bad, 1.0, 2),
        lambda: certify(bad, routing),
    ):
        with pytest.raises(ValueError, match=r"logits must be finite, logits\[3, 5\] is"):
            measure()
    with pytest.raises(ValueError, match="weights must be finite, found NaN or infinity"):
        Routing(routing.experts, routing.weights.index_fill(0, torch.tensor([3]), value), 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_that_sees_no_values_lets_a_nan_through_or_stops(method, monkeypatch):
    """A NaN among a token's scores is the weight of whatever expert it was. Others keep what they had."""
    without_values(monkeypatch)
    for score, value in itertools.product(SCORES, (NAN, INF)):
        if score == "softmax_after_top_k" and method == "expert_choice":
            continue
        logits, clean = plain_logits(), plain_logits()
        logits[3, 5] = value
        if method in SEES_THE_BATCH:
            with pytest.raises(NotFinite, match=r"must (be|have) finite"):
                routed(logits, method, score=score)
            continue
        found, before = routed(logits, method, score=score), routed(clean, method, score=score)
        chosen = score_logits(logits, score).gather(1, found.experts.clamp_min(0))
        chosen = chosen.softmax(1) if score == "softmax_after_top_k" else chosen
        if not (score == "sigmoid" and value == INF):  # sigmoid(inf) is 1: no more wrong than a logit of 1000
            missing = chosen.isnan() & (found.experts >= 0)
            assert not (missing & ~found.weights.isnan()).any()
            assert torch.equal(found.weights.isnan().any(dim=1), missing.any(dim=1))  # a sum is of all of a token's
            blind = method in ("hash", "random") and score != "softmax"  # the logit of an expert they did not draw
            assert missing.any(dim=1).tolist() == [token == 3 and not blind for token in range(12)]
        if GUARANTEES[method].depends_on == "itself":
            others = [token for token in range(12) if token != 3]
            assert torch.equal(found.experts[others], before.experts[others])
            assert torch.equal(found.weights[others], before.weights[others])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("masked", MASKED)
def test_where_nobody_looks_minus_infinity_is_chosen_last_and_weighs_nothing(masked, score, monkeypatch):
    """So does the kernel, which never looks. A softmax of nothing else is NaN."""
    without_values(monkeypatch)
    logits = plain_logits()
    logits[3, MASKED[masked]] = -INF
    left = [expert for expert in range(8) if expert not in MASKED[masked]]
    for found in (route(logits, 2, score=score), gate(logits, 2, score=score)):
        experts, weights = found.experts[3], found.weights[3]
        assert set(experts.tolist()) >= set(left[:2]) if len(left) <= 2 else set(experts.tolist()) <= set(left)
        dead = torch.tensor([int(expert) in MASKED[masked] for expert in experts])
        nothing = not left and score != "sigmoid"
        assert bool(weights.isnan().all()) if nothing else bool((weights[~dead] > 0.01).all())
        assert nothing or bool((weights[dead] <= 4e-39).all())  # the kernel's sigmoid ends at that of -88.7
        assert bool(found.weights[4:].isfinite().all())


@pytest.mark.parametrize("method", [name for name in METHODS if "objective" in options_of(METHODS[name])])
def test_an_operator_inside_a_graph_looks_for_itself(method, monkeypatch):
    without_values(monkeypatch)
    for rows, value in itertools.product((slice(3, 4), slice(None)), (NAN, INF, -INF)):
        logits = plain_logits()
        logits[rows, 5] = value
        if method == "sinkhorn" and value == -INF and rows == slice(3, 4):
            assert not (routed(logits, method).experts[3] == 5).any()  # a mask, which logarithms can take
            continue
        with pytest.raises(NotFinite):
            routed(logits, method)


@pytest.mark.parametrize("backend", ["loop", "grouped", "triton"] if THOROUGH else ["loop", "grouped"])
def test_a_layer_refuses_a_nan_and_in_a_graph_keeps_it_with_its_token(backend, monkeypatch):
    torch.manual_seed(0)
    layer = MoE(8, 8, 4, 2, backend=backend, num_shared=1)
    x = torch.randn(6, 8)
    before = layer(x)
    x[2, 1] = NAN
    with pytest.raises(ValueError, match=r"logits must be finite, logits\[2, 0\] is nan"):
        layer(x)
    without_values(monkeypatch)
    y = layer(x)
    others = [0, 1, 3, 4, 5]
    assert bool(y[2].isnan().all()) and bool(layer.routing.weights[2].isnan().all())
    torch.testing.assert_close(y[others], before[others])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_dense_layer_looks_at_nothing_and_keeps_it_with_its_token(value):
    x = torch.ones(3, 8)
    x[1, 0] = value
    y = FeedForward(8, 8)(x)
    assert bool(y[1].isnan().all() if value != value else not y[1].isfinite().any()) and bool(
        y[[0, 2]].isfinite().all()
    )


if THOROUGH:  # `make numerics`: it compiles for seconds

    def test_a_compiled_layer_does_so_too(unchecked_shapes):
        torch.manual_seed(0)
        layer = MoE(8, 8, 4, 2)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        x = torch.randn(6, 8)
        x[2, 1] = NAN
        with torch.no_grad():
            assert compiled(x).isnan().any(dim=1).tolist() == [False, False, True, False, False, False]
        stopped = torch.compile(MoE(8, 8, 4, 2, method="balanced"), fullgraph=True, backend="aot_eager")
        with torch.no_grad(), pytest.raises(NotFinite):
            stopped(x)
