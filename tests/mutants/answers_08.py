"""Answers to the exercises of lesson 08: right ones, and wrong ones that must be refused with a reason."""

import math

ARGUMENTS = {
    "08.2": "item, tiles_m, tiles_n, group_m",
    "08.3": "programs, block_m, block_n",
    "08.4": "order",
    "08.5": "item, items, num_xcds",
}
PREDICTION = {
    "A": ("column_major", "x fits"),
    "B": ("row_major", "an expert fits"),
    "C": ("grouped", "nothing fits"),
    "D": ("any", "one row tile each"),
}


def grouped(item, tiles_m, tiles_n, group_m):
    group, within = divmod(item, group_m * tiles_n)
    first = group * group_m
    height = min(group_m, tiles_m - first)
    return first + within % height, within // height


def best_height(programs, block_m, block_n):
    return min(range(1, programs + 1), key=lambda g: g * block_m + -(-programs // g) * block_n)


def visits_each_tile_once(order, grids):
    return all(
        {order(item, m, n) for item in range(m * n)} == {(a, b) for a in range(m) for b in range(n)} for m, n in grids
    )


def grids_up_to(most):
    return [(m, n) for m in range(1, most + 1) for n in range(1, most + 1)]


def is_bijection(order):
    return visits_each_tile_once(order, grids_up_to(20))


def remap(item, items, num_xcds):
    turn, xcd = divmod(item, num_xcds)
    least, more = divmod(items, num_xcds)
    return xcd * least + min(xcd, more) + turn


RIGHT = {"08.1": PREDICTION, "08.2": grouped, "08.3": best_height, "08.4": is_bijection, "08.5": remap}


# ---------------------------------------------------------------- the same answers, differently written


def grouped_by_walking(item, tiles_m, tiles_n, group_m):
    """Goes the whole way, tile by tile."""
    for first in range(0, tiles_m, group_m):
        last = min(first + group_m, tiles_m)
        if item < (last - first) * tiles_n:
            return [first + item % (last - first), item // (last - first)]
        item -= (last - first) * tiles_n
    raise AssertionError("beyond the last tile")


def best_height_by_columns(programs, block_m, block_n):
    """For each number of columns the lowest group that needs no more; then the least of those."""
    found = []
    for columns in range(1, programs + 1):
        height = math.ceil(programs / columns)
        found.append((height * block_m + columns * block_n, height))
    return min(found)[1]


def is_bijection_by_counting(order):
    """A count a tile, in a dictionary, where -1 is no row; grids of every shape."""
    for m, n in [(1, 1), (1, 9), (9, 1), (4, 4), (5, 3), (3, 5), (7, 64), (64, 7), (13, 24), (33, 12)]:
        count = {(a, b): 0 for a in range(m) for b in range(n)}
        for item in range(m * n):
            tile = order(item, m, n)
            if tile not in count:
                return False
            count[tile] += 1
        if set(count.values()) != {1}:
            return False
    return True


def remap_by_adding_up(item, items, num_xcds):
    """The run begins after those of the chiplets before."""
    before = sum(len(range(xcd, items, num_xcds)) for xcd in range(item % num_xcds))
    return before + item // num_xcds


ALSO_RIGHT = {
    "08.1": {"D": ["any", "one row tile each"], "C": ["grouped", "nothing fits"], "A": ["column_major", "x fits"]}
    | {"B": ["grouped", "an expert fits"]},
    "08.2": grouped_by_walking,
    "08.3": best_height_by_columns,
    "08.4": is_bijection_by_counting,
    "08.5": remap_by_adding_up,
}


# ---------------------------------------------------------------- wrong answers


def prediction(**changes):
    return PREDICTION | changes


def in_groups(item, tiles_m, tiles_n, group_m, width=None, height=None, rows_first=False):
    """Grouped order with its two sizes to choose."""
    group, within = divmod(item, group_m * tiles_n if width is None else width)
    first = group * group_m
    height = min(group_m, tiles_m - first) if height is None else height
    if rows_first:
        return first + within // tiles_n, within % tiles_n
    return first + within % height, within // height


def counted_by_index(order):
    """Counts in a table, where index -1 is the last row."""
    for m, n in grids_up_to(20):
        count = [[0] * n for _ in range(m)]
        for item in range(m * n):
            tile_m, tile_n = order(item, m, n)
            if tile_m >= m or tile_n >= n:
                return False
            count[tile_m][tile_n] += 1
        if any(times != 1 for row in count for times in row):
            return False
    return True


def sums_are_right(order):
    for m, n in grids_up_to(20):
        found = [order(item, m, n) for item in range(m * n)]
        spec = [divmod(item, n) for item in range(m * n)]
        if any(sum(tile[axis] for tile in found) != sum(tile[axis] for tile in spec) for axis in (0, 1)):
            return False
    return True


def best_by(cost, heights=lambda programs: range(1, programs + 1), last=False):
    """The height with the least cost (programs, block_m, block_n, height)."""

    def answer(programs, block_m, block_n):
        return min(heights(programs), key=lambda g: (cost(programs, block_m, block_n, g), -g if last else g))

    return answer


def to_read(programs, block_m, block_n, height):
    return height * block_m + -(-programs // height) * block_n


WRONG = {
    "08.1": {
        "always grouped": prediction(A=("grouped", "x fits"), B=("grouped", "an expert fits"), D=("grouped", "x fits")),
        "always column-major": dict.fromkeys("ABCD", ("column_major", "x fits")),
        "always row-major": dict.fromkeys("ABCD", ("row_major", "an expert fits")),
        "order never matters": dict.fromkeys("ABCD", ("any", "one row tile each")),
        "columns where rows fit": prediction(A=("row_major", "x fits"), B=("column_major", "an expert fits")),
        "by the shape": prediction(A=("column_major", "more columns"), B=("row_major", "more rows")),
        "right for a reason that is not so": prediction(C=("grouped", "x fits")),
        "right for a reason that is not enough": prediction(D=("any", "x fits")),
        "the order of decoding": prediction(D=("column_major", "one row tile each")),
        "another order": prediction(B=("diagonal", "an expert fits")),
        "no reason": {"A": "column_major", "B": "row_major", "C": "grouped", "D": "any"},
        "half an answer": {"A": ("column_major", "x fits")},
    },
    "08.2": {
        "every group is full": lambda i, m, n, g: in_groups(i, m, n, g, height=g),
        "height of the smaller grid": lambda i, m, n, g: in_groups(i, m, n, g, height=min(g, m)),
        "rows first in a group": lambda i, m, n, g: in_groups(i, m, n, g, rows_first=True),
        "width from the rows": lambda i, m, n, g: in_groups(i, m, n, g, width=g * m),
        "width from the low last group": lambda i, m, n, g: in_groups(i, m, n, g, width=min(g, m % g or g) * n),
        "the remainder is zero": lambda i, m, n, g: in_groups(
            i, m, n, g, height=m % g if i // (g * n) == m // g else min(g, m) - 1 or 1
        ),
        "the item's own remainder": lambda i, m, n, g: (
            i // (g * n) * g + i % min(g, m - i // (g * n) * g),
            i % (g * n) // min(g, m - i // (g * n) * g),
        ),
        "the group's number, not its first row": lambda i, m, n, g: (
            i // (g * n) + grouped(i, m, n, g)[0] % g,
            grouped(i, m, n, g)[1],
        ),
        "last group one row too high": lambda i, m, n, g: in_groups(
            i, m, n, g, height=min(g, m - i // (g * n) * g + 1)
        ),
        "swapped": lambda i, m, n, g: grouped(i, m, n, g)[::-1],
        "groups of columns": lambda i, m, n, g: grouped(i, n, m, g)[::-1],
        "row-major": lambda i, m, n, g: divmod(i, n),
        "column-major": lambda i, m, n, g: divmod(i, m)[::-1],
        "the published map": lambda i, m, n, g: (i % n, i // m),
        "true division": lambda i, m, n, g: (grouped(i, m, n, g)[0], i % (g * n) / min(g, m - i // (g * n) * g)),
        "counted from one": lambda i, m, n, g: tuple(one + 1 for one in grouped(i, m, n, g)),
    },
    "08.3": {
        "square root of the programs": lambda p, m, n: max(1, math.isqrt(p)),
        "the root, rounded": lambda p, m, n: max(1, min(p, round(math.sqrt(p * n / m)))),
        "the root, cut off": lambda p, m, n: max(1, min(p, math.isqrt(p * n // m))),
        "blocks mixed up": lambda p, m, n: best_height(p, n, m),
        "columns cut off": best_by(lambda p, m, n, g: g * m + p // g * n),
        "columns as a fraction": best_by(lambda p, m, n, g: g * m + p / g * n),
        "one column more": best_by(lambda p, m, n, g: g * m + (p // g + 1) * n),
        "the higher of equals": best_by(to_read, last=True),
        "powers of two": best_by(to_read, heights=lambda p: [g for g in range(1, p + 1) if g & (g - 1) == 0]),
        "divisors": best_by(to_read, heights=lambda p: [g for g in range(1, p + 1) if p % g == 0]),
        "panels, whatever their size": lambda p, m, n: best_height(p, 1, 1),
        "always eight": lambda p, m, n: min(8, p),
        "all programs": lambda p, m, n: p,
        "the columns of the best": lambda p, m, n: -(-p // best_height(p, m, n)),
        "what is read": lambda p, m, n: to_read(p, m, n, best_height(p, m, n)),
        "never one": lambda p, m, n: max(2, best_height(p, m, n)),
    },
    "08.4": {
        "yes": lambda order: True,
        "no": lambda order: False,
        "one square grid": lambda order: visits_each_tile_once(order, [(8, 8)]),
        "square grids": lambda order: visits_each_tile_once(order, [(n, n) for n in range(1, 20)]),
        "one wide grid": lambda order: visits_each_tile_once(order, [(4, 100)]),
        "wide grids": lambda order: visits_each_tile_once(order, [(m, n) for m, n in grids_up_to(20) if m <= n]),
        "tall grids": lambda order: visits_each_tile_once(order, [(m, n) for m, n in grids_up_to(20) if m >= n]),
        "small grids": lambda order: visits_each_tile_once(order, grids_up_to(12)),
        "sizes that groups divide": lambda order: visits_each_tile_once(
            order, [(4, 8), (8, 4), (32, 16), (16, 32), (1, 1)]
        ),
        "sums": sums_are_right,
        "as many as there should be": lambda order: all(
            len({order(item, m, n) for item in range(m * n)}) == m * n for m, n in grids_up_to(20)
        ),
        "nothing outside": lambda order: all(
            0 <= order(item, m, n)[0] < m and 0 <= order(item, m, n)[1] < n
            for m, n in grids_up_to(20)
            for item in range(m * n)
        ),
        "counts in a table": counted_by_index,
        "the order, not the tiles": lambda order: all(
            [order(item, m, n) for item in range(m * n)] == [divmod(item, n) for item in range(m * n)]
            for m, n in grids_up_to(20)
        ),
        "the first and the last tile": lambda order: all(
            {(0, 0), (m - 1, n - 1)} <= {order(item, m, n) for item in range(m * n)} for m, n in grids_up_to(20)
        ),
        "upside down": lambda order: not is_bijection(order),
    },
    "08.5": {
        "no remainder": lambda i, n, x: i % x * (n // x) + i // x,
        "every run rounded up": lambda i, n, x: i % x * -(-n // x) + i // x,
        "the remainder to the last chiplets": lambda i, n, x: i % x * (n // x) + max(0, i % x - x + n % x) + i // x,
        "one item more, of one chiplet only": lambda i, n, x: i % x * (n // x) + min(i % x, n % x, 1) + i // x,
        "the way back": lambda i, n, x: i % max(1, n // x) * x + i // max(1, n // x),
        "nothing": lambda i, n, x: i,
        "always eight chiplets": lambda i, n, x: remap(i, n, 8),
        "runs in turn": lambda i, n, x: i // x * x + i % x,
        "runs backwards": lambda i, n, x: n - 1 - remap(i, n, x),
        "chiplet and turn mixed up": lambda i, n, x: remap(i // x, n, x) + i % x,
        "one too far": lambda i, n, x: remap(i, n, x) + 1,
        "around again": lambda i, n, x: i * x % n,
        "true division": lambda i, n, x: i % x * (n / x) + i // x,
    },
}

HINT_NAMES = {}
