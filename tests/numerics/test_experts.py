"""Experts at the ends of the number line: what overflows says so, and NaN stays with its token and its expert."""

import itertools

import pytest
import torch

from moe_lab import Routing, expert_mlp
from moe_lab.activations import ACTIVATIONS, GATED, activate, activate_backward
from moe_lab.dispatch import DISPATCHES, capacity_mlp

from .extremes import INF, NAN, THOROUGH

WAYS = {  # backend and save, and whether a gradient is asked for: each is another set of kernels
    "loop": ("loop", "fast", True),
    "grouped": ("grouped", "fast", True),
    "triton": ("triton", "fast", True),
    "triton, min": ("triton", "min", True),
    "decode": ("triton", "fast", False),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLAIN = list(itertools.product(("loop", "grouped"), DTYPES))
# Triton's interpreter refuses bfloat16, and takes its time: `make numerics` has every way
KERNELS = list(itertools.product(("triton", "triton, min", "decode"), DTYPES[:2])) if THOROUGH else []
FEW = [*PLAIN, *(KERNELS or [("triton", torch.float16), ("decode", torch.float32)])]
# the most that a gate can be in each dtype, and where an exponential in float32 ends
GATES = (0.0, 1e-7, -1e-7, 1.0, -1.0, 20.0, -20.0, 88.0, -88.0, 89.0, -104.0, 1e4, -1e4, 6e4, -6e4, 3e4)
HUGE = (1e38, -1e38, 3e38, -3e38)


def gates_for(activation, dtype):
    """Those that the dtype holds. PyTorch's gelu of more than half of its largest number is infinite with AVX-512."""
    most = torch.finfo(dtype).max / (2 if activation == "gelu" and dtype != torch.float16 else 1)
    return tuple(gate for gate in (*GATES, *HUGE) if abs(gate) <= most)


def run(way, x, routing, w_gate_up, w_down, activation="swiglu"):
    """The answer, and if they are wanted the gradients of its sum to x, the weights and both matrices."""
    backend, save, learns = WAYS[way]
    leaves = [t.detach().clone().requires_grad_(learns) for t in (x, routing.weights, w_gate_up, w_down)]
    routing = Routing.trusted(routing.experts, leaves[1], routing.num_experts)
    y = expert_mlp(leaves[0], routing, leaves[2], leaves[3], activation=activation, backend=backend, save=save)
    if learns:
        y.sum().backward()
    return y.detach(), [leaf.grad for leaf in leaves if learns]


# --- NaN and infinity


def troubled(dtype):
    """Each token has another trouble; experts 3 and 4 have NaN and infinity in their matrices."""
    draw = torch.Generator().manual_seed(0)
    x, w_gate_up, w_down = (0.3 * torch.randn(*s, generator=draw) for s in ((8, 16), (6, 32, 16), (6, 16, 16)))
    x[0, 0], x[1, 0], x[6, 3] = NAN, INF, NAN
    w_gate_up[3, 0, 0], w_down[4, 0, 0] = NAN, INF
    experts = torch.tensor([[0, 1], [0, 1], [2, 3], [4, 2], [2, 4], [5, 2], [-1, -1], [5, -1]])
    weights = torch.tensor([[0.5, 0.5]] * 4 + [[1.0, 0.0], [NAN, 0.5], [0.0, 0.0], [1.0, NAN]])
    return x.to(dtype), Routing.trusted(experts, weights, 6), w_gate_up.to(dtype), w_down.to(dtype)


@pytest.mark.parametrize(("way", "dtype"), FEW)
def test_every_backend_keeps_trouble_with_its_token_and_its_expert(way, dtype):
    """A NaN in an empty slot, or of a token that no expert sees, is nobody's; 0 times infinity is NaN."""
    y, gradients = run(way, *troubled(dtype))
    assert y.isfinite().all(dim=1).tolist() == [False, False, False, False, False, False, True, True]
    assert [bool(row.isnan().any()) for row in y] == [True, True, True, False, True, True, False, False]
    assert not y[6].any()
    if gradients:
        of_x, of_weights, of_gate_up, of_down = gradients
        assert of_x.isfinite().all(dim=1).tolist() == [False] * 6 + [True, True]
        # what a token that chose expert 5 with a NaN weight gives it, another's good gradient cannot outweigh
        bad = {0, 1, 3, 4, 5}
        assert [e for e in range(6) if not of_gate_up[e].isfinite().all()] == sorted(bad)
        assert not of_weights[6].any() and bool(of_weights[7].isfinite().all())
        assert {e for e in range(6) if not of_down[e].isfinite().all()} == {0, 1, 3, 5}


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_padded_blocks_differ_in_whom_a_nan_reaches(dispatch):
    """A table keeps it with its token. A product with a mask multiplies every token into every place, as it says."""
    x, w_gate_up, w_down = torch.ones(3, 4), torch.ones(2, 6, 4), torch.ones(2, 4, 3)
    x[1, 0] = NAN
    routing = Routing(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), 2)
    y = capacity_mlp(x, routing, w_gate_up, w_down, 2, dispatch=dispatch)
    assert y.isnan().any(dim=1).tolist() == ([False, True, False] if dispatch == "table" else [True] * 3)


# --- overflow


