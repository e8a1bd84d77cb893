"""What an expert does between its two matrix products."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
UNGATED: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ACTIVATIONS = (*GATED, *UNGATED)


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


def check_activation(activation: str) -> str:
    """Refuse a name that is not in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return activation
