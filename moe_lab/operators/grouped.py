"""The experts as two operators of PyTorch's own kind: ``moe_lab::grouped_mlp`` and its backward pass.

    each expert that has rows, chunk by chunk:        gather ...
        its hidden units, block by block:                 product -> activation -> product, added up
    then the chunk's tokens:                              ... add their rows, weighted, when it is the chunk's turn

``torch.compile`` and `flop_counter` take an operator whole, without a look inside. So the load may be read in there,
and only there: which experts have rows, and how many, never becomes the shape of a result. What is kept has a row for
each of the tokens * slots assignments, whatever is dropped; rows of empty slots come last, hold 0 and enter no product.

The sorted rows of x are not kept: gathering them a second time costs less than writing them down. Where no gradient can
be asked for, nothing is kept at all.

They are declared by ``torch.library.define``. ``torch.library.custom_op`` would say the same in fewer lines, but its
first call imports ``torch._dynamo`` (two seconds) and with it Triton, after which `moe_lab.kernels` cannot switch
Triton's interpreter on any more.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lab.activations import GATED, activate_backward, activate_into
from moe_lab.operators.chunks import (
    HALF_PRECISIONS,
    Block,
    Buffers,
    Chunk,
    Plan,
    equal_blocks,
    hidden_blocks,
    working_dtype,
)
from moe_lab.operators.guards import refuse_second_derivative
from moe_lab.operators.pages import empty_in_large_pages
from moe_lab.operators.products import multiply_into
from moe_lab.operators.sums import StackedGradient, TokenSum
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
    load, experts = routing.load, routing.experts.reshape(-1)
    if experts.device.type == "cpu" and routing.num_experts <= 2**15:  # NumPy sorts short integers digit by digit
        order = torch.from_numpy(experts.to(torch.int16).numpy().argsort(kind="stable"))
    else:
        order = experts.argsort(stable=True)
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
    count, work = len(in_order), working_dtype(x.dtype, x.device)
    order = experts.new_full((experts.numel(),), -1)
    order[:count] = in_order
    token, weight = in_order // max(routing.slots, 1), _weight_of_rows(weights, in_order)
    hidden = empty_in_large_pages(len(order) if keep else 0, w_gate_up.shape[1], dtype=x.dtype, device=x.device)
    plan = Plan(load.tolist(), _numbers_a_row(w_gate_up, w_down), x.device, w_down.shape[2], forward=work)
    y = TokenSum(len(x), x.shape[1], work, weights.dtype, plan)
    blocks, in_place = _blocks_of(activation, w_down, work, forward=True), keep and work == x.dtype
    at_once = work in HALF_PRECISIONS  # answers that add up from block to block would be rounded each time

    def step(buffers: Buffers, chunk: Chunk) -> None:
        gate_up, down, tokens = w_gate_up[chunk.expert], w_down[chunk.expert], token[chunk.rows]
        answers = y.place(chunk)
        rows = buffers.gather("rows", x, tokens, into=answers if at_once else None)  # then they come last
        inners = buffers.rows("inner", chunk.size, chunk.width) if at_once else None
        for block in blocks(chunk):
            kept = block.pieces(hidden[chunk.rows], 1) if keep else []
            here = kept
            if not in_place:
                here = block.pieces_of_buffer(buffers.rows("hidden", chunk.size, block.kinds * block.width))
            for piece, matrix in zip(here, block.pieces(gate_up, 0), strict=True):
                multiply_into(piece, rows, buffers.widen("matrix", matrix).T)
            if keep and not in_place:
                for piece, into in zip(here, kept, strict=True):
                    into.copy_(piece)
            if at_once:
                at = block.start - chunk.units.start
                activate_into(inners[:, at : at + block.width], block.parts(here), activation)
            else:
                inner = activate_into(buffers.rows("inner", chunk.size, block.width), block.parts(here), activation)
                matrix = buffers.widen("matrix", block.pieces(down, 1)[0])
                multiply_into(answers, inner, matrix.T, add=block.start > chunk.units.start)
        if at_once:
            multiply_into(answers, inners, down[:, chunk.units].T)
        y.add(chunk, answers, tokens, weight[chunk.rows])

    plan.run(step, work)
    if keep:
        hidden[count:] = 0
    load = load.clone()  # it was a part of a longer tensor
    return y.rounded(x.dtype, by_one_core=keep), hidden, order, load


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
    work, slots = working_dtype(x.dtype, x.device), weights.shape[1]
    plan = Plan(load.tolist(), 2 * _numbers_a_row(w_gate_up, w_down), x.device, w_down.shape[2])
    order = order[: sum(plan.load)]
    token, weight = order // max(slots, 1), _weight_of_rows(weights, order).to(work)
    dw_gate_up = StackedGradient(w_gate_up, plan) if need_gate_up else None
    dw_down = StackedGradient(w_down, plan) if need_down else None
    dx = TokenSum(len(x), x.shape[1], work, work, plan) if need_x else None
    blocks, again = _blocks_of(activation, w_down, work, forward=False), need_weights or need_down
    share = torch.zeros(2, len(order), dtype=torch.promote_types(work, weights.dtype), device=x.device)

    def step(buffers: Buffers, chunk: Chunk) -> None:
        expert, tokens, scale = chunk.expert, token[chunk.rows], weight[chunk.rows]
        gate_up, down = w_gate_up[expert], w_down[expert]
        danswers = buffers.gather("danswers", dy, tokens)  # before the routing weight
        rows = buffers.gather("rows", x, tokens) if need_gate_up else None
        drows = dx.place(chunk) if need_x else None
        for block in blocks(chunk):
            here = block.pieces(hidden[chunk.rows], 1)
            here = [buffers.widen(f"hidden {number}", piece) for number, piece in enumerate(here)]
            dhere = block.pieces_of_buffer(buffers.rows("dhidden", chunk.size, block.kinds * block.width))
            parts, dparts = block.parts(here), block.parts(dhere)
            if again:
                inner, of_gate = buffers.rows("inner", chunk.size, block.width), dparts[-1]
                activate_into(inner, parts, activation, of_gate if activation in GATED else None)
            if need_x or need_weights or need_gate_up:
                dinner = buffers.rows("dinner", chunk.size, block.width)
                multiply_into(dinner, danswers, buffers.widen("matrix", block.pieces(down, 1)[0]))
            if need_weights:
                product = torch.mul(dinner, inner, out=dparts[0])  # where nothing is yet
                share[chunk.part, chunk.rows].add_(product.sum(dim=1, dtype=share.dtype))
            if need_down:
                into = block.pieces(dw_down.whole[expert], 1)[0]
                dw_down.add(chunk, danswers, inner.mul_(scale), into, buffers)
            if need_x or need_gate_up:
                activate_backward(dparts, dinner.mul_(scale), parts, activation, has_of_gate=again)
            if need_gate_up:
                for dpiece, into in zip(dhere, block.pieces(dw_gate_up.whole[expert], 0), strict=True):
                    dw_gate_up.add(chunk, dpiece, rows, into, buffers)
            if need_x:
                for number, (dpiece, matrix) in enumerate(zip(dhere, block.pieces(gate_up, 0), strict=True)):
                    later = number > 0 or block.start > chunk.units.start
                    multiply_into(drows, dpiece, buffers.widen("matrix", matrix), add=later)
        if need_x:
            dx.add(chunk, drows, tokens)

    plan.run(step, work)
    shares = share.sum(0).to(weights.dtype)
    dweights = torch.zeros_like(weights.reshape(-1)).index_copy_(0, order, shares).view(weights.shape)
    return (
        dx.rounded(x.dtype) if need_x else x.new_empty(0),
        dweights if need_weights else x.new_empty(0),
        dw_gate_up.whole if need_gate_up else x.new_empty(0),
        dw_down.whole if need_down else x.new_empty(0),
    )


def _blocks_of(activation: str, w_down: Tensor, work: torch.dtype, forward: bool) -> Callable[[Chunk], list[Block]]:
    """The blocks of hidden units for a chunk on a CPU; matrices are widened block by block, if at all.

    In half precision sums of the way back would be rounded from block to block, so there is one block alone.
    """
    _, d_model, d_expert = w_down.shape
    kinds, columns = 1 + (activation in GATED), d_model if work != w_down.dtype else 0
    if w_down.device.type != "cpu" or (work in HALF_PRECISIONS and not forward):
        return lambda chunk: equal_blocks(chunk, d_expert, kinds, chunk.width)
    return lambda chunk: hidden_blocks(chunk, d_expert, kinds, columns)


def _weight_of_rows(weights: Tensor, order: Tensor) -> Tensor:
    """(rows, 1). By one core: after indexing by all, the others would look out for more while experts begin there."""
    return weights.reshape(-1).index_select(0, order)[:, None]


def _numbers_a_row(w_gate_up: Tensor, w_down: Tensor) -> int:
    """Multiply-adds of one row: the numbers of one expert."""
    return w_gate_up[:1].numel() + w_down[:1].numel()


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
