"""combine: sums by plain loops, the reference too; empty slots, rows nobody may read, float32 sums, large offsets."""

import pytest
import torch
from moe_lab.kernels.combine import SHAPES, combine, combine_reference, make_inputs
from moe_lab.kernels.sort_tokens import sort_tokens_reference

DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "qwen3"])
def test_against_the_reference(name, dtype, poisoned, surrounded, agree):
    rows, assignment_row = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    y = combine(surrounded(rows), surrounded(assignment_row))
    assert poisoned == [y.shape] and y.dtype == dtype
    agree("y", y, combine_reference(rows.double(), assignment_row))


@pytest.mark.parametrize("block_m", [16, 32, 64])
def test_edges_against_a_loop(edge, block_m, poisoned, surrounded, agree):
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    rows = torch.randn(table.row_assignment.numel(), 12, generator=torch.Generator().manual_seed(0))
    want = torch.zeros(edge.tokens, 12, dtype=torch.float64)
    for row, (_, token, _) in enumerate(edge.rows(block_m)):
        if token >= 0:
            want[token] += rows[row].double()
    padded = rows.masked_fill((table.row_assignment < 0)[:, None], float("nan"))  # padding belongs to nobody
    y = combine(surrounded(padded), table.assignment_row)
    agree("y", y, want)
    agree("the reference", combine_reference(rows.double(), table.assignment_row), want, 1e-15)


@pytest.mark.parametrize("d_model", [1, 513, 2880])
def test_any_width(d_model, poisoned, surrounded, agree):
    rows, assignment_row = make_inputs(3, d_model, 4, 2, 16, dtype=torch.float16, device="cpu")
    agree("y", combine(surrounded(rows), assignment_row), combine_reference(rows.double(), assignment_row))


def test_without_slots_or_columns_there_is_nothing_to_add(poisoned):
    empty = torch.zeros(3, 0, dtype=torch.int32)
    assert torch.equal(combine(torch.zeros(0, 8), empty), torch.zeros(3, 8))
    assert combine(torch.zeros(5, 0), torch.zeros(3, 2, dtype=torch.int32)).shape == (3, 0)


def test_the_sum_runs_in_float32_and_in_the_order_of_the_slots():
    """2048 + 1 is 2048 in float16, and 1e8 + 1 is 1e8 in float32."""
    rows = torch.tensor([[2048.0], [1.0], [1.0], [1.0]]).half()
    assert combine(rows, torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)).item() == float(torch.tensor(2051.0).half())
    large = torch.tensor([[1e8], [-1e8], [1.0]])
    order = torch.tensor([[0, 1, 2], [0, 2, 1]], dtype=torch.int32)
    assert combine(large, order).tolist() == [[1.0], [0.0]]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # NumPy, in the interpreter
def test_overflow_gives_infinity_and_stays_with_its_token():
    rows = torch.tensor([[60000.0], [-60000.0], [1.0]]).half()
    slots = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 1]], dtype=torch.int32)
    assert combine(rows, slots).flatten().tolist() == [float("inf"), float("-inf"), 2.0, 0.0]


def test_strided_inputs_are_read_and_left_alone(poisoned):
    rows, assignment_row = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    want = combine(rows, assignment_row)
    strided = rows.T.contiguous().T
    slots = torch.stack([assignment_row, torch.full_like(assignment_row, -5)], dim=2)[..., 0]
    assert not strided.is_contiguous() and not slots.is_contiguous()
    before, slots_before = strided.clone(), slots.clone()
    assert torch.equal(combine(strided, slots), want) and torch.equal(combine(strided, slots), want)
    assert torch.equal(strided, before) and torch.equal(slots, slots_before)


def test_a_nan_stays_with_its_token():
    rows, assignment_row = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    rows[assignment_row[7, 0]] = float("nan")
    assert combine(rows, assignment_row).isnan().any(1).nonzero().tolist() == [[7]]


def test_an_empty_slot_does_not_read_row_0(poisoned):
    rows = torch.tensor([[float("nan")], [3.0]])
    assert combine(rows, torch.tensor([[-1, 1], [-1, -1]], dtype=torch.int32)).tolist() == [[3.0], [0.0]]


def test_offsets_beyond_31_bits():
    """The last of 70000 rows of 32768 numbers; memory that nobody touches costs nothing."""
    rows = torch.empty(70_000, 32_768, dtype=torch.float16)
    rows[-1], rows[3] = 1.5, 1.0
    assert bool((combine(rows, torch.tensor([[69_999, 3]], dtype=torch.int32)) == 2.5).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_refuses(dtype):
    with pytest.raises(TypeError, match=r"rows must be float32, float16, bfloat16; got (float|int)64"):
        combine(torch.zeros(2, 3, dtype=dtype), torch.zeros(1, 1, dtype=torch.int32))


@pytest.mark.gpu
def test_on_the_gpu(gpu, replayed, agree):
    rows, assignment_row = make_inputs(**SHAPES["qwen3"], dtype=torch.bfloat16, device=gpu)
    y = combine(rows, assignment_row)
    agree("y", y, combine_reference(rows.float(), assignment_row))
    assert torch.equal(y, combine(rows, assignment_row))
    assert torch.equal(replayed(lambda: combine(rows, assignment_row))[0], y)
