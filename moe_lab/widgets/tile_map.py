"""Tile map: how the tiles of a grouped product get onto multiprocessors, in which order, and where the time goes."""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import traitlets

from moe_lab.cache import Gemm, even_load
from moe_lab.checks import check_whole
from moe_lab.schedule import SCHEDULERS, Schedule, schedule
from moe_lab.widgets.lab_widget import LabWidget

ORDERS = ("row_major", "column_major", "grouped", "xcd_remapped", "broken_column_major")
BLOCKS, CACHES = (16, 32, 64, 128), (1, 2, 4, 8)
LAUNCH_COSTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MOST_EXPERTS, MOST_COLUMNS, MOST_PROGRAMS, MOST_GROUP, MOST_TILES = 64, 16, 132, 16, 8192
PRESETS = ("given", "even", "skewed", "half on one expert", "half of the experts empty")
RAGGED = (130, 70, 64, 20, 100, 0, 60, 68)
NAMES = {
    "loop": "Loop over experts",
    "padded": "Padded batch",
    "grouped": "Grouped, one program a tile",
    "persistent": "Grouped, persistent programs",
}
ORDERED = ("grouped", "persistent")  # the schedulers that follow an order


class TileMap(LabWidget):
    """Show the tiles of a grouped product on the rows that they compute, and on the multiprocessors over time.

    ``load`` has the rows of each expert; the reader may change to other loads of as many rows and experts, and back.
    ``scheduler`` is "loop", "padded", "grouped" or "persistent", and ``order`` a name in ``ORDERS`` of
    kernels/tile_order.py, which the last two follow, with ``group_m`` and ``num_xcds``: how many caches there are, and
    chiplets, which take work items in turn. ``step`` counts launches and waves from 0; one beyond the last is the end.
    The rules and the units are those of `moe_lab.schedule`. Drawing needs no triton; the words below it do.

    Example:
        >>> TileMap((130, 0, 5, 64), scheduler="loop", tiles_n=2, programs=4)  # doctest: +NORMALIZE_WHITESPACE
        TileMap: Loop over experts: 199 rows of 4 experts are 10 tiles, in 3 launches on 4 multiprocessors. Makespan 7
        tile times: busy 36 %, launching 43 %, tail 21 %; padding is 38 % of the computed rows. Step 1 of 0..7, launch 1
        of 3, wave 1 of 2: 4 tiles run and read 2 row panels of x and 2 column panels of w (8 without sharing).

    Raises ValueError or TypeError for a load of none or more than 64 experts, or of more than 8192 tiles, block_m
    outside 16, 32, 64, 128, tiles_n outside 1..16, programs outside 1..132, group_m outside 1..16, num_xcds outside 1,
    2, 4, 8, launch_cost outside 0, 0.25, 0.5, 1, 2, 4, 8, step below 0, and an unknown scheduler or order.
    """

    _esm = Path(__file__).with_name("tile_map.js")
    _css = Path(__file__).with_name("tile_map.css")
    of_the_reader = ("preset", "block_m", "tiles_n", "programs", "scheduler", "order", "group_m", "num_xcds")
    of_the_reader += ("launch_cost", "step")

    presets = traitlets.Dict().tag(sync=True)  # loads by name, the given one first
    preset = traitlets.Enum(PRESETS, PRESETS[0]).tag(sync=True)
    block_m = traitlets.Enum(BLOCKS, 64).tag(sync=True)
    tiles_n = traitlets.Int(4, min=1, max=MOST_COLUMNS).tag(sync=True)
    programs = traitlets.Int(8, min=1, max=MOST_PROGRAMS).tag(sync=True)
    scheduler = traitlets.Enum(SCHEDULERS, "grouped").tag(sync=True)
    order = traitlets.Enum(ORDERS, "row_major").tag(sync=True)
    group_m = traitlets.Int(4, min=1, max=MOST_GROUP).tag(sync=True)
    num_xcds = traitlets.Enum(CACHES, 1).tag(sync=True)
    launch_cost = traitlets.Enum(LAUNCH_COSTS, 1.0).tag(sync=True)
    step = traitlets.Int(1, min=0).tag(sync=True)

    def __init__(
        self,
        load: Iterable = RAGGED,
        *,
        block_m: int = 64,
        tiles_n: int = 4,
        programs: int = 8,
        scheduler: str = "grouped",
        order: str = "row_major",
        group_m: int = 4,
        num_xcds: int = 1,
        launch_cost: float | int = 1,
        step: int = 1,
    ):
        choices = {
            "scheduler": (scheduler, SCHEDULERS),
            "order": (order, ORDERS),
            "block_m": (block_m, BLOCKS),
            "num_xcds": (num_xcds, CACHES),
            "launch_cost": (launch_cost, LAUNCH_COSTS),
        }
        for name, (value, allowed) in choices.items():
            if isinstance(value, bool) or value not in allowed:
                shown = ", ".join(one if isinstance(one, str) else f"{one:g}" for one in allowed)
                raise ValueError(f"{name} must be one of {shown}; got {value!r}")
        super().__init__(
            presets=other_loads(check_load(load)),
            tiles_n=check_whole("tiles_n", tiles_n, 1, MOST_COLUMNS),
            programs=check_whole("programs", programs, 1, MOST_PROGRAMS),
            group_m=check_whole("group_m", group_m, 1, MOST_GROUP),
            step=check_whole("step", step, 0),
            # those that are equal to an allowed value become it: 1 is 1.0, and NumPy's numbers plain ones
            **{name: allowed[allowed.index(value)] for name, (value, allowed) in choices.items()},
        )
        if self.tiles > MOST_TILES:
            raise ValueError(f"load makes {self.tiles:,} tiles, and at most {MOST_TILES:,} are drawn; take fewer rows")

    @property
    def load(self) -> list[int]:
        """The rows of each expert that are shown."""
        return self.presets[self.preset]

    @property
    def tiles(self) -> int:
        """How many tiles the product has."""
        each = [math.ceil(rows / self.block_m) for rows in self.load]
        return self.tiles_n * (len(each) * max(each) if self.scheduler == "padded" else sum(each))

    def schedule(self) -> Schedule:
        """What `moe_lab.schedule` makes of the present state."""
        names = ("block_m", "tiles_n", "programs", "launch_cost", "order", "group_m", "num_xcds")
        return schedule(self.load, self.scheduler, **{name: getattr(self, name) for name in names})

    def tally(self) -> dict[str, object]:
        """What the widget counts in its present state.

        Of the whole schedule: ``tiles``, ``visits`` (a tile each time that it is computed), ``never`` and ``repeated``
        (tiles), ``launches``, ``makespan``, ``launching`` and ``tail`` (tile times, of all multiprocessors together),
        ``rows_computed``, ``rows_empty``, ``panels`` (of x and w, in all waves) and ``last_step``. Of the present step:
        ``kind``, ``launch``, ``wave``, ``waves``, ``running`` (tiles), ``x_panels`` and ``w_panels``.
        """
        found = self.schedule()
        last = len(found.moments) - 1
        now = found.moments[min(self.step, last)]
        x_panels, w_panels = found.panels(now, self.num_xcds)
        whole = ("tiles", "never", "repeated", "makespan", "tail", "rows_computed", "rows_empty")
        return {
            **{name: getattr(found, name) for name in whole},
            "visits": len(found.visits),
            "launches": len(found.launches),
            "launching": found.programs * len(found.launches) * found.launch_cost,
            "panels": found.all_panels(self.num_xcds),
            "last_step": last,
            **{"kind": now.kind, "launch": now.launch, "wave": now.wave},
            "waves": found.launches[now.launch].waves if now.kind == "wave" else 0,
            **{"running": len(found.running(now)), "x_panels": x_panels, "w_panels": w_panels},
        }

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here; orders other than by rows need triton."""
        ordered = self.scheduler in ORDERED
        how = NAMES[self.scheduler] + (f", {self.order.replace('_', ' ')} order" if ordered else "")
        what = f"{many(sum(self.load), 'row')} of {many(len(self.load), 'expert')} are {many(self.tiles, 'tile')}"
        if not 0 < self.tiles <= MOST_TILES:
            return f"{how}: {what}, and {f'at most {MOST_TILES:,} are drawn' if self.tiles else 'nothing is launched'}."
        found = self.tally()
        where = f"in {many(found['launches'], 'launch')} on {many(self.programs, 'multiprocessor')}"
        time = self.programs * found["makespan"]
        parts = {"busy": found["visits"], "launching": found["launching"], "tail": found["tail"]}
        spent = ", ".join(f"{name} {per_cent(part, time)} %" for name, part in parts.items())
        empty = per_cent(found["rows_empty"], found["rows_computed"])
        return (
            f"{how}: {what}, {where}.{say_faults(found)} Makespan {many(found['makespan'], 'tile time')}: {spent}; "
            f"padding is {empty} % of the computed rows. {self._say_step(found)}"
        )

    def __repr__(self) -> str:
        try:
            return f"TileMap: {self.summary()}"
        except ImportError as problem:  # the picture does without; it should not be lost for the words
            return f"TileMap: orders need triton to be counted here: {problem}"

    def _say_step(self, found: dict[str, object]) -> str:
        where = f"Step {min(self.step, found['last_step'])} of 0..{found['last_step']}"
        if found["kind"] == "end":
            return f"{where}, the end."
        launch = f"launch {found['launch'] + 1} of {found['launches']}"
        if found["kind"] == "launch":
            return f"{where}, {launch}: nothing runs yet."
        where += f", {launch}" if found["launches"] > 1 else ""
        caches = f", in each of {self.num_xcds} caches by itself" if self.num_xcds > 1 else ""
        run = "1 tile runs and reads" if found["running"] == 1 else f"{found['running']} tiles run and read"
        return (
            f"{where}, wave {found['wave'] + 1} of {found['waves']}: {run} {many(found['x_panels'], 'row panel')} of x "
            f"and {many(found['w_panels'], 'column panel')} of w{caches} ({2 * found['running']} without sharing)."
        )


def check_load(load: Iterable) -> list[int]:
    """Refuse what is not the rows of 1..64 experts."""
    rows = list(Gemm(load, 1, 1).load)
    if len(rows) > MOST_EXPERTS:
        raise ValueError(f"load must have at most {MOST_EXPERTS} experts to be drawn, got {len(rows)}")
    return rows


def other_loads(load: list[int]) -> dict[str, list[int]]:
    """The given load, and others of as many rows and experts, by their names in ``PRESETS``.

    "skewed" is Zipf's law: expert e has rows in proportion to 1 / (e + 1).

    Example:
        >>> other_loads([7, 1, 0, 4])  # doctest: +NORMALIZE_WHITESPACE
        {'given': [7, 1, 0, 4], 'even': [3, 3, 3, 3], 'skewed': [6, 3, 2, 1], 'half on one expert': [6, 2, 2, 2],
         'half of the experts empty': [6, 0, 6, 0]}
    """
    rows, experts = sum(load), len(load)
    harmonic = sum(1 / (expert + 1) for expert in range(experts))
    ends = [round(rows * sum(1 / (e + 1) for e in range(expert)) / harmonic) for expert in range(experts)] + [rows]
    hot = rows // 2 if experts > 1 else 0
    others = even_load(hot, experts - 1) if experts > 1 else ()
    half = iter(even_load(rows, (experts + 1) // 2))
    loads = (
        load,
        list(even_load(rows, experts)),
        [stop - start for start, stop in pairwise(ends)],
        [rows - hot, *others],
        [0 if expert % 2 else next(half) for expert in range(experts)],
    )
    return dict(zip(PRESETS, loads, strict=True))


def say_faults(found: dict[str, object]) -> str:
    """A sentence about tiles that were not written exactly once; nothing if all were."""
    faults = [
        f"{many(found[name], 'tile')} {'is' if found[name] == 1 else 'are'} {deed}"
        for name, deed in (("never", "never written"), ("repeated", "written more than once"))
        if found[name]
    ]
    return f" Wrong: {' and '.join(faults)}." if faults else ""


def many(number: float | int, what: str) -> str:
    """A number and its noun.

    Example:
        >>> many(1, "launch"), many(1200, "launch"), many(0, "row")
        ('1 launch', '1,200 launches', '0 rows')
    """
    plural = "es" if what.endswith("ch") else "s"
    return f"{plain(number)} {what}{'' if number == 1 else plural}"


def per_cent(part: float | int, whole: float | int) -> int:
    """Whole per cent, a half upwards, as the browser has it; 0 of nothing.

    Example:
        >>> per_cent(1, 8), per_cent(0, 0)
        (13, 0)
    """
    return math.floor(100 * part / whole + 0.5) if whole else 0


def plain(value: float | int) -> str:
    """A time without needless digits.

    Example:
        >>> plain(7.0), plain(1200.25)
        ('7', '1,200.25')
    """
    return f"{value:,}".removesuffix(".0")
