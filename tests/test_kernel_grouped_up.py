"""grouped_up: against plain loops in float64, for every activation, gathered or not, kept or not, by both paths."""

import math

import pytest
import torch
from moe_lab.kernels._activations import FUNCTIONS
from moe_lab.kernels.grouped_up import CONFIGS, SHAPES, grouped_up, grouped_up_reference, make_inputs
from moe_lab.kernels.sort_tokens import sort_tokens_reference

from moe_lab.kernels import grouped_up as module

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]
SCALAR = {
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
    "relu": lambda z: max(z, 0.0),
}


def loop(x, w, weights, rows, activation, gather):
    """Each row and each column by itself; rows come from the routing and not from its table."""
    function, gated = FUNCTIONS[activation]
    d_expert = w.shape[1] // 2 if gated else w.shape[1]
    a = torch.zeros(len(rows), d_expert, dtype=torch.float64)
    hidden = torch.zeros(len(rows), w.shape[1], dtype=torch.float64)
    for row, (expert, token, slot) in enumerate(rows):
        if token < 0:
            continue
        hidden[row] = (w[expert].double() * x[token if gather else row].double()).sum(1)
        for column in range(d_expert):
            value = SCALAR[function](float(hidden[row, column]))
            up = float(hidden[row, d_expert + column]) if gated else 1.0
            a[row, column] = value * up * float(weights[token, slot])
    return a, hidden


def draw_inputs(shape, dtype, activation="swiglu", gather=False, device="cpu"):
    x, w, weights, table, block_m = make_inputs(**shape, dtype=dtype, device=device)
    if gather:
        x = x[: weights.shape[0]].clone()
    if not FUNCTIONS[activation][1]:
        w = w[:, : w.shape[1] // 2].contiguous()
    return x, w, weights, table, block_m, activation, gather


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation"), [(name, "swiglu") for name in SMALL] + [("tiny", name) for name in FUNCTIONS][1:]
)
def test_against_the_reference(name, dtype, activation, gather, poisoned, surrounded, agree, in_float64):
    x, w, weights, table, *rest = draw_inputs(SHAPES[name], dtype, activation, gather)
    used = int(table.num_tiles) * rest[0]
    if not gather:
        x[used:] = float("nan")  # rows of tiles that do not exist
    w[table.load == 0] = float("nan")  # experts without rows
    a, hidden = grouped_up(surrounded(x), surrounded(w), surrounded(weights), table, *rest)
    assert poisoned == [a.shape, hidden.shape] and a.dtype == hidden.dtype == dtype
    want_a, want_hidden = grouped_up_reference(*in_float64((x, w, weights, table, *rest)))
    agree("a", a[:used], want_a[:used])
    agree("hidden", hidden[:used], want_hidden[:used])
    assert a[used:].isnan().all() and hidden[used:].isnan().all(), "tiles that are not in use are not written"
    alone, nothing = grouped_up(surrounded(x), w, weights, table, *rest, store_hidden=False)
    assert torch.equal(alone[:used], a[:used]) and nothing.shape == (0, w.shape[1])


@pytest.mark.parametrize(
    ("activation", "block_m", "gather"), [("swiglu", 16, False), ("geglu", 32, True), ("relu", 64, False)]
)
def test_edges_against_a_loop(edge, activation, block_m, gather, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    rows = edge.rows(block_m)
    w = torch.randn(edge.num_experts, 8, 12, generator=draw)
    if gather:
        x = torch.randn(edge.tokens, 12, generator=draw)
    else:
        x = torch.full((table.row_assignment.numel(), 12), float("nan"))
        x[: len(rows)] = torch.randn(len(rows), 12, generator=draw)
        x[: len(rows)][[token < 0 for _, token, _ in rows]] = 0.0  # what permute writes there
    want = loop(x, w, edge.weights, rows, activation, gather)
    edge.weights[edge.experts < 0] = float("nan")  # nobody asks for the weight of an empty slot
    got = grouped_up(surrounded(x), surrounded(w), surrounded(edge.weights), table, block_m, activation, gather)
    wide = x.double(), w.double(), edge.weights.double()
    reference = grouped_up_reference(*wide, table, block_m, activation, gather)
    for name, ours, theirs, exact in zip(("a", "hidden"), got, reference, want, strict=True):
        agree(name, ours[: len(rows)], exact)
        agree(f"{name} of the reference", theirs[: len(rows)], exact, 1e-13)
        assert ours[len(rows) :].isnan().all()


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny", "one_token", "one_expert"])
def test_descriptors_and_pointers_give_the_same_bits(name, dtype, activation, gather, monkeypatch, poisoned):
    inputs = draw_inputs(SHAPES[name], dtype, activation, gather)
    used = int(inputs[3].num_tiles) * inputs[4]
    found, original = [], module.describe
    monkeypatch.setattr(module, "describe", lambda t, block, use: found.append(bool(use)) or original(t, block, use))
    first = grouped_up(*inputs)
    assert found == [not gather, True, True, True], "this shape is for descriptors"
    monkeypatch.setattr(module, "aligned", lambda *_: False)
    second = grouped_up(*inputs)
    assert found[4:] == [False] * 4
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[:used], other[:used])
        assert one[used:].isnan().all() and other[used:].isnan().all()


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_computes_the_same(config, gather, poisoned, agree, in_float64):
    inputs = draw_inputs(SHAPES["tiny"], torch.float16, gather=gather)
    used = int(inputs[3].num_tiles) * inputs[4]
    for ours, exact in zip(grouped_up(*inputs, config=config), grouped_up_reference(*in_float64(inputs)), strict=True):
        agree(config, ours[:used], exact[:used])


