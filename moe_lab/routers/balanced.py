"""Every expert the same load, and the best score that this allows: balanced, and base, which is its top-1."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.cycles import cancel_cycles
from moe_lab.routers.prices import even_prices, even_targets
from moe_lab.routers.registry import MOST_STEPS, NotFinite, opaque, router
from moe_lab.routers.repair import repair
from moe_lab.routers.scores import objective_scores, score_logits, weigh
from moe_lab.types import Routing


@dataclass(frozen=True, eq=False)
class EvenAssignment:
    """An exactly even assignment, and how it came about."""

    chosen: Bool[Tensor, "tokens num_experts"]
    prices: Float[Tensor, " num_experts"]
    iterations: int
    cycles: int

    def experts(self, top_k: int) -> Int64[Tensor, "tokens top_k"]:
        """The chosen experts of every token, lowest id first."""
        return self.chosen.nonzero()[:, 1].view(len(self.chosen), top_k)


def assign_evenly(
    scores: Float[Tensor, "tokens num_experts"], top_k: int, *, iterations: int = 32, tolerance: float | int = 1e-3
) -> EvenAssignment:
    """Give every token top_k distinct experts and every expert the same load, for nearly the greatest total score.

    Prices first (`even_prices`), then `repair` of what they leave uneven, whose cost bounds what is lost. Where that is
    more than ``tolerance`` of what the assignment gains over a random one: more iterations, and at their end exchanges
    around cycles until it is less, about 4 * num_experts + 100 of them at the most. Scores that are hard to price, such
    as one number a token times one an expert, can use those up and stay above the tolerance; `certify` tells.
    ``tolerance=0`` goes on to the optimum, however long that takes.

    Loads are the floor or the ceiling of tokens * top_k / num_experts. Deterministic; float32 scores are computed with
    in float32, the exchanges in float64 on the CPU. Raises ValueError for scores that are not finite.
    """
    tokens, num_experts = scores.shape
    prices, done = torch.zeros(num_experts, dtype=scores.dtype, device=scores.device), 0
    largest = float(scores.abs().max()) if scores.numel() else 0.0
    if not math.isfinite(largest):  # in a compiled graph nobody has looked before
        raise NotFinite(f"scores must be finite, the largest is {largest}")
    if largest > torch.finfo(scores.dtype).max ** 0.5:  # differences could overflow; a common factor changes no optimum
        small = assign_evenly(scores / largest, top_k, iterations=iterations, tolerance=tolerance)
        return dataclasses.replace(small, prices=small.prices * largest)
    if top_k == num_experts or not tokens:
        everything = torch.ones_like(scores, dtype=torch.bool)
        return EvenAssignment(everything, prices, 0, 0)
    if top_k > num_experts // 2:  # fewer to look at: which experts does a token not get?
        left_out = assign_evenly(-scores, num_experts - top_k, iterations=iterations, tolerance=tolerance)
        return dataclasses.replace(left_out, chosen=~left_out.chosen, prices=-left_out.prices)
    random_score = float(scores.sum(dtype=torch.float64)) * top_k / num_experts
    cost = torch.inf
    for enough in (2**-8, 2**-10, 2**-12, 0.0) if tolerance else (0.0,):
        before = cost
        priced = even_prices(scores, prices, top_k, iterations=iterations - done, enough=enough)
        prices, done = priced.prices, done + priced.iterations
        chosen, cost = repair(priced, even_targets(tokens, top_k, prices))
        if not cost:
            return EvenAssignment(chosen, prices, done, 0)
        gain = float(torch.where(chosen, scores, 0.0).sum(dtype=torch.float64)) - random_score
        if cost <= tolerance * gain:
            return EvenAssignment(chosen, prices, done, 0)
        if cost > 0.9 * before:  # equal scores, which prices cannot part
            break
    mask, exact, cycles = cancel_cycles(
        scores.double().cpu().numpy(),
        chosen.cpu().numpy(),
        prices.double().cpu().numpy(),
        cost,
        tolerance * gain,
        4 * num_experts + 100 if tolerance else torch.inf,
    )
    chosen = torch.from_numpy(mask).to(scores.device)
    return EvenAssignment(chosen, torch.from_numpy(exact).to(scores.device), done, cycles)


@opaque(
    "assign_evenly",
    "(Tensor scores, int top_k, *, int iterations=32, float tolerance=1e-3)",
    lambda scores, top_k, **_: scores.new_empty(scores.shape[0], top_k, dtype=torch.int64),
)
def _even_experts(scores: Tensor, top_k: int, **options) -> Tensor:
    return assign_evenly(scores, top_k, **options).experts(top_k)


@router()
def balanced(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    optimal: bool = False,
    iterations: int = 32,
    tolerance: float | int = 1e-3,
    objective: str = "logits",
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Give every expert exactly the same number of tokens, and every token top_k experts, at nearly the best score.

    Each load is tokens * top_k / num_experts, or its floor or ceiling where that is no whole number: the variance of
    the load is 0 where it divides. Among such assignments the sum of the logits (``objective="logits"``) or of the
    scores (``"score"``) is the greatest, less at most ``tolerance`` of what it gains over a random assignment;
    ``optimal=True`` gives up nothing. `certify` checks both claims on the finished routing.

    A ``bias`` is added to the objective. Where loads divide it changes no optimum, since every assignment collects it
    equally often: it is where the search starts. With the bias that a `PriceBalancer` has learned, a few iterations are
    enough. The whole call is one balancing group: a token's experts depend on all the others, later ones too, so a
    decoder that was trained like this is run with top_k and the learned bias (``MoE(eval_method="top_k")``).

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.5, 0.0], [2.5, 0.0, 0.5]])
        >>> balanced(logits, 1).experts.flatten(), balanced(logits, 2).load
        (tensor([0, 1, 2]), tensor([2, 2, 2]))

    Raises: see `route`; ValueError for fewer than 1 iteration, a negative tolerance or an unknown objective.
    Source: the transport problem of BASE (arXiv:2103.16716), with top_k experts a token; prices by alternating
    quantiles as in quantile balancing (Su 2026), at their midpoints; repair and exchanges are ours.
    """
    check_whole("iterations", iterations, 1, MOST_STEPS)
    check_number("tolerance", tolerance, at_least=0)
    if not isinstance(optimal, bool):
        raise TypeError(f"optimal must be True or False, got {optimal!r}")
    values = objective_scores(logits, score, bias, objective)
    experts = _even_experts(values, top_k, iterations=iterations, tolerance=0.0 if optimal else tolerance)
    return _best_first(logits, values, experts, score, renormalise, scale)


