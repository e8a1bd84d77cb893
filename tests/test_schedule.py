"""Schedules of tiles: closed forms, cases counted by hand, and an independent simulation of free multiprocessors."""

import heapq
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from moe_lab.kernels.tile_order import BIJECTIONS, ORDERS

from moe_lab.schedule import SCHEDULERS, by_rows, cut, find_order, schedule

loads = st.lists(st.integers(0, 40), min_size=1, max_size=7)
sizes = st.fixed_dictionaries(
    {
        "block_m": st.sampled_from([3, 8, 16, 32]),
        "tiles_n": st.integers(1, 5),
        "programs": st.integers(1, 9),
        "launch_cost": st.sampled_from([0, 0.25, 1, 3.5]),
        "group_m": st.integers(1, 5),
        "num_xcds": st.integers(1, 4),
    }
)


def placed(found):
    return [
        (one.expert, one.tile_m, one.tile_n, one.multiprocessor, one.start, one.end, one.rows) for one in found.visits
    ]


def test_a_loop_counted_by_hand():
    """3, 0 and 5 rows in tiles of 2: 2 and 3 row tiles, one column, two multiprocessors, launches of 0.5."""
    found = schedule((3, 0, 5), "loop", block_m=2, tiles_n=1, programs=2, launch_cost=0.5)
    assert placed(found) == [
        (0, 0, 0, 0, 0.5, 1.5, 2),
        (0, 1, 0, 1, 0.5, 1.5, 1),
        (2, 2, 0, 0, 2.0, 3.0, 2),
        (2, 3, 0, 1, 2.0, 3.0, 2),
        (2, 4, 0, 0, 3.0, 4.0, 1),
    ]
    assert [(one.start, one.ready, one.end) for one in found.launches] == [(0.0, 0.5, 1.5), (1.5, 2.0, 4.0)]
    assert (found.makespan, found.busy, found.launching, found.tail) == (4.0, 5 / 8, 1 / 4, 1.0)
    assert (found.rows_computed, found.rows_empty, found.padding) == (10, 2, 0.2)
    assert [(one.kind, one.launch, one.wave, one.time) for one in found.moments] == [
        ("launch", 0, 0, 0.0),
        ("wave", 0, 0, 0.5),
        ("launch", 1, 0, 1.5),
        ("wave", 1, 0, 2.0),
        ("wave", 1, 1, 3.0),
        ("end", 2, 0, 4.0),
    ]


def test_a_padded_batch_counted_by_hand():
    """Two columns; the empty expert and the short one have as many row tiles as the busiest."""
    found = schedule((3, 0, 1), "padded", block_m=2, tiles_n=2, programs=5)
    assert [(tile.expert, tile.rows) for tile in found.row_tiles] == [(0, 2), (0, 1), (1, 0), (1, 0), (2, 1), (2, 0)]
    assert [one.multiprocessor for one in found.visits] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [one.start for one in found.visits] == [1] * 5 + [2] * 5 + [3] * 2
    assert (len(found.launches), found.makespan, found.tail) == (1, 4.0, 3.0)
    assert (found.rows_computed, found.rows_empty) == (24, 16) and found.padding == 2 / 3


def test_orders_decide_who_shares():
    """4 x 4 tiles of one expert on four multiprocessors: a row shares x, a column w, a square both."""
    panels = {name: schedule([64], block_m=16, programs=4, order=name, group_m=2).all_panels() for name in BIJECTIONS}
    assert panels == {"row_major": 4 * 5, "column_major": 4 * 5, "grouped": 4 * 4, "xcd_remapped": 4 * 4}
    first = {name: schedule([64], block_m=16, programs=4, order=name, group_m=2) for name in BIJECTIONS}
    assert first["row_major"].panels(first["row_major"].moments[1]) == (1, 4)
    assert first["column_major"].panels(first["column_major"].moments[1]) == (4, 1)
    assert first["grouped"].panels(first["grouped"].moments[1]) == (2, 2)
    two = schedule([32, 32], block_m=16, programs=4, order="column_major")
    assert two.panels(two.moments[1]) == (4, 2), "two experts have a column of w each"


def test_chiplets_share_what_the_remapped_order_gives_each():
    """Eight multiprocessors under two caches, in turn: remapped, each chiplet walks over a square of its own."""
    options = {"block_m": 16, "programs": 8, "group_m": 2, "num_xcds": 2}
    plain, remapped = (schedule([64], order=name, **options) for name in ("grouped", "xcd_remapped"))
    # grouped: the even items are the upper row tile, the odd ones the lower: 1 row and 4 columns in each cache
    assert plain.panels(plain.moments[1], caches=2) == (2, 8)
    assert remapped.panels(remapped.moments[1], caches=2) == (4, 4)
    assert plain.panels(plain.moments[1]) == (2, 4) and remapped.panels(remapped.moments[1]) == (4, 2)
    assert (plain.all_panels(2), remapped.all_panels(2)) == (20, 16)


