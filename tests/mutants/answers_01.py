"""Answers to the exercises of lesson 01: right ones, and wrong ones that must be refused with a reason."""

import math

import torch

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


RIGHT = {"01.1": mixtral, "01.2": dropped, "01.3": who_learns, "01.4": choose_in_groups}


def choose_by_sorting(scores, bias, top_k, num_groups, top_groups):
    ranking, size = scores + bias, scores.shape[1] // num_groups
    chosen = []
    for row in ranking.tolist():
        groups = [sorted(row[g * size : (g + 1) * size], reverse=True) for g in range(num_groups)]
        best = sorted(range(num_groups), key=lambda g: -sum(groups[g][:2]))[:top_groups]
        allowed = [g * size + e for g in best for e in range(size)]
        chosen.append(sorted(allowed, key=lambda e: -row[e])[:top_k])
    return torch.tensor(chosen, dtype=torch.int64).reshape(len(scores), top_k)


ALSO_RIGHT = {
    "01.4": choose_by_sorting,
    "01.1": mixtral_by_the_library,
    "01.2": dropped_by_the_library,
    "01.3": by_random_coefficients,
}
WRONG = {
    "01.1": {
        "not renormalised": not_renormalised,
        "softmax over the tokens": softmax_over_the_tokens,
        "sigmoid for softmax": sigmoid_for_softmax,
        "equals to the higher expert": equals_to_the_higher_expert,
        "overflowing exp": overflowing_exp,
        "worst first": worst_first,
        "zeros for the others": zeros_for_the_others,
        "always two": always_two,
        "the lowest": the_lowest,
    },
    "01.2": {
        "capacity rounded down": capacity_rounded_down,
        "capacity rounded": capacity_rounded,
        "capacity not rounded": capacity_not_rounded,
        "floating point trap": floating_point_trap,
        "no capacity factor": no_capacity_factor,
        "negative drops count": negative_drops_count,
        "experts that overflow": experts_that_overflow,
        "busiest expert only": busiest_expert_only,
        "as a fraction": as_a_fraction,
        "those that are kept": lambda load, capacity_factor: int(load.sum()) - dropped(load, capacity_factor),
    },
    "01.3": {
        "sum of weights": sum_of_weights,
        "sum of squares": sum_of_squares,
        "first weight only": first_weight_only,
        "first token only": first_token_only,
        "no threshold": no_threshold,
        "everybody": everybody,
        "whoever is chosen": whoever_is_chosen,
        "in the callers logits": in_the_callers_logits,
    },
    "01.4": {
        "masked with zero": masked_with_zero,
        "group by its best": group_by_its_best,
        "group by its sum": group_by_its_sum,
        "bias forgotten": bias_forgotten,
        "groups forgotten": groups_forgotten,
        "one group only": one_group_only,
        "groups read across": groups_read_across,
    },
}

HINT_NAMES = {"torch": torch, "math": math}
ARGUMENTS = {
    "01.1": "logits, top_k",
    "01.2": "load, capacity_factor",
    "01.3": "router, logits",
    "01.4": "scores, bias, top_k, num_groups, top_groups",
}
