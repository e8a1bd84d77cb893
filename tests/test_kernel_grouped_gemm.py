"""grouped_gemm: against plain loops in float64, through descriptors and pointers; tails, idle experts, offsets."""

import pytest
import torch
from moe_lab.kernels.grouped_gemm import CONFIGS, SHAPES, grouped_gemm, grouped_gemm_reference, make_inputs
from moe_lab.kernels.sort_tokens import sort_tokens_reference

from moe_lab.kernels import grouped_gemm as module

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]


def loop(x, w, rows, transposed):
    """Each row by its expert's matrix, number by number of y; rows come from the routing and not from its table."""
    y = torch.zeros(len(rows), w.shape[2] if transposed else w.shape[1], dtype=torch.float64)
    for row, (expert, _, _) in enumerate(rows):
        for column in range(y.shape[1]):
            line = w[expert, :, column] if transposed else w[expert, column]
            y[row, column] = (x[row].double() * line.double()).sum()
    return y


def turned(inputs, transposed):
    x, w, *table = inputs
    return (x, w.mT.contiguous() if transposed else w, *table)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_against_the_reference(name, dtype, transposed, poisoned, surrounded, agree, in_float64):
    x, w, *table = turned(make_inputs(**SHAPES[name], dtype=dtype, device="cpu"), transposed)
    used = int(table[1]) * table[2]
    x[used:] = float("nan")  # rows of tiles that do not exist
    if w.shape[0] > 1:
        w[1] = float("nan")  # make_inputs leaves expert 1 without rows
    y = grouped_gemm(surrounded(x), surrounded(w), *table, transposed=transposed)
    assert poisoned == [y.shape] and y.dtype == dtype
    want = grouped_gemm_reference(*in_float64((x, w, *table)), transposed=transposed)
    agree("y", y[:used], want[:used])
    assert y[used:].isnan().all(), "rows of tiles that are not in use are not written"


@pytest.mark.parametrize(("block_m", "transposed"), [(16, False), (32, True), (64, False)])
def test_edges_against_a_loop(edge, block_m, transposed, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    rows = edge.rows(block_m)
    x = torch.full((table.row_assignment.numel(), 12), float("nan"))
    x[: len(rows)] = torch.randn(len(rows), 12, generator=draw)  # padding too is multiplied, if it is not 0
    w = torch.randn(edge.num_experts, *((12, 8) if transposed else (8, 12)), generator=draw)
    want = loop(x, w, rows, transposed)
    w[table.load == 0] = float("nan")
    tables = table.tile_expert, table.num_tiles, block_m
    y = grouped_gemm(surrounded(x), surrounded(w), *tables, transposed=transposed)
    agree("y", y[: len(rows)], want)
    assert y[len(rows) :].isnan().all()
    reference = grouped_gemm_reference(x.double(), w.double(), *tables, transposed=transposed)
    agree("the reference", reference[: len(rows)], want, 1e-14)
    assert not reference[len(rows) :].any()


@pytest.fixture
def described(monkeypatch):
    """How each tensor was handed over, in the order of the launch: True is a descriptor."""
    found = []
    original = module.describe
    monkeypatch.setattr(module, "describe", lambda t, block, use: found.append(bool(use)) or original(t, block, use))
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny", "one_row", "one_expert"])
def test_descriptors_and_pointers_give_the_same_bits(name, dtype, transposed, described, monkeypatch, poisoned):
    inputs = turned(make_inputs(**SHAPES[name], dtype=dtype, device="cpu"), transposed)
    used = int(inputs[3]) * inputs[4]
    through_descriptors = grouped_gemm(*inputs, transposed=transposed)
    assert described == [True] * 3, "this shape is for descriptors"
    monkeypatch.setattr(module, "aligned", lambda *_: False)
    through_pointers = grouped_gemm(*inputs, transposed=transposed)
    assert described[3:] == [False] * 3
    assert torch.equal(through_descriptors[:used], through_pointers[:used])
    assert through_descriptors[used:].isnan().all() and through_pointers[used:].isnan().all()


def test_what_has_no_descriptor_goes_through_pointers(described):
    x, w, *table = make_inputs(**SHAPES["odd"], dtype=torch.float32, device="cpu")
    grouped_gemm(x, w, *table)
    assert described == [False] * 3
    x, w, *table = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    memory = torch.zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)  # starts 4 bytes behind a multiple of 16
    used = int(table[1]) * table[2]
    assert torch.equal(grouped_gemm(memory, w, *table)[:used], grouped_gemm(x, w, *table)[:used])
    assert described[3:] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_computes_the_same(config, transposed, poisoned, agree, in_float64):
    inputs = turned(make_inputs(**SHAPES["tiny"], dtype=torch.float16, device="cpu"), transposed)
    used = int(inputs[3]) * inputs[4]
    y = grouped_gemm(*inputs, transposed=transposed, config=config)
    agree("y", y[:used], grouped_gemm_reference(*in_float64(inputs), transposed=transposed)[:used])


