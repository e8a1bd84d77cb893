"""What a cache makes of the order of tiles: bytes that a grouped matrix product fetches from memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from moe_lab.checks import check_whole

Tile = tuple[int, int]
"""(tile_m, tile_n): a row tile of the sorted rows, a column tile of the output."""
Order = Callable[[int, int, int, int, int], Tile]
"""(item, tiles_m, tiles_n, group_m, num_xcds) -> `Tile`, as in kernels/tile_order.py."""


@dataclass(frozen=True)
class Gemm:
    """A grouped product y = w[expert of the row] @ x, cut into tiles as kernels/grouped_gemm.py cuts it.

    ``load`` has the rows of each expert, padded to whole tiles of ``block_m`` rows; x is (rows, ``d_in``), w is
    (num_experts, ``d_out``, ``d_in``), y is (rows, ``d_out``), ``itemsize`` bytes a number. A box is what one program
    reads of x or of w in one step along ``d_in``: (block_m, block_k) of x, (block_n, block_k) of w; what lies beyond
    d_in or d_out is not read, padded rows are.

    Example:
        >>> gemm = Gemm(load=(130, 0, 5), d_in=256, d_out=512)
        >>> gemm.tile_expert, gemm.tiles_n, gemm.steps
        ((0, 0, 2), 2, 4)
        >>> gemm.x_bytes, gemm.w_bytes  # each number once; no row needs the weights of expert 1
        (196608, 524288)

    Raises TypeError or ValueError for sizes that are not whole numbers above 0 and for loads below 0.
    """

    load: Iterable  # of whole numbers, a tensor or anything; kept as a tuple
    d_in: int
    d_out: int
    block_m: int = 128
    block_n: int = 256
    block_k: int = 64
    itemsize: int = 2

    def __post_init__(self):
        if not isinstance(self.load, Iterable) or isinstance(self.load, str):
            raise TypeError(f"load must be the rows of each expert, got {self.load!r}")
        rows = tuple(check_whole(f"load[{expert}]", value, 0) for expert, value in enumerate(self.load))
        if not rows:
            raise ValueError("load must have at least one expert, got none")
        object.__setattr__(self, "load", rows)
        for name in ("d_in", "d_out", "block_m", "block_n", "block_k", "itemsize"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))

    @property
    def tile_expert(self) -> tuple[int, ...]:
        """The expert of each row tile."""
        return tuple(expert for expert, rows in enumerate(self.load) for _ in range(-(-rows // self.block_m)))

    @property
    def tiles_m(self) -> int:
        """Row tiles, of all experts together."""
        return len(self.tile_expert)

    @property
    def tiles_n(self) -> int:
        """Column tiles of the output."""
        return -(-self.d_out // self.block_n)

    @property
    def steps(self) -> int:
        """Boxes along d_in: how many steps a program takes for one tile."""
        return -(-self.d_in // self.block_k)

    @property
    def x_bytes(self) -> int:
        """All rows of x once, padding among them."""
        return self.tiles_m * self.block_m * self.d_in * self.itemsize

    @property
    def w_bytes(self) -> int:
        """The weights of every expert that has rows, once."""
        return len(set(self.tile_expert)) * self.d_in * self.d_out * self.itemsize

    @property
    def y_bytes(self) -> int:
        """All rows of y once, padding among them."""
        return self.tiles_m * self.block_m * self.d_out * self.itemsize


def even_load(rows: int, num_experts: int) -> tuple[int, ...]:
    """Rows of each expert when they differ by at most one.

    Example:
        >>> even_load(10, 4)
        (3, 3, 2, 2)

    Raises ValueError for rows below 0 or no expert.
    """
    each, more = divmod(check_whole("rows", rows, 0), check_whole("num_experts", num_experts, 1))
    return tuple(each + (expert < more) for expert in range(num_experts))


GEMMS = {
    "Mixtral up, 16384 rows": Gemm(even_load(16384, 8), 4096, 28672),
    "Qwen3 up, 65536 rows": Gemm(even_load(65536, 128), 2048, 1536),
    "Mixtral up, 32 tokens": Gemm(even_load(64, 8), 4096, 28672, block_m=16, block_n=128, block_k=128),
    "Qwen3 up, 32 tokens": Gemm(even_load(256, 128), 2048, 1536, block_m=16, block_n=128, block_k=128),
}
"""Products of published models in bfloat16, rows spread evenly: two large batches, and two of 32 tokens in decoding.

