"""Tile order: which tile of the output is work item number i, for five ways to walk over the tiles.

    item -> (tile_m, tile_n), each tile of tiles_m x tiles_n exactly once

    items on 4 x 4 tiles (rows down, columns right), GROUP_M = 2, NUM_XCDS = 2:

        row_major      column_major   grouped        xcd_remapped (each chiplet takes every second item;
         0  1  2  3     0  4  8 12     0  2  4  6     0  4  8 12   chiplet 0 gets the even ones, now a run)
         4  5  6  7     1  5  9 13     1  3  5  7     2  6 10 14
         8  9 10 11     2  6 10 14     8 10 12 14     1  5  9 13
        12 13 14 15     3  7 11 15     9 11 13 15     3  7 11 15

    `broken_column_major` is the negative control: a published map that leaves tiles out wherever tiles_m != tiles_n.

Traffic: the kernel here writes 8 bytes a tile and counts who came; it only shows which tiles a map reaches. In a
product, programs that run at the same time share what they read: P of them on g row tiles by P / g column tiles read
g * BLOCK_M + P / g * BLOCK_N rows of x and w a step. `moe_lab.cache` counts what a cache makes of that.
Source: grouped order: Triton's tutorial 03, "L2 Cache Optimizations". Column-major for MoE, and the broken map:
"Accelerating MoE model inference with Locality-Aware Kernel Design", pytorch.org/blog, April 2024; its code,
meta-pytorch/applied-ai, col_major_moe_gemm/v2_moe_fused.py, and issues 16 and 25 there, which report the fault.
Chiplets: AMD, "MI300X workload optimization" (ROCm documentation): workgroups go to the 8 XCDs in turn.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._launch import check_tensors

# Each order twice: for the GPU, and beside it the same rule in plain Python, for whole numbers.


@triton.jit
def row_major(item, tiles_m, tiles_n):
    """One row tile after the other: neighbours in time share rows of x."""
    return item // tiles_n, item % tiles_n


def row_major_reference(item, tiles_m, tiles_n, *_):
    """The twin of `row_major`."""
    return divmod(item, tiles_n)


@triton.jit
def column_major(item, tiles_m, tiles_n):
    """One column tile after the other: neighbours in time share columns of w, where they share an expert."""
    return item % tiles_m, item // tiles_m


def column_major_reference(item, tiles_m, tiles_n, *_):
    """The twin of `column_major`."""
    tile_n, tile_m = divmod(item, tiles_m)
    return tile_m, tile_n


@triton.jit
def grouped(item, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Columns of GROUP_M row tiles at a time: neighbours in time share a tile of x or of w."""
    width = GROUP_M * tiles_n
    first = (item // width) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)  # the last group may be lower
    return first + (item % width) % height, (item % width) // height


def grouped_reference(item, tiles_m, tiles_n, group_m, *_):
    """The twin of `grouped`."""
    group, within = divmod(item, group_m * tiles_n)
    tile_n, tile_m = divmod(within, min(tiles_m - group * group_m, group_m))
    return group * group_m + tile_m, tile_n


@triton.jit
def xcd_remapped(item, tiles_m, tiles_n, GROUP_M: tl.constexpr, NUM_XCDS: tl.constexpr):
    """`grouped`, where each of NUM_XCDS chiplets, which take items in turn, walks along a run of its own."""
    items = tiles_m * tiles_n
    xcd = item % NUM_XCDS
    # the first items % NUM_XCDS chiplets take one item more
    start = xcd * (items // NUM_XCDS) + tl.minimum(xcd, items % NUM_XCDS)
    return grouped(start + item // NUM_XCDS, tiles_m, tiles_n, GROUP_M)


def xcd_remapped_reference(item, tiles_m, tiles_n, group_m, num_xcds):
    """The twin of `xcd_remapped`."""
    turn, xcd = divmod(item, num_xcds)
    least, more = divmod(tiles_m * tiles_n, num_xcds)
    return grouped_reference(xcd * least + min(xcd, more) + turn, tiles_m, tiles_n, group_m)


@triton.jit
def broken_column_major(item, tiles_m, tiles_n):
    """The published map, a negative control: it takes the remainder by tiles_n, where `column_major` takes tiles_m.

    It is right where tiles_m = tiles_n. With fewer row tiles than column tiles most programs land below the last row
    and return, and tiles_m / tiles_n of the tiles are written; with more, the rows from tiles_n on are never visited.
    """
    return item % tiles_n, item // tiles_m


def broken_column_major_reference(item, tiles_m, tiles_n, *_):
    """The twin of `broken_column_major`."""
    return item % tiles_n, item // tiles_m


ORDERS = {
    "row_major": row_major_reference,
    "column_major": column_major_reference,
    "grouped": grouped_reference,
    "xcd_remapped": xcd_remapped_reference,
    "broken_column_major": broken_column_major_reference,
}
"""Every order by name, in plain Python: (item, tiles_m, tiles_n, group_m, num_xcds) -> (tile_m, tile_n)."""
BIJECTIONS = tuple(name for name in ORDERS if name != "broken_column_major")
"""The orders that a product may use."""


class Visits(NamedTuple):
    """Which programs came to which tile."""

    count: torch.Tensor  # int32 (tiles_m, tiles_n), how many programs came; 1 everywhere is what a product needs
    program: torch.Tensor  # int32 (tiles_m, tiles_n), the last of them by number; -1 where none came


def tile_order_reference(order, tiles_m, tiles_n, num_tiles, group_m=8, num_xcds=8):
    """The same visits, a program at a time."""
    count = torch.zeros(tiles_m, tiles_n, dtype=torch.int32)
    program = torch.full((tiles_m, tiles_n), -1, dtype=torch.int32)
    for item in range(tiles_m * tiles_n):
        tile = ORDERS[order](item, tiles_m, tiles_n, group_m, num_xcds)
        if tile[0] < int(num_tiles):
            count[tile] += 1
            program[tile] = item
    return Visits(count.to(num_tiles.device), program.to(num_tiles.device))


@triton.jit
def place(item, tiles_m, tiles_n, ORDER: tl.constexpr, GROUP_M: tl.constexpr, NUM_XCDS: tl.constexpr):
    """(tile_m, tile_n) in the order of that name; the name is gone once the kernel is compiled."""
    if ORDER == "row_major":
        return row_major(item, tiles_m, tiles_n)
    elif ORDER == "column_major":
        return column_major(item, tiles_m, tiles_n)
    elif ORDER == "grouped":
        return grouped(item, tiles_m, tiles_n, GROUP_M)
    elif ORDER == "xcd_remapped":
        return xcd_remapped(item, tiles_m, tiles_n, GROUP_M, NUM_XCDS)
    else:
        tl.static_assert(ORDER == "broken_column_major", "no order of this name")
        return broken_column_major(item, tiles_m, tiles_n)


@triton.jit
def _tile_order_kernel(
    num_tiles,  # int32 (1,), row tiles in use
    count,  # int32 (tiles_m, tiles_n), zeros
    program,  # int32 (tiles_m, tiles_n), -1
    tiles_m,
    tiles_n,
    ORDER: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_XCDS: tl.constexpr,
):
    # 1. Which tile is mine?
    item = tl.program_id(0)
    tile_m, tile_n = place(item, tiles_m, tiles_n, ORDER, GROUP_M, NUM_XCDS)
    # 2. None, if it lies below the rows in use: the grid is an upper bound.
    if tile_m >= tl.load(num_tiles):
        return
    # 3. Leave a mark. A maximum, unlike a plain store, comes out the same whoever is last.
    tile = tile_m * tiles_n + tile_n
    tl.atomic_add(count + tile, 1)
    tl.atomic_max(program + tile, item)


def tile_order(order, tiles_m, tiles_n, num_tiles, group_m=8, num_xcds=8):
    """Launch one program a tile of ``tiles_m`` x ``tiles_n``, and return who came where, as `Visits`.

    ``num_tiles``, int32 (1,) on the device, is how many of the row tiles are in use, as in `grouped_gemm`; programs
    beyond them return without a mark. Nothing waits for the GPU.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    for name, value in dict(tiles_m=tiles_m, tiles_n=tiles_n, group_m=group_m, num_xcds=num_xcds).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_tensors((torch.int32,), num_tiles=num_tiles)
    count = num_tiles.new_zeros(tiles_m, tiles_n)
    program = num_tiles.new_full((tiles_m, tiles_n), -1)
    _tile_order_kernel[(tiles_m * tiles_n,)](
        num_tiles,
        count,
        program,
        tiles_m=tiles_m,
        tiles_n=tiles_n,
        ORDER=order,
        GROUP_M=group_m,
        NUM_XCDS=num_xcds,
    )
    return Visits(count, program)


# What tests, benchmarks and lessons share: "published" is the blog's first product at 8 to 32 tokens.
SHAPES = {
    "tiny": dict(order="grouped", tiles_m=5, tiles_n=3, group_m=2),
    "one_tile": dict(order="column_major", tiles_m=1, tiles_n=1),
    "odd": dict(order="xcd_remapped", tiles_m=7, tiles_n=3, in_use=5, group_m=3),
    "published": dict(order="broken_column_major", tiles_m=9, tiles_n=224, in_use=8),
    "qwen3": dict(order="grouped", tiles_m=640, tiles_n=6, in_use=576),
    "mixtral": dict(order="grouped", tiles_m=128, tiles_n=112),
}


def make_inputs(order, tiles_m, tiles_n, in_use=None, group_m=8, num_xcds=8, *, dtype=None, device, seed=0):
    """The grid, and ``in_use`` of its row tiles (all if left out); there is nothing to draw and nothing to round."""
    num_tiles = torch.tensor([tiles_m if in_use is None else in_use], dtype=torch.int32, device=device)
    return order, tiles_m, tiles_n, num_tiles, group_m, num_xcds


def cost(order, tiles_m, tiles_n, in_use=None, group_m=8, num_xcds=8, *, itemsize=4):
    """(FLOPs, bytes): two whole numbers a tile, set before and written once."""
    return 0, 16 * tiles_m * tiles_n
