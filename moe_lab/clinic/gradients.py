"""Patients whose numbers look well while the router learns nothing: a second softmax, a weight that is always 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lab.clinic.patient import Function, Law, Patient, compare, draw, favour, gradient, near, spread_evenly
from moe_lab.losses import switch_aux
from moe_lab.routers import route

# ---------------------------------------------------------------- a second softmax


def balance_loss(logits, top_k):
    """num_experts * sum of share * mean probability: 1 where either is uniform, num_experts where top-1 collapses."""
    scores = logits.softmax(dim=1)
    share = F.one_hot(scores.topk(top_k).indices, scores.shape[1]).float().mean(dim=(0, 1))
    return scores.shape[1] * (share * scores.softmax(dim=1).mean(dim=0)).sum()


def _loss_of(scores: Function, shares: Function = lambda asked: asked.mean(dim=(0, 1))) -> Function:
    """The loss, with what becomes a score and what becomes a share to replace."""

    def loss(logits, top_k):
        asked = F.one_hot(logits.topk(top_k).indices, logits.shape[1]).float()
        return logits.shape[1] * (shares(asked) * scores(logits, asked)).sum()

    return loss


def _probability(logits: Tensor, asked: Tensor) -> Tensor:
    return logits.softmax(dim=1).mean(dim=0)


def _like_switch(logits: Tensor, top_k: int) -> Law:
    spec = switch_aux(logits, route(logits, top_k))
    return lambda loss: compare(loss(logits, top_k), spec)


def _teaches_like_switch(loss: Function) -> str | None:
    for top_k in (1, 3):
        logits = favour(0, 12, 5, 1.0) + draw(12, 5, seed=top_k)
        spec = gradient(lambda one, k=top_k: switch_aux(one, route(one, k)), logits)
        if not near(gradient(loss, logits, top_k), spec, 1e-6):
            found = float(gradient(loss, logits, top_k).norm())
            return (
                f"top-{top_k}: norm of the gradient {found:.4g}, spec {float(spec.norm()):.4g}, or it points elsewhere"
            )
    return None


THREE_TO_ONE = torch.cat([favour(0, 9, 4), favour(1, 3, 4)])
"""Twelve tokens of which nine are sure of expert 0, three of expert 1: the loss is 4 * (9/16 + 1/16) = 2.5."""


def _tell_softmax(loss: Function) -> str:
    said = [f"{margin:g}: {float(loss(favour(0, 64, 8, margin), 1)):.2f}" for margin in (0.0, 2.0, 4.0, 8.0)]
    return (
        "64 tokens, 8 experts, all want expert 0, by a margin of logits that grows. The loss should go from 1 to 8. "
        f"It goes {', '.join(said)}; its gradient at margin 2 has the norm "
        f"{float(gradient(loss, favour(0, 64, 8, 2.0), 1).norm()):.3f}."
    )


SOFTMAX_TWICE = Patient(
    "A loss that hardly minds a collapse",
    ("huggingface/transformers#39056", "huggingface/transformers#45111", "huggingface/transformers#45131"),
    _tell_softmax,
    balance_loss,
    {
        "of the library": lambda logits, top_k: switch_aux(logits, route(logits, top_k)),
        "softmax once": _loss_of(_probability),
        "by logarithms": _loss_of(lambda logits, asked: logits.log_softmax(dim=1).exp().mean(dim=0)),
    },
    {
        "probabilities of the chosen only": _loss_of(
            lambda logits, asked: (logits.softmax(dim=1) * asked.sum(dim=1)).mean(dim=0)
        ),
        "shares that sum to top_k": _loss_of(_probability, lambda asked: asked.mean(dim=0).sum(dim=0)),
        "softmax over tokens": _loss_of(lambda logits, asked: logits.softmax(dim=0).mean(dim=0)),
        "softmax of the mean": _loss_of(lambda logits, asked: logits.mean(dim=0).softmax(dim=0)),
        "sigmoids": _loss_of(lambda logits, asked: logits.sigmoid().mean(dim=0)),
        "always 1": lambda logits, top_k: 1.0 + 0.0 * logits.sum(),
    },
    {
        "collapsed": _like_switch(favour(2, 8, 4), 1),
        "even": _like_switch(spread_evenly(8, 4), 1),
        "top-2, unsure": _like_switch(draw(16, 4, spread=0.3), 2),
        "three to one": _like_switch(THREE_TO_ONE, 1),
        "drawn by chance": _like_switch(draw(40, 6, seed=3, spread=3.0), 2),
        "its gradient": _teaches_like_switch,
    },
)

# ---------------------------------------------------------------- top-1, renormalised


def weigh(logits, top_k):
    """Weights (tokens, top_k) of the chosen experts: their probabilities, divided by their sum."""
    chosen = logits.softmax(dim=1).topk(top_k, dim=1).values
    return chosen / chosen.sum(dim=1, keepdim=True)


def _weigh_by_route(logits, top_k):
    return route(logits, top_k, renormalise=top_k > 1).weights


def _weigh_in_steps(logits, top_k):
    best = logits.topk(top_k, dim=1).values
    return best.softmax(dim=1) if top_k > 1 else (best - logits.logsumexp(dim=1, keepdim=True)).exp()


def _raw(logits, top_k):
    return logits.softmax(dim=1).topk(top_k, dim=1).values


def _weighs(top_k: int, num_experts: int, spread: float = 1.0) -> Law:
    logits = draw(7, num_experts, seed=top_k, spread=spread)
    spec = _weigh_by_route(logits, top_k)
    return lambda weights: compare(weights(logits, top_k), spec)


def router_gradient(weights: Function, top_k: int, logits: Tensor | None = None) -> Tensor:
    """What reaches the router's logits when each expert's answer is another number and the outputs are summed.

    Example:
        >>> bool(router_gradient(weigh, 1).abs().max() < 1e-6), bool(router_gradient(weigh, 2).norm() > 0.1)
        (True, True)
    """
    logits = draw(16, 4, seed=5) if logits is None else logits
    answers = torch.arange(1.0, logits.shape[1] + 1)[logits.topk(top_k, dim=1).indices]
    return gradient(lambda one: (weights(one, top_k) * answers).sum(), logits)


def _teaches(top_k: int) -> Law:
    def law(weights: Function) -> str | None:
        logits = draw(9, 5, seed=9)
        yours, spec = (router_gradient(one, top_k, logits) for one in (weights, _weigh_by_route))
        return compare(yours, spec, f"gradient, norm {float(yours.norm()):.4g} for {float(spec.norm()):.4g}: ")

    return law


def _tell_weights(weights: Function) -> str:
    norms = [f"top-{top_k}: {float(router_gradient(weights, top_k).norm()):.3f}" for top_k in (1, 2, 3)]
    return f"Norm of the gradient that reaches the router from the model's own loss: {', '.join(norms)}."


ALWAYS_ONE = Patient(
    "The load is perfect, and that is the symptom",
    ("jingyaogong/minimind#858", "jingyaogong/minimind#859", "davidmrau/mixture-of-experts#27"),
    _tell_weights,
    weigh,
    {"by the library": _weigh_by_route, "in two steps": _weigh_in_steps},
    {
        "softmax of the chosen logits": lambda logits, top_k: logits.topk(top_k, dim=1).values.softmax(dim=1),
        "never divided": _raw,
        "no gradient": lambda logits, top_k: _weigh_by_route(logits, top_k).detach(),
        "top-1 weighs 1, learns all the same": lambda logits, top_k: (
            _raw(logits, top_k) / _raw(logits, top_k).sum(dim=1, keepdim=True).detach()
        ),
        "sigmoids": lambda logits, top_k: logits.topk(top_k, dim=1).values.sigmoid(),
        "equal weights": lambda logits, top_k: 0 * _raw(logits, top_k) + 1 / top_k,
    },
    {
        "top-1": _weighs(1, 4),
        "top-1, nearly sure": _weighs(1, 4, spread=5.0),
        "top-2": _weighs(2, 6),
        "all experts": _weighs(3, 3),
        "top-1 teaches the router": _teaches(1),
        "top-2 teaches the router": _teaches(2),
    },
)
