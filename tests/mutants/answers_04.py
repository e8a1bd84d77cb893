"""Answers to the exercises of lesson 04: right ones, and wrong ones that must be refused with a reason."""

import math

import numpy as np
import torch

INF = float("inf")


def bound(scores, prices, top_k):
    share, spare = divmod(len(scores) * top_k, len(prices))
    free = (scores - prices).topk(top_k, dim=1).values.sum()
    return float(free + share * prices.sum() + prices.topk(spare).values.sum())


def step(scores, prices, top_k):
    reduced = (scores - prices).sort(dim=1, descending=True).values
    bars = (reduced[:, top_k - 1] + reduced[:, top_k]) / 2
    above = (scores - bars[:, None]).sort(dim=0, descending=True).values
    share = len(scores) * top_k // len(prices)
    new = (above[share - 1] + above[share]) / 2
    return new - new.mean()


def choose(scores, room, left, top_k):
    value = scores.masked_fill(room == 0, -INF).masked_fill(room == left, INF)
    return value.argsort(descending=True, stable=True)[:top_k]


def least(tokens, top_k, num_experts):
    spare = tokens * top_k % num_experts
    return spare * (num_experts - spare) / num_experts**2


RIGHT = {"04.1": bound, "04.2": step, "04.3": choose, "04.4": least}


# ---------------------------------------------------------------- the same answers, differently written


