"""The row table: by hand, by plain loops, at the edges, with buffers full of rubbish, and the same every time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.sort_tokens import (
    SHAPES,
    RowTable,
    cost,
    make_inputs,
    most_tiles,
    sort_tokens,
    sort_tokens_reference,
)

from moe_lab.kernels import sort_tokens as module

DEVICE = torch.device("cpu" if INTERPRET else "cuda")
RUBBISH = 1_234_567_890


def by_hand(experts, num_experts, block_m):
    """The tables as lists, from the definition: who comes before whom, counted one by one."""
    flat = [e if 0 <= e < num_experts else -1 for e in experts.flatten().tolist()]
    load = [flat.count(e) for e in range(num_experts)]
    tiles = [-(-rows // block_m) for rows in load]
    start = [block_m * sum(tiles[:e]) for e in range(num_experts + 1)]
    assignment_row = [-1 if e < 0 else start[e] + flat[:i].count(e) for i, e in enumerate(flat)]
    row_assignment = [-1] * (most_tiles(len(flat), num_experts, block_m) * block_m)
    for i, row in enumerate(assignment_row):
        if row >= 0:
            row_assignment[row] = i
    tile_expert = [e for e in range(num_experts) for _ in range(tiles[e])]
    tile_expert += [num_experts] * (len(row_assignment) // block_m - len(tile_expert))
    return load, start, assignment_row, row_assignment, tile_expert, [sum(tiles)]


def check(experts, num_experts, block_m):
    """Run the kernel, then the reference: all six tables must be equal, to the last number and the dtype."""
    experts = experts.to(DEVICE)
    got = sort_tokens(experts, num_experts, block_m)
    want = sort_tokens_reference(experts, num_experts, block_m)
    assert isinstance(got, RowTable)
    for name, ours, exact in zip(RowTable._fields, got, want, strict=True):
        assert ours.dtype == torch.int32 and ours.device == experts.device, name
        assert ours.shape == exact.shape, (name, ours.shape, exact.shape)
        assert torch.equal(ours, exact), (name, ours, exact)
    return got


def draw(tokens, slots, num_experts, seed=0):
    """Random experts with empty slots."""
    return torch.randint(-1, num_experts, (tokens, slots), generator=torch.Generator().manual_seed(seed))


routings = st.integers(1, 9).flatmap(
    lambda num_experts: st.tuples(
        st.integers(0, 3).flatmap(
            lambda slots: st.lists(
                st.lists(st.integers(-1, num_experts - 1), min_size=slots, max_size=slots), max_size=30
            ).map(lambda rows: torch.tensor(rows, dtype=torch.int64).reshape(len(rows), slots))
        ),
        st.just(num_experts),
        st.integers(1, 20),
    )
)


def test_the_picture_in_the_docstring():
    table = check(torch.tensor([[0, 2], [2, 0], [0, -1]]), 3, 4)
    assert table.load.tolist() == [3, 0, 2] and table.start.tolist() == [0, 4, 4, 8]
    assert table.row_assignment[:8].tolist() == [0, 3, 4, -1, 1, 2, -1, -1]
    assert table.assignment_row.tolist() == [[0, 4], [5, 1], [2, -1]]
    assert table.tile_expert[:2].tolist() == [0, 2] and table.num_tiles.tolist() == [2]


def test_the_example_in_vllm():
    """The docstring of its moe_align_block_size counts experts from 1 and pads with the number of assignments."""
    experts = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]]) - 1
    table = check(experts, 4, 4)
    ids = table.row_assignment.where(table.row_assignment >= 0, experts.numel()).tolist()
    assert ids[: 4 * int(table.num_tiles)] == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert table.tile_expert[:4].tolist() == [0, 1, 2, 3]


@given(routings)
@settings(deadline=None)
def test_the_reference_is_the_definition(routing):
    for name, table, exact in zip(RowTable._fields, sort_tokens_reference(*routing), by_hand(*routing), strict=True):
        assert table.flatten().tolist() == exact, name


@given(routings)
@settings(deadline=None, max_examples=40)
def test_random_routings(routing):
    check(*routing)


@pytest.mark.parametrize("shape", ["tiny", "one_token", "odd", "one_expert"])
def test_shared_shapes(shape):
    check(*make_inputs(**SHAPES[shape], dtype=torch.float32, device=DEVICE))


@pytest.mark.parametrize(
    ("experts", "num_experts", "block_m"),
    [
        pytest.param(torch.zeros(0, 2, dtype=torch.int64), 3, 4, id="no_tokens"),
        pytest.param(torch.zeros(5, 0, dtype=torch.int64), 3, 4, id="no_slots"),
        pytest.param(torch.full((40, 2), -1), 4, 16, id="all_empty"),
        pytest.param(torch.full((40, 2), 3), 5, 16, id="all_on_one"),
        pytest.param(torch.full((40, 2), 4), 5, 16, id="all_on_the_last"),
        pytest.param(torch.arange(7).expand(11, 7), 7, 4, id="every_expert"),
        pytest.param(draw(1, 1, 1), 1, 1, id="one_of_each"),
        pytest.param(draw(3, 2, 1024), 1024, 8, id="most_experts"),
        pytest.param(draw(40, 2, 512), 512, 16, id="more_experts_than_assignments"),
        pytest.param(draw(32, 1, 7), 7, 16, id="one_chunk"),
        pytest.param(draw(64, 2, 7), 7, 16, id="one_step_of_chunks"),
        pytest.param(draw(65, 2, 7), 7, 16, id="an_assignment_more"),
        pytest.param(draw(31, 3, 6), 6, 13, id="odd_tiles"),
        pytest.param(draw(9, 2, 3), 3, 1, id="tiles_of_one_row"),
        pytest.param(draw(9, 2, 3), 3, 4096, id="tiles_larger_than_everything"),
        pytest.param(draw(40, 2, 6).int(), 6, 16, id="int32"),
        pytest.param(draw(2, 40, 6).T, 6, 16, id="not_contiguous"),
    ],
)
def test_edges(experts, num_experts, block_m):
    check(experts, num_experts, block_m)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_what_is_no_expert_is_an_empty_slot(dtype):
    limits = torch.iinfo(dtype)
    wild = torch.tensor([[3, -2], [0, limits.max], [limits.min, 2], [2**31 - 1, 1]], dtype=dtype)
    tame = torch.tensor([[-1, -1], [0, -1], [-1, 2], [-1, 1]], dtype=dtype)
    for got, want in zip(check(wild, 3, 2), check(tame, 3, 2), strict=True):
        assert torch.equal(got, want)
    if dtype == torch.int64:  # would be expert 1, were it cut to 32 bits before it is looked at
        assert check(torch.tensor([[2**32 + 1]]), 3, 2).load.tolist() == [0, 0, 0]


def test_the_sizes_of_the_gpu(monkeypatch):
    """The interpreter takes small chunks; those of the GPU must do too, with several chunks and parts."""
    for name, value in dict(CHUNK=1024, PART=128, CHUNKS=512, EXPERTS=8).items():
        monkeypatch.setattr(module, name, value)
    check(draw(1100, 2, 60), 60, 128)


def test_several_steps_of_tiles(monkeypatch):
    monkeypatch.setattr(module, "tile_step", lambda bins: 2)
    check(draw(25, 2, 20), 20, 4)


def test_buffers_are_written_whole(monkeypatch):
    """Fresh memory full of rubbish must not show anywhere: every element of every table has an author."""
    allocated = []

    def poisoned(function):
        def allocate(*args, **options):
            allocated.append(args)
            return function(*args, **options).fill_(RUBBISH)

        return allocate

    experts = draw(50, 2, 7).to(DEVICE)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    got = sort_tokens(experts, 7, 16)
    monkeypatch.undo()
    assert len(allocated) >= 7
    for name, ours, exact in zip(RowTable._fields, got, sort_tokens_reference(experts, 7, 16), strict=True):
        assert torch.equal(ours, exact), name


def test_the_input_stays_as_it_is():
    experts = draw(20, 2, 5).to(DEVICE)
    before = experts.clone()
    sort_tokens(experts, 5, 16)
    assert torch.equal(experts, before)


def test_bad_input():
    experts = torch.zeros(4, 2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(TypeError, match="experts must be int64, int32; got float32"):
        sort_tokens(experts.float(), 3, 16)
    with pytest.raises(ValueError, match=r"experts must be \(tokens, slots\); got \(8,\)"):
        sort_tokens(experts.flatten(), 3, 16)
    for num_experts in (0, 1025):
        with pytest.raises(ValueError, match=rf"num_experts must be in 1\.\.1024; got {num_experts}"):
            sort_tokens(experts, num_experts, 16)
    with pytest.raises(ValueError, match="block_m must be at least 1; got 0"):
        sort_tokens(experts, 3, 0)
    for many, block_m in ((experts[:1, :1].expand(2**31, 1), 16), (experts, 2**31)):
        with pytest.raises(ValueError, match=rf"may need \d+ rows, in blocks of block_m={block_m}; .* int32"):
            sort_tokens(many, 3, block_m)


def test_what_is_shared():
    experts, num_experts, _ = make_inputs(**SHAPES["odd"], dtype=torch.float16, device="cpu")
    assert experts.dtype == torch.int64 and experts.shape == (47, 3)
    load = torch.bincount(experts.flatten(), minlength=num_experts)
    assert len(load) == num_experts and load[1] == 0 and load[0] + load[2:].sum() == 141
    assert make_inputs(**SHAPES["two_million"], dtype=torch.bfloat16, device="meta")[0].shape == (2_097_152, 8)
    # 40 assignments on 4 experts: 2 + 4 tiles of 16 rows; 8 bytes read, and 4 for each number of the six tables
    assert cost(**SHAPES["tiny"], itemsize=2) == (0, 40 * 8 + 4 * (4 + 5 + 40 + 96 + 6 + 1))


@pytest.mark.parametrize("block_m", [1, 3, 16])
@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_the_most_tiles_are_enough_and_some_routing_needs_them(num_experts, block_m):
    """Over all ways to give each expert a number of rows."""
    for assignments in range(20):
        loads = itertools.product(range(assignments + 1), repeat=num_experts - 1)
        needed = [
            sum(-(-rows // block_m) for rows in (*load, assignments - sum(load)))
            for load in loads
            if sum(load) <= assignments
        ]
        assert most_tiles(assignments, num_experts, block_m) == max(needed)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["qwen3", "two_million"])
def test_large_shapes_on_the_gpu(gpu, shape):
    inputs = make_inputs(**SHAPES[shape], dtype=torch.bfloat16, device=gpu)
    first = check(*inputs)
    for _ in range(5):
        for one, other in zip(first, sort_tokens(*inputs), strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [1, 8, 31, 32, 127, 512, 1024])
@pytest.mark.parametrize("tokens", [1, 17, 1000, 20_000])
def test_many_experts_on_the_gpu(gpu, num_experts, tokens):
    check(draw(tokens, 6, num_experts), num_experts, 64)
    check(draw(tokens, 6, num_experts).clamp_max(0), num_experts, 64)  # one expert and empty slots


@pytest.mark.gpu
def test_cuda_graph(gpu):
    """Captured once, it sorts whatever is in its input later: nothing depends on numbers that the host has seen."""
    experts = draw(5000, 8, 128).to(gpu)
    sort_tokens(experts, 128, 128)  # compiled before anything is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table = sort_tokens(experts, 128, 128)
    for seed in (1, 2):
        experts.copy_(draw(5000, 8, 128, seed))
        graph.replay()
        for name, ours, exact in zip(RowTable._fields, table, sort_tokens_reference(experts, 128, 128), strict=True):
            assert torch.equal(ours, exact), name
