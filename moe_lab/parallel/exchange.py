"""Tokens to the ranks that hold their experts, and the answers back: two all-to-alls around `expert_mlp`.

A token is sent once to each rank that holds any of its experts, with the numbers and weights of those experts; that
rank sends back one row, the weighted sum of their answers. So with top-8 over 8 ranks 5.3 copies of a token travel and
not 8, and a router that names experts on few ranks sends few.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from moe_lab.experts import expert_mlp
from moe_lab.types import Routing

LABEL = torch.int32
"""What the number of an expert travels as."""


@dataclass(frozen=True)
class Exchange:
    """Expert parallelism of one layer: ``num_experts`` experts in equal blocks, one block a rank of ``group``.

    Its ``expert_mlp`` is that of the lab, with this rank's tokens and routing, and weights that are sharded over their
    experts; it differentiates in the same arguments. All ranks of the group must call it, and its backward pass, the
    same number of times, also those without a token. Gradients of the weights are divided by ``parts``, and summed over
    the group ``replicas`` where the same experts exist again.
    """

    group: dist.ProcessGroup
    num_experts: int
    parts: int = 1
    replicas: dist.ProcessGroup | None = None

    @property
    def ranks(self) -> int:
        """How many ranks share the experts."""
        return dist.get_world_size(self.group)

    @property
    def held(self) -> int:
        """Experts of each rank."""
        return self.num_experts // self.ranks

    def expert_mlp(
        self,
        x: Float[Tensor, "tokens d_model"],
        routing: Routing,
        w_gate_up: DTensor,
        w_down: DTensor,
        **options,
    ) -> Float[Tensor, "tokens d_model"]:
        """Apply to this rank's tokens their experts, wherever those are."""
        owner = owners(routing, self.num_experts, self.ranks)
        rank, token = wanted(owner, self.ranks).T.nonzero(as_tuple=True)  # sorted by rank: one piece of memory a peer
        there, back = self._announce(torch.bincount(rank, minlength=self.ranks))
        here = owner[token] == rank[:, None]  # which slots of a copy are experts of the rank that it goes to
        numbers = torch.where(here, routing.experts[token] - rank[:, None] * self.held, -1).to(LABEL)
        weights = torch.where(here, routing.weights[token], 0.0)
        numbers, weights, rows = (Carry.apply(part, there, back, self.group) for part in (numbers, weights, x[token]))
        visiting = Routing.trusted(numbers.long(), weights, self.held)
        held = (Shared.apply(weight.to_local(), self.parts, self.replicas) for weight in (w_gate_up, w_down))
        answers = Carry.apply(expert_mlp(rows, visiting, *held, **options), back, there, self.group)
        wide = torch.promote_types(x.dtype, routing.weights.dtype)
        return x.new_zeros(x.shape, dtype=wide).index_add(0, token, answers.to(wide)).to(x.dtype)

    def _announce(self, sent: Tensor) -> tuple[list[int], list[int]]:
        """Tell every rank how many copies it gets; how many go to each, and how many come from each."""
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return sent.tolist(), received.tolist()


class Carry(torch.autograd.Function):
    """Rows to other ranks: the first ``there[0]`` to rank 0, the next to rank 1; their gradients travel back."""

    @staticmethod
    def forward(ctx, rows: Tensor, there: list[int], back: list[int], group: dist.ProcessGroup) -> Tensor:
        """What this rank gets, in the order of the ranks: ``back[0]`` rows from rank 0, and so on."""
        ctx.way = there, back, group
        received = rows.new_empty(sum(back), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), back, there, group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The same way in the other direction."""
        there, back, group = ctx.way
        return Carry.apply(gradient, back, there, group), None, None, None


class Shared(torch.autograd.Function):
    """A weight as it is; its gradient divided by ``parts`` and summed over ``replicas``."""

    @staticmethod
    def forward(ctx, weight: Tensor, parts: int, replicas: dist.ProcessGroup | None) -> Tensor:
        """The weight."""
        ctx.share = parts, replicas
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """This rank's share of the gradient of the whole."""
        parts, replicas = ctx.share
        gradient = gradient / parts
        if replicas is not None:
            dist.all_reduce(gradient, group=replicas)
        return gradient, None, None


def owners(routing: Routing, num_experts: int, ranks: int) -> Int64[Tensor, "tokens slots"]:
    """The rank that holds each expert of a routing, -1 for an empty slot: experts lie on ranks in equal blocks.

    Example:
        >>> owners(Routing(torch.tensor([[0, 3], [-1, 1]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 4), 4, ranks=2)
        tensor([[ 0,  1],
                [-1,  0]])
    """
    return routing.experts.div(num_experts // ranks, rounding_mode="floor")


def wanted(owner: Int64[Tensor, "tokens slots"], ranks: int) -> Tensor:
    """Whether a token has any expert on a rank, (tokens, ranks).

    Example:
        >>> wanted(torch.tensor([[0, 0], [-1, 1]]), ranks=3).int()
        tensor([[1, 0, 0],
                [0, 1, 0]], dtype=torch.int32)
    """
    marks = torch.zeros(owner.shape[0], ranks + 1, dtype=torch.bool, device=owner.device)
    return marks.scatter(1, owner + 1, True)[:, 1:]