def test_the_published_map_leaves_tiles_out():
    tall = schedule([96], block_m=16, tiles_n=2, programs=4, order="broken_column_major")  # 6 x 2 tiles
    assert set(tall.times_written) == {(0, 0), (1, 0), (0, 1), (1, 1)} and set(tall.times_written.values()) == {3}
    assert (tall.never, tall.repeated, tall.makespan) == (8, 4, 4.0), "it takes as long as all of them"
    wide = schedule([32], block_m=16, tiles_n=6, programs=4, order="broken_column_major")  # 2 x 6 tiles
    assert (wide.never, wide.repeated, len(wide.visits)) == (8, 0, 4)
    assert wide.makespan == 2.0, "four multiprocessors take the four tiles that there are"
    alone = schedule([32], "persistent", block_m=16, tiles_n=6, programs=6, order="broken_column_major")
    assert {one.multiprocessor for one in alone.visits} == {0, 1} and alone.makespan == 3.0
    assert schedule([48], block_m=16, tiles_n=3, order="broken_column_major").never == 0, "right where it is square"


def in_use(load, block_m):
    return sum(math.ceil(rows / block_m) for rows in load)


@settings(max_examples=60, deadline=None)
@given(loads, st.sampled_from(SCHEDULERS), st.sampled_from(BIJECTIONS), sizes)
def test_what_every_schedule_keeps(load, scheduler, order, options):
    found = schedule(load, scheduler, order=order, **options)
    programs, cost = options["programs"], options["launch_cost"]
    tiles_m = len(load) * math.ceil(max(load) / options["block_m"]) if scheduler == "padded" else None
    tiles_m = in_use(load, options["block_m"]) if tiles_m is None else tiles_m
    every = {(m, n) for m in range(tiles_m) for n in range(options["tiles_n"])}
    assert {(one.tile_m, one.tile_n) for one in found.visits} == every and len(found.visits) == len(every)
    assert (found.never, found.repeated, found.tiles) == (0, 0, len(every))
    assert sum(one.rows for one in found.visits) == options["tiles_n"] * sum(load), "each row once a column"
    assert [one.item for one in found.visits] == sorted(one.item for one in found.visits)
    for who in range(programs):
        own = sorted((one.start, one.end) for one in found.visits if one.multiprocessor == who)
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    for one in found.visits:
        launch = found.launches[one.launch]
        assert launch.ready <= one.start < one.end <= launch.end and one.end - one.start == 1
    launches = sum(rows > 0 for rows in load) if scheduler == "loop" else int(max(load) > 0)
    assert len(found.launches) == launches
    work, waiting = len(every), launches * cost
    assert waiting + work / programs <= found.makespan <= waiting + work
    assert programs * found.makespan == work + programs * waiting + found.tail
    assert 0 <= found.tail <= (programs - 1) * max(launches, 1)
    assert found.makespan == 0 or found.busy + found.launching <= 1 + 1e-12
    running = [one for moment in found.moments for one in found.running(moment)]
    assert sorted(running, key=lambda one: one.item) == list(found.visits), "each in one moment"
    times = [moment.time for moment in found.moments]
    assert times == sorted(set(times)) and times[-1] == found.makespan


@settings(max_examples=60, deadline=None)
@given(loads, sizes)
def test_closed_forms(load, options):
    rows, columns = options["block_m"], options["tiles_n"]
    programs, cost = options["programs"], options["launch_cost"]
    made = {name: schedule(load, name, order=by_rows, **options) for name in SCHEDULERS}
    assume(sum(load))
    each = [columns * math.ceil(one / rows) for one in load]
    waves = {
        "loop": sum(math.ceil(tiles / programs) for tiles in each),
        "padded": math.ceil(len(load) * max(each) / programs),
        "grouped": math.ceil(sum(each) / programs),
    }
    assert made["loop"].makespan == sum(one > 0 for one in load) * cost + waves["loop"]
    for name in ("padded", "grouped", "persistent"):
        assert made[name].makespan == cost + waves.get(name, waves["grouped"])
    assert made["grouped"].makespan <= made["padded"].makespan and made["grouped"].makespan <= made["loop"].makespan
    assert made["grouped"].padding == made["loop"].padding <= made["padded"].padding
    assert made["grouped"].visits == made["persistent"].visits
    even = schedule([load[0]] * len(load), "padded", **options)
    assert even.visits == schedule([load[0]] * len(load), "grouped", order=by_rows, **options).visits


