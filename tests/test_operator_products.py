"""Products into memory that is there, by either library: right for every layout, and by which of them when."""

import pytest
import torch

from moe_lab import expert_mlp
from moe_lab.inputs import make_layer_inputs
from moe_lab.operators import products
from moe_lab.operators.products import has_onednn, multiply_by_onednn, multiply_into, with_rows_behind

LAYOUTS = {
    "dense": lambda rows, columns: torch.randn(rows, columns),
    "transposed": lambda rows, columns: torch.randn(columns, rows).T,
    "some columns": lambda rows, columns: torch.randn(rows, 2 * columns + 1)[:, columns:-1],
    "some columns, transposed": lambda rows, columns: torch.randn(columns, 2 * rows + 1)[:, rows:-1].T,
}


@pytest.fixture
def by_onednn(monkeypatch):
    """Every product in float32 goes to oneDNN, on any processor; returns the sizes of those that did."""
    if not has_onednn():
        pytest.fail("PyTorch's builds for x86 and Arm have oneDNN")
    seen = []

    def watched(left, right):
        seen.append((*left.shape, right.shape[1]))
        return multiply_by_onednn(left, right)

    monkeypatch.setattr(products, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "multiply_by_onednn", watched)
    return seen


def error(found, left, right):
    """Beside the lengths of what is multiplied: numbers can cancel in a product."""
    want = left.double() @ right.double()
    return float((found.double() - want).norm() / (left.double().norm() * right.double().norm()))


@pytest.mark.parametrize("left", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("out", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("sizes", [(5, 7, 3), (1, 4, 1), (33, 64, 17)], ids=str)
def test_a_product_in_every_layout(left, right, out, sizes, by_onednn):
    rows, inner, columns = sizes
    left, right, out = left(rows, inner), right(inner, columns), out(rows, columns).fill_(float("nan"))
    assert multiply_into(out, left, right).data_ptr() == out.data_ptr() and error(out, left, right) < 1e-6
    once = out.clone()
    multiply_into(out, left, right, add=True)
    assert torch.equal(out, once + once) and by_onednn == [sizes, sizes]


def test_rows_are_rounded_up_by_what_lies_behind_and_nothing_of_it_is_seen(by_onednn, monkeypatch):
    monkeypatch.setattr(products, "multiply_by_onednn", multiply_by_onednn)
    memory, right = torch.full((30, 12), float("nan")), torch.randn(4, 3)
    left = memory[2:7, 3:7].copy_(torch.randn(5, 4))
    assert with_rows_behind(left).shape == (8, 4) and with_rows_behind(left).data_ptr() == left.data_ptr()
    out = multiply_into(torch.empty(5, 3), left, right)
    assert out.shape == (5, 3) and error(out, left, right) < 1e-6
    for itself in (memory[:8, :4], memory[26:29, :4], memory.T[:5], memory[:1].expand(5, 12), memory[:0]):
        assert with_rows_behind(itself) is itself, "eight already, none behind, columns apart, one row, none"
    assert with_rows_behind(memory[22:29, 8:]).shape == (8, 4), "up to the last number"


@pytest.mark.parametrize("sizes", [(0, 4, 3), (5, 0, 3), (5, 4, 0)], ids=str)
def test_products_without_numbers(sizes, by_onednn):
    rows, inner, columns = sizes
    out = torch.full((rows, columns), float("nan"))
    multiply_into(out, torch.randn(rows, inner), torch.randn(inner, columns))
    assert torch.equal(out, torch.zeros(rows, columns))


def test_a_wider_result_is_rounded_once():
    left, right = torch.randn(9, 64), torch.randn(64, 5)
    out = torch.empty(9, 5, dtype=torch.bfloat16)
    assert torch.equal(multiply_into(out, left, right), (left @ right).to(torch.bfloat16))
    total = multiply_into(torch.ones(9, 5), left.bfloat16(), right.bfloat16(), add=True)
    assert torch.equal(total, 1 + (left.bfloat16() @ right.bfloat16()).float())


@pytest.mark.parametrize(
    ("dtype", "numbers", "faster", "taken"),
    [
        (torch.float32, 24, True, True),
        (torch.float32, 24, False, False),
        (torch.float32, 25, True, False),
        (torch.bfloat16, 24, True, False),
        (torch.float64, 24, True, False),
    ],
)
def test_only_large_products_in_float32_and_where_it_is_faster(dtype, numbers, faster, taken, by_onednn, monkeypatch):
    monkeypatch.setattr(products, "LEAST_NUMBERS", numbers)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: faster)
    multiply_into(torch.empty(2, 4, dtype=dtype), torch.randn(2, 3).to(dtype), torch.randn(3, 4).to(dtype))
    assert bool(by_onednn) == taken


@pytest.mark.parametrize(
    ("capability", "maker", "built", "faster"),
    [
        ("AVX512", "AuthenticAMD", True, True),
        ("AVX2", "AuthenticAMD", True, False),
        ("AVX512", "GenuineIntel", True, False),
        ("AVX512", "AuthenticAMD", False, False),
        ("DEFAULT", "", True, False),
    ],
)
def test_it_is_faster_where_mkl_leaves_instructions_unused(capability, maker, built, faster, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_maker", lambda: maker)
    monkeypatch.setattr(products, "has_onednn", lambda: built)
    assert products.onednn_is_faster.__wrapped__() == faster


def test_who_made_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nprocessor\t: 1\nvendor_id\t: x\n"
    )
    assert products._maker(cpuinfo) == "AuthenticAMD"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert products._maker(cpuinfo) == ""
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD")
    assert products._maker(tmp_path / "none") == "AuthenticAMD"
    monkeypatch.setattr("platform.processor", lambda: "")
    assert products._maker(tmp_path / "none") == ""


@pytest.mark.parametrize("empty_slots", [0.0, 0.4])
def test_a_layer_gives_the_same_by_either_library(empty_slots, by_onednn, monkeypatch):
    inputs = make_layer_inputs(40, 12, 8, 8, 2, empty_slots=empty_slots)
    leaves = [value.detach().requires_grad_() for value in (inputs.x, inputs.w_gate_up, inputs.w_down)]

    def outcome():
        y = expert_mlp(leaves[0], inputs.routing, *leaves[1:], backend="grouped")
        return [y.detach(), *torch.autograd.grad(y, leaves, inputs.dy)]

    got, counted = outcome(), len(by_onednn)
    assert counted == 6 * int((inputs.routing.load > 0).sum())
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    for ours, want in zip(got, outcome(), strict=True):
        torch.testing.assert_close(ours, want)
    assert len(by_onednn) == counted
