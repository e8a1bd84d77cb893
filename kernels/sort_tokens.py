"""Sort tokens by expert: where the row of each assignment lies, by a counting sort that always gives the same answer.

    row of assignment i = start[e] + |{j < i : expert of j = e}|,   e = expert of i,   i = token * slots + slot
    start[e] = sum over earlier experts of ceil(load / BLOCK_M) * BLOCK_M

    BLOCK_M = 4, experts = [[0, 2], [2, 0], [0, -1]]:          load = [3, 0, 2]      start = [0, 4, 4, 8]

        tile                  0               1           tile_expert    = [0, 2, ...]     num_tiles = [2]
                      +---+---+---+---+---+---+---+---+   assignment_row = [[0, 4], [5, 1], [2, -1]]
      row_assignment  | 0 | 3 | 4 | -1| 1 | 2 | -1| -1|
                      +---+---+---+---+---+---+---+---+
                           expert 0   |    expert 2       (expert 1 has no rows)

    launch 1  program p counts the experts of assignments p * CHUNK ... (p + 1) * CHUNK - 1, one row of a table a chunk
    launch 2  program p adds up EXPERTS columns of it. With CHUNK = 4:
                  chunk 0  [2 0 2]        [0 0 0]   so often did each expert occur before the chunk
                  chunk 1  [1 0 0]   ->   [2 0 2]   and the sums [3 0 2] are the loads
    launch 3  program p finds the rows of PART assignments: start of the expert + number before the chunk + number
              earlier in the chunk, for which it compares each with each

No atomic operation decides an order, so neither does the scheduler. Launch sizes depend on shapes alone.

Traffic: 0 FLOPs. An assignment: 8 bytes read twice from memory (and CHUNK / PART / 2 times from the cache), 4 written,
4 * num_experts / CHUNK of the table four times; a row: 4 written, and 4 again where it has an assignment. Besides,
about CHUNK / 2 comparisons of whole numbers an assignment: with many tokens they limit it, with few the launches.
Source: distribution counting (Knuth, The Art of Computer Programming, volume 3, section 5.2, algorithm D); blocks
padded to tiles as in MegaBlocks (arXiv:2211.15841, section 5.2).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._launch import INTERPRET, check_tensors

# A program counts CHUNK assignments in launch 1 and ranks PART in launch 3. A step of launch 2 takes CHUNKS x EXPERTS.
CHUNK, PART = (32, 8) if INTERPRET else (1024, 128)
CHUNKS, EXPERTS = (4, 4) if INTERPRET else (512, 8)
MOST_EXPERTS = 1024
MOST_ROWS = 2**31 - 2**12  # a chunk more is still an int32


class RowTable(NamedTuple):
    """Where each assignment's row lies: rows sorted by expert, each expert's block padded to whole tiles."""

    load: torch.Tensor  # int32 (num_experts,), assignments of each expert
    start: torch.Tensor  # int32 (num_experts + 1,), first row of each expert's padded block; the last is the end
    assignment_row: torch.Tensor  # int32 (tokens, slots), the row of each assignment; -1 for an empty slot
    row_assignment: torch.Tensor  # int32 (rows,), token * slots + slot; -1 in padding
    tile_expert: torch.Tensor  # int32 (tiles,), the expert of each tile of block_m rows; num_experts where none is
    num_tiles: torch.Tensor  # int32 (1,), tiles in use


def most_tiles(assignments, num_experts, block_m):
    """The most tiles that any routing can need: known without looking at it, so nothing waits for the GPU.

    An expert with n rows takes 1 + (n - 1) // block_m tiles, so most are taken where every expert has one row at least.
    """
    busy = min(num_experts, assignments)
    return busy + (assignments - busy) // block_m


def sort_tokens_reference(experts, num_experts, block_m):
    """The same tables by a stable sort."""
    flat = experts.reshape(-1).cpu().long()
    flat = flat.where(flat < num_experts, -1).clamp_min(-1)
    tiles = most_tiles(flat.numel(), num_experts, block_m)
    load = torch.bincount(flat[flat >= 0], minlength=num_experts)
    blocks = -(-load // block_m)
    start = torch.cat([torch.zeros(1, dtype=torch.long), (blocks * block_m).cumsum(0)])
    order = flat.argsort(stable=True)[int((flat < 0).sum()) :]
    before = torch.cat([torch.zeros(1, dtype=torch.long), load.cumsum(0)])
    row = start[flat[order]] + torch.arange(order.numel()) - before[flat[order]]
    assignment_row = torch.full_like(flat, -1).index_put((order,), row)
    row_assignment = torch.full((tiles * block_m,), -1).index_put((row,), order)
    tile_expert = torch.full((tiles,), num_experts)
    tile_expert[: int(blocks.sum())] = torch.arange(num_experts).repeat_interleave(blocks)
    tables = load, start, assignment_row.reshape(experts.shape), row_assignment, tile_expert, blocks.sum()[None]
    return RowTable(*(table.to(experts.device, torch.int32) for table in tables))


@triton.jit
def load_experts(experts, index, assignments, NUM_EXPERTS: tl.constexpr):
    """The experts of some assignments, as int32; NUM_EXPERTS for an empty slot and for what is no expert."""
    expert = tl.load(experts + index, mask=index < assignments, other=-1)
    return tl.where((expert >= 0) & (expert < NUM_EXPERTS), expert, NUM_EXPERTS).to(tl.int32)


@triton.jit
def padded_blocks(load, NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BINS: tl.constexpr):
    """The first tile of each expert's block, and the tile behind its last; both the end from bin NUM_EXPERTS on."""
    bins = tl.arange(0, BINS)
    rows = tl.load(load + bins, mask=bins < NUM_EXPERTS, other=0)
    tiles = rows // BLOCK_M + (rows % BLOCK_M > 0).to(tl.int32)
    behind = tl.cumsum(tiles, 0)
    return behind - tiles, behind


