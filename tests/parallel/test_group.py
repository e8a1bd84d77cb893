"""Ranks that die, stop or disagree: the others end in time, with an error that names them."""

import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist

from moe_lab.parallel import group, launch
from moe_lab.parallel.group import joined
from moe_lab.parallel.launch import run_ranks

from ..listening import addresses, outside


def twice_the_rank(offset):
    return 2 * dist.get_rank() + offset


def listen(parent):
    dist.all_reduce(torch.ones(1))
    return addresses(parent), addresses(os.getpid()), outside(parent, os.getpid())


def test_nobody_listens_to_other_machines():
    for stores, ranks, beyond in run_ranks(listen, 2, os.getpid()):
        assert stores and ranks and beyond == []


def test_results_come_in_the_order_of_the_ranks():
    assert run_ranks(twice_the_rank, 3, 10) == [10, 12, 14]


SOON_S = 1.5


@pytest.fixture(autouse=True)
def nobody_waits_long(monkeypatch):
    """Silence is noticed after half the usual time, by whoever starts the ranks and by those that `beat_often`."""
    monkeypatch.setattr(launch, "SILENCE_S", SOON_S)


def beat_often():
    group.BEAT_S, group.SILENCE_S = SOON_S / 10, SOON_S


def sum_in_a_loop(lost, number):
    """Ranks that add something up again and again, until one of them gets a signal."""
    beat_often()
    for step in range(100):
        if dist.get_rank() == lost and step == 3:
            os.kill(os.getpid(), number)
        dist.all_reduce(torch.ones(8))


def test_a_rank_that_is_killed_is_named_by_all_others():
    started = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        run_ranks(sum_in_a_loop, 4, 2, signal.SIGKILL, timeout_s=20)
    assert time.monotonic() - started < 20
    said = str(error.value)
    assert "rank 2 was killed by SIGKILL" in said
    for rank in (0, 1, 3):
        assert f"RankLost: rank 2 of 4 stopped answering, seen from rank {rank}: " in said


def test_a_rank_that_stops_is_named_once_the_time_is_out():
    with pytest.raises(RuntimeError) as error:
        run_ranks(sum_in_a_loop, 2, 1, signal.SIGSTOP, timeout_s=1)
    said = str(error.value)
    assert "RankLost: rank 1 of 2 stopped answering, seen from rank 0: " in said
    assert "rank 1 did not answer in time and was ended" in said


def fail_on_rank_0():
    beat_often()
    if dist.get_rank() == 0:
        raise KeyError("no such expert")
    dist.barrier()


def test_an_error_of_one_rank_is_told_with_its_trace():
    with pytest.raises(RuntimeError, match=re.escape("rank 0 failed: KeyError: 'no such expert'")) as error:
        run_ranks(fail_on_rank_0, 2, timeout_s=20)
    assert "in fail_on_rank_0" in str(error.value)


@pytest.mark.parametrize("ranks", [0, 65, 2.0])
def test_refuses_ranks_that_cannot_be(ranks, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match="ranks must be"):
        run_ranks(dist.get_rank, ranks)


def test_joining_without_a_launcher_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"RANK, .*MASTER_PORT not set: start the ranks with torchrun"), joined():
        pass
