"""What ranks tell each other about a batch that they hold in parts; without ``torch.distributed``, one holds all."""

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor


def alone() -> bool:
    """Whether this process is the only rank: ``torch.distributed`` is not there, or nobody has joined.

    Example:
        >>> alone()
        True
    """
    return not (dist.is_available() and dist.is_initialized())


def sum_over_ranks(
    load: Int64[Tensor, " num_experts"], group: dist.ProcessGroup | None = None
) -> Int64[Tensor, " num_experts"]:
    """Add up a load over the ranks of a process group; without ``torch.distributed`` initialised, the load itself.

    One all-reduce of num_experts whole numbers; every rank of the group must call it. Over micro-batches on
    one rank, add the loads up yourself.

    Example:
        >>> sum_over_ranks(torch.tensor([3, 1]))
        tensor([3, 1])

    Source: Qiu et al. 2025 (arXiv:2501.11873), abstract.
    """
    if alone():
        return load
    total = load.clone()
    dist.all_reduce(total, group=group)
    return total


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Put the rows of all ranks of a group one below the other, in the order of the ranks; no gradient flows back.

    Every rank must hold equally many rows, and must call it. Without ``torch.distributed`` initialised, the rows
    themselves.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]])).shape
        torch.Size([2, 1])
    """
    rows = rows.detach()
    if alone():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, rows.contiguous(), group=group)
    return torch.cat(parts)
