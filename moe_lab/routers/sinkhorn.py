"""Balance as a soft transport problem: sinkhorn."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_number, check_whole
from moe_lab.routers.registry import opaque, router
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

    Stops once a column sum is off by less than ``tolerance`` of its target, or after ``iterations``; it works on
    logarithms, where large logits cannot overflow.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0], [2.0, 1.5]])
        >>> sinkhorn(logits, 1).experts.flatten()
        tensor([0, 1])

    Raises: see `route`; ValueError for a temperature or tolerance not above 0, or fewer than 1 iteration.
    Source: Clark et al. 2022 (arXiv:2202.01169), appendix B.2.1, "S-BASE".
    """
    tokens, num_experts = logits.shape
    check_number("temperature", temperature, above=0)
    check_number("tolerance", tolerance, above=0)
    check_whole("iterations", iterations, 1)
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
    for _ in range(iterations):
        rows = torch.logsumexp(values - prices, dim=1, keepdim=True)
        error = torch.logsumexp(values - rows, dim=0) - prices - log_target
        prices = prices + error
        if float(error.abs().max()) < tolerance:
            break
    return prices