@router(only_top_k=1)
def base(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    objective: str = "logits",
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Give every expert the same number of tokens, with the highest total logit that this allows.

    Maximises the sum of logits[token, expert] + bias over assignments in which each token has one expert and each
    expert floor(tokens / num_experts) tokens or one more: `balanced` with ``optimal=True`` and one expert a token. It
    reads the whole batch, so it is not causal. The paper weighs by the sigmoid: ``score="sigmoid"``.

    Example:
        >>> base(torch.tensor([[3.0, 1.0], [2.0, 1.5]]), 1).experts.flatten()
        tensor([0, 1])

    Raises: see `route`; ValueError for ``top_k`` other than 1.
    Source: Lewis et al. 2021 (arXiv:2103.16716), section 3.1, which solves it by an auction.
    """
    values = objective_scores(logits, score, bias, objective)
    experts = _even_experts(values, 1, tolerance=0.0)
    return _best_first(logits, values, experts, score, renormalise, scale)


def _best_first(
    logits: Tensor, values: Tensor, experts: Tensor, score: str, renormalise: bool, scale: float
) -> Routing:
    """The experts of every token, best first, with their weights."""
    experts = experts.gather(1, values.gather(1, experts).sort(dim=1, descending=True, stable=True).indices)
    weights = weigh(score_logits(logits, score), experts, score, renormalise, scale)
    return Routing.trusted(experts, weights, logits.shape[1])
