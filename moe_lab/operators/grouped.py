"""The experts as two operators of PyTorch's own kind: ``moe_lab::grouped_mlp`` and its backward pass.

``torch.compile`` and `flop_counter` take an operator whole, without a look inside. So the load may be read in there,
and only there: which experts have rows, and how many, never becomes the shape of a result. Buffers have a row for each
of the tokens * slots assignments, whatever is dropped; rows of empty slots come last, hold 0 and enter no product.

They are declared by ``torch.library.define``. ``torch.library.custom_op`` would say the same in fewer lines, but its
first call imports ``torch._dynamo`` (two seconds) and with it Triton, after which `moe_lab.kernels` cannot switch
Triton's interpreter on any more.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.activations import activate, activate_backward
from moe_lab.operators.guards import refuse_second_derivative
from moe_lab.types import Routing

torch.library.define(
    "moe_lab::grouped_mlp",
    "(Tensor x, Tensor experts, Tensor weights, Tensor w_gate_up, Tensor w_down, str activation)"
    " -> (Tensor y, Tensor rows, Tensor hidden, Tensor order, Tensor load)",
)
torch.library.define(
    "moe_lab::grouped_mlp_backward",
    "(Tensor dy, Tensor rows, Tensor hidden, Tensor order, Tensor load, Tensor weights, Tensor w_gate_up,"
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
    x: Tensor, experts: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One product an expert over its block of rows, twice; experts without rows are never touched.

    y[t] = sum over slots s of weights[t, s] * w_down[e] @ act(w_gate_up[e] @ x[t]), e = experts[t, s], as `expert_mlp`
    has it, which checks what comes here.

    Returns ``y`` (tokens, d_model), and what the backward pass wants to have again: ``rows`` (tokens * slots, d_model)
    and ``hidden`` (tokens * slots, hidden), sorted by expert; ``order`` (tokens * slots,), the assignment of each row,
    -1 where empty slots left a row over; ``load`` (num_experts,).

    Example:
        >>> experts, weights = torch.tensor([[1], [-1]]), torch.tensor([[0.5], [0.0]])
        >>> w_up, w_down = torch.ones(2, 3, 2), torch.ones(2, 2, 3)
        >>> operator = torch.ops.moe_lab.grouped_mlp
        >>> y, _, hidden, order, load = operator(torch.eye(2), experts, weights, w_up, w_down, "relu")
        >>> y, hidden, order, load
        (tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]]), tensor([[1., 1., 1.],
                [0., 0., 0.]]), tensor([ 0, -1]), tensor([0, 1]))
    """
    routing = Routing.trusted(experts, weights, w_down.shape[0])
    in_order, load = sort_rows(routing)
    count, blocks = len(in_order), load.tolist()
    order = experts.new_full((experts.numel(),), -1)
    order[:count] = in_order
    token = in_order // max(routing.slots, 1)
    rows = x.new_empty(len(order), x.shape[1])
    torch.index_select(x, 0, token, out=rows[:count])
    rows[count:] = 0
    hidden = blockwise(rows, w_gate_up.mT, blocks)
    answer = blockwise(activate(hidden[:count], activation), w_down.mT, blocks)  # (count, d_model)
    wide = torch.promote_types(x.dtype, weights.dtype)
    y = torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format)
    weight = weights.reshape(-1)[in_order]
    y.index_add_(0, token, (answer * weight[:, None]).to(y.dtype))
    return y.to(x.dtype), rows, hidden, order, load.clone()  # the load itself is a part of a longer tensor


