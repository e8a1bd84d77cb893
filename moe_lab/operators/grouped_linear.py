"""One linear map an expert over its block of sorted rows: ``moe_lab::grouped_linear`` and its backward pass.

For experts whose activation is a function of their own, which no fused operator knows: product, that function, product.
Like `grouped` it is declared whole, so that ``torch.compile`` and `flop_counter` need no look inside.
"""

import torch
from torch import Tensor

from moe_lab.operators.chunks import Buffers, Chunk, Plan, working_dtype
from moe_lab.operators.guards import refuse_second_derivative, refuse_tangents
from moe_lab.operators.pages import empty_in_large_pages
from moe_lab.operators.products import multiply_into
from moe_lab.operators.sums import StackedGradient

torch.library.define("moe_lab::grouped_linear", "(Tensor rows, Tensor weight, Tensor load) -> Tensor")
torch.library.define(
    "moe_lab::grouped_linear_backward",
    "(Tensor gradient, Tensor rows, Tensor weight, Tensor load, bool[2] wanted) -> (Tensor drows, Tensor dweight)",
)


def grouped_linear(rows: Tensor, weight: Tensor, load: Tensor) -> Tensor:
    """Multiply each expert's rows with its own matrix: out[r] = weight[e] @ rows[r] for the rows r of expert e.

    ``rows`` (count, d_in) are sorted by expert, ``load`` (num_experts,) of them each, and count >= sum(load); rows
    beyond that are nobody's and give 0. ``weight`` is (num_experts, d_out, d_in), of any strides. Differentiable once
    in rows and weight.

    FLOPs: 2 * sum(load) * d_in * d_out.

    Example:
        >>> weight = torch.tensor([[[1.0]], [[10.0]]])
        >>> grouped_linear(torch.tensor([[1.0], [2.0], [3.0]]), weight, torch.tensor([1, 2])).flatten()
        tensor([ 1., 20., 30.])

    Raises RuntimeError for forward-mode derivatives.
    """
    refuse_tangents("grouped", rows, weight)
    return torch.ops.moe_lab.grouped_linear(rows, weight, load)


def _multiply(rows: Tensor, weight: Tensor, load: Tensor) -> Tensor:
    plan, work = Plan(load.tolist(), weight[:1].numel(), rows.device), working_dtype(rows.dtype, rows.device)
    out = empty_in_large_pages(len(rows), weight.shape[1], dtype=rows.dtype, device=rows.device)

    def step(buffers: Buffers, chunk: Chunk) -> None:
        here = chunk.rows
        target = buffers.like("out", out[here])
        multiply_into(target, buffers.widen("rows", rows[here]), buffers.widen("matrix", weight[chunk.expert]).T)
        if target.dtype != out.dtype:
            out[here] = target

    plan.run(step, work)
    out[sum(plan.load) :] = 0
    return out


def _multiply_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor, load: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    plan, work = Plan(load.tolist(), 2 * weight[:1].numel(), rows.device), working_dtype(rows.dtype, rows.device)
    need_rows, need_weight = wanted
    drows = empty_in_large_pages(len(rows) if need_rows else 0, rows.shape[1], dtype=rows.dtype, device=rows.device)
    dweight = StackedGradient(weight, plan) if need_weight else None

    def step(buffers: Buffers, chunk: Chunk) -> None:
        here = chunk.rows
        upstream = buffers.widen("gradient", gradient[here])
        if need_rows:
            target = buffers.like("drows", drows[here])
            multiply_into(target, upstream, buffers.widen("matrix", weight[chunk.expert]))
            if target.dtype != drows.dtype:
                drows[here] = target
        if need_weight:
            dweight.add(chunk, upstream, buffers.widen("rows", rows[here]), dweight.whole[chunk.expert], buffers)

    plan.run(step, work)
    if need_rows:
        drows[sum(plan.load) :] = 0
    return drows, dweight.whole if need_weight else rows.new_empty(0)


torch.library.impl("moe_lab::grouped_linear", "CompositeExplicitAutograd", _multiply)
torch.library.impl("moe_lab::grouped_linear_backward", "CompositeExplicitAutograd", _multiply_backward)


@torch.library.register_fake("moe_lab::grouped_linear")
def _shape(rows, weight, load):
    return rows.new_empty(rows.shape[0], weight.shape[1])


@torch.library.register_fake("moe_lab::grouped_linear_backward")
def _backward_shapes(gradient, rows, weight, load, wanted):
    need_rows, need_weight = wanted
    return (
        rows.new_empty(rows.shape if need_rows else (0, rows.shape[1])),
        weight.new_empty(weight.shape if need_weight else 0),
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _derive(ctx, gradient):
    refuse_second_derivative("grouped")
    wanted = list(ctx.needs_input_grad[:2])
    gradients = torch.ops.moe_lab.grouped_linear_backward(gradient.contiguous(), *ctx.saved_tensors, wanted)
    return *(value if want else None for value, want in zip(gradients, wanted, strict=True)), None


torch.library.register_autograd("moe_lab::grouped_linear", _derive, setup_context=_save)
