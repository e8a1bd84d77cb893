"""The experts on the Triton kernels: ``moe_lab::triton_mlp`` with its backward pass, ``moe_lab::decode_mlp``.

    forward    sort_tokens -> permute -> grouped_up -> grouped_gemm -> combine
    backward   permute(dy) -> grouped_gemm(w_down) -> activation_backward -> grouped_weight_gradient for w_down
               -> grouped_weight_gradient for w_gate_up -> grouped_gemm(w_gate_up) -> combine

Nothing waits for the GPU: buffers have the size of the worst routing, and how many rows are in use is known on the
device alone. Which kernels run, and with which tiles, follows from shapes; so a CUDA graph holds for every routing, and
``torch.compile`` makes a graph for each range of sizes that `make_plan` tells apart: five at most with ``save="fast"``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from moe_lab.accounting.counter import count_assignments, mlp_backward_flops, register_flops
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.activation_backward import activation_backward
from moe_lab.kernels.combine import combine
from moe_lab.kernels.decode_down import decode_down
from moe_lab.kernels.decode_up import decode_up
from moe_lab.kernels.grouped_gemm import grouped_gemm
from moe_lab.kernels.grouped_up import grouped_up
from moe_lab.kernels.grouped_weight_gradient import grouped_weight_gradient
from moe_lab.kernels.permute import permute
from moe_lab.kernels.sort_tokens import RowTable, most_tiles, sort_tokens
from moe_lab.operators.guards import launching, refuse_second_derivative
from moe_lab.types import Routing

BLOCKS = (16, 32, 64, 128)
GATHER_BELOW = 256  # rows an expert: a tile more of padding weighs more than gathering through pointers
DECODE_UP_TO = 64  # assignments

torch.library.define(
    "moe_lab::triton_mlp",
    "(Tensor x, Tensor experts, Tensor weights, Tensor w_gate_up, Tensor w_down, str activation, int block_m,"
    " bool gather, str save)"
    " -> (Tensor y, Tensor rows, Tensor hidden, Tensor inner, Tensor load, Tensor start, Tensor assignment_row,"
    " Tensor row_assignment, Tensor tile_expert, Tensor num_tiles)",
)
torch.library.define(
    "moe_lab::triton_mlp_backward",
    "(Tensor dy, Tensor source, bool permuted, Tensor hidden, Tensor inner, Tensor[] table, Tensor weights,"
    " Tensor w_gate_up, Tensor w_down, str activation, int block_m, bool[4] wanted)"
    " -> (Tensor dx, Tensor dweights, Tensor dw_gate_up, Tensor dw_down)",
)
torch.library.define(
    "moe_lab::decode_mlp",
    "(Tensor x, Tensor experts, Tensor weights, Tensor w_gate_up, Tensor w_down, str activation) -> Tensor",
)


class Plan(NamedTuple):
    """Which kernels serve a shape: ``decode`` without sorting; else tiles of ``block_m`` rows, gathered or permuted."""

    decode: bool
    block_m: int
    gather: bool


def make_plan(assignments: int, num_experts: int, save: str) -> Plan:
    """Choose by rows an expert, r = assignments / num_experts, and by ``save``: "fast", "min", or "nothing" to learn.

    Tiles have the next power of two of r rows, 16 to 128. Without a gradient, up to 64 assignments that find an expert
    for themselves, or share it with one other, are decoded. Rows are gathered for r below 256, unless they are to be
    kept. The limits are estimates from tile padding and bytes (LOG.md); no GPU has confirmed them yet.

    Example:
        >>> make_plan(8, 128, "nothing"), make_plan(4096 * 8, 128, "fast")
        (Plan(decode=True, block_m=16, gather=True), Plan(decode=False, block_m=128, gather=False))
    """
    # a chain of comparisons: torch.compile keeps it as ranges of sizes, and not as one size
    block_m = next((block for block in BLOCKS if assignments <= block * num_experts), BLOCKS[-1])
    decode = save == "nothing" and assignments <= DECODE_UP_TO and assignments <= 2 * num_experts
    return Plan(decode, block_m, save != "fast" and assignments < GATHER_BELOW * num_experts)


def run(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, activation: str, save: str) -> Tensor:
    """`expert_mlp` on the kernels that `make_plan` chooses; nothing is saved where no gradient can be asked for."""
    if routing.weights.dtype == torch.float64:
        raise TypeError('routing.weights must be float32 or narrower for backend "triton", got torch.float64')
    leaves = (x, routing.weights, w_gate_up, w_down)
    if not (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)):
        save = "nothing"
    arguments = (x, routing.experts, routing.weights, w_gate_up, w_down, activation)
    plan = make_plan(routing.experts.shape[0] * routing.experts.shape[1], routing.num_experts, save)
    if plan.decode:
        return torch.ops.moe_lab.decode_mlp(*arguments)
    return torch.ops.moe_lab.triton_mlp(*arguments, plan.block_m, plan.gather, save)[0]


def decode_mlp(
    x: Tensor, experts: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor, activation: str
) -> Tensor:
    """Two launches for a handful of tokens, without sorting; for inference alone."""
    with launching(x, INTERPRET):
        return decode_down(decode_up(x, w_gate_up, experts, weights, activation), w_down, experts)


def triton_mlp(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    activation: str,
    block_m: int,
    gather: bool,
    save: str,
) -> tuple[Tensor, ...]:
    """The answers y (tokens, d_model), and what the backward pass wants to have again.

    ``save="min"`` keeps ``hidden`` (rows, hidden) and the `RowTable`, whose fields come last; "fast" keeps ``rows``
    (rows, d_model), if they were permuted, and ``inner`` (rows, d_expert) as well. What is not kept is empty.
    """
    learning, kept = save != "nothing", save == "fast"
    with launching(x, INTERPRET):
        table = sort_tokens(experts, w_down.shape[0], block_m)
        rows = x if gather else permute(x, table, block_m)
        inner, hidden = grouped_up(rows, w_gate_up, weights, table, block_m, activation, gather, store_hidden=learning)
        y = combine(grouped_gemm(inner, w_down, table.tile_expert, table.num_tiles, block_m), table.assignment_row)
    return y, rows if kept and not gather else x.new_empty(0), hidden, inner if kept else x.new_empty(0), *table


def triton_mlp_backward(
    dy: Tensor,
    source: Tensor,
    permuted: bool,
    hidden: Tensor,
    inner: Tensor,
    table: list[Tensor],
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    activation: str,
    block_m: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weights, w_gate_up and w_down, each as far as ``wanted`` asks for it; an unwanted one is empty.

    ``source`` is the permuted rows, or x itself; an empty ``inner`` is computed again from ``hidden``.
    """
    dx, dweights, dw_gate_up, dw_down = (dy.new_empty(0) for _ in wanted)
    need_x, need_weights, need_gate_up, need_down = wanted
    table = RowTable(*table)
    tiles = table.tile_expert, table.num_tiles, block_m
    again = recomputes(inner, wanted)
    with launching(dy, INTERPRET):
        danswers = permute(dy, table, block_m)
        if need_x or need_weights or need_gate_up or again:
            dinner = grouped_gemm(danswers, w_down, *tiles, transposed=True)
            dhidden, found, a = activation_backward(dinner, hidden, weights, table, block_m, activation, store_a=again)
            dweights = found.to(weights.dtype) if need_weights else dweights
            inner = a if again else inner
            del dinner, a
        if need_down:
            dw_down = grouped_weight_gradient(danswers, inner, table.start, block_m)
        del danswers, inner
        if need_gate_up:
            rows = source if permuted else permute(source, table, block_m)
            dw_gate_up = grouped_weight_gradient(dhidden, rows, table.start, block_m)
            del rows
        if need_x:
            dx = combine(grouped_gemm(dhidden, w_gate_up, *tiles, transposed=True), table.assignment_row)
    return dx, dweights, dw_gate_up, dw_down


