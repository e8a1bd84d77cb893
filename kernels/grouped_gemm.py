"""Grouped GEMM: one matrix product an expert, all in a single launch.

    y[r] = w[expert of r] @ x[r]           or, TRANSPOSED:  y[r] = x[r] @ w[expert of r]

    rows are sorted by expert; each expert's block is padded to whole tiles of BLOCK_M rows:

        tile    0     1     2     3     4             tile_expert = [0, 0, 1, 3, 3]     (expert 2 has no rows)
      x     +-----+-----+-----+-----+-----+           num_tiles   = [5]
            | e0  | e0 .| e1..| e3  | e3 .|           one work item = (row tile, column tile) of y:
            +-----+-----+-----+-----+-----+           BLOCK_M rows of one expert x BLOCK_N columns

    Programs are persistent: program p takes work items p, p + P, p + 2P, ... in the order of `tile_order.grouped`.

Traffic: 2 * rows * d_in * d_out FLOPs. x is read once a column tile, w once a row tile of its expert (most of it
from the L2 cache), y is written once. With many rows an expert the tensor cores limit it; with few, the reading of w.
Source: grouped GEMM as in ScatterMoE (arXiv:2403.08245, section 3), on padded blocks as in MegaBlocks
(arXiv:2211.15841, section 5.2); persistent programs and tensor descriptors as in Triton's tutorial 09.
"""

import triton
import triton.language as tl

from ._inputs import make_table
from ._launch import check_dims, check_places, check_tensors, choose_config, normal, num_programs
from ._tiles import aligned, describe, load_expert_tile, load_tile, store_tile
from .tile_order import grouped

CONFIGS = {
    "interpreter": dict(BLOCK_N=32, BLOCK_K=32, GROUP_M=2, num_warps=4, num_stages=1, descriptors=True),
    "hopper": dict(BLOCK_N=256, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3, descriptors=True),
    "hopper_small": dict(BLOCK_N=128, BLOCK_K=128, GROUP_M=8, num_warps=4, num_stages=4, descriptors=True),
    "ampere": dict(BLOCK_N=128, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=3, descriptors=False),
    "ampere_small": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=3, descriptors=False),
    "cdna": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=2, descriptors=False),
    "cdna_small": dict(BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=2, descriptors=False),
    "float32": dict(BLOCK_N=64, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=2, descriptors=False),
}


def grouped_gemm_reference(x, w, tile_expert, num_tiles, block_m, transposed=False):
    """The same result, a tile at a time. Rows of tiles that do not exist stay 0."""
    y = x.new_zeros(x.shape[0], w.shape[2] if transposed else w.shape[1])
    for tile in range(int(num_tiles)):
        rows = slice(tile * block_m, (tile + 1) * block_m)
        matrix = w[int(tile_expert[tile])]
        y[rows] = x[rows] @ (matrix if transposed else matrix.T)
    return y


