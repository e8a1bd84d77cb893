"""Bytes that expert parallelism sends from rank to rank: counted from routings, and seen on their way.

The count is the cost model; `watch_traffic` is the measurement that it must equal to the last byte.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_lab.checks import check_whole
from moe_lab.parallel.exchange import LABEL, owners, wanted
from moe_lab.types import Routing

COUNT_BYTES = torch.int64.itemsize
"""What a rank tells each other rank before it sends: how many copies come."""


@dataclass(frozen=True)
class Traffic:
    """What one layer sends in one step: ``copies[i, j]`` tokens of rank i with an expert on rank j, d_model wide.

    ``forward`` and ``backward`` are bytes, int64 (ranks, ranks), from the row's rank to the column's. The diagonal
    stays in its rank and crosses no link. With dtypes of ``number_bytes`` (tokens) and ``weight_bytes``:

    forward  = copies * (d_model * number_bytes + slots * (4 + weight_bytes)) + copies^T * d_model * number_bytes + 8
    backward = copies * d_model * number_bytes + copies^T * (d_model * number_bytes + slots * weight_bytes)

    A copy carries its token and, for each slot, an expert's number and its weight; the answer is one row; before them a
    rank tells each other one how many come. Gradients go the same ways back.

    Example:
        >>> traffic = Traffic(torch.tensor([[1, 2], [0, 3]]), d_model=4, slots=2, number_bytes=2, weight_bytes=4)
        >>> traffic.forward
        tensor([[ 40,  56],
                [ 24, 104]])
        >>> traffic.backward.sum() == 6 * (2 * 4 * 2 + 2 * 4)
        tensor(True)
    """

    copies: Int64[Tensor, "ranks ranks"]
    d_model: int
    slots: int
    number_bytes: int
    weight_bytes: int

    @property
    def row_bytes(self) -> int:
        """A token on its way, or an answer."""
        return self.d_model * self.number_bytes

    @property
    def dispatch(self) -> Int64[Tensor, "ranks ranks"]:
        """Tokens to their experts, with the experts' numbers and weights."""
        return self.copies * (self.row_bytes + self.slots * (LABEL.itemsize + self.weight_bytes))

    @property
    def combine(self) -> Int64[Tensor, "ranks ranks"]:
        """Answers back to their tokens."""
        return self.copies.T * self.row_bytes

    @property
    def forward(self) -> Int64[Tensor, "ranks ranks"]:
        """All of the forward pass."""
        return self.dispatch + self.combine + COUNT_BYTES

    @property
    def backward(self) -> Int64[Tensor, "ranks ranks"]:
        """All of the backward pass: gradients of answers there, of tokens and weights back."""
        return self.copies * self.row_bytes + self.copies.T * (self.row_bytes + self.slots * self.weight_bytes)


def count_copies(routings: Sequence[Routing], ranks: int) -> Int64[Tensor, "ranks ranks"]:
    """How many tokens of each rank have an expert on each rank: one routing a rank, experts in equal blocks.

    Example:
        >>> routing = Routing(torch.tensor([[0, 1], [0, 3]]), torch.full((2, 2), 0.5), num_experts=4)
        >>> count_copies([routing, routing], ranks=2)  # two tokens have experts on rank 0, one has one on rank 1
        tensor([[2, 1],
                [2, 1]])

    Raises ValueError for another number of routings than ranks, routings of different experts, or experts that the
    ranks do not divide.
    """
    check_whole("ranks", ranks, 1)
    if len(routings) != ranks:
        raise ValueError(f"routings must be one a rank, got {len(routings)} for ranks={ranks}")
    for routing in routings:
        if routing.num_experts != routings[0].num_experts or routing.num_experts % ranks:
            raise ValueError(f"num_experts={routing.num_experts} must be one number that ranks={ranks} divides")
    rows = [wanted(owners(routing, routing.num_experts, ranks), ranks).sum(dim=0) for routing in routings]
    return torch.stack(rows)


def count_traffic(routings: Sequence[Routing], ranks: int, d_model: int, dtype: torch.dtype) -> Traffic:
    """The `Traffic` of a layer whose ranks routed their tokens so; ``dtype`` is that of the tokens.

    Raises: see `count_copies`; ValueError too where the routings differ in slots or in the dtype of their weights.
    """
    copies = count_copies(routings, ranks)
    kinds = {(routing.slots, routing.weights.dtype) for routing in routings}
    if len(kinds) > 1:
        raise ValueError(f"routings must have equal slots and dtypes of weights, got {sorted(map(str, kinds))}")
    ((slots, weights),) = kinds
    return Traffic(copies, check_whole("d_model", d_model, 1), slots, dtype.itemsize, weights.itemsize)


@contextlib.contextmanager
def watch_traffic() -> Iterator[Int64[Tensor, " ranks"]]:
    """Count the bytes that this rank hands to all-to-alls, by the rank that they go to; joined ranks only.

    It looks at the collectives themselves, not at what asked for them. The tensor is filled as they happen.
    """
    sent = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    with _Watch(sent):
        yield sent


class _Watch(TorchDispatchMode):
    """Sees every all-to-all before it starts."""

    def __init__(self, sent: Tensor):
        super().__init__()
        self.sent = sent

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.c10d.alltoall_base_.default:
            _, given, _, _, counts = arguments[:5]
            row_bytes = given[0].numel() * given.itemsize if len(given) else 0
            ranks = len(self.sent)
            counts = counts or [len(given) // ranks] * ranks
            self.sent += torch.tensor(counts) * row_bytes
        return function(*arguments, **(options or {}))
