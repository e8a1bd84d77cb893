"""FLOPs of one MoE layer in closed form: the sums that `flop_counter` meets when it counts while the layer runs.

One multiply-add is 2 FLOPs, and only matrix products count, as in PyTorch's ``FlopCounterMode``: activations, softmax,
top-k, sorting, gathering rows and adding them up again are left out. A product of (m, k) with (k, n) is 2 * m * k * n.
"""

from dataclasses import dataclass

from moe_lab.activations import hidden_columns
from moe_lab.checks import check_whole


@dataclass(frozen=True)
class PassFlops:
    """FLOPs of one forward and one backward pass, whole numbers; add them up with ``+``.

    Example:
        >>> PassFlops(forward=6, backward=12) + PassFlops(forward=1)
        PassFlops(forward=7, backward=12)
        >>> PassFlops(forward=6, backward=12).total
        18
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward

    def __add__(self, other: "PassFlops") -> "PassFlops":
        if not isinstance(other, PassFlops):
            return NotImplemented
        return PassFlops(self.forward + other.forward, self.backward + other.backward)


def linear_flops(
    rows: int, inputs: int, outputs: int, *, input_grad: bool = True, weight_grad: bool = True
) -> PassFlops:
    """FLOPs of rows (rows, inputs) times one matrix (inputs, outputs).

    Forward, y = x W: 2 * rows * inputs * outputs. Backward has two products, dx = dy W^T and dW = x^T dy. Each takes
    the same three sizes in another order, so each costs as much as the forward pass: twice forward where both are
    wanted. ``input_grad=False`` leaves out dx (the first layer of a model), ``weight_grad=False`` dW (frozen).

    Example:
        >>> linear_flops(10, 4, 3), linear_flops(10, 4, 3, input_grad=False).backward
        (PassFlops(forward=240, backward=480), 240)

    Raises TypeError or ValueError, with the argument's name, for sizes that are no whole numbers or too small.
    """
    check_whole("rows", rows, 0)
    check_whole("inputs", inputs, 1)
    check_whole("outputs", outputs, 1)
    forward = 2 * rows * inputs * outputs
    return PassFlops(forward, forward * (bool(input_grad) + bool(weight_grad)))


def router_flops(
    tokens: int, d_model: int, num_experts: int, *, input_grad: bool = True, weight_grad: bool = True
) -> PassFlops:
    """FLOPs of the router's linear map, 2 * tokens * d_model * num_experts forward; see `linear_flops` for backward.

    Choosing experts by these logits has no product, so it is not in the count.

    Example:
        >>> router_flops(100, 64, 8).forward
        102400

    Raises TypeError or ValueError, with the argument's name, for sizes that are no whole numbers or too small.
    """
    check_whole("tokens", tokens, 0)
    check_whole("d_model", d_model, 1)
    check_whole("num_experts", num_experts, 1)
    return linear_flops(tokens, d_model, num_experts, input_grad=input_grad, weight_grad=weight_grad)


def expert_flops(
    rows: int,
    d_model: int,
    d_expert: int,
    activation: str = "swiglu",
    *,
    input_grad: bool = True,
    weight_grad: bool = True,
    inner_grad: bool | None = None,
) -> PassFlops:
    """FLOPs of the experts for ``rows`` assignments, wherever these went: 6 * rows * d_model * d_expert if gated.

    Each row meets gate, up and down, three matrices of d_model * d_expert numbers; without a gate ("relu", "gelu",
    "silu") up and down, hence 4 instead of 6. The load does not matter, since an expert's products grow in proportion
    to its rows: there are tokens * top_k where nothing is dropped. ``rows`` is what a backend multiplies: a batched one
    (Transformers' "batched_mm") multiplies dropped assignments too, for nothing, which makes tokens * slots.

    Backward there are two products for each matrix, one for its input and one for itself, as in `linear_flops`:

    - ``weight_grad``: d_gate_up and d_down, as much as forward together; False where the experts are frozen (where one
      of the two is, add up two `linear_flops`);
    - ``input_grad``: d_x, back through gate and up; False at the first layer of a model;
    - ``inner_grad``: the gradient between the two, back through down. By default it is there where one of the others
      is, since d_x and d_gate_up begin with it. Give True for the "grouped" backend where nothing but the gradient of
      the routing weights is wanted: it keeps no answers, and finds that gradient from this product (the "loop" keeps
      them, and needs none).

    Example:
        >>> expert_flops(200, 64, 128)
        PassFlops(forward=9830400, backward=19660800)
        >>> expert_flops(200, 64, 128, "relu").forward
        6553600
        >>> expert_flops(200, 64, 128, weight_grad=False).backward
        9830400

    Raises TypeError or ValueError, with the argument's name, for sizes that are no whole numbers or too small, for an
    unknown activation, or for ``inner_grad=False`` beside a gradient that begins with it.
    """
    check_whole("rows", rows, 0)
    check_whole("d_model", d_model, 1)
    check_whole("d_expert", d_expert, 1)
    needed = bool(input_grad or weight_grad)
    if inner_grad is False and needed:
        raise ValueError("inner_grad must not be False with input_grad or weight_grad: d_x and d_gate_up begin with it")
    columns = hidden_columns(activation, d_expert)
    first = linear_flops(rows, d_model, columns, input_grad=input_grad, weight_grad=weight_grad)
    second = linear_flops(rows, d_expert, d_model, input_grad=inner_grad or needed, weight_grad=weight_grad)
    return first + second


def layer_flops(
    tokens: int,
    d_model: int,
    d_expert: int,
    num_experts: int,
    top_k: int,
    num_shared: int = 0,
    activation: str = "swiglu",
    rows: int | None = None,
    *,
    input_grad: bool = True,
    weight_grad: bool = True,
) -> dict[str, PassFlops]:
    """FLOPs of an `MoE` layer by component: "router", "experts" and "shared_experts".

    Router: tokens * num_experts inner products of d_model. Experts: `expert_flops` of ``rows`` assignments, by default
    tokens * top_k; where assignments were dropped give ``int(layer.routing.load.sum())``. Shared experts: one network
    num_shared * d_expert wide that every token visits, so as much as tokens * num_shared more rows. ``num_experts``
    costs the router alone. ``weight_grad=False`` says that all weights are frozen, the router's too.

    Example:
        >>> flops = layer_flops(tokens=100, d_model=64, d_expert=128, num_experts=8, top_k=2)
        >>> {component: count.forward for component, count in flops.items()}
        {'router': 102400, 'experts': 9830400, 'shared_experts': 0}
        >>> sum(flops.values(), PassFlops()).total
        29798400

    Raises TypeError or ValueError, with the argument's name, for sizes that are no whole numbers or out of range, or
    for an unknown activation.
    """
    check_whole("tokens", tokens, 0)
    check_whole("num_experts", num_experts, 1)
    check_whole("top_k", top_k, 1, num_experts)
    check_whole("num_shared", num_shared, 0)
    asked = tokens * top_k
    rows = asked if rows is None else check_whole("rows", rows, 0, tokens * num_experts)
    grads = {"input_grad": input_grad, "weight_grad": weight_grad}
    return {
        "router": router_flops(tokens, d_model, num_experts, **grads),
        "experts": expert_flops(rows, d_model, d_expert, activation, **grads),
        "shared_experts": expert_flops(tokens * num_shared, d_model, d_expert, activation, **grads),
    }


def dense_flops(
    tokens: int,
    d_model: int,
    d_expert: int,
    top_k: int,
    num_shared: int = 0,
    activation: str = "swiglu",
    *,
    input_grad: bool = True,
    weight_grad: bool = True,
) -> PassFlops:
    """FLOPs of the dense layer that an MoE layer is measured against: d_ff = (top_k + num_shared) * d_expert.

    To the FLOP those of the experts and shared experts, if nothing is dropped; the router is what MoE pays on top.

    Example:
        >>> dense_flops(100, 64, 128, top_k=2) == layer_flops(100, 64, 128, num_experts=8, top_k=2)["experts"]
        True

    Raises TypeError or ValueError, with the argument's name, for sizes that are no whole numbers or too small, or for
    an unknown activation.
    """
    check_whole("tokens", tokens, 0)
    check_whole("d_expert", d_expert, 1)
    check_whole("top_k", top_k, 1)
    check_whole("num_shared", num_shared, 0)
    d_ff = (top_k + num_shared) * d_expert
    return expert_flops(tokens, d_model, d_ff, activation, input_grad=input_grad, weight_grad=weight_grad)