@pytest.mark.parametrize("gather", [False, True])
def test_a_width_of_2880(gather, poisoned, agree, in_float64):
    shape = dict(tokens=3, d_model=2880, d_expert=23, num_experts=2, top_k=1, block_m=16)
    inputs = draw_inputs(shape, torch.float32, gather=gather)
    used = int(inputs[3].num_tiles) * 16
    for ours, exact in zip(grouped_up(*inputs), grouped_up_reference(*in_float64(inputs)), strict=True):
        agree("2880", ours[:used], exact[:used])


def test_strided_inputs_are_read_and_left_alone(poisoned):
    x, w, weights, *rest = draw_inputs(SHAPES["tiny"], torch.float32)
    used = int(rest[0].num_tiles) * rest[1]
    want = grouped_up(x, w, weights, *rest)
    strided = x.T.contiguous().T, w.mT.contiguous().mT, weights.T.contiguous().T
    before = [tensor.clone() for tensor in strided]
    for _ in range(2):
        for one, other in zip(grouped_up(*strided, *rest), want, strict=True):
            assert torch.equal(one[:used], other[:used])
    assert all(torch.equal(one, other) for one, other in zip(strided, before, strict=True))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy, in the interpreter
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_saturation(activation, agree):
    """Hidden values of -1e4 ... 1e4: the exponentials run out of float32 and the functions must not."""
    gated = FUNCTIONS[activation][1]
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 1, 16)
    x = torch.zeros(16, 16)
    x[0] = torch.tensor([-1e4, -1e3, -100, -50, -20, -9, -6, -3, 0, 3, 6, 9, 50, 100, 1e3, 1e4])
    w = torch.eye(16)[None].repeat(1, 2 if gated else 1, 1)
    weights = torch.ones(1, 1)
    a, _ = grouped_up(x, w, weights, table, 16, activation)
    want, _ = grouped_up_reference(x.double(), w.double(), weights.double(), table, 16, activation)
    agree(activation, a, want)
    for column in range(16):  # and each by itself, beside values that are far larger
        assert float(a[0, column]) == pytest.approx(float(want[0, column]), rel=2e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy, in the interpreter
def test_overflow_in_float16_is_infinity():
    table = sort_tokens_reference(torch.zeros(2, 1, dtype=torch.int64), 1, 16)
    x, w = torch.zeros(16, 16).half(), torch.full((1, 32, 16), 300.0).half()
    x[0], x[1] = 300.0, 1.0
    a, hidden = grouped_up(x, w, torch.tensor([[-1.0], [1.0]]), table, 16)
    assert bool((hidden[0] == float("inf")).all()) and bool((a[0] == float("-inf")).all())
    assert bool((hidden[1] == 4800).all()) and bool((a[1] == float("inf")).all())
    assert not a[2:].any() and not hidden[2:].any()


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("gather", [False, True])
def test_a_nan_stays_with_its_rows(gather, activation):
    x, w, weights, table, *rest = draw_inputs(SHAPES["tiny"], torch.float32, activation, gather)
    used = int(table.num_tiles) * rest[0]
    x[5] = float("nan")
    mine = table.row_assignment[:used].div(2, rounding_mode="floor") == 5 if gather else torch.arange(used) == 5
    for result in grouped_up(x, w, weights, table, *rest):
        assert torch.equal(result[:used].isnan(), mine[:, None].expand(used, result.shape[1]))


@pytest.mark.parametrize("descriptors", [True, False])
def test_experts_beyond_31_bits(descriptors, monkeypatch):
    """The last expert's matrix begins behind 2^31 numbers; memory that nobody touches costs nothing."""
    num_experts = 2**20 + 1
    w = torch.empty(num_experts, 64, 32, dtype=torch.float16)
    w[-1] = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    table = sort_tokens_reference(torch.full((1, 1), num_experts - 1), num_experts, 32)
    if not descriptors:
        monkeypatch.setattr(module, "aligned", lambda *_: False)
    _, hidden = grouped_up(torch.eye(32).half(), w, torch.ones(1, 1), table, 32)
    assert torch.equal(hidden, w[-1].T)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(activation="tanh"), ValueError, r"activation must be one of swiglu, .*; got 'tanh'"),
        (dict(x=torch.zeros(32, 4).double()), TypeError, r"x must be float32, float16, bfloat16; got float64"),
        (dict(x=torch.zeros(32, 4).half()), ValueError, r"x is \(32, 4\) torch.float16 .* do not fit"),
        (dict(w=torch.zeros(2, 6, 5)), ValueError, r"w \(2, 6, 5\) torch.float32: they do not fit"),
        (dict(w=torch.zeros(2, 5, 4)), ValueError, r"w \(2, 5, 4\) torch.float32: they do not fit"),
        (
            dict(x=torch.zeros(3, 4)),
            ValueError,
            r"x must have 32 rows and weights be \(3, 2\), as the table says; got 3",
        ),
        (dict(gather=True), ValueError, r"x must have 3 rows .*; got 32"),
        (dict(weights=torch.zeros(3, 1)), ValueError, r"weights be \(3, 2\), as the table says; got .* \(3, 1\)"),
        (dict(config="fast"), ValueError, r"config must be one of interpreter, .*; got 'fast'"),
    ],
)
def test_refuses(change, error, says):
    table = sort_tokens_reference(torch.zeros(3, 2, dtype=torch.int64), 2, 16)
    arguments = dict(x=torch.zeros(32, 4), w=torch.zeros(2, 6, 4), weights=torch.ones(3, 2), table=table, block_m=16)
    with pytest.raises(error, match=says):
        grouped_up(**{**arguments, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_on_the_gpu(gpu, replayed, agree, activation, gather):
    inputs = draw_inputs(SHAPES["qwen3"], torch.bfloat16, activation, gather, gpu)
    used = int(inputs[3].num_tiles) * inputs[4]
    x, w, *rest = inputs
    want = grouped_up_reference(x.float(), w.float(), *rest)
    got, again = grouped_up(*inputs), grouped_up(*inputs)
    captured = replayed(lambda: grouped_up(*inputs))
    for name, one, two, three, exact in zip(("a", "hidden"), got, again, captured, want, strict=True):
        agree(name, one[:used], exact[:used])
        assert torch.equal(one[:used], two[:used]) and torch.equal(one[:used], three[:used])


@pytest.mark.gpu
def test_more_than_31_bits_of_hidden_values(gpu, agree):
    """Mixtral's experts on 40960 tokens: 2.3e9 hidden values; the last tile lies behind 2^31 of them."""
    shape = SHAPES["mixtral"] | dict(tokens=40_960, d_model=256)
    x, w, weights, table, block_m = make_inputs(**shape, dtype=torch.bfloat16, device=gpu)
    last = (int(table.num_tiles) - 1) * block_m
    assert last * w.shape[1] > 2**31
    a, hidden = grouped_up(x, w, weights, table, block_m)
    exact = x[last : last + block_m].float() @ w[int(table.tile_expert[last // block_m])].float().T
    agree("hidden", hidden[last : last + block_m], exact)
    gate, up = exact.chunk(2, dim=1)
    assignment = table.row_assignment[last : last + block_m].long()
    weight = torch.where(assignment >= 0, weights.view(-1)[assignment.clamp_min(0)], 0.0)
    agree("a", a[last : last + block_m], torch.nn.functional.silu(gate) * up * weight[:, None])
