"""The experts as two operators of PyTorch's own kind: ``moe_lab::grouped_mlp`` and its backward pass.

    each expert that has rows, chunk by chunk:   gather -> product -> activation -> product
    then each token:                             sum the answers of its slots, weighted

``torch.compile`` and `flop_counter` take an operator whole, without a look inside. So the load may be read in there,
and only there: which experts have rows, and how many, never becomes the shape of a result. What is kept has a row for
each of the tokens * slots assignments, whatever is dropped; rows of empty slots come last, hold 0 and enter no product.

The sorted rows of x are not kept: gathering them a second time costs less than writing them down. Where no gradient can
be asked for, nothing is kept at all.

They are declared by ``torch.library.define``. ``torch.library.custom_op`` would say the same in fewer lines, but its
first call imports ``torch._dynamo`` (two seconds) and with it Triton, after which `moe_lab.kernels` cannot switch
Triton's interpreter on any more.
"""

import torch
from torch import Tensor

from moe_lab.activations import GATED, activate, activate_backward
from moe_lab.operators.chunks import Buffers, StackedGradient, each_chunk, gather_sum, working_dtype
from moe_lab.operators.guards import refuse_second_derivative
from moe_lab.operators.pages import empty_in_large_pages
from moe_lab.types import Routing

torch.library.define(
    "moe_lab::grouped_mlp",
    "(Tensor x, Tensor experts, Tensor weights, Tensor w_gate_up, Tensor w_down, str activation, bool keep)"
    " -> (Tensor y, Tensor hidden, Tensor order, Tensor load)",
)
torch.library.define(
    "moe_lab::grouped_mlp_backward",
    "(Tensor dy, Tensor x, Tensor hidden, Tensor order, Tensor load, Tensor weights, Tensor w_gate_up,"
    " Tensor w_down, str activation, bool[4] wanted)"
    " -> (Tensor dx, Tensor dweights, Tensor dw_gate_up, Tensor dw_down)",
)


def sort_rows(routing: Routing) -> tuple[Tensor, Tensor]:
    """Put all assignments in the order of their experts: each expert's rows become one block.

    Returns ``order`` (rows,), positions in the flattened (tokens, slots) matrix, so that row r belongs to token
    order[r] // slots; and ``load`` (num_experts,), the sizes of the blocks. Inside a block tokens keep their order.

    Example:
        >>> routing = Routing(torch.tensor([[1, 0], [1, -1]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 2)
        >>> sort_rows(routing)
        (tensor([1, 0, 2]), tensor([1, 2]))
    """
    load = routing.load
    order = routing.experts.reshape(-1).argsort(stable=True)
    return order[order.numel() - int(load.sum()) :], load  # empty slots are -1, so they sort to the front


