"""Long sums: products of half precision add up in float32, and counts stay whole numbers."""

import pytest
import torch
from moe_lab.kernels.decode_down import decode_down
from moe_lab.kernels.decode_up import decode_up
from moe_lab.kernels.grouped_gemm import grouped_gemm
from moe_lab.kernels.grouped_up import grouped_up
from moe_lab.kernels.grouped_weight_gradient import grouped_weight_gradient
from moe_lab.kernels.sort_tokens import sort_tokens_reference

from moe_lab import BiasBalancer, Routing, device_load, expert_mlp, losses, measure_balance, tile_padding
from moe_lab.balance import check_load
from moe_lab.dispatch import one_hot_combine, table_combine
from moe_lab.operators.chunks import Plan
from moe_lab.operators.grouped_linear import grouped_linear
from moe_lab.operators.sums import TokenSum

from .extremes import THOROUGH

LONG = (
    4096  # ones times 0.1: float16 would stop growing at 256, where 0.1 is less than half of the distance to the next
)
HALVES = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # half of the distance between neighbours, relative


def tenth(*shape, dtype=torch.float16):
    return torch.full(shape, 0.1, dtype=dtype)


def total(dtype):
    return LONG * float(tenth(dtype=dtype))


def test_why_a_running_sum_in_float16_would_be_noticed():
    running = torch.zeros((), dtype=torch.float16)
    for _ in range(LONG):
        running = running + tenth()
    assert float(running) == 256.0 and total(torch.float16) == pytest.approx(409.5, rel=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_both_products_and_all_gradients_of_a_long_sum(backend, dtype):
    """First along d_model, then along d_expert, then along the tokens."""
    for tokens, d_model, d_expert in ((1, LONG, 1), (1, 1, LONG), (LONG, 1, 1)):
        x = torch.ones(tokens, d_model, dtype=dtype, requires_grad=True)
        w_up = tenth(1, d_expert, d_model, dtype=dtype).requires_grad_()
        w_down = torch.ones(1, d_model, d_expert, dtype=dtype, requires_grad=True)
        weights = torch.ones(tokens, 1, dtype=dtype, requires_grad=True)
        routing = Routing(torch.zeros(tokens, 1, dtype=torch.int64), weights.detach(), 1)
        routing = Routing.trusted(routing.experts, weights, 1)
        y = expert_mlp(x, routing, w_up, w_down, activation="relu", backend=backend)
        one, near = total(dtype) / LONG, HALVES[dtype]
        row = one * d_model * d_expert
        assert y[0, 0].item() == pytest.approx(row, rel=near)
        (y.sum() / d_model).backward()
        assert float(x.grad[0, 0]) == pytest.approx(one * d_expert, rel=near)
        assert float(w_up.grad[0, 0, 0]) == pytest.approx(tokens, rel=near)
        assert float(w_down.grad[0, 0, 0]) == pytest.approx(tokens * one, rel=near)  # * d_model / d_model
        assert float(weights.grad[0, 0]) == pytest.approx(row, rel=2 * near)


def kernels_of_one_long_product():
    """Name -> a launch on ones and tenths whose every result is the same long sum."""
    table = sort_tokens_reference(torch.zeros(1, 1, dtype=torch.int64), 1, 16)
    ones, experts, weights = torch.ones(16, LONG).half(), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    w, tiles = tenth(1, 16, LONG), (table.tile_expert, table.num_tiles, 16)
    start = torch.tensor([0, LONG], dtype=torch.int32)
    return {
        "grouped_gemm": lambda: grouped_gemm(ones, w, *tiles)[0],
        "decode_up": lambda: decode_up(ones[:1], w, experts, weights, "relu")[0],
        "transposed": lambda: grouped_gemm(ones, w.mT.contiguous(), *tiles, transposed=True)[0],
        "grouped_up": lambda: torch.cat([part[0] for part in grouped_up(ones, w, weights, table, 16, "relu")]),
        "decode_down": lambda: decode_down(ones[None, :1], w, experts),
        "grouped_weight_gradient": lambda: grouped_weight_gradient(ones.T, tenth(LONG, 16), start, 128),
    }


@pytest.mark.parametrize("name", list(kernels_of_one_long_product())[: None if THOROUGH else 1])
def test_a_kernels_long_sum(name):
    found = kernels_of_one_long_product()[name]()
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), torch.full_like(found, total(torch.float16)).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_over_slots(dtype):
    answers, near = tenth(LONG, 1, dtype=dtype), HALVES[dtype]
    row = torch.arange(LONG)[None]
    for weight in (None, torch.ones(LONG, 1), torch.ones(LONG, 1, dtype=dtype)):
        plan = Plan([LONG], 1, answers.device)
        token = TokenSum(1, 1, dtype, torch.float32, plan)
        for chunk in plan.chunks:
            rows = token.place(chunk).copy_(answers[chunk.rows])
            token.add(
                chunk, rows, torch.zeros(chunk.size, dtype=torch.long), None if weight is None else weight[chunk.rows]
            )
        assert float(token.total) == pytest.approx(total(dtype), rel=near)
    outputs = answers.view(1, LONG, 1)
    for weights in (torch.ones(1, LONG), torch.ones(1, LONG, dtype=dtype)):
        assert float(table_combine(outputs, row, weights)) == pytest.approx(total(dtype), rel=near)
        assert float(one_hot_combine(outputs, weights[None])) == pytest.approx(total(dtype), rel=near)


