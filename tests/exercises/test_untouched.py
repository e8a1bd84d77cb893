"""Whoever edits what it is given is told so, and what was edited is put back."""

import dataclasses

import numpy as np
import pytest
import torch

from moe_lab.exercises.untouched import ArgumentChanged, fingerprint, untouched


@dataclasses.dataclass(frozen=True)
class Plan:
    counts: torch.Tensor
    names: list


def grown(value):
    value.unsqueeze_(0)


def appended(value):
    value.names.append("c")
    value.counts.zero_()


def swapped(value):
    object.__setattr__(value, "counts", torch.ones(9))


def wants_gradient(value):
    value.requires_grad_()


LEAF = torch.ones(2, requires_grad=True)
GIVEN = {
    "a tensor": (torch.arange(4), torch.Tensor.zero_),
    "a tensor's shape": (torch.arange(4), grown),
    "a tensor that would learn": (torch.ones(2), wants_gradient),
    "a leaf": (LEAF, lambda leaf: leaf.data.add_(1)),
    "a tensor of the graph": (LEAF * 2, lambda value: value.detach().add_(1)),
    "an array": (np.arange(4), lambda array: array.fill(7)),
    "a list": ([3, 1, [2]], lambda value: (value[2].clear(), value.reverse())),
    "a tuple's list": (([1], 2), lambda value: value[0].pop()),
    "a dict": ({"a": [1]}, lambda value: (value["a"].append(2), value.pop("a"))),
    "a set": ({1, 2}, lambda value: value.add(3)),
    "a dataclass": (Plan(torch.arange(3), ["a", "b"]), appended),
    "a field": (Plan(torch.arange(3), ["a", "b"]), swapped),
}


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("kind", GIVEN)
def test_what_was_edited_is_put_back(kind, raises):
    value, edit = GIVEN[kind]

    def answer(given):
        edit(given)
        assert not raises, "on purpose"

    before = fingerprint(value)
    with pytest.raises(AssertionError if raises else ArgumentChanged, match="on purpose" if raises else "given"):
        untouched(answer)(value)
    assert fingerprint(value) == before


def test_a_view_sees_what_was_put_back():
    board = torch.arange(6)
    view = board[2:]
    with pytest.raises(ArgumentChanged, match="it changed its argument"):
        untouched(torch.Tensor.zero_)(view)
    assert board.tolist() == list(range(6))
