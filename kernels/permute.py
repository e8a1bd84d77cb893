"""Permute: copy each token's row to the rows of its experts, and write zeros into the padding.

    rows[r] = x[token of r]      rows sorted by expert, each block padded to whole tiles (`sort_tokens`)

    tokens  0 1 2 3             one program = a few tokens: read each row once, write it to each of its slots' rows
            | | |  \\
    rows  +-v-v-------+---v-------+          then one program = one tile: zeros into its padding (.)
          | 0 2 3 .   | 1 2 . .   |
          +-----------+-----------+

The padding is zero so that the kernels behind need no masks: a row of zeros adds nothing to any product.

Traffic: 0 FLOPs; reads tokens * d_model, writes rows * d_model: a copy, limited by memory. For a GEMM with d_expert
columns behind it this costs about 2 * bytes_a_number * FLOP_rate / (2 * d_expert * byte_rate) of its time.
Source: the permute of MegaBlocks (arXiv:2211.15841, section 5.2); token-major, since x is the smaller side.
"""

import triton
import triton.language as tl

from ._inputs import make_table
from ._launch import INTERPRET, check_places, check_tensors, normal

BLOCK_TOKENS, BLOCK_D = (16, 1024) if INTERPRET else (2, 1024)


def permute_reference(x, table, block_m):
    """The same rows by indexing. Rows of tiles that do not exist are 0 as well."""
    slots = table.assignment_row.shape[1]
    rows = x.new_zeros(table.row_assignment.numel(), x.shape[1])
    filled = table.row_assignment >= 0
    rows[filled] = x[(table.row_assignment[filled] // max(slots, 1)).long()]
    return rows


@triton.jit
def _permute_kernel(
    x,  # (tokens, d_model)
    assignment_row,  # int32 (tokens, slots), -1 for an empty slot
    row_assignment,  # int32 (rows,), -1 in padding
    num_tiles,  # int32 (1,)
    rows,  # (rows, d_model)
    tokens,
    slots,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # 1. The first programs have tokens, the others a tile each; the second axis is a block of columns.
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    with_tokens = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    if program < with_tokens:
        # 2. Tokens: one read, a write for each slot that is not empty.
        token = (program * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
        exists = token < tokens
        values = tl.load(x + token[:, None] * D + columns, mask=exists[:, None] & inside)
        for slot in range(slots):
            row = tl.load(assignment_row + token * slots + slot, mask=exists, other=-1)
            tl.store(rows + row.to(tl.int64)[:, None] * D + columns, values, mask=(row >= 0)[:, None] & inside)
    else:
        # 3. A tile: zeros where no assignment is. Tiles that are not in use stay as they are.
        tile = program - with_tokens
        if tile < tl.load(num_tiles):
            for first in range(0, BLOCK_M, BLOCK_TOKENS):
                place = first + tl.arange(0, BLOCK_TOKENS)
                row = (tile * BLOCK_M + place).to(tl.int64)
                empty = (place < BLOCK_M) & (tl.load(row_assignment + row, mask=place < BLOCK_M, other=0) < 0)
                zeros = tl.zeros((BLOCK_TOKENS, BLOCK_D), rows.dtype.element_ty)
                tl.store(rows + row[:, None] * D + columns, zeros, mask=empty[:, None] & inside)


def permute(x, table, block_m):
    """(tokens, d_model) -> (rows, d_model), sorted by expert, zeros in the padding of every tile in use.

    ``table`` is the `RowTable` of `sort_tokens`. Rows of tiles beyond ``table.num_tiles`` are not written.
    """
    check_tensors(x=x)
    check_places(x=x, assignment_row=table.assignment_row)
    tokens, slots = table.assignment_row.shape
    if x.dim() != 2 or x.shape[0] != tokens:
        raise ValueError(f"x must be (tokens={tokens}, d_model), got {tuple(x.shape)}")
    rows = x.new_empty(table.row_assignment.numel(), x.shape[1])
    block_d = min(BLOCK_D, triton.next_power_of_2(max(x.shape[1], 1)))
    if rows.numel():
        programs = triton.cdiv(tokens, BLOCK_TOKENS) + table.tile_expert.numel()
        _permute_kernel[(programs, triton.cdiv(x.shape[1], block_d))](
            x.contiguous(),
            table.assignment_row,
            table.row_assignment,
            table.num_tiles,
            rows,
            tokens=tokens,
            slots=slots,
            D=x.shape[1],
            BLOCK_M=block_m,
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return rows


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=19, d_model=40, num_experts=4, top_k=2, block_m=16),
    "one_token": dict(tokens=1, d_model=24, num_experts=4, top_k=3, block_m=16),
    "odd": dict(tokens=23, d_model=97, num_experts=5, top_k=3, block_m=16),
    "one_expert": dict(tokens=17, d_model=32, num_experts=1, top_k=1, block_m=16),
    "qwen3": dict(tokens=8192, d_model=2048, num_experts=128, top_k=8, block_m=128),
}


def make_inputs(tokens, d_model, num_experts, top_k, block_m, *, dtype, device, seed=0):
    """Tokens of order 1 on random experts, one of which is always empty; a tenth of the slots are empty."""
    table, _ = make_table(tokens, num_experts, top_k, block_m, device=device, seed=seed)
    return normal(tokens, d_model, seed=seed, dtype=dtype, device=device), table, block_m


def cost(tokens, d_model, num_experts, top_k, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: tokens read once, every assignment's row written."""
    return 0, itemsize * d_model * tokens * (1 + top_k)