def grouped_mlp(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One product an expert over its block of rows, twice; experts without rows are never touched.

    y[t] = sum over slots s of weights[t, s] * w_down[e] @ act(w_gate_up[e] @ x[t]), e = experts[t, s], as `expert_mlp`
    has it, which checks what comes here.

    Returns ``y`` (tokens, d_model), and what the backward pass wants to have again: ``hidden`` (tokens * slots,
    hidden), sorted by expert, or no row of it without ``keep``; ``order`` (tokens * slots,), the assignment of each
    row, -1 where empty slots left a row over; ``load`` (num_experts,).

    Example:
        >>> experts, weights = torch.tensor([[1], [-1]]), torch.tensor([[0.5], [0.0]])
        >>> w_up, w_down = torch.ones(2, 3, 2), torch.ones(2, 2, 3)
        >>> operator = torch.ops.moe_lab.grouped_mlp
        >>> y, hidden, order, load = operator(torch.eye(2), experts, weights, w_up, w_down, "relu", True)
        >>> y, hidden, order, load
        (tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]]), tensor([[1., 1., 1.],
                [0., 0., 0.]]), tensor([ 0, -1]), tensor([0, 1]))
    """
    routing = Routing.trusted(experts, weights, w_down.shape[0])
    in_order, load = sort_rows(routing)
    count, blocks, work = len(in_order), load.tolist(), working_dtype(x.dtype, x.device)
    order = experts.new_full((experts.numel(),), -1)
    order[:count] = in_order
    token = in_order // max(routing.slots, 1)
    source, kept = x.to(work), len(order) if keep else 0
    hidden = empty_in_large_pages(kept, w_gate_up.shape[1], dtype=x.dtype, device=x.device)
    answers = empty_in_large_pages(count + 1, x.shape[1], dtype=work, device=x.device)

    def step(buffers: Buffers, expert: int, rows: slice, *_: bool) -> None:
        size = rows.stop - rows.start
        gate_up, down = buffers.widen("gate_up", w_gate_up[expert]), buffers.widen("down", w_down[expert])
        here = buffers.like("hidden", hidden[rows]) if keep else buffers.rows("hidden", size, len(gate_up))
        torch.mm(buffers.gather("rows", source, token[rows]), gate_up.T, out=here)
        if keep and here.dtype != hidden.dtype:
            hidden[rows] = here
        inner = activate(here, activation, out=buffers.rows("inner", size, w_down.shape[2]))
        torch.mm(inner, down.T, out=answers[rows])

    each_chunk(blocks, work, x.device, _numbers_a_row(w_gate_up, w_down), step)
    if keep:
        hidden[count:] = 0
    y = gather_sum(*_addressed(answers, order, weights), weights.masked_fill(experts < 0, 0.0))
    return y.to(x.dtype), hidden, order, load.clone()  # the load itself is a part of a longer tensor


def grouped_mlp_backward(
    dy: Tensor,
    x: Tensor,
    hidden: Tensor,
    order: Tensor,
    load: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weights, w_gate_up and w_down, each as far as ``wanted`` asks for it; an unwanted one is empty.

    Indexing a stacked weight inside autograd would give each expert a gradient the size of the whole stack. Here each
    product writes straight into its own part of one gradient.
    """
    need_x, need_weights, need_gate_up, need_down = wanted
    blocks, work = load.tolist(), working_dtype(x.dtype, x.device)
    count = sum(blocks)
    order, token = order[:count], order[:count] // max(weights.shape[1], 1)
    source, dsource = x.to(work), dy.to(work)
    weight = weights.reshape(-1)[order].to(work)[:, None]
    dw_gate_up = StackedGradient(w_gate_up, blocks) if need_gate_up else None
    dw_down = StackedGradient(w_down, blocks) if need_down else None
    drows = empty_in_large_pages(count + 1 if need_x else 0, x.shape[1], dtype=work, device=x.device)
    share = weights.new_empty(count)

    def step(buffers: Buffers, expert: int, rows: slice, *ends: bool) -> None:
        size = rows.stop - rows.start
        here = buffers.widen("hidden", hidden[rows])
        danswers = buffers.gather("danswers", dsource, token[rows])  # before the routing weight
        dhidden = buffers.rows("dhidden", size, w_gate_up.shape[1])
        of_gate = dhidden[:, -w_down.shape[2] :] if activation in GATED else None
        again = need_weights or need_down
        if again:
            inner = activate(here, activation, buffers.rows("inner", size, w_down.shape[2]), of_gate)
        if need_x or need_weights or need_gate_up:
            dinner = buffers.rows("dinner", size, w_down.shape[2])
            torch.mm(danswers, buffers.widen("down", w_down[expert]), out=dinner)
        if need_weights:
            product = torch.mul(dinner, inner, out=buffers.rows("product", *inner.shape))
            torch.sum(product, dim=1, dtype=weights.dtype, out=share[rows])
        if need_down:
            dw_down.add(expert, danswers, inner.mul_(weight[rows]), *ends)
        if need_x or need_gate_up:
            activate_backward(dinner.mul_(weight[rows]), here, activation, dhidden, has_of_gate=again)
        if need_gate_up:
            dw_gate_up.add(expert, dhidden, buffers.gather("rows", source, token[rows]), *ends)
        if need_x:
            torch.mm(dhidden, buffers.widen("gate_up", w_gate_up[expert]), out=drows[rows])

    each_chunk(blocks, work, x.device, 2 * _numbers_a_row(w_gate_up, w_down), step)
    dx = gather_sum(*_addressed(drows, order, weights)).to(x.dtype) if need_x else x.new_empty(0)
    dweights = torch.zeros_like(weights.reshape(-1)).index_copy_(0, order, share).view(weights.shape)
    return (
        dx,
        dweights if need_weights else x.new_empty(0),
        dw_gate_up.whole if need_gate_up else x.new_empty(0),
        dw_down.whole if need_down else x.new_empty(0),
    )


def _numbers_a_row(w_gate_up: Tensor, w_down: Tensor) -> int:
    """Multiply-adds of one row: the numbers of one expert."""
    return w_gate_up[:1].numel() + w_down[:1].numel()


def _addressed(answers: Tensor, order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The answers, whose last row becomes 0, and in which of them each slot finds its own: the last, if it is empty."""
    answers[-1] = 0
    row = order.new_full((weights.numel(),), len(answers) - 1)
    count = len(answers) - 1
    row[order[:count]] = torch.arange(count, device=order.device)
    return answers, row.view(weights.shape)


# not as decorators, which would leave None in the functions' names
torch.library.impl("moe_lab::grouped_mlp", "CompositeExplicitAutograd", grouped_mlp)
torch.library.impl("moe_lab::grouped_mlp_backward", "CompositeExplicitAutograd", grouped_mlp_backward)


@torch.library.register_fake("moe_lab::grouped_mlp")
def _grouped_mlp_shapes(x, experts, weights, w_gate_up, w_down, activation, keep):
    assignments = experts.shape[0] * experts.shape[1]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(assignments if keep else 0, w_gate_up.shape[1]),
        experts.new_empty(assignments),
        experts.new_empty(w_down.shape[0]),
    )


@torch.library.register_fake("moe_lab::grouped_mlp_backward")
def _grouped_mlp_backward_shapes(dy, x, hidden, order, load, weights, w_gate_up, w_down, activation, wanted):
    shapes = (x.shape, weights.shape, w_gate_up.shape, w_down.shape)
    kinds = (x, weights, w_gate_up, w_down)
    return tuple(
        kind.new_empty(shape) if want else x.new_empty(0)
        for kind, shape, want in zip(kinds, shapes, wanted, strict=True)
    )


def _save(ctx, inputs, output):
    x, _, weights, w_gate_up, w_down, activation, _ = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # or zeros as large as hidden would be made for nobody
    ctx.save_for_backward(x, *kept, weights, w_gate_up, w_down)
    ctx.activation = activation


def _derive(ctx, dy, *_):
    refuse_second_derivative("grouped")
    if dy is None:  # nothing came back through y
        return (None,) * 7
    need_x, _, *need_weights = ctx.needs_input_grad[:5]
    wanted = [need_x, *need_weights]
    gradients = torch.ops.moe_lab.grouped_mlp_backward(dy, *ctx.saved_tensors, ctx.activation, wanted)
    dx, *dweights = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return dx, None, *dweights, None, None


torch.library.register_autograd("moe_lab::grouped_mlp", _derive, setup_context=_save)