def recomputes(inner: Tensor, wanted: list[bool]) -> bool:
    """Whether the gradient of w_down needs inner values that were not kept."""
    return wanted[3] and inner.dim() == 1


# not as decorators, which would leave None in the functions' names
for operator in (triton_mlp, triton_mlp_backward, decode_mlp):
    torch.library.impl(f"moe_lab::{operator.__name__}", "CompositeExplicitAutograd", operator)


@torch.library.register_fake("moe_lab::decode_mlp")
def _decode_mlp_shape(x, experts, weights, w_gate_up, w_down, activation):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("moe_lab::triton_mlp")
def _triton_mlp_shapes(x, experts, weights, w_gate_up, w_down, activation, block_m, gather, save):
    num_experts, d_model, d_expert = w_down.shape
    tiles = most_tiles(experts.shape[0] * experts.shape[1], num_experts, block_m)
    rows, kept = tiles * block_m, save == "fast"

    def table(*shape):
        return experts.new_empty(shape, dtype=torch.int32)

    return (
        x.new_empty(x.shape[0], d_model),
        x.new_empty(rows, d_model) if kept and not gather else x.new_empty(0),
        x.new_empty(0 if save == "nothing" else rows, w_gate_up.shape[1]),
        x.new_empty(rows, d_expert) if kept else x.new_empty(0),
        table(num_experts),
        table(num_experts + 1),
        table(*experts.shape),
        table(rows),
        table(tiles),
        table(1),
    )


