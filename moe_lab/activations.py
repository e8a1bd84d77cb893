"""What an expert does between its two matrix products."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
UNGATED: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ACTIVATIONS = (*GATED, *UNGATED)

# what PyTorch itself calls, writing into a tensor that is there: (input, out)
_INTO: dict[Callable[[Tensor], Tensor], Callable[..., Tensor]] = {
    F.silu: torch.ops.aten.silu.out,
    F.gelu: torch.ops.aten.gelu.out,
    F.relu: lambda hidden, out: torch.clamp_min(hidden, 0, out=out),
}
# and on the way back: (gradient of the result, input) -> gradient of the input
_BACKWARD: dict[Callable[[Tensor], Tensor], Callable[..., Tensor]] = {
    F.silu: torch.ops.aten.silu_backward.grad_input,
    F.gelu: torch.ops.aten.gelu_backward.grad_input,
    F.relu: lambda gradient, hidden, grad_input: torch.ops.aten.threshold_backward.grad_input(
        gradient, hidden, 0, grad_input=grad_input
    ),
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


def activate_into(out: Tensor, parts: Sequence[Tensor], activation: str, of_gate: Tensor | None = None) -> Tensor:
    """Write `activate` of ``parts``, which are (gate, up) or (up,), into ``out``.

    For operators, without autograd. A gated activation leaves silu(gate) or gelu(gate) in ``of_gate``, if given.

    Example:
        >>> import torch
        >>> gate, up = torch.tensor([[0.0]]), torch.tensor([[2.0]])
        >>> activate_into(torch.empty(1, 1), (gate, up), "swiglu")
        tensor([[0.]])
    """
    if check_activation(activation) in UNGATED:
        return _INTO[UNGATED[activation]](*parts, out=out)
    gate, up = parts
    of_gate = _INTO[GATED[activation]](gate, out=out if of_gate is None else of_gate)
    return torch.mul(of_gate, up, out=out)


def activate_backward(
    out: Sequence[Tensor], dinner: Tensor, parts: Sequence[Tensor], activation: str, has_of_gate: bool = False
) -> Sequence[Tensor]:
    """From ``dinner``, the gradient of `activate`, to those of its ``parts``, into ``out``; ``dinner`` is lost.

    For operators, without autograd. With ``has_of_gate`` the later part of ``out`` holds already what `activate_into`
    left of the gate.

    Example:
        >>> import torch
        >>> gate, up, dinner = (torch.tensor([[value]]) for value in (0.0, 2.0, 5.0))
        >>> out = torch.empty(1, 1), torch.empty(1, 1)
        >>> activate_backward(out, dinner, (gate, up), "swiglu")  # silu'(0) is 1/2
        (tensor([[5.]]), tensor([[0.]]))
    """
    if check_activation(activation) in UNGATED:
        _BACKWARD[UNGATED[activation]](dinner, *parts, grad_input=out[0])
        return out
    (gate, up), (dgate, dup) = parts, out
    function = GATED[activation]
    (dup if has_of_gate else _INTO[function](gate, out=dup)).mul_(dinner)
    _BACKWARD[function](dinner.mul_(up), gate, grad_input=dgate)
    return out


def check_activation(activation: str) -> str:
    """Refuse a name that is not in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return activation