def bound_with_numpy(scores, prices, top_k):
    """Every load written out: floor or ceiling, the ceilings for the dearest."""
    reduced, pay = np.sort(scores.double().numpy() - prices.double().numpy(), axis=1), np.sort(prices.double().numpy())
    loads = np.full(len(pay), len(scores) * top_k // len(pay))
    loads[len(pay) - len(scores) * top_k % len(pay) :] += 1
    return torch.tensor(reduced[:, -top_k:].sum() + (loads * pay).sum())


def step_with_numpy(scores, prices, top_k):
    scores, prices = scores.numpy(), prices.numpy()
    share = scores.shape[0] * top_k // scores.shape[1]
    bars = [np.mean(sorted(row - prices)[-top_k - 1 : -top_k + 1 or None]) for row in scores]
    new = [np.mean(sorted(column - bars)[-share - 1 : -share + 1 or None]) for column in scores.T]
    return torch.tensor(np.array(new) - np.mean(new))


def choose_by_hand(scores, room, left, top_k):
    experts = [expert for expert in range(len(room)) if room[expert] == left]
    for expert in sorted(range(len(room)), key=lambda e: -scores[e].item()):
        if len(experts) < top_k and 0 < room[expert] < left:
            experts.append(expert)
    return experts


def least_by_loads(tokens, top_k, num_experts):
    loads = [len(range(expert, tokens * top_k, num_experts)) for expert in range(num_experts)]
    return float(np.var(loads))


ALSO_RIGHT = {"04.1": bound_with_numpy, "04.2": step_with_numpy, "04.3": choose_by_hand, "04.4": least_by_loads}


# ---------------------------------------------------------------- wrong answers


def share_and_spare(scores, prices, top_k):
    return divmod(len(scores) * top_k, len(prices))


def free(scores, prices, top_k):
    return (scores - prices).topk(top_k, dim=1).values.sum()


def steps(scores, prices, top_k, bar=(0, 1), price=(0, 1), fresh=True, centred=True, share_of=None):
    """The step with the ranks that are averaged, and other slips, to choose."""
    reduced = (scores - prices).sort(dim=1, descending=True).values
    bars = sum(reduced[:, top_k - 1 + rank] for rank in bar) / len(bar)
    base = scores if fresh else scores - prices
    above = (base - bars[:, None]).sort(dim=0, descending=True).values
    share = len(scores) * (top_k if share_of is None else share_of) // len(prices)
    new = sum(above[share - 1 + rank] for rank in price) / len(price)
    return new - new.mean() if centred else new


def changes_its_scores(scores, prices, top_k):
    scores -= prices
    return step(scores + prices, prices, top_k) + 0 * scores[0]


def changes_its_room(scores, room, left, top_k):
    experts = choose(scores, room, left, top_k)
    room[experts] -= 1
    return experts


def masks_in_place(scores, room, left, top_k):
    scores[room == 0] = -INF
    return choose(scores, room, left, top_k)


def forced_and_then_the_best(scores, room, left, top_k):
    """Takes a forced expert a second time."""
    forced = (room == left).nonzero().flatten().tolist()
    best = scores.masked_fill(room == 0, -INF).argsort(descending=True, stable=True).tolist()
    return (forced + best)[:top_k]


def value(scores, room, left, full, forced):
    """Scores with other stand-ins for infinity, one that is given up where it is None."""
    out = scores.clone()
    if full is not None:
        out = torch.where(room == 0, torch.as_tensor(full, dtype=out.dtype), out)
    return out if forced is None else torch.where(room == left, torch.as_tensor(forced, dtype=out.dtype), out)


def best_of(values, top_k):
    return values.argsort(descending=True, stable=True)[:top_k]


WRONG = {
    "04.1": {
        "forgets what the experts get": lambda s, p, k: free(s, p, k),
        "adds prices once": lambda s, p, k: free(s, p, k) + p.sum(),
        "pays the mean load, also where it is no whole number": lambda s, p, k: (
            free(s, p, k) + len(s) * k / len(p) * p.sum()
        ),
        "forgets the assignments left over": lambda s, p, k: free(s, p, k) + share_and_spare(s, p, k)[0] * p.sum(),
        "one more for the cheapest": lambda s, p, k: (
            free(s, p, k)
            + share_and_spare(s, p, k)[0] * p.sum()
            + p.topk(share_and_spare(s, p, k)[1], largest=False).values.sum()
        ),
        "one more only where the price is positive": lambda s, p, k: (
            free(s, p, k)
            + share_and_spare(s, p, k)[0] * p.sum()
            + p.topk(share_and_spare(s, p, k)[1]).values.clamp_min(0).sum()
        ),
        "one expert a token": lambda s, p, k: free(s, p, 1) + len(s) * k // len(p) * p.sum(),
        "adds prices to scores": lambda s, p, k: bound(s, -p, k) + 2 * len(s) * k // len(p) * p.sum(),
        "the score of free choice": lambda s, p, k: s.topk(k, dim=1).values.sum(),
        "the free choice's score, paid by its own loads": lambda s, p, k: (
            free(s, p, k) + (torch.bincount((s - p).topk(k).indices.flatten(), minlength=len(p)) * p).sum()
        ),
        "per token": lambda s, p, k: bound(s, p, k) / len(s),
        "tokens over experts, whatever top_k": lambda s, p, k: free(s, p, k) + len(s) // len(p) * p.sum(),
    },
    "04.2": {
        "the lower ends (quantile)": lambda s, p, k: steps(s, p, k, bar=(1,), price=(1,)),
        "the upper ends": lambda s, p, k: steps(s, p, k, bar=(0,), price=(0,)),
        "midpoint for the bar only": lambda s, p, k: steps(s, p, k, price=(1,)),
        "bars without prices": lambda s, p, k: steps(s, torch.zeros_like(p), k),
        "subtracts prices twice": lambda s, p, k: steps(s, p, k, fresh=False),
        "not centred": lambda s, p, k: steps(s, p, k, centred=False),
        "clamped at 0 (BIP)": lambda s, p, k: steps(s, p, k, centred=False).clamp_min(0),
        "share of one expert a token": lambda s, p, k: steps(s, p, k, share_of=1),
        "the bias: the other sign": lambda s, p, k: -step(s, p, k),
        "adds to the old prices": lambda s, p, k: p + step(s, p, k),
        "a sign step": lambda s, p, k: p + 0.1 * torch.sign(step(s, p, k) - p),
        "centred on its median": lambda s, p, k: steps(s, p, k, centred=False) - steps(s, p, k, centred=False).median(),
        "a list": lambda s, p, k: step(s, p, k).tolist(),
        "a row": lambda s, p, k: step(s, p, k)[None],
        "changes its scores": changes_its_scores,
    },
    "04.3": {
        "plain top_k": lambda s, r, left, k: best_of(s, k),
        "capacity only": lambda s, r, left, k: best_of(value(s, r, left, -INF, None), k),
        "forced only": lambda s, r, left, k: best_of(value(s, r, left, None, INF), k),
        "full experts get 0": lambda s, r, left, k: best_of(value(s, r, left, 0.0, INF), k),
        "forced experts get 1000": lambda s, r, left, k: best_of(value(s, r, left, -INF, 1000.0), k),
        "multiplies by a mask": lambda s, r, left, k: best_of(value(s * (r > 0), r, left, None, INF), k),
        "forced one token too late": lambda s, r, left, k: best_of(value(s, r, left - 1, -INF, INF), k),
        "most room first": lambda s, r, left, k: best_of(r.float(), k),
        "forced experts twice": forced_and_then_the_best,
        "one expert too many": lambda s, r, left, k: choose(s, r, left, k + 1),
        "best only": lambda s, r, left, k: choose(s, r, left, 1),
        "topk among equals, from the right": lambda s, r, left, k: len(s) - 1 - choose(s.flip(0), r.flip(0), left, k),
        "changes its room": changes_its_room,
        "masks in place": masks_in_place,
        "scores, not experts": lambda s, r, left, k: s[choose(s, r, left, k)],
    },
    "04.4": {
        "always 0": lambda t, k, e: 0.0,
        "forgets top_k": lambda t, k, e: least(t, 1, e),
        "the sample's variance": lambda t, k, e: least(t, k, e) * e / (e - 1),
        "the standard deviation": lambda t, k, e: math.sqrt(least(t, k, e)),
        "not divided": lambda t, k, e: least(t, k, e) * e**2,
        "divided once": lambda t, k, e: least(t, k, e) * e,
        "all of the rest to one expert": lambda t, k, e: (t * k % e) ** 2 * (e - 1) / e**2,
        "a quarter": lambda t, k, e: 0.25 if t * k % e else 0.0,
        "the noise floor": lambda t, k, e: (e / k - 1) / t,
        "rest of the tokens": lambda t, k, e: (t % e) * (e - t % e) / e**2,
    },
}

HINT_NAMES = {"torch": torch}
ARGUMENTS = {
    "04.1": "scores, prices, top_k",
    "04.2": "scores, prices, top_k",
    "04.3": "scores, room, left, top_k",
    "04.4": "tokens, top_k, num_experts",
}
