"""Selections that look at no logit: hash, random. The weights still come from the logits."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.routers.chance import draw
from moe_lab.routers.registry import router
from moe_lab.routers.scores import check_bias, score_logits, select, weigh
from moe_lab.types import Routing


@router()
def hash(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    token_ids: Int64[Tensor, "..."],
    seed: int = 0,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Send a token to the experts that its vocabulary id hashes to.

    Every (id, expert) pair hashes to a number, and the token takes the top_k experts with the highest
    numbers plus ``bias``, if one is given, in units of the whole hash range. The load then follows the frequencies
    of the ids: a frequent id makes its experts busy. Causal, needs no training, same at inference. The paper
    uses top-1 with weight 1, which is ``renormalise=True``.

    Example:
        >>> logits = torch.zeros(3, 4)
        >>> routing = hash(logits, 1, token_ids=torch.tensor([7, 9, 7]))
        >>> bool(routing.experts[0] == routing.experts[2])
        True

    Raises: see `route`; ValueError for ``token_ids`` that are not one whole number a token.
    Source: Roller et al. 2021 (arXiv:2106.04426), section 3.
    """
    tokens, num_experts = logits.shape
    if not isinstance(token_ids, Tensor) or token_ids.dtype != torch.int64 or token_ids.numel() != tokens:
        kind = f"{token_ids.dtype} {tuple(token_ids.shape)}" if isinstance(token_ids, Tensor) else repr(token_ids)
        raise ValueError(f"token_ids must be int64 with one id for each of {tokens} tokens, got {kind}")
    check_whole("seed", seed, 0, 2**31)
    salt = _mix(torch.tensor(seed + 1, device=logits.device))
    ids = _mix(token_ids.reshape(tokens, 1).to(logits.device) ^ salt)
    keys = _mix(ids + 0x85EBCA6B * torch.arange(1, num_experts + 1, device=logits.device))
    return _by_keys(logits, keys.double() / 2**32, top_k, score, bias, renormalise, scale)


@router()
def random(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    generator: torch.Generator | None = None,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float = 1.0,
) -> Routing:
    """Send each token to top_k experts drawn at random: balanced in expectation, blind to the token.

    Its load is the noise floor of every other method: CV = sqrt((num_experts / top_k - 1) / tokens).

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> random(torch.zeros(1000, 4), 1, generator=draw).load
        tensor([230, 260, 260, 250])

    Raises: see `route`.
    Source: THOR, Zuo et al. 2022 (arXiv:2110.04260), section 3, which draws one expert an input.
    """
    keys = draw(torch.rand, tuple(logits.shape), generator, logits.device, torch.float64)
    return _by_keys(logits, keys, top_k, score, bias, renormalise, scale)


def _by_keys(
    logits: Tensor, keys: Tensor, top_k: int, score: str, bias: Tensor | None, renormalise: bool, scale: float
) -> Routing:
    """Select by keys in [0, 1), weigh by the logits."""
    if bias is not None:
        check_bias(bias, logits)
        keys = keys + bias.detach()
    experts = select(keys, top_k)
    weights = weigh(score_logits(logits, score), experts, score, renormalise, scale)
    return Routing.trusted(experts, weights, logits.shape[1])


def _mix(number: Tensor) -> Tensor:
    """Scatter whole numbers over 0..2**32-1: two rounds of xor-shift and multiply.

    The multiplier has 27 bits, so that no product leaves int64, where overflow is undefined.
    """
    number = (number ^ (number >> 32)) & 0xFFFFFFFF
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x045D9F3B) & 0xFFFFFFFF
    return number ^ (number >> 16)
