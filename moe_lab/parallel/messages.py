"""What one rank does while exchanges are timed. Every rank imports this file, so it imports next to nothing."""

import time

import torch
import torch.distributed as dist
from torch import Tensor


def time_on_this_rank(matrices: list[tuple[tuple[int, ...], ...]], repeats: int) -> tuple[list[list[float]], list[int]]:
    """What one rank does: milliseconds of each pattern's calls, and the bytes that arrived wrong."""
    rank = dist.get_rank()
    tasks = []
    for rows in matrices:
        there, back = list(rows[rank]), [row[rank] for row in rows]
        given = torch.cat([message(rank, to, count) for to, count in enumerate(there)])
        tasks.append((torch.empty(sum(back), dtype=torch.uint8), given, back, there))
    calls: list[list[float]] = [[] for _ in tasks]
    wrong = [0] * len(tasks)
    for turn in range(repeats + 1):
        for step in range(len(tasks)):
            number = (turn + step) % len(tasks)
            received, given, back, there = tasks[number]
            dist.barrier()
            start = time.perf_counter()
            dist.all_to_all_single(received, given, back, there)
            if turn:
                calls[number].append((time.perf_counter() - start) * 1e3)
            else:
                wanted_bytes = torch.cat([message(sender, rank, count) for sender, count in enumerate(back)])
                wrong[number] = int((received != wanted_bytes).sum())
    return calls, wrong


def message(sender: int, receiver: int, count: int) -> Tensor:
    """Bytes that tell who sent them to whom, and in which order.

    Example:
        >>> message(1, 2, 4).tolist(), message(2, 1, 4).tolist()
        ([72, 73, 74, 75], [103, 104, 105, 106])
    """
    return (torch.arange(count, dtype=torch.int32) + 41 * sender + 10 * receiver + 11).remainder(251).to(torch.uint8)
