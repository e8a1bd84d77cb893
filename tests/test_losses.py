"""Balancing losses: references in NumPy written from the formulas, Transformers' own, gradients, edges, two processes.

Transformers is imported where it is used: each of the two processes imports this file.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_lab.losses as losses
from moe_lab import Routing, route
from moe_lab.parallel.launch import run_ranks
from moe_lab.ranks import sum_over_ranks
from moe_lab.routers.choice import add_noise


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def skewed(tokens, num_experts, seed=0, dtype=torch.float64):
    """Logits that like some experts better than others."""
    return normal(tokens, num_experts, seed=seed, dtype=dtype) + torch.linspace(0, 2, num_experts, dtype=dtype)


# --- the formulas once more, a token at a time


def shares(row, score):
    values = [1 / (1 + math.exp(-x)) if score == "sigmoid" else math.exp(x - max(row)) for x in row]
    return [value / sum(values) for value in values]


def best(row, top_k):
    return sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:top_k]


def aux_by_hand(logits, top_k, score="softmax", asked=None):
    """num_experts * sum(f * P), f over the top_k of the logits unless the experts are given."""
    rows = logits.tolist()
    asked = asked or [best(row, top_k) for row in rows]
    num_experts, total = logits.shape[1], 0.0
    for expert in range(num_experts):
        f = sum(chosen.count(expert) for chosen in asked) / (len(rows) * top_k)
        p = sum(shares(row, score)[expert] for row in rows) / len(rows)
        total += f * p
    return num_experts * total


def cv_squared(values):
    return np.var(values) / np.mean(values) ** 2


def phi(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def smooth_load_by_hand(clean, noisy, std, top_k):
    load = np.zeros(clean.shape[1])
    for token, expert in itertools.product(range(clean.shape[0]), range(clean.shape[1])):
        others = sorted(np.delete(noisy[token], expert), reverse=True)
        load[expert] += phi((clean[token, expert] - others[top_k - 1]) / std[token, expert])
    return cv_squared(load)


SIZES = [(1, 1, 1), (1, 3, 2), (7, 4, 1), (16, 6, 3), (5, 4, 4)]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), SIZES)
def test_switch_aux_is_its_formula(tokens, num_experts, top_k, score):
    logits = skewed(tokens, num_experts)
    loss = losses.switch_aux(logits, route(logits, top_k), score=score)
    assert loss.item() == pytest.approx(aux_by_hand(logits, top_k, score), rel=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_transformers_sums_over_slots_and_is_top_k_times_as_large(top_k):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = skewed(64, 8, dtype=torch.float32)
    theirs = load_balancing_loss_func((logits,), num_experts=8, top_k=top_k)
    assert top_k * losses.switch_aux(logits, route(logits, top_k)).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_groups_of_tokens_as_transformers_has_them_for_switch():
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        load_balancing_loss_func,
        router_z_loss_func,
    )

    logits = skewed(24, 6, dtype=torch.float32)
    grouped = logits.view(3, 8, 6)
    theirs = load_balancing_loss_func(grouped.softmax(-1), grouped.argmax(-1))
    ours = losses.sequence_aux(logits, route(logits, 1), 3, score="softmax")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert losses.z_loss(logits).item() == pytest.approx(router_z_loss_func(grouped).item(), rel=1e-6)


@pytest.mark.parametrize(("tokens", "num_experts"), [(7, 4), (16, 6), (1, 2)])
def test_gshard_is_its_formula_and_counts_first_choices(tokens, num_experts):
    logits = skewed(tokens, num_experts)
    first = [best(row, 1) for row in logits.tolist()]
    # the paper's own scale: mean over experts of c_e / S * m_e
    paper = aux_by_hand(logits, 1, asked=first) / num_experts**2
    for top_k in (1, 2):
        loss = losses.gshard(logits, route(logits, top_k))
        assert loss.item() == pytest.approx(paper * num_experts**2, rel=1e-12)
    assert losses.gshard(logits, route(logits, 1)) == losses.switch_aux(logits, route(logits, 1))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sequences", [1, 2, 3, 12])
def test_sequence_aux_is_its_formula(sequences, score):
    logits = skewed(12, 5)
    length = 12 // sequences
    each = [aux_by_hand(part, 2, score) for part in logits.split(length)]
    loss = losses.sequence_aux(logits, route(logits, 2), sequences, score=score)
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-12)


def test_sequence_aux_of_a_biased_layer_counts_what_its_routing_says():
    logits, bias = skewed(8, 4), torch.tensor([9.0, 0.0, 0.0, 0.0])
    routing = route(logits, 2, "sigmoid_bias", bias=bias)
    sent = losses.sequence_aux(logits, routing, 1)
    assert sent.item() == pytest.approx(aux_by_hand(logits, 2, "sigmoid", routing.experts.tolist()), rel=1e-12)
    equation_18 = losses.sequence_aux(logits, route(logits, 2), 1)
    assert equation_18.item() == pytest.approx(aux_by_hand(logits, 2, "sigmoid"), rel=1e-12)
    assert abs(sent - equation_18) > 0.01


@pytest.mark.parametrize(("tokens", "num_experts"), [(1, 1), (7, 4), (16, 6)])
def test_z_loss_is_its_formula(tokens, num_experts):
    logits = skewed(tokens, num_experts)
    want = np.mean([math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.tolist()])
    assert losses.z_loss(logits).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("method", ["top_k", "switch", "expert_choice"])
def test_importance_is_its_formula(method):
    logits = skewed(20, 5)
    routing = route(logits, 1, method)
    sums = np.zeros(5)
    for experts, weights in zip(routing.experts.tolist(), routing.weights.tolist(), strict=True):
        for expert, weight in zip(experts, weights, strict=True):
            if expert >= 0:
                sums[expert] += weight
    assert losses.importance(routing).item() == pytest.approx(cv_squared(sums), rel=1e-12)


@pytest.mark.parametrize("kind", ["number", "tensor", "tied"])
@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(1, 2, 1), (9, 5, 1), (9, 5, 2), (9, 5, 4)])
def test_smooth_load_is_its_formula(tokens, num_experts, top_k, kind):
    clean = skewed(tokens, num_experts)
    std = normal(tokens, num_experts, seed=2).exp() if kind == "tensor" else torch.full_like(clean, 0.7)
    noisy = clean.round() if kind == "tied" else clean + std * normal(tokens, num_experts, seed=1)
    loss = losses.smooth_load(clean, noisy, std if kind == "tensor" else 0.7, top_k)
    want = smooth_load_by_hand(clean.numpy(), noisy.numpy(), std.numpy(), top_k)
    assert loss.item() == pytest.approx(want, rel=1e-9, abs=1e-15)


def test_smooth_load_is_the_load_that_redrawn_noise_gives():
    clean = torch.tensor([[1.0, 0.0, -0.5, 0.3]])
    noisy = torch.tensor([[0.8, 0.6, -0.9, 0.1]])
    redrawn = add_noise(clean.expand(20_000, 4), 0.9, torch.Generator().manual_seed(0))
    chosen = np.zeros(4)
    for expert in range(4):  # its noise is drawn again, the others' is kept
        trial = noisy.expand(20_000, 4).clone()
        trial[:, expert] = redrawn[:, expert]
        chosen[expert] = float((route(trial, 2).experts == expert).any(dim=1).double().mean())
    assert losses.smooth_load(clean, noisy, 0.9, 2).item() == pytest.approx(cv_squared(chosen), rel=0.05)


# --- 1 at uniform, and elsewhere


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 6])
def test_uniform_is_one_for_every_top_k(top_k, score):
    # token t prefers experts t, t+1, ...: loads and mean scores are equal
    logits = torch.stack([torch.linspace(3, 0, 6, dtype=torch.float64).roll(token) for token in range(12)])
    routing = route(logits, top_k)
    assert len(set(routing.load.tolist())) == 1
    for loss in (
        losses.switch_aux(logits, routing, score=score),
        losses.sequence_aux(logits, routing, 2, score=score),
        losses.gshard(logits, routing),
    ):
        assert loss.item() == pytest.approx(1.0, abs=1e-12)
    assert losses.importance(routing).item() == pytest.approx(0.0, abs=1e-24)
    assert losses.smooth_load(logits, logits, 1.0, top_k).item() == pytest.approx(0.0, abs=1e-24)


@pytest.mark.parametrize(("sure", "loss"), [(0.8, 1.0), (1 - 1e-9, 0.95)])
def test_an_uneven_load_can_have_the_loss_of_an_even_one_or_less(sure, loss):
    # three tokens take expert 0 by a hair, one takes expert 1 with conviction: f = (3/4, 1/4)
    probability = torch.tensor([[0.6, 0.4]] * 3 + [[1 - sure, sure]], dtype=torch.float64)
    routing = route(probability.log(), 1)
    assert routing.load.tolist() == [3, 1]
    assert losses.switch_aux(probability.log(), routing).item() == pytest.approx(loss, abs=1e-8)


def test_collapse_is_num_experts():
    logits = torch.zeros(10, 4)
    logits[:, 2] = 50
    assert losses.switch_aux(logits, route(logits, 1)).item() == pytest.approx(4.0)
    assert losses.switch_aux(logits, route(logits, 2)).item() == pytest.approx(
        2.0
    )  # a second one is asked for as often
    assert losses.gshard(logits, route(logits, 2)).item() == pytest.approx(4.0)
    assert losses.importance(route(logits, 1)).item() == pytest.approx(3.0)  # num_experts - 1


@given(
    st.integers(1, 24), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 10_000)
)
@settings(max_examples=150, deadline=None)
def test_ranges_and_no_expert_is_special(tokens, num_experts, top_k, scale, seed):
    top_k = min(top_k, num_experts)
    logits = scale * normal(tokens, num_experts, seed=seed)
    order = torch.randperm(num_experts, generator=torch.Generator().manual_seed(seed))
    sequences = math.gcd(tokens, 4)
    highest = {"switch_aux": num_experts / top_k, "sequence_aux": num_experts / top_k, "gshard": num_experts}
    highest |= {"importance": num_experts - 1, "smooth_load": num_experts - 1, "z_loss": math.inf}
    values = []
    for x in (logits, logits[:, order]):
        routing = route(x, top_k)
        values.append(
            {
                "switch_aux": losses.switch_aux(x, routing),
                "sequence_aux": losses.sequence_aux(x, routing, sequences),
                "gshard": losses.gshard(x, routing),
                "importance": losses.importance(routing),
                "smooth_load": losses.smooth_load(x, x, 1.0, top_k),
                "z_loss": losses.z_loss(x),
            }
        )
    assert values[0].keys() == losses.PUBLISHED_COEFFICIENTS.keys()
    for name, value in values[0].items():
        assert value.dtype == torch.float64 and value.shape == ()
        assert 0 <= value.item() <= highest[name] + 1e-9, name
        assert values[1][name].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12), name


def test_published_coefficients_belong_to_functions():
    for name, coefficient in losses.PUBLISHED_COEFFICIENTS.items():
        assert callable(getattr(losses, name)) and 0 < coefficient < 1
    assert losses.PUBLISHED_COEFFICIENTS["switch_aux"] == 0.01 and losses.PUBLISHED_COEFFICIENTS["z_loss"] == 0.001


# --- gradients


def test_f_carries_no_gradient():
    logits = skewed(9, 5).requires_grad_()
    routing = route(logits, 2)
    losses.switch_aux(logits, routing).backward()
    p = logits.detach().softmax(1)
    f = routing.load.double() / 18
    # with f held fixed, d/dx of num_experts * sum_j f_j mean(p_j) is num_experts / tokens * p_j (f_j - sum_m f_m p_m)
    want = 5 / 9 * p * (f - (p * f).sum(1, keepdim=True))
    torch.testing.assert_close(logits.grad, want, rtol=1e-12, atol=1e-14)


def noisy_top_1(x):
    """Smooth load with a deviation that the logits decide, as in the paper."""
    std = torch.nn.functional.softplus(x.flip(1)) + 0.01
    return losses.smooth_load(x, x + std * normal(*x.shape, seed=5), std, 1)


DIFFERENTIABLE = {
    "switch_aux": lambda x: losses.switch_aux(x, route(x, 2)),
    "switch_aux sigmoid": lambda x: losses.switch_aux(x, route(x, 2), score="sigmoid"),
    "switch_aux load": lambda x: losses.switch_aux(x, route(x, 2), load=torch.arange(1, x.shape[1] + 1)),
    "switch_aux dropped": lambda x: losses.switch_aux(x, route(x, 1, "switch", capacity_factor=0.5)),
    "gshard": lambda x: losses.gshard(x, route(x, 2)),
    "sequence_aux": lambda x: losses.sequence_aux(x, route(x, 2), 2),
    "z_loss": losses.z_loss,
    "importance": lambda x: losses.importance(route(x, 2, renormalise=True)),
    "importance dropped": lambda x: losses.importance(route(x, 1, "switch", capacity_factor=0.5)),
    "smooth_load": noisy_top_1,
    "smooth_load kept noise": lambda x: losses.smooth_load(x, x + normal(*x.shape, seed=5), 1.0, 3),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient(name):
    logits = skewed(6, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(DIFFERENTIABLE[name], logits)
    (gradient,) = torch.autograd.grad(DIFFERENTIABLE[name](logits), logits)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name not in ("z_loss", "switch_aux load")])
def test_a_step_takes_from_the_busy_expert(name):
    logits = normal(64, 4, seed=1)
    logits[:, 2] += 2.0
    logits.requires_grad_()
    before = DIFFERENTIABLE[name](logits)
    before.backward()
    after = (logits - logits.grad).detach()
    assert after.softmax(1).mean(0)[2] < logits.softmax(1).mean(0)[2]
    assert DIFFERENTIABLE[name](after) < before


def test_z_loss_shrinks_logits():
    logits = (10 * normal(8, 4)).requires_grad_()
    losses.z_loss(logits).backward()
    after = (logits - 0.1 * logits.grad).detach()
    assert losses.z_loss(after) < losses.z_loss(logits)


# --- edges


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_tokens_is_zero_with_a_graph(name):
    logits = torch.empty(0, 4, dtype=torch.float64, requires_grad=True)
    loss = DIFFERENTIABLE[name](logits)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 4)


def test_no_tokens_on_this_rank_but_on_others():
    logits = torch.empty(0, 3, requires_grad=True)
    for load in (torch.tensor([5, 0, 1]), torch.tensor([0, 0, 0])):
        loss = losses.switch_aux(logits, route(logits, 1), load=load)
        loss.backward()
        assert loss.item() == 0.0


def test_one_expert():
    logits = normal(5, 1)
    routing = route(logits, 1)
    assert losses.switch_aux(logits, routing).item() == pytest.approx(1.0)
    assert losses.gshard(logits, routing).item() == pytest.approx(1.0)
    assert losses.sequence_aux(logits, routing, 5).item() == pytest.approx(1.0)
    assert losses.importance(routing).item() == 0.0
    assert losses.smooth_load(logits, logits, 1.0, 1).item() == 0.0
    assert losses.z_loss(logits).item() == pytest.approx(float((logits**2).mean()))


def test_smooth_load_of_all_experts_is_zero_with_a_graph():
    clean, noisy = skewed(6, 3).requires_grad_(), skewed(6, 3, seed=1)
    loss = losses.smooth_load(clean, noisy, 1.0, 3)
    loss.backward()
    assert str(loss.item()) == "0.0" and not clean.grad.any()


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_huge_logits_stay_finite(name, size):
    logits = (size + 100 * normal(6, 4, dtype=torch.float32)).requires_grad_()
    loss = DIFFERENTIABLE[name](logits)
    loss.backward()
    assert bool(loss.isfinite()) and bool(logits.grad.isfinite().all())


def test_sigmoids_that_all_underflow_still_have_shares():
    logits = torch.tensor([[-2000.0, -2001.0], [-3000.0, -3000.0]])
    want = 2 * (1 / (1 + math.exp(-1)) + 0.5) / 2  # both take expert 0
    assert losses.switch_aux(logits, route(logits, 1), score="sigmoid").item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = skewed(300, 4).to(dtype)
    wide = logits.float()
    for name, loss in DIFFERENTIABLE.items():
        if not name.startswith("smooth_load"):  # the noise above is float64
            assert loss(logits).dtype == torch.float32
            assert loss(logits).item() == pytest.approx(loss(wide).item(), rel=1e-6), name
    half = Routing(torch.tensor([[0], [1]]), torch.tensor([[0.1], [0.3]], dtype=dtype), 2)
    assert losses.importance(half).dtype == torch.float32
    assert losses.smooth_load(logits, logits, 1.0, 2).dtype == torch.float32


# --- what was asked for, and what was dropped


@pytest.mark.parametrize("loss", [losses.switch_aux, losses.gshard], ids=["switch_aux", "gshard"])
def test_dropping_does_not_change_the_loss(loss):
    logits = skewed(40, 5)
    tight = route(logits, 1, "switch", capacity_factor=0.5)
    roomy = route(logits, 1, "switch", capacity_factor=8.0)
    assert int(tight.load.sum()) < 25 and int(roomy.load.sum()) == 40
    assert loss(logits, tight) == loss(logits, roomy)
    options = dict(random_second=True, generator=torch.Generator().manual_seed(0))
    two = route(logits, 2, "gshard", capacity_factor=0.5, **options)
    assert 0 < int((two.experts[:, 0] < 0).sum()) < 40 and int((two.experts[:, 1] < 0).sum()) > 0
    assert loss(logits, two) == loss(logits, route(logits, 2))
    assert losses.sequence_aux(logits, two, 4) == losses.sequence_aux(logits, route(logits, 2), 4)
    assert losses.asked_load(logits, two).tolist() == route(logits, 2).load.tolist()


def test_a_full_routing_is_counted_as_it_is():
    logits = skewed(16, 4)
    routing = route(logits, 2, "random", generator=torch.Generator().manual_seed(0))
    assert losses.asked_load(logits, routing).tolist() == routing.load.tolist()
    want = aux_by_hand(logits, 2, asked=routing.experts.tolist())
    assert losses.switch_aux(logits, routing).item() == pytest.approx(want, rel=1e-12)


def test_experts_that_choose_drop_nothing():
    logits = skewed(16, 4)
    routing = route(logits, 2, "expert_choice")
    assert bool((routing.experts < 0).any())
    assert losses.asked_load(logits, routing).tolist() == [8, 8, 8, 8]
    assert losses.switch_aux(logits, routing).item() == pytest.approx(1.0)


# --- the global batch


def test_micro_batches_with_one_load_are_the_whole_batch():
    logits = skewed(32, 4)
    logits[:16] = logits[:16].flip(1)  # two kinds of text: the halves like different experts
    whole = logits.clone().requires_grad_()
    losses.switch_aux(whole, route(whole, 2)).backward()
    parts = logits.clone().requires_grad_()
    load = sum(losses.asked_load(part, route(part, 2)) for part in logits.split(8))
    each = [losses.switch_aux(part, route(part, 2), load=load) for part in parts.split(8)]
    torch.stack(each).mean().backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)
    want = losses.switch_aux(logits, route(logits, 2)).item()
    assert torch.stack(each).mean().item() == pytest.approx(want, rel=1e-12)
    alone = [losses.switch_aux(part, route(part, 2)).item() for part in logits.split(8)]
    assert np.mean(alone) > want + 0.1


def one_rank():
    """What each process of the next test does: its half of the tokens, and the load of both."""
    rank = dist.get_rank()
    logits = skewed(20, 4).view(2, 10, 4)[rank]
    routing = route(logits, 1, "switch", capacity_factor=0.5)
    own = losses.asked_load(logits, routing)
    load = sum_over_ranks(own)
    alone = sum_over_ranks(own, dist.new_group([0], use_local_synchronization=True)) if rank == 0 else own
    return {"own": own, "load": load, "alone": alone, "loss": losses.switch_aux(logits, routing, load=load)}


def test_two_processes_add_their_loads_up():
    first, second = run_ranks(one_rank, 2)
    logits = skewed(20, 4)
    whole = route(logits, 1)
    assert first["load"].tolist() == second["load"].tolist() == whole.load.tolist()
    assert (first["own"] + second["own"]).tolist() == whole.load.tolist()  # neither was written over
    assert first["alone"].tolist() == first["own"].tolist()  # a group of one
    mean = (first["loss"] + second["loss"]).item() / 2
    assert mean == pytest.approx(losses.switch_aux(logits, whole).item(), rel=1e-12)


def test_one_process_has_its_own_load():
    load = torch.tensor([3, 0, 1])
    assert sum_over_ranks(load) is load


# --- refusals

LOGITS = torch.zeros(4, 3)
ROUTING = route(LOGITS, 1)


@pytest.mark.parametrize(
    "loss",
    [losses.switch_aux, losses.gshard, lambda x, r: losses.sequence_aux(x, r, 1), losses.asked_load],
    ids=["switch_aux", "gshard", "sequence_aux", "asked_load"],
)
def test_refuses_what_does_not_fit_together(loss, unchecked_shapes):
    with pytest.raises(ValueError, match=r"got logits of 5 tokens x 3 experts and a routing of 4 tokens x 3 experts"):
        loss(torch.zeros(5, 3), ROUTING)
    with pytest.raises(ValueError, match=r"got logits of 4 tokens x 2 experts and a routing of 4 tokens x 3 experts"):
        loss(torch.zeros(4, 2), ROUTING)
    with pytest.raises(TypeError, match="logits must be floating point"):
        loss(LOGITS.long(), ROUTING)
    with pytest.raises(ValueError, match=r"logits must be finite, logits\[0, 0\] is nan"):
        loss(LOGITS * float("nan"), ROUTING)
    with pytest.raises(TypeError, match="routing must be a Routing, got Tensor"):
        loss(LOGITS, ROUTING.experts)
    wide = Routing(torch.tensor([[0, -1]]), torch.tensor([[1.0, 0.0]]), 1)
    with pytest.raises(ValueError, match="routing has 2 slots, more than its 1 experts"):
        loss(torch.zeros(1, 1), wide)


@pytest.mark.parametrize(
    ("load", "error", "says"),
    [
        (torch.ones(3), TypeError, "a tensor of whole numbers, got torch.float32"),
        ([1, 2, 3], TypeError, "a tensor of whole numbers, got list"),
        (torch.tensor([1, 2]), ValueError, r"load must be \(num_experts,\) = \(3,\), got \(2,\)"),
        (torch.tensor([1, -2, 3]), ValueError, r"load must not be negative, got \[1, -2, 3\]"),
        (torch.tensor([0, 0, 0]), ValueError, r"load must count these 4 tokens among others, got \[0, 0, 0\]"),
    ],
)
def test_refuses_a_load(load, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        losses.switch_aux(LOGITS, ROUTING, load=load)


def test_refuses_the_rest(unchecked_shapes):
    with pytest.raises(ValueError, match="score must be one of softmax, sigmoid; got 'softmax_after_top_k'"):
        losses.switch_aux(LOGITS, ROUTING, score="softmax_after_top_k")
    with pytest.raises(ValueError, match="sequences must divide the tokens, got sequences=3 and 4 tokens"):
        losses.sequence_aux(LOGITS, ROUTING, 3)
    with pytest.raises(ValueError, match="sequences must be at least 1, got 0"):
        losses.sequence_aux(LOGITS, ROUTING, 0)
    with pytest.raises(ValueError, match="tokens that choose, got one with a top_k of its own: 1"):
        losses.gshard(LOGITS, route(LOGITS, 1, "expert_choice"))
    with pytest.raises(ValueError, match=r"logits must be \(tokens, num_experts\) .* got \(3,\)"):
        losses.z_loss(torch.zeros(3))
    with pytest.raises(TypeError, match="routing must be a Routing, got Tensor"):
        losses.importance(LOGITS)


def test_smooth_load_refuses(unchecked_shapes):
    with pytest.raises(ValueError, match=r"must have one shape, got \(4, 3\) and \(4, 2\)"):
        losses.smooth_load(LOGITS, torch.zeros(4, 2), 1.0, 1)
    with pytest.raises(ValueError, match=r"top_k must be in 1..3, got 4"):
        losses.smooth_load(LOGITS, LOGITS, 1.0, 4)
    with pytest.raises(ValueError, match="noise_std must be a finite number above 0, got 0"):
        losses.smooth_load(LOGITS, LOGITS, 0, 1)
    for std in (torch.ones(3), torch.zeros(4, 3), torch.ones(4, 3).long(), torch.full((4, 3), math.nan)):
        with pytest.raises(
            ValueError, match=r"noise_std must be a number or floating point \(4, 3\) like logits, above"
        ):
            losses.smooth_load(LOGITS, LOGITS, std, 1)
