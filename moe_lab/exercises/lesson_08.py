"""Exercises of lesson 08: which order fetches least, grouped order, its height, a test of maps, chiplets."""

import functools
from collections.abc import Callable

from moe_lab.cache import MIB, Chip, Gemm, simulate
from moe_lab.exercises import Exercise, Property
from moe_lab.schedule import schedule

Map = Callable[[int, int, int], tuple[int, int]]
"""(item, tiles_m, tiles_n) -> (tile_m, tile_n)"""

# ---------------------------------------------------------------- 08.1: which order, and why

CHIP = Chip("exercise 08.1", 8 * MIB, programs=16)
"""A cache of 8 MiB: 16 panels of 128 rows or columns of `PRODUCTS`."""
GROUP_M = 4
CHOICES = ("row_major", "column_major", "grouped")
CLOSE = 1.15
"""Orders that fetch up to 15% more than the best are as good as the best."""


def _product(row_tiles: tuple[int, ...], tiles_n: int, block_m: int = 128) -> Gemm:
    """A product with so many row tiles of each expert, d_in 2048, column tiles of 128, in bfloat16."""
    rows = tuple(block_m * tiles for tiles in row_tiles)
    return Gemm(rows, 2048, 128 * tiles_n, block_m=block_m, block_n=128, block_k=512)


PRODUCTS = {
    "A": _product((8,), 64),
    "B": _product((4,) * 16, 8),
    "C": _product((32,), 32),
    "D": _product((1,) * 24, 32, block_m=16),
}
"""Few rows, narrow experts, one large product, and 24 experts with one tile of 16 rows each."""
_RIVALS = {
    **{f"product {name}": gemm for name, gemm in PRODUCTS.items()},
    "16 x 64 tiles of one expert": _product((16,), 64),
    "64 x 16 tiles of one expert": _product((64,), 16),
    "64 x 8 tiles of one expert": _product((64,), 8),
    "4 experts with 8 x 32 tiles each": _product((8,) * 4, 32),
    "2 experts with 4 x 64 tiles each": _product((4,) * 2, 64),
    "8 experts with one tile of 16 rows each": _product((1,) * 8, 64, block_m=16),
}


def _expert_bytes(gemm: Gemm) -> int:
    return gemm.d_in * gemm.d_out * gemm.itemsize


REASONS = {
    "x fits": lambda gemm: 2 * gemm.x_bytes <= CHIP.l2_bytes,
    "an expert fits": lambda gemm: 2 * _expert_bytes(gemm) <= CHIP.l2_bytes,
    "nothing fits": lambda gemm: 2 * min(gemm.x_bytes, _expert_bytes(gemm)) > CHIP.l2_bytes,
    "one row tile each": lambda gemm: gemm.tiles_m == len(gemm.load),
    "more rows": lambda gemm: gemm.tiles_m > gemm.tiles_n,
    "more columns": lambda gemm: gemm.tiles_m < gemm.tiles_n,
}
"""What may decide. "Fits" leaves half of the cache to what only passes through."""


@functools.cache
def fetched(gemm: Gemm) -> dict[str, int]:
    """Bytes that each order fetches on `CHIP`."""
    return {order: simulate(order, gemm, CHIP, group_m=GROUP_M).bytes for order in CHOICES}


def _faults(choice: str, gemm: Gemm) -> str | None:
    """What speaks against a choice for this product: an order that fetches less, or orders that differ."""
    found = fetched(gemm)
    least = min(found, key=found.get)
    order = max(found, key=found.get) if choice == "any" else choice
    ratio = found[order] / found[least]
    return None if ratio <= CLOSE else f"{order} fetches {ratio:.1f} times what {least} does"


def _pair(answer, name: str) -> tuple[str, str]:
    pair = tuple(answer[name])
    if len(pair) != 2 or pair[0] not in (*CHOICES, "any") or pair[1] not in REASONS:
        raise ValueError(f"give one of {', '.join(CHOICES)}, any; and one of {', '.join(REASONS)}; not {pair}")
    return pair


