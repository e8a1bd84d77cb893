"""activation_backward: against difference quotients of plain scalars, and autograd; tails, empty slots, saturation."""

import math

import pytest
import torch
from moe_lab.kernels._activations import FUNCTIONS
from moe_lab.kernels.activation_backward import (
    SHAPES,
    activation_backward,
    activation_backward_reference,
    make_inputs,
)
from moe_lab.kernels.sort_tokens import sort_tokens_reference

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]
NAMES = "dhidden", "dweights", "a"
SCALAR = {
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
    "relu": lambda z: max(z, 0.0),
}


def loop(da, hidden, weights, rows, activation, step=1e-5):
    """Each number by itself; derivatives as difference quotients; rows from the routing and not from its table."""
    function, gated = FUNCTIONS[activation]
    width = da.shape[1]
    dhidden = torch.zeros(len(rows), hidden.shape[1], dtype=torch.float64)
    dweights = torch.zeros(weights.shape, dtype=torch.float64)
    a = torch.zeros(len(rows), width, dtype=torch.float64)
    for row, (_, token, slot) in enumerate(rows):
        if token < 0:
            continue
        weight = float(weights[token, slot])
        for column in range(width):
            d, z = float(da[row, column]), float(hidden[row, column])
            up = float(hidden[row, width + column]) if gated else 1.0
            value = SCALAR[function](z)
            slope = (SCALAR[function](z + step) - SCALAR[function](z - step)) / (2 * step)
            a[row, column] = weight * value * up
            dweights[token, slot] += d * value * up
            dhidden[row, column] = weight * d * slope * up
            if gated:
                dhidden[row, width + column] = weight * d * value
    return dhidden, dweights, a


def draw_inputs(shape, dtype, activation="swiglu", device="cpu"):
    da, hidden, *rest = make_inputs(**shape, dtype=dtype, device=device)
    return da, hidden if FUNCTIONS[activation][1] else hidden[:, : da.shape[1]].contiguous(), *rest, activation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation"), [(name, "swiglu") for name in SMALL] + [("tiny", name) for name in FUNCTIONS][1:]
)
def test_against_the_reference(name, dtype, activation, poisoned, surrounded, agree, in_float64):
    da, hidden, weights, *rest = draw_inputs(SHAPES[name], dtype, activation)
    used = int(rest[0].num_tiles) * rest[1]
    da[used:], hidden[used:] = float("nan"), float("nan")  # rows of tiles that do not exist
    dhidden, dweights, a = activation_backward(surrounded(da), surrounded(hidden), surrounded(weights), *rest)
    assert a.dtype == dhidden.dtype == dtype and dweights.dtype == torch.float32
    assert dhidden[used:].isnan().all() and a[used:].isnan().all(), "tiles that are not in use are not written"
    want = activation_backward_reference(*in_float64((da, hidden, weights, *rest)))
    for what, ours, exact in zip(NAMES, (dhidden[:used], dweights, a[:used]), want, strict=True):
        agree(what, ours, exact[: len(ours)])
    without = activation_backward(da.nan_to_num(), hidden.nan_to_num(), weights, *rest, store_a=False)
    assert without[0][used:].isnan().all(), "not even where there would be numbers to read"
    assert torch.equal(without[0][:used], dhidden[:used]) and torch.equal(without[1], dweights)
    assert without[2].shape == (0, da.shape[1])


@pytest.mark.parametrize(("activation", "block_m"), [("swiglu", 16), ("geglu", 32), ("relu", 64)])
def test_edges_against_a_loop(edge, activation, block_m, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    table = sort_tokens_reference(edge.experts, edge.num_experts, block_m)
    rows = edge.rows(block_m)
    shape = table.row_assignment.numel()
    da, hidden = torch.full((shape, 4), float("nan")), torch.full((shape, 4 * (1 + FUNCTIONS[activation][1])), math.nan)
    da[: len(rows)] = torch.randn(len(rows), 4, generator=draw)
    hidden[: len(rows)] = torch.randn(len(rows), hidden.shape[1], generator=draw)
    want = loop(da, hidden, edge.weights, rows, activation)
    edge.weights[edge.experts < 0] = float("nan")  # nobody asks for the weight of an empty slot
    got = activation_backward(surrounded(da), surrounded(hidden), surrounded(edge.weights), table, block_m, activation)
    assert not got[1][edge.experts < 0].any(), "an empty slot gets a gradient of exactly 0"
    wide = da.double(), hidden.double(), edge.weights.nan_to_num().double()
    reference = activation_backward_reference(*wide, table, block_m, activation)
    for name, ours, theirs, exact in zip(NAMES, got, reference, want, strict=True):
        agree(name, ours[: len(exact)], exact)
        agree(f"{name} of the reference", theirs[: len(exact)], exact, 1e-8)


def test_relu_has_no_slope_at_0():
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 1, 16)
    hidden = torch.zeros(16, 3)
    hidden[0] = torch.tensor([0.0, -1.0, 2.0])
    dhidden, dweights, _ = activation_backward(torch.ones(16, 3), hidden, torch.ones(1, 1), table, 16, "relu")
    assert dhidden[0].tolist() == [0.0, 0.0, 1.0] and dweights.item() == 2.0


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy, in the interpreter
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_saturation(activation, agree):
    """Hidden values of -1e4 ... 1e4: the exponentials run out of float32 and the derivatives must not."""
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 1, 16)
    gate = torch.tensor([-1e4, -1e3, -100, -50, -20, -9, -6, -3, 0.5, 3, 6, 9, 50, 100, 1e3, 1e4])
    hidden = torch.zeros(16, 32 if FUNCTIONS[activation][1] else 16)
    hidden[0, :16] = gate
    hidden[0, 16:] = 1.0
    inputs = torch.ones(16, 16), hidden, torch.ones(1, 1)
    got = activation_backward(*inputs, table, 16, activation)
    want = activation_backward_reference(*(tensor.double() for tensor in inputs), table, 16, activation)
    for name, ours, exact in zip(NAMES, got, want, strict=True):
        agree(name, ours, exact)
    for column in range(16):
        assert float(got[0][0, column]) == pytest.approx(float(want[0][0, column]), rel=2e-4, abs=1e-6)


