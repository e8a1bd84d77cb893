"""Grouped up projection: the first product of every expert, with the activation in its epilogue.

    [g; u][r] = w[expert of r] @ x[r]          a[r] = weight of r * silu(g[r]) * u[r]

    w of an expert: gate above up, (2 * d_expert, d_model). One box takes the same columns of both:

          +------------+
          | gate       |     half a box  \\
          |    [====]  |                   > one (BLOCK_M, BLOCK_N) product holds BLOCK_N / 2 gate columns and the
          +------------+                  /  up columns that belong to them, so no thread needs another's numbers
          | up [====]  |     half a box
          +------------+

The routing weight is multiplied in here: behind the second product `combine` is then a plain sum, and in the backward
pass the gradient of the weight is <da, silu(g) * u>, so nothing else need be kept. With GATHER rows are read straight
from x by their token (pointers, no copy by `permute`): for few rows an expert, when reading w is what takes the time.

Traffic: 2 * rows * d_model * 2 * d_expert FLOPs; reads x once a column tile and w once a row tile of its expert, writes
rows * d_expert, and for training rows * 2 * d_expert more (the hidden values).
Source: SwiGLU, arXiv:2002.05202; an epilogue that splits one accumulator is our own (LOG.md), others use two products
or interleaved weights.
"""

import torch
import triton
import triton.language as tl

from ._activations import activate_reference, apply_function, find_function
from ._inputs import make_table
from ._launch import INTERPRET, check_dims, check_places, check_tensors, choose_config, normal, num_programs
from ._tiles import aligned, describe, gather_tile, load_half_tiles, load_tile, store_half_tile
from .grouped_gemm import grouped_gemm_reference
from .tile_order import grouped

CONFIGS = {
    "interpreter": dict(BLOCK_N=32, BLOCK_K=32, GROUP_M=2, num_warps=4, num_stages=1, descriptors=True),
    "hopper": dict(BLOCK_N=256, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=4, descriptors=True),
    "hopper_small": dict(BLOCK_N=128, BLOCK_K=128, GROUP_M=8, num_warps=4, num_stages=4, descriptors=True),
    "ampere": dict(BLOCK_N=128, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=3, descriptors=False),
    "ampere_small": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=3, descriptors=False),
    "cdna": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=2, descriptors=False),
    "cdna_small": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=2, descriptors=False),
    "float32": dict(BLOCK_N=64, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=2, descriptors=False),
}


