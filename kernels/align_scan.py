"""Align, the parallel way: histogram, scan, scatter. Teaching material: what replaced `align_serial` in SGLang.

    sorted_ids = the assignments by expert, each expert's block padded with `numel` to whole blocks of BLOCK_SIZE,
                 in no particular order within an expert

        launch 1  program p counts assignments p * CHUNK ... of each expert, and adds them to `load`     (atomic)
        launch 2  one program scans the padded loads: the first free row of each expert
        launch 3  every assignment takes the next free row of its expert                                 (atomic)

Which program's addition comes first is the scheduler's choice, so an expert's rows lie in another order in each run.
Each row's own result does not depend on that, but a sum over the rows of an expert does: its weight gradient would
differ in the last bits from run to run. `sort_tokens` therefore counts what came before, and adds nothing atomically.

Traffic: 0 FLOPs; 8 bytes read twice and 4 written an assignment, 4 a row, all in parallel. Its limits are the additions
to num_experts addresses: one an assignment in launch 3, and those to one address come one after the other, so few
experts, or one with most of the load, make it slower.
Source: the form of the result and the three steps are those of vLLM's and SGLang's moe_align_block_size, here written
anew from that description.
"""

import torch
import triton
import triton.language as tl

from . import align_serial
from .align_serial import align_serial_reference
from .sort_tokens import CHUNK, PART, check_experts, load_experts, padded_blocks, store_tile_experts, tile_step


def align_scan_reference(experts, num_experts, block_size):
    """The same result by a stable sort, which is one of the orders that are allowed."""
    return align_serial_reference(experts, num_experts, block_size)


@triton.jit
def _count_kernel(
    experts,  # int64 or int32 (numel,)
    load,  # int32 (num_experts,), zeros; becomes the loads
    sorted_ids,  # int32 (rows,), written: numel everywhere
    numel,
    rows,
    NUM_EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # 1. My share of the rows is padding, until launch 3 says otherwise.
    first = tl.program_id(0) * CHUNK
    mine = first + tl.arange(0, CHUNK)
    tl.store(sorted_ids + mine, tl.zeros((CHUNK,), tl.int32) + numel, mask=mine < rows)
    # 2. One addition a program and expert that occurs, not one an assignment.
    if first < numel:
        count = tl.histogram(load_experts(experts, mine, numel, NUM_EXPERTS), BINS)
        bins = tl.arange(0, BINS)
        tl.atomic_add(load + bins, count, mask=(bins < NUM_EXPERTS) & (count > 0), sem="relaxed")


@triton.jit
def _scan_kernel(
    load,  # int32 (num_experts,)
    free,  # int32 (num_experts,), written: the first row of each expert's block
    num_tokens_post_padded,  # int32 (1,), written
    NUM_EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BINS: tl.constexpr,
):
    begin, behind = padded_blocks(load, NUM_EXPERTS, BLOCK_SIZE, BINS)
    bins = tl.arange(0, BINS)
    tl.store(free + bins, begin * BLOCK_SIZE, mask=bins < NUM_EXPERTS)
    tl.store(num_tokens_post_padded, tl.max(behind, 0) * BLOCK_SIZE)


@triton.jit
def _scatter_kernel(
    experts,  # int64 or int32 (numel,)
    load,  # int32 (num_experts,)
    free,  # int32 (num_experts,), the next free row of each expert: counted up
    sorted_ids,  # int32 (rows,), holds numel; rows that have an assignment are written
    expert_ids,  # int32 (blocks,), written
    numel,
    blocks,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BINS: tl.constexpr,
    PART: tl.constexpr,
    STEP: tl.constexpr,
):
    # 1. My share of the blocks, for which the first programs scan the loads once more.
    part = tl.program_id(0) * PART
    if part < blocks:
        _, behind = padded_blocks(load, NUM_EXPERTS, BLOCK_SIZE, BINS)
        store_tile_experts(expert_ids, behind, part, tl.minimum(part + PART, blocks), NUM_EXPERTS, BINS, STEP)
    # 2. Each of my assignments takes the next free row of its expert.
    mine = part + tl.arange(0, PART)
    expert = load_experts(experts, mine, numel, NUM_EXPERTS)
    chosen = expert < NUM_EXPERTS
    row = tl.atomic_add(free + expert, 1, mask=chosen, sem="relaxed")
    tl.store(sorted_ids + row, mine, mask=chosen)


def align_scan(experts, num_experts, block_size):
    """Sort assignments (tokens, slots) by expert in padded blocks: the result of `align_serial`, in another order.

    Inside of an expert's blocks the order of the assignments is not defined, and may change from run to run; all else
    is the same. Nothing waits for the GPU.
    """
    numel, blocks, bins = check_experts(experts, num_experts, "block_size", block_size)
    experts, kind, rows = experts.contiguous(), dict(dtype=torch.int32, device=experts.device), blocks * block_size
    load = torch.zeros(num_experts, **kind)  # added to, so somebody has to begin at 0
    free = torch.empty(num_experts, **kind)
    sorted_ids, expert_ids = torch.empty(rows, **kind), torch.empty(blocks, **kind)
    num_tokens_post_padded = torch.empty(1, **kind)
    sizes = dict(NUM_EXPERTS=num_experts, BINS=bins)
    _count_kernel[(max(1, triton.cdiv(rows, CHUNK)),)](experts, load, sorted_ids, numel, rows, CHUNK=CHUNK, **sizes)
    _scan_kernel[(1,)](load, free, num_tokens_post_padded, BLOCK_SIZE=block_size, **sizes)
    _scatter_kernel[(max(1, triton.cdiv(max(numel, blocks), PART)),)](
        experts,
        load,
        free,
        sorted_ids,
        expert_ids,
        numel,
        blocks,
        BLOCK_SIZE=block_size,
        PART=PART,
        STEP=tile_step(bins),
        **sizes,
    )
    return sorted_ids, expert_ids, num_tokens_post_padded


# What tests, benchmarks and lessons share: the same as for the kernel that this one replaced.
SHAPES = align_serial.SHAPES


def make_inputs(tokens, top_k, num_experts, block_m, *, dtype, device, seed=0):
    """Random experts, with none for expert 1: those of `align_serial`."""
    return align_serial.make_inputs(tokens, top_k, num_experts, block_m, dtype=dtype, device=device, seed=seed)


def cost(tokens, top_k, num_experts, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: those of `align_serial`."""
    return align_serial.cost(tokens, top_k, num_experts, block_m, itemsize=itemsize)
