"""Tile map in Python: its numbers are the schedule's, its orders the kernels', and it refuses what it cannot show."""

import json

import pytest
import torch
import traitlets
from moe_lab.kernels.tile_order import BIJECTIONS
from moe_lab.kernels.tile_order import ORDERS as KERNEL_ORDERS

from moe_lab.schedule import SCHEDULERS, schedule
from moe_lab.widgets import TileMap
from moe_lab.widgets.tile_map import MOST_TILES, NAMES, ORDERED, ORDERS, PRESETS, RAGGED, other_loads


def test_names_are_those_of_the_kernels_and_the_schedulers():
    assert tuple(KERNEL_ORDERS) == ORDERS and tuple(NAMES) == SCHEDULERS and set(ORDERED) < set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_tally_is_the_schedules(scheduler, order):
    choices = {"block_m": 32, "tiles_n": 3, "programs": 5, "order": order, "group_m": 2, "num_xcds": 2}
    widget = TileMap(RAGGED, scheduler=scheduler, launch_cost=0.25, **choices)
    found, tally = schedule(RAGGED, scheduler, launch_cost=0.25, **choices), widget.tally()
    assert widget.schedule() == found and widget.tiles == tally["tiles"] == found.tiles
    assert (tally["visits"], tally["launches"]) == (len(found.visits), len(found.launches))
    for name in ("never", "repeated", "makespan", "tail", "rows_computed", "rows_empty"):
        assert tally[name] == getattr(found, name)
    time = 5 * found.makespan
    assert tally["visits"] + tally["launching"] + tally["tail"] == time
    assert (tally["visits"] / time, tally["launching"] / time) == pytest.approx((found.busy, found.launching))
    assert tally["last_step"] == len(found.moments) - 1
    seen = {"launch": 0, "wave": 0, "end": 0}
    panels = 0
    for step, moment in enumerate(found.moments):
        widget.step = step
        tally = widget.tally()
        seen[tally["kind"]] += 1
        assert (tally["kind"], tally["launch"], tally["wave"]) == (moment.kind, moment.launch, moment.wave)
        assert tally["running"] == len(found.running(moment))
        assert (tally["x_panels"], tally["w_panels"]) == found.panels(moment, 2)
        panels += tally["x_panels"] + tally["w_panels"]
    waves = sum(launch.waves for launch in found.launches)
    assert seen == {"launch": len(found.launches), "wave": waves, "end": 1} and panels == tally["panels"]
    widget.step = 10**6
    assert widget.tally() == tally, "beyond the last step is the end"
    complete = order in BIJECTIONS or scheduler not in ORDERED
    assert (tally["never"] == 0) == complete and ("Wrong" in widget.summary()) != complete


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"step": 2},
            "Grouped, one program a tile, row major order: 512 rows of 8 experts are 48 tiles, in 1 launch on "
            "8 multiprocessors. Makespan 7 tile times: busy 86 %, launching 14 %, tail 0 %; padding is 33 % of the "
            "computed rows. Step 2 of 0..7, wave 2 of 6: 8 tiles run and read 2 row panels of x and 8 column panels of "
            "w (16 without sharing).",
        ),
        (
            {"load": [20], "scheduler": "persistent", "order": "grouped", "tiles_n": 1, "programs": 1, "num_xcds": 8},
            "Grouped, persistent programs, grouped order: 20 rows of 1 expert are 1 tile, in 1 launch on "
            "1 multiprocessor. Makespan 2 tile times: busy 50 %, launching 50 %, tail 0 %; padding is 69 % of the "
            "computed rows. Step 1 of 0..2, wave 1 of 1: 1 tile runs and reads 1 row panel of x and 1 column panel of "
            "w, in each of 8 caches by itself (2 without sharing).",
        ),
        (
            {"load": [64, 1000], "scheduler": "padded", "launch_cost": 0.5, "programs": 100, "step": 0},
            "Padded batch: 1,064 rows of 2 experts are 128 tiles, in 1 launch on 100 multiprocessors. Makespan 2.5 "
            "tile times: busy 51 %, launching 20 %, tail 29 %; padding is 48 % of the computed rows. Step 0 of 0..3, "
            "launch 1 of 1: nothing runs yet.",
        ),
        (
            {"load": [64, 64, 0], "scheduler": "loop", "tiles_n": 1, "step": 2},
            "Loop over experts: 128 rows of 3 experts are 2 tiles, in 2 launches on 8 multiprocessors. Makespan 4 "
            "tile times: busy 6 %, launching 50 %, tail 44 %; padding is 0 % of the computed rows. Step 2 of 0..4, "
            "launch 2 of 2: nothing runs yet.",
        ),
        (
            {"load": [128], "order": "broken_column_major", "tiles_n": 1, "launch_cost": 0, "step": 9},
            "Grouped, one program a tile, broken column major order: 128 rows of 1 expert are 2 tiles, in 1 launch on "
            "8 multiprocessors. Wrong: 1 tile is never written and 1 tile is written more than once. Makespan 1 tile "
            "time: busy 25 %, launching 0 %, tail 75 %; padding is 0 % of the computed rows. Step 1 of 0..1, the end.",
        ),
        (
            {"load": [384], "order": "broken_column_major", "tiles_n": 2, "launch_cost": 0, "step": 1},
            "Grouped, one program a tile, broken column major order: 384 rows of 1 expert are 12 tiles, in 1 launch on "
            "8 multiprocessors. Wrong: 8 tiles are never written and 4 tiles are written more than once. Makespan 2 "
            "tile times: busy 75 %, launching 0 %, tail 25 %; padding is 0 % of the computed rows. Step 1 of 0..2, "
            "wave 2 of 2: 4 tiles run and read 2 row panels of x and 1 column panel of w (8 without sharing).",
        ),
        (
            {"load": [0, 0]},
            "Grouped, one program a tile, row major order: 0 rows of 2 experts are 0 tiles, and nothing is launched.",
        ),
    ],
)
def test_summary_says_what_is_seen(options, sentence):
    widget = TileMap(**options)
    assert widget.summary() == sentence and repr(widget) == f"TileMap: {sentence}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_other_loads_have_as_many_rows_and_experts():
    for load in ([5], [0, 0], [3, 4], list(RAGGED), [7, 0, 1], [1] * 64, [1000, *[0] * 40]):
        loads = other_loads(load)
        assert tuple(loads) == PRESETS and loads["given"] == load
        for rows in loads.values():
            assert sum(rows) == sum(load) and len(rows) == len(load) and min(rows) >= 0
        assert max(loads["even"]) - min(loads["even"]) <= 1
        assert all(a >= b - 1 for a, b in zip(loads["skewed"][:-1], loads["skewed"][1:], strict=True))
        assert loads["half on one expert"][0] >= sum(load) / 2
        assert not any(loads["half of the experts empty"][1::2])
    assert other_loads([120, 0, 0, 0])["skewed"] == [58, 28, 20, 14], "about 12, 6, 4 and 3 parts of 25"