def _choice(name: str) -> Property:
    def holds(answer) -> str | None:
        choice, gemm = _pair(answer, name)[0], PRODUCTS[name]
        if choice != "any" and _faults("any", gemm) is None:
            return f"yours {choice}; but no order fetches {CLOSE - 1:.0%} more than another"
        return _faults(choice, gemm)

    return holds


def _because(name: str) -> Property:
    def holds(answer) -> str | None:
        choice, reason = _pair(answer, name)
        if not REASONS[reason](PRODUCTS[name]):
            return f"yours '{reason}', which is not so"
        for rival, gemm in _RIVALS.items():
            fault = _faults(choice, gemm)
            if REASONS[reason](gemm) and fault:
                return f"yours '{reason}', which is so for {rival} too; but there {fault}"
        return None

    return holds


# ---------------------------------------------------------------- 08.2: grouped order


def walk(tiles_m: int, tiles_n: int, group_m: int) -> list[tuple[int, int]]:
    """The tiles in grouped order, one after the other."""
    return [
        (tile_m, tile_n)
        for first in range(0, tiles_m, group_m)
        for tile_n in range(tiles_n)
        for tile_m in range(first, min(first + group_m, tiles_m))
    ]


def _walks(*sizes: int) -> Property:
    """The answer takes this way over tiles_m x tiles_n tiles in groups of group_m."""

    def holds(answer) -> str | None:
        tiles_m, tiles_n, group_m = sizes
        for item, spec in enumerate(walk(*sizes)):
            yours = answer(item, tiles_m, tiles_n, group_m)
            if tuple(yours) != spec:
                return f"item {item} of {tiles_m} x {tiles_n} tiles, group_m {group_m}: yours {yours}, spec {spec}"
        return None

    return holds


def _many_grids(answer) -> str | None:
    for tiles_m in (1, 2, 5, 9, 16):
        for tiles_n in (1, 3, 8):
            for group_m in (1, 2, 3, 4, 7):
                fault = _walks(tiles_m, tiles_n, group_m)(answer)
                if fault is not None:
                    return fault
    return None


def _reads_few_panels(answer) -> str | None:
    """16 programs in groups of 4: each wave reads 4 row panels and 4 column panels."""
    order = lambda item, tiles_m, tiles_n, *_: answer(item, tiles_m, tiles_n, 4)  # noqa: E731
    found = schedule((12,), block_m=1, tiles_n=8, programs=16, launch_cost=0, order=order)
    panels = [found.panels(moment) for moment in found.moments if moment.kind == "wave"]
    off = next((wave for wave, one in enumerate(panels) if one != (4, 4)), None)
    if found.never:
        return f"{found.never} of 12 x 8 tiles are never computed"
    return None if off is None else f"wave {off} of 16 programs: yours reads {panels[off]} panels, spec (4, 4)"


# ---------------------------------------------------------------- 08.3: how high a group should be


