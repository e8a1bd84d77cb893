"""Lesson 01's checks: the right answer passes, and each of the wrong ones that people write is named as wrong."""

import math

import pytest
import torch

from moe_lab.exercises.lesson_01 import EXERCISES
from moe_lab.routers import expert_capacity, route

# ---------------------------------------------------------------- 01.1


def mixtral(logits, top_k):
    best = logits.sort(dim=1, descending=True, stable=True)
    return best.indices[:, :top_k], best.values[:, :top_k].softmax(dim=1)


def mixtral_by_the_library(logits, top_k):
    routing = route(logits, top_k, score="softmax_after_top_k")
    return routing.experts, routing.weights


def not_renormalised(logits, top_k):
    experts, _ = mixtral(logits, top_k)
    return experts, logits.softmax(dim=1).gather(1, experts)


def softmax_over_the_tokens(logits, top_k):
    experts, _ = mixtral(logits, top_k)
    weights = logits.softmax(dim=0).gather(1, experts)
    return experts, weights / weights.sum(dim=1, keepdim=True)


def sigmoid_for_softmax(logits, top_k):
    experts, _ = mixtral(logits, top_k)
    weights = logits.sigmoid().gather(1, experts)
    return experts, weights / weights.sum(dim=1, keepdim=True)


def equals_to_the_higher_expert(logits, top_k):
    experts, weights = mixtral(logits.flip(1), top_k)
    return logits.shape[1] - 1 - experts, weights


def overflowing_exp(logits, top_k):
    experts, _ = mixtral(logits, top_k)
    weights = logits.gather(1, experts).exp()
    return experts, weights / weights.sum(dim=1, keepdim=True)


def worst_first(logits, top_k):
    experts, weights = mixtral(logits, top_k)
    return experts.flip(1), weights.flip(1)


def zeros_for_the_others(logits, top_k):
    experts, _ = mixtral(logits, top_k)
    kept = torch.zeros_like(logits).scatter(1, experts, logits.gather(1, experts))
    return experts, kept.softmax(dim=1).gather(1, experts)


def always_two(logits, top_k):
    return mixtral(logits, 2)


def the_lowest(logits, top_k):
    return mixtral(-logits, top_k)


# ---------------------------------------------------------------- 01.2


def dropped(load, capacity_factor):
    capacity = math.ceil(round(capacity_factor * int(load.sum()) / len(load), 9))
    return int((load - capacity).clamp_min(0).sum())


def dropped_by_the_library(load, capacity_factor):
    capacity = expert_capacity(capacity_factor, int(load.sum()), 1, len(load))
    return (load - capacity).clamp_min(0).sum()


def capacity_rounded_down(load, capacity_factor):
    return int((load - int(capacity_factor * int(load.sum()) / len(load))).clamp_min(0).sum())


def capacity_rounded(load, capacity_factor):
    return int((load - round(capacity_factor * int(load.sum()) / len(load))).clamp_min(0).sum())


def capacity_not_rounded(load, capacity_factor):
    return float((load - capacity_factor * load.sum() / len(load)).clamp_min(0).sum())


def floating_point_trap(load, capacity_factor):
    return int((load - math.ceil(capacity_factor * int(load.sum()) / len(load))).clamp_min(0).sum())


def no_capacity_factor(load, capacity_factor):
    return dropped(load, 1.0)


def negative_drops_count(load, capacity_factor):
    return int((load - math.ceil(round(capacity_factor * int(load.sum()) / len(load), 9))).sum())


def experts_that_overflow(load, capacity_factor):
    return int((load > math.ceil(round(capacity_factor * int(load.sum()) / len(load), 9))).sum())


def busiest_expert_only(load, capacity_factor):
    return max(0, int(load.max()) - math.ceil(round(capacity_factor * int(load.sum()) / len(load), 9)))


def as_a_fraction(load, capacity_factor):
    return dropped(load, capacity_factor) / int(load.sum())


# ---------------------------------------------------------------- 01.3


def who_learns(router, logits):
    logits = logits.detach().clone().requires_grad_()
    routing = router(logits)
    learns = torch.zeros_like(logits, dtype=torch.bool)
    for slot in range(routing.slots):
        (gradient,) = torch.autograd.grad(routing.weights[:, slot].sum(), logits, retain_graph=True)
        learns |= gradient.abs() > 1e-6
    return learns


def by_random_coefficients(router, logits):
    logits = logits.detach().clone().requires_grad_()
    weights = router(logits).weights
    coefficients = torch.randn(weights.shape, generator=torch.Generator().manual_seed(7))
    (weights * coefficients).sum().backward()
    return logits.grad.abs() > 1e-6


def _by_loss(loss):
    def answer(router, logits):
        logits = logits.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(router(logits).weights), logits)
        return gradient.abs() > 1e-6

    return answer


sum_of_weights = _by_loss(lambda weights: weights.sum())
sum_of_squares = _by_loss(lambda weights: (weights**2).sum())
first_weight_only = _by_loss(lambda weights: weights[:, 0].sum())
first_token_only = _by_loss(lambda weights: weights[0] @ torch.arange(1.0, 1 + weights.shape[1]))


def no_threshold(router, logits):
    logits = logits.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(router(logits).weights[:, 0].sum(), logits)
    return gradient == gradient


def everybody(router, logits):
    return torch.ones_like(logits, dtype=torch.bool)


def whoever_is_chosen(router, logits):
    experts = router(logits).experts
    learns = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool)
    return learns.scatter(1, experts + 1, True)[:, 1:]