def test_strided_inputs_are_read_and_left_alone(poisoned):
    da, hidden, weights, *rest = draw_inputs(SHAPES["tiny"], torch.float32)
    used = int(rest[0].num_tiles) * rest[1]
    da = da[:1].expand(da.shape)  # what the gradient of a sum looks like
    want = activation_backward(da.contiguous(), hidden, weights, *rest)
    strided = da, hidden.T.contiguous().T, weights.T.contiguous().T
    before = [tensor.clone() for tensor in strided]
    for _ in range(2):
        got = activation_backward(*strided, *rest)
        for one, other in zip(got, want, strict=True):
            last = used if len(one) > used else len(one)
            assert torch.equal(one[:last], other[:last])
    assert all(torch.equal(one, other) for one, other in zip(strided, before, strict=True))


@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_stays_with_its_row_and_its_weight(where):
    inputs = draw_inputs(SHAPES["tiny"], torch.float32)
    table, used = inputs[3], int(inputs[3].num_tiles) * inputs[4]
    inputs[where][5, 3] = float("nan")
    dhidden, dweights, a = activation_backward(*inputs)
    assert dhidden[:used].isnan().any(1).nonzero().tolist() == [[5]]
    assert dweights.view(-1).isnan().nonzero().tolist() == [[int(table.row_assignment[5])]]
    assert a[:used].isnan().any(1).nonzero().tolist() == ([[5]] if where == 1 else [])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # NumPy, in the interpreter
def test_overflow_in_float16_is_infinity_and_the_weight_keeps_float32():
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 1, 16)
    da, hidden = torch.full((16, 16), 600.0).half(), torch.full((16, 32), 600.0).half()
    dhidden, dweights, a = activation_backward(da, hidden, torch.ones(1, 1), table, 16)
    assert bool((dhidden[0] == float("inf")).all()) and bool((a[0] == float("inf")).all())
    assert dweights.item() == 16 * 600.0**3
    assert not dhidden[1:].any() and not a[1:].any()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(activation="tanh"), ValueError, r"activation must be one of swiglu, .*; got 'tanh'"),
        (dict(da=torch.zeros(32, 4).double()), TypeError, r"da must be float32, float16, bfloat16; got float64"),
        (dict(da=torch.zeros(32, 4).half()), ValueError, r"da is \(32, 4\) torch.float16 .* do not fit"),
        (dict(hidden=torch.zeros(32, 4)), ValueError, r"hidden \(32, 4\) torch.float32: they do not fit"),
        (dict(da=torch.zeros(16, 4), hidden=torch.zeros(16, 8)), ValueError, r"table has 32 rows .*; got da 16"),
        (dict(weights=torch.zeros(3, 1)), ValueError, r"rows of \(17, 1\) assignments; got .* weights \(3, 1\)"),
        (dict(block_m=24), ValueError, r"got .* block_m 24"),
    ],
)
def test_refuses(change, error, says):
    table = sort_tokens_reference(torch.zeros(17, 1, dtype=torch.int64), 1, 16)
    arguments = dict(da=torch.zeros(32, 4), hidden=torch.zeros(32, 8), weights=torch.ones(17, 1), block_m=16)
    with pytest.raises(error, match=says):
        activation_backward(**{**arguments, "table": table, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_on_the_gpu(gpu, replayed, agree, activation):
    inputs = draw_inputs(SHAPES["qwen3"], torch.bfloat16, activation, gpu)
    used = int(inputs[3].num_tiles) * inputs[4]
    da, hidden, *rest = inputs
    want = activation_backward_reference(da.float(), hidden.float(), *rest)
    got, again = activation_backward(*inputs), activation_backward(*inputs)
    captured = replayed(lambda: activation_backward(*inputs))
    for index, name in enumerate(NAMES):
        last = None if name == "dweights" else used
        agree(name, got[index][:last], want[index][:last], 1e-2)
        assert torch.equal(got[index][:last], again[index][:last])
        assert torch.equal(got[index][:last], captured[index][:last])
