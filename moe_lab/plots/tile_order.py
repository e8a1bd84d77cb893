"""Figures of tile orders: walks and their first wave, bytes fetched, the tiles of chiplets, tiles never written."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from moe_lab.plots.style import colour, finish, hatch, new_figure

Tile = tuple[int, int]
Shares = tuple[float | int, float | int]


def draw_walks(walks: dict[str, Sequence[Tile]], programs: int) -> Figure:
    """Draw the grid of tiles once an order, each tile with its number in the walk, the first wave in colour.

    ``walks`` has the tiles (tile_m, tile_n) of each order, one after the other. The first ``programs`` of them run at
    once: the marks at the left are the row panels of x that they read, those above the column panels of w.

    Example:
        >>> rows = [(0, 0), (0, 1), (1, 0), (1, 1)]
        >>> fig = draw_walks({"rows": rows, "columns": [rows[0], rows[2], rows[1], rows[3]]}, programs=2)
        >>> [axes.get_title() for axes in fig.axes]
        ['rows: 1 + 2 panels', 'columns: 2 + 1 panels']

    Raises ValueError for no walk, or one of no tile.
    """
    if not walks or not all(walks.values()):
        raise ValueError("walks must hold at least one, and each at least one tile")
    fig, every = new_figure(2.5 * len(walks), 2.8, columns=len(walks), squeeze=False)
    for axes, (name, tiles) in zip(every[0], walks.items(), strict=True):
        wave = tiles[:programs]
        x, w = {tile_m for tile_m, _ in wave}, {tile_n for _, tile_n in wave}
        axes.set_title(f"{name}: {len(x)} + {len(w)} panels")
        for item, tile in enumerate(tiles):
            _numbered(axes, tile, item, {"facecolor": colour(1)} if item < programs else {})
        for tile_m in x:
            axes.add_patch(Rectangle((-0.95, tile_m + 0.1), 0.6, 0.8, facecolor=colour(0)))
        for tile_n in w:
            axes.add_patch(Rectangle((tile_n + 0.1, -0.95), 0.8, 0.6, facecolor=colour(2)))
        _frame(axes, tiles, margin=1.1)
    return finish(fig)


def _numbered(axes: Axes, tile: Tile, number: int, look: dict) -> None:
    """One tile with a number in it, which stands on white."""
    tile_m, tile_n = tile
    style = {"facecolor": "white", "edgecolor": "0.6", "linewidth": 0.6} | look
    axes.add_patch(Rectangle((tile_n, tile_m), 1, 1, **style))
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"} if look else None
    axes.text(tile_n + 0.5, tile_m + 0.5, str(number), ha="center", va="center", fontsize=8, bbox=box)


def _frame(axes: Axes, tiles: Sequence[Tile], margin: float = 0.0) -> None:
    """Square tiles, the first row on top, nothing around them."""
    rows, columns = (1 + max(tile[axis] for tile in tiles) for axis in (0, 1))
    axes.set(xlim=(-margin, columns + 0.05), ylim=(rows + 0.05, -margin), aspect="equal")
    axes.set_axis_off()


def draw_fetched(products: dict[str, dict[str, Shares]]) -> Figure:
    """Draw a bar for each order of each product: bytes fetched of x and of w, over the bytes that any order must fetch.

    ``products`` has, by name of the product and of the order, the two shares; a full bar is their sum, whose least
    is 1.

    Example:
        >>> fig = draw_fetched({"large": {"rows": (0.5, 3.5), "groups": (0.5, 0.75)}})
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['4.00', '1.25']

    Raises ValueError for no product, or products with different orders.
    """
    orders = list(next(iter(products.values()), {}))
    if not orders or any(list(found) != orders for found in products.values()):
        raise ValueError("products must hold at least one, all with the same orders")
    step = len(orders) + 0.8
    fig, axes = new_figure(7.2, 0.9 + 0.2 * step * len(products))
    most = max(sum(shares) for found in products.values() for shares in found.values())
    for group, found in enumerate(products.values()):
        for number, shares in enumerate(found.values()):
            row, start = group * step + number, 0.0
            for part, share in enumerate(shares):  # x is the paler part
                look = {"color": colour(number), "hatch": hatch(number), "alpha": (0.45, 1.0)[part]}
                axes.barh(row, share, left=start, height=0.85, edgecolor="black", linewidth=0.5, **look)
                start += share
            place = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            axes.annotate(f"{start:.2f}", (start, row), (4, 0), **place)
    axes.axvline(1, color="black", linestyle=":", linewidth=1.2)
    axes.set_yticks([group * step + (len(orders) - 1) / 2 for group in range(len(products))], list(products))
    axes.set(xlim=(0, 1.08 * most), ylim=(step * len(products) - 1.2, -0.8))
    axes.set_xlabel("bytes fetched / bytes that must be (pale: of x)")
    axes.grid(axis="y", visible=False)
    handles = [Patch(facecolor=colour(n), hatch=hatch(n), edgecolor="black") for n in range(len(orders))]
    fig.legend(handles, orders, loc="outside upper center", ncols=len(orders), frameon=False, fontsize=10)
    return finish(fig)


def draw_chiplets(walks: dict[str, Sequence[Tile]], num_xcds: int) -> Figure:
    """Draw the grid of tiles once an order, each tile in the colour and with the number of its chiplet.

    Chiplets take work items in turn: item i of ``walks`` belongs to chiplet i % ``num_xcds``.

    Example:
        >>> rows = [(0, 0), (0, 1), (1, 0), (1, 1)]
        >>> fig = draw_chiplets({"rows": rows}, num_xcds=2)
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[0].get_title()
        (['0', '1', '0', '1'], 'rows: a chiplet reads up to 2 + 1 panels')

    Raises ValueError for no walk, or one of no tile.
    """
    if not walks or not all(walks.values()):
        raise ValueError("walks must hold at least one, and each at least one tile")
    fig, every = new_figure(3.8 * len(walks), 2.3, columns=len(walks), squeeze=False)
    for axes, (name, tiles) in zip(every[0], walks.items(), strict=True):
        for item, tile in enumerate(tiles):
            number = item % num_xcds
            _numbered(axes, tile, number, {"facecolor": colour(number)})
        own = [tiles[first::num_xcds] for first in range(num_xcds) if tiles[first::num_xcds]]
        x, w = max((len({m for m, _ in some}), len({n for _, n in some})) for some in own)
        axes.set_title(f"{name}: a chiplet reads up to {x} + {w} panels", fontsize=10)
        _frame(axes, tiles)
    return finish(fig)


def draw_written(counts: dict[str, Sequence[Sequence[int]]], in_use: int) -> Figure:
    """Draw which tiles of a grid some program came to, an order a panel; rows from ``in_use`` on are padding.

    ``counts`` has, a list for each row tile, how many programs came.

    Example:
        >>> fig = draw_written({"broken": [[1, 0, 1], [0, 0, 0]]}, in_use=1)
        >>> fig.axes[0].get_title()
        'broken: 2 of 3 tiles written'

    Raises ValueError for no grid, or ``in_use`` beyond the rows of one.
    """
    if not counts or any(not 0 < in_use <= len(rows) for rows in counts.values()):
        raise ValueError(f"counts must hold at least one grid, and in_use lie in its rows; got {in_use}")
    fig, every = new_figure(7.6, 0.5 + 1.15 * len(counts), rows=len(counts), squeeze=False)
    for axes, (name, rows) in zip(every[:, 0], counts.items(), strict=True):
        columns, came = len(rows[0]), [[min(times, 1) for times in row] for row in rows[:in_use]]
        look = {"cmap": ListedColormap(["white", colour(0)]), "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axes.imshow(came, aspect="auto", extent=(0, columns, in_use, 0), **look)
        padding = {"facecolor": "0.9", "hatch": "//", "edgecolor": "0.5", "linewidth": 0}
        axes.add_patch(Rectangle((0, in_use), columns, len(rows) - in_use, **padding))
        axes.set_title(f"{name}: {sum(map(sum, came)):,} of {in_use * columns:,} tiles written", fontsize=10)
        axes.set(xlim=(0, columns), ylim=(len(rows), 0), ylabel="row tile")
        axes.grid(visible=False)
        axes.tick_params(labelsize=9)
    every[-1, 0].set_xlabel("column tile")
    return finish(fig)