@pytest.mark.parametrize("programs", [1, 2, 7, 100])
def test_the_number_of_programs_changes_nothing(programs, monkeypatch, poisoned):
    inputs = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    used = int(inputs[3]) * inputs[4]
    want = grouped_gemm(*inputs)[:used]
    monkeypatch.setattr(module, "num_programs", lambda device: programs)
    assert torch.equal(grouped_gemm(*inputs)[:used], want)


@pytest.mark.parametrize("transposed", [False, True])
def test_2880_columns_are_added_in_float32(transposed, poisoned):
    """gpt-oss is that wide, which no power of two divides; float16 could not count past 2048."""
    table = sort_tokens_reference(torch.tensor([[1], [0], [1]]), 2, 16)
    x = torch.ones(table.row_assignment.numel(), 2880, dtype=torch.float16)
    w = torch.ones(2, *((2880, 47) if transposed else (47, 2880)), dtype=torch.float16)
    y = grouped_gemm(x, w, table.tile_expert, table.num_tiles, 16, transposed=transposed)
    assert bool((y[: int(table.num_tiles) * 16] == 2880).all())


def test_strided_inputs_are_read_and_left_alone(poisoned, agree):
    x, w, *table = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    used = int(table[1]) * table[2]
    want = grouped_gemm(x, w, *table)[:used]
    strided_x = torch.stack([x, torch.full_like(x, float("nan"))], dim=2)[..., 0]
    strided_w = w.mT.contiguous().mT
    before = strided_x.clone(), strided_w.clone()
    assert torch.equal(grouped_gemm(strided_x, strided_w, *table)[:used], want)
    agree("transposed", grouped_gemm(x, w.mT, *table, transposed=True)[:used], want)
    assert torch.equal(grouped_gemm(strided_x, strided_w, *table)[:used], want), "the same bits every time"
    assert torch.equal(strided_x, before[0]) and torch.equal(strided_w, before[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # NumPy, in the interpreter
@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_a_nan_stays_with_its_row(name):
    x, w, *table = make_inputs(**SHAPES[name], dtype=torch.float32, device="cpu")
    used = int(table[1]) * table[2]
    x[5, 3], x[17, -1] = float("nan"), float("inf")
    bad = ~grouped_gemm(x, w, *table)[:used].isfinite()
    assert bad.any(1).nonzero().flatten().tolist() == [5, 17] and bad[[5, 17]].all()


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_huge_numbers(name, agree, in_float64):
    x, w, *table = make_inputs(**SHAPES[name], dtype=torch.float32, device="cpu")
    used = int(table[1]) * table[2]
    inputs = x * 1e4, w * 1e4, *table
    agree("y", grouped_gemm(*inputs)[:used], grouped_gemm_reference(*in_float64(inputs))[:used])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # NumPy, in the interpreter
@pytest.mark.parametrize("columns", [24, 47])
def test_overflow_in_float16_is_infinity(columns):
    table = sort_tokens_reference(torch.tensor([[0], [0]]), 1, 16)
    x = torch.full((16, 40), 300.0).half()
    x[1] *= -1
    y = grouped_gemm(x, torch.full((1, columns, 40), 300.0).half(), table.tile_expert, table.num_tiles, 16)
    assert bool((y[0] == float("inf")).all()) and bool((y[1] == float("-inf")).all())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("descriptors", [True, False])
def test_experts_beyond_31_bits(descriptors, transposed, monkeypatch):
    """The last expert's matrix begins behind 2^31 numbers; memory that nobody touches costs nothing."""
    num_experts, side = 2**19 + 1, 64
    w = torch.empty(num_experts, side, side, dtype=torch.float16)
    w[-1] = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
    x = torch.eye(side).half()
    table = torch.tensor([num_experts - 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32), 64
    if not descriptors:
        monkeypatch.setattr(module, "aligned", lambda *_: False)
    y = grouped_gemm(x, w, *table, transposed=transposed)
    assert torch.equal(y, w[-1] if transposed else w[-1].T)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(x=torch.zeros(16, 4).double()), TypeError, r"x must be float32, float16, bfloat16; got float64"),
        (dict(w=torch.zeros(2, 3, 4).long()), TypeError, r"w must be float32, float16, bfloat16; got int64"),
        (dict(x=torch.zeros(16, 4).half()), ValueError, r"x is \(16, 4\) torch.float16 and w .* do not fit"),
        (dict(x=torch.zeros(16, 5)), ValueError, r"x is \(16, 5\) .* and w \(2, 3, 4\) .* do not fit"),
        (dict(transposed=True), ValueError, r"x is \(16, 4\) .* and w \(2, 3, 4\) .* do not fit"),
        (dict(w=torch.zeros(2, 3, 4, device="meta")), ValueError, r"w is on meta and x on cpu; they must be on one"),
        (dict(config="fast"), ValueError, r"config must be one of interpreter, .*; got 'fast'"),
        (
            dict(x=torch.zeros(2, 4)),
            ValueError,
            r"x must have 1 tiles of 16 rows; got 2 rows",
        ),  # else read beyond its end
        (dict(block_m=8), ValueError, r"x must have 1 tiles of 8 rows; got 16 rows"),
    ],
)
def test_refuses(change, error, says):
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 2, 16)
    arguments = dict(x=torch.zeros(16, 4), w=torch.zeros(2, 3, 4), block_m=16)
    arguments |= dict(tile_expert=table.tile_expert, num_tiles=table.num_tiles)
    with pytest.raises(error, match=says):
        grouped_gemm(**{**arguments, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("transposed", [False, True])
def test_on_the_gpu(gpu, replayed, agree, transposed):
    inputs = turned(make_inputs(**SHAPES["qwen3"], dtype=torch.bfloat16, device=gpu), transposed)
    used = int(inputs[3]) * inputs[4]
    y = grouped_gemm(*inputs, transposed=transposed)[:used]
    x, w, *table = inputs
    agree("y", y, grouped_gemm_reference(x.float(), w.float(), *table, transposed=transposed)[:used])
    assert torch.equal(y, grouped_gemm(*inputs, transposed=transposed)[:used])
    (captured,) = replayed(lambda: grouped_gemm(*inputs, transposed=transposed))
    assert torch.equal(captured[:used], y)


@pytest.mark.gpu
def test_every_config_of_this_gpu(gpu, agree):
    """float32 has tiles of its own, and few rows too; both must fit into a multiprocessor."""
    for dtype, block_m in ((torch.float32, 64), (torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float16, 128)):
        x, w, *table = make_inputs(300, 8, 320, 192, block_m, dtype=dtype, device=gpu)
        used = int(table[1]) * block_m
        for transposed in (False, True):
            right = w.mT.contiguous() if transposed else w
            want = grouped_gemm_reference(x.double(), right.double(), *table, transposed=transposed)
            agree("y", grouped_gemm(x, right, *table, transposed=transposed)[:used], want[:used])
