"""Answers to the exercises of lesson 13: right pairs (property, cure), and wrong ones that must be refused.

A wrong pair has either a property that an ill function passes, or fails a well one; or the cure is none: the patient
itself, or another of the mistakes that the clinic knows.
"""

import torch
import torch.nn.functional as F

import moe_lab as ml
from moe_lab.clinic import PATIENTS

ARGUMENTS = {}
HINT_NAMES = {"torch": torch, "ml": ml}
EYE = torch.eye(4)


def near(found, spec):
    return bool(torch.allclose(torch.as_tensor(found).double(), torch.as_tensor(spec).double(), atol=1e-3))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sure(*experts):
    """Logits of tokens that are sure of these experts, of 4."""
    return 20 * EYE[list(experts)]


# ---------------------------------------------------------------- properties, from known cases


def tells_layers(loss):
    one, other, even = sure(*[0] * 8), sure(*[3] * 8), 2 * EYE[[0, 1, 2, 3] * 2]
    return near(loss([one], 1), 4.0) and near(loss([one, other, even], 1), 3.0)


def tells_counts(step_load):
    batches = [drawn(16, 4, seed=seed) for seed in (1, 2)]
    spec = sum(ml.route(batch, 2).load for batch in batches)
    return all(torch.equal(step_load(batches, 2, again), spec) for again in (False, True))


def tells_rounding(new_bias):
    row = [30_001, 30_002, 30_000]
    found = new_bias(torch.tensor([row, row, [30_009, 30_000, 30_001]]), torch.tensor([0.5, 0, -0.5]), 0.25)
    return torch.equal(found, torch.tensor([0.25, 0.25, -0.25]))


def tells_softmax(loss):
    unsure = 2 * EYE + EYE.roll(1, dims=1)
    cases = [(sure(*[0] * 8), 1, 4.0), (unsure, 2, 1.0), (sure(*[0] * 9, *[1] * 3), 1, 2.5)]
    return all(near(loss(logits, top_k), spec) for logits, top_k, spec in cases)


def tells_weights(weigh):
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]], requires_grad=True)
    scores = logits.softmax(dim=1).topk(2).values
    one, two = weigh(logits, 1), weigh(logits, 2)
    return near(one, scores[:, :1]) and near(two, scores / scores.sum(dim=1, keepdim=True)) and one.requires_grad


def padded(loss, tokens, mask, filling=3.0):
    logits = filling * EYE[[1] * mask.numel()].view(*mask.shape, 4)
    logits[mask] = tokens
    return loss(logits, mask, 1)


def tells_padding(loss):
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, :6], mask[1, :3] = True, True
    text = drawn(9, 4, seed=2)
    alone = loss(text[None], torch.ones(1, 9, dtype=torch.bool), 1)
    return near(padded(loss, text, mask), alone) and near(padded(loss, sure(*[2] * 9), mask), 4.0)


def tells_places(keep):
    kept = keep(torch.tensor([0, 0, 0, 1, 0, 1]), 3, 2)
    return kept.tolist() == [True, True, False, True, False, True]


def tells_dropped(collect):
    answers = torch.tensor([[1.0], [float("nan")], [3.0]])
    kept, weights = torch.tensor([True, False, True]), torch.tensor([0.5, 0.5, 0.25])
    return collect(torch.ones(3, 1), kept, weights, answers).flatten().tolist() == [0.5, 0.0, 0.75]


def scaled(combine, factor, shared=10.0):
    routed, weights = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[0.5, 0.25]])
    return float(combine(routed, weights, torch.tensor([[shared]]), factor))


def tells_scale(combine):
    return abs(scaled(combine, 3.0) - 13) < 1e-4


def tells_flops(flops):
    return flops(1, 2, 7, 3, 4, 1) == 52 and flops(5, 4, 16, 8, 8, 2) == 2240


def tells_params(count):
    return count(2, 3, 5, 4, 1) == 56 and count(2, 3, 5, 4, 2) == 74


def tells_starts(row_starts):
    rows = [0, 3, 4097, 1_000_000]
    table = torch.tensor(rows, dtype=torch.int32)
    return all(row_starts(table, width).tolist() == [row * width for row in rows] for width in (4099, 7168))


def keep_by_scan(experts, num_experts, capacity):
    one_hot = F.one_hot(experts, num_experts)
    return (one_hot.cumsum(dim=0) * one_hot).sum(dim=1) <= capacity


def loss_of_real(logits, mask, top_k):
    return ml.losses.switch_aux(logits[mask], ml.route(logits[mask], top_k))


