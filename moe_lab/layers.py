"""The MoE layer: a router, its experts, and experts that every token shares."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_lab.activations import activate, check_activation, hidden_columns
from moe_lab.experts import check_backend, expert_mlp
from moe_lab.routers import METHODS, options_of, route
from moe_lab.routers.scores import widen
from moe_lab.types import Routing


class MoE(nn.Module):
    """A Mixture-of-Experts layer: (..., d_model) -> (..., d_model).

    y = sum over the chosen experts of weight * expert(x), plus ``num_shared`` experts that every token visits with
    weight 1 (held as one network num_shared * d_expert wide). Router logits are computed in float32 or wider.
    ``.routing`` keeps the `Routing` of the last call, and ``.logits`` its router logits, for a loss on them.

    Tensors among ``router_options`` (a bias) become buffers; options that change from call to call (``token_ids``,
    ``generator``) are given to the call. ``balancer`` is a module with a ``.bias``, such as `BiasBalancer`.

    Example:
        >>> layer = MoE(d_model=8, d_expert=16, num_experts=4, top_k=2, renormalise=True)
        >>> layer(torch.randn(2, 5, 8)).shape, layer.routing.load.sum()
        (torch.Size([2, 5, 8]), tensor(20))

    Raises ValueError for sizes below 1, an unknown method, activation or backend, or an option that the method does not
    have.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 2; shared experts: DeepSeekMoE (arXiv:2401.06066), section
    3.2.
    """

    def __init__(
        self,
        d_model: int,
        d_expert: int,
        num_experts: int,
        top_k: int,
        method: str = "top_k",
        num_shared: int = 0,
        backend: str = "auto",
        *,
        activation: str = "swiglu",
        balancer: nn.Module | None = None,
        **router_options,
    ):
        super().__init__()
        sizes = {"d_model": d_model, "d_expert": d_expert, "num_experts": num_experts, "top_k": top_k}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        if top_k > num_experts:
            raise ValueError(f"top_k must lie in 1..{num_experts} (num_experts), got {top_k}")
        if not isinstance(num_shared, int) or num_shared < 0:
            raise ValueError(f"num_shared must be a whole number of at least 0, got {num_shared!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        for option in router_options:
            if option not in options_of(METHODS[method]):
                raise ValueError(
                    f"{option!r} is no option of method {method!r}; it has {', '.join(options_of(METHODS[method]))}"
                )
        if balancer is not None and "bias" in router_options:
            raise ValueError("balancer and the router option bias both set the selection bias; give one of them")
        self.num_experts, self.top_k, self.method = num_experts, top_k, method
        self.num_shared, self.backend, self.activation = (
            num_shared,
            check_backend(backend),
            check_activation(activation),
        )
        self.router = nn.Parameter(torch.empty(num_experts, d_model))
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, hidden_columns(activation, d_expert), d_model))
        self.w_down = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        if num_shared:
            width = num_shared * d_expert
            self.shared_gate_up = nn.Parameter(torch.empty(hidden_columns(activation, width), d_model))
            self.shared_down = nn.Parameter(torch.empty(d_model, width))
        self.balancer = balancer
        self._tensor_options = [name for name, value in router_options.items() if isinstance(value, Tensor)]
        for name in self._tensor_options:
            self.register_buffer(f"router_{name}", router_options[name])
        self.router_options = {k: v for k, v in router_options.items() if k not in self._tensor_options}
        self.routing: Routing | None = None
        self.logits: Tensor | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every weight from a normal distribution with standard deviation 1 / sqrt(its inputs)."""
        for weight in self.parameters(recurse=False):
            weight.normal_(std=weight.shape[-1] ** -0.5)

    def forward(self, x: Float[Tensor, "*batch d_model"], **options) -> Float[Tensor, "*batch d_model"]:
        """Route all tokens of x together, whatever their batch dimensions, and apply their experts."""
        if x.shape[-1] != self.router.shape[1]:
            raise ValueError(f"x must be (..., d_model={self.router.shape[1]}), got {tuple(x.shape)}")
        rows = x.reshape(-1, x.shape[-1])
        self.logits = F.linear(widen(rows), widen(self.router))
        self.routing = route(self.logits, self.top_k, self.method, **self._options(), **options)
        y = expert_mlp(
            rows, self.routing, self.w_gate_up, self.w_down, activation=self.activation, backend=self.backend
        )
        if self.num_shared:
            y = y + F.linear(activate(F.linear(rows, self.shared_gate_up), self.activation), self.shared_down)
        return y.reshape(x.shape)

    def _options(self) -> dict:
        options = dict(self.router_options)
        options.update({name: getattr(self, f"router_{name}") for name in self._tensor_options})
        if self.balancer is not None:
            options["bias"] = self.balancer.bias
        return options

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        num_experts, d_model, d_expert = self.w_down.shape
        return (
            f"d_model={d_model}, d_expert={d_expert}, num_experts={num_experts}, top_k={self.top_k}, "
            f"method={self.method!r}, num_shared={self.num_shared}, activation={self.activation!r}"
        )