def grouped_up_reference(x, w, weights, table, block_m, activation="swiglu", gather=False):
    """The same results, a tile at a time: (a, hidden). Rows of tiles that do not exist stay 0."""
    filled = table.row_assignment >= 0
    assignment = table.row_assignment.clamp_min(0).long()
    if gather:
        x = torch.where(filled[:, None], x[assignment // max(weights.shape[1], 1)], 0.0)
    hidden = grouped_gemm_reference(x, w, table.tile_expert, table.num_tiles, block_m)
    weight = torch.where(filled, weights.reshape(-1)[assignment], 0.0).to(x.dtype)
    return activate_reference(hidden, activation) * weight[:, None], hidden


@triton.jit
def _grouped_up_kernel(
    x,  # (rows, K), GATHER: (tokens, K); or a descriptor in boxes (BLOCK_M, BLOCK_K)
    w,  # (num_experts, HALVES * D_EXPERT, K), or a descriptor of (num_experts * HALVES, D_EXPERT, K)
    weights,  # float32 (tokens * slots,), routing weights
    row_assignment,  # int32 (rows,), token * slots + slot; -1 in padding
    tile_expert,  # int32 (tiles,), the expert of each row tile
    num_tiles,  # int32 (1,), row tiles in use
    a,  # (rows, D_EXPERT), or a descriptor of (rows, 1, D_EXPERT)
    hidden,  # (rows, HALVES * D_EXPERT), or a descriptor of (rows, HALVES, D_EXPERT); unused without STORE_HIDDEN
    slots,
    K: tl.constexpr,
    D_EXPERT: tl.constexpr,
    FUNCTION: tl.constexpr,
    GATED: tl.constexpr,
    GATHER: tl.constexpr,
    STORE_HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    HALVES: tl.constexpr = 2 if GATED else 1
    WIDTH: tl.constexpr = BLOCK_N // HALVES  # columns of a in one tile
    NUM_N: tl.constexpr = (D_EXPERT + WIDTH - 1) // WIDTH
    tiles_m = tl.load(num_tiles)
    for item in tl.range(tl.program_id(0), tiles_m * NUM_N, NUM_PROGRAMS, flatten=not GATHER):
        # 1. Which tile is mine, and whose rows are in it?
        tile_m, tile_n = grouped(item, tiles_m, NUM_N, GROUP_M)
        expert = tl.load(tile_expert + tile_m)
        row, column = tile_m * BLOCK_M, tile_n * WIDTH
        assignment = tl.load(row_assignment + row + tl.arange(0, BLOCK_M))
        # 2. Gate and up columns in one product; sums stay in float32.
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(0, K, BLOCK_K):
            if GATHER:
                left = gather_tile(x, assignment // slots, assignment >= 0, k, K, BLOCK_K)
            else:
                left = load_tile(x, row, k, K, BLOCK_M, BLOCK_K, DESCRIPTORS)
            right = load_half_tiles(w, expert, column, k, D_EXPERT, K, HALVES, WIDTH, BLOCK_K, DESCRIPTORS)
            total = tl.dot(left, right.T, total, input_precision="ieee")
        # 3. The activation, on numbers that never left the registers; round once, on the way out.
        weight = tl.load(weights + assignment, mask=assignment >= 0, other=0.0)
        if GATED:
            gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, WIDTH)), (0, 2, 1)))
            inner = apply_function(gate, FUNCTION) * up
            if STORE_HIDDEN:
                store_half_tile(hidden, gate, row, 0, column, D_EXPERT, HALVES, BLOCK_M, WIDTH, DESCRIPTORS)
                store_half_tile(hidden, up, row, 1, column, D_EXPERT, HALVES, BLOCK_M, WIDTH, DESCRIPTORS)
        else:
            inner = apply_function(total, FUNCTION)
            if STORE_HIDDEN:
                store_half_tile(hidden, total, row, 0, column, D_EXPERT, HALVES, BLOCK_M, WIDTH, DESCRIPTORS)
        store_half_tile(a, inner * weight[:, None], row, 0, column, D_EXPERT, 1, BLOCK_M, WIDTH, DESCRIPTORS)


