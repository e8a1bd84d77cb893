"""Exercises of lesson 07: what a kernel touches; then the kernels of an MoE layer, from a count to grouped products."""

import numpy as np
import torch
from torch import Tensor

from moe_lab.exercises import Exercise, Property
from moe_lab.exercises.puzzles import Case, solves
from moe_lab.tracing import Step

NUMBERS = ("programs", "masked lanes", "sectors")


def _experts(assignments: int, num_experts: int, empty: float = 0.0, seed: int = 0) -> list[int]:
    """Random experts; a share of the assignments is empty, -1."""
    draw = torch.Generator().manual_seed(seed)
    experts = torch.randint(0, num_experts, (assignments,), generator=draw)
    return experts.masked_fill(torch.rand(assignments, generator=draw) < empty, -1).tolist()


# ---------------------------------------------------------------- 07.1: what a kernel touches


def footprint(n: int, block: int, stride: int) -> tuple[int, int, int]:
    """Programs, masked lanes and loaded sectors of a kernel whose lane i loads the float32 number i * stride."""
    programs, sectors = -(-n // block), 0
    for program in range(programs):
        lanes = np.arange(program * block, min(n, (program + 1) * block)) * stride
        sectors += Step(0, program, 0, "load", "x", lanes, bytes_at=4 * lanes, width=4).segments()[0]
    return programs, programs * block - n, sectors


def _touches(n: int, block: int, stride: int) -> Property:
    def holds(answer) -> str | None:
        yours, spec = tuple(answer(n, block, stride)), footprint(n, block, stride)
        if len(yours) != len(NUMBERS):
            return f"give three numbers, {', '.join(NUMBERS)}; yours are {len(yours)}"
        for name, one, other in zip(NUMBERS, yours, spec, strict=True):
            if float(one) != other:
                return f"{name}: yours {one}, spec {other} for n {n}, block {block}, stride {stride}"
        return None

    return holds


# ---------------------------------------------------------------- 07.2: count


def chunk_counts(experts: list[int], num_experts: int, block: int) -> Tensor:
    """How often each expert occurs in each chunk of ``block`` assignments: int64 (chunks, num_experts)."""
    chunks = torch.tensor(experts).split(block)
    return torch.stack([torch.bincount(chunk[chunk >= 0], minlength=num_experts) for chunk in chunks])


def _bins(num_experts: int) -> int:
    """The next power of two that is larger: a bin for each expert, and at least one for what is none."""
    return 1 << num_experts.bit_length()


def _count(experts: list[int], num_experts: int, block: int = 16) -> Property:
    def make() -> Case:
        counts = chunk_counts(experts, num_experts, block)
        arguments = {"experts": torch.tensor(experts), "counts": torch.int32, "n": len(experts)}
        arguments |= {"NUM_EXPERTS": num_experts, "BINS": _bins(num_experts), "BLOCK": block}
        return Case((len(counts),), arguments, {"counts": counts}, {"counts": ("program", "expert")})

    return solves(make)


# ---------------------------------------------------------------- 07.3: where each expert's block begins


def _blocks(load: list[int], block_m: int) -> Property:
    def make() -> Case:
        loads = torch.tensor(load)
        ends = (-(-loads // block_m) * block_m).cumsum(0)
        start = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        arguments = {"load": loads.int(), "start": torch.int32, "NUM_EXPERTS": len(load)}
        arguments |= {"BINS": _bins(len(load)), "BLOCK_M": block_m}
        return Case((1,), arguments, {"start": start}, {"start": ("expert",)})

    return solves(make)


# ---------------------------------------------------------------- 07.4: which row each assignment gets


def _place(experts: list[int], num_experts: int, block_m: int = 4, block: int = 16) -> Property:
    def make() -> Case:
        from moe_lab.kernels.sort_tokens import sort_tokens_reference

        table = sort_tokens_reference(torch.tensor([experts]), num_experts, block_m)
        counts = chunk_counts(experts, num_experts, block)
        arguments = {"experts": torch.tensor(experts), "before": (counts.cumsum(0) - counts).int()}
        arguments |= {"start": table.start, "row": torch.int32, "n": len(experts)}
        arguments |= {"NUM_EXPERTS": num_experts, "BLOCK": block}
        expected = {"row": table.assignment_row[0].long()}
        return Case((len(counts),), arguments, expected, {"row": ("assignment",)})

    return solves(make)


# ---------------------------------------------------------------- 07.5: combine


def _combine(row: list[list[int]], width: int, block: int = 32, dtype=torch.float32, values: Tensor | None = None):
    """A sum over rows of which only those in ``row`` hold numbers: the others, padding, are NaN."""

    def make() -> Case:
        from moe_lab.kernels.combine import combine_reference

        table = torch.tensor(row)
        rows = torch.full((max(1, int(table.max()) + 1), width), float("nan"))
        draw = torch.Generator().manual_seed(0)
        used = table[table >= 0]
        rows[used] = torch.randn(len(used), width, generator=draw) if values is None else values
        rows = rows.to(dtype)
        arguments = {"rows": rows, "row": table.int(), "y": dtype, "slots": table.shape[1], "D": width}
        expected = {"y": combine_reference(rows.double(), table)}
        axes = {"y": ("token", "column")}
        return Case((len(table), -(-width // block)), arguments | {"BLOCK_D": block}, expected, axes)

    return solves(make)


HALF_VALUES = torch.tensor([2048.0] + [1.0] * 23)[:, None].expand(24, 8)
"""24 float16 numbers whose sum is 2071; added up in float16 it stays 2048, since 2048 + 1 is 2048."""


# ---------------------------------------------------------------- 07.6: grouped products


def _product(experts: list[int], num_experts: int, inner: int, columns: int, dtype=torch.float32) -> Property:
    """Rows of some experts in tiles of 16, times their experts' matrices; rows of tiles not in use hold NaN."""

    def make() -> Case:
        from moe_lab.kernels.grouped_gemm import grouped_gemm_reference
        from moe_lab.kernels.sort_tokens import sort_tokens_reference

        table = sort_tokens_reference(torch.tensor(experts)[:, None], num_experts, 16)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(len(table.row_assignment), inner, generator=draw)
        w = (torch.randn(num_experts, columns, inner, generator=draw) / inner**0.5).to(dtype)
        x[table.row_assignment < 0] = 0.0
        x[16 * int(table.num_tiles) :] = float("nan")
        x = x.to(dtype)
        unused = torch.zeros(len(x), columns, dtype=torch.bool)
        unused[16 * int(table.num_tiles) :] = True
        y = grouped_gemm_reference(x.double(), w.double(), table.tile_expert, table.num_tiles, 16)
        arguments = {"x": x, "w": w, "tile_expert": table.tile_expert, "num_tiles": table.num_tiles, "y": dtype}
        arguments |= {"K": inner, "N": columns, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
        grid = (len(table.tile_expert), -(-columns // 16))
        return Case(grid, arguments, {"y": y}, {"y": ("row", "column")}, {"y": unused})

    return solves(make)


EXERCISES = {
    "07.1": Exercise(
        "Predict what a kernel touches",
        {
            "ten numbers, blocks of four": _touches(10, 4, 1),
            "whole blocks": _touches(256, 64, 1),
            "a last block that is not full": _touches(1000, 128, 1),
            "every other number": _touches(100, 32, 2),
            "every third number": _touches(50, 16, 3),
            "columns of a matrix of 64": _touches(70, 32, 64),
            "one number": _touches(1, 16, 5),
        },
        hints=(
            "Programs come whole: round up. They have programs * block lanes, and n of those are wanted.",
            "A sector is 32 bytes, eight float32 numbers, at a multiple of 32. A load by one program touches each "
            "sector once, however many of its lanes lie in it; the next program's load is another load.",
            "programs = -(-n // block); "
            "lanes = [range(p, min(n, p + block)) for p in range(0, n, block)]; "
            "sectors = [{4 * i * stride // 32 for i in some} for some in lanes]; "
            "return programs, programs * block - n, sum(map(len, sectors))",
        ),
    ),
    "07.2": Exercise(
        "Write the kernel that counts",
        {
            "one full block": _count(_experts(16, 3), 3),
            "three blocks": _count(_experts(48, 3), 3),
            "a last block that is not full": _count(_experts(37, 5), 5),
            "empty slots": _count(_experts(40, 6, empty=0.4), 6),
            "as many experts as a power of two": _count(_experts(20, 4, empty=0.1), 4),
            "all on one expert": _count([2] * 35, 7),
            "one assignment": _count([0], 2),
        },
        hints=(
            "Program p has the assignments p * BLOCK + tl.arange(0, BLOCK), as far as there are n of them, and row p "
            "of counts, which nobody else writes.",
            "tl.histogram(values, BINS) counts values in 0..BINS - 1. Lanes without an assignment and empty slots must "
            "go to a bin that is not stored: BINS is always more than NUM_EXPERTS.",
            """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + at, mask=at < n, other=-1)
    count = tl.histogram(tl.where(expert >= 0, expert, NUM_EXPERTS).to(tl.int32), BINS)
    bins = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * NUM_EXPERTS + bins, count, mask=bins < NUM_EXPERTS)""",
        ),
    ),
    "07.3": Exercise(
        "Write the kernel that finds each expert's block",
        {
            "loads 3, 0, 2 in tiles of 4": _blocks([3, 0, 2], 4),
            "whole tiles need no padding": _blocks([8, 4, 12], 4),
            "tiles of one row": _blocks([3, 1, 0, 5], 1),
            "many experts": _blocks([_experts(300, 13, seed=1).count(e) for e in range(13)], 16),
            "nobody is wanted": _blocks([0, 0, 0, 0], 16),
            "one expert": _blocks([33], 16),
            "large loads": _blocks([2**20 + 1, 0, 2**21 - 1], 128),
        },
        hints=(
            "A load takes ceil(load / BLOCK_M) whole tiles. Where does expert e begin: which experts lie before it?",
            "tl.cumsum includes the element itself; what lies before it is the sum minus the element. start has one "
            "entry more than there are experts: the end.",
            """
    bins = tl.arange(0, BINS)
    rows = tl.load(load + bins, mask=bins < NUM_EXPERTS, other=0)
    padded = (rows + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    tl.store(start + bins, tl.cumsum(padded, 0) - padded, mask=bins <= NUM_EXPERTS)""",
        ),
    ),
    "07.4": Exercise(
        "Write the kernel that gives each assignment its row",
        {
            "one block": _place(_experts(16, 3), 3),
            "the example of section 3": _place([0, 2, 2, 0, 0, -1], 3, block=4),
            "several blocks": _place(_experts(48, 3, seed=2), 3),
            "a last block that is not full": _place(_experts(37, 5), 5),
            "empty slots": _place(_experts(40, 6, empty=0.4), 6),
            "all on one expert": _place([1] * 35, 3),
            "no expert at all": _place([-1] * 5, 2),
            "one assignment": _place([3], 4, block_m=16),
        },
        hints=(
            "row = start of its expert + how many of that expert came before: in earlier blocks (before has that), and "
            "earlier in this one.",
            "Compare each lane's expert with each other lane's: expert[:, None] == expert[None, :]. Of these, only "
            "lanes that come earlier count. Lanes without an expert must look nothing up, and get row -1.",
            """
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK + lane
    expert = tl.load(experts + at, mask=at < n, other=-1)
    earlier = (expert[:, None] == expert[None, :]) & (lane[:, None] < lane[None, :])
    rank = tl.sum(earlier.to(tl.int32), 0)
    chosen = expert >= 0
    rank += tl.load(before + tl.program_id(0) * NUM_EXPERTS + expert, mask=chosen, other=0)
    first = tl.load(start + expert, mask=chosen, other=0)
    tl.store(row + at, tl.where(chosen, first + rank, -1), mask=at < n)""",
        ),
    ),
    "07.5": Exercise(
        "Write the kernel that adds up each token's answers",
        {
            "two slots": _combine([[0, 4], [5, 1]], 32),
            "empty slots": _combine([[0, 4], [5, 1], [2, -1], [-1, 6]], 32),
            "a token without experts gets 0": _combine([[-1, -1], [3, 0]], 16),
            "columns that do not fill a block": _combine([[2, 0, 1], [7, 8, 9]], 97),
            "one slot": _combine([[3], [0]], 8),
            "eight slots": _combine([[0, 3, 6, 9, 12, 15, 18, 21], [1, 4, 7, 10, 13, 16, 19, 22]], 16),
            "float16, summed in float32": _combine([[*range(24)]], 8, dtype=torch.float16, values=HALF_VALUES),
        },
        hints=(
            "Program (t, b) owns columns b * BLOCK_D + tl.arange(0, BLOCK_D) of token t. It reads a row number for "
            "each slot, then that row's columns.",
            "Row -1 lies before the first: mask it and take 0 instead. Begin with tl.zeros((BLOCK_D,), tl.float32), so "
            "that float16 rows are added up in float32.",
            """
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for slot in range(slots):
        mine = tl.load(row + token * slots + slot)
        total += tl.load(rows + mine * D + columns, mask=(columns < D) & (mine >= 0), other=0.0)
    tl.store(y + token * D + columns, total.to(y.dtype.element_ty), mask=columns < D)""",
        ),
    ),
    "07.6": Exercise(
        "Write the kernel that multiplies every tile by its expert's matrix",
        {
            "one tile, one step": _product([0] * 16, 1, 16, 16),
            "several steps along K": _product([0] * 16, 1, 48, 16),
            "two experts": _product([0, 1] * 9, 2, 32, 16),
            "an expert without rows": _product([0, 2, 2, 3] * 5, 4, 32, 16),
            "K and N that fill no block": _product([2, 0] * 10, 3, 40, 24),
            "odd sizes": _product([1, 0, 1] * 6, 3, 47, 17),
            "float16": _product([0, 1] * 9, 2, 32, 16, dtype=torch.float16),
        },
        hints=(
            "Start from the tile product of section 5. Program (i, j) has the rows i * BLOCK_M ... of x and y, and j's "
            "columns. If i is not below num_tiles, return: such a tile does not exist.",
            "One thing changes: expert e's matrix begins N * K numbers after that of e - 1. Masks: inner < K on both "
            "loads, columns < N on w and on y. Rows need none, they come in whole tiles.",
            """
    tile = tl.program_id(0)
    if tile >= tl.load(num_tiles):
        return
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = w + tl.load(tile_expert + tile).to(tl.int64) * N * K
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        left = tl.load(x + rows[:, None] * K + inner[None, :], mask=(inner < K)[None, :], other=0.0)
        inside = (columns < N)[:, None] & (inner < K)[None, :]
        right = tl.load(matrix + columns[:, None] * K + inner[None, :], mask=inside, other=0.0)
        total = tl.dot(left, right.T, total, input_precision="ieee")
    place = y + rows[:, None] * N + columns[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=(columns < N)[None, :])""",
        ),
    ),
}
