"""Balance as a soft transport problem: sinkhorn."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.registry import MOST_STEPS, NotFinite, opaque, router
from moe_lab.routers.scores import objective_scores, score_logits, select, weigh
from moe_lab.types import Routing, may_read


@router()
def sinkhorn(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    temperature: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-4,
    objective: str = "logits",
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Choose the top_k of the entropic transport plan from tokens to experts, weigh by the plain score.

    plan = diag(a) exp((logits + bias) / temperature) diag(b), with rows that sum to 1 and columns that sum to
    tokens / num_experts. The plan is balanced; its top_k only nearly so. It reads the whole batch, so it is not causal:
    S-BASE routes with it in training and with plain top_k afterwards.

    Stops once every column sum is off by less than ``tolerance`` of its target, or after ``iterations``; it works on
    logarithms, where large logits do not overflow, unless their differences do. A plan that is even enough at once, as
    a high temperature makes it, asks no prices, and the choice is that of `top_k`.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0], [2.0, 1.5]])
        >>> sinkhorn(logits, 1).experts.flatten()
        tensor([0, 1])

    Raises: see `route`; ValueError for a temperature or tolerance not above 0, fewer than 1 iteration, or logits (over
    the temperature) whose differences overflow.
    Source: Clark et al. 2022 (arXiv:2202.01169), appendix B.2.1, "S-BASE".
    """
    tokens, num_experts = logits.shape
    check_number("temperature", temperature, above=0)
    if temperature > torch.finfo(torch.float32).max:
        raise ValueError(f"temperature must be finite in float32, got {temperature}")
    check_number("tolerance", tolerance, above=0)
    check_whole("iterations", iterations, 1, MOST_STEPS)
    values = objective_scores(logits, score, bias, objective)
    if tokens:
        values = values / temperature
        if may_read(values) and not bool(values.isfinite().all()):
            raise ValueError(f"temperature must leave the logits finite, got {temperature}")
        values = values - _sinkhorn_prices(values, iterations, tolerance)
    experts = select(values, top_k)
    weights = weigh(score_logits(logits, score), experts, score, renormalise, scale)
    return Routing.trusted(experts, weights, num_experts)


@opaque(
    "sinkhorn_prices",
    "(Tensor values, int iterations, float tolerance)",
    lambda values, *_: values.new_empty(values.shape[1]),
)
def _sinkhorn_prices(values: Tensor, iterations: int, tolerance: float) -> Tensor:
    """One price an expert: the logarithm of how far its column must shrink."""
    tokens, num_experts = values.shape
    log_target = math.log(tokens / num_experts)
    prices = torch.zeros(num_experts, dtype=values.dtype, device=values.device)
    for number in range(iterations):
        rows = torch.logsumexp(values - prices, dim=1, keepdim=True)
        error = torch.logsumexp(values - rows, dim=0) - prices - log_target
        worst = float(error.abs().max())
        if not math.isfinite(worst):
            raise NotFinite(f"logits must have finite differences, the largest is {float(values.abs().max())}")
        if number == 0 and worst < tolerance:
            break  # what is off may be rounding alone, and more than all that tells the experts apart
        prices = prices + error
        if worst < tolerance:
            break
    return prices
