"""Tokens choose their best experts: top_k, sigmoid_bias, noisy_top_k."""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_number
from moe_lab.routers.chance import draw
from moe_lab.routers.registry import router
from moe_lab.routers.scores import score_logits, select, selection_scores, weigh, widen
from moe_lab.types import Routing, may_read


@router()
def top_k(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Send each token to its top_k best experts, with no regard for their load.

    Guarantees exactly top_k distinct experts a token, none dropped, each token alone (causal); promises
    nothing about the load.

    Example:
        >>> top_k(torch.tensor([[2.0, 0.0, 1.0]]), 2, score="softmax_after_top_k").weights
        tensor([[0.7311, 0.2689]])

    Raises: see `route`.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 2.1; as used by Mixtral (arXiv:2401.04088),
    section 2.1, which takes the softmax of the chosen logits.
    """
    return choose(logits, top_k, score, bias, renormalise, scale)


@router()
def sigmoid_bias(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    score: str = "sigmoid",
    bias: Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Rank by sigmoid(logit) + bias, weigh by sigmoid(logit) alone: DeepSeek-V3's router without groups.

    The bias is learned outside the loss (`BiasBalancer`), so balancing sends no gradient through the
    router. Guarantees are those of `top_k`.

    Example:
        >>> bias = torch.tensor([0.0, 0.0, 1.0])
        >>> routing = sigmoid_bias(torch.tensor([[2.0, 1.0, 0.0]]), 1, bias=bias)
        >>> routing.experts, routing.weights
        (tensor([[2]]), tensor([[1.]]))

    Raises: see `route`; ValueError for a bias that is not (num_experts,).
    Source: DeepSeek-V3 (arXiv:2412.19437), section 2.1.2, equations 12 to 16.
    """
    return choose(logits, top_k, score, bias, renormalise, scale)


@router()
def noisy_top_k(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    noise_std: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Add Gaussian noise to the logits, then choose and weigh as `top_k` does.

    noisy = logits + noise_std * N(0, 1). ``noise_std`` is a number or a tensor (tokens, num_experts), as
    in the paper, where it is softplus(x W_noise) and learns. Give 0 when evaluating: a layer's ``eval()`` does not. The
    paper's own weights, a softmax over the chosen noisy logits, are ``renormalise=True``.

    Example:
        >>> noisy_top_k(torch.tensor([[2.0, 0.0, 1.0]]), 2, noise_std=0.0).experts
        tensor([[0, 2]])

    Raises: see `route`; ValueError for a negative or misshapen ``noise_std``.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 2.1, equations 3 to 5.
    """
    return choose(add_noise(logits, noise_std, generator), top_k, score, bias, renormalise, scale)


def choose(logits: Tensor, top_k: int, score: str, bias: Tensor | None, renormalise: bool, scale: float) -> Routing:
    """Score, select the best top_k of each token, weigh: what the methods above have in common."""
    scores = score_logits(logits, score)
    experts = select(selection_scores(logits, scores, score, bias), top_k)
    return Routing.trusted(experts, weigh(scores, experts, score, renormalise, scale), logits.shape[1])


def add_noise(logits: Tensor, noise_std: float | Tensor, generator: torch.Generator | None) -> Tensor:
    """Logits plus Gaussian noise, drawn where the generator lives so that a seed means one thing."""
    if isinstance(noise_std, Tensor):
        low = noise_std.min().item() if may_read(noise_std) and noise_std.numel() else 0.0
        if noise_std.shape != logits.shape or not noise_std.is_floating_point() or not low >= 0:
            raise ValueError(
                f"noise_std must be a number or floating point {tuple(logits.shape)} like logits, never negative; "
                f"got {noise_std.dtype} {tuple(noise_std.shape)} with a minimum of {low}"
            )
    else:
        check_number("noise_std", noise_std, at_least=0)
    noise = draw(torch.randn, tuple(logits.shape), generator, logits.device, torch.float32)
    noisy = widen(logits) + noise_std * noise
    if may_read(noisy) and not bool(noisy.isfinite().all()):
        raise ValueError(f"noise_std must be small enough for finite logits, got {noise_std!r}")
    return noisy
