"""Answers to the exercises of lesson 02: right ones, and wrong ones that must be refused with a reason.

The wrong ones are slips that people make; some were in public code for years.
"""

import math

import torch
import torch.nn.functional as F


def flops(tokens, num_experts, top_k, capacity_factor, d_model):
    return 4 * tokens * num_experts * math.ceil(capacity_factor * tokens * top_k / num_experts) * d_model


def places(wanted, num_experts, capacity):
    position = F.one_hot(wanted, num_experts).cumsum(dim=0).gather(1, wanted[:, None])[:, 0] - 1
    return torch.where(position < capacity, wanted * capacity + position, -1)


def combine(expert_outputs, places, weights):
    rows = expert_outputs.flatten(0, 1)[places.clamp_min(0)].masked_fill((places < 0)[..., None], 0.0)
    return (weights[..., None] * rows).sum(dim=1)


def gain(moving_ms, experts_ms, times_faster):
    return (moving_ms + experts_ms) / (moving_ms / times_faster + experts_ms)


RIGHT = {"02.1": flops, "02.2": places, "02.3": combine, "02.4": gain}


def places_in_turn(wanted, num_experts, capacity):
    taken, found = [0] * num_experts, []
    for expert in wanted.tolist():
        found.append(expert * capacity + taken[expert] if taken[expert] < capacity else -1)
        taken[expert] += 1
    return torch.tensor(found, dtype=torch.int64)


def combine_slot_by_slot(expert_outputs, places, weights):
    rows = torch.cat([expert_outputs.flatten(0, 1), expert_outputs.new_zeros(1, expert_outputs.shape[2])])
    y = expert_outputs.new_zeros(len(places), expert_outputs.shape[2])
    for slot in range(places.shape[1]):
        y = y + weights[:, slot, None] * rows[places[:, slot]]  # the last row, of zeros, is what -1 finds
    return y


ALSO_RIGHT = {
    "02.1": lambda t, e, k, f, d: 2 * (2 * t * d) * (e * math.ceil(f * t * k / e)),
    "02.2": places_in_turn,
    "02.3": combine_slot_by_slot,
    "02.4": lambda m, e, f: 1 / (1 - m / (m + e) * (1 - 1 / f)),
}


def capacity_of(tokens, num_experts, top_k, capacity_factor):
    return math.ceil(capacity_factor * tokens * top_k / num_experts)


def positions(wanted, num_experts):
    return F.one_hot(wanted, num_experts).cumsum(dim=0).gather(1, wanted[:, None])[:, 0] - 1


def counts_along_the_wrong_axis(wanted, num_experts, capacity):
    """transformers#48293: a one-hot of (tokens, 1, experts), and a sum that ran over the 1: nothing was dropped."""
    arrivals = F.one_hot(wanted[:, None], num_experts).cumsum(dim=-2)[:, 0]
    position = arrivals.gather(1, wanted[:, None])[:, 0] - 1
    return torch.where(position < capacity, wanted * capacity + position, -1)


def overflow_shares_the_last_place(wanted, num_experts, capacity):
    return wanted * capacity + positions(wanted, num_experts).clamp_max(capacity - 1)


def later_tokens_first(wanted, num_experts, capacity):
    return places(wanted.flip(0), num_experts, capacity).flip(0)


def place(wanted, num_experts, capacity, position=None, keep=None, stride=None):
    position = positions(wanted, num_experts) if position is None else position
    keep = position < capacity if keep is None else keep
    return torch.where(keep, wanted * (capacity if stride is None else stride) + position, -1)