RIGHT = {
    "13.1": (
        tells_layers,
        lambda layers, top_k: sum(ml.losses.switch_aux(one, ml.route(one, top_k)) for one in layers) / len(layers),
    ),
    "13.2": (tells_counts, lambda batches, top_k, recompute: sum(ml.route(one, top_k).load for one in batches)),
    "13.3": (
        tells_rounding,
        lambda counts, bias, rate: bias + rate * (counts.sum() - counts.sum(dim=0) * counts.shape[1]).sign(),
    ),
    "13.4": (tells_softmax, lambda logits, top_k: ml.losses.switch_aux(logits, ml.route(logits, top_k))),
    "13.5": (tells_weights, lambda logits, top_k: ml.route(logits, top_k, renormalise=top_k > 1).weights),
    "13.6": (tells_padding, loss_of_real),
    "13.7": (tells_places, keep_by_scan),
    "13.8": (
        tells_dropped,
        lambda tokens, kept, weights, answers: torch.where(kept[:, None], weights[:, None] * answers, 0.0),
    ),
    "13.9": (
        tells_scale,
        lambda routed, weights, shared, factor: factor * (weights[:, :, None] * routed).sum(dim=1) + shared,
    ),
    "13.10": (tells_flops, lambda t, d, dense, width, e, k: 2 * t * d * e + 6 * t * k * d * width),
    "13.11": (tells_params, lambda d, width, shared, e, k: d * e + 3 * d * (k * width + shared)),
    "13.12": (tells_starts, lambda rows, row_width: rows.long() * row_width),
}


# ---------------------------------------------------------------- the same answers, differently written: by other laws


def agrees_with_the_library(loss):
    """Layers drawn by chance, against the loss of each."""
    layers = [3 * drawn(20, 5, seed=seed) for seed in range(3)]
    spec = torch.stack([ml.losses.switch_aux(one, ml.route(one, 2)) for one in layers]).mean()
    return near(loss(layers, 2), spec)


def layers_one_by_one(layers, top_k):
    total = torch.zeros(())
    for logits in layers:
        share = F.one_hot(logits.topk(top_k).indices, logits.shape[1]).sum(dim=(0, 1)) / (len(logits) * top_k)
        total = total + logits.shape[1] * (share * logits.softmax(dim=1).mean(dim=0)).sum() / len(layers)
    return total


def counts_the_same_twice(step_load):
    """Recomputing changes nothing, every assignment counts once, and batches add up."""
    one, other = 2 * drawn(12, 3, seed=4), drawn(9, 3, seed=5)
    parts = step_load([one], 2, True) + step_load([other], 2, False)
    whole = [step_load([one, other], 2, again) for again in (True, False)]
    favourite = torch.tensor([[9.0, 1.0, 0.0]] * 4)
    return (
        all(torch.equal(parts, load) for load in whole)
        and int(parts.sum()) == 42
        and step_load([favourite], 2, True).tolist() == [4, 4, 0]
    )


def step_load_by_table(batches, top_k, recompute):
    chosen = torch.cat([batch.topk(top_k, dim=1).indices.flatten() for batch in batches])
    return torch.bincount(chosen, minlength=batches[0].shape[1])


def moves_as_whole_numbers_say(new_bias):
    """Counts of many ranks, one of which disagrees with the others, against Python's whole numbers."""
    draws = torch.Generator().manual_seed(6)
    counts = torch.randint(660, 741, (200, 8), generator=draws)
    counts[0] += 20 * counts[1:].sum(dim=0).argsort().argsort().flip(0) ** 2
    totals = [sum(column) for column in counts.T.tolist()]
    spec = [0.5 + 0.125 * ((sum(totals) > 8 * total) - (sum(totals) < 8 * total)) for total in totals]
    return new_bias(counts, torch.full((8,), 0.5), 0.125).tolist() == spec


def move_one_by_one(counts, bias, rate):
    totals = [sum(column) for column in counts.T.tolist()]
    mean = sum(totals) / len(totals)
    moved = [old + rate * ((mean > total) - (mean < total)) for old, total in zip(bias.tolist(), totals, strict=True)]
    return torch.tensor(moved)


def loss_like_the_library(loss):
    """Drawn by chance, top-1 and top-2, unsure and sure."""
    cases = [(spread * drawn(30, 5, seed=top_k), top_k) for spread in (0.5, 3.0) for top_k in (1, 2)]
    return all(near(loss(one, top_k), ml.losses.switch_aux(one, ml.route(one, top_k))) for one, top_k in cases)