def to_read(programs: int, block_m: int, block_n: int, group_m: int) -> int:
    """Rows of x and columns of w that the first wave reads."""
    return group_m * block_m + -(-programs // group_m) * block_n


def best_height(programs: int, block_m: int, block_n: int) -> int:
    """The height from 1 to ``programs`` with the least to read, the lowest of equals."""
    return min(range(1, programs + 1), key=functools.partial(to_read, programs, block_m, block_n))


def _height(*sizes: int) -> Property:
    def holds(answer) -> str | None:
        yours, spec = answer(*sizes), best_height(*sizes)
        case = "{} programs, tiles of {} x {}".format(*sizes)
        if yours == spec:
            return None
        if isinstance(yours, int) and 1 <= yours <= sizes[0]:
            return (
                f"{case}: yours {yours} reads {to_read(*sizes, yours):,}, spec {spec} reads {to_read(*sizes, spec):,}"
            )
        return f"{case}: yours {yours}, spec {spec}"

    return holds


# ---------------------------------------------------------------- 08.4: a test that broken maps fail


RIGHT_MAPS = {
    "row_major": "row_major",
    "column_major": "column_major",
    "grouped, in threes": "grouped",
    "xcd_remapped, 8 chiplets": "xcd_remapped",
    "from the last tile up": lambda item, m, n: divmod(m * n - 1 - item, n),
}
"""Maps by what they are; a name is one of kernels/tile_order.py, looked up only when it is used."""
BROKEN_MAPS = {
    "the published map": "broken_column_major",
    "right on wide grids only": lambda item, m, n: (item % min(m, n), item // min(m, n)),
    "right on tall grids only": lambda item, m, n: divmod(item, min(m, n)),
    "row and column swapped": lambda item, m, n: divmod(item, n)[::-1],
    "groups of four that must divide": lambda item, m, n: (item // (4 * n) * 4 + item % 4, item % (4 * n) // 4),
    "one tile too few": lambda item, m, n: divmod(min(item, max(m * n - 2, 0)), n),
    "rows counted from the end": lambda item, m, n: (item // n - m, item % n),
    "one tile twice, another never, with the same sums": lambda item, m, n: (
        {1: (0, 0), n: (1, 1)}.get(item, divmod(item, n)) if m > 1 and n > 1 else divmod(item, n)
    ),
    "items of 8 bits": lambda item, m, n: divmod(item % 256, n),
}


def find_map(order: Map | str) -> Map:
    """A map, or the order of kernels/tile_order.py with this name, in groups of three and on eight chiplets."""
    if not isinstance(order, str):
        return order
    from moe_lab.kernels.tile_order import ORDERS  # here, since that needs triton

    known = ORDERS[order]
    return lambda item, tiles_m, tiles_n: known(item, tiles_m, tiles_n, 3, 8)


def _accepts(name: str) -> Property:
    def holds(answer) -> str | None:
        return None if answer(find_map(RIGHT_MAPS[name])) else "yours refuses it"

    return holds


def _refuses(name: str) -> Property:
    def holds(answer) -> str | None:
        return None if not answer(find_map(BROKEN_MAPS[name])) else "yours accepts it"

    return holds


# ---------------------------------------------------------------- 08.5: a run for each chiplet


def runs(items: int, num_xcds: int) -> dict[int, int]:
    """The place of each item in the walk, if chiplet c takes items c, c + num_xcds, ... and gets run c."""
    dealt = [item for xcd in range(num_xcds) for item in range(xcd, items, num_xcds)]
    return {item: place for place, item in enumerate(dealt)}


def _remaps(items: int, num_xcds: int) -> Property:
    def holds(answer) -> str | None:
        places = runs(items, num_xcds)
        for item in range(items):
            yours = answer(item, items, num_xcds)
            if yours != places[item]:
                return f"item {item} of {items}, {num_xcds} chiplets: yours {yours}, spec {places[item]}"
        return None

    return holds


def _each_place_once(answer) -> str | None:
    for items in range(1, 40):
        for num_xcds in (1, 2, 3, 8):
            found = sorted(answer(item, items, num_xcds) for item in range(items))
            if found != list(range(items)):
                twice = next((place for place in found if found.count(place) > 1), None)
                what = f"place {twice} comes twice" if twice is not None else f"places reach {found[-1]}"
                return f"{items} items, {num_xcds} chiplets: {what}"
    return None


EXERCISES = {
    "08.1": Exercise(
        "Predict which order fetches least, and why",
        {
            f"{what} {name}": prop(name)
            for name in PRODUCTS
            for what, prop in (("order of", _choice), ("why", _because))
        },
        hints=(
            "Count panels: a panel of x is 128 x 2048 x 2 bytes, half a MiB; so is one of w. The cache holds 16 of "
            "them. Which of the two matrices, or which expert, can stay while the other passes by?",
            "If x stays, go down the columns: each column of w is used up before the next. If an expert's w stays, go "
            "along its rows. If neither can stay, share within the wave. And whom does a tile of w serve in D?",
            'prediction = {"A": ("column_major", "x fits"), "B": ("row_major", "an expert fits"), '
            '"C": ("grouped", "nothing fits"), "D": ("any", "one row tile each")}',
        ),
    ),
    "08.2": Exercise(
        "Implement the grouped order",
        {
            "4 x 4 tiles, by hand": _walks(4, 4, 2),
            "groups of one row: row-major": _walks(3, 5, 1),
            "one group: column-major": _walks(3, 5, 3),
            "a last group with fewer rows": _walks(5, 3, 2),
            "a group higher than the grid": _walks(3, 4, 8),
            "a wave reads 4 + 4 panels": _reads_few_panels,
            "many grids": _many_grids,
        },
        hints=(
            "Three questions: which group is the item in, how many rows does that group have, and where in the group "
            "is the item?",
            "A full group has group_m * tiles_n items. Within a group, go down a column of as many rows as the group "
            "has; the last one has only tiles_m - first rows.",
            "group, within = divmod(item, group_m * tiles_n); first = group * group_m; "
            "height = min(group_m, tiles_m - first); return first + within % height, within // height",
        ),
    ),
    "08.3": Exercise(
        "Compute the best height of a group",
        {
            "16 programs, square tiles": _height(16, 64, 64),
            "H200: 132 programs, 128 x 256": _height(132, 128, 256),
            "low tiles for few rows": _height(132, 16, 128),
            "a prime number of programs": _height(13, 64, 64),
            "two programs: the lower of equals": _height(2, 32, 32),
            "one program": _height(1, 128, 128),
            "MI300X: 304 programs, 128 x 128": _height(304, 128, 128),
            "tall tiles": _height(60, 256, 32),
        },
        hints=(
            "A wave in groups of g rows covers g row tiles. How many column tiles does it touch, if the last column "
            "may be covered in part?",
            "Rows and columns to read: g * block_m + (programs / g, rounded up) * block_n. The square root of "
            "programs * block_n / block_m is where the two terms are equal; whole numbers need a look at each g.",
            "return min(range(1, programs + 1), key=lambda g: g * block_m + -(-programs // g) * block_n)",
        ),
    ),
    "08.4": Exercise(
        "Write the test that a broken map fails",
        {
            **{f"accepts {name}": _accepts(name) for name in RIGHT_MAPS},
            **{f"refuses: {name}": _refuses(name) for name in BROKEN_MAPS},
        },
        hints=(
            "One grid is not a test: square ones hide a swapped modulus, wide ones hide what is wrong on tall ones, "
            "and small ones hide numbers that overflow.",
            "On each grid collect the tiles of all items and compare them with the tiles of the grid. A sum, a count "
            "or a largest value can be right by accident, and an array index of -1 is the last row.",
            "grids = [(m, n) for m in range(1, 21) for n in range(1, 21)]; "
            "return all({order(i, m, n) for i in range(m * n)} == {(a, b) for a in range(m) for b in range(n)} "
            "for m, n in grids)",
        ),
    ),
    "08.5": Exercise(
        "Implement the remap for chiplets",
        {
            "8 items on 2 chiplets, by hand": _remaps(8, 2),
            "7 items on 2 chiplets": _remaps(7, 2),
            "one chiplet: nothing changes": _remaps(5, 1),
            "as many chiplets as items": _remaps(8, 8),
            "more chiplets than items": _remaps(3, 8),
            "MI300X: 1,000 items on 8": _remaps(1000, 8),
            "a prime number of items on 8": _remaps(997, 8),
            "each place once": _each_place_once,
        },
        hints=(
            "Chiplet item % num_xcds comes to this item at its turn number item // num_xcds. Where does its run begin?",
            "A chiplet has items // num_xcds items, and the first items % num_xcds of them have one more. Its run "
            "begins after the runs of all chiplets before it.",
            "turn, xcd = divmod(item, num_xcds); least, more = divmod(items, num_xcds); "
            "return xcd * least + min(xcd, more) + turn",
        ),
    ),
}
