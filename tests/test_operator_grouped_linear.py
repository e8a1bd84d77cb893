"""One product an expert over sorted rows: against a loop in float64, at its edges, and as PyTorch wants an operator."""

import pytest
import torch

from moe_lab import flop_counter
from moe_lab.operators.grouped_linear import grouped_linear

LOADS = {"some": [3, 0, 5, 1], "none": [0, 0, 0, 0], "one expert": [0, 0, 9, 0], "rows left over": [2, 1, 0, 1]}


def draw(load, dtype=torch.float64, extra=0):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(load) + extra, 6, generator=generator, dtype=dtype)
    weight = torch.randn(len(load), 5, 6, generator=generator, dtype=dtype)
    return rows.requires_grad_(), weight.requires_grad_(), torch.tensor(load)


def loop(rows, weight, load):
    parts, start = [], 0
    for expert, count in enumerate(load.tolist()):
        parts.append(rows[start : start + count] @ weight[expert].T)
        start += count
    return torch.cat([*parts, rows.new_zeros(len(rows) - start, weight.shape[1])])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", LOADS)
def test_against_a_loop(case, transposed, poisoned, agree):
    extra = 3 if case == "rows left over" else 0
    rows, weight, load = draw(LOADS[case], torch.float32, extra)
    wide = [t.detach().double().requires_grad_() for t in (rows, weight)]
    laid_out = weight.mT.contiguous().mT if transposed else weight
    got, want = grouped_linear(rows, laid_out, load), loop(*wide, load)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * upstream).sum().backward()
    (want * upstream).sum().backward()
    agree("out", got, want)
    agree("rows", rows.grad, wide[0].grad)
    agree("weight", weight.grad, wide[1].grad)


def test_is_an_operator_as_pytorch_wants_it():
    torch.library.opcheck(torch.ops.moe_lab.grouped_linear, draw(LOADS["some"]))


def test_flops_are_those_of_the_rows_in_use():
    rows, weight, load = draw(LOADS["some"], extra=4)
    with flop_counter() as counter:
        grouped_linear(rows, weight, load).sum().backward()
    assert counter.total_flops == 3 * 2 * 9 * 6 * 5


def test_refuses_a_second_derivative():
    rows, weight, load = draw(LOADS["some"])
    (gradient,) = torch.autograd.grad(grouped_linear(rows, weight, load).square().sum(), rows, retain_graph=True)
    assert gradient.isfinite().all()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grouped_linear(rows, weight, load).square().sum(), rows, create_graph=True)
