"""How implementations lay out the rows of w_gate_up, and the way there and back."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from moe_lab.bench.peers.interface import Prepared
from moe_lab.inputs import LayerInputs


class Layout(NamedTuple):
    """Two functions of (num_experts, 2*d_expert, d_model): from [gate; up] to the layout, and back."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def interleave(w_gate_up: Tensor) -> Tensor:
    """From gate 0, gate 1, ..., up 0, up 1, ... to gate 0, up 0, gate 1, up 1, ...

    Example:
        >>> interleave(torch.tensor([[[1], [2], [3], [4]]])).flatten()
        tensor([1, 3, 2, 4])
    """
    return w_gate_up.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def separate(w_gate_up: Tensor) -> Tensor:
    """The way back from `interleave`.

    Example:
        >>> separate(torch.tensor([[[1], [3], [2], [4]]])).flatten()
        tensor([1, 2, 3, 4])
    """
    return w_gate_up.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def swap_halves(w_gate_up: Tensor) -> Tensor:
    """From [gate; up] to [up; gate], and from there back.

    Example:
        >>> swap_halves(torch.tensor([[[1], [2], [3], [4]]])).flatten()
        tensor([3, 4, 1, 2])
    """
    return w_gate_up.unflatten(1, (2, -1)).flip(1).flatten(1, 2)


GATE_UP = Layout(lambda ours: ours, lambda theirs: theirs)
UP_GATE = Layout(swap_halves, swap_halves)
INTERLEAVED = Layout(interleave, separate)


def arrange(
    inputs: LayerInputs,
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    layout: Layout = GATE_UP,
    weights_dtype: torch.dtype | None = None,
) -> Prepared:
    """Prepare a function of (x, weights, w_gate_up, w_down) in a layout; its leaves share memory where they can.

    ``weights_dtype``: what the function wants the routing weights in, if not in what they are.
    """
    x, routing, w_gate_up, w_down = inputs.arguments
    weights = routing.weights.to(weights_dtype or routing.weights.dtype)
    leaves = tuple(t.detach().requires_grad_() for t in (x, weights, layout.there(w_gate_up), w_down))

    def gradients_as_ours(gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        dx, dweights, dw_gate_up, dw_down = gradients
        return {"x": dx, "weights": dweights, "w_gate_up": layout.back(dw_gate_up), "w_down": dw_down}

    return Prepared(partial(function, *leaves), leaves, gradients_as_ours, inputs.dy)
