"""How the tiles of a grouped product get onto multiprocessors: four schedulers, in a model to be checked by hand.

    loop         one launch an expert, one after the other; an expert without rows has none
    padded       one launch of a batched product, in which every expert has as many rows as the busiest
    grouped      one launch of all tiles, one program a tile; a multiprocessor takes the next as soon as it is free
    persistent   one launch, one program a multiprocessor: program p computes items p, p + P, p + 2P, ...

What the model assumes:

- A tile is ``block_m`` rows of one expert by one column tile. It takes one unit of time, whatever its rows hold.
- A launch costs ``launch_cost`` units, in which no multiprocessor computes. It starts when all tiles of the launch
  before are done, as when the host waits for it. (Launches that are queued ahead cost less than that.)
- A multiprocessor computes one tile at a time. Nothing is known of memory: every tile is as fast as every other, and
  `moe_lab.cache` is where orders differ.

So the figures show where time goes that no tile uses, not how long a product takes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from moe_lab.cache import Gemm, Order, Tile, find_order
from moe_lab.checks import check_number, check_whole

SCHEDULERS = ("loop", "padded", "grouped", "persistent")


@dataclass(frozen=True)
class RowTile:
    """``block_m`` rows of one expert, of which ``rows`` are in use."""

    expert: int
    rows: int


@dataclass(frozen=True)
class Launch:
    """It starts, is ready to compute after the launch cost, and takes so many waves of one unit."""

    start: float
    ready: float
    waves: int

    @property
    def end(self) -> float:
        """When its last tile is done."""
        return self.ready + self.waves


@dataclass(frozen=True)
class Visit:
    """One tile, computed once: by which work item, where, and when."""

    item: int
    tile_m: int
    tile_n: int
    expert: int
    rows: int  # in use, of block_m
    multiprocessor: int
    launch: int
    wave: int  # of its launch
    start: float
    end: float


@dataclass(frozen=True)
class Moment:
    """A stretch of time in which nothing changes: a "launch", a "wave" of a launch, or the "end"."""

    kind: str
    launch: int
    wave: int
    time: float


@dataclass(frozen=True)
class Schedule:
    """What `schedule` found: visits in the order of their items, launches, and what they add up to.

    Every multiprocessor is busy with a tile, kept waiting by a launch, or out of work until the launch ends, so
    programs * makespan = len(visits) + programs * len(launches) * launch_cost + tail.
    """

    block_m: int
    tiles_n: int
    programs: int
    launch_cost: float
    row_tiles: tuple[RowTile, ...]
    launches: tuple[Launch, ...]
    visits: tuple[Visit, ...]

    @property
    def tiles(self) -> int:
        """Tiles that the product has, whether they are computed or not."""
        return len(self.row_tiles) * self.tiles_n

    @property
    def makespan(self) -> float:
        """When the last launch ends, in units of a tile's time; 0 without any work."""
        return self.launches[-1].end if self.launches else 0.0

    @property
    def busy(self) -> float:
        """The share of all multiprocessors' time in which they compute a tile; 0 without any work."""
        return len(self.visits) / (self.programs * self.makespan) if self.makespan else 0.0

    @property
    def launching(self) -> float:
        """The share of time in which they wait for a launch."""
        return len(self.launches) * self.launch_cost / self.makespan if self.makespan else 0.0

    @property
    def tail(self) -> float:
        """Time in which multiprocessors have no tile left while their launch goes on, all of them added up."""
        return sum(self.programs * launch.waves for launch in self.launches) - float(len(self.visits))

    @property
    def rows_computed(self) -> int:
        """Rows of all visits, a row once for each column tile."""
        return len(self.visits) * self.block_m

    @property
    def rows_empty(self) -> int:
        """Those among `rows_computed` that hold nothing."""
        return self.rows_computed - sum(visit.rows for visit in self.visits)

    @property
    def padding(self) -> float:
        """The share of the computed rows that hold nothing; 0 without any work."""
        return self.rows_empty / self.rows_computed if self.visits else 0.0

    @cached_property
    def times_written(self) -> Counter:
        """How often each (tile_m, tile_n) is computed; 0 for those that no item comes to."""
        return Counter((visit.tile_m, visit.tile_n) for visit in self.visits)

    @property
    def never(self) -> int:
        """Tiles that no item comes to: what a product must not have."""
        return self.tiles - len(self.times_written)

    @property
    def repeated(self) -> int:
        """Tiles that more than one item comes to."""
        return sum(times > 1 for times in self.times_written.values())

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The stretches of time one after the other, launches without a cost left out; the end is the last one."""
        found = []
        for number, launch in enumerate(self.launches):
            if launch.ready > launch.start:
                found.append(Moment("launch", number, 0, launch.start))
            found += [Moment("wave", number, wave, launch.ready + wave) for wave in range(launch.waves)]
        return (*found, Moment("end", len(self.launches), 0, self.makespan))

    @cached_property
    def _waves(self) -> dict[tuple[int, int], list[Visit]]:
        waves = {}
        for visit in self.visits:
            waves.setdefault((visit.launch, visit.wave), []).append(visit)
        return waves

    def running(self, moment: Moment) -> list[Visit]:
        """The visits that go on in this moment."""
        return self._waves.get((moment.launch, moment.wave), []) if moment.kind == "wave" else []

    def panels(self, moment: Moment, caches: int = 1) -> tuple[int, int]:
        """Different row panels of x, and column panels of w, that the running tiles read.

        With several ``caches``, multiprocessor p works under cache p % caches, and each cache has its own.
        """
        running = [(visit, visit.multiprocessor % caches) for visit in self.running(moment)]
        x = {(cache, visit.tile_m) for visit, cache in running}
        w = {(cache, visit.expert, visit.tile_n) for visit, cache in running}
        return len(x), len(w)

    def all_panels(self, caches: int = 1) -> int:
        """Panels of x and w that all waves read, added up: what must be fetched if nothing outlives its wave."""
        return sum(sum(self.panels(moment, caches)) for moment in self.moments)


def schedule(
    load: Iterable,
    scheduler: str = "grouped",
    *,
    block_m: int = 64,
    tiles_n: int = 4,
    programs: int = 8,
    launch_cost: float | int = 1,
    order: str | Order = "row_major",
    group_m: int = 8,
    num_xcds: int = 1,
) -> Schedule:
    """Place the tiles of a grouped product on ``programs`` multiprocessors, by the rules at the top of this file.

    ``load`` has the rows of each expert. ``order`` says which tile is work item number i, for "grouped" and
    "persistent": a name in ``ORDERS`` of kernels/tile_order.py (which needs triton), or a function of the same kind,
    with ``group_m`` and ``num_xcds``. An item whose tile lies outside takes no time, as a program that returns early.
    "loop" and "padded" go row by row.

    In this model "grouped" and "persistent" are the same as long as every item has a tile. They differ where some
    have none: a free multiprocessor takes the next tile, a persistent program only its own.

    Example:
        >>> ragged = (130, 0, 5, 64)
        >>> for name in SCHEDULERS:
        ...     found = schedule(ragged, name, tiles_n=2, programs=4, launch_cost=0.5, order=by_rows)
        ...     print(name, len(found.launches), len(found.visits), found.makespan, round(found.padding, 2))
        loop 3 10 5.5 0.38
        padded 1 24 6.5 0.74
        grouped 1 10 3.5 0.38
        persistent 1 10 3.5 0.38

    Raises ValueError for an unknown scheduler or order, no expert, or sizes out of range; TypeError for what is no
    number.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {scheduler!r}")
    sizes = {"block_m": block_m, "tiles_n": tiles_n, "programs": programs, "group_m": group_m, "num_xcds": num_xcds}
    sizes = {name: check_whole(name, value, 1) for name, value in sizes.items()}
    cost = check_number("launch_cost", launch_cost, at_least=0)
    row_tiles = cut(load, sizes["block_m"], padded=scheduler == "padded")
    place = find_order(order) if scheduler in ("grouped", "persistent") else by_rows
    items = list(_items(place, row_tiles, sizes["tiles_n"], sizes["group_m"], sizes["num_xcds"]))
    batches = [items] if row_tiles else []
    if scheduler == "loop":
        batches = [list(some) for _, some in groupby(items, key=lambda item: row_tiles[item[1]].expert)]
    launches, visits, start = [], [], 0.0
    for batch in batches:
        some = _visit(batch, row_tiles, sizes["programs"], len(launches), start + cost, scheduler == "persistent")
        launches.append(Launch(start, start + cost, waves=max((visit.wave + 1 for visit in some), default=0)))
        visits += some
        start = launches[-1].end
    sizes = {name: sizes[name] for name in ("block_m", "tiles_n", "programs")}
    return Schedule(**sizes, launch_cost=cost, row_tiles=row_tiles, launches=tuple(launches), visits=tuple(visits))