def loss_by_sums(logits, top_k):
    chances = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    load = torch.bincount(logits.topk(top_k).indices.flatten(), minlength=logits.shape[1])
    return logits.shape[1] * (load * chances.sum(dim=0)).sum() / (load.sum() * len(logits))


def teaches_the_router(weigh):
    """A gradient in both cases, weights that sum to what they should, in the right ratio."""
    logits = drawn(5, 4, seed=7).requires_grad_()
    norms = [torch.autograd.grad(weigh(logits, k)[:, 0].sum(), logits)[0].norm() > 1e-3 for k in (1, 2)]
    two, chances = weigh(logits, 2), logits.softmax(dim=1).topk(2).values
    ratio = near(two[:, 0] / two[:, 1], chances[:, 0] / chances[:, 1])
    return all(norms) and near(two.sum(dim=1), torch.ones(5)) and ratio and near(weigh(logits, 1), chances[:, :1])


def weigh_by_logs(logits, top_k):
    best = logits.topk(top_k, dim=1).values
    return (best - (best if top_k > 1 else logits).logsumexp(dim=1, keepdim=True)).exp()


def any_padding_will_do(loss):
    """Longer, shorter, at other places, with other numbers: always the loss of the text."""
    text, spec = 2 * drawn(8, 4, seed=8), None
    for length, filling in ((4, 0.0), (6, 5.0), (16, -3.0)):
        mask = torch.zeros(2, length, dtype=torch.bool)
        mask[0, :4], mask[1, length - 4 :] = True, True
        spec = ml.losses.switch_aux(text, ml.route(text, 1))
        if not near(padded(loss, text, mask, filling), spec):
            return False
    return True


def loss_by_weights(logits, mask, top_k):
    tokens, real = logits.flatten(0, 1), mask.flatten().to(logits.dtype) / mask.sum()
    share = real @ F.one_hot(tokens.topk(top_k).indices, tokens.shape[1]).to(logits.dtype).mean(dim=1)
    return tokens.shape[1] * (share * (real @ tokens.softmax(dim=1))).sum()


def fills_in_order(keep):
    """Each expert keeps min(load, capacity) tokens, and none that came after one it turned away."""
    experts = torch.tensor([2, 0, 2, 2, 1, 0, 2, 2, 0, 1, 0, 0])
    for capacity in (1, 2, 4):
        kept = keep(experts, 3, capacity)
        for expert in range(3):
            own = kept[experts == expert].tolist()
            if own != [place < capacity for place in range(len(own))]:
                return False
    return True


def keep_by_rank(experts, num_experts, capacity):
    """The rank within its expert: how many equal ones came before."""
    before = (experts[:, None] == experts[None, :]).tril(diagonal=-1).sum(dim=1)
    return before < capacity


def dropped_add_nothing(collect):
    """Whatever the tokens and the dropped rows hold."""
    weights, kept = torch.tensor([0.25, 0.5, 1.0, 2.0]), torch.tensor([False, True, False, True])
    answers = drawn(4, 2, seed=9)
    spec = weights[kept, None] * answers[kept]
    answers[~kept] = float("inf")
    found = [collect(scale * torch.ones(4, 2), kept, weights, answers.clone()) for scale in (1.0, -50.0)]
    return all(near(one[kept], spec) and not one[~kept].any() for one in found)


def collect_row_by_row(tokens, kept, weights, answers):
    rows = [weights[row] * answers[row] if kept[row] else torch.zeros_like(tokens[row]) for row in range(len(tokens))]
    return torch.stack(rows)


def is_a_line(combine):
    """In the factor a straight line, that starts at the shared answer and rises by the weighted sum."""
    return all(abs(scaled(combine, factor) - (factor + 10)) < 1e-4 for factor in (0.5, 1.0, 2.0, 4.0))


def combine_by_slots(routed, weights, shared, factor):
    output = shared.clone()
    for slot in range(routed.shape[1]):
        output += factor * weights[:, slot, None] * routed[:, slot]
    return output


def flops_as_counted(flops):
    """Against what PyTorch counts while the layer runs."""
    for tokens, d_model, width, num_experts, top_k in ((6, 4, 3, 5, 2), (3, 2, 7, 2, 1)):
        layer = ml.MoE(d_model, width, num_experts, top_k)
        with ml.flop_counter() as counter, torch.no_grad():
            layer(drawn(tokens, d_model))
        if flops(tokens, d_model, 99, width, num_experts, top_k) != counter.total_flops:
            return False
    return True


