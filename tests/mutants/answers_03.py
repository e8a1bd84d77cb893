"""Answers to the exercises of lesson 03: right ones, and wrong ones that must be refused with a reason.

The wrong ones are slips that people make; some were in public code.
"""

import math

import torch
import torch.nn.functional as F

import moe_lab as ml


def aux_loss(logits, experts):
    num_experts = logits.shape[1]
    f = experts.flatten().bincount(minlength=num_experts) / max(1, experts.numel())
    P = logits.softmax(dim=1).sum(dim=0) / max(1, len(logits))
    return num_experts * (f * P).sum()


def aux_loss_token_by_token(logits, experts):
    """The same double sum the other way round: each token's probabilities, weighed by everybody's counts."""
    tokens, num_experts = logits.shape
    share = torch.zeros(num_experts, dtype=logits.dtype)
    for row in experts.tolist():
        for expert in row:
            share[expert] += 1 / (tokens * experts.shape[1])
    total = logits.sum() * 0.0
    for row in logits:
        total = total + (share * torch.exp(row - row.logsumexp(0))).sum()
    return num_experts * total / max(tokens, 1)


def update_bias(bias, load, top_k, rate):
    mean = load.double().mean()
    tokens = max(1, load.sum().item() / top_k)
    noise = mean * math.sqrt((len(load) / top_k - 1) / tokens)
    gap = mean - load
    return bias + rate * torch.where(gap.abs() <= noise, 0.0, gap.sign()).to(bias)


def update_bias_by_shares(bias, load, top_k, rate):
    """In shares of the mean, and with comparisons for the sign."""
    if int(load.sum()) == 0:
        return bias.clone()
    excess = load / load.float().mean() - 1
    floor = ml.measure_balance(load, top_k=top_k).noise_floor_cv
    return bias + rate * ((excess < -floor).to(bias) - (excess > floor).to(bias))


def verdict(load, top_k):
    found = ml.measure_balance(load, top_k=top_k)
    ratio = found.cv / found.noise_floor_cv
    if 2 * found.dead >= len(load):
        return "collapsed"
    return "forced" if ratio < 0.5 else "as by chance" if ratio <= 2 else "uneven"


def verdict_by_hand(load, top_k):
    values = [float(count) for count in load]
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values) / len(values) / mean**2
    floor = (len(values) / top_k - 1) * top_k / sum(values)
    if sum(value == 0 for value in values) >= len(values) / 2:
        return "collapsed"
    return "forced" if squares < floor / 4 else "uneven" if squares > 4 * floor else "as by chance"


RIGHT = {"03.1": aux_loss, "03.2": update_bias, "03.3": verdict}
ALSO_RIGHT = {"03.1": aux_loss_token_by_token, "03.2": update_bias_by_shares, "03.3": verdict_by_hand}


def probabilities(logits):
    return logits.softmax(dim=1).sum(dim=0) / max(1, len(logits))


def shares(logits, experts, of):
    return experts.flatten().bincount(minlength=logits.shape[1]) / max(1, of)


def with_p(p):
    return lambda x, e: x.shape[1] * (shares(x, e, e.numel()) * p(x, e)).sum()


def p_of_the_chosen_only(logits, experts):
    """aprender#2162: P added up over the chosen experts."""
    mask = torch.zeros_like(logits).scatter(1, experts, 1.0)
    return (mask * logits.softmax(dim=1)).sum(dim=0) / max(1, len(logits))


def softmax_of_the_chosen(logits, experts):
    """transformers#28021: the softmax taken over the top-k logits only."""
    weights = logits.gather(1, experts).softmax(dim=1)
    return torch.zeros_like(logits).scatter(1, experts, weights).sum(dim=0) / max(1, len(logits))


def moved(bias, load, top_k, rate, noise=None, direction=None):
    mean = load.double().mean()
    gap = mean - load
    tokens = max(1.0, load.sum().item() / top_k)
    noise = mean * math.sqrt((len(load) / top_k - 1) / tokens) if noise is None else noise
    sign = gap.sign() if direction is None else direction(gap)
    return bias + rate * torch.where(gap.abs() <= noise, 0.0, sign).to(bias)


def in_place(bias, load, top_k, rate):
    bias += update_bias(torch.zeros_like(bias), load, top_k, rate)
    return bias


def judged(load, top_k, tokens=None, low=0.5, high=2.0, dead=True, measure="cv"):
    found = ml.measure_balance(load, top_k=top_k)
    tokens = load.sum().item() / top_k if tokens is None else tokens
    ratio = getattr(found, measure) / math.sqrt((len(load) / top_k - 1) / tokens)
    if dead and 2 * found.dead >= len(load):
        return "collapsed"
    return "forced" if ratio < low else "as by chance" if ratio <= high else "uneven"


def judged_by_cv(load, top_k):
    cv = ml.measure_balance(load, top_k=top_k).cv
    return "forced" if cv < 0.03 else "as by chance" if cv < 0.25 else "uneven" if cv < 1 else "collapsed"


def judged_by_entropy(load, top_k):
    entropy = ml.measure_balance(load, top_k=top_k).entropy
    return "collapsed" if entropy < 0.6 else "uneven" if entropy < 0.97 else "as by chance" if entropy < 1 else "forced"