def one_gate_a_row(gates, dtype, activation):
    """A token for each gate value; the products only pick it out, so that what is not linear is seen alone."""
    rows = len(gates)
    x = torch.zeros(rows, 16)
    x[:, 0], x[:, 1] = torch.tensor(gates), 1.0
    w_gate_up = torch.zeros(1, 2 if activation in GATED else 1, 16, 16)
    w_gate_up[0, 0, 0, 0] = 1.0  # gate, or what stands in its place
    w_gate_up[0, -1, 0, 1] = 1.0 if activation in GATED else 0.0  # up
    w_down = torch.zeros(1, 16, 16)
    w_down[0, 0, 0] = 1.0
    routing = Routing(torch.zeros(rows, 1, dtype=torch.int64), torch.full((rows, 1), 0.5), 1)
    return x.to(dtype), routing, w_gate_up.flatten(1, 2).to(dtype), w_down.to(dtype)


def in_float64(x, routing, w_gate_up, w_down, activation):
    wide = Routing.trusted(routing.experts, routing.weights.double(), routing.num_experts)
    return run("loop", x.double(), wide, w_gate_up.double(), w_down.double(), activation)


SATURATED = [(*pair, activation) for pair in [*PLAIN, *KERNELS] for activation in ACTIVATIONS]
SATURATED += [] if THOROUGH else [("triton", torch.float16, "swiglu"), ("decode", torch.float32, "geglu")]


@pytest.mark.parametrize(("way", "dtype", "activation"), SATURATED)
def test_activations_saturate_and_never_overflow_on_the_way(way, dtype, activation):
    """Outputs and gradients are those of float64, from gates of 1e-7 to 3e38, wherever the dtype can hold them."""
    case = (*one_gate_a_row(gates_for(activation, dtype), dtype, activation), activation)
    want, want_gradients = in_float64(*case)
    y, gradients = run(way, *case)
    relative = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    floor = {torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(y.double(), want, rtol=relative, atol=floor)
    for got, expected in zip(gradients[:2], want_gradients, strict=False):  # those of matrices add gates up
        torch.testing.assert_close(got.double(), expected, rtol=10 * relative, atol=10 * floor)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_activation_alone(activation, dtype):
    values = torch.tensor(gates_for(activation, dtype)).to(dtype)
    hidden = torch.stack([values, torch.ones_like(values)], dim=1) if activation in GATED else values[:, None]
    leaf = hidden.double().requires_grad_()
    want = activate(leaf, activation)
    want.sum().backward()
    got = activate(hidden, activation)
    tolerance = {"rtol": {torch.float32: 1e-5}.get(dtype, 2e-2), "atol": 1e-3 if dtype != torch.float32 else 1e-6}
    torch.testing.assert_close(got.double(), want, **tolerance)
    parts = hidden.chunk(2, dim=1) if activation in GATED else (hidden,)
    gradient = activate_backward([torch.empty_like(part) for part in parts], torch.ones_like(got), parts, activation)
    torch.testing.assert_close(torch.cat(list(gradient), dim=1).double(), leaf.grad, **tolerance)


@pytest.mark.parametrize(("way", "dtype"), [pair for pair in FEW if pair[1] != torch.bfloat16])
def test_what_a_dtype_cannot_hold_is_infinite_or_nan_and_never_a_number(way, dtype):
    """Two of four tokens overflow: in the first product, and in gate * up. The others are right."""
    large = 6e4 if dtype == torch.float16 else 3e38
    x = torch.zeros(4, 16)
    x[0, :2], x[1, 0], x[2, 0], x[3, 2] = large, large, 2.0, large
    w_gate_up, w_down = torch.zeros(1, 32, 16), torch.zeros(1, 16, 16)
    w_gate_up[0, 0, :2], w_gate_up[0, 16, 0], w_down[0, :, 0] = 1.0, 1.0, 1.0
    routing = Routing(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), 1)
    case = x.to(dtype), routing, w_gate_up.to(dtype), w_down.to(dtype)
    y, gradients = run(way, *case)
    assert not y[:2].isfinite().any() and bool(y[2:].isfinite().all())
    assert float(y[2, 0]) == pytest.approx(4 / (1 + 2.718281828**-2), rel=1e-3) and not y[3].any()
    if gradients:
        assert bool(gradients[0][2:].isfinite().all())


# --- denormals


@pytest.mark.parametrize(("way", "dtype"), [pair for pair in [*PLAIN, *KERNELS] if pair != ("decode", torch.float16)])
def test_denormal_inputs_matrices_and_weights(way, dtype):
    draw = torch.Generator().manual_seed(0)
    x, w_gate_up, w_down = (torch.randn(*s, generator=draw) for s in ((5, 16), (2, 32, 16), (2, 16, 16)))
    routing = Routing(torch.tensor([[0, 1]] * 5), torch.full((5, 2), 1e-40), 2)
    plain = Routing(routing.experts, torch.full((5, 2), 0.5), 2)
    for case in (
        (x * 1e-40, plain, w_gate_up, w_down),
        (x, plain, w_gate_up * 1e-40, w_down),
        (x, plain, w_gate_up, w_down * 1e-40),
        (x, routing, w_gate_up, w_down),
    ):
        x_, routing_, gate_up, down = (t if isinstance(t, Routing) else t.to(dtype) for t in case)
        want, want_gradients = in_float64(x_, routing_, gate_up, down, "swiglu")
        y, gradients = run(way, x_, routing_, gate_up, down)
        torch.testing.assert_close(y.double(), want, rtol=3e-2, atol=1e-37)
        for got, expected in zip(gradients, want_gradients, strict=bool(gradients)):  # decoding learns nothing
            scale = float(expected.abs().max())
            torch.testing.assert_close(got.double(), expected, rtol=3e-2, atol=max(1e-37, 2e-2 * scale))
