"""From logits to scores, from scores to a selection, from a selection to weights.

Every method in which tokens choose is these three steps with another rule in the middle.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.checks import check_number
from moe_lab.types import may_read

SCORES = ("softmax", "sigmoid", "softmax_after_top_k")
OBJECTIVES = ("logits", "score")


def widen(logits: Tensor) -> Tensor:
    """Route half-precision logits in float32, as Switch does ("selective precision", section 2.4)."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def score_logits(logits: Float[Tensor, "tokens num_experts"], score: str) -> Float[Tensor, "tokens num_experts"]:
    """Turn logits into scores: softmax over experts, sigmoid of each, or the logits themselves."""
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}; got {score!r}")
    wide = widen(logits)
    if score == "softmax":
        return wide.softmax(dim=1)
    return wide.sigmoid() if score == "sigmoid" else wide


def selection_scores(logits: Tensor, scores: Tensor, score: str, bias: Tensor | None) -> Tensor:
    """What the selection ranks: score + bias, or without a bias the logits.

    Scores and logits have one order, but rounding makes equal scores of unequal logits (a sigmoid
    is 1 for every logit above 17 in float32), so the logits are the finer ruler. With a bias, even one of zeros,
    there is only the score to add it to; scores that differ by less than the rounding of that sum are equal.
    """
    if bias is None:
        return widen(logits).detach()
    check_bias(bias, logits)
    ranking = scores.detach() + bias.detach()
    if score == "softmax_after_top_k":  # the others lie in 0..1, which no finite bias can overflow
        _check_biased(ranking, bias, "logits")
    return ranking


def objective_scores(logits: Tensor, score: str, bias: Tensor | None, objective: str) -> Tensor:
    """What a router that assigns a whole batch makes the sum of as great as it can: logits, or scores, plus the bias.

    A number added to all logits of a token changes nothing, so "logits" is the sum of log-probabilities as well;
    "score" is the sum of what becomes the weights.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    values = widen(logits).detach() if objective == "logits" else score_logits(logits, score).detach()
    if bias is None:
        return values
    check_bias(bias, logits)
    values = values + bias.detach()
    _check_biased(values, bias, objective)
    return values


def _check_biased(values: Tensor, bias: Tensor, kind: str) -> None:
    """Refuse a sum that overflowed: its infinities would all rank alike, and like what is forbidden."""
    if may_read(values) and not bool(values.isfinite().all()):
        raise ValueError(f"bias must leave the {kind} finite; the largest is {float(bias.abs().max())}")


def biased_scores(logits: Tensor, scale: str) -> Tensor:
    """What a bias is added to, on the scale that `bias_scale` names: "logits", "softmax" or "sigmoid"."""
    return widen(logits) if scale == "logits" else score_logits(logits, scale)


def check_bias(bias: Tensor, logits: Tensor) -> None:
    """Refuse a bias that is not one finite number an expert, on the device of the logits."""
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        raise TypeError(f"bias must be a floating-point tensor, got {getattr(bias, 'dtype', type(bias).__name__)}")
    if bias.shape != logits.shape[1:]:
        raise ValueError(f"bias must be (num_experts,) = ({logits.shape[1]},), got {tuple(bias.shape)}")
    if bias.device != logits.device:
        raise ValueError(f"bias is on {bias.device} and logits on {logits.device}; both must be on one device")
    if may_read(bias) and not bool(bias.isfinite().all()):
        raise ValueError(f"bias must be finite, got {bias.tolist()}")


def select(ranking: Float[Tensor, "tokens num_experts"], top_k: int) -> Int64[Tensor, "tokens {top_k}"]:
    """The top_k highest of each row, best first; equal values in the order of the experts.

    ``torch.topk`` promises no order among equals, and the order is what makes a router repeatable. On a CPU, where it
    is the faster, it serves the rows in which no two of the best are equal, and a stable sort the others.
    """
    num_experts = ranking.shape[1]
    if ranking.device.type != "cpu" or not may_read(ranking) or top_k == num_experts or not len(ranking):
        return _stable(ranking, top_k)
    values, experts = ranking.topk(top_k + 1, dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    experts = experts[:, :top_k]
    return experts.index_copy(0, tied, _stable(ranking[tied], top_k)) if len(tied) else experts


def _stable(ranking: Tensor, top_k: int) -> Tensor:
    return ranking.sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def weigh(
    scores: Float[Tensor, "tokens num_experts"],
    experts: Int64[Tensor, "tokens slots"],
    score: str,
    renormalise: bool,
    scale: float,
) -> Float[Tensor, "tokens slots"]:
    """Weights of the chosen experts; an empty slot (-1) weighs 0.

    Renormalised weights are divided by their sum + 1e-20, DeepSeek-V3's guard: they sum to 1, but to less where a
    token's scores are about that small, and to 0 where all of them underflow (sigmoids of logits below -46, and -88).
    """
    if abs(check_number("scale", scale)) > torch.finfo(scores.dtype).max:  # inf, and NaN where a slot is empty
        raise ValueError(f"scale must be a finite number in {scores.dtype}, got {scale}")
    if not isinstance(renormalise, bool):
        raise TypeError(f"renormalise must be True or False, got {renormalise!r}")
    empty = experts < 0
    chosen = scores.gather(1, experts.clamp_min(0))
    if score == "softmax_after_top_k":
        chosen = chosen.masked_fill(empty, float("-inf")).softmax(dim=1)
    chosen = chosen.masked_fill(empty, 0.0)  # also clears the NaN of a token with no expert at all
    if renormalise:
        chosen = chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20)
    return chosen * scale
