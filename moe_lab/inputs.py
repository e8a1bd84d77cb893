"""The inputs that tests, benchmarks and lessons share: random values of order 1, from a seed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.activations import hidden_columns
from moe_lab.checks import check_whole
from moe_lab.routers import find_method, options_of
from moe_lab.routers.capacity import OVERFLOWS, PRIORITIES
from moe_lab.types import Routing

SPREADS = ("uniform", "skewed", "one_expert", "half_empty")
LOGITS = ("random", "correlated", "collapsed", "tied", "equal")


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What `expert_mlp` takes, and an upstream gradient for its backward pass."""

    x: Float[Tensor, "tokens d_model"]
    routing: Routing
    w_gate_up: Float[Tensor, "num_experts hidden d_model"]
    w_down: Float[Tensor, "num_experts d_model d_expert"]
    dy: Float[Tensor, "tokens d_model"]

    @property
    def arguments(self) -> tuple[Tensor, Routing, Tensor, Tensor]:
        """The positional arguments of `expert_mlp`."""
        return self.x, self.routing, self.w_gate_up, self.w_down


def make_layer_inputs(
    tokens: int,
    d_model: int,
    d_expert: int,
    num_experts: int,
    top_k: int,
    *,
    spread: str = "uniform",
    empty_slots: float = 0.0,
    activation: str = "swiglu",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LayerInputs:
    """Draw the inputs of a layer: x, dy ~ N(0, 1), weights ~ N(0, 1 / inputs), so that outputs are of order 1.

    ``spread`` of the load: "uniform"; "skewed" (popularity falls as 1 / rank); "one_expert" (everyone's first choice is
    expert 0); "half_empty" (the later half of the experts gets nothing, as far as top_k allows). ``empty_slots`` is the
    share of assignments that are dropped.

    Example:
        >>> inputs = make_layer_inputs(6, 8, 4, num_experts=3, top_k=1, spread="one_expert")
        >>> inputs.routing.load
        tensor([6, 0, 0])

    Raises ValueError for an unknown spread or a share outside 0..1.
    """
    if spread not in SPREADS:
        raise ValueError(f"spread must be one of {', '.join(SPREADS)}; got {spread!r}")
    if not 0 <= empty_slots <= 1:
        raise ValueError(f"empty_slots must lie in 0..1, got {empty_slots}")
    check_whole("top_k", top_k, 1, num_experts)
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    popularity = torch.zeros(num_experts, dtype=torch.float64)
    if spread == "skewed":
        popularity = -torch.arange(1, num_experts + 1, dtype=torch.float64).log()
    elif spread == "one_expert":
        popularity[0] = 100.0
    elif spread == "half_empty":
        popularity[max(top_k, num_experts // 2) :] = -100.0
    # Gumbel noise: the top_k of (log popularity + noise) draws top_k experts without replacement
    noise = -torch.rand(tokens, num_experts, generator=draw, dtype=torch.float64).log().neg().log()
    experts = (popularity + noise).argsort(dim=1, descending=True)[:, :top_k]
    weights = torch.rand(tokens, top_k, generator=draw, dtype=torch.float64) + 0.1
    empty = torch.rand(tokens, top_k, generator=draw, dtype=torch.float64) < empty_slots
    columns = hidden_columns(activation, d_expert)

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype)

    weights = weights.masked_fill(empty, 0.0)
    wide = weights.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
    return LayerInputs(
        x=place(normal(tokens, d_model)),
        routing=Routing(experts.masked_fill(empty, -1).to(device), wide, num_experts),
        w_gate_up=place(normal(num_experts, columns, d_model) / d_model**0.5),
        w_down=place(normal(num_experts, d_model, d_expert) / d_expert**0.5),
        dy=place(normal(tokens, d_model)),
    )


def make_router_options(method: str, tokens: int, num_experts: int, top_k: int, *, seed: int = 0) -> dict[str, object]:
    """Options with which any method runs on any size: groups that divide, token ids, a seeded generator.

    The seed also picks among a method's variants: what `capacity_top_k` does with overflow, and whom it serves first.

    Example:
        >>> make_router_options("grouped_experts", tokens=5, num_experts=6, top_k=2)
        {'num_groups': 2}
    """
    known, groups = options_of(find_method(method)), max(g for g in (4, 2, 1) if num_experts % g == top_k % g == 0)
    options = {
        "group_limited": {"num_groups": groups, "top_groups": -(-top_k * groups // num_experts), "group_top": 1},
        "grouped_experts": {"num_groups": groups},
        "hash": {"token_ids": torch.arange(tokens) % 7},
        "capacity_top_k": {"overflow": OVERFLOWS[seed % 2], "priority": PRIORITIES[seed % 3]},
    }.get(method, {})
    return {**options, "generator": torch.Generator().manual_seed(seed)} if "generator" in known else options


def make_router_logits(
    tokens: int, num_experts: int, kind: str = "correlated", *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "tokens num_experts"]:
    """Draw what a router would say of a batch; two seeds of a kind are two batches of the same data and router.

    "random": independent N(0, 1), where chance alone is uneven; "correlated": tokens from 24 topics of unequal
    frequency, experts with a taste and a popularity of their own, as trained routers have; "collapsed": that with
    expert 0 ahead of all others by 10; "tied": correlated, rounded to halves; "equal": all 0, a router that knows
    nothing yet.

    Example:
        >>> make_router_logits(512, 8).softmax(dim=1).mean(dim=0).max() > 2 / 8
        tensor(True)

    Raises ValueError for an unknown kind.
    """
    if kind not in LOGITS:
        raise ValueError(f"kind must be one of {', '.join(LOGITS)}; got {kind!r}")
    check_whole("tokens", tokens, 0)
    check_whole("num_experts", num_experts, 1)
    router, batch = torch.Generator().manual_seed(1234 + num_experts), torch.Generator().manual_seed(seed)

    def normal(generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "equal":
        return torch.zeros(tokens, num_experts, dtype=dtype)
    if kind == "random":
        return normal(batch, tokens, num_experts).to(dtype)
    width, topics = 32, 24
    centres, taste = normal(router, topics, width), normal(router, num_experts, width) / width**0.5
    popularity = normal(router, num_experts)
    frequency = 1 / torch.arange(1, topics + 1, dtype=torch.float64)
    topic = torch.multinomial(frequency, tokens, replacement=True, generator=batch) if tokens else []
    logits = (centres[topic] + 0.5 * normal(batch, tokens, width)) @ taste.T + popularity
    if kind == "collapsed":
        logits[:, 0] += 10.0
    return ((logits * 2).round() / 2 if kind == "tied" else logits).to(dtype)