def test_a_load_that_a_router_made():
    widget = TileMap(torch.tensor([70, 0, 3]))
    assert widget.load == [70, 0, 3] and widget.presets["given"] == [70, 0, 3]
    widget.preset = "even"
    assert widget.load == [25, 24, 24] and "73 rows of 3 experts are 12 tiles" in widget.summary()
    json.dumps({name: value for name, value in widget.get_state().items() if not name.startswith("_")})


def test_too_many_tiles_are_named_and_not_drawn():
    widget = TileMap([4 * MOST_TILES] * 2, block_m=32)
    assert widget.tiles == MOST_TILES
    widget.block_m = 16
    assert widget.summary() == (
        "Grouped, one program a tile, row major order: 65,536 rows of 2 experts are 16,384 tiles, and at most 8,192 "
        "are drawn."
    )
    with pytest.raises(ValueError, match="load makes 8,196 tiles, and at most 8,192 are drawn; take fewer rows"):
        TileMap([64 * 2048 + 1])


def test_work_without_triton(fresh):
    """The picture is there, and so are the words wherever no order is followed."""
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from moe_lab.widgets import TileMap\n"
        "assert '48 tiles' in repr(TileMap(scheduler='loop'))\n"
        "assert repr(TileMap()).startswith('TileMap: ') and 'triton' in repr(TileMap())\n"
    )
    fresh.run(code, check=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"load": []}, ValueError, "load must have at least one expert"),
        ({"load": [1] * 65}, ValueError, "load must have at most 64 experts to be drawn, got 65"),
        ({"load": [-1]}, ValueError, r"load\[0\] must be at least 0, got -1"),
        ({"block_m": 48}, ValueError, "block_m must be one of 16, 32, 64, 128; got 48"),
        ({"tiles_n": 17}, ValueError, r"tiles_n must be in 1\.\.16, got 17"),
        ({"programs": 0}, ValueError, r"programs must be in 1\.\.132, got 0"),
        ({"group_m": 17}, ValueError, r"group_m must be in 1\.\.16, got 17"),
        ({"num_xcds": 3}, ValueError, "num_xcds must be one of 1, 2, 4, 8; got 3"),
        ({"num_xcds": True}, ValueError, "num_xcds must be one of 1, 2, 4, 8; got True"),
        ({"launch_cost": 3}, ValueError, "launch_cost must be one of 0, 0.25, 0.5, 1, 2, 4, 8; got 3"),
        (
            {"scheduler": "greedy"},
            ValueError,
            "scheduler must be one of loop, padded, grouped, persistent; got 'greedy'",
        ),
        ({"order": "diagonal"}, ValueError, "order must be one of row_major, column_major, .*; got 'diagonal'"),
        ({"step": -1}, ValueError, "step must be at least 0, got -1"),
        ({"programs": 2.5}, TypeError, r"programs must be a whole number, in 1\.\.132; got 2\.5"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        TileMap(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preset", "odd"),
        ("block_m", 17),
        ("tiles_n", 0),
        ("programs", 133),
        ("scheduler", "greedy"),
        ("order", "diagonal"),
        ("group_m", 0),
        ("num_xcds", 16),
        ("launch_cost", 0.1),
        ("step", -1),
    ],
)
def test_bad_assignments_are_refused(name, value):
    widget = TileMap()
    before = getattr(widget, name)
    with pytest.raises(traitlets.TraitError):
        setattr(widget, name, value)
    assert getattr(widget, name) == before
