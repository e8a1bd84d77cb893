"""Prices: one number an expert, subtracted from its scores, so that plain top_k spreads the tokens evenly.

The even assignment of greatest total score has a dual: prices p that minimise
D(p) = sum over tokens of (sum of the top_k of s - p) + sum over experts of capacity * p.
Alternate its two halves: given prices, a token's bar lies between its top_k-th and its next score; given bars, an
expert's price lies between the capacity-th and the next of (score - bar). DeepSeek's balancing bias is -p, and its
update a sign step down the slope of D.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

RULES = ("midpoint", "quantile", "bip")


def kth_and_next(
    values: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The k-th and the (k + 1)-th largest of every row; k below the number of columns.

    On a CPU it is NumPy that sorts: its vector instructions make it nine times as fast as ``torch.topk`` on 64 columns.

    Example:
        >>> kth_and_next(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), 2)
        (tensor([2.]), tensor([1.]))
    """
    if values.device.type != "cpu":
        best = values.topk(k + 1, dim=1).values
        return best[:, k - 1], best[:, k]
    array, place = values.numpy(), values.shape[1] - k
    if values.shape[1] <= 512:
        ordered = np.sort(array, axis=1)
        kth, following = ordered[:, place], ordered[:, place - 1]
    else:
        ordered = np.partition(array, place, axis=1)
        kth, following = ordered[:, place], ordered[:, :place].max(axis=1)
    return torch.from_numpy(kth.copy()), torch.from_numpy(following.copy())


def token_bars(
    reduced: Float[Tensor, "tokens num_experts"], top_k: int, rule: str = "midpoint"
) -> Float[Tensor, " tokens"]:
    """What a score less its price must exceed to be among a token's top_k, which is less than num_experts."""
    kth, following = kth_and_next(reduced, top_k)
    return (kth + following) / 2 if rule == "midpoint" else following


@dataclass(frozen=True, eq=False)
class Priced:
    """What prices make of scores: ``reduced`` = scores - prices, their top_k as a mask, and each token's ``margin``,
    the distance between its last chosen expert and the next: no token changes an expert for less."""

    prices: Float[Tensor, " num_experts"]
    reduced: Float[Tensor, "tokens num_experts"]
    chosen: Bool[Tensor, "tokens num_experts"]
    margin: Float[Tensor, " tokens"]
    iterations: int


def expert_prices(
    scores_by_expert: Float[Tensor, "num_experts tokens"],
    bars: Float[Tensor, " tokens"],
    top_k: int,
    rule: str = "midpoint",
) -> Float[Tensor, " num_experts"]:
    """The price at which each expert has its even share of tokens above their bars.

    With c = tokens * top_k / num_experts: halfway between the c-th and the next of (score - bar), or where c is no
    whole number, the one after floor(c). The rule "quantile" always takes the one after floor(c), as its authors do,
    and "bip" lets no price fall below 0.
    """
    num_experts, tokens = scores_by_expert.shape
    share, spare = divmod(tokens * top_k, num_experts)
    above = scores_by_expert - bars
    if spare or rule != "midpoint":
        _, wanted = _or_first(above, share)
    else:
        kth, following = kth_and_next(above, share)
        wanted = (kth + following) / 2
    return wanted.clamp_min(0) if rule == "bip" else wanted


