"""Reading and writing tiles: through a tensor descriptor (TMA on a Hopper GPU), or through pointers and masks.

A descriptor knows the shape of its tensor, so what lies outside reads as 0 and is not written; the hardware does the
address arithmetic and needs no registers for it. It wants rows that start at multiples of 16 bytes. Where they do not,
the launcher passes the tensor itself, and the same kernel uses pointers.

Below a `return` in an `if` that is decided while compiling, Triton goes on translating: each such `if` has an `else`.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


def aligned(*tensors):
    """Whether every tensor can have a descriptor: contiguous, not empty, rows and start at multiples of 16 bytes.

    Strides are looked at as well: a contiguous tensor may have any in a dimension of size 1.
    """
    return all(
        tensor.is_contiguous()
        and tensor.numel() > 0
        and all(size * tensor.element_size() % 16 == 0 for size in (tensor.shape[-1], *tensor.stride()[:-1]))
        and (tensor.device.type == "meta" or tensor.data_ptr() % 16 == 0)
        for tensor in tensors
    )


def describe(tensor: torch.Tensor, block: list[int], use: bool):
    """A descriptor of ``tensor`` that moves one ``block`` at a time, or the tensor itself."""
    return TensorDescriptor.from_tensor(tensor, block) if use else tensor


@triton.jit
def load_tile(source, row, column, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr):
    """(ROWS, COLUMNS) of a matrix from (row, column) on; 0 beyond its last column. All ROWS rows must exist."""
    if DESCRIPTOR:
        return source.load([row, column])
    else:
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)
        columns = column + tl.arange(0, COLUMNS)
        return tl.load(source + rows[:, None] * num_columns + columns, mask=(columns < num_columns)[None, :], other=0.0)


@triton.jit
def store_tile(
    target, tile, row, column, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr
):
    """Write (ROWS, COLUMNS) at (row, column), nothing beyond the last column; rounds to the target's dtype."""
    if DESCRIPTOR:
        target.store([row, column], tile.to(target.dtype))
    else:
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)
        columns = column + tl.arange(0, COLUMNS)
        place = target + rows[:, None] * num_columns + columns
        tl.store(place, tile.to(target.dtype.element_ty), mask=(columns < num_columns)[None, :])


@triton.jit
def load_expert_tile(
    source,
    expert,
    row,
    column,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """(ROWS, COLUMNS) of matrix ``expert`` of a stack (num_experts, num_rows, num_columns); 0 outside of it."""
    if DESCRIPTOR:
        return tl.reshape(source.load([expert, row, column]), (ROWS, COLUMNS))
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        # int64 before the product: num_experts * num_rows * num_columns passes 2^31 in models that exist
        start = expert.to(tl.int64) * num_rows * num_columns
        return tl.load(source + start + rows[:, None] * num_columns + columns, mask=inside, other=0.0)


@triton.jit
def load_half_tiles(
    source,
    expert,
    row,
    column,
    num_rows,
    num_columns,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """(HALVES * ROWS, COLUMNS): the same rows of each of an expert's HALVES matrices (num_rows, num_columns)."""
    if DESCRIPTOR:
        return tl.reshape(source.load([expert * HALVES, row, column]), (HALVES * ROWS, COLUMNS))
    else:
        place = tl.arange(0, HALVES * ROWS)
        rows = row + place % ROWS
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        matrix = expert.to(tl.int64) * HALVES + place // ROWS  # int64, as in load_expert_tile
        offset = (matrix * num_rows + rows)[:, None] * num_columns + columns
        return tl.load(source + offset, mask=inside, other=0.0)


@triton.jit
def store_half_tile(
    target,
    tile,
    row,
    half,
    column,
    num_columns,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Write (ROWS, COLUMNS) into one of the HALVES matrices that stand side by side: (rows, HALVES, num_columns)."""
    if DESCRIPTOR:
        target.store([row, half, column], tl.reshape(tile, (ROWS, 1, COLUMNS)).to(target.dtype))
    else:
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)
        columns = column + tl.arange(0, COLUMNS)
        place = target + (rows * HALVES + half)[:, None] * num_columns + columns
        tl.store(place, tile.to(target.dtype.element_ty), mask=(columns < num_columns)[None, :])


@triton.jit
def gather_tile(source, rows, exists, column, num_columns, COLUMNS: tl.constexpr):
    """Columns of any rows of a matrix, one for each entry of ``rows``; 0 where it does not exist."""
    columns = column + tl.arange(0, COLUMNS)
    inside = exists[:, None] & (columns < num_columns)[None, :]
    return tl.load(source + rows.to(tl.int64)[:, None] * num_columns + columns, mask=inside, other=0.0)


@triton.jit
def store_expert_tile(
    target,
    tile,
    expert,
    row,
    column,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Write (ROWS, COLUMNS) into matrix ``expert`` of a stack (num_experts, num_rows, num_columns), inside of it."""
    if DESCRIPTOR:
        target.store([expert, row, column], tl.reshape(tile, (1, ROWS, COLUMNS)).to(target.dtype))
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        place = (expert.to(tl.int64) * num_rows + rows)[:, None] * num_columns + columns  # int64, as above
        tl.store(target + place, tile.to(target.dtype.element_ty), mask=inside)
