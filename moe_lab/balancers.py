"""A bias an expert, learned from batch to batch and outside of the loss: four rules behind one interface."""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.balance import check_load
from moe_lab.checks import check_number, check_whole
from moe_lab.ranks import gather_rows, sum_over_ranks
from moe_lab.routers.prices import RULES, even_prices, price_step
from moe_lab.types import Routing
from moe_lab.wide import WideBuffers


class Balancer(WideBuffers):
    """A module with a ``.bias`` that a router adds to its scores for the selection, and that learns after each step.

    ``learn(routing, scores)`` is the interface that all rules share; `MoE.update_balancer` calls it with what its last
    call left. Call it once a step, after the optimiser's: recomputed activations would otherwise count twice. The bias
    is float32 whatever the model is cast to, and no gradient flows through it.
    """

    bias: Float[Tensor, " num_experts"]

    def __init__(self, num_experts: int):
        super().__init__()
        check_whole("num_experts", num_experts, 1, 2**20)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.wide = ("bias",)

    def learn(
        self,
        routing: Routing,
        scores: Float[Tensor, "tokens num_experts"],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Move the bias by what happened in one batch; ``scores`` are what the bias is added to.

        With a ``group``, the batch is that of all its ranks together, of which this one holds an equal part.
        """
        raise NotImplementedError


class BiasBalancer(Balancer):
    """A bias learned from loads alone: raised where too few tokens came, lowered where too many.

    After each optimiser step, ``update(load)`` does bias += rate * sign(mean(load) - load); the router adds
    ``.bias`` to its scores for the selection only. No loss term, no gradient, and no token sees the batch that it is
    in.

    Example:
        >>> balancer = BiasBalancer(num_experts=3, rate=0.1)
        >>> balancer.update(torch.tensor([4, 2, 0]))
        >>> balancer.bias
        tensor([-0.1000,  0.0000,  0.1000])

    Raises ValueError for a load that is not (num_experts,) or a rate not above 0.
    Source: Wang et al. 2024 (arXiv:2408.15664), algorithm 1; rate 0.001 there, on sigmoid scores.
    """

    def __init__(self, num_experts: int, rate: float | int = 1e-3):
        super().__init__(num_experts)
        self.rate = check_number("rate", rate, above=0)

    def learn(
        self,
        routing: Routing,
        scores: Float[Tensor, "tokens num_experts"],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Move the bias by the routing's load, added up over the ranks of a group."""
        self.update(routing.load if group is None else sum_over_ranks(routing.load, group))

    @torch.no_grad()
    def update(self, load: Int64[Tensor, " num_experts"]) -> None:
        """Move the bias one step towards an even load."""
        if check_load(load).shape != self.bias.shape:
            raise ValueError(f"load must be ({len(self.bias)},), got {tuple(load.shape)}")
        wide = load.to(self.bias.device, torch.float64)
        self.bias += self.rate * torch.sign(wide.mean() - wide).float()

    def extra_repr(self) -> str:
        """What ``print(balancer)`` shows."""
        return f"num_experts={len(self.bias)}, rate={self.rate}"


class PriceBalancer(Balancer):
    """Prices learned from scores: what an expert must cost so that each gets its share; the bias is minus the price.

    ``update(scores, top_k)`` makes one step of the quantile alternation (`price_step`) on this batch and moves the
    prices by ``rate`` of the way, or by 1 / (number of updates) while that is more: at first it averages, later it
    follows the router as that learns. The first update iterates until the prices are those of its batch. A router that
    adds ``.bias`` routes each token alone, by prices of earlier batches: causal, and independent of who else is in the
    batch.

    Its loads vary as sampling makes them: CV = sqrt((num_experts / top_k - 1) (1 / tokens + 1 / tokens averaged over)).
    The bias also starts ``method="balanced"`` warm.

    The rivals, as published, are two more rules: "quantile" (Su 2026; Kimi K3, Megatron, TorchTitan: one step a batch,
    used for the next one, rate 1) and "bip" (arXiv:2502.15451: as that, prices at least 0). `BiasBalancer` is the
    third.

    Example:
        >>> scores = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 2, 8)
        >>> balancer = PriceBalancer(num_experts=8)
        >>> balancer.update(scores, top_k=2)
        >>> load = torch.bincount((scores + balancer.bias).topk(2).indices.flatten())
        >>> int(load.max() - load.min()) <= 8
        True

    Raises ValueError for an unknown rule, a rate outside (0, 1], or scores that are not (tokens, num_experts) and
    finite, or so large that a price is not; the bias then stays as it was.
    Source: `moe_lab.routers.prices`; the law for the CV is measured in lesson 04.
    """

    def __init__(self, num_experts: int, rate: float | int | None = None, *, rule: str = "midpoint"):
        super().__init__(num_experts)
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
        self.rule = rule
        self.rate = (0.5 if rule == "midpoint" else 1.0) if rate is None else check_number("rate", rate, above=0)
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, got {self.rate}")
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def learn(
        self,
        routing: Routing,
        scores: Float[Tensor, "tokens num_experts"],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Move the prices by the scores of the batch that was routed, those of all ranks of a group."""
        scores = scores if group is None else gather_rows(scores, group)
        self.update(scores, routing.slots if routing.top_k is None else routing.top_k)

    @torch.no_grad()
    def update(self, scores: Float[Tensor, "tokens num_experts"], top_k: int) -> None:
        """Move the prices towards those of this batch."""
        num_experts = len(self.bias)
        if scores.dim() != 2 or scores.shape[1] != num_experts:
            raise ValueError(f"scores must be (tokens, {num_experts}), got {tuple(scores.shape)}")
        check_whole("top_k", top_k, 1, num_experts)
        scores = scores.detach().to(self.bias)
        if not bool(scores.isfinite().all()):
            raise ValueError("scores must be finite, found NaN or infinity")
        if top_k == num_experts or not len(scores):
            return  # nothing to choose: every price is as good
        prices, done = -self.bias, int(self.updates)
        if self.rule == "midpoint" and not done:
            wanted = even_prices(scores, prices, top_k, iterations=32).prices
        else:
            wanted = price_step(scores, prices, top_k, self.rule)
        rate = max(self.rate, 1 / (done + 1))
        bias = -(prices + rate * (wanted - prices))
        if not bool(bias.isfinite().all()):
            largest = float(scores.abs().max())
            raise ValueError(f"scores must be small enough for finite prices, the largest is {largest}")
        self.updates += 1
        self.bias.copy_(bias)

    def extra_repr(self) -> str:
        """What ``print(balancer)`` shows."""
        return f"num_experts={len(self.bias)}, rate={self.rate}, rule={self.rule!r}"


BALANCERS = {
    "sign": lambda num_experts, rate: BiasBalancer(num_experts, rate),
    **{rule: lambda num_experts, rate, rule=rule: PriceBalancer(num_experts, rate, rule=rule) for rule in RULES},
}
"""Name of a rule -> what makes its balancer from num_experts and a rate."""
