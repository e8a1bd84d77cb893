"""Answers to the exercises of lesson 07: right ones, and wrong ones that must be refused with a reason.

A wrong kernel is the right one with one slip: a piece of its source text and what stands there instead.
"""

import importlib.util
import inspect
import tempfile
from pathlib import Path

import triton
import triton.language as tl

HEADER = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
_folder = Path(tempfile.mkdtemp(prefix="moe-lab-answers-"))


def kernel_from(source):
    """The kernel that a source text defines; Triton wants to read it in a file."""
    path = _folder / f"kernel_{len(list(_folder.iterdir()))}.py"
    path.write_text(HEADER + source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(value for value in vars(module).values() if hasattr(value, "arg_names"))


def slip(kernel, *changes):
    """A right kernel with some pieces of its text replaced."""
    source = inspect.getsource(kernel.fn).removeprefix("@triton.jit\n")
    for old, new in changes:
        assert old in source, f"{kernel.__name__} has no {old!r}"
        source = source.replace(old, new)
    return kernel_from(source)


# ---------------------------------------------------------------- right answers


def footprint(n, block, stride):
    programs = -(-n // block)
    at = [[4 * i * stride // 32 for i in range(p * block, min(n, (p + 1) * block))] for p in range(programs)]
    return programs, programs * block - n, sum(len(set(sectors)) for sectors in at)


@triton.jit
def count(experts, counts, n, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + at, mask=at < n, other=-1)
    count = tl.histogram(tl.where(expert >= 0, expert, NUM_EXPERTS).to(tl.int32), BINS)
    bins = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * NUM_EXPERTS + bins, count, mask=bins < NUM_EXPERTS)


@triton.jit
def blocks(load, start, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr):
    bins = tl.arange(0, BINS)
    rows = tl.load(load + bins, mask=bins < NUM_EXPERTS, other=0)
    padded = (rows + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    tl.store(start + bins, tl.cumsum(padded, 0) - padded, mask=bins <= NUM_EXPERTS)


@triton.jit
def place(experts, before, start, row, n, NUM_EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK + lane
    expert = tl.load(experts + at, mask=at < n, other=-1)
    earlier = (expert[:, None] == expert[None, :]) & (lane[:, None] < lane[None, :])
    rank = tl.sum(earlier.to(tl.int32), 0)
    chosen = expert >= 0
    rank += tl.load(before + tl.program_id(0) * NUM_EXPERTS + expert, mask=chosen, other=0)
    first = tl.load(start + expert, mask=chosen, other=0)
    tl.store(row + at, tl.where(chosen, first + rank, -1), mask=at < n)


@triton.jit
def combine(rows, row, y, slots, D: tl.constexpr, BLOCK_D: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for slot in range(slots):
        mine = tl.load(row + token * slots + slot)
        total += tl.load(rows + mine * D + columns, mask=(columns < D) & (mine >= 0), other=0.0)
    tl.store(y + token * D + columns, total.to(y.dtype.element_ty), mask=columns < D)


@triton.jit
def product(
    x,
    w,
    tile_expert,
    num_tiles,
    y,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
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
    tl.store(place, total.to(y.dtype.element_ty), mask=(columns < N)[None, :])


RIGHT = {"07.1": footprint, "07.2": count, "07.3": blocks, "07.4": place, "07.5": combine, "07.6": product}


# ---------------------------------------------------------------- the same answers, differently written


def footprint_by_distance(n, block, stride):
    """Sectors from the distance between a program's first and last number, or one a lane where they lie far apart."""
    programs, sectors = (n + block - 1) // block, 0
    for first in range(0, n, block):
        last = min(n, first + block) - 1
        sectors += last - first + 1 if stride > 8 else last * stride // 8 - first * stride // 8 + 1
    return programs, -n % block, sectors


@triton.jit
def count_by_comparing(experts, counts, n, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Each expert with each assignment."""
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + at, mask=at < n, other=-1)
    bins = tl.arange(0, BINS)
    count = tl.sum((bins[:, None] == expert[None, :]).to(tl.int32), 1)
    tl.store(counts + program * NUM_EXPERTS + bins, count, mask=bins < NUM_EXPERTS)


@triton.jit
def blocks_one_by_one(load, start, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr):
    """As stage 3 of the serial kernel does it."""
    end = 0
    for expert in range(NUM_EXPERTS):
        tl.store(start + expert, end)
        end += tl.cdiv(tl.load(load + expert), BLOCK_M) * BLOCK_M
    tl.store(start + NUM_EXPERTS, end)


@triton.jit
def place_one_by_one(experts, before, start, row, n, NUM_EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Counts what came earlier again for each assignment."""
    first = tl.program_id(0) * BLOCK
    for i in range(first, tl.minimum(first + BLOCK, n)):
        expert = tl.load(experts + i)
        mine = -1
        if expert >= 0:
            at = first + tl.arange(0, BLOCK)
            theirs = tl.load(experts + at, mask=at < i, other=-1)
            mine = tl.load(start + expert) + tl.load(before + tl.program_id(0) * NUM_EXPERTS + expert)
            mine += tl.sum((theirs == expert).to(tl.int32), 0)
        tl.store(row + i, mine)


@triton.jit
def combine_all_slots(rows, row, y, slots, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Empty slots are skipped, not masked."""
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    total = tl.zeros((BLOCK_D,), tl.float32)
    for at in range(tl.program_id(0) * slots, (tl.program_id(0) + 1) * slots):
        mine = tl.load(row + at)
        if mine >= 0:
            total += tl.load(rows + mine * D + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + tl.program_id(0) * D + columns, total, mask=inside)


@triton.jit
def product_transposed(
    x,
    w,
    tile_expert,
    num_tiles,
    y,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Reads w in tiles that are transposed already, and moves the pointers along."""
    if tl.program_id(0) < tl.load(num_tiles):
        rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        inner = tl.arange(0, BLOCK_K)
        left = x + rows * K + inner[None, :]
        right = w + (tl.load(tile_expert + tl.program_id(0)) * N + columns) * K + inner[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, tl.cdiv(K, BLOCK_K)):
            rest = K - k * BLOCK_K
            a = tl.load(left, mask=inner[None, :] < rest, other=0.0)
            b = tl.load(right, mask=(inner[:, None] < rest) & (columns < N), other=0.0)
            total += tl.dot(a, b, input_precision="ieee")
            left += BLOCK_K
            right += BLOCK_K
        tl.store(y + rows * N + columns, total, mask=columns < N)


ALSO_RIGHT = {
    "07.1": footprint_by_distance,
    "07.2": count_by_comparing,
    "07.3": blocks_one_by_one,
    "07.4": place_one_by_one,
    "07.5": combine_all_slots,
    "07.6": product_transposed,
}


# ---------------------------------------------------------------- wrong answers


def sectors_of(n, block, stride, size=32, width=4):
    """Segments that all loads take, with the sizes of segments and numbers to choose."""
    loads = [range(first, min(n, first + block)) for first in range(0, n, block)]
    return sum(len({width * i * stride // size for i in lanes}) for lanes in loads)


def numbers(programs=0, masked=0, sectors=0):
    """The right three numbers with one of them changed by a function of (n, block, stride)."""

    def answer(n, block, stride):
        right = footprint(n, block, stride)
        changes = (programs, masked, sectors)
        return tuple(
            value if not change else change(n, block, stride) for value, change in zip(right, changes, strict=True)
        )

    return answer


# Pieces of the right kernels that several slips replace.
ROW_OF_COUNTS = "tl.program_id(0) * NUM_EXPERTS + bins"
TILES = "(rows + BLOCK_M - 1) // BLOCK_M"
SCANNED = "tl.cumsum(padded, 0) - padded"
BEFORE = "before + tl.program_id(0) * NUM_EXPERTS + expert"
EXPERT = "tl.load(tile_expert + tile).to(tl.int64)"

WRONG = {
    "07.1": {
        "rounded down": numbers(programs=lambda n, b, s: n // b),
        "one more, just in case": numbers(programs=lambda n, b, s: n // b + 1),
        "the lanes in use": numbers(masked=lambda n, b, s: n % b),
        "no lane is masked": numbers(masked=lambda n, b, s: 0),
        "masked lanes of a whole block too": numbers(masked=lambda n, b, s: b - n % b),
        "as if neighbours": numbers(sectors=lambda n, b, s: footprint(n, b, 1)[2]),
        "one a lane": numbers(sectors=lambda n, b, s: n),
        "one load for all programs": numbers(sectors=lambda n, b, s: sectors_of(n, n, s)),
        "masked lanes load as well": numbers(sectors=lambda n, b, s: footprint(-(-n // b) * b, b, s)[2]),
        "cache lines of 128 bytes": numbers(sectors=lambda n, b, s: sectors_of(n, b, s, size=128)),
        "bytes": numbers(sectors=lambda n, b, s: 4 * n),
        "the stride in bytes": numbers(sectors=lambda n, b, s: sectors_of(n, b, s, width=1)),
        "two numbers": lambda n, b, s: footprint(n, b, s)[:2],
    },
    "07.2": {
        "no mask on the load": slip(count, (", mask=at < n, other=-1", "")),
        "padding counts as expert 0": slip(count, ("other=-1", "other=0")),
        "empty slots count as expert 0": slip(
            count,
            ("tl.where(expert >= 0, expert, NUM_EXPERTS)", "tl.maximum(expert, 0)"),
            ("other=-1", "other=NUM_EXPERTS"),
        ),
        "no mask on the store": slip(count, (", mask=bins < NUM_EXPERTS", "")),
        "rows of BINS": slip(count, ("tl.program_id(0) * NUM_EXPERTS", "tl.program_id(0) * BINS")),
        "everybody writes row 0": slip(count, ("counts + tl.program_id(0) * NUM_EXPERTS + bins", "counts + bins")),
        "transposed": slip(count, (ROW_OF_COUNTS, "tl.program_id(0) + bins * tl.num_programs(0)")),
        "atomics on what nobody set to 0": slip(count, ("tl.store(", "tl.atomic_add(")),
        "every program counts the first block": slip(count, ("at = tl.program_id(0) * BLOCK + ", "at = ")),
        "read, add, write": slip(
            count,
            ("    count = tl.histogram(tl.where(expert >= 0, expert, NUM_EXPERTS).to(tl.int32), BINS)\n", ""),
            ("    bins = tl.arange(0, BINS)\n", "    cell = counts + tl.program_id(0) * NUM_EXPERTS + expert\n"),
            (
                f"counts + {ROW_OF_COUNTS}, count, mask=bins < NUM_EXPERTS",
                "cell, tl.load(cell, mask=expert >= 0, other=0) + 1, mask=expert >= 0",
            ),
        ),
        "no expert last": slip(count, ("mask=bins < NUM_EXPERTS", "mask=bins < NUM_EXPERTS - 1")),
    },
    "07.3": {
        "inclusive": slip(blocks, (" - padded,", ",")),
        "padding forgotten": slip(blocks, (f"{TILES} * BLOCK_M", "rows")),
        "rounded down": slip(blocks, (TILES, "rows // BLOCK_M")),
        "always one tile more": slip(blocks, (TILES, "(rows // BLOCK_M + 1)")),
        "at least one tile": slip(blocks, (TILES, f"tl.maximum({TILES}, 1)")),
        "tiles, not rows": slip(blocks, (" // BLOCK_M * BLOCK_M", " // BLOCK_M")),
        "the sum padded, not the loads": slip(
            blocks, (f"{TILES} * BLOCK_M", "rows"), (SCANNED, f"({SCANNED} + BLOCK_M - 1) // BLOCK_M * BLOCK_M")
        ),
        "without the end": slip(blocks, ("bins <= NUM_EXPERTS", "bins < NUM_EXPERTS")),
        "reads one load too many": slip(
            blocks, ("mask=bins < NUM_EXPERTS, other=0", "mask=bins <= NUM_EXPERTS, other=0")
        ),
        "no mask": slip(blocks, (", mask=bins < NUM_EXPERTS, other=0", ""), (", mask=bins <= NUM_EXPERTS", "")),
    },
    "07.4": {
        "counts itself": slip(place, ("lane[:, None] < lane[None, :]", "lane[:, None] <= lane[None, :]")),
        "counts the later ones": slip(place, ("lane[:, None] < lane[None, :]", "lane[:, None] > lane[None, :]")),
        "counts the whole block": slip(place, (" & (lane[:, None] < lane[None, :])", "")),
        "sums along the other axis": slip(
            place, ("tl.sum(earlier.to(tl.int32), 0)", "tl.sum(earlier.to(tl.int32), 1)")
        ),
        "earlier blocks forgotten": slip(place, (f"    rank += tl.load({BEFORE}, mask=chosen, other=0)\n", "")),
        "before, of block 0": slip(place, (BEFORE, "before + expert")),
        "before, transposed": slip(place, (BEFORE, "before + expert * tl.num_programs(0) + tl.program_id(0)")),
        "start of the next expert": slip(place, ("tl.load(start + expert,", "tl.load(start + expert + 1,")),
        "empty slots look something up": slip(place, ("start + expert, mask=chosen, other=0", "start + expert")),
        "empty slots get a row": slip(place, ("tl.where(chosen, first + rank, -1)", "first + rank")),
        "empty slots get nothing": slip(
            place, ("tl.where(chosen, first + rank, -1), mask=at < n", "first + rank, mask=chosen")
        ),
        "no mask on the store": slip(place, (", -1), mask=at < n)", ", -1))")),
        "whoever comes first": slip(
            place,
            ("    first = tl.load(start + expert, mask=chosen, other=0)\n", ""),
            ("first + rank", "tl.atomic_add(start + expert, 1, mask=chosen)"),
        ),
    },
    "07.5": {
        "row -1 is read": slip(combine, (" & (mine >= 0)", "")),
        "no mask on the columns": slip(combine, ("(columns < D) & (mine >= 0)", "mine >= 0")),
        "no mask on the store": slip(combine, (", mask=columns < D)", ")")),
        "rows of BLOCK_D": slip(combine, ("mine * D", "mine * BLOCK_D")),
        "transposed": slip(combine, ("row + token * slots + slot", "row + slot * tl.num_programs(0) + token")),
        "the first slot only": slip(combine, ("range(slots)", "range(1)")),
        "the last slot only": slip(combine, ("total += ", "total = ")),
        "a mean": slip(combine, ("total.to(", "(total / slots).to(")),
        "in the dtype of the rows": slip(combine, ("tl.float32", "rows.dtype.element_ty")),
        "atomics on what nobody set to 0": slip(combine, ("tl.store(", "tl.atomic_add(")),
        "tokens without experts are left": slip(
            combine,
            ("    total = tl.zeros", "    served = -1\n    total = tl.zeros"),
            ("        total +=", "        served = tl.maximum(served, mine)\n        total +="),
            ("    tl.store(", "    if served >= 0:\n        tl.store("),
        ),
        "the first block of columns": slip(combine, ("tl.program_id(1) * BLOCK_D + ", "")),
    },
    "07.6": {
        "everybody's expert is 0": slip(product, (EXPERT, "0")),
        "the tile's number for its expert": slip(product, (EXPERT, "tile")),
        "tiles that do not exist": slip(product, ("    if tile >= tl.load(num_tiles):\n        return\n", "")),
        "the last tile is left out": slip(product, ("tile >= tl.load(num_tiles)", "tile >= tl.load(num_tiles) - 1")),
        "experts of K numbers": slip(product, (" * N * K", " * K")),
        "w transposed": slip(
            product, ("columns[:, None] * K + inner[None, :]", "columns[:, None] + inner[None, :] * N")
        ),
        "only the first step": slip(product, ("range(0, K, BLOCK_K)", "range(0, BLOCK_K, BLOCK_K)")),
        "only whole steps": slip(product, ("range(0, K, BLOCK_K)", "range(0, K // BLOCK_K * BLOCK_K, BLOCK_K)")),
        "the last step only": slip(product, ("right.T, total,", "right.T,")),
        "no mask along K": slip(
            product, (", mask=(inner < K)[None, :], other=0.0", ""), (" & (inner < K)[None, :]", "")
        ),
        "no mask along K for x": slip(product, (", mask=(inner < K)[None, :], other=0.0", "")),
        "no mask along N": slip(product, ("(columns < N)[:, None] & ", ""), (", mask=(columns < N)[None, :]", "")),
        "no mask on the store": slip(product, (", mask=(columns < N)[None, :]", "")),
        "inner not moved along": slip(product, ("inner = k + ", "inner = ")),
        "sums in float16": slip(
            product,
            ("total = tl.dot(left, right.T, total, ", "total = (total + tl.dot(left, right.T, "),
            ('"ieee")', '"ieee")).to(tl.float16).to(tl.float32)'),
        ),
        "added up atomically": slip(product, ("tl.store(", "tl.atomic_add(")),
    },
}

HINT_NAMES = {}
ARGUMENTS = {"07.1": "n, block, stride"}