def in_the_callers_logits(router, logits):
    logits.requires_grad_()
    return who_learns(router, logits)


# ---------------------------------------------------------------- 01.4


def choose_in_groups(scores, bias, top_k, num_groups, top_groups, *, group_top=2, fill=float("-inf")):
    ranking = scores + bias
    groups = ranking.view(len(scores), num_groups, -1)
    best = groups.topk(min(group_top, groups.shape[2]), dim=2).values.sum(dim=2).topk(top_groups, dim=1).indices
    allowed = torch.zeros(len(scores), num_groups, dtype=torch.bool).scatter(1, best, True)
    allowed = allowed.repeat_interleave(groups.shape[2], dim=1)
    return ranking.masked_fill(~allowed, fill).topk(top_k, dim=1).indices


def masked_with_zero(scores, bias, top_k, num_groups, top_groups):
    return choose_in_groups(scores, bias, top_k, num_groups, top_groups, fill=0.0)


def group_by_its_best(scores, bias, top_k, num_groups, top_groups):
    return choose_in_groups(scores, bias, top_k, num_groups, top_groups, group_top=1)


def group_by_its_sum(scores, bias, top_k, num_groups, top_groups):
    return choose_in_groups(scores, bias, top_k, num_groups, top_groups, group_top=99)


def bias_forgotten(scores, bias, top_k, num_groups, top_groups):
    return choose_in_groups(scores, 0 * bias, top_k, num_groups, top_groups)


def groups_forgotten(scores, bias, top_k, num_groups, top_groups):
    return (scores + bias).topk(top_k, dim=1).indices


def one_group_only(scores, bias, top_k, num_groups, top_groups):
    return choose_in_groups(scores, bias, top_k, num_groups, 1)


def groups_read_across(scores, bias, top_k, num_groups, top_groups):
    ranking = scores + bias
    groups = ranking.view(len(scores), -1, num_groups).transpose(1, 2)
    best = groups.topk(2, dim=2).values.sum(dim=2).topk(top_groups, dim=1).indices
    allowed = torch.zeros(len(scores), num_groups, dtype=torch.bool).scatter(1, best, True)
    allowed = allowed.repeat(1, groups.shape[2])
    return ranking.masked_fill(~allowed, float("-inf")).topk(top_k, dim=1).indices


RIGHT = {
    "01.1": (mixtral, mixtral_by_the_library),
    "01.2": (dropped, dropped_by_the_library),
    "01.3": (who_learns, by_random_coefficients),
    "01.4": (choose_in_groups,),
}
WRONG = {
    "01.1": (
        not_renormalised,
        softmax_over_the_tokens,
        sigmoid_for_softmax,
        equals_to_the_higher_expert,
        overflowing_exp,
        worst_first,
        zeros_for_the_others,
        always_two,
        the_lowest,
    ),
    "01.2": (
        capacity_rounded_down,
        capacity_rounded,
        capacity_not_rounded,
        floating_point_trap,
        no_capacity_factor,
        negative_drops_count,
        experts_that_overflow,
        busiest_expert_only,
        as_a_fraction,
    ),
    "01.3": (
        sum_of_weights,
        sum_of_squares,
        first_weight_only,
        first_token_only,
        no_threshold,
        everybody,
        whoever_is_chosen,
        in_the_callers_logits,
    ),
    "01.4": (
        masked_with_zero,
        group_by_its_best,
        group_by_its_sum,
        bias_forgotten,
        groups_forgotten,
        one_group_only,
        groups_read_across,
    ),
}


def not_written(*_):
    raise NotImplementedError


def raises(*_):
    raise IndexError("index 7 is out of bounds")


def test_every_exercise_is_tested_here():
    assert set(EXERCISES) == set(RIGHT) == set(WRONG)


@pytest.mark.parametrize(
    ("exercise", "answer"), [(key, answer) for key, answers in RIGHT.items() for answer in answers]
)
def test_a_right_answer_is_accepted(exercise, answer):
    outcome = EXERCISES[exercise].examine(answer)
    assert outcome.solved, outcome.says


@pytest.mark.parametrize(
    ("exercise", "answer"), [(key, answer) for key, answers in WRONG.items() for answer in answers]
)
def test_a_wrong_answer_is_rejected_with_both_values(exercise, answer):
    outcome = EXERCISES[exercise].examine(answer)
    assert not outcome.solved
    assert "First failing: " in outcome.says
    assert "it raised" not in outcome.says, "a wrong answer should fail by its values here, not by an exception"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_each_property_is_needed_or_simple_and_there_are_five(exercise):
    assert len(EXERCISES[exercise].properties) >= 5
    assert len(EXERCISES[exercise].hints) == 3
    assert len(WRONG[exercise]) >= 5


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize("answer", [None, not_written])
def test_what_was_not_written_is_not_attempted(exercise, answer):
    outcome = EXERCISES[exercise].examine(answer)
    assert not outcome.solved
    assert outcome.says == "not attempted yet."


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize("answer", [raises, lambda *_: None, "not a function"])
def test_an_answer_that_raises_is_reported(exercise, answer):
    outcome = EXERCISES[exercise].examine(answer)
    assert not outcome.solved
    assert "0 of " in outcome.says


def test_the_message_names_the_token_and_both_values():
    says = EXERCISES["01.1"].examine(not_renormalised).says
    assert "token 0: weights yours [0.5, 0.25], spec [0.667, 0.333]" in says
