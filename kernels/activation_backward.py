"""Activation backward: the way back through silu(gate) * up and through the routing weight, in one pass.

    a = s * inner,  inner = silu(g) * u                      (row by row; s is the routing weight of the row)

    ds = <da, inner>      dg = s * da * u * silu'(g)      du = s * da * silu(g)      and a once more, if it was not kept

    hidden  [ g | u ]        one program = BLOCK_R rows; it walks along the columns and sums ds on the way
    da      [   .   ]
            ->  ->           ds never leaves the registers until the row is done: no atomics, the same bits every time

SonicMoE's observation makes this possible: ds needs da and inner, not the rows behind the second product, so those
are never kept.

Traffic: 0 FLOPs of products; reads rows * 3 * d_expert, writes rows * 2 * d_expert, with a another rows * d_expert:
limited by memory.
Source: SonicMoE (arXiv:2512.14080); a kernel that does this in the epilogue of the product before it spills
registers on sm_90 (LOG.md).
"""

import torch
import triton
import triton.language as tl

from ._activations import activate_reference, apply_function, differentiate, find_function
from ._inputs import make_table
from ._launch import INTERPRET, check_dims, check_places, check_tensors, normal

BLOCK_R, BLOCK_F = (16, 32) if INTERPRET else (4, 512)


def activation_backward_reference(da, hidden, weights, table, block_m, activation="swiglu"):
    """The same gradients by autograd: (dhidden, dweights, a). Rows of tiles that do not exist stay 0."""
    used = (torch.arange(da.shape[0], device=da.device) < table.num_tiles * block_m)[:, None]
    filled = table.row_assignment >= 0
    hidden = torch.where(used, hidden, 0.0).requires_grad_()
    weights = weights.detach().to(da.dtype).requires_grad_()
    weight = torch.where(filled, weights.reshape(-1)[table.row_assignment.clamp_min(0).long()], 0.0)
    with torch.enable_grad():
        a = activate_reference(hidden, activation) * weight[:, None]
    dhidden, dweights = torch.autograd.grad(a, (hidden, weights), torch.where(used, da, 0.0))
    return dhidden, dweights, a.detach()


