"""grouped_weight_gradient: sums of outer products by plain loops, by both paths; idle experts get an exact 0."""

import pytest
import torch
from moe_lab.kernels.grouped_weight_gradient import (
    CONFIGS,
    SHAPES,
    grouped_weight_gradient,
    grouped_weight_gradient_reference,
    make_inputs,
)
from moe_lab.kernels.sort_tokens import sort_tokens_reference

from moe_lab.kernels import grouped_weight_gradient as module

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]


def loop(left, right, rows, num_experts):
    """One outer product a row; rows come from the routing and not from its table."""
    dw = torch.zeros(num_experts, left.shape[1], right.shape[1], dtype=torch.float64)
    for row, (expert, token, _) in enumerate(rows):
        if token >= 0:
            dw[expert] += torch.outer(left[row].double(), right[row].double())
    return dw


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_against_the_reference(name, dtype, poisoned, surrounded, agree):
    left, right, start, block_m = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    left[int(start[-1]) :], right[int(start[-1]) :] = float("nan"), float("nan")  # rows of tiles that do not exist
    dw = grouped_weight_gradient(surrounded(left), surrounded(right), surrounded(start), block_m)
    assert poisoned == [dw.shape] and dw.dtype == dtype
    agree("dw", dw, grouped_weight_gradient_reference(left.double(), right.double(), start, block_m))


@pytest.mark.parametrize("zero_side", [0, 1])
@pytest.mark.parametrize("block_m", [16, 32, 64])
def test_edges_against_a_loop(edge, block_m, zero_side, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    rows = edge.rows(block_m)
    sides = [torch.full((table.row_assignment.numel(), width), float("nan")) for width in (8, 12)]
    for side in sides:
        side[: len(rows)] = torch.randn(len(rows), side.shape[1], generator=draw)
    sides[zero_side][: len(rows)][[token < 0 for _, token, _ in rows]] = 0.0
    want = loop(*sides, rows, edge.num_experts)
    dw = grouped_weight_gradient(surrounded(sides[0]), surrounded(sides[1]), table.start, block_m)
    agree("dw", dw, want)
    assert not dw[table.load == 0].any(), "an expert without rows gets an exact 0"
    wide = [side.double() for side in sides]
    agree("the reference", grouped_weight_gradient_reference(*wide, table.start, block_m), want, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny", "one_row", "one_expert"])
def test_descriptors_and_pointers_give_the_same_bits(name, dtype, monkeypatch, poisoned):
    inputs = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    found, original = [], module.describe
    monkeypatch.setattr(module, "describe", lambda t, block, use: found.append(bool(use)) or original(t, block, use))
    through_descriptors = grouped_weight_gradient(*inputs)
    assert found == [True] * 3, "this shape is for descriptors"
    monkeypatch.setattr(module, "aligned", lambda *_: False)
    assert torch.equal(grouped_weight_gradient(*inputs), through_descriptors) and found[3:] == [False] * 3


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_computes_the_same(config, poisoned, agree):
    left, right, *rest = make_inputs(**SHAPES["tiny"], dtype=torch.float16, device="cpu")
    want = grouped_weight_gradient_reference(left.double(), right.double(), *rest)
    agree(config, grouped_weight_gradient(left, right, *rest, config=config), want)


def test_a_width_of_2880_and_a_sum_in_float32(poisoned, agree):
    left, right, start, block_m = make_inputs(5, 2, 2880, 23, 16, dtype=torch.float32, device="cpu")
    want = grouped_weight_gradient_reference(left.double(), right.double(), start, block_m)
    agree("dw", grouped_weight_gradient(left, right, start, block_m), want)
    ones = torch.ones(2880, 8, dtype=torch.float16)  # 2048 + 1 is 2048 in float16
    start = torch.tensor([0, 2880], dtype=torch.int32)
    assert bool((grouped_weight_gradient(ones, ones, start, 64) == 2880).all())


def test_strided_inputs_are_read_and_left_alone(poisoned):
    left, right, *rest = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    want = grouped_weight_gradient(left, right, *rest)
    strided = left.T.contiguous().T, torch.stack([right, right + 1], dim=2)[..., 0]
    before = [tensor.clone() for tensor in strided]
    for _ in range(2):
        assert torch.equal(grouped_weight_gradient(*strided, *rest), want)
    assert all(torch.equal(one, other) for one, other in zip(strided, before, strict=True))


def test_a_nan_stays_with_its_expert_and_its_column():
    """A row adds to every row of its expert's gradient, so there a NaN cannot stay with its token."""
    left, right, start, block_m = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    row = int(start[2])
    right[row, 7] = float("nan")
    bad = torch.zeros(4, 40, 24, dtype=torch.bool)
    bad[2, :, 7] = True
    assert torch.equal(grouped_weight_gradient(left, right, start, block_m).isnan(), bad)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # NumPy, in the interpreter
def test_overflow_in_float16_is_infinity():
    left = torch.full((16, 8), 300.0).half()
    dw = grouped_weight_gradient(left, -left, torch.tensor([0, 16, 16], dtype=torch.int32), 16)
    assert bool((dw[0] == float("-inf")).all()) and not dw[1].any()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(left=torch.zeros(16, 4).double()), TypeError, r"left must be float32, float16, bfloat16; got float64"),
        (dict(right=torch.zeros(16, 4).half()), ValueError, r"right \(16, 4\) torch.float16: they do not fit"),
        (dict(right=torch.zeros(32, 4)), ValueError, r"left is \(16, 4\) .* right \(32, 4\) .* do not fit"),
        (dict(config="fast"), ValueError, r"config must be one of interpreter, .*; got 'fast'"),
        # steps of BLOCK_K = 32 rows would end 16 rows deep in the next expert's block, without a word
        (dict(block_m=48), ValueError, r"block_m must be a power of two, at least 16; got 48"),
        (dict(block_m=8), ValueError, r"block_m must be a power of two, at least 16; got 8"),
    ],
)
def test_refuses(change, error, says):
    arguments = dict(left=torch.zeros(16, 4), right=torch.zeros(16, 4), start=torch.tensor([0, 16]).int(), block_m=16)
    with pytest.raises(error, match=says):
        grouped_weight_gradient(**{**arguments, **change})


@pytest.mark.gpu
def test_on_the_gpu(gpu, replayed, agree):
    left, right, *rest = make_inputs(**SHAPES["qwen3"], dtype=torch.bfloat16, device=gpu)
    dw = grouped_weight_gradient(left, right, *rest)
    agree("dw", dw, grouped_weight_gradient_reference(left.float(), right.float(), *rest))
    assert torch.equal(dw, grouped_weight_gradient(left, right, *rest))
    assert torch.equal(replayed(lambda: grouped_weight_gradient(left, right, *rest))[0], dw)
