"""Proof that a routing is exactly even, and a bound on the score that this cost it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.routers.cycles import Exchanges, find_cycles
from moe_lab.routers.prices import even_prices
from moe_lab.routers.registry import check_logits
from moe_lab.types import Routing


@dataclass(frozen=True)
class Certificate:
    """What `certify` found; ``print`` it. Scores are sums over all tokens, in units of the scores that were given.

    A dropped assignment adds 0, so where a routing drops, its shares depend on where the scores have their zero: take
    out each token's mean first, and a dropped assignment counts as a random one.
    """

    tokens: int
    top_k: int
    min_load: int
    max_load: int
    distinct: bool
    score: float
    best_even_at_most: float
    free_score: float
    random_score: float

    @property
    def even(self) -> bool:
        """Every token has top_k distinct experts, and no two loads differ by more than the unavoidable one."""
        return self.distinct and self.max_load - self.min_load <= 1

    @property
    def gap(self) -> float:
        """The most by which a better even assignment could beat this one."""
        return max(0.0, self.best_even_at_most - self.score)

    @property
    def gap_share(self) -> float:
        """The gap as a share of what the best even assignment can gain over a random one."""
        gain = self.best_even_at_most - self.random_score
        return self.gap / gain if gain > 0 else 0.0

    @property
    def price_share(self) -> float:
        """What evenness costs: the score given up against free choice, as a share of what free choice gains."""
        gain = self.free_score - self.random_score
        return (self.free_score - self.score) / gain if gain > 0 else 0.0

    def __str__(self) -> str:
        loads = f"{self.min_load}" if self.min_load == self.max_load else f"{self.min_load} to {self.max_load}"
        verdict = "exactly even" if self.even else "not even"
        return (
            f"{verdict}: {self.tokens} tokens x {self.top_k}, loads {loads}\n"
            f"at most {self.gap_share:.4%} short of the best even assignment; "
            f"evenness costs {self.price_share:.1%} of what free choice gains"
        )


def certify(scores: Float[Tensor, "tokens num_experts"], routing: Routing, *, iterations: int = 64) -> Certificate:
    """Check that a routing is exactly even, and bound what a better even one could gain.

    The counts are whole numbers. The bound is the dual of the assignment problem: for any prices p, no even assignment
    has a greater score than sum over tokens of (sum of the top_k of s - p) + floor(share) * sum(p) + (sum of the
    largest p, one for each load that must be one more). It looks for low prices by itself, in float64, and trusts
    nothing of the router's; the least bound that it meets counts. ``scores`` are what the router assigned by: its
    logits by default.

    Example:
        >>> from moe_lab import route
        >>> logits = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        >>> print(certify(logits, route(logits, 2, "balanced", optimal=True)))
        exactly even: 256 tokens x 2, loads 64
        at most 0.0000% short of the best even assignment; evenness costs 0.8% of what free choice gains

    Raises ValueError for scores that are not finite, or of another shape than the routing.
    Source: linear programming duality; the constraint matrix is totally unimodular, so the bound is tight at the best
    p.
    """
    check_logits(scores)
    check_whole("iterations", iterations, 0)
    if scores.shape != (routing.tokens, routing.num_experts):
        expected = (routing.tokens, routing.num_experts)
        raise ValueError(f"scores must be (tokens, num_experts) = {expected} as the routing, got {tuple(scores.shape)}")
    exact, experts = scores.detach().double(), routing.experts
    top_k = routing.slots if routing.top_k is None else routing.top_k
    tokens, num_experts = exact.shape
    in_order = experts.sort(dim=1).values
    complete = routing.slots == top_k and not bool((experts < 0).any())
    distinct = complete and not bool((in_order[:, 1:] == in_order[:, :-1]).any())
    load, taken = routing.load, exact.gather(1, experts.clamp_min(0)).masked_fill(experts < 0, 0.0)
    return Certificate(
        tokens,
        top_k,
        int(load.min()),
        int(load.max()),
        distinct,
        float(taken.sum()),
        _least_bound(exact, top_k, iterations, experts if distinct and int(load.max() - load.min()) <= 1 else None),
        float(exact.topk(top_k, dim=1).values.sum()),
        float(exact.sum()) * top_k / num_experts,
    )


def _least_bound(scores: Tensor, top_k: int, iterations: int, experts: Tensor | None) -> float:
    """The least dual value among the prices of the alternation, and those that make an even routing's own exchanges
    unprofitable: if it is optimal they exist, and bound it by itself."""
    tokens, num_experts = scores.shape
    prices = torch.zeros(num_experts, dtype=torch.float64, device=scores.device)
    if top_k == num_experts or not tokens:
        return float(scores.sum())
    least = _bound(scores, prices, top_k)
    for part in (iterations // 2, iterations - iterations // 2):
        prices = even_prices(scores, prices, top_k, iterations=part).prices
        least = min(least, _bound(scores, prices, top_k))
    if experts is not None:
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, experts, True)
        labels = -prices.cpu().numpy()
        if not find_cycles(Exchanges(scores.cpu().numpy(), chosen.cpu().numpy()), labels):
            least = min(least, _bound(scores, -torch.from_numpy(labels).to(scores.device), top_k))
    return least


def _bound(scores: Tensor, prices: Tensor, top_k: int) -> float:
    """The dual value of these prices: no even assignment has a greater score."""
    share, spare = divmod(len(scores) * top_k, len(prices))
    free = (scores - prices).topk(top_k, dim=1).values.sum()
    return float(free + share * prices.sum() + prices.topk(spare).values.sum())