@triton.jit
def store_tile_experts(
    tile_expert, behind, first, last, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, STEP: tl.constexpr
):
    """Write the expert of tiles first ... last - 1: as many experts end at or before a tile as come before its own."""
    for tile in tl.range(first, last, STEP):
        tiles = tile + tl.arange(0, STEP)
        ended = (behind[:, None] <= tiles[None, :]) & (tl.arange(0, BINS) < NUM_EXPERTS)[:, None]
        tl.store(tile_expert + tiles, tl.sum(ended.to(tl.int32), 0), mask=tiles < last)


@triton.jit
def _count_kernel(
    experts,  # int64 or int32 (assignments,), the expert of each; what is no expert is an empty slot
    before,  # int32 (chunks, num_experts), written: how often each expert occurs in each chunk
    row_assignment,  # int32 (rows,), written: -1 everywhere
    assignments,
    rows,
    NUM_EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # 1. My share of the rows is padding, until launch 3 says otherwise.
    chunk = tl.program_id(0)
    mine = chunk * CHUNK + tl.arange(0, CHUNK)
    tl.store(row_assignment + mine, tl.full((CHUNK,), -1, tl.int32), mask=mine < rows)
    # 2. Count my assignments; empty slots have a bin of their own, which nobody reads. There are more rows than
    #    assignments, so the last programs may have none.
    if chunk * CHUNK < assignments:
        count = tl.histogram(load_experts(experts, mine, assignments, NUM_EXPERTS), BINS)
        bins = tl.arange(0, BINS)
        tl.store(before + chunk.to(tl.int64) * NUM_EXPERTS + bins, count, mask=bins < NUM_EXPERTS)


@triton.jit
def _prefix_kernel(
    before,  # int32 (chunks, num_experts), counts of each chunk; becomes the counts of all chunks before it
    load,  # int32 (num_experts,), written
    chunks,
    NUM_EXPERTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for first in tl.range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        place = before + chunk.to(tl.int64)[:, None] * NUM_EXPERTS + expert[None, :]
        inside = (chunk < chunks)[:, None] & (expert < NUM_EXPERTS)[None, :]
        count = tl.load(place, mask=inside, other=0)
        tl.store(place, total[None, :] + tl.cumsum(count, 0) - count, mask=inside)
        total += tl.sum(count, 0)
    tl.store(load + expert, total, mask=expert < NUM_EXPERTS)


@triton.jit
def _place_kernel(
    experts,  # int64 or int32 (assignments,)
    before,  # int32 (chunks, num_experts), how often each expert occurs before each chunk
    load,  # int32 (num_experts,)
    start,  # int32 (num_experts + 1,), written by program 0
    assignment_row,  # int32 (assignments,), written
    row_assignment,  # int32 (rows,), holds -1; rows that have an assignment are written
    tile_expert,  # int32 (tiles,), written
    num_tiles,  # int32 (1,), written by program 0
    assignments,
    tiles,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    STEP: tl.constexpr,
):
    # 1. Where does each expert's block begin? Every program works that out, since none could wait for another.
    part = tl.program_id(0) * PART
    begin, behind = padded_blocks(load, NUM_EXPERTS, BLOCK_M, BINS)
    if part == 0:
        bins = tl.arange(0, BINS)
        tl.store(start + bins, begin * BLOCK_M, mask=bins <= NUM_EXPERTS)
        tl.store(num_tiles, tl.max(behind, 0))
    # 2. My share of the tiles.
    store_tile_experts(tile_expert, behind, part, tl.minimum(part + PART, tiles), NUM_EXPERTS, BINS, STEP)
    if part < assignments:
        # 3. How many assignments of my chunk went to the same expert before each of mine?
        mine = part + tl.arange(0, PART)
        expert = load_experts(experts, mine, assignments, NUM_EXPERTS)
        chunk = part // CHUNK
        rank = tl.zeros((PART,), tl.int32)
        for earlier in tl.range(chunk * CHUNK, part + 1, PART):
            theirs = earlier + tl.arange(0, PART)
            other = load_experts(experts, theirs, assignments, NUM_EXPERTS)
            same = (other[:, None] == expert[None, :]) & (theirs[:, None] < mine[None, :])
            rank += tl.sum(same.to(tl.int32), 0)
        # 4. My rows; the bin of empty slots keeps the look-up inside.
        chosen = expert < NUM_EXPERTS
        rank += tl.load(before + chunk.to(tl.int64) * NUM_EXPERTS + expert, mask=chosen, other=0)
        row = tl.gather(begin, expert, 0) * BLOCK_M + rank
        tl.store(assignment_row + mine, tl.where(chosen, row, -1), mask=mine < assignments)
        tl.store(row_assignment + row, mine, mask=chosen)


def check_experts(experts, num_experts, block_name, block):
    """Refuse what cannot be sorted; returns the number of assignments, of tiles at most, and of bins."""
    check_tensors((torch.int64, torch.int32), experts=experts)
    if experts.dim() != 2:
        raise ValueError(f"experts must be (tokens, slots); got {tuple(experts.shape)}")
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise ValueError(f"num_experts must be in 1..{MOST_EXPERTS}; got {num_experts}")
    if block < 1:
        raise ValueError(f"{block_name} must be at least 1; got {block}")
    tiles = most_tiles(experts.numel(), num_experts, block)
    if tiles * block > MOST_ROWS:
        raise ValueError(
            f"experts {tuple(experts.shape)} may need {tiles * block} rows, in blocks of {block_name}={block}; "
            f"the tables are int32 and allow {MOST_ROWS}"
        )
    return experts.numel(), tiles, triton.next_power_of_2(num_experts + 1)


def sort_tokens(experts, num_experts, block_m):
    """Sort assignments (tokens, slots) by expert, each expert's block padded to whole tiles: the tables of `RowTable`.

    ``experts`` is int64 or int32 in 0..num_experts - 1; -1 is an empty slot. Any other number counts as an empty slot
    too: `Routing` refuses it, and to look for it here would wait for the GPU. Equal inputs give equal tables.
    """
    assignments, tiles, bins = check_experts(experts, num_experts, "block_m", block_m)
    experts, rows, chunks = experts.contiguous(), tiles * block_m, triton.cdiv(experts.numel(), CHUNK)

    def empty(*shape):
        return torch.empty(shape, dtype=torch.int32, device=experts.device)

    before = empty(chunks, num_experts)
    table = RowTable(
        load=empty(num_experts),
        start=empty(num_experts + 1),
        assignment_row=empty(*experts.shape),
        row_assignment=empty(rows),
        tile_expert=empty(tiles),
        num_tiles=empty(1),
    )
    sizes = dict(NUM_EXPERTS=num_experts, BINS=bins)
    _count_kernel[(max(1, triton.cdiv(rows, CHUNK)),)](
        experts, before, table.row_assignment, assignments, rows, CHUNK=CHUNK, **sizes
    )
    _prefix_kernel[(triton.cdiv(num_experts, EXPERTS),)](
        before, table.load, chunks, NUM_EXPERTS=num_experts, CHUNKS=CHUNKS, EXPERTS=EXPERTS
    )
    _place_kernel[(max(1, triton.cdiv(max(assignments, tiles), PART)),)](
        experts,
        before,
        assignments=assignments,
        tiles=tiles,
        BLOCK_M=block_m,
        CHUNK=CHUNK,
        PART=PART,
        STEP=tile_step(bins),
        **table._asdict(),
        **sizes,
    )
    return table


def tile_step(bins):
    """How many tiles a step of `store_tile_experts` compares with every expert: 4096 comparisons fit in registers."""
    return min(PART, 4096 // bins)


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=20, top_k=2, num_experts=4, block_m=16),
    "one_token": dict(tokens=1, top_k=2, num_experts=8, block_m=16),
    "odd": dict(tokens=47, top_k=3, num_experts=97, block_m=16),
    "one_expert": dict(tokens=33, top_k=1, num_experts=1, block_m=32),
    "qwen3": dict(tokens=32768, top_k=8, num_experts=128, block_m=128),
    "two_million": dict(tokens=16384 * 128, top_k=8, num_experts=256, block_m=128),
}


VARIANTS = {"widest": dict(num_experts=MOST_EXPERTS)}
"""Other ways to launch it, which are compiled as well: options of `make_inputs`."""


def make_inputs(tokens, top_k, num_experts, block_m, *, dtype, device, seed=0):
    """Random experts, int64 whatever the layer's ``dtype``; expert 1 gets nothing. A token may draw one twice."""
    if torch.device(device).type == "meta":
        return torch.empty(tokens, top_k, dtype=torch.int64, device=device), num_experts, block_m
    draw = torch.Generator().manual_seed(seed)
    choice = torch.randint(0, max(1, num_experts - 1), (tokens, top_k), generator=draw)
    return (choice + (choice >= 1)).to(device), num_experts, block_m


def cost(tokens, top_k, num_experts, block_m, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend: no FLOPs, and integers whatever the layer's ``itemsize``."""
    assignments = tokens * top_k
    tiles = most_tiles(assignments, num_experts, block_m)
    return 0, 8 * assignments + 4 * (assignments + tiles * block_m + tiles + 2 * num_experts + 2)
