"""permute: rows by counting in plain loops, the reference too; padding, tails, margins, strides, NaN, large offsets."""

import pytest
import torch
from moe_lab.kernels.permute import SHAPES, make_inputs, permute, permute_reference
from moe_lab.kernels.sort_tokens import RowTable, sort_tokens_reference

DTYPES = [torch.float32, torch.float16]


def loop(x, rows):
    """Row by row, from the routing and not from its table."""
    found = [x[token] if token >= 0 else torch.zeros_like(x[0]) for _, token, _ in rows]
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "qwen3"])
def test_against_the_reference(name, dtype, poisoned, surrounded):
    x, table, block_m = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    rows = permute(surrounded(x), table, block_m)
    used = int(table.num_tiles) * block_m
    assert poisoned == [rows.shape] and rows.dtype == dtype
    assert torch.equal(rows[:used], permute_reference(x, table, block_m)[:used])
    assert rows[used:].isnan().all(), "rows of tiles that are not in use are not written"


@pytest.mark.parametrize("block_m", [16, 32, 64])
def test_edges_against_a_loop(edge, block_m, poisoned, surrounded):
    x = torch.randn(edge.tokens, 12, generator=torch.Generator().manual_seed(0))
    x[[bool((slots < 0).all()) for slots in edge.experts]] = float("nan")  # a token without a row is in no row
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    want = loop(x, edge.rows(block_m))
    rows = permute(surrounded(x), table, block_m)
    assert len(want) == int(table.num_tiles) * block_m
    assert torch.equal(rows[: len(want)], want)
    assert rows[len(want) :].isnan().all()
    reference = permute_reference(x, table, block_m)
    assert torch.equal(reference[: len(want)], want) and not reference[len(want) :].any()


@pytest.mark.parametrize("d_model", [1, 1030, 2880])
def test_any_width(d_model, poisoned, surrounded):
    x, table, block_m = make_inputs(3, d_model, 4, 2, 16, dtype=torch.float32, device="cpu")
    rows = permute(surrounded(x), table, block_m)
    used = int(table.num_tiles) * block_m
    assert torch.equal(rows[:used], permute_reference(x, table, block_m)[:used])


def test_nothing_to_permute():
    _, table, block_m = make_inputs(3, 8, 4, 2, 16, dtype=torch.float32, device="cpu")
    assert permute(torch.zeros(3, 0), table, block_m).shape == (table.row_assignment.numel(), 0)
    no_slots = sort_tokens_reference(torch.zeros(3, 0, dtype=torch.int64), 4, 16)
    assert permute(torch.zeros(3, 8), no_slots, 16).shape == (0, 8)


def test_strided_inputs_are_read_and_left_alone(poisoned):
    _, table, block_m = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    wide = torch.randn(80, 2 * 19)
    for x in (wide[:40, ::2].T, wide.T[1::2, 40:], wide[:1, :40].expand(19, 38)):
        before = x.clone()
        rows, again = permute(x, table, block_m), permute(x, table, block_m)
        used = int(table.num_tiles) * block_m
        assert torch.equal(rows[:used], permute_reference(before, table, block_m)[:used])
        assert torch.equal(rows[:used], again[:used]) and torch.equal(x, before)


def test_a_nan_stays_with_its_token():
    x, table, block_m = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    x[7] = float("nan")
    used = int(table.num_tiles) * block_m
    bad = permute(x, table, block_m)[:used].isnan()
    mine = table.row_assignment[:used].div(2, rounding_mode="floor") == 7
    assert mine.any() and torch.equal(bad, mine[:, None].expand_as(bad))


def test_offsets_beyond_31_bits():
    """The last of 70000 rows of 32768 numbers; memory that nobody touches costs nothing."""
    rows, d_model = 70_000, 32_768
    table = RowTable(
        load=torch.tensor([1]),
        start=torch.tensor([0, rows]),
        assignment_row=torch.tensor([[rows - 1]], dtype=torch.int32),
        row_assignment=torch.zeros(rows, dtype=torch.int32),
        tile_expert=torch.zeros(1, dtype=torch.int32),
        num_tiles=torch.zeros(1, dtype=torch.int32),
    )
    x = torch.randn(1, d_model).half()
    assert torch.equal(permute(x, table, 16)[-1], x[0])


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.zeros(3, 4).double(), TypeError, r"x must be float32, float16, bfloat16; got float64"),
        (torch.zeros(3, 4).long(), TypeError, r"x must be float32, float16, bfloat16; got int64"),
        (torch.zeros(4, 4), ValueError, r"x must be \(tokens=3, d_model\), got \(4, 4\)"),
        (torch.zeros(3), ValueError, r"x must be \(tokens=3, d_model\), got \(3,\)"),
    ],
)
def test_refuses(x, error, says):
    table = sort_tokens_reference(torch.zeros(3, 1, dtype=torch.int64), 2, 16)
    with pytest.raises(error, match=says):
        permute(x, table, 16)


@pytest.mark.gpu
def test_on_the_gpu(gpu, replayed):
    x, table, block_m = make_inputs(**SHAPES["qwen3"], dtype=torch.bfloat16, device=gpu)
    used = int(table.num_tiles) * block_m
    rows = permute(x, table, block_m)[:used]
    assert torch.equal(rows, permute_reference(x, table, block_m)[:used])
    (captured,) = replayed(lambda: permute(x, table, block_m))
    assert torch.equal(captured[:used], rows)
