"""The cache model: formulas where there are any, a count by stack distances, and what the lesson finds."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels.grouped_gemm import cost
from moe_lab.kernels.tile_order import BIJECTIONS, ORDERS

from moe_lab.cache import CHIPS, GEMMS, Chip, Gemm, even_load, simulate

ONE = Gemm((6 * 16,), d_in=40, d_out=9 * 8, block_m=16, block_n=8, block_k=10, itemsize=1)  # 6 x 9 tiles, 4 steps
X_PANEL, W_PANEL = 16 * 40, 8 * 40  # bytes of a row tile of x, of a column tile of w


def toy(l2_bytes, programs=1, caches=1):
    return Chip("toy", l2_bytes, programs, caches)


sizes = st.fixed_dictionaries(
    dict(
        load=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
        d_in=st.integers(1, 7),
        d_out=st.integers(1, 9),
        block_m=st.integers(1, 4),
        block_n=st.integers(1, 4),
        block_k=st.integers(1, 3),
        itemsize=st.integers(1, 2),
    )
)
toys = st.tuples(st.integers(0, 200), st.integers(1, 7), st.integers(1, 3))  # l2_bytes, programs, caches
orders = st.sampled_from(sorted(ORDERS))


def test_sizes_by_hand():
    gemm = Gemm(load=(33, 0, 16), d_in=100, d_out=50, block_m=16, block_n=32, block_k=64)
    assert gemm.tile_expert == (0, 0, 0, 2) and (gemm.tiles_m, gemm.tiles_n, gemm.steps) == (4, 2, 2)
    assert gemm.x_bytes == 4 * 16 * 100 * 2 and gemm.w_bytes == 2 * 100 * 50 * 2 and gemm.y_bytes == 4 * 16 * 50 * 2
    empty = Gemm(load=(0, 0), d_in=8, d_out=8)
    found = simulate("grouped", empty)
    assert (found.bytes, found.hit_rate, found.excess, found.tiles) == (0, 0.0, 0.0, 0)
    assert Gemm(torch.tensor([3, 4]), d_in=8, d_out=8).load == (3, 4)
    assert even_load(7, 3) == (3, 2, 2) and even_load(0, 2) == (0, 0)


@given(orders, sizes, st.integers(1, 7), st.integers(1, 5))
@settings(deadline=None)
def test_a_cache_of_any_size_fetches_what_must_be_fetched(order, sizes, programs, group_m):
    gemm = Gemm(**sizes)
    found = simulate(order, gemm, toy(10**9, programs), group_m=group_m)
    if order in BIJECTIONS:
        assert (found.x_bytes, found.w_bytes, found.y_bytes) == (gemm.x_bytes, gemm.w_bytes, gemm.y_bytes)
        assert found.compulsory_bytes == found.bytes and found.tiles_written == found.tiles
        assert found.excess == 1.0 or not found.tiles


@given(st.sampled_from(BIJECTIONS), sizes, st.integers(1, 7), st.integers(1, 3))
@settings(deadline=None)
def test_without_a_cache_every_access_is_a_miss(order, sizes, programs, caches):
    gemm = Gemm(**sizes)
    found = simulate(order, gemm, toy(0, programs, caches))
    assert found.hits == 0 and found.misses == 2 * gemm.tiles_m * gemm.tiles_n * gemm.steps
    assert found.x_bytes == gemm.tiles_n * gemm.x_bytes
    assert found.w_bytes == gemm.tiles_m * gemm.d_in * gemm.d_out * gemm.itemsize


def stack_distances(order, gemm, chip, group_m, write):
    """The same count without a cache: a box is there if all that was used since, and it, fit in."""
    tiles, uses = [], []  # uses: (cache, name of the box, bytes)
    for item in range(gemm.tiles_m * gemm.tiles_n):
        m, n = ORDERS[order](item, gemm.tiles_m, gemm.tiles_n, group_m, chip.caches)
        if m < gemm.tiles_m:
            tiles.append((m, n, item % chip.programs % chip.caches))
    for first in range(0, len(tiles), chip.programs):
        wave = tiles[first : first + chip.programs]
        for k in range(0, gemm.d_in, gemm.block_k):
            depth = len(range(gemm.d_in)[k : k + gemm.block_k])
            for m, n, cache in wave:
                columns = len(range(gemm.d_out)[n * gemm.block_n : (n + 1) * gemm.block_n])
                uses.append((cache, ("x", m, k), gemm.block_m * depth * gemm.itemsize))
                uses.append((cache, ("w", gemm.tile_expert[m], n, k), columns * depth * gemm.itemsize))
        for m, n, cache in wave if write else ():
            columns = len(range(gemm.d_out)[n * gemm.block_n : (n + 1) * gemm.block_n])
            uses.append((cache, ("y", m, n), gemm.block_m * columns * gemm.itemsize))
    bytes_of, misses = {"x": 0, "w": 0, "y": 0}, 0
    for now, (cache, box, size) in enumerate(uses):
        before = [time for time in range(now) if uses[time][:2] == (cache, box)]
        since = {use[1]: use[2] for use in uses[before[-1] : now] if use[0] == cache} if before else {}
        if not before or sum(since.values()) > chip.l2_bytes:
            bytes_of[box[0]] += size
            misses += box[0] != "y"
    return bytes_of["x"], bytes_of["w"], misses, sum(use[1][0] != "y" for use in uses)


@given(orders, sizes, toys, st.integers(1, 4), st.booleans())
@settings(deadline=None, max_examples=150)
def test_against_stack_distances(order, sizes, chip, group_m, write):
    gemm, chip = Gemm(**sizes), toy(*chip)
    found = simulate(order, gemm, chip, group_m=group_m, cache_output=write)
    want = stack_distances(order, gemm, chip, group_m, write)
    assert (found.x_bytes, found.w_bytes, found.misses, found.hits + found.misses) == want


@given(orders, sizes, toys, st.integers(0, 200))
@settings(deadline=None)
def test_a_larger_cache_never_fetches_more(order, sizes, chip, more):
    gemm, chip = Gemm(**sizes), toy(*chip)
    small = simulate(order, gemm, chip)
    large = simulate(order, gemm, chip, l2_bytes=chip.l2_bytes + more)
    assert large.x_bytes <= small.x_bytes and large.w_bytes <= small.w_bytes and large.hits >= small.hits


@given(orders, sizes, toys)
@settings(deadline=None)
def test_output_in_the_cache_takes_room(order, sizes, chip):
    gemm, chip = Gemm(**sizes), toy(*chip)
    beside = simulate(order, gemm, chip)
    with_output = simulate(order, gemm, chip, cache_output=True)
    assert with_output.bytes >= beside.bytes and with_output.y_bytes == beside.y_bytes


def test_one_program_and_room_for_one_panel_of_each():
    chip = toy(X_PANEL + W_PANEL)
    rows, columns = simulate("row_major", ONE, chip), simulate("column_major", ONE, chip)
    assert (rows.x_bytes, rows.w_bytes) == (ONE.x_bytes, 6 * ONE.w_bytes)  # w once a row tile
    assert (columns.x_bytes, columns.w_bytes) == (9 * ONE.x_bytes, ONE.w_bytes)  # x once a column tile
    less = simulate("row_major", ONE, toy(X_PANEL + W_PANEL - 1))  # and one byte less loses nearly all of it
    assert less.x_bytes > 6 * ONE.x_bytes and less.w_bytes == 6 * ONE.w_bytes


@pytest.mark.parametrize("group_m", [1, 2, 3, 6, 8])
def test_one_program_and_room_for_a_group(group_m):
    chip = toy(min(group_m, 6) * X_PANEL + 2 * W_PANEL)  # the group's rows of x stay, w streams past them
    found = simulate("grouped", ONE, chip, group_m=group_m)
    assert (found.x_bytes, found.w_bytes) == (ONE.x_bytes, math.ceil(6 / group_m) * ONE.w_bytes)


@pytest.mark.parametrize("group_m", [1, 2, 3, 6])
def test_a_wave_shares_what_it_reads_at_the_same_time(group_m):
    """Room for a step and no more: a wave of g x c tiles reads g panels of x and c of w."""
    columns = 3
    waves, box = (6 // group_m) * (9 // columns), X_PANEL // 4
    chip = toy(group_m * box + columns * (W_PANEL // 4), programs=group_m * columns)
    found = simulate("grouped", ONE, chip, group_m=group_m)
    assert (found.x_bytes, found.w_bytes) == (waves * group_m * X_PANEL, waves * columns * W_PANEL)


def test_chiplets_read_the_same_weights_eight_times():
    """Eight row tiles in groups of eight: chiplet c gets row tile c of every column, so every column of w."""
    gemm, chip = replace(ONE, load=(8 * 16,), d_out=16 * 8), toy(10**9, programs=16, caches=8)
    apart = simulate("grouped", gemm, chip, group_m=8)
    assert (apart.x_bytes, apart.w_bytes) == (gemm.x_bytes, 8 * gemm.w_bytes)
    together = simulate("xcd_remapped", gemm, chip, group_m=8)
    assert (together.x_bytes, together.w_bytes) == (8 * gemm.x_bytes, gemm.w_bytes)
    assert simulate("xcd_remapped", gemm, toy(999, 16)) == simulate("grouped", gemm, toy(999, 16))


@given(st.sampled_from(BIJECTIONS), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), toys)
@settings(deadline=None)
def test_no_order_saves_weights_where_every_expert_has_one_row_tile(order, num_experts, d_out, d_in, chip):
    """Why no order makes decoding four times faster: no two tiles read the same weights, so nothing can be shared."""
    gemm = Gemm((3,) * num_experts, d_in=d_in, d_out=d_out, block_m=4, block_n=2, block_k=2)
    assert simulate(order, gemm, toy(*chip)).w_bytes == gemm.w_bytes


@pytest.mark.parametrize("name", ["Mixtral up, 32 tokens", "Qwen3 up, 32 tokens"])
@pytest.mark.parametrize("chip", CHIPS)
def test_decoding_real_models_fetches_the_same_weights_in_every_order(name, chip):
    gemm = replace(GEMMS[name], block_k=GEMMS[name].d_in // 2)
    found = {order: simulate(order, gemm, chip) for order in BIJECTIONS}
    assert {one.w_bytes for one in found.values()} == {gemm.w_bytes}
    assert max(one.excess for one in found.values()) < 1.15  # x is small, however often it is read


def test_the_published_map_fetches_little_because_it_computes_little():
    gemm = Gemm(even_load(16, 8), d_in=4096, d_out=14336, block_m=64, block_n=64, block_k=2048)
    broken = simulate("broken_column_major", gemm, upper_tiles_m=9)
    right = simulate("column_major", gemm, upper_tiles_m=9)
    assert broken.tiles_written == 72 and right.tiles_written == right.tiles == 1792
    assert broken.w_bytes / right.w_bytes == pytest.approx(72 / 1792)
    twice = simulate("broken_column_major", replace(gemm, load=(64, 64), d_out=64), "H200")  # 2 x 1 tiles, 2 programs
    assert (twice.tiles, twice.tiles_written, twice.hits + twice.misses) == (2, 1, 2 * 2 * gemm.steps)


@pytest.mark.parametrize("name", GEMMS)
def test_compulsory_bytes_are_those_of_the_kernel(name):
    gemm = GEMMS[name]
    _, moved = cost(sum(gemm.load), len(gemm.load), gemm.d_in, gemm.d_out, gemm.block_m, itemsize=2)
    padding = gemm.tiles_m * gemm.block_m - sum(gemm.load)  # the kernel's least is without it
    assert gemm.x_bytes + gemm.w_bytes + gemm.y_bytes == moved + 2 * padding * (gemm.d_in + gemm.d_out)
    assert all(rows > 0 for rows in gemm.load)


def test_which_order_is_best_depends_on_the_chip():
    gemm = GEMMS["Mixtral up, 16384 rows"]
    rows, columns, groups = (simulate(order, gemm, "H200").bytes for order in ("row_major", "column_major", "grouped"))
    assert 4 * groups < columns < rows
    orders = ("row_major", "grouped", "xcd_remapped")
    rows, groups, remapped = (simulate(order, gemm, "MI300X").bytes for order in orders)
    assert 1.5 * remapped < rows < groups / 2  # without the remap, groups of 8 on 8 chiplets share nothing of w


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: simulate("diagonal", ONE), ValueError, r"order must be one of row_major, .*; got 'diagonal'"),
        (lambda: simulate("grouped", ONE, "B200"), ValueError, r"chip must be one of H100 SXM, .*; got 'B200'"),
        (lambda: simulate("grouped", ONE, group_m=0), ValueError, r"group_m must be at least 1, got 0"),
        (lambda: simulate("grouped", ONE, l2_bytes=-1), ValueError, r"l2_bytes must be at least 0, got -1"),
        (lambda: simulate("grouped", ONE, programs=0), ValueError, r"programs must be at least 1, got 0"),
        (lambda: simulate("grouped", ONE, upper_tiles_m=5), ValueError, r"upper_tiles_m must be at least 6, got 5"),
        (lambda: Gemm((3, -1), 4, 4), ValueError, r"load\[1\] must be at least 0, got -1"),
        (lambda: Gemm((), 4, 4), ValueError, r"load must have at least one expert, got none"),
        (lambda: Gemm(7, 4, 4), TypeError, r"load must be the rows of each expert, got 7"),
        (lambda: Gemm((1.5,), 4, 4), TypeError, r"load\[0\] must be a whole number, at least 0; got 1.5"),
        (lambda: Gemm((1,), 0, 4), ValueError, r"d_in must be at least 1, got 0"),
        (lambda: Gemm((1,), 4, 4, block_k=0), ValueError, r"block_k must be at least 1, got 0"),
        (lambda: Chip("toy", 1, 4, caches=0), ValueError, r"caches must be at least 1, got 0"),
        (lambda: even_load(-1, 4), ValueError, r"rows must be at least 0, got -1"),
    ],
)
def test_refuses(call, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        call()
