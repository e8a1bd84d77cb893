"""Routing: what it refuses, and what it counts."""

import pytest
import torch

from moe_lab import Routing


def routing_of(experts, weights=None, num_experts=4, **options):
    experts = torch.tensor(experts)
    weights = (experts >= 0).float() if weights is None else torch.tensor(weights)
    return Routing(experts, weights, num_experts, **options)


def test_load_counts_assignments_and_no_empty_slots():
    routing = routing_of([[0, 3], [3, -1], [-1, -1]])
    assert routing.load.tolist() == [1, 0, 0, 2]
    assert routing.load.dtype == torch.int64


def test_no_tokens_is_a_routing():
    routing = Routing(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), 3)
    assert routing.load.tolist() == [0, 0, 0]
    assert (routing.tokens, routing.slots, routing.asked) == (0, 2, 0)


def test_asked_follows_top_k_where_slots_do_not():
    assert routing_of([[0, 1], [2, -1]]).asked == 4
    assert routing_of([[0, 1], [2, -1]], top_k=1).asked == 2


def test_repr_says_what_it_is():
    assert repr(routing_of([[0, 3], [3, -1]])) == (
        "Routing(2 tokens x 2 slots over 4 experts, 1 empty slots, float32 weights)"
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(experts=[[0, 1]]), TypeError, r"experts must be a torch.Tensor, got list"),
        (dict(weights=[[0.5, 0.5]]), TypeError, r"weights must be a torch.Tensor, got list"),
        (dict(experts=torch.tensor([[0, 1]], dtype=torch.int32)), TypeError, r"experts must be int64, got torch.int32"),
        (dict(weights=torch.tensor([[1, 1]])), TypeError, r"weights must be floating point, got torch.int64"),
        (dict(weights=torch.ones(1, 3)), ValueError, r"experts \(1, 2\) and weights \(1, 3\)"),
        (dict(experts=torch.tensor([0, 1]), weights=torch.ones(2)), ValueError, r"got experts \(2,\)"),
        (dict(experts=torch.tensor([[0, 4]])), ValueError, r"must lie in -1..3 \(num_experts=4\), found 4"),
        (dict(experts=torch.tensor([[0, -2]])), ValueError, r"must lie in -1..3 .*, found -2"),
        (dict(experts=torch.tensor([[2, 2]])), ValueError, r"must be distinct, token 0 has \[2, 2\]"),
        (dict(experts=torch.tensor([[2, -1]])), ValueError, r"weights must be 0 in an empty slot"),
        (dict(weights=torch.tensor([[0.5, float("nan")]])), ValueError, r"weights must be finite"),
        (dict(num_experts=0), ValueError, r"num_experts must be at least 1, got 0"),
        (dict(num_experts=True), TypeError, r"num_experts must be a whole number, at least 1; got True"),
        (dict(top_k=5), ValueError, r"top_k must be in 1..4, got 5"),
        (dict(weights=torch.ones(1, 2, device="meta")), ValueError, r"experts are on cpu and weights on meta"),
    ],
)
def test_refuses(change, error, says, unchecked_shapes):
    fields = dict(experts=torch.tensor([[0, 1]]), weights=torch.tensor([[0.5, 0.5]]), num_experts=4)
    with pytest.raises(error, match=says):
        Routing(**{**fields, **change})