WRONG = {
    "03.1": {
        "f divided by the tokens": lambda x, e: x.shape[1] * (shares(x, e, len(x)) * probabilities(x)).sum(),
        "top_k lists of f (minimind#797)": lambda x, e: (
            x.shape[1] * (F.one_hot(e, x.shape[1]).float().mean(0) * probabilities(x)).sum()
        ),
        "P of the chosen only (aprender#2162)": with_p(p_of_the_chosen_only),
        "softmax of the chosen only (transformers#28021)": with_p(softmax_of_the_chosen),
        "softmax twice (transformers#45120)": with_p(lambda x, e: probabilities(x.softmax(dim=1))),
        "no softmax": with_p(lambda x, e: x.sum(dim=0) / max(1, len(x))),
        "softmax over the tokens": with_p(lambda x, e: x.softmax(dim=0).sum(dim=1).sum() / x.shape[1]),
        "sigmoid": with_p(lambda x, e: x.sigmoid().sum(dim=0) / max(1, len(x))),
        "exp without a guard": with_p(lambda x, e: (x.exp() / x.exp().sum(1, keepdim=True)).sum(0) / max(1, len(x))),
        "mean of nothing": with_p(lambda x, e: x.softmax(dim=1).mean(dim=0)),
        "f from the argmax": lambda x, e: aux_loss(x, x.argmax(dim=1, keepdim=True)),
        "f from P, which has a gradient": lambda x, e: x.shape[1] * (probabilities(x) ** 2).sum(),
        "f from f, which has none (AnomalyMoE#1)": lambda x, e: x.shape[1] * (shares(x, e, e.numel()) ** 2).sum(),
        "f with the gradient of P": lambda x, e: (
            x.shape[1]
            * ((shares(x, e, e.numel()) + probabilities(x) - probabilities(x).detach()) * probabilities(x)).sum()
        ),
        "P without a gradient": lambda x, e: aux_loss(x.detach(), e),
        "not times the experts": lambda x, e: aux_loss(x, e) / x.shape[1],
        "times the experts twice": lambda x, e: aux_loss(x, e) * x.shape[1],
        "first choices only": lambda x, e: aux_loss(x, e[:, :1]),
        "a number": lambda x, e: float(aux_loss(x, e)),
    },
    "03.2": {
        "the wrong way": lambda b, v, k, r: 2 * b - update_bias(b, v, k, r),
        "no dead zone": lambda b, v, k, r: moved(b, v, k, r, noise=0.0),
        "steps in proportion": lambda b, v, k, r: moved(b, v, k, r, direction=lambda gap: gap / 100),
        "in place": in_place,
        "from 0 each time": lambda b, v, k, r: update_bias(torch.zeros_like(b), v, k, r),
        "the floor as a count": lambda b, v, k, r: moved(b, v, k, r, noise=math.sqrt(len(v) / k)),
        "tokens are the assignments": lambda b, v, k, r: moved(
            b, v, k, r, noise=v.double().mean() * math.sqrt((len(v) / k - 1) / max(1, int(v.sum())))
        ),
        "top_k forgotten": lambda b, v, k, r: update_bias(b, v, 1, r),
        "the load's own spread": lambda b, v, k, r: moved(b, v, k, r, noise=v.double().std(correction=0)),
        "one tenth of the mean": lambda b, v, k, r: moved(b, v, k, r, noise=0.1 * v.double().mean()),
        "only upwards": lambda b, v, k, r: torch.maximum(b, update_bias(b, v, k, r)),
        "only downwards": lambda b, v, k, r: torch.minimum(b, update_bias(b, v, k, r)),
        "recentred, though nobody asked": lambda b, v, k, r: (
            update_bias(b, v, k, r) - update_bias(b, v, k, r).mean() + b.mean()
        ),
        "divides by no tokens": lambda b, v, k, r: (
            b
            + r
            * torch.where(
                (v / v.double().mean() - 1).abs() <= math.sqrt((len(v) / k - 1) * k / int(v.sum())),
                0.0,
                (v.double().mean() - v).sign(),
            ).to(b)
        ),
        "in units of a noise that can be 0": lambda b, v, k, r: (
            b + r * ((1 - v / v.double().mean()) / math.sqrt((len(v) / k - 1) * k / int(v.sum()))).clamp(-1, 1).trunc()
        ),
        "rounds the mean": lambda b, v, k, r: b + r * (int(v.sum()) // len(v) - v).sign().to(b),
    },
    "03.3": {
        "by a fixed cv": judged_by_cv,
        "by entropy": judged_by_entropy,
        "without the dead": lambda v, k: judged(v, k, dead=False),
        "one dead is a collapse": lambda v, k: "collapsed" if bool((v == 0).any()) else verdict(v, k),
        "tokens are the assignments": lambda v, k: judged(v, k, tokens=int(v.sum())),
        "top_k forgotten": lambda v, k: verdict(v, 1),
        "a sixteenth of the tokens": lambda v, k: judged(v, k, tokens=int(v.sum()) / 16),
        "max violation against the floor of cv": lambda v, k: judged(v, k, measure="max_violation"),
        "whatever is not even is uneven": lambda v, k: judged(v, k, high=0.5),
        "only 0 is forced": lambda v, k: judged(v, k, low=1e-9),
        "the even are lucky": lambda v, k: judged(v, k, low=-1.0),
        "below the floor is forced": lambda v, k: judged(v, k, low=1.0),
    },
}

HINT_NAMES = {"torch": torch, "F": F, "math": math, "ml": ml}
ARGUMENTS = {"03.1": "logits, experts", "03.2": "bias, load, top_k, rate", "03.3": "load, top_k"}
