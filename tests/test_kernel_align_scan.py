"""Histogram, scan, scatter: the result of `align_serial` with each expert's rows compared as a set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.align_scan import SHAPES, align_scan, align_scan_reference, cost, make_inputs

from moe_lab.kernels import align_scan as module
from moe_lab.kernels import align_serial

DEVICE = torch.device("cpu" if INTERPRET else "cuda")
RUBBISH = 1_234_567_890


def ordered(sorted_ids, expert_ids, block_size):
    """Each expert's rows in ascending order: the sentinel is larger than every assignment, and stays behind them."""
    key = expert_ids.long().repeat_interleave(block_size) * 2**32 + sorted_ids
    return sorted_ids[key.argsort()]


def compare(got, want, numel, block_size):
    """Blocks, and each expert's set of assignments; padding, which is `numel`, must lie behind them."""
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == torch.int32 and ours.device == exact.device and ours.shape == exact.shape
    assert torch.equal(got[1], want[1]) and torch.equal(got[2], want[2]), (got, want)
    assert torch.equal(ordered(got[0], got[1], block_size), want[0]), (got, want)
    assert torch.equal(got[0] == numel, want[0] == numel)


def check(experts, num_experts, block_size):
    """Run the kernel, then the reference."""
    experts = experts.to(DEVICE)
    got = align_scan(experts, num_experts, block_size)
    compare(got, align_scan_reference(experts, num_experts, block_size), experts.numel(), block_size)
    return got


def draw(tokens, slots, num_experts, seed=0):
    """Random experts with empty slots."""
    return torch.randint(-1, num_experts, (tokens, slots), generator=torch.Generator().manual_seed(seed))


def test_the_comparison_can_fail():
    """Two assignments of one expert may change places; two of different experts, or one and padding, may not."""
    want = align_scan_reference(torch.tensor([[0, 0, 0], [1, 1, 1]]), 2, 4)
    assert want[0][:8].tolist() == [0, 1, 2, 6, 3, 4, 5, 6]
    for first, second, allowed in ((0, 2, True), (2, 3, False), (0, 4, False), (3, 7, True)):
        ids = want[0].clone()
        ids[[first, second]] = ids[[second, first]]
        if allowed:
            compare((ids, *want[1:]), want, 6, 4)
        else:
            with pytest.raises(AssertionError):
                compare((ids, *want[1:]), want, 6, 4)


def test_the_example_in_vllm():
    """The docstring of its moe_align_block_size, which counts experts from 1."""
    experts = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]]) - 1
    sorted_ids, expert_ids, num_tokens_post_padded = check(experts, 4, 4)
    assert num_tokens_post_padded.tolist() == [16] and expert_ids[:4].tolist() == [0, 1, 2, 3]
    want = [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert ordered(sorted_ids, expert_ids, 4)[:16].tolist() == want


@given(st.integers(1, 9), st.lists(st.integers(-1, 8), max_size=60), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_random_routings(num_experts, experts, block_size):
    check(torch.tensor(experts, dtype=torch.int64)[:, None], num_experts, block_size)


@pytest.mark.parametrize("shape", ["tiny", "one_token", "odd", "one_expert"])
def test_shared_shapes(shape):
    check(*make_inputs(**SHAPES[shape], dtype=torch.float32, device=DEVICE))


@pytest.mark.parametrize(
    ("experts", "num_experts", "block_size"),
    [
        pytest.param(torch.zeros(0, 2, dtype=torch.int64), 3, 4, id="no_tokens"),
        pytest.param(torch.full((40, 2), -1), 4, 16, id="all_empty"),
        pytest.param(torch.full((40, 2), 3), 5, 16, id="all_on_one"),
        pytest.param(draw(3, 2, 1024), 1024, 8, id="most_experts"),
        pytest.param(draw(65, 2, 7), 7, 13, id="several_chunks"),
        pytest.param(draw(40, 2, 6).int(), 6, 16, id="int32"),
        pytest.param(draw(2, 40, 6).T, 6, 16, id="not_contiguous"),
        pytest.param(torch.tensor([[3, -2], [0, 2**32 + 1], [2, 1]]), 3, 2, id="no_experts_among_them"),
    ],
)
def test_edges(experts, num_experts, block_size):
    check(experts, num_experts, block_size)


def test_the_sizes_of_the_gpu(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1024)
    monkeypatch.setattr(module, "PART", 128)
    monkeypatch.setattr(module, "tile_step", lambda bins: 4096 // bins)
    check(draw(1100, 2, 60), 60, 128)


def test_buffers_are_written_whole(monkeypatch):
    """Fresh memory full of rubbish must not show anywhere."""
    empty = torch.empty
    experts = draw(50, 2, 7).to(DEVICE)
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(RUBBISH))
    got = align_scan(experts, 7, 16)
    monkeypatch.undo()
    compare(got, align_scan_reference(experts, 7, 16), 100, 16)


def test_bad_input():
    experts = torch.zeros(4, 2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(TypeError, match="experts must be int64, int32; got float16"):
        align_scan(experts.half(), 3, 16)
    with pytest.raises(ValueError, match=r"num_experts must be in 1\.\.1024; got 2000"):
        align_scan(experts, 2000, 16)
    with pytest.raises(ValueError, match="block_size must be at least 1; got 0"):
        align_scan(experts, 3, 0)


def test_both_align_kernels_get_the_same_work():
    """Else their ratio would mean nothing."""
    assert SHAPES == align_serial.SHAPES
    for shape in SHAPES.values():
        assert cost(**shape, itemsize=2) == align_serial.cost(**shape, itemsize=2)
    options = dict(dtype=torch.float32, device="cpu", seed=3)
    ours, theirs = make_inputs(**SHAPES["odd"], **options), align_serial.make_inputs(**SHAPES["odd"], **options)
    assert torch.equal(ours[0], theirs[0]) and ours[1:] == theirs[1:]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["qwen3", "two_million"])
def test_large_shapes_on_the_gpu(gpu, shape):
    inputs = make_inputs(**SHAPES[shape], dtype=torch.bfloat16, device=gpu)
    _, expert_ids, num_tokens_post_padded = check(*inputs)
    for _ in range(3):  # the order may change; what does not depend on it may not
        _, again, padded = check(*inputs)
        assert torch.equal(expert_ids, again) and torch.equal(num_tokens_post_padded, padded)


@pytest.mark.gpu
@pytest.mark.parametrize("num_experts", [1, 8, 31, 32, 127, 512, 1024])
def test_many_experts_on_the_gpu(gpu, num_experts):
    for tokens in (1, 17, 5000):
        check(draw(tokens, 6, num_experts), num_experts, 64)


@pytest.mark.gpu
def test_cuda_graph(gpu):
    """Counters begin at 0 in every replay, or the second one writes behind the end."""
    experts = draw(5000, 8, 128).to(gpu)
    align_scan(experts, 128, 128)  # compiled before anything is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = align_scan(experts, 128, 128)
    for seed in (1, 2):
        experts.copy_(draw(5000, 8, 128, seed))
        graph.replay()
        compare(got, align_scan_reference(experts, 128, 128), experts.numel(), 128)