def flops_by_token(tokens, d_model, d_dense, d_expert, num_experts, top_k):
    one = 2 * d_model * num_experts + top_k * (2 * d_model * 2 * d_expert + 2 * d_expert * d_model)
    return sum(one for _ in range(tokens)) if tokens < 100 else tokens * one


def params_as_stored(count):
    """Against the parameters that `ml.count` finds in a published model, component by component."""
    sizes = ml.count("qwen1.5-moe-a2.7b").params_by_component
    gates = 24 * 2048  # the weights by which each layer scales its shared expert
    spec = sizes["router"] + sizes["experts"] * 4 // 60 + sizes["shared_experts"] - gates
    stored = 24 * count(2048, 1408, 5632, 60, 4)
    return stored in (spec, spec + gates) and count(2, 1, 0, 1, 1) == 8


def params_by_matrices(d_model, d_expert, d_shared, num_experts, top_k):
    widths = [d_expert] * (2 * top_k) + [d_shared] * 2
    sizes = [(d_model, width) for width in widths] + [(d_expert * top_k + d_shared, d_model), (num_experts, d_model)]
    return sum(rows * columns for rows, columns in sizes)


def starts_are_a_line(row_starts):
    """Each row begins a width after the one before; the first at 0; the numbers are 64 bits long."""
    for first, width in ((0, 3), (4090, 4099), (299_590, 7168), (800_000, 7168)):
        rows = torch.arange(first, first + 8, dtype=torch.int32)
        found = row_starts(rows, width)
        if found.dtype != torch.int64 or found.tolist() != list(range(first * width, (first + 8) * width, width)):
            return False
    return True


ALSO_RIGHT = {
    "13.1": (agrees_with_the_library, layers_one_by_one),
    "13.2": (counts_the_same_twice, step_load_by_table),
    "13.3": (moves_as_whole_numbers_say, move_one_by_one),
    "13.4": (loss_like_the_library, loss_by_sums),
    "13.5": (teaches_the_router, weigh_by_logs),
    "13.6": (any_padding_will_do, loss_by_weights),
    "13.7": (fills_in_order, keep_by_rank),
    "13.8": (dropped_add_nothing, collect_row_by_row),
    "13.9": (is_a_line, combine_by_slots),
    "13.10": (flops_as_counted, flops_by_token),
    "13.11": (params_as_stored, params_by_matrices),
    "13.12": (starts_are_a_line, lambda rows, row_width: torch.stack([rows.long()] * row_width).sum(dim=0)),
}


# ---------------------------------------------------------------- properties that are fooled


def raises(function):
    raise RuntimeError("no idea")


FOOLED = {
    "always True": lambda function: True,
    "always False": lambda function: False,
    "says nothing": lambda function: None,
    "always raises": raises,
}