WRONG = {
    "02.1": {
        "rounds down": lambda t, e, k, f, d: 4 * t * e * int(f * t * k / e) * d,
        "rounds to the nearest": lambda t, e, k, f, d: 4 * t * e * round(f * t * k / e) * d,
        "does not round": lambda t, e, k, f, d: 4 * t * e * (f * t * k / e) * d,
        "counts one direction, or a multiply-add as 1": lambda t, e, k, f, d: 2 * t * e * capacity_of(t, e, k, f) * d,
        "forgets top_k": lambda t, e, k, f, d: 4 * t * e * capacity_of(t, e, 1, f) * d,
        "top_k twice": lambda t, e, k, f, d: 4 * t * e * capacity_of(t, e, k, f) * d * k,
        "one expert": lambda t, e, k, f, d: 4 * t * capacity_of(t, e, k, f) * d,
        "only the rows that move": lambda t, e, k, f, d: 4 * e * capacity_of(t, e, k, f) * d,
        "forgets the factor": lambda t, e, k, f, d: 4 * t * e * capacity_of(t, e, k, 1.0) * d,
        "places for tokens, not for shares": lambda t, e, k, f, d: 4 * t * e * math.ceil(f * t * k) * d,
    },
    "02.2": {
        "counts along the wrong axis": counts_along_the_wrong_axis,
        "overflow shares the last place": overflow_shares_the_last_place,
        "later tokens first": later_tokens_first,
        "counts itself": lambda w, e, c: place(w, e, c, position=positions(w, e) + 1),
        "one place too many": lambda w, e, c: place(w, e, c, keep=positions(w, e) <= c),
        "nothing is dropped": lambda w, e, c: place(w, e, c, keep=torch.ones_like(w, dtype=torch.bool)),
        "steps of num_experts": lambda w, e, c: place(w, e, c, stride=e),
        "place major": lambda w, e, c: torch.where(positions(w, e) < c, positions(w, e) * e + w, -1),
        "position of the token in the batch": lambda w, e, c: place(w, e, c, position=torch.arange(len(w))),
        "position without the expert": lambda w, e, c: place(w, e, c, stride=0),
        "overflow is 0": lambda w, e, c: place(w, e, c).clamp_min(0),
        "a list": lambda w, e, c: places(w, e, c).tolist(),
        "a column": lambda w, e, c: places(w, e, c)[:, None],
    },
    "02.3": {
        "no weights": lambda o, p, w: combine(o, p, torch.ones_like(w)),
        "mean of the slots": lambda o, p, w: combine(o, p, w) / p.shape[1],
        "first slot only": lambda o, p, w: combine(o, p[:, :1], w[:, :1]),
        "-1 reads the last row": lambda o, p, w: (w[..., None] * o.flatten(0, 1)[p]).sum(dim=1),
        "-1 reads the first row": lambda o, p, w: (w[..., None] * o.flatten(0, 1)[p.clamp_min(0)]).sum(dim=1),
        "clears a row by multiplying": lambda o, p, w: combine(o, p.clamp_min(0), w * (p >= 0)),
        "weights without a gradient": lambda o, p, w: combine(o, p, w.detach()),
        "weights normalised again": lambda o, p, w: combine(o, p, w / w.sum(dim=1, keepdim=True).clamp_min(1e-9)),
        "not summed": lambda o, p, w: w[..., None] * o.flatten(0, 1)[p.clamp_min(0)],
        "places within the first expert": lambda o, p, w: combine(o[:1].repeat(len(o), 1, 1), p, w),
        "weighted twice": lambda o, p, w: combine(o, p, w * w),
    },
    "02.4": {
        "the part is the whole": lambda m, e, f: f,
        "share times factor": lambda m, e, f: 1 + m / (m + e) * (f - 1),
        "after over before": lambda m, e, f: 1 / gain(m, e, f),
        "experts gain instead": lambda m, e, f: (m + e) / (m + e / f),
        "all of it vanishes": lambda m, e, f: (m + e) / e,
        "share left over": lambda m, e, f: 1 / (1 - m / (m + e)),
        "both get faster": lambda m, e, f: (m + e) / ((m + e) / f),
        "time, not gain": lambda m, e, f: m / f + e,
        "in percent": lambda m, e, f: 100 * gain(m, e, f),
    },
}

HINT_NAMES = {"torch": torch, "F": F, "math": math}
ARGUMENTS = {
    "02.1": "tokens, num_experts, top_k, capacity_factor, d_model",
    "02.2": "wanted, num_experts, capacity",
    "02.3": "expert_outputs, places, weights",
    "02.4": "moving_ms, experts_ms, times_faster",
}
