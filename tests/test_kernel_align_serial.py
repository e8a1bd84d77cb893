"""The four serial stages: by hand, against invariants, and number for number the result of `sort_tokens`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.align_serial import SHAPES, align_serial, align_serial_reference, cost, make_inputs
from moe_lab.kernels.sort_tokens import sort_tokens

DEVICE = torch.device("cpu" if INTERPRET else "cuda")
RUBBISH = 1_234_567_890


def check(experts, num_experts, block_size):
    """Run the kernel, then the reference: all three must be equal, to the last number and the dtype."""
    experts = experts.to(DEVICE)
    got = align_serial(experts, num_experts, block_size)
    for ours, exact in zip(got, align_serial_reference(experts, num_experts, block_size), strict=True):
        assert ours.dtype == torch.int32 and ours.device == experts.device and ours.shape == exact.shape
        assert torch.equal(ours, exact), (ours, exact)
    return got


def draw(tokens, slots, num_experts, seed=0):
    """Random experts with empty slots."""
    return torch.randint(-1, num_experts, (tokens, slots), generator=torch.Generator().manual_seed(seed))


def test_the_example_in_vllm():
    """The docstring of its moe_align_block_size, which counts experts from 1."""
    experts = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]]) - 1
    sorted_ids, expert_ids, num_tokens_post_padded = check(experts, 4, 4)
    assert num_tokens_post_padded.tolist() == [16]
    assert sorted_ids[:16].tolist() == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert expert_ids[:4].tolist() == [0, 1, 2, 3]


@given(st.integers(1, 6), st.lists(st.integers(-1, 5), max_size=24), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_invariants(num_experts, experts, block_size):
    experts = torch.tensor(experts, dtype=torch.int64, device=DEVICE)[:, None]
    experts = experts.where(experts < num_experts, -1)
    sorted_ids, expert_ids, num_tokens_post_padded = align_serial(experts, num_experts, block_size)
    numel, used = experts.numel(), int(num_tokens_post_padded)
    # every assignment that has an expert once, and nothing else but the sentinel
    ids = sorted_ids[sorted_ids != numel]
    assert sorted(ids.tolist()) == [i for i, expert in enumerate(experts.flatten().tolist()) if expert >= 0]
    # whole blocks, each of one expert, no expert with more than it needs, experts in order
    load = torch.bincount(experts[experts >= 0], minlength=num_experts)
    assert used == int((-(-load // block_size) * block_size).sum())
    blocks = sorted_ids.reshape(-1, block_size)
    assert expert_ids.shape == (len(blocks),)
    for block, expert in zip(blocks[: used // block_size].tolist(), expert_ids.tolist(), strict=False):
        inside = [i for i in block if i != numel]
        assert inside and all(int(experts[i]) == expert for i in inside)
        assert block == sorted(block)  # earlier assignments first, padding last
    assert bool((blocks[used // block_size :] == numel).all())
    assert bool((expert_ids[used // block_size :] == num_experts).all())
    assert expert_ids.tolist() == sorted(expert_ids.tolist())


@given(st.integers(1, 6), st.lists(st.integers(-1, 5), max_size=24), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_it_is_what_sort_tokens_gives(num_experts, experts, block_size):
    experts = torch.tensor(experts, dtype=torch.int64, device=DEVICE)[:, None]
    sorted_ids, expert_ids, num_tokens_post_padded = align_serial(experts, num_experts, block_size)
    table = sort_tokens(experts, num_experts, block_size)
    assert torch.equal(sorted_ids, table.row_assignment.where(table.row_assignment >= 0, experts.numel()))
    assert torch.equal(expert_ids, table.tile_expert)
    assert torch.equal(num_tokens_post_padded, table.num_tiles * block_size)


@pytest.mark.parametrize("shape", ["tiny", "one_token", "one_expert"])
def test_shared_shapes(shape):
    check(*make_inputs(**SHAPES[shape], dtype=torch.float32, device=DEVICE))


@pytest.mark.parametrize(
    ("experts", "num_experts", "block_size"),
    [
        pytest.param(torch.zeros(0, 2, dtype=torch.int64), 3, 4, id="no_tokens"),
        pytest.param(torch.full((9, 2), -1), 4, 16, id="all_empty"),
        pytest.param(torch.full((20, 2), 3), 5, 16, id="all_on_one"),
        pytest.param(draw(3, 2, 61), 61, 16, id="more_experts_than_assignments"),
        pytest.param(draw(13, 2, 5), 5, 16, id="runs_of_unequal_length"),
        pytest.param(draw(13, 2, 5).int(), 5, 16, id="int32"),
        pytest.param(draw(2, 13, 5).T, 5, 16, id="not_contiguous"),
        pytest.param(torch.tensor([[3, -2], [0, 2**32 + 1], [2, 1]]), 3, 2, id="no_experts_among_them"),
    ],
)
def test_edges(experts, num_experts, block_size):
    check(experts, num_experts, block_size)


def test_buffers_are_written_whole(monkeypatch):
    """Fresh memory full of rubbish must not show anywhere."""
    empty = torch.empty
    experts = draw(13, 2, 5).to(DEVICE)
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(RUBBISH))
    got = align_serial(experts, 5, 4)
    monkeypatch.undo()
    for ours, exact in zip(got, align_serial_reference(experts, 5, 4), strict=True):
        assert torch.equal(ours, exact)


def test_bad_input():
    experts = torch.zeros(4, 2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(TypeError, match="experts must be int64, int32; got float16"):
        align_serial(experts.half(), 3, 16)
    with pytest.raises(ValueError, match=r"num_experts must be in 1\.\.1024; got 2000"):
        align_serial(experts, 2000, 16)
    with pytest.raises(ValueError, match="block_size must be at least 1; got 0"):
        align_serial(experts, 3, 0)


def test_cost():
    # 40 assignments on 4 experts: 6 blocks of 16 rows
    assert cost(**SHAPES["tiny"], itemsize=2) == (0, 40 * 8 + 4 * (96 + 6 + 1))


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [1, 8, 256])
def test_large_shapes_on_the_gpu(gpu, num_experts):
    experts = draw(8192, 8, num_experts)
    first = check(experts, num_experts, 128)
    for one, other in zip(first, check(experts, num_experts, 128), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_two_million_tokens_on_the_gpu(gpu):
    check(*make_inputs(**SHAPES["two_million"], dtype=torch.bfloat16, device=gpu))


@pytest.mark.gpu
def test_cuda_graph(gpu):
    experts = draw(3000, 8, 64).to(gpu)
    align_serial(experts, 64, 128)  # compiled before anything is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = align_serial(experts, 64, 128)
    for seed in (1, 2):
        experts.copy_(draw(3000, 8, 64, seed))
        graph.replay()
        for ours, exact in zip(got, align_serial_reference(experts, 64, 128), strict=True):
            assert torch.equal(ours, exact)
