"""Orders of tiles: which of them visit every tile once, and which published one does not."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels.tile_order import (
    BIJECTIONS,
    ORDERS,
    SHAPES,
    broken_column_major_reference,
    cost,
    make_inputs,
    place,
    tile_order,
    tile_order_reference,
)

small = st.integers(1, 12)


def visits_every_tile_once(order, tiles_m, tiles_n, group_m=8, num_xcds=8):
    """The one test that every order has to pass, and the negative control has to fail."""
    visited = [ORDERS[order](item, tiles_m, tiles_n, group_m, num_xcds) for item in range(tiles_m * tiles_n)]
    return sorted(visited) == [(tile_m, tile_n) for tile_m in range(tiles_m) for tile_n in range(tiles_n)]


@pytest.mark.parametrize("order", BIJECTIONS)
@given(small, small, small, small)
@settings(deadline=None)
def test_every_order_is_a_bijection(order, tiles_m, tiles_n, group_m, num_xcds):
    assert visits_every_tile_once(order, tiles_m, tiles_n, group_m, num_xcds)


@pytest.mark.parametrize("order", BIJECTIONS)
def test_every_order_is_a_bijection_on_real_grids(order):
    for tiles_m, tiles_n in [(128, 112), (512, 6), (9, 224), (1, 997), (997, 1), (3, 8)]:
        assert visits_every_tile_once(order, tiles_m, tiles_n), (tiles_m, tiles_n)


def test_the_published_map_is_one_on_square_grids_only():
    for tiles_m in range(1, 14):
        for tiles_n in range(1, 14):
            found = visits_every_tile_once("broken_column_major", tiles_m, tiles_n)
            assert found == (tiles_m == tiles_n), (tiles_m, tiles_n)


def written(tiles_m, tiles_n, in_use):
    """The share of the tiles in use that the published map writes, and how often a tile is written at most."""
    count = {}
    for item in range(tiles_m * tiles_n):
        tile = broken_column_major_reference(item, tiles_m, tiles_n)
        if tile[0] < in_use:
            count[tile] = count.get(tile, 0) + 1
    assert all(tile_n < tiles_n for _, tile_n in count)  # it never leaves the columns
    return len(count) / (in_use * tiles_n), max(count.values())


@given(small, small, st.data())
@settings(deadline=None)
def test_how_much_the_published_map_writes(tiles_m, tiles_n, data):
    in_use = data.draw(st.integers(1, tiles_m))
    share, most = written(tiles_m, tiles_n, in_use)
    if tiles_m <= tiles_n:
        assert share == pytest.approx(tiles_m / tiles_n) and most == 1
    else:  # complete, with work done twice, where the rows from tiles_n on are padding; else those are missing
        assert share == pytest.approx(min(in_use, tiles_n) / in_use) and most > 1


# The published launcher: tiles of 64 x 64, or 16 x 32 where tokens * top_k <= num_experts; as many row tiles as the
# worst routing could need. top_k = 2, 8 experts, weights (8, 14336, 4096) and (8, 4096, 7168).
@pytest.mark.parametrize(
    ("tokens", "first", "second"),
    [(1, 1.8, 6.2), (4, 1.8, 6.2), (8, 4.0, 14.1), (16, 4.0, 14.1), (32, 4.0, 14.1), (512, 10.7, 37.5)],
)
def test_shares_that_the_published_kernel_writes(tokens, first, second):
    assignments, num_experts = 2 * tokens, 8
    block_m, block_n = (64, 64) if assignments > num_experts else (16, 32)
    tiles_m = triton.cdiv(assignments + num_experts * (block_m - 1), block_m)
    in_use = sum(triton.cdiv(assignments // num_experts + (e < assignments % num_experts), block_m) for e in range(8))
    for columns, percent in ((14336, first), (4096, second)):
        share, most = written(tiles_m, columns // block_n, in_use)
        assert 100 * share == pytest.approx(percent, abs=0.06) and most == 1


def test_the_published_shape_is_the_published_launch():
    _, tiles_m, tiles_n, num_tiles, _, _ = make_inputs(**SHAPES["published"], device="cpu")
    assert (tiles_m, tiles_n) == (triton.cdiv(16 + 8 * 63, 64), 14336 // 64)
    visits = tile_order_reference(*make_inputs(**SHAPES["published"], device="cpu"))
    assert int(visits.count.sum()) == 72 and round(100 * 72 / (int(num_tiles) * tiles_n), 1) == 4.0


def test_neighbours_share():
    rows = [ORDERS["row_major"](item, 5, 7) for item in range(35)]
    assert all(a[0] == b[0] for a, b in itertools.pairwise(rows) if b[1])
    columns = [ORDERS["column_major"](item, 5, 7) for item in range(35)]
    assert columns == [(m, n) for n in range(7) for m in range(5)]
    groups = [ORDERS["grouped"](item, 5, 3, 2) for item in range(15)]
    assert groups[:6] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert groups[12:] == [(4, 0), (4, 1), (4, 2)]  # the last group has one row


@given(small, small, small, small)
@settings(deadline=None)
def test_each_chiplet_walks_along_a_run(tiles_m, tiles_n, group_m, num_xcds):
    items = range(tiles_m * tiles_n)
    walk = [ORDERS["grouped"](item, tiles_m, tiles_n, group_m) for item in items]
    lengths = []
    for xcd in range(num_xcds):
        mine = [ORDERS["xcd_remapped"](item, tiles_m, tiles_n, group_m, num_xcds) for item in items[xcd::num_xcds]]
        assert mine == walk[sum(lengths) : sum(lengths) + len(mine)]
        lengths.append(len(mine))
    assert max(lengths) - min(lengths) <= 1


@triton.jit
def _places(tiles, tiles_m, tiles_n, ORDER: tl.constexpr, GROUP_M: tl.constexpr, NUM_XCDS: tl.constexpr):
    # many items in one program, since the interpreter is slow; beyond the last one, the last again
    item = tl.minimum(tl.arange(0, 128), tiles_m * tiles_n - 1)
    tile_m, tile_n = place(item, tiles_m, tiles_n, ORDER, GROUP_M, NUM_XCDS)
    tl.store(tiles + 2 * item, tile_m)
    tl.store(tiles + 2 * item + 1, tile_n)


@pytest.mark.parametrize("order", ORDERS)
def test_device_functions_equal_their_twins(order):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = [(m, n) for m in (1, 2, 3, 5, 8, 9, 11) for n in (1, 2, 3, 7, 8, 11)]
    for tiles_m, tiles_n in [*sizes, (1, 128), (128, 1)]:
        for group_m, num_xcds in ((1, 1), (2, 3), (3, 8), (8, 8)):
            tiles = torch.full((tiles_m * tiles_n, 2), -7, dtype=torch.int32, device=device)
            _places[(1,)](tiles, tiles_m, tiles_n, ORDER=order, GROUP_M=group_m, NUM_XCDS=num_xcds)
            twin = [ORDERS[order](item, tiles_m, tiles_n, group_m, num_xcds) for item in range(tiles_m * tiles_n)]
            assert tiles.tolist() == [list(tile) for tile in twin], (tiles_m, tiles_n, group_m, num_xcds)


def assert_same(arguments):
    got = tile_order(*arguments)  # before the reference, so that no buffer of the reference can be taken for it
    want = tile_order_reference(*arguments)
    assert got.count.dtype == got.program.dtype == torch.int32
    assert torch.equal(got.count, want.count) and torch.equal(got.program, want.program)
    return got


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("qwen3", "mixtral")])
def test_kernel_equals_reference(name):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = SHAPES[name]
    arguments = make_inputs(**shape, device=device)
    got = assert_same(arguments)
    in_use = int(arguments[3])
    assert bool((got.count[in_use:] == 0).all()) and bool((got.program[in_use:] == -1).all())
    assert bool((got.count[:in_use] == 1).all()) == (shape["order"] in BIJECTIONS)
    assert cost(**shape, itemsize=2) == (0, 16 * shape["tiles_m"] * shape["tiles_n"])


@pytest.mark.parametrize("order", ORDERS)
def test_kernel_on_every_order(order):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for tiles_m, tiles_n, in_use in [(3, 5, 3), (5, 3, 4), (4, 4, 4), (1, 6, 1), (6, 1, 6), (2, 3, 0)]:
        got = assert_same(make_inputs(order, tiles_m, tiles_n, in_use, group_m=2, num_xcds=4, device=device))
        complete = bool((got.count[:in_use] == 1).all())
        assert complete == (order in BIJECTIONS or tiles_m == tiles_n or in_use == 0)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (dict(order="diagonal"), ValueError, r"order must be one of row_major, .*; got 'diagonal'"),
        (dict(tiles_m=0), ValueError, r"tiles_m must be at least 1, got 0"),
        (dict(tiles_n=-1), ValueError, r"tiles_n must be at least 1, got -1"),
        (dict(group_m=0), ValueError, r"group_m must be at least 1, got 0"),
        (dict(num_xcds=0), ValueError, r"num_xcds must be at least 1, got 0"),
        (dict(num_tiles=torch.tensor([1])), TypeError, r"num_tiles must be int32; got int64"),
    ],
)
def test_refuses(changes, error, says):
    names = ("order", "tiles_m", "tiles_n", "num_tiles", "group_m", "num_xcds")
    arguments = dict(zip(names, make_inputs("grouped", 2, 2, device="cpu"), strict=True))
    with pytest.raises(error, match=says):
        tile_order(**arguments | changes)


@pytest.mark.gpu
@pytest.mark.parametrize("order", ORDERS)
def test_real_grid_on_a_gpu(order, gpu):
    arguments = make_inputs(**SHAPES["mixtral"] | dict(order=order, in_use=120), device=gpu)
    first = assert_same(arguments)
    again = tile_order(*arguments)
    assert torch.equal(first.count, again.count) and torch.equal(first.program, again.program)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(gpu):
    arguments = make_inputs(**SHAPES["odd"], device=gpu)
    want = tile_order(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = tile_order(*arguments)
    graph.replay()
    assert torch.equal(got.count, want.count) and torch.equal(got.program, want.program)
