"""What an expert does between its two matrix products."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
UNGATED: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ACTIVATIONS = (*GATED, *UNGATED)

# what autograd itself calls on the way back: (gradient of the result, input) -> gradient of the input
_BACKWARD: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    F.silu: torch.ops.aten.silu_backward,
    F.gelu: torch.ops.aten.gelu_backward,
    F.relu: lambda gradient, hidden: torch.ops.aten.threshold_backward(gradient, hidden, 0),
}


def hidden_columns(activation: str, d_expert: int) -> int:
    """Columns of the first product: gate and up for a gated activation, otherwise up alone.

    Example:
        >>> hidden_columns("swiglu", 128), hidden_columns("relu", 128)
        (256, 128)
    """
    return 2 * d_expert if check_activation(activation) in GATED else d_expert


def activate(hidden: Tensor, activation: str) -> Tensor:
    """swiglu: silu(gate) * up; geglu: gelu(gate) * up, with [gate; up] side by side; else the function itself.

    Example:
        >>> import torch
        >>> activate(torch.tensor([[0.0, 2.0]]), "swiglu"), activate(torch.tensor([[-1.0, 2.0]]), "relu")
        (tensor([[0.]]), tensor([[0., 2.]]))
    """
    if check_activation(activation) in UNGATED:
        return UNGATED[activation](hidden)
    if hidden.shape[-1] % 2:
        raise ValueError(f"hidden must have an even last dimension, [gate; up], got {tuple(hidden.shape)}")
    gate, up = hidden.chunk(2, dim=-1)
    return GATED[activation](gate) * up


def activate_backward(dinner: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """From the gradient of ``activate(hidden, activation)`` to that of ``hidden``: for operators, without autograd.

    Example:
        >>> import torch
        >>> activate_backward(torch.tensor([[5.0]]), torch.tensor([[0.0, 2.0]]), "swiglu")  # silu'(0) is 1/2
        tensor([[5., 0.]])
    """
    if check_activation(activation) in UNGATED:
        return _BACKWARD[UNGATED[activation]](dinner, hidden)
    gate, up = hidden.chunk(2, dim=-1)
    function = GATED[activation]
    return torch.cat((_BACKWARD[function](dinner * up, gate), dinner * function(gate)), dim=-1)


def check_activation(activation: str) -> str:
    """Refuse a name that is not in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return activation
