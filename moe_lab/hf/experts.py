"""The experts of Transformers' models on this library's operators: one function for every family of the interface.

Plain experts (gated or not, without bias, with an activation that `expert_mlp` knows) run on it; all others as two
grouped products with the model's own words between them: biases, a gate of its own, a norm behind.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation
from transformers.integrations.moe import _default_apply_gate

from moe_lab.experts import expert_mlp
from moe_lab.operators.grouped import sort_rows
from moe_lab.operators.grouped_linear import grouped_linear
from moe_lab.types import Routing

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SILU, RELU = type(ACT2FN["silu"]), type(ACT2FN["relu"])


def run_experts(
    experts: nn.Module,
    hidden_states: Float[Tensor, "tokens d_model"],
    top_k_index: Shaped[Tensor, "tokens slots"],
    top_k_weights: Float[Tensor, "tokens slots"],
) -> Float[Tensor, "tokens d_model"]:
    """What Transformers calls in the place of ``experts.forward``: the same function, and the same gradients.

    An index of num_experts or more is a slot whose expert is elsewhere (Transformers' own expert parallelism): empty.

    Raises ValueError for experts that are not as the interface has them.
    """
    w_up, w_down = weights_of(experts)
    routing = as_routing(top_k_index, top_k_weights, experts.num_experts)
    activation = plain_activation(experts)
    if activation is not None:
        return expert_mlp(hidden_states, routing, w_up, w_down, activation=activation)
    return _in_its_own_words(experts, hidden_states, routing, w_up, w_down)


def weights_of(experts: nn.Module) -> tuple[Tensor, Tensor]:
    """Both weights of experts behind the interface, (num_experts, out, in) whichever way they are stored.

    Raises ValueError for experts whose weights have other names, are no stacks, or need scales (float8, packed bits).
    """
    names = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    weights = [getattr(experts, name, None) for name in names]
    for name, weight in zip(names, weights, strict=True):
        if not isinstance(weight, Tensor) or weight.dim() != 3 or weight.dtype not in DTYPES:
            found = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(
                f"{type(experts).__name__}.{name} must be one float tensor (num_experts, out, in) of "
                f"{', '.join(map(str, DTYPES))}; got {found}. This model's experts cannot be served"
            )
    return tuple(weight.mT if experts.is_transposed else weight for weight in weights)


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that hold experts behind Transformers' interface, by their paths.

    Example:
        >>> experts_of(nn.Linear(2, 2))
        {}
    """
    return {path: part for path, part in model.named_modules() if hasattr(part, "_is_expert_parallel")}


def as_routing(top_k_index: Tensor, top_k_weights: Tensor, num_experts: int) -> Routing:
    """A `Routing` of Transformers' two tensors; slots of absent experts are empty.

    Example:
        >>> as_routing(torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.5]]), num_experts=2).experts
        tensor([[ 0, -1]])
    """
    absent = top_k_index >= num_experts
    return Routing.trusted(
        top_k_index.long().masked_fill(absent, -1), top_k_weights.masked_fill(absent, 0.0), num_experts
    )


def plain_activation(experts: nn.Module) -> str | None:
    """The name that `expert_mlp` has for what these experts do between their products; None if it has none."""
    if experts.has_bias or experts.has_post_expert_norm:
        return None
    if experts.has_gate and (type(experts)._apply_gate is not _default_apply_gate or not experts.is_concatenated):
        return None
    act = experts.act_fn
    if isinstance(act, SILU):
        return "swiglu" if experts.has_gate else "silu"
    if isinstance(act, GELUActivation) and act.act is nn.functional.gelu:
        return "geglu" if experts.has_gate else "gelu"
    return "relu" if isinstance(act, RELU) and not experts.has_gate else None


def _in_its_own_words(experts: nn.Module, x: Tensor, routing: Routing, w_up: Tensor, w_down: Tensor) -> Tensor:
    order, load = sort_rows(routing)
    token = order // max(routing.slots, 1)
    hidden = grouped_linear(x[token], w_up.to(x.dtype), load)
    if experts.has_bias:
        expert = torch.repeat_interleave(load, output_size=len(order))
        hidden = hidden + (experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias)[expert]
    inner = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
    answers = grouped_linear(inner.to(x.dtype), w_down.to(x.dtype), load)
    if experts.has_bias:
        answers = answers + experts.down_proj_bias[expert]
    if experts.has_post_expert_norm:
        answers = experts.post_expert_norm(answers)
    weighted = answers * routing.weights.reshape(-1)[order, None]
    wide = torch.promote_types(x.dtype, weighted.dtype)
    return x.new_zeros(x.shape, dtype=wide).index_add(0, token, weighted.to(wide)).to(x.dtype)
