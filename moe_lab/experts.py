"""The experts themselves: one small network each, applied to the rows that a routing sends there.

``loop`` is the specification, to be read; ``grouped`` is the same function on rows sorted by expert, an operator with a
backward pass of its own; ``triton`` is that on the kernels of the folder kernels/.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.activations import activate, check_activation, hidden_columns
from moe_lab.operators import grouped  # noqa: F401  (declares torch.ops.moe_lab.grouped_mlp)
from moe_lab.operators.guards import refuse_tangents
from moe_lab.types import Routing


def expert_mlp(
    x: Float[Tensor, "tokens d_model"],
    routing: Routing,
    w_gate_up: Float[Tensor, "num_experts hidden d_model"],
    w_down: Float[Tensor, "num_experts d_model d_expert"],
    *,
    activation: str = "swiglu",
    backend: str = "auto",
    save: str = "fast",
) -> Float[Tensor, "tokens d_model"]:
    """Apply to each token the experts that its routing names, and add up their weighted answers.

    y[t] = sum over slots s of weights[t, s] * w_down[e] @ act(w_gate_up[e] @ x[t]), e = experts[t, s]; a token with
    empty slots only gets 0. For "swiglu" and "geglu" ``w_gate_up`` is (num_experts, 2*d_expert, d_model) = [gate; up],
    the layout of Transformers; for "relu", "gelu" and "silu" there is no gate and it is (num_experts, d_expert,
    d_model).

    ``backend``: "loop" (the specification), "grouped" (rows sorted by expert; one product an expert that has rows),
    "triton" (the kernels; without a GPU in Triton's interpreter, which is slow and takes float32 and float16 alone), or
    "auto" (grouped; no GPU has timed the kernels yet). Differentiable once in x, both weights and ``routing.weights``;
    "loop" any number of times. Sums over slots run in the wider of the dtypes of x and of the routing weights, on
    "triton" in float32; the result has the dtype of x.

    ``save`` is what "triton" keeps for the backward pass: "fast" the sorted rows of x, the hidden values and the
    activated ones, rows * (d_model + 3 * d_expert) numbers with SwiGLU; "min" x, which is there anyway, and the hidden
    values, rows * 2 * d_expert, from which it computes the others again. Rows are those of the most tiles that any
    routing could need: tokens * top_k and up to a tile more an expert. "grouped" keeps the hidden values, "loop"
    what autograd does.

    Example:
        >>> x = torch.eye(2)
        >>> routing = Routing(torch.tensor([[1], [-1]]), torch.tensor([[0.5], [0.0]]), num_experts=2)
        >>> w_up, w_down = torch.ones(2, 3, 2), torch.ones(2, 2, 3)
        >>> expert_mlp(x, routing, w_up, w_down, activation="relu")
        tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]])

    No value is looked at. A NaN stays with its token, and in gradients with that token's experts; what the dtype cannot
    hold is infinite, and NaN behind the next product. Half-precision products are summed in float32.

    Raises TypeError for dtypes and ValueError for shapes, devices, backends or activations that do not fit, with the
    name of the argument and what it was.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), equation 1; SwiGLU: Shazeer 2020 (arXiv:2002.05202).
    """
    if isinstance(x, Tensor) and autocasts(x.device) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w_gate_up, w_down = x.to(dtype), w_gate_up.to(dtype), w_down.to(dtype)
    check_arguments(x, routing, w_gate_up, w_down, activation)
    backend = "grouped" if check_backend(backend) == "auto" else backend
    return BACKENDS[backend](x, routing, w_gate_up, w_down, activation, check_save(save))


def _loop(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, activation: str, _: str) -> Tensor:
    """Expert by expert, in as few words as possible."""
    y = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, routing.weights.dtype))
    for expert in range(routing.num_experts):
        token, slot = (routing.experts == expert).nonzero(as_tuple=True)
        hidden = activate(x[token] @ w_gate_up[expert].T, activation)
        answer = hidden @ w_down[expert].T
        y = y.index_add(0, token, (answer * routing.weights[token, slot, None]).to(y.dtype))
    return y.to(x.dtype)


def _grouped(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, activation: str, _: str) -> Tensor:
    """One operator, so that ``torch.compile`` and `flop_counter` see one."""
    refuse_tangents("grouped", x, routing.weights, w_gate_up, w_down)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, routing.weights, w_gate_up, w_down))
    return torch.ops.moe_lab.grouped_mlp(x, routing.experts, routing.weights, w_gate_up, w_down, activation, keep)[0]


def _triton(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, activation: str, save: str) -> Tensor:
    """The kernels, imported here: a layer that does not use them needs no Triton."""
    refuse_tangents("triton", x, routing.weights, w_gate_up, w_down)
    from moe_lab.operators import triton_mlp

    return triton_mlp.run(x, routing, w_gate_up, w_down, activation, save)


BACKENDS = {"loop": _loop, "grouped": _grouped, "triton": _triton}
SAVES = ("fast", "min")


def autocasts(device: torch.device) -> bool:
    """Whether autocast knows this kind of device at all (it does not know "meta")."""
    return torch.amp.is_autocast_available(device.type)


def check_backend(backend: str) -> str:
    """Refuse a name that is neither "auto" nor in `BACKENDS`."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "triton":  # before an optimiser or torch.compile imports Triton, for where there is no GPU
        import moe_lab.kernels  # noqa: F401
    return backend


def check_save(save: str) -> str:
    """Refuse a name that is not in `SAVES`."""
    if save not in SAVES:
        raise ValueError(f"save must be one of {', '.join(SAVES)}; got {save!r}")
    return save


def check_arguments(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, activation: str) -> None:
    """Refuse what does not fit together, with names and numbers."""
    if not isinstance(routing, Routing):
        raise TypeError(f"routing must be a Routing, got {type(routing).__name__}")
    for name, value, dims in (("x", x, 2), ("w_gate_up", w_gate_up, 3), ("w_down", w_down, 3)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value).__name__)}"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got the layout {value.layout}")
        if value.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, got shape {tuple(value.shape)}")
        if value.dtype != x.dtype:
            raise TypeError(f"{name} is {value.dtype} and x is {x.dtype}; they must have one dtype")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} and x on {x.device}; they must be on one device")
    if routing.experts.device != x.device:
        raise ValueError(f"routing is on {routing.experts.device} and x on {x.device}; they must be on one device")
    if routing.tokens != x.shape[0]:
        raise ValueError(f"routing has {routing.tokens} tokens and x has {x.shape[0]}")
    num_experts, d_model, d_expert = w_down.shape
    if routing.num_experts != num_experts:
        raise ValueError(f"routing has num_experts={routing.num_experts} and w_down {num_experts}")
    if d_model != x.shape[1]:
        raise ValueError(f"w_down must be (num_experts, d_model={x.shape[1]}, d_expert), got {tuple(w_down.shape)}")
    want = (num_experts, hidden_columns(check_activation(activation), d_expert), d_model)
    if tuple(w_gate_up.shape) != want:
        raise ValueError(f"w_gate_up must be {want} for activation {activation!r}, got {tuple(w_gate_up.shape)}")