@triton.jit
def _activation_backward_kernel(
    da,  # (rows, D_EXPERT), gradient of a
    hidden,  # (rows, HALVES * D_EXPERT), [gate | up]
    weights,  # float32 (tokens * slots,)
    row_assignment,  # int32 (rows,), -1 in padding
    num_tiles,  # int32 (1,)
    dhidden,  # (rows, HALVES * D_EXPERT)
    dweights,  # float32 (tokens * slots,), 0 where a slot is empty
    a,  # (rows, D_EXPERT); unused without STORE_A
    D_EXPERT: tl.constexpr,
    FUNCTION: tl.constexpr,
    GATED: tl.constexpr,
    STORE_A: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    # 1. Which rows are mine, and are they in use? BLOCK_R divides BLOCK_M, so all of them or none.
    row = tl.program_id(0) * BLOCK_R
    if row >= tl.load(num_tiles) * BLOCK_M:
        return
    rows = row + tl.arange(0, BLOCK_R)
    assignment = tl.load(row_assignment + rows)
    weight = tl.load(weights + assignment, mask=assignment >= 0, other=0.0)
    HALVES: tl.constexpr = 2 if GATED else 1
    # 2. Along the columns, in float32.
    dweight = tl.zeros((BLOCK_R,), tl.float32)
    for column in tl.range(0, D_EXPERT, BLOCK_F):
        columns = column + tl.arange(0, BLOCK_F)
        inside = (columns < D_EXPERT)[None, :]
        narrow = rows.to(tl.int64)[:, None] * D_EXPERT + columns
        wide = rows.to(tl.int64)[:, None] * (HALVES * D_EXPERT) + columns
        d = tl.load(da + narrow, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(hidden + wide, mask=inside, other=0.0).to(tl.float32)
        function = apply_function(gate, FUNCTION)
        slope = differentiate(gate, FUNCTION)
        inner = function
        dinner = d * weight[:, None]
        if GATED:
            up = tl.load(hidden + wide + D_EXPERT, mask=inside, other=0.0).to(tl.float32)
            inner = function * up
            dup = dinner * function
            tl.store(dhidden + wide + D_EXPERT, dup.to(dhidden.dtype.element_ty), mask=inside)
            slope *= up
        tl.store(dhidden + wide, (dinner * slope).to(dhidden.dtype.element_ty), mask=inside)
        if STORE_A:
            tl.store(a + narrow, (inner * weight[:, None]).to(a.dtype.element_ty), mask=inside)
        dweight += tl.sum(d * inner, axis=1)
    # 3. Each assignment has one row, so each gradient one author.
    tl.store(dweights + assignment, dweight, mask=assignment >= 0)


def activation_backward(da, hidden, weights, table, block_m, activation="swiglu", *, store_a=True):
    """Gradients through activation and routing weight: (dhidden, dweights float32 (tokens, slots), a).

    ``da`` (rows, d_expert) is the gradient of what `grouped_up` returns, ``hidden`` what it stored. Without ``store_a``
    a has no rows. Rows of tiles that are not in use are not written; empty slots get a gradient of 0.
    """
    function, gated = find_function(activation)
    check_tensors(da=da, hidden=hidden)
    check_places(da=da, weights=weights, row_assignment=table.row_assignment)
    check_dims(2, da=da, hidden=hidden)
    rows, d_expert = da.shape
    if da.dtype != hidden.dtype or hidden.shape != (rows, d_expert * (2 if gated else 1)):
        raise ValueError(
            f"da is {tuple(da.shape)} {da.dtype} and hidden {tuple(hidden.shape)} {hidden.dtype}: they do not fit"
        )
    if rows != table.row_assignment.numel() or weights.shape != table.assignment_row.shape or block_m % BLOCK_R:
        raise ValueError(
            f"the table has {table.row_assignment.numel()} rows of {tuple(table.assignment_row.shape)} "
            f"assignments; got da {rows}, weights {tuple(weights.shape)}, block_m {block_m}"
        )
    dhidden = da.new_empty(hidden.shape)
    dweights = torch.zeros(weights.shape, dtype=torch.float32, device=da.device)
    a = da.new_empty(rows if store_a else 0, d_expert)
    if rows:
        _activation_backward_kernel[(triton.cdiv(rows, BLOCK_R),)](
            da.contiguous(),
            hidden.contiguous(),
            weights.float().contiguous().view(-1),
            table.row_assignment,
            table.num_tiles,
            dhidden,
            dweights,
            a,
            D_EXPERT=d_expert,
            FUNCTION=function,
            GATED=gated,
            STORE_A=store_a,
            BLOCK_M=block_m,
            BLOCK_R=BLOCK_R,
            BLOCK_F=BLOCK_F,
            num_warps=4,
        )
    return dhidden, dweights, a


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=19, d_expert=24, num_experts=4, top_k=2, block_m=16),
    "one_token": dict(tokens=1, d_expert=16, num_experts=4, top_k=3, block_m=16),
    "odd": dict(tokens=23, d_expert=47, num_experts=5, top_k=3, block_m=16),
    "one_expert": dict(tokens=17, d_expert=40, num_experts=1, top_k=1, block_m=32),
    "qwen3": dict(tokens=8192, d_expert=768, num_experts=128, top_k=8, block_m=128),
    "mixtral": dict(tokens=8192, d_expert=14336, num_experts=8, top_k=2, block_m=128),
}


VARIANTS = {
    "kept": dict(store_a=False),
    "geglu": dict(activation="geglu"),
    "ungated": dict(activation="gelu"),
}
"""Other ways to launch it, which are compiled as well: options of `activation_backward`, or of `make_inputs`."""


def make_inputs(tokens, d_expert, num_experts, top_k, block_m, *, activation="swiglu", dtype, device, seed=0):
    """Gradients and hidden values of order 1, a routing with an empty expert and empty slots."""
    table, weights = make_table(tokens, num_experts, top_k, block_m, device=device, seed=seed)
    rows = table.row_assignment.numel()
    da = normal(rows, d_expert, seed=seed, dtype=dtype, device=device)
    columns = d_expert * (2 if find_function(activation)[1] else 1)
    return da, normal(rows, columns, seed=seed + 1, dtype=dtype, device=device), weights, table, block_m


def cost(tokens, d_expert, num_experts, top_k, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: da and hidden read, dhidden and a written."""
    return 0, itemsize * tokens * top_k * 6 * d_expert