def grouped_up(x, w, weights, table, block_m, activation="swiglu", gather=False, *, store_hidden=True, config=None):
    """First products and activation of every expert: (a (rows, d_expert), hidden (rows, 2 * d_expert)).

    ``x`` is (rows, d_model) from `permute`, or with ``gather`` (tokens, d_model) itself. ``w`` is (num_experts,
    2 * d_expert, d_model) = [gate; up], or (num_experts, d_expert, d_model) for an activation without a gate.
    ``weights`` (tokens, slots), ``table`` from `sort_tokens`. Without ``store_hidden`` hidden has no rows. Rows of
    tiles that are not in use are not written. Nothing waits for the GPU.
    """
    function, gated = find_function(activation)
    check_tensors(x=x, w=w)
    check_places(x=x, weights=weights, load=table.load)
    check_dims(2, x=x)
    check_dims(3, w=w)
    halves = 2 if gated else 1
    if x.dtype != w.dtype or x.shape[1] != w.shape[2] or w.shape[1] % halves:
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype} and w {tuple(w.shape)} {w.dtype}: they do not fit")
    if w.shape[0] != table.load.numel():
        raise ValueError(f"w must have {table.load.numel()} experts, as the table says; got {w.shape[0]}")
    length = table.assignment_row.shape[0] if gather else table.row_assignment.numel()
    if x.shape[0] != length or weights.shape != table.assignment_row.shape:
        raise ValueError(
            f"x must have {length} rows and weights be {tuple(table.assignment_row.shape)}, as the table "
            f"says; got {x.shape[0]} and {tuple(weights.shape)}"
        )
    x, w = x.contiguous(), w.contiguous()
    num_experts, hidden_columns, d_model = w.shape
    rows, d_expert = table.row_assignment.numel(), hidden_columns // halves
    a = x.new_empty(rows, d_expert)
    hidden = x.new_empty(rows if store_hidden else 0, hidden_columns)
    if not a.numel():
        return a, hidden
    options = choose_config(CONFIGS, block_m, x, config)
    whole, programs = aligned(x, w, a), num_programs(x.device)
    use = options.pop("descriptors") and whole
    # Columns of a in one tile: half as many where rows are not aligned, as pointers to single numbers take registers.
    width, block_k = options.pop("BLOCK_N") // (2 if whole or INTERPRET else 4), options.pop("BLOCK_K")
    _grouped_up_kernel[(programs,)](
        describe(x, [block_m, block_k], use and not gather),
        describe(w.view(num_experts * halves, d_expert, d_model), [halves, width, block_k], use),
        weights.float().contiguous().view(-1),
        table.row_assignment,
        table.tile_expert,
        table.num_tiles,
        # boxes of one shape leave through one buffer: with a second one, 4 stages would not fit on Hopper
        describe(a.view(rows, 1, d_expert), [block_m, 1, width], use),
        describe(hidden.view(-1, halves, d_expert), [block_m, 1, width], use and store_hidden),
        slots=weights.shape[1],
        K=d_model,
        D_EXPERT=d_expert,
        FUNCTION=function,
        GATED=gated,
        GATHER=gather,
        STORE_HIDDEN=store_hidden,
        BLOCK_M=block_m,
        BLOCK_N=width * halves,
        BLOCK_K=block_k,
        NUM_PROGRAMS=programs,
        DESCRIPTORS=use,
        **options,
    )
    return a, hidden


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=19, d_model=40, d_expert=24, num_experts=4, top_k=2, block_m=16),
    "one_token": dict(tokens=1, d_model=24, d_expert=16, num_experts=4, top_k=3, block_m=16),
    "odd": dict(tokens=23, d_model=97, d_expert=47, num_experts=5, top_k=3, block_m=16),
    "one_expert": dict(tokens=17, d_model=32, d_expert=40, num_experts=1, top_k=1, block_m=32),
    "qwen3": dict(tokens=8192, d_model=2048, d_expert=768, num_experts=128, top_k=8, block_m=128),
    "mixtral": dict(tokens=8192, d_model=4096, d_expert=14336, num_experts=8, top_k=2, block_m=128),
}


VARIANTS = {
    "gather": dict(gather=True),
    "inference": dict(store_hidden=False),
    "geglu": dict(activation="geglu"),
    "ungated": dict(activation="gelu"),
    "unaligned": dict(d_model=2047, d_expert=767),
    "gather_unaligned": dict(gather=True, d_model=2047, d_expert=767),
}
"""Other ways to launch it, which are compiled as well: options of `grouped_up`, or of `make_inputs`."""


def make_inputs(tokens, d_model, d_expert, num_experts, top_k, block_m, *, gather=False, dtype, device, seed=0):
    """Permuted rows (or tokens) of order 1, SwiGLU's weights, a routing with an empty expert and empty slots."""
    table, weights = make_table(tokens, num_experts, top_k, block_m, device=device, seed=seed)
    x = normal(tokens if gather else table.row_assignment.numel(), d_model, seed=seed, dtype=dtype, device=device)
    w = normal(num_experts, 2 * d_expert, d_model, seed=seed + 1, dtype=dtype, device=device, scale=d_model**-0.5)
    return x, w, weights, table, block_m


def cost(tokens, d_model, d_expert, num_experts, top_k, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: rows and weights read once, a and hidden written."""
    rows = tokens * top_k
    numbers = rows * d_model + num_experts * 2 * d_expert * d_model + rows * 3 * d_expert
    return 2 * rows * d_model * 2 * d_expert, itemsize * numbers
