"""Grouped weight gradient: for each expert, the product of its rows' gradients with its rows.

    dw[e] = sum over rows r of expert e of  left[r] (outer) right[r]          (d_left, d_right) of each expert

    left  +-----------+-------+-----+        one program = one (BLOCK_M, BLOCK_N) tile of one expert's dw:
          | e0        | e1    | e3  |        it walks down that expert's rows and nobody else's
    right +-----------+-------+-----+
            start[0]    start[1] ..          expert 2 has no rows: the walk is empty, and zeros are written

Padding rows of the left side are zero, so they add nothing, and no mask is needed. An expert without rows gets an
exact 0 from the same store as everyone, so the gradient is never filled beforehand.

Traffic: 2 * rows * d_left * d_right FLOPs; reads left once a column tile and right once a row tile, writes
num_experts * d_left * d_right, which with few rows an expert is most of it.
Source: the k-grouped product of DeepGEMM and the XTY kernel of ScatterMoE (arXiv:2403.08245, section 3), on padded
blocks.
"""

import torch
import triton
import triton.language as tl

from ._inputs import make_table
from ._launch import INTERPRET, check_dims, check_places, check_tensors, choose_config, normal
from ._tiles import aligned, describe, load_tile, store_expert_tile
from .tile_order import grouped

CONFIGS = {
    "interpreter": dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP_M=2, num_warps=4, num_stages=1, descriptors=True),
    "hopper": dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=4, num_warps=8, num_stages=3, descriptors=True),
    "hopper_small": dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=4, num_warps=8, num_stages=4, descriptors=True),
    "ampere": dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=4, num_warps=8, num_stages=3, descriptors=False),
    "ampere_small": dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=32, GROUP_M=4, num_warps=4, num_stages=3, descriptors=False),
    "cdna": dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=4, num_warps=8, num_stages=2, descriptors=False),
    "cdna_small": dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=32, GROUP_M=4, num_warps=4, num_stages=2, descriptors=False),
    "float32": dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, GROUP_M=4, num_warps=8, num_stages=2, descriptors=False),
}


def grouped_weight_gradient_reference(left, right, start, block_m):
    """The same gradients, an expert at a time."""
    blocks = [slice(int(start[e]), int(start[e + 1])) for e in range(start.numel() - 1)]
    return torch.stack([left[block].T @ right[block] for block in blocks])


@triton.jit
def _grouped_weight_gradient_kernel(
    left,  # (rows, D_LEFT), or a descriptor in boxes (BLOCK_K, BLOCK_M)
    right,  # (rows, D_RIGHT), or a descriptor in boxes (BLOCK_K, BLOCK_N)
    start,  # int32 (num_experts + 1,), first row of each expert's padded block
    dw,  # (num_experts, D_LEFT, D_RIGHT), or a descriptor in boxes of one expert
    D_LEFT: tl.constexpr,
    D_RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    NUM_M: tl.constexpr = (D_LEFT + BLOCK_M - 1) // BLOCK_M
    NUM_N: tl.constexpr = (D_RIGHT + BLOCK_N - 1) // BLOCK_N
    # 1. Which expert, and which tile of its gradient? All tiles of one expert run near each other in time.
    expert = tl.program_id(0) // (NUM_M * NUM_N)
    tile_m, tile_n = grouped(tl.program_id(0) % (NUM_M * NUM_N), NUM_M, NUM_N, GROUP_M)
    # 2. Down this expert's rows: whole steps, since BLOCK_K divides the tiles its block is padded to.
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for row in tl.range(tl.load(start + expert), tl.load(start + expert + 1), BLOCK_K):
        a = load_tile(left, row, tile_m * BLOCK_M, D_LEFT, BLOCK_K, BLOCK_M, DESCRIPTORS)
        b = load_tile(right, row, tile_n * BLOCK_N, D_RIGHT, BLOCK_K, BLOCK_N, DESCRIPTORS)
        total = tl.dot(a.T, b, total, input_precision="ieee")
    # 3. Round once, on the way out; zeros where there were no rows.
    store_expert_tile(
        dw, total, expert, tile_m * BLOCK_M, tile_n * BLOCK_N, D_LEFT, D_RIGHT, BLOCK_M, BLOCK_N, DESCRIPTORS
    )


def grouped_weight_gradient(left, right, start, block_m, *, config=None):
    """(rows, d_left) and (rows, d_right) -> (num_experts, d_left, d_right), over each expert's block of rows.

    ``start`` is that of the `RowTable` of `sort_tokens` for tiles of ``block_m`` rows. Padding rows must be 0 on one
    side and finite on the other.
    """
    check_tensors(left=left, right=right)
    check_places(left=left, start=start)
    check_dims(2, left=left, right=right)
    if left.dtype != right.dtype or left.shape[0] != right.shape[0]:
        raise ValueError(
            f"left is {tuple(left.shape)} {left.dtype} and right {tuple(right.shape)} {right.dtype}: they do not fit"
        )
    left, right = left.contiguous(), right.contiguous()
    dw = left.new_empty(start.numel() - 1, left.shape[1], right.shape[1])
    options = choose_config(CONFIGS, block_m, left, config)
    options["BLOCK_K"] = min(options["BLOCK_K"], block_m)
    whole = aligned(left, right, dw)
    if not (whole or INTERPRET):  # pointers to single numbers take registers, and with whole tiles they spill
        options["BLOCK_N"] //= 2
    rows, columns, inner = options["BLOCK_M"], options["BLOCK_N"], options["BLOCK_K"]
    use = options.pop("descriptors") and whole
    if dw.numel():
        tiles = triton.cdiv(left.shape[1], rows) * triton.cdiv(right.shape[1], columns)
        _grouped_weight_gradient_kernel[(dw.shape[0] * tiles,)](
            describe(left, [inner, rows], use),
            describe(right, [inner, columns], use),
            start,
            describe(dw, [1, rows, columns], use),
            D_LEFT=left.shape[1],
            D_RIGHT=right.shape[1],
            DESCRIPTORS=use,
            **options,
        )
    return dw


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(rows=50, num_experts=4, d_left=40, d_right=24, block_m=16),
    "one_row": dict(rows=1, num_experts=4, d_left=40, d_right=24, block_m=16),
    "odd": dict(rows=70, num_experts=3, d_left=97, d_right=47, block_m=16),
    "one_expert": dict(rows=33, num_experts=1, d_left=64, d_right=72, block_m=32),
    "qwen3": dict(rows=65536, num_experts=128, d_left=1536, d_right=2048, block_m=128),
    "mixtral": dict(rows=16384, num_experts=8, d_left=28672, d_right=4096, block_m=128),
}


VARIANTS = {"unaligned": dict(d_left=1535, d_right=2047)}
"""Other ways to launch it, which are compiled as well: options of `make_inputs`."""


def make_inputs(rows, num_experts, d_left, d_right, block_m, *, dtype, device, seed=0):
    """Rows of order 1 on random experts, expert 1 always empty; zeros in the padding of the left side."""
    table, _ = make_table(rows, num_experts, 1, block_m, device=device, seed=seed)
    filled = (table.row_assignment >= 0)[:, None]
    left = normal(filled.shape[0], d_left, seed=seed, dtype=dtype, device=device) * filled
    right = normal(filled.shape[0], d_right, seed=seed + 1, dtype=dtype, device=device)
    return left, right, table.start, block_m


def cost(rows, num_experts, d_left, d_right, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: rows read once, every expert's gradient written."""
    return 2 * rows * d_left * d_right, itemsize * (rows * (d_left + d_right) + num_experts * d_left * d_right)
