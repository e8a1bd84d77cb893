"""decode_up: against plain loops in float64 for every activation; empty slots, idle experts, saturation, offsets."""

import math

import pytest
import torch
from moe_lab.kernels._activations import FUNCTIONS
from moe_lab.kernels.decode_up import SHAPES, decode_up, decode_up_reference, make_inputs

DTYPES = [torch.float32, torch.float16]
SMALL = [name for name in SHAPES if name not in ("qwen3", "mixtral")]
SCALAR = {
    "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
    "relu": lambda z: max(z, 0.0),
}


def loop(x, w, experts, weights, activation):
    """One number of a at a time."""
    function, gated = FUNCTIONS[activation]
    width = w.shape[1] // 2 if gated else w.shape[1]
    a = torch.zeros(*experts.shape, width, dtype=torch.float64)
    for token in range(experts.shape[0]):
        for slot in range(experts.shape[1]):
            expert = int(experts[token, slot])
            for column in range(width if expert >= 0 else 0):
                gate = float((w[expert, column].double() * x[token].double()).sum())
                up = float((w[expert, width + column].double() * x[token].double()).sum()) if gated else 1.0
                a[token, slot, column] = float(weights[token, slot]) * SCALAR[function](gate) * up
    return a


def draw_inputs(shape, dtype, activation="swiglu", device="cpu"):
    x, w, *rest = make_inputs(**shape, dtype=dtype, device=device)
    return x, w if FUNCTIONS[activation][1] else w[:, : w.shape[1] // 2].contiguous(), *rest, activation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation"), [(name, "swiglu") for name in SMALL] + [("tiny", name) for name in FUNCTIONS][1:]
)
def test_against_the_reference(name, dtype, activation, poisoned, surrounded, agree, in_float64):
    x, w, experts, weights, _ = draw_inputs(SHAPES[name], dtype, activation)
    w[[expert for expert in range(len(w)) if expert not in experts.unique()]] = 0.0
    want = decode_up_reference(*in_float64((x, w, experts, weights)), activation)
    w[[expert for expert in range(len(w)) if expert not in experts.unique()]] = float("nan")
    a = decode_up(surrounded(x), surrounded(w), surrounded(experts), surrounded(weights), activation)
    assert poisoned == [a.shape] and a.dtype == dtype
    agree("a", a, want)


@pytest.mark.parametrize(("activation", "index"), [("swiglu", torch.int64), ("gelu", torch.int32)])
def test_edges_against_a_loop(edge, activation, index, poisoned, surrounded, agree):
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(edge.tokens, 12, generator=draw), torch.randn(edge.num_experts, 8, 12, generator=draw)
    want = loop(x, w, edge.experts, edge.weights, activation)
    reference = decode_up_reference(x.double(), w.double(), edge.experts, edge.weights.double(), activation)
    agree("the reference", reference, want, 1e-13)
    edge.weights[edge.experts < 0] = float("nan")  # nobody asks for the weight of an empty slot
    x[(edge.experts < 0).all(1)] = float("nan")
    a = decode_up(surrounded(x), surrounded(w), edge.experts.to(index), surrounded(edge.weights), activation)
    if edge.tokens and not bool((edge.experts < 0).all(1).any()):
        agree("a", a, want)
    agree("a of served tokens", a[(edge.experts >= 0).any(1)], want[(edge.experts >= 0).any(1)])


def test_an_empty_slot_is_0_and_reads_nothing(poisoned):
    x, w = torch.full((1, 8), float("nan")), torch.full((2, 8, 8), float("nan"))
    assert not decode_up(x[:, :], w, torch.full((1, 3), -1), torch.ones(1, 3)).any()


def test_a_width_of_2880(poisoned, agree, in_float64):
    inputs = make_inputs(2, 2880, 23, 3, 2, dtype=torch.float32, device="cpu")
    agree("a", decode_up(*inputs), decode_up_reference(*in_float64(inputs)))
    ones = torch.ones(1, 2880, dtype=torch.float16)  # 2048 + 1 is 2048 in float16
    a = decode_up(ones, torch.ones(1, 4, 2880).half(), torch.zeros(1, 1).long(), torch.ones(1, 1), "relu")
    assert bool((a == 2880).all())


