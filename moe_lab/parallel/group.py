"""Join the ranks of a run, under torchrun or `run_ranks`, and name the rank that stopped answering."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from moe_lab.checks import check_whole
from moe_lab.parallel.loopback import ADDRESS, open_store

BEAT_S = 0.5
SILENCE_S = 3.0
"""A rank that has not beaten for so long is not there: six beats, should the machine be busy."""


class RankLost(ConnectionError):
    """A rank died or stopped while the others were waiting for it."""


@dataclass(frozen=True)
class Heartbeat:
    """A thread that counts up a number in the store of the run, as every rank does, until ``stop`` is set."""

    store: dist.Store
    rank: int
    ranks: int
    stop: threading.Event

    def run(self) -> None:
        """Beat until told to stop, or until the store is gone."""
        with contextlib.suppress(RuntimeError):
            while not self.stop.wait(BEAT_S):
                self.store.add(str(self.rank), 1)

    def leave(self) -> None:
        """Say that this rank goes, and stop."""
        self.stop.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{self.rank} left", "")

    def silent(self) -> list[int]:
        """Ranks whose number stood still for `SILENCE_S` and that did not say that they go; takes as long."""
        before = self._counts()
        time.sleep(SILENCE_S)
        still = [rank for rank, count in enumerate(self._counts()) if count == before[rank]]
        return [rank for rank in still if not self.store.check([f"{rank} left"])]

    def _counts(self) -> list[int]:
        return [self.store.add(str(rank), 0) for rank in range(self.ranks)]


def place_among_ranks() -> tuple[int, int]:
    """This rank, and how many there are, as the environment has it; ValueError for anything that no launcher sets."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not set: start the ranks with torchrun --nproc-per-node N -m moe_lab ..."
            + ("; for one process alone, unset WORLD_SIZE" if "WORLD_SIZE" in os.environ else "")
        )
    rank, ranks, port = (_whole_from_environment(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    check_whole("WORLD_SIZE", ranks, 1)
    check_whole("MASTER_PORT", port, 0, 65535)
    return check_whole("RANK", rank, 0, ranks - 1), ranks


def _whole_from_environment(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {os.environ[name]!r}") from None


@contextlib.contextmanager
def joined(timeout_s: float | int = 60) -> Iterator[None]:
    """Be a rank: join the others as the environment says (torchrun sets it), and leave at the end.

    gloo on CPUs, NCCL where there are GPUs (each rank takes the one of its LOCAL_RANK). A collective that waits longer
    than ``timeout_s`` fails.

    Raises RankLost, with the numbers of the ranks, where a collective fails because others are gone; ValueError where
    no launcher has set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """
    rank, ranks = place_among_ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # one machine: its name need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    waits = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=_store("group", timeout_s), rank=rank, world_size=ranks, timeout=waits)
    heartbeat = Heartbeat(_store("heartbeat", timeout_s), rank, ranks, threading.Event())
    threading.Thread(target=heartbeat.run, daemon=True).start()
    try:
        yield
        dist.barrier()  # nobody leaves while another still speaks to it
    except RuntimeError as error:
        raise _name_the_lost(heartbeat, error) from error
    finally:
        heartbeat.leave()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _store(purpose: str, timeout_s: float | int) -> dist.Store:
    """A connection of its own to the store of the run, with names of its own for each purpose and each restart.

    torchrun keeps its store when it starts the ranks again, and PyTorch's own rendezvous would find in it the addresses
    of ranks that are dead.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = not hosted and purpose == "group" and os.environ["RANK"] == "0"
    waits = timedelta(seconds=timeout_s)
    serve = open_store if address in (ADDRESS, "localhost") else dist.TCPStore
    store = serve(address, port, is_master=hosts, timeout=waits, wait_for_workers=False)
    return dist.PrefixStore(f"{purpose}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _name_the_lost(heartbeat: Heartbeat, error: RuntimeError) -> Exception:
    """What to raise in the place of an error: the same, unless ranks have fallen silent."""
    try:
        silent = heartbeat.silent()
    except RuntimeError:
        return RankLost(f"rank {heartbeat.rank} lost the store of the run, and with it the other ranks: {error}")
    if not silent:
        return error
    names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
    return RankLost(f"{names} of {heartbeat.ranks} stopped answering, seen from rank {heartbeat.rank}: {error}")