@torch.library.register_fake("moe_lab::triton_mlp_backward")
def _triton_mlp_backward_shapes(
    dy, source, permuted, hidden, inner, table, weights, w_gate_up, w_down, activation, block_m, wanted
):
    shapes = ((weights.shape[0], w_down.shape[1]), weights.shape, w_gate_up.shape, w_down.shape)
    kinds = (dy, weights, w_gate_up, w_down)
    return tuple(
        kind.new_empty(shape) if want else dy.new_empty(0)
        for kind, shape, want in zip(kinds, shapes, wanted, strict=True)
    )


def _save(ctx, inputs, output):
    x, _, weights, w_gate_up, w_down, ctx.activation, ctx.block_m, gather, save = inputs
    _, rows, hidden, inner, *table = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros as large as rows and hidden would be made for nobody
    _, _, _, need_gate_up, need_down, *_ = ctx.needs_input_grad
    ctx.permuted = save == "fast" and not gather and need_gate_up
    inner = inner if need_down else x.new_empty(0)  # a frozen matrix has no use for it
    ctx.save_for_backward(rows if ctx.permuted else x, hidden, inner, *table, weights, w_gate_up, w_down)


def _derive(ctx, dy, *_):
    refuse_second_derivative("triton")
    if dy is None:  # nothing came back through y
        return (None,) * 9
    source, hidden, inner, *table, weights, w_gate_up, w_down = ctx.saved_tensors
    need_x, _, *need_weights = ctx.needs_input_grad[:5]
    wanted = [need_x, *need_weights]
    gradients = torch.ops.moe_lab.triton_mlp_backward(
        dy, source, ctx.permuted, hidden, inner, table, weights, w_gate_up, w_down, ctx.activation, ctx.block_m, wanted
    )
    dx, *dweights = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return dx, None, *dweights, None, None, None, None


torch.library.register_autograd("moe_lab::triton_mlp", _derive, setup_context=_save)


@register_flops("moe_lab::triton_mlp_backward")
def _backward_flops(
    dy, source, permuted, hidden, inner, table, weights, w_gate_up, w_down, act, block_m, wanted
) -> int:
    rows = count_assignments(RowTable(*table).assignment_row)
    return mlp_backward_flops(rows, w_gate_up, w_down, wanted, recomputes(inner, wanted))