@settings(max_examples=60, deadline=None)
@given(loads, st.sampled_from(sorted(ORDERS)), sizes)
def test_free_multiprocessors_take_the_next_tile(load, order, options):
    """The same by a queue of multiprocessors, the one that is free first in front, and the lowest of equals."""
    found = schedule(load, order=order, **options)
    tiles_m, tiles_n = in_use(load, options["block_m"]), options["tiles_n"]
    free = [(options["launch_cost"], who) for who in range(options["programs"])]
    wanted = []
    for item in range(tiles_m * tiles_n):
        tile = ORDERS[order](item, tiles_m, tiles_n, options["group_m"], options["num_xcds"])
        if tile[0] < tiles_m:
            start, who = heapq.heappop(free)
            heapq.heappush(free, (start + 1, who))
            wanted.append((item, *tile, who, start))
    assert [(one.item, one.tile_m, one.tile_n, one.multiprocessor, one.start) for one in found.visits] == wanted


@settings(max_examples=40, deadline=None)
@given(loads, st.sampled_from(sorted(ORDERS)), sizes)
def test_persistent_programs_take_their_own_items_only(load, order, options):
    found = schedule(load, "persistent", order=order, **options)
    for who in range(options["programs"]):
        own = [one for one in found.visits if one.item % options["programs"] == who]
        assert all(one.multiprocessor == who for one in own)
        assert [one.wave for one in own] == list(range(len(own))), "one after the other, without a gap"


def test_nothing_to_do():
    for name in SCHEDULERS:
        found = schedule([0, 0], name)
        assert (found.tiles, found.launches, found.visits, found.makespan, found.tail) == (0, (), (), 0.0, 0.0)
        assert (found.busy, found.launching, found.padding, found.never) == (0.0, 0.0, 0.0, 0)
        assert [moment.kind for moment in found.moments] == ["end"]


def test_a_load_may_be_a_tensor_and_an_order_a_function():
    assert schedule(torch.tensor([5, 0, 9])) == schedule([5, 0, 9])
    backwards = schedule([64], block_m=16, tiles_n=1, order=lambda item, tiles_m, *_: (tiles_m - 1 - item, 0))
    assert [one.tile_m for one in backwards.visits] == [3, 2, 1, 0]
    assert find_order("column_major") is ORDERS["column_major"] and by_rows(7, 3, 4) == ORDERS["row_major"](7, 3, 4)
    assert cut([3], 2, padded=True) == cut([3], 2)


def test_work_without_triton(fresh):
    """Only the names of orders need it."""
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from moe_lab.schedule import by_rows, schedule\n"
        "assert schedule([5], 'loop').makespan == schedule([5], order=by_rows).makespan == 2.0\n"
        "try:\n    schedule([5])\n"
        "except ImportError:\n    pass\n"
        "else:\n    raise AssertionError('where did the order come from?')\n"
    )
    fresh.run(code, check=True)


@pytest.mark.parametrize(
    ("load", "options", "error", "message"),
    [
        ([], {}, ValueError, "load must have at least one expert"),
        (7, {}, TypeError, "load must be the rows of each expert, got 7"),
        ([1, -1], {}, ValueError, r"load\[1\] must be at least 0, got -1"),
        ([1.5], {}, TypeError, r"load\[0\] must be a whole number"),
        (
            [1],
            {"scheduler": "greedy"},
            ValueError,
            "scheduler must be one of loop, padded, grouped, persistent; got 'gr",
        ),
        ([1], {"order": "diagonal"}, ValueError, "order must be one of row_major, .* got 'diagonal'"),
        ([1], {"block_m": 0}, ValueError, "block_m must be at least 1, got 0"),
        ([1], {"tiles_n": 0}, ValueError, "tiles_n must be at least 1"),
        ([1], {"programs": 0}, ValueError, "programs must be at least 1"),
        ([1], {"group_m": 0}, ValueError, "group_m must be at least 1"),
        ([1], {"num_xcds": 0}, ValueError, "num_xcds must be at least 1"),
        ([1], {"launch_cost": -1}, ValueError, "launch_cost must be a finite number of at least 0"),
        ([1], {"launch_cost": float("inf")}, ValueError, "launch_cost must be a finite number"),
        ([1], {"programs": 2.0}, TypeError, "programs must be a whole number"),
    ],
)
def test_bad_arguments_are_named(load, options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        schedule(load, **options)