@pytest.mark.parametrize("dtype", HALVES)
def test_grouped_linear_in_half_precision(dtype):
    rows, weight = torch.ones(LONG, 3, dtype=dtype, requires_grad=True), tenth(2, 1, 3, dtype=dtype).requires_grad_()
    grouped_linear(rows, weight, torch.tensor([LONG, 0])).sum().backward()
    assert torch.equal(weight.grad[0], torch.full((1, 3), float(LONG), dtype=dtype)) and not weight.grad[1].any()


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_bfloat16_is_as_near_to_float64_as_its_rounding(backend, agree):
    """Two roundings on the way, of the hidden values and of the answer, and none of the sums between."""
    draw = torch.Generator().manual_seed(0)
    x, w_gate_up, w_down = (
        (torch.randn(*s, generator=draw) * s[-1] ** -0.5).bfloat16() for s in ((33, 64), (4, 96, 64), (4, 64, 48))
    )
    experts = torch.stack([torch.randperm(4, generator=draw)[:2] for _ in range(33)])
    routing = Routing(experts, torch.rand(33, 2, generator=draw), 4)
    leaves = [t.requires_grad_() for t in (x, w_gate_up, w_down)]
    y = expert_mlp(x, routing, w_gate_up, w_down, backend=backend)
    upstream = torch.randn(33, 64, generator=draw).bfloat16()
    found = torch.autograd.grad(y, leaves, upstream)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wide = Routing(experts, routing.weights.double(), 4)
    want = expert_mlp(exact[0], wide, *exact[1:], backend="loop")
    agree("y", y, want, 2e-2)
    for name, got, expected in zip(
        ("x", "gate_up", "down"), found, torch.autograd.grad(want, exact, upstream.double()), strict=True
    ):
        agree(name, got, expected, 3e-2)


# --- counts


def test_a_million_weights_of_a_tenth():
    """A running sum in float32 would be 1 % too much, and the loss 1.6 %."""
    experts = (torch.arange(2**20) % 4 == 0).long()[:, None]
    routing = Routing.trusted(experts, torch.full((2**20, 1), 0.1, requires_grad=True), 2)
    loss = losses.importance(routing)
    assert loss.item() == pytest.approx(0.25, rel=1e-6) and loss.dtype == torch.float32  # shares of 3/4 and 1/4
    loss.backward()
    assert bool(routing.weights.grad.isfinite().all())


def test_loads_that_float32_cannot_tell_apart():
    first = 2**24
    balancer = BiasBalancer(3, rate=0.5)
    balancer.update(torch.tensor([first + 1, first, first + 2]))
    assert balancer.bias.tolist() == [0.0, 0.5, -0.5]
    balance = measure_balance(torch.tensor([first + 1, first, first + 2]))
    assert balance.variance == pytest.approx(2 / 3) and balance.max_violation > 0
    loss = losses.switch_aux(
        torch.zeros(3, 3), Routing(torch.tensor([[0], [1], [2]]), torch.ones(3, 1), 3), load=torch.tensor([2**40] * 3)
    )
    assert loss.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_narrow_whole_numbers_do_not_overflow(dtype):
    most = min(torch.iinfo(dtype).max, 2**60)
    load = torch.tensor([most, most, 1], dtype=dtype)
    assert device_load(load, 1).tolist() == [2 * most + 1]
    assert tile_padding(load, 128) == pytest.approx((2 * -(-most // 128) + 1) * 128 / (2 * most + 1) - 1)
    assert tile_padding(load, 2**62) > 0
    assert measure_balance(load).max_over_mean == pytest.approx(3 * most / (2 * most + 1))
    assert check_load(load).dtype == torch.int64


def test_loads_that_no_sum_can_hold_are_refused(unchecked_shapes):
    for use in (measure_balance, tile_padding, lambda load: device_load(load, 1), BiasBalancer(2).update):
        with pytest.raises(ValueError, match=r"load must add up to less than 2\^62, got \[4611686018427387904, 5\]"):
            use(torch.tensor([2**62, 5]))
        for dtype in (torch.uint16, torch.uint64, torch.complex64, torch.bool, torch.float32):
            with pytest.raises(TypeError, match=f"load must be a tensor of whole numbers, got {dtype}"):
                use(torch.ones(2, dtype=dtype))


if THOROUGH:  # `make numerics`: a quarter of a gigabyte

    def test_the_load_of_a_routing_beyond_24_bits():
        experts = torch.zeros(2**24 + 3, 1, dtype=torch.int64)
        experts[:2] = 1
        load = Routing.trusted(experts, torch.ones(()).expand(2**24 + 3, 1), 2).load
        assert load.tolist() == [2**24 + 1, 2] and load.dtype == torch.int64