@triton.jit
def _grouped_gemm_kernel(
    x,  # (rows, K), or a descriptor of it in boxes (BLOCK_M, BLOCK_K)
    w,  # (num_experts, N, K), TRANSPOSED: (num_experts, K, N); or a descriptor in boxes of one expert
    tile_expert,  # int32 (tiles,), the expert of each row tile
    num_tiles,  # int32 (1,), how many row tiles there are: known only on the device
    y,  # (rows, N), or a descriptor in boxes (BLOCK_M, BLOCK_N)
    K: tl.constexpr,
    N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    NUM_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles_m = tl.load(num_tiles)
    for item in tl.range(tl.program_id(0), tiles_m * NUM_N, NUM_PROGRAMS, flatten=True):
        # 1. Which tile of y is mine, and whose weights does it need?
        tile_m, tile_n = grouped(item, tiles_m, NUM_N, GROUP_M)
        expert = tl.load(tile_expert + tile_m)
        row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        # 2. Walk along the inner dimension; sums stay in float32.
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(0, K, BLOCK_K):
            left = load_tile(x, row, k, K, BLOCK_M, BLOCK_K, DESCRIPTORS)
            if TRANSPOSED:
                right = load_expert_tile(w, expert, k, column, K, N, BLOCK_K, BLOCK_N, DESCRIPTORS)
            else:
                right = load_expert_tile(w, expert, column, k, N, K, BLOCK_N, BLOCK_K, DESCRIPTORS).T
            total = tl.dot(left, right, total, input_precision="ieee")
        # 3. Round once, on the way out.
        store_tile(y, total, row, column, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


def grouped_gemm(x, w, tile_expert, num_tiles, block_m, *, transposed=False, config=None, group_m=None):
    """Multiply each tile of ``block_m`` rows of ``x`` by its expert's matrix: (rows, K) -> (rows, N).

    ``w`` is (num_experts, N, K), or (num_experts, K, N) with ``transposed``. ``tile_expert`` and ``num_tiles`` come
    from `sort_tokens`. Rows of tiles beyond ``num_tiles`` are not written. ``group_m`` is for comparing orders of
    tiles: 1 is row-major, one above the number of row tiles column-major. Nothing waits for the GPU.
    """
    check_tensors(x=x, w=w)
    check_places(x=x, tile_expert=tile_expert, num_tiles=num_tiles)
    check_dims(2, x=x)
    check_dims(3, w=w)
    inner, columns = w.shape[1:] if transposed else (w.shape[2], w.shape[1])
    if x.shape[1] != inner or x.dtype != w.dtype:
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype} and w {tuple(w.shape)} {w.dtype}: they do not fit")
    if x.shape[0] != tile_expert.numel() * block_m:
        raise ValueError(f"x must have {tile_expert.numel()} tiles of {block_m} rows; got {x.shape[0]} rows")
    x, w = x.contiguous(), w.contiguous()
    y = x.new_empty(x.shape[0], columns)
    options = choose_config(CONFIGS, block_m, x, config)
    block_n, block_k = options.pop("BLOCK_N"), options.pop("BLOCK_K")
    options |= {} if group_m is None else {"GROUP_M": group_m}
    use = options.pop("descriptors") and aligned(x, w, y)
    programs = num_programs(x.device)
    _grouped_gemm_kernel[(programs,)](
        describe(x, [block_m, block_k], use),
        describe(w, [1, block_k, block_n] if transposed else [1, block_n, block_k], use),
        tile_expert,
        num_tiles,
        describe(y, [block_m, block_n], use),
        K=inner,
        N=columns,
        TRANSPOSED=transposed,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        NUM_PROGRAMS=programs,
        DESCRIPTORS=use,
        **options,
    )
    return y


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(rows=50, num_experts=4, d_in=40, d_out=24, block_m=16),
    "one_row": dict(rows=1, num_experts=4, d_in=40, d_out=24, block_m=16),
    "odd": dict(rows=70, num_experts=3, d_in=97, d_out=47, block_m=16),
    "one_expert": dict(rows=33, num_experts=1, d_in=64, d_out=72, block_m=32),
    "qwen3": dict(rows=65536, num_experts=128, d_in=2048, d_out=1536, block_m=128),
    "mixtral": dict(rows=16384, num_experts=8, d_in=4096, d_out=28672, block_m=128),
}


VARIANTS = {"transposed": dict(transposed=True), "unaligned": dict(d_in=2047, d_out=1535)}
"""Other ways to launch it, which are compiled as well: options of `grouped_gemm`, or of `make_inputs`."""


def make_inputs(rows, num_experts, d_in, d_out, block_m, *, transposed=False, dtype, device, seed=0):
    """Rows on random experts, expert 1 always empty, because real routers leave some empty; weights of order 1."""
    table, _ = make_table(rows, num_experts, 1, block_m, device=device, seed=seed)
    x = normal(table.row_assignment.numel(), d_in, seed=seed, dtype=dtype, device=device)
    form = (d_in, d_out) if transposed else (d_out, d_in)
    w = normal(num_experts, *form, seed=seed + 1, dtype=dtype, device=device, scale=d_in**-0.5)
    return x, w, table.tile_expert, table.num_tiles, block_m


def cost(rows, num_experts, d_in, d_out, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend, whatever its tiles."""
    return 2 * rows * d_in * d_out, itemsize * (rows * d_in + num_experts * d_in * d_out + rows * d_out)