def grouped_mlp_backward(
    dy: Tensor,
    rows: Tensor,
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
    dx, dweights, dw_gate_up, dw_down = (rows.new_empty(0) for _ in wanted)
    blocks = load.tolist()
    order, rows, hidden = (saved[: sum(blocks)] for saved in (order, rows, hidden))
    token = order // max(weights.shape[1], 1)
    weight = weights.reshape(-1)[order]
    inner = activate(hidden, activation)
    answers = dy[token]  # (rows, d_model), before the routing weight
    if need_down:
        dw_down = blockwise_outer(answers, (inner * weight[:, None]).to(rows.dtype), w_down, blocks)
    if need_x or need_weights or need_gate_up:
        dinner = blockwise(answers, w_down, blocks)  # (rows, d_expert)
    if need_weights:
        share = (dinner * inner).sum(dim=1, dtype=weights.dtype)
        dweights = torch.zeros_like(weights.reshape(-1)).index_copy_(0, order, share).view(weights.shape)
    if need_x or need_gate_up:
        dhidden = activate_backward((dinner * weight[:, None]).to(inner.dtype), hidden, activation)
    if need_gate_up:
        dw_gate_up = blockwise_outer(dhidden, rows, w_gate_up, blocks)
    if need_x:
        wide = torch.promote_types(rows.dtype, weights.dtype)
        dx = torch.zeros(weights.shape[0], rows.shape[1], dtype=wide, device=rows.device)
        dx = dx.index_add_(0, token, blockwise(dhidden, w_gate_up, blocks).to(wide)).to(rows.dtype)
    return dx, dweights, dw_gate_up, dw_down


# not as decorators, which would leave None in the functions' names
torch.library.impl("moe_lab::grouped_mlp", "CompositeExplicitAutograd", grouped_mlp)
torch.library.impl("moe_lab::grouped_mlp_backward", "CompositeExplicitAutograd", grouped_mlp_backward)


@torch.library.register_fake("moe_lab::grouped_mlp")
def _grouped_mlp_shapes(x, experts, weights, w_gate_up, w_down, activation):
    assignments = experts.shape[0] * experts.shape[1]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(assignments, x.shape[1]),
        x.new_empty(assignments, w_gate_up.shape[1]),
        experts.new_empty(assignments),
        experts.new_empty(w_down.shape[0]),
    )


@torch.library.register_fake("moe_lab::grouped_mlp_backward")
def _grouped_mlp_backward_shapes(dy, rows, hidden, order, load, weights, w_gate_up, w_down, activation, wanted):
    shapes = ((weights.shape[0], rows.shape[1]), weights.shape, w_gate_up.shape, w_down.shape)
    kinds = (rows, weights, w_gate_up, w_down)
    return tuple(
        kind.new_empty(shape) if want else rows.new_empty(0)
        for kind, shape, want in zip(kinds, shapes, wanted, strict=True)
    )


def _save(ctx, inputs, output):
    _, _, weights, w_gate_up, w_down, activation = inputs
    _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # or zeros as large as rows and hidden would be made for nobody
    ctx.save_for_backward(*kept, weights, w_gate_up, w_down)
    ctx.activation = activation


def _derive(ctx, dy, *_):
    refuse_second_derivative("grouped")
    if dy is None:  # nothing came back through y
        return (None,) * 6
    need_x, _, *need_weights = ctx.needs_input_grad[:5]
    wanted = [need_x, *need_weights]
    gradients = torch.ops.moe_lab.grouped_mlp_backward(dy, *ctx.saved_tensors, ctx.activation, wanted)
    dx, *dweights = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return dx, None, *dweights, None


torch.library.register_autograd("moe_lab::grouped_mlp", _derive, setup_context=_save)


def blockwise(
    rows: Float[Tensor, "rows d_in"], matrices: Float[Tensor, "num_experts d_in d_out"], load: list[int]
) -> Float[Tensor, "rows d_out"]:
    """Multiply each expert's block of rows by that expert's matrix; rows beyond the last block give 0.

    Example:
        >>> blockwise(torch.ones(4, 1), torch.tensor([[[1.0]], [[5.0]], [[7.0]]]), [1, 0, 2]).flatten()
        tensor([1., 7., 7., 0.])
    """
    out = rows.new_empty(rows.shape[0], matrices.shape[2])
    start = 0
    for expert, count in enumerate(load):
        if count:
            torch.mm(rows[start : start + count], matrices[expert], out=out[start : start + count])
            start += count
    out[start:] = 0
    return out


def blockwise_outer(
    left: Float[Tensor, "rows d_left"], right: Float[Tensor, "rows d_right"], like: Tensor, load: list[int]
) -> Float[Tensor, "num_experts d_left d_right"]:
    """For each expert, left.T @ right over its block of rows; exactly 0 for an expert without rows.

    Example:
        >>> blockwise_outer(torch.ones(3, 1), torch.ones(3, 1), torch.empty(3, 1, 1), [1, 0, 2]).flatten()
        tensor([1., 0., 2.])
    """
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    start = 0
    for expert, count in enumerate(load):
        if count:
            torch.mm(left[start : start + count].T, right[start : start + count], out=out[expert])
            start += count
        else:
            out[expert].zero_()
    return out
