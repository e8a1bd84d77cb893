"""The MoE layer: a router, its experts, and experts that every token shares."""

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_lab.activations import activate, check_activation, hidden_columns
from moe_lab.balancers import Balancer
from moe_lab.checks import check_size, check_whole
from moe_lab.experts import autocasts, check_backend, check_save, expert_mlp
from moe_lab.routers import bias_scale, check_options, find_method, options_of, required_options, route, shared_defaults
from moe_lab.routers.scores import biased_scores, widen
from moe_lab.types import Routing
from moe_lab.wide import WideBuffers


class FeedForward(nn.Module):
    """The dense layer that an MoE is compared with: every token takes the same network.

    y = activation(x @ w_gate_up^T) @ w_down^T, an MoE of one expert without its router. Its weights are drawn as those
    of such an MoE, so that the two start alike.

    Example:
        >>> FeedForward(d_model=8, d_expert=16)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    Raises ValueError for sizes below 1 or an unknown activation.
    """

    def __init__(self, d_model: int, d_expert: int, *, activation: str = "swiglu"):
        super().__init__()
        alike = MoE(d_model, d_expert, num_experts=1, top_k=1, activation=activation)
        self.activation = activation
        self.w_gate_up = nn.Parameter(alike.w_gate_up.detach()[0].clone())
        self.w_down = nn.Parameter(alike.w_down.detach()[0].clone())

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Apply the network to every token."""
        return F.linear(activate(F.linear(x, self.w_gate_up), self.activation), self.w_down)


class MoE(WideBuffers):
    """A Mixture-of-Experts layer: (..., d_model) -> (..., d_model).

    y = sum over the chosen experts of weight * expert(x), plus ``num_shared`` experts that every token visits with
    weight 1 (held as one network num_shared * d_expert wide). With ``mix_shared`` each token weighs the two sums by the
    softmax of a linear layer of its own, DeepSpeed's Residual-MoE. Router logits are computed in float32 or wider.
    ``.routing`` keeps the `Routing` of the last call, and ``.logits`` its router logits, for a loss on them.

    Tensors among ``router_options`` (a bias) become buffers; options that change from call to call (``token_ids``,
    ``generator``) are given to the call. ``balancer`` is a module with a ``.bias``, such as `BiasBalancer` or
    `PriceBalancer`; ``update_balancer()`` lets it learn from the last call, once a step.

    ``eval_method`` routes after ``.eval()``: what assigns a whole batch in training ("balanced", "sinkhorn",
    "expert_choice") cannot route a text as it is written, so such layers are run with "top_k", or "balanced_causal". It
    keeps score, renormalise, scale and bias of the training method, and every other option that it has too.
    ``backend`` and ``save`` are those of `expert_mlp`.

    ``torch.compile(layer, fullgraph=True)`` works with every method; after the second number of tokens it compiles for
    all of them, with backend "triton" for all that take the same tiles. A graph takes no ``generator``. It looks at no
    values, so a NaN is not refused but stays in its token's weights and answer, if any expert gives one; methods that
    assign the whole batch refuse it in a graph too.

    Example:
        >>> layer = MoE(d_model=8, d_expert=16, num_experts=4, top_k=2, renormalise=True)
        >>> layer(torch.randn(2, 5, 8)).shape, layer.routing.load.sum()
        (torch.Size([2, 5, 8]), tensor(20))

    Raises ValueError for sizes below 1, an unknown method, activation or backend, or an option that the method does not
    have.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 2; shared experts: DeepSeekMoE (arXiv:2401.06066), section
    3.2; Residual-MoE: DeepSpeed-MoE (arXiv:2201.05596), section 4.1.
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
        mix_shared: bool = False,
        activation: str = "swiglu",
        balancer: nn.Module | None = None,
        eval_method: str | None = None,
        save: str = "fast",
        **router_options,
    ):
        super().__init__()
        for name, size in (("d_model", d_model), ("d_expert", d_expert), ("num_experts", num_experts)):
            check_size(name, size, 1)
        top_k = check_whole("top_k", top_k, 1, num_experts)
        num_shared = check_size("num_shared", num_shared, 0)
        check_options(method, options_of(find_method(method)), router_options)
        if balancer is not None and "bias" in router_options:
            raise ValueError("balancer and the router option bias both set the selection bias; give one of them")
        self.num_experts, self.top_k, self.method = num_experts, top_k, method
        self.eval_method = method if eval_method is None else eval_method
        self.num_shared, self.activation = num_shared, check_activation(activation)
        self.backend, self.save = check_backend(backend), check_save(save)
        self.router = nn.Parameter(torch.empty(num_experts, d_model))
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, hidden_columns(activation, d_expert), d_model))
        self.w_down = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        if num_shared:
            width = num_shared * d_expert
            self.shared_gate_up = nn.Parameter(torch.empty(hidden_columns(activation, width), d_model))
            self.shared_down = nn.Parameter(torch.empty(d_model, width))
        if mix_shared:
            if not num_shared:
                raise ValueError("mix_shared needs num_shared to be at least 1, got 0")
            self.mixture = nn.Parameter(torch.empty(2, d_model))
        self.mix_shared = mix_shared
        self.balancer = balancer
        self._tensor_options = [name for name, value in router_options.items() if isinstance(value, Tensor)]
        for name in self._tensor_options:
            own = router_options[name].detach().clone()  # the caller's tensor stays the caller's
            self.register_buffer(f"router_{name}", own, persistent=name == "bias")
        self.wide = tuple(f"router_{name}" for name in self._tensor_options if router_options[name].is_floating_point())
        self.router_options = {k: v for k, v in router_options.items() if k not in self._tensor_options}
        self.exchange = None  # how tokens reach experts on other ranks; `parallel.ExpertParallel` sets it
        self.routing: Routing | None = None
        self.logits: Tensor | None = None
        self.reset_parameters()
        if self.eval_method != method:
            self._check_eval_method()
        for trial in {method, self.eval_method}:
            self._try_router(trial)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every weight from a normal distribution with standard deviation 1 / sqrt(its inputs)."""
        for weight in self.parameters(recurse=False):
            weight.normal_(std=weight.shape[-1] ** -0.5)

    def forward(self, x: Float[Tensor, "*batch d_model"], **options) -> Float[Tensor, "*batch d_model"]:
        """Route all tokens of x together, whatever their batch dimensions, and apply their experts.

        Options given here go before those of the constructor: ``layer(x, noise_std=0.0)`` is quiet.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.dim() == 0 or x.shape[-1] != self.router.shape[1]:
            raise ValueError(f"x must be (..., d_model={self.router.shape[1]}), got {tuple(x.shape)}")
        rows = x.reshape(-1, x.shape[-1])
        # autocast would make the logits bfloat16 again
        with torch.autocast(x.device.type, enabled=False) if autocasts(x.device) else contextlib.nullcontext():
            logits = F.linear(widen(rows), widen(self.router))
        method = self.method if self.training else self.eval_method
        routing = route(logits, self.top_k, method, **{**self._options(method), **options})
        options = {"activation": self.activation, "backend": self.backend, "save": self.save}
        apply = expert_mlp if self.exchange is None else self.exchange.expert_mlp
        y = apply(rows, routing, self.w_gate_up, self.w_down, **options)
        if self.num_shared:
            shared = F.linear(activate(F.linear(rows, self.shared_gate_up), self.activation), self.shared_down)
            if self.mix_shared:
                own, others = F.linear(rows, self.mixture).softmax(dim=-1).unsqueeze(-1).unbind(-2)
                y, shared = own * y, others * shared
            y = y + shared
        self.logits, self.routing = logits, routing  # last, so that two threads do not read each other's
        return y.reshape(x.shape)

    def __getstate__(self) -> dict:
        """A copy starts without the last call: its tensors belong to a graph, which cannot be copied."""
        return {**super().__getstate__(), "routing": None, "logits": None}

    @property
    def score(self) -> str:
        """What becomes a weight: the option, or the method's default."""
        return self.router_options.get("score", shared_defaults(find_method(self.method)).get("score"))

    def update_balancer(self, group: dist.ProcessGroup | None = None) -> None:
        """Let the balancer learn from the last call: once a step, after the optimiser's. Without one, does nothing.

        Where the ranks of a ``group`` hold equal parts of a batch, the balancer of each learns from all of it.

        Raises TypeError for a balancer that does not learn, ValueError before the first call.
        """
        if self.balancer is None:
            return
        if not isinstance(self.balancer, Balancer):
            raise TypeError(f"balancer must be a Balancer to learn, got {type(self.balancer).__name__}")
        if self.routing is None:
            raise ValueError("update_balancer needs a call of the layer to learn from")
        scale = bias_scale(self.method, self.router_options)
        self.balancer.learn(self.routing, biased_scores(self.logits.detach(), scale), group)

    def _check_eval_method(self) -> None:
        """One bias for both methods needs one scale."""
        find_method(self.eval_method)
        scales = {m: bias_scale(m, self._options(m)) for m in (self.method, self.eval_method)}
        if self.balancer is not None and len(set(scales.values())) > 1:
            said = " and ".join(f"{scale} under {name!r}" for name, scale in scales.items())
            raise ValueError(
                f"the balancer's bias would be added to {said}; give objective='score', or score='softmax_after_top_k'"
            )

    def _try_router(self, name: str) -> None:
        """Route two tokens of zeros, so that options which can never work are refused now."""
        method, options = find_method(name), self._options(name)
        if self.router.is_meta or any(name not in options for name in required_options(method)):
            return  # token ids, say, come with the call
        bias = options.get("bias")
        options = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
        if isinstance(bias, Tensor):
            options["bias"] = bias.cpu()
        if "generator" in options_of(method) and "generator" not in options:
            options["generator"] = torch.Generator()  # a trial must not draw from anybody's chance
        route(torch.zeros(2, self.num_experts, device="cpu"), self.top_k, name, **options)

    def _options(self, method: str) -> dict:
        options = dict(self.router_options)
        options.update({name: getattr(self, f"router_{name}") for name in self._tensor_options})
        if self.balancer is not None:
            options["bias"] = getattr(self.balancer, "bias", None)
            if not isinstance(options["bias"], Tensor):
                raise TypeError(f"balancer must be a module with a tensor .bias, got {type(self.balancer).__name__}")
        if method != self.method:  # what is weighed, and how, stays as it was trained
            options = {**shared_defaults(find_method(self.method)), **options}
            options = {name: value for name, value in options.items() if name in options_of(find_method(method))}
        return options

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        num_experts, d_model, d_expert = self.w_down.shape
        after = f", eval_method={self.eval_method!r}" if self.eval_method != self.method else ""
        return (
            f"d_model={d_model}, d_expert={d_expert}, num_experts={num_experts}, top_k={self.top_k}, "
            f"method={self.method!r}{after}, num_shared={self.num_shared}, activation={self.activation!r}"
        )
