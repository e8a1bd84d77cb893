"""Lesson 08: the prediction and what it is judged by, the maps that a test must tell apart, and the panels counted."""

from dataclasses import replace

import pytest

from moe_lab.cache import GEMMS, simulate
from moe_lab.exercises.lesson_08 import (
    BROKEN_MAPS,
    CHOICES,
    EXERCISES,
    PRODUCTS,
    REASONS,
    RIGHT_MAPS,
    fetched,
    find_map,
    to_read,
)
from moe_lab.schedule import schedule

from ..mutants.answers_08 import PREDICTION, grids_up_to, visits_each_tile_once


def test_no_prediction_is_not_attempted():
    assert EXERCISES["08.1"].examine(None).says == "not attempted yet."


def test_the_last_hint_is_the_prediction():
    namespace = {}
    exec(EXERCISES["08.1"].hints[-1], namespace)
    assert EXERCISES["08.1"].examine(namespace["prediction"]).solved


@pytest.mark.parametrize("name", PRODUCTS)
def test_orders_are_clearly_apart_or_clearly_equal(name):
    """No order is so close to 15% above the best that a small change of the model would turn the answer."""
    found = fetched(PRODUCTS[name])
    ratios = [found[order] / min(found.values()) for order in CHOICES]
    assert all(ratio < 1.13 or ratio > 1.8 for ratio in ratios), ratios


def test_each_reason_is_so_for_one_product_at_least():
    assert all(any(holds(gemm) for gemm in PRODUCTS.values()) for holds in REASONS.values())
    assert all(REASONS[reason](PRODUCTS[name]) for name, (_, reason) in PREDICTION.items())


def test_one_row_tile_each_leaves_no_order_much_to_lose():
    """16 rows of x beside 128 columns of w: reading x again for every tile adds an eighth, below what counts."""
    gemm = PRODUCTS["D"]
    assert gemm.block_m / gemm.block_n == 1 / 8
    assert max(fetched(gemm).values()) <= (1 + 1 / 8) * gemm.w_bytes


@pytest.mark.parametrize("name", RIGHT_MAPS)
def test_right_maps_are_right(name):
    assert visits_each_tile_once(find_map(RIGHT_MAPS[name]), grids_up_to(20))


@pytest.mark.parametrize("name", BROKEN_MAPS)
def test_broken_maps_are_broken_where_the_exercise_says_to_look(name):
    """Grids of up to 20 x 20 show each fault, and most faults hide on some of them."""
    faults = [grid for grid in grids_up_to(20) if not visits_each_tile_once(find_map(BROKEN_MAPS[name]), [grid])]
    assert faults and (len(faults) < 400 or name == "rows counted from the end")


@pytest.mark.parametrize(("programs", "block_m", "block_n"), [(16, 64, 64), (132, 128, 256), (13, 16, 128), (1, 8, 8)])
def test_what_a_wave_reads_counted_on_its_tiles(programs, block_m, block_n):
    for height in range(1, programs + 1):
        columns = -(-programs // height)
        options = {"programs": programs, "launch_cost": 0, "order": "grouped", "group_m": height}
        found = schedule((height,), block_m=1, tiles_n=columns, **options)
        x, w = found.panels(found.moments[0])
        assert to_read(programs, block_m, block_n, height) == x * block_m + w * block_n


@pytest.mark.parametrize("order", ["row_major", "grouped"])
def test_deeper_boxes_give_the_lesson_the_same_counts(order):
    """The lesson simulates its large product with boxes four times as deep as the kernel's."""
    gemm = GEMMS["Mixtral up, 16384 rows"]
    found, quick = simulate(order, gemm), simulate(order, replace(gemm, block_k=4 * gemm.block_k))
    assert (found.x_bytes, found.w_bytes) == (quick.x_bytes, quick.w_bytes)