def _or_first(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`kth_and_next`, also for k = 0, where the next is the largest."""
    return kth_and_next(values, k) if k else (values.amax(dim=1), values.amax(dim=1))


def price_step(
    scores: Float[Tensor, "tokens num_experts"],
    prices: Float[Tensor, " num_experts"],
    top_k: int,
    rule: str = "midpoint",
) -> Float[Tensor, " num_experts"]:
    """One round of the alternation: bars from these prices, prices from those bars, less their mean.

    The rules: "midpoint" takes the middle of the interval that both halves leave free; "quantile" its lower end (Su
    2026, "quantile balancing"); "bip" that with prices of at least 0, which are not centred then (BIP).

    Example:
        >>> scores = torch.tensor([[2.0, 0.0], [1.5, 0.0], [1.0, 0.0], [0.5, 0.0]])
        >>> price_step(scores, torch.zeros(2), top_k=1)
        tensor([ 0.6250, -0.6250])
    """
    if top_k == len(prices) or not len(scores):
        return prices
    new = expert_prices(scores.T.contiguous(), token_bars(scores - prices, top_k, rule), top_k, rule)
    return new if rule == "bip" else new - new.mean()


def even_prices(
    scores: Float[Tensor, "tokens num_experts"],
    prices: Float[Tensor, " num_experts"],
    top_k: int,
    *,
    iterations: int,
    enough: float = 0.0,
) -> Priced:
    """Iterate until at most the share ``enough`` of all assignments is above its expert's share.

    Steps are over-relaxed by a half. Far from balance it begins on one token in eight, or more where experts would see
    too few of them: prices are a statistic, and a sample tells most of it at a fraction of the work. Needs top_k below
    num_experts.
    """
    tokens, num_experts = scores.shape
    share = -(-tokens * top_k // num_experts)
    stride = max(1, min(8, tokens * top_k // (8 * num_experts)))
    by_expert, done, sampled = None, 0, stride == 1
    while True:
        reduced = scores - prices
        kth, following = kth_and_next(reduced, top_k)
        bars = (kth + following) / 2
        chosen = reduced > bars[:, None]
        excess = int((chosen.sum(dim=0) - share).clamp_min(0).sum())
        if excess <= enough * tokens * top_k or done >= iterations:
            return Priced(prices, reduced, _exactly(chosen, reduced, top_k), kth - following, done)
        if not sampled and excess > 0.1 * tokens * top_k:
            sample, rounds = scores[::stride].contiguous(), min(12, iterations - done)
            columns = sample.T.contiguous()
            for number in range(rounds):
                new = expert_prices(columns, token_bars(sample - prices, top_k), top_k)
                prices = prices + (1.0 if number < 2 else 1.5) * (new - prices)
                prices = prices - prices.mean()
            done += rounds
        else:
            by_expert = scores.T.contiguous() if by_expert is None else by_expert
            prices = prices + (1.5 if sampled or done > 1 else 1.0) * (expert_prices(by_expert, bars, top_k) - prices)
            prices = prices - prices.mean()
            done += 1
        sampled = True


def _exactly(chosen: Tensor, reduced: Tensor, top_k: int) -> Tensor:
    """Give exactly top_k experts to the tokens whose top_k-th and next are equal.

    Equals are taken in an order that starts top_k experts further on with every token, so that a router that does not
    yet tell experts apart is balanced at once.
    """
    tied = (chosen.sum(dim=1) != top_k).nonzero().squeeze(1)
    if len(tied):
        num_experts = chosen.shape[1]
        turned = (tied[:, None] * top_k + torch.arange(num_experts, device=tied.device)) % num_experts
        best = reduced[tied].gather(1, turned).sort(dim=1, descending=True, stable=True).indices[:, :top_k]
        chosen[tied] = torch.zeros_like(chosen[tied]).scatter(1, turned.gather(1, best), True)
    return chosen


def even_targets(tokens: int, top_k: int, prices: Float[Tensor, " num_experts"]) -> Int64[Tensor, " num_experts"]:
    """Loads of an even assignment: the floor of the share, and one more for the dearest experts where it does not
    divide; among equal prices for the lower one.

    Example:
        >>> even_targets(tokens=3, top_k=1, prices=torch.tensor([0.0, 1.0]))
        tensor([1, 2])
    """
    share, spare = divmod(tokens * top_k, len(prices))
    targets = torch.full((len(prices),), share, device=prices.device)
    targets[prices.sort(descending=True, stable=True).indices[:spare]] += 1
    return targets
