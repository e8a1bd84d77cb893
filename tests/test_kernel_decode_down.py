"""decode_down: against plain loops in float64; and a whole layer, by decoding and by sorting, against tokens alone."""

import pytest
import torch
from moe_lab.kernels.combine import combine
from moe_lab.kernels.decode_down import SHAPES, decode_down, decode_down_reference, make_inputs
from moe_lab.kernels.decode_up import decode_up
from moe_lab.kernels.grouped_gemm import grouped_gemm
from moe_lab.kernels.grouped_up import grouped_up
from moe_lab.kernels.permute import permute
from moe_lab.kernels.sort_tokens import sort_tokens

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]


def loop(a, w, experts):
    """One number of y at a time."""
    y = torch.zeros(a.shape[0], w.shape[1], dtype=torch.float64)
    for token in range(y.shape[0]):
        for slot in range(a.shape[1]):
            expert = int(experts[token, slot])
            for column in range(y.shape[1] if expert >= 0 else 0):
                y[token, column] += (w[expert, column].double() * a[token, slot].double()).sum()
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_against_the_reference(name, dtype, poisoned, surrounded, agree, in_float64):
    a, w, experts = make_inputs(**SHAPES[name], dtype=dtype, device="cpu")
    want = decode_down_reference(*in_float64((a, w, experts)))
    a[experts < 0] = float("nan")
    w[[expert for expert in range(len(w)) if expert not in experts.unique()]] = float("nan")
    y = decode_down(surrounded(a), surrounded(w), surrounded(experts))
    assert poisoned == [y.shape] and y.dtype == dtype
    agree("y", y, want)


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_edges_against_a_loop(edge, index, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(edge.tokens, edge.slots, 12, generator=draw)
    w = torch.randn(edge.num_experts, 9, 12, generator=draw)
    want = loop(a, w, edge.experts)
    agree("the reference", decode_down_reference(a.double(), w.double(), edge.experts), want, 1e-14)
    a[edge.experts < 0] = float("nan")
    agree("y", decode_down(surrounded(a), surrounded(w), edge.experts.to(index)), want)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_a_layer_by_decoding_and_by_sorting(edge, activation, poisoned, agree):
    """permute, grouped_up, grouped_gemm, combine give what decode_up, decode_down and tokens alone give."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(edge.tokens, 12, generator=draw)
    up = torch.randn(edge.num_experts, 16 if activation == "swiglu" else 8, 12, generator=draw)
    down = torch.randn(edge.num_experts, 12, 8, generator=draw)
    want = torch.zeros(edge.tokens, 12, dtype=torch.float64)
    for _, token, slot in edge.rows(1):
        expert = int(edge.experts[token, slot])
        hidden = up[expert].double() @ x[token].double()
        gate, value = hidden[:8], hidden[8:]
        inner = gate * gate.sigmoid() * value if activation == "swiglu" else gate.relu()
        want[token] += float(edge.weights[token, slot]) * (down[expert].double() @ inner)
    decoded = decode_down(decode_up(x, up, edge.experts, edge.weights, activation), down, edge.experts)
    agree("y by decoding", decoded, want)
    table = sort_tokens(edge.experts, edge.num_experts, 16)
    for gather in (False, True):
        rows = x if gather else permute(x, table, 16)
        a, _ = grouped_up(rows, up, edge.weights, table, 16, activation, gather)
        answers = grouped_gemm(a, down, table.tile_expert, table.num_tiles, 16)
        agree("y by sorting", combine(answers, table.assignment_row), want)


def test_a_width_of_2880(poisoned, agree, in_float64):
    inputs = make_inputs(2, 23, 2880, 3, 2, dtype=torch.float32, device="cpu")
    agree("y", decode_down(*inputs), decode_down_reference(*in_float64(inputs)))
    ones = torch.ones(1, 1, 2880, dtype=torch.float16)  # 2048 + 1 is 2048 in float16
    assert bool((decode_down(ones, torch.ones(1, 4, 2880).half(), torch.zeros(1, 1).long()) == 2880).all())


def test_strided_inputs_are_read_and_left_alone(poisoned):
    inputs = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    want = decode_down(*inputs)
    strided = [tensor.mT.contiguous().mT for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    before = [tensor.clone() for tensor in strided]
    for _ in range(2):
        assert torch.equal(decode_down(*strided), want)
    assert all(torch.equal(one, other) for one, other in zip(strided, before, strict=True))


def test_a_nan_stays_with_its_token():
    a, w, experts = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    experts = experts.clamp_min(0)
    a[1, 0, 3] = float("nan")
    assert decode_down(a, w, experts).isnan().all(1).tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # NumPy, in the interpreter
def test_overflow_in_float16_is_infinity():
    a, w = torch.full((1, 2, 16), 300.0).half(), torch.full((1, 8, 16), 300.0).half()
    assert bool((decode_down(a, -w, torch.zeros(1, 2).long()) == float("-inf")).all())


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_experts_beyond_31_bits(index):
    """The last expert's matrix begins behind 2^31 numbers; memory that nobody touches costs nothing."""
    num_experts = 2**20 + 1
    w = torch.empty(num_experts, 64, 32, dtype=torch.float16)
    w[-1] = 0.5
    y = decode_down(torch.ones(1, 1, 32).half(), w, torch.tensor([[num_experts - 1]]).to(index))
    assert bool((y == 16).all())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(a=torch.zeros(3, 2, 4).double()), TypeError, r"a must be float32, float16, bfloat16; got float64"),
        (dict(w=torch.zeros(2, 6, 4).half()), ValueError, r"w \(2, 6, 4\) torch.float16, .* do not fit"),
        (dict(w=torch.zeros(2, 6, 5)), ValueError, r"w \(2, 6, 5\) torch.float32, .* do not fit"),
        (dict(a=torch.zeros(2, 2, 4)), ValueError, r"a is \(2, 2, 4\) .* experts \(3, 2\): they do not fit"),
    ],
)
def test_refuses(change, error, says):
    arguments = dict(a=torch.zeros(3, 2, 4), w=torch.zeros(2, 6, 4), experts=torch.zeros(3, 2).long())
    with pytest.raises(error, match=says):
        decode_down(**{**arguments, **change})


@pytest.mark.gpu
def test_on_the_gpu(gpu, replayed, agree):
    a, w, experts = make_inputs(**SHAPES["qwen3"], dtype=torch.bfloat16, device=gpu)
    y = decode_down(a, w, experts)
    agree("y", y, decode_down_reference(a.float(), w.float(), experts))
    assert torch.equal(y, decode_down(a, w, experts))
    assert torch.equal(replayed(lambda: decode_down(a, w, experts))[0], y)