Mixtral 8x7B has 8 experts, d_model 4096, d_expert 14336, top_k 2; Qwen3-30B-A3B has 128, 2048, 768, 8. Up means the
gate and the up projection in one product. The tiles are those of kernels/grouped_gemm.py on Hopper.
"""


@dataclass(frozen=True)
class Chip:
    """A GPU's last caches before memory: ``caches`` of ``l2_bytes`` each, shared by ``programs`` running at once.

    Program p works under cache p % caches. One program runs on each multiprocessor, as in the persistent kernels.

    Raises TypeError or ValueError for sizes that are not whole numbers; ``l2_bytes`` may be 0.
    """

    name: str
    l2_bytes: int
    programs: int
    caches: int = 1
    source: str = "made up"

    def __post_init__(self):
        for name, low in (("l2_bytes", 0), ("programs", 1), ("caches", 1)):
            check_whole(name, getattr(self, name), low)


MIB = 1 << 20
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H100 SXM", 50 * MIB, 132, 1, "data sheet: NVIDIA H100 Tensor Core GPU Architecture white paper"),
        Chip("H200", 50 * MIB, 132, 1, "data sheet: the GH100 chip of the H100; the H200's own does not print it"),
        Chip("MI300X", 4 * MIB, 304, 8, "data sheet: AMD CDNA 3 Architecture white paper: 4 MB and 38 CUs an XCD"),
    )
}
"""Data-sheet caches by name. What they leave out makes real caches worse, and sometimes better:

- Hopper's L2 is two halves, and a line that both halves use may be in both: see what ``l2_bytes=25 * MIB`` changes.
- Behind the eight L2 caches of an MI300X lies a shared Infinity Cache of 256 MB, which is not modelled. Bytes here are
  what leaves the L2 caches; much of that never reaches the memory.
"""


@dataclass(frozen=True)
class Fetched:
    """What `simulate` counted. ``compulsory_bytes`` is what any order must fetch: x and the weights in use, once."""

    x_bytes: int
    w_bytes: int
    y_bytes: int
    compulsory_bytes: int
    hits: int
    misses: int
    tiles: int
    tiles_written: int

    @property
    def bytes(self) -> int:
        """Fetched from memory, x and w together; what is written is not among it."""
        return self.x_bytes + self.w_bytes

    @property
    def excess(self) -> float:
        """bytes / compulsory_bytes: 1 is the best that a complete product can do on one cache; 0 without any work."""
        return self.bytes / self.compulsory_bytes if self.compulsory_bytes else 0.0

    @property
    def hit_rate(self) -> float:
        """hits / (hits + misses); 0 without any access."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


class _Lru:
    """A fully associative cache that evicts whole boxes, the least recently used first, and counts what it fetches."""

    def __init__(self, capacity: int):
        self.capacity, self.used, self.boxes = capacity, 0, OrderedDict()
        self.misses, self.fetched = dict.fromkeys("xwy", 0), dict.fromkeys("xwy", 0)

    def read(self, panels: list[tuple[str, int, int]], depths: list[int]) -> None:
        """Go through panels in lockstep, box by box; a panel is its matrix, the number of its first box, its rows."""
        boxes = self.boxes  # one loop and no calls: a product makes millions of accesses
        for step, depth in enumerate(depths):
            for matrix, first, rows in panels:
                box = first + step
                if box in boxes:
                    boxes.move_to_end(box)
                    continue
                boxes[box] = size = rows * depth
                self.misses[matrix] += 1
                self.fetched[matrix] += size
                self.used += size
                while self.used > self.capacity:  # a box larger than the cache goes the same way
                    self.used -= boxes.popitem(last=False)[1]


