"""Align, the serial way. Teaching material: the slow kernel that faster ones were published against.

    sorted_ids = the assignments by expert, each expert's block padded with `numel` to whole blocks of BLOCK_SIZE

    num_experts programs, each with a run of ceil(numel / num_experts) assignments, and a table of counters, one row a
    program and one in front:

        stage 1  program p counts its run, one assignment after the other     row p + 1 of the table
        stage 2  program e adds up its column, one row after the other        row p: what came before program p
        stage 3  one program adds up the padded loads, one expert after the other          first row of each block
        stage 4  program p writes its run, one assignment after the other, and expert p's entries of expert_ids

Traffic: 0 FLOPs; 8 bytes read twice and 4 written an assignment, 4 a row, 4 * num_experts^2 for the table. None of it
limits it: the chain of load, add, store does, each of which waits for the one before. The work is 2 * numel +
num_experts^2 + num_experts steps. The span, the longest chain, is 2 * ceil(numel / num_experts) + 2 * num_experts steps
(and one program's blocks), however large the GPU: the fewer the experts, the fewer the programs and the longer their
runs. 65536 assignments make runs of 256 with 256 experts, and of 8192 with 8. So a ratio to this baseline means nothing
without the number of experts.
Source: the form of the result is that of vLLM's and SGLang's moe_align_block_size; the four stages are those of the
Triton version that SGLang began with, written anew from their description. That version is the baseline of the "10x" in
an article of April 2025 (amd.com, "Revolutionizing Mixture of Experts Performance"), measured with 256 experts.
"""

import torch
import triton
import triton.language as tl

from . import sort_tokens
from .sort_tokens import check_experts, most_tiles, sort_tokens_reference


def align_serial_reference(experts, num_experts, block_size):
    """The same result by a stable sort: the tables of `sort_tokens_reference` in the form of vLLM and SGLang."""
    table = sort_tokens_reference(experts, num_experts, block_size)
    sorted_ids = table.row_assignment.where(table.row_assignment >= 0, experts.numel())
    return sorted_ids, table.tile_expert, table.num_tiles * block_size


@triton.jit
def _count_kernel(
    experts,  # int64 or int32 (numel,)
    counters,  # int32 (num_experts + 1, num_experts), zeros
    numel,
    NUM_EXPERTS: tl.constexpr,
):
    program = tl.program_id(0)
    run = (numel + NUM_EXPERTS - 1) // NUM_EXPERTS
    for i in tl.range(program * run, tl.minimum((program + 1) * run, numel)):
        expert = tl.load(experts + i)
        if (expert >= 0) & (expert < NUM_EXPERTS):
            counter = counters + (program + 1) * NUM_EXPERTS + expert
            tl.store(counter, tl.load(counter) + 1)


@triton.jit
def _column_kernel(
    counters,  # int32 (num_experts + 1, num_experts), counts of each program's run; becomes sums down the columns
    NUM_EXPERTS: tl.constexpr,
):
    total = 0
    for row in tl.range(1, NUM_EXPERTS + 1):
        counter = counters + row * NUM_EXPERTS + tl.program_id(0)
        total += tl.load(counter)
        tl.store(counter, total)


@triton.jit
def _block_kernel(
    counters,  # int32 (num_experts + 1, num_experts), the last row holds the loads
    start,  # int32 (num_experts + 1,), written
    num_tokens_post_padded,  # int32 (1,), written
    NUM_EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    end = 0
    tl.store(start, end)
    for expert in tl.range(0, NUM_EXPERTS):
        load = tl.load(counters + NUM_EXPERTS * NUM_EXPERTS + expert)
        end += (load // BLOCK_SIZE + (load % BLOCK_SIZE > 0).to(tl.int32)) * BLOCK_SIZE
        tl.store(start + expert + 1, end)
    tl.store(num_tokens_post_padded, end)


@triton.jit
def _scatter_kernel(
    experts,  # int64 or int32 (numel,)
    counters,  # int32 (num_experts + 1, num_experts), row p: how often each expert came before program p's run
    start,  # int32 (num_experts + 1,)
    sorted_ids,  # int32 (rows,), holds numel; rows that have an assignment are written
    expert_ids,  # int32 (blocks,), holds num_experts; blocks in use are written
    numel,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    # 1. As expert p: my blocks.
    program = tl.program_id(0)
    for block in tl.range(tl.load(start + program) // BLOCK_SIZE, tl.load(start + program + 1) // BLOCK_SIZE):
        tl.store(expert_ids + block, program)
    # 2. As program p: my run of the assignments. Nobody else reads or writes row p of the counters.
    run = (numel + NUM_EXPERTS - 1) // NUM_EXPERTS
    for i in tl.range(program * run, tl.minimum((program + 1) * run, numel)):
        expert = tl.load(experts + i)
        if (expert >= 0) & (expert < NUM_EXPERTS):
            counter = counters + program * NUM_EXPERTS + expert
            before = tl.load(counter)
            tl.store(sorted_ids + tl.load(start + expert) + before, i)
            tl.store(counter, before + 1)


def align_serial(experts, num_experts, block_size):
    """Sort assignments (tokens, slots) by expert in padded blocks: (sorted_ids, expert_ids, num_tokens_post_padded).

    All int32: ``sorted_ids`` (rows,) holds token * slots + slot, or ``experts.numel()`` in padding; ``expert_ids``
    (blocks,) the expert of each block of ``block_size`` rows, and num_experts where no block is (vLLM writes 0 there);
    ``num_tokens_post_padded`` (1,) the rows in use. -1 is an empty slot, and so is what is no expert. Within an expert
    assignments keep their order, so equal inputs give equal results. Nothing waits for the GPU.
    """
    numel, blocks, _ = check_experts(experts, num_experts, "block_size", block_size)
    experts, kind = experts.contiguous(), dict(dtype=torch.int32, device=experts.device)
    counters = torch.zeros(num_experts + 1, num_experts, **kind)  # counted up, so somebody has to begin at 0
    start = torch.empty(num_experts + 1, **kind)
    sorted_ids = torch.full((blocks * block_size,), numel, **kind)
    expert_ids = torch.full((blocks,), num_experts, **kind)
    num_tokens_post_padded = torch.empty(1, **kind)
    # One warp: one thread of it does all the work there is.
    sizes = dict(NUM_EXPERTS=num_experts, num_warps=1)
    _count_kernel[(num_experts,)](experts, counters, numel, **sizes)
    _column_kernel[(num_experts,)](counters, **sizes)
    _block_kernel[(1,)](counters, start, num_tokens_post_padded, BLOCK_SIZE=block_size, **sizes)
    _scatter_kernel[(num_experts,)](
        experts, counters, start, sorted_ids, expert_ids, numel, BLOCK_SIZE=block_size, **sizes
    )
    return sorted_ids, expert_ids, num_tokens_post_padded


# What tests, benchmarks and lessons share: the same as for `sort_tokens`, so that their times can be compared.
SHAPES = sort_tokens.SHAPES


def make_inputs(tokens, top_k, num_experts, block_m, *, dtype, device, seed=0):
    """Random experts, with none for expert 1: those of `sort_tokens`."""
    return sort_tokens.make_inputs(tokens, top_k, num_experts, block_m, dtype=dtype, device=device, seed=seed)


def cost(tokens, top_k, num_experts, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: no FLOPs, and integers whatever the layer's ``itemsize``."""
    blocks = most_tiles(tokens * top_k, num_experts, block_m)
    return 0, 8 * tokens * top_k + 4 * (blocks * block_m + blocks + 1)
