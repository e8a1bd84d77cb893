"""Combine: give each token the sum of its experts' answers.

    y[t] = sum over slots s of rows[row of (t, s)]        the routing weight is in the rows already (`grouped_up`)

    rows  +-----------+-----------+          one program = a few tokens (and a block of columns): it looks up the
          | 0 2 3 .   | 1 2 . .   |          rows of their slots and adds them in the order of the slots
          +---|-------+---|-------+
    y         +----> 2 <--+

A token reads its rows; no row writes to a token. So there is nothing to lock, no atomic addition, and the sum is the
same bit for bit from run to run. The gradient of x in the backward pass is the same sum over other rows.

Traffic: reads tokens * top_k * d_model, writes tokens * d_model, tokens * top_k * d_model additions: limited by memory.
Source: gather-and-sum instead of scatter-add as in SonicMoE (arXiv:2512.14080) and Liger-Kernel.
"""

import torch
import triton
import triton.language as tl

from ._inputs import make_table
from ._launch import INTERPRET, check_dims, check_places, check_tensors, normal

BLOCK_TOKENS, BLOCK_D = (16, 512) if INTERPRET else (2, 512)


def combine_reference(rows, assignment_row):
    """The same sum by indexing. A token without experts gets 0."""
    filled = assignment_row >= 0
    gathered = rows[assignment_row.clamp_min(0).long()]  # (tokens, slots, d_model)
    return torch.where(filled[..., None], gathered, 0.0).sum(dim=1).to(rows.dtype)


@triton.jit
def _combine_kernel(
    rows,  # (rows, d_model)
    assignment_row,  # int32 (tokens, slots), -1 for an empty slot
    y,  # (tokens, d_model)
    tokens,
    slots,
    D: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # 1. Which part of which tokens is mine?
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists, inside = token < tokens, (columns < D)[None, :]
    # 2. Add the rows of their slots, in float32.
    total = tl.zeros((BLOCK_TOKENS, BLOCK_D), tl.float32)
    for slot in range(slots):
        row = tl.load(assignment_row + token * slots + slot, mask=exists, other=-1).to(tl.int64)
        part = tl.load(rows + row[:, None] * D + columns, mask=(row >= 0)[:, None] & inside, other=0.0)
        total += part.to(tl.float32)
    # 3. Round once, on the way out.
    tl.store(y + token[:, None] * D + columns, total.to(y.dtype.element_ty), mask=exists[:, None] & inside)


def combine(rows, assignment_row):
    """(rows, d_model) and int32 (tokens, slots) -> (tokens, d_model), summed in float32, in the dtype of ``rows``."""
    check_tensors(rows=rows)
    check_places(rows=rows, assignment_row=assignment_row)
    check_dims(2, rows=rows, assignment_row=assignment_row)
    tokens, slots = assignment_row.shape
    y = rows.new_empty(tokens, rows.shape[1])
    block_d = min(BLOCK_D, triton.next_power_of_2(max(rows.shape[1], 1)))
    if y.numel():
        _combine_kernel[(triton.cdiv(tokens, BLOCK_TOKENS), triton.cdiv(rows.shape[1], block_d))](
            rows.contiguous(),
            assignment_row.contiguous(),
            y,
            tokens=tokens,
            slots=slots,
            D=rows.shape[1],
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return y


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=19, d_model=40, num_experts=4, top_k=2, block_m=16),
    "one_token": dict(tokens=1, d_model=24, num_experts=4, top_k=3, block_m=16),
    "odd": dict(tokens=23, d_model=97, num_experts=5, top_k=3, block_m=16),
    "one_expert": dict(tokens=17, d_model=32, num_experts=1, top_k=1, block_m=16),
    "qwen3": dict(tokens=8192, d_model=2048, num_experts=128, top_k=8, block_m=128),
}


def make_inputs(tokens, d_model, num_experts, top_k, block_m, *, dtype, device, seed=0):
    """Rows of order 1 for tokens on random experts, one of which is always empty; a tenth of the slots are empty."""
    table, _ = make_table(tokens, num_experts, top_k, block_m, device=device, seed=seed)
    return normal(table.row_assignment.numel(), d_model, seed=seed, dtype=dtype, device=device), table.assignment_row


def cost(tokens, d_model, num_experts, top_k, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend; additions are not counted as FLOPs of a product."""
    return 0, itemsize * d_model * tokens * (1 + top_k)