def simulate(
    order: str | Order,
    gemm: Gemm,
    chip: Chip | str = "H200",
    *,
    group_m: int = 8,
    l2_bytes: int | None = None,
    programs: int | None = None,
    cache_output: bool = False,
    upper_tiles_m: int | None = None,
) -> Fetched:
    """Count the bytes that a grouped product fetches from memory when its tiles are computed in this order.

    The model, box by box. Work items run in waves of ``programs``: item i is on program i % programs. The programs of
    a wave go through d_in in lockstep; in each step each reads its box of x, then its box of w, program after program.
    A cache of ``l2_bytes`` keeps the boxes used last (LRU, fully associative), one cache or, with chiplets, one for
    each; a box that it lacks is fetched whole. With ``cache_output`` the tiles of y take room in it too, as
    they are finished; nothing is fetched for them. Real programs drift apart and real caches hash their sets, so take
    the figures as what an order makes possible, not as a measurement.

    ``order`` is a name in ``ORDERS`` of kernels/tile_order.py (which needs triton), or a function of the same kind.
    ``upper_tiles_m`` is the number of row tiles that the grid is made for, if it is more than there are; items whose
    tile lies outside are skipped, as a program that returns early is.

    Example:
        >>> gemm = Gemm(load=(512,), d_in=256, d_out=1024)  # 4 x 4 tiles
        >>> chip = Chip("toy", l2_bytes=256 * 1024, programs=1)
        >>> rows = simulate(lambda item, m, n, *_: divmod(item, n), gemm, chip)
        >>> rows.x_bytes // gemm.x_bytes, rows.w_bytes // gemm.w_bytes
        (1, 4)
        >>> columns = simulate(lambda item, m, n, *_: divmod(item, m)[::-1], gemm, chip)
        >>> columns.x_bytes // gemm.x_bytes, columns.w_bytes // gemm.w_bytes
        (4, 1)

    Raises ValueError for an order or a chip without that name, TypeError or ValueError for sizes out of range.
    Source: LRU is a stack algorithm, so a larger cache never fetches more: Mattson et al. 1970, "Evaluation techniques
    for storage hierarchies", IBM Systems Journal 9(2).
    """
    chip = _chip(chip, l2_bytes, programs)
    grid_m = gemm.tiles_m if upper_tiles_m is None else check_whole("upper_tiles_m", upper_tiles_m, gemm.tiles_m)
    work = list(_work(order, gemm, grid_m, check_whole("group_m", group_m, 1), chip))
    caches = [_Lru(chip.l2_bytes) for _ in range(chip.caches)]
    depths = [depth * gemm.itemsize for depth in _extents(gemm.d_in, gemm.block_k)]
    columns = _extents(gemm.d_out, gemm.block_n)
    for first in range(0, len(work), chip.programs):
        for index, cache in enumerate(caches):
            mine = [(tile_m, tile_n) for tile_m, tile_n, at in work[first : first + chip.programs] if at == index]
            cache.read(_panels(mine, columns, gemm), depths)
            if cache_output:
                cache.read(_outputs(mine, columns, gemm), [gemm.block_m * gemm.itemsize])
    misses = sum(cache.misses["x"] + cache.misses["w"] for cache in caches)
    return Fetched(
        x_bytes=sum(cache.fetched["x"] for cache in caches),
        w_bytes=sum(cache.fetched["w"] for cache in caches),
        y_bytes=sum(columns[tile_n] for _, tile_n, _ in work) * gemm.block_m * gemm.itemsize,
        compulsory_bytes=gemm.x_bytes + gemm.w_bytes,
        hits=2 * len(work) * gemm.steps - misses,
        misses=misses,
        tiles=gemm.tiles_m * gemm.tiles_n,
        tiles_written=len({tile[:2] for tile in work}),
    )


def _chip(chip: Chip | str, l2_bytes: int | None, programs: int | None) -> Chip:
    if isinstance(chip, str):
        if chip not in CHIPS:
            raise ValueError(f"chip must be one of {', '.join(CHIPS)}, or a Chip; got {chip!r}")
        chip = CHIPS[chip]
    changes = {"l2_bytes": l2_bytes, "programs": programs}
    return replace(chip, **{name: value for name, value in changes.items() if value is not None})


def find_order(order: str | Order) -> Order:
    """An order by its name, or the function itself.

    Example:
        >>> find_order("row_major")(5, 2, 3)
        (1, 2)

    Raises ValueError for an unknown name, ImportError for a name where triton is missing.
    """
    if not isinstance(order, str):
        return order
    from moe_lab.kernels.tile_order import ORDERS  # here, since this file is of use without triton

    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, or a function; got {order!r}")
    return ORDERS[order]


def _work(order: str | Order, gemm: Gemm, grid_m: int, group_m: int, chip: Chip) -> Iterator[tuple[int, int, int]]:
    """(tile_m, tile_n, cache) of every item that has work, in the order of the items."""
    order = find_order(order)
    tiles_m, tiles_n = gemm.tiles_m, gemm.tiles_n
    for item in range(grid_m * tiles_n):
        tile_m, tile_n = order(item, grid_m, tiles_n, group_m, chip.caches)
        if 0 <= tile_m < tiles_m and 0 <= tile_n < tiles_n:
            yield tile_m, tile_n, item % chip.programs % chip.caches


def _panels(tiles: list[Tile], columns: list[int], gemm: Gemm) -> list[tuple[str, int, int]]:
    """What the programs with these tiles read, x and w in turn: see `_Lru.read`."""
    tile_expert, tiles_m, tiles_n, steps = gemm.tile_expert, gemm.tiles_m, gemm.tiles_n, gemm.steps
    panels = []
    for tile_m, tile_n in tiles:
        panels.append(("x", tile_m * steps, gemm.block_m))
        panels.append(("w", (tiles_m + tile_expert[tile_m] * tiles_n + tile_n) * steps, columns[tile_n]))
    return panels


def _outputs(tiles: list[Tile], columns: list[int], gemm: Gemm) -> list[tuple[str, int, int]]:
    """Tiles of y as panels of one box; their numbers are below 0, apart from those of x and w."""
    tiles_n = gemm.tiles_n
    return [("y", -1 - tile_m * tiles_n - tile_n, columns[tile_n]) for tile_m, tile_n in tiles]


def _extents(total: int, block: int) -> list[int]:
    """The lengths of the blocks that cover a total; the last one may be shorter."""
    return [min(block, total - start) for start in range(0, total, block)]
