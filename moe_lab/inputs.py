"""The inputs that tests, benchmarks and lessons share: random values of order 1, from a seed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.activations import hidden_columns
from moe_lab.checks import check_whole
from moe_lab.types import Routing

SPREADS = ("uniform", "skewed", "one_expert", "half_empty")


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