def cut(load: Iterable, block_m: int, *, padded: bool = False) -> tuple[RowTile, ...]:
    """The row tiles of all experts; ``padded``: every expert has as many as the busiest, some with no row in use.

    Example:
        >>> [(tile.expert, tile.rows) for tile in cut((5, 0, 2), 4)]
        [(0, 4), (0, 1), (2, 2)]
        >>> [tile.rows for tile in cut((5, 0, 2), 4, padded=True)]
        [4, 1, 0, 0, 2, 0]
    """
    load = Gemm(load, 1, 1).load  # checked
    reach = [max(load)] * len(load) if padded else load
    return tuple(
        RowTile(expert, min(block_m, max(0, load[expert] - first)))
        for expert, rows in enumerate(reach)
        for first in range(0, rows, block_m)
    )


def by_rows(item: int, tiles_m: int, tiles_n: int, *_) -> Tile:
    """The order of "loop" and "padded": one row tile after the other, `row_major` of kernels/tile_order.py.

    Example:
        >>> [by_rows(item, 2, 3) for item in range(4)]
        [(0, 0), (0, 1), (0, 2), (1, 0)]
    """
    return divmod(item, tiles_n)


def _items(place: Order, row_tiles: Sequence[RowTile], tiles_n: int, group_m: int, num_xcds: int):
    """(item, tile_m, tile_n) of every item that has a tile."""
    tiles_m = len(row_tiles)
    for item in range(tiles_m * tiles_n):
        tile_m, tile_n = place(item, tiles_m, tiles_n, group_m, num_xcds)
        if 0 <= tile_m < tiles_m and 0 <= tile_n < tiles_n:
            yield item, tile_m, tile_n


def _visit(
    batch: Sequence, row_tiles: Sequence[RowTile], programs: int, launch: int, ready: float, persistent: bool
) -> list[Visit]:
    """One launch: each multiprocessor computes the tiles that come to it, one a wave."""
    done = [0] * programs
    visits = []
    for turn, (item, tile_m, tile_n) in enumerate(batch):
        # all tiles take one unit, so those that are taken as they come go to the multiprocessors in turn
        who = (item if persistent else turn) % programs
        wave, tile = done[who], row_tiles[tile_m]
        done[who] += 1
        when = {"launch": launch, "wave": wave, "start": ready + wave, "end": ready + (wave + 1)}
        visits.append(Visit(item, tile_m, tile_n, tile.expert, tile.rows, who, **when))
    return visits