FOOLED_BY = {
    "13.1": {
        "the mean alone": lambda loss: near(
            loss([sure(0, 0), sure(1, 1)], 1), (loss([sure(0, 0)], 1) + loss([sure(1, 1)], 1)) / 2
        ),
        "collapsed and even": lambda loss: near(loss([sure(*[0] * 8)], 1), 4.0),
        "what the patient says": lambda loss: near(loss([sure(0, 0), sure(1, 1)], 1), 2.0),
    },
    "13.2": {
        "the sum alone": lambda count: int(count([drawn(8, 4)], 2, True).sum()) == 16,
        "without recomputing": lambda count: torch.equal(count([drawn(8, 4)], 1, False), ml.route(drawn(8, 4), 1).load),
        "both alike": lambda count: torch.equal(count([drawn(8, 4)], 1, False), count([drawn(8, 4)], 1, True)),
    },
    "13.3": {
        "small counts": lambda move: near(move(torch.tensor([[3, 1]]), torch.zeros(2), 1.0), [-1.0, 1.0]),
        "large and far apart": lambda move: near(move(torch.tensor([[90_000, 10]]), torch.zeros(2), 1.0), [-1.0, 1.0]),
        "even loads": lambda move: near(move(torch.full((9, 2), 5000), torch.ones(2), 1.0), [1.0, 1.0]),
    },
    "13.4": {
        "even": lambda loss: near(loss(2 * EYE, 1), 1.0),
        "collapsed": lambda loss: near(loss(sure(*[0] * 8), 1), 4.0),
        "collapsed is worse than even": lambda loss: float(loss(sure(0, 0), 1)) > float(loss(2 * EYE, 1)),
        "shifted logits": lambda loss: near(loss(drawn(6, 4), 1), loss(drawn(6, 4) + 3, 1)),
    },
    "13.5": {
        "they sum to 1": lambda weigh: near(weigh(drawn(4, 4), 2).sum(dim=1), torch.ones(4)),
        "they sum to 1 at top-1, too": lambda weigh: near(weigh(drawn(4, 4), 1).sum(dim=1), torch.ones(4)),
        "top-1 needs a gradient": lambda weigh: weigh(drawn(4, 4).requires_grad_(), 1).requires_grad,
    },
    "13.6": {
        "no padding": lambda loss: near(padded(loss, sure(0, 1, 2, 3), torch.ones(2, 2, dtype=torch.bool)), 1.0),
        "padding that agrees": lambda loss: near(
            padded(loss, sure(1, 1), torch.tensor([[True, False], [True, False]]), 20.0), 4.0
        ),
        "never below 1": lambda loss: float(padded(loss, sure(0, 1), torch.tensor([[True, True, False]]))) > 0.99,
    },
    "13.7": {
        "at most the capacity": lambda keep: int(keep(torch.zeros(9, dtype=torch.int64), 2, 3).sum()) <= 3,
        "exactly the capacity": lambda keep: int(keep(torch.zeros(9, dtype=torch.int64), 2, 3).sum()) == 3,
        "room for all": lambda keep: bool(keep(torch.tensor([0, 1]), 2, 2).all()),
    },
    "13.8": {
        "nothing dropped": lambda collect: near(
            collect(torch.ones(2, 1), torch.tensor([True] * 2), torch.ones(2), torch.full((2, 1), 7.0)), [[7.0], [7.0]]
        ),
        "dropped, with zeros in the row": lambda collect: near(
            collect(torch.ones(1, 1), torch.tensor([False]), torch.ones(1), torch.zeros(1, 1)), [[0.0]]
        ),
        "tokens of zeros": lambda collect: near(
            collect(torch.zeros(1, 1), torch.tensor([False]), torch.ones(1), torch.ones(1, 1)), [[0.0]]
        ),
    },
    "13.9": {
        "factor 1": lambda combine: abs(scaled(combine, 1.0) - 11) < 1e-4,
        "no shared answer": lambda combine: abs(scaled(combine, 3.0, shared=0.0) - 3) < 1e-4,
        "factor 0": lambda combine: abs(scaled(combine, 0.0) - 10) < 1e-4,
    },
    "13.10": {
        "top-1 of one expert": lambda flops: flops(1, 2, 3, 3, 1, 1) == 2 * 2 + 6 * 2 * 3,
        "all experts": lambda flops: flops(5, 4, 8, 8, 3, 3) == 2 * 5 * 4 * 3 + 6 * 5 * 3 * 4 * 8,
        "twice the tokens": lambda flops: flops(2, 4, 8, 8, 3, 1) == 2 * flops(1, 4, 8, 8, 3, 1),
    },
    "13.11": {
        "the test that came with it": lambda count: count(2048, 1408, 5632, 60, 4) == 43_376_640,
        "as wide as the others": lambda count: count(2, 3, 3, 4, 1) == 8 + 2 * 18,
        "the published figure alone": lambda count: abs(24 * count(2048, 1408, 5632, 60, 4) + 1.025e9 - 2.7e9) < 0.05e9,
    },
    "13.12": {
        "small numbers": lambda starts: starts(torch.tensor([3], dtype=torch.int32), 5).tolist() == [15],
        "never negative": lambda starts: bool((starts(torch.tensor([447_999], dtype=torch.int32), 7168) >= 0).all()),
        "one just above 2^31": lambda starts: (
            starts(torch.tensor([447_999], dtype=torch.int32), 7168).tolist() == [447_999 * 7168]
        ),
    },
}


def wrong_pairs(key):
    """Properties that are fooled, with a right cure; right properties, with what is no cure."""
    holds, fixed = RIGHT[key]
    pairs = {f"property: {name}": (fooled, fixed) for name, fooled in (FOOLED | FOOLED_BY[key]).items()}
    pairs |= {f"cure: {name}": (holds, ill) for name, ill in PATIENTS[key].ill.items()}
    return pairs | {
        "cure: a constant": (holds, lambda *_: torch.zeros(())),
        "cure: the first argument": (holds, lambda first, *_: first),
        "no cure": (holds, None),
        "one function": holds,
    }


WRONG = {key: wrong_pairs(key) for key in PATIENTS}
