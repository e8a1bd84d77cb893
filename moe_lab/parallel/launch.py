"""Start ranks on this machine: processes that share a gloo group, for a notebook, a benchmark or a test."""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from moe_lab.checks import check_number, check_whole
from moe_lab.parallel import PRELOADED
from moe_lab.parallel.group import SILENCE_S, joined
from moe_lab.parallel.loopback import ADDRESS, open_store

MOST_RANKS = 64  # processes on one machine


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout_s: float | int = 60) -> list[Any]:
    """Call ``function(*arguments)`` in ``ranks`` processes at once, joined in one gloo group; their results, by rank.

    The function must stand in a module (the processes import it), and reads its rank from ``torch.distributed``; its
    arguments and result must be picklable. Cores are shared out evenly as threads. A collective that waits longer than
    ``timeout_s`` for a rank fails. The processes talk over the loopback device alone.

    Example:
        >>> run_ranks(torch.distributed.get_rank, 1)
        [0]

    Raises ValueError for ranks outside 1 to 64; RuntimeError where a rank fails or dies, with what each rank said. None
    of the processes is left behind.
    """
    check_whole("ranks", ranks, 1, MOST_RANKS)
    check_number("timeout_s", timeout_s, above=0)
    store = open_store(wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")  # imports torch once, and then forks in no time
    context.set_forkserver_preload(PRELOADED)  # without effect where a server runs already
    ends = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(
            target=_be_rank,
            args=(rank, ranks, store.port, timeout_s, sender, pickle.dumps((function, arguments))),
            daemon=True,
        )
        for rank, (_, sender) in enumerate(ends)
    ]
    try:
        for process, (_, sender) in zip(processes, ends, strict=True):
            process.start()
            sender.close()  # so that a dead rank's pipe ends
        said = _listen([receiver for receiver, _ in ends], processes, timeout_s)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
        for receiver, _ in ends:
            receiver.close()
    return _results(said)


def _be_rank(rank: int, ranks: int, port: int, timeout_s: float | int, sender: Connection, task: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer, who ends the ranks
    os.environ |= {
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent hosts the store, as torchrun's agent does
    }
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    try:
        function, arguments = pickle.loads(task)  # noqa: S301 - from the parent, through a pipe of its own
        with joined(timeout_s):
            answer = "result", function(*arguments)
    except Exception:
        answer = "error", traceback.format_exc()
    sender.send_bytes(pickle.dumps(answer))
    sender.close()


def _listen(receivers: list[Connection], processes: list, timeout_s: float | int) -> list[tuple[str, Any]]:
    """What each rank has to say, or how it ended; once one has failed, the others have time to notice and name it."""
    said: list[tuple[str, Any]] = [("silence", None)] * len(receivers)
    open_ends, deadline = dict(zip(receivers, range(len(receivers)), strict=True)), None
    while open_ends:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(list(open_ends), left)
        if not ready:
            break
        for receiver in ready:
            rank = open_ends.pop(receiver)
            try:
                said[rank] = pickle.loads(receiver.recv_bytes())  # noqa: S301 - from a child, through a pipe of its own
            except (EOFError, OSError):
                processes[rank].join()
                said[rank] = "death", processes[rank].exitcode
            if said[rank][0] != "result" and deadline is None:
                deadline = time.monotonic() + timeout_s + 2 * SILENCE_S
    return said


def _results(said: list[tuple[str, Any]]) -> list[Any]:
    if all(kind == "result" for kind, _ in said):
        return [value for _, value in said]
    words = {
        "result": lambda value: "finished",
        "silence": lambda value: "did not answer in time and was ended",
        "death": _describe_death,
        "error": lambda value: f"failed: {value.strip().splitlines()[-1]}",
    }
    lines = [f"rank {rank} {words[kind](value)}" for rank, (kind, value) in enumerate(said)]
    traces = [value for kind, value in said if kind == "error"]
    raise RuntimeError("\n".join([*lines, *(["", traces[0]] if traces else [])]))


def _describe_death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