def test_strided_inputs_are_read_and_left_alone(poisoned):
    inputs = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    want = decode_up(*inputs)
    strided = [tensor.mT.contiguous().mT for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    before = [tensor.clone() for tensor in strided]
    for _ in range(2):
        assert torch.equal(decode_up(*strided), want)
    assert all(torch.equal(one, other) for one, other in zip(strided, before, strict=True))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy, in the interpreter
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_saturation(activation):
    z = torch.tensor([-1e4, -1e3, -100, -50, -20, -9, -6, -3, 0, 3, 6, 9, 50, 100, 1e3, 1e4])
    w = torch.ones(1, 32 if FUNCTIONS[activation][1] else 16, 1)
    w[0, :16, 0] = z
    inputs = torch.ones(1, 1), w, torch.zeros(1, 1).long(), torch.ones(1, 1)
    a = decode_up(*inputs, activation).flatten()
    want = decode_up_reference(inputs[0].double(), w.double(), inputs[2], inputs[3].double(), activation).flatten()
    assert a.tolist() == pytest.approx(want.tolist(), rel=2e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy, in the interpreter
def test_overflow_in_float16_is_infinity():
    x, w = torch.full((1, 16), 300.0).half(), torch.full((1, 8, 16), 300.0).half()
    a = decode_up(x, w, torch.zeros(1, 2).long(), torch.tensor([[1.0, -1.0]]))
    assert bool((a[0, 0] == float("inf")).all()) and bool((a[0, 1] == float("-inf")).all())


def test_a_nan_stays_with_its_token():
    x, w, experts, weights = make_inputs(**SHAPES["tiny"], dtype=torch.float32, device="cpu")
    x[1, 3] = float("nan")
    bad = decode_up(x, w, experts, weights).isnan()
    assert torch.equal(bad.all(2), (experts >= 0) & (torch.arange(3) == 1)[:, None]) and not bad[[0, 2]].any()


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_experts_beyond_31_bits(index):
    """The last expert's matrix begins behind 2^31 numbers; memory that nobody touches costs nothing."""
    num_experts = 2**20 + 1
    w = torch.empty(num_experts, 64, 32, dtype=torch.float16)
    w[-1] = 0.5
    experts = torch.tensor([[num_experts - 1]]).to(index)
    a = decode_up(torch.ones(1, 32).half(), w, experts, torch.ones(1, 1), "relu")
    assert bool((a == 16).all())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(activation="tanh"), ValueError, r"activation must be one of swiglu, .*; got 'tanh'"),
        (dict(x=torch.zeros(3, 4).double()), TypeError, r"x must be float32, float16, bfloat16; got float64"),
        (dict(w=torch.zeros(2, 6, 4).half()), ValueError, r"w \(2, 6, 4\) torch.float16: they do not fit"),
        (dict(w=torch.zeros(2, 6, 5)), ValueError, r"w \(2, 6, 5\) torch.float32: they do not fit"),
        (dict(w=torch.zeros(2, 5, 4)), ValueError, r"w \(2, 5, 4\) torch.float32: they do not fit"),
        (dict(x=torch.zeros(2, 4)), ValueError, r"x has 2 tokens, experts are \(3, 2\) .* do not fit"),
        (dict(weights=torch.zeros(3, 1)), ValueError, r"weights \(3, 1\): they do not fit"),
    ],
)
def test_refuses(change, error, says):
    arguments = dict(x=torch.zeros(3, 4), w=torch.zeros(2, 6, 4))
    arguments |= dict(experts=torch.zeros(3, 2).long(), weights=torch.ones(3, 2))
    with pytest.raises(error, match=says):
        decode_up(**{**arguments, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_on_the_gpu(gpu, replayed, agree, activation):
    inputs = draw_inputs(SHAPES["qwen3"], torch.bfloat16, activation, gpu)
    a = decode_up(*inputs)
    x, w, *rest = inputs
    agree("a", a, decode_up_reference(x.float(), w.float(), *rest))
    assert torch.equal(a, decode_up(*inputs)) and torch.equal(replayed(lambda: decode_up(*inputs))[0], a)
