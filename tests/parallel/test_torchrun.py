"""The command line on ranks: torchrun starts a killed rank's run again, and it goes on from its checkpoint. All that
listens, listens on this machine alone.

torchrun's agent is called from here, and forks its ranks from a process that has imported torch, where the command
would start five times Python.
"""

import json
import logging
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from moe_lab.__main__ import main
from moe_lab.checkpoint import latest_checkpoint
from moe_lab.parallel import torchrun
from moe_lab.parallel.loopback import open_store

from ..listening import addresses, outside

TINY = "--steps 40 --batch 4 --d-model 16 --num-layers 1 --num-heads 2 --context 16 --d-expert 8 --num-experts 4"
OFTEN = "--checkpoint-every 10 --validate-every 40 --rank-timeout 60"


def be_a_rank(out, pids):
    """``python -m moe_lab train``, as ``torchrun -m`` runs it on each rank."""
    (pids / os.environ["RANK"]).write_text(str(os.getpid()))
    torch.set_num_threads(1)  # which torchrun asks for by a variable
    assert main(["train", "--out", str(out), *TINY.split(), *OFTEN.split()]) == 0


@pytest.fixture
def asked(monkeypatch):
    """What our torchrun asks PyTorch's for, as its options; the agent of the test serves its store as ours does."""
    monkeypatch.setattr(dist, "TCPStore", dist.TCPStore)  # to be put back
    said = []
    monkeypatch.setattr(torchrun, "run", said.extend)
    torchrun.main(["--nproc-per-node", "2", "-m", "moe_lab", "train", "--node"])
    assert dist.TCPStore is open_store and said[-6:] == ["--nproc-per-node", "2", "-m", "moe_lab", "train", "--node"]
    return dict(option.split("=", 1) for option in said[:-6])


@pytest.mark.parametrize(
    "option", ["--standalone", "--rdzv-endpoint=node:1", "--rdzv_backend", "--nnodes", "--master_addr"]
)
def test_other_machines_are_for_torchrun_itself(option):
    with pytest.raises(SystemExit, match=f"{option} is for torchrun itself"):
        torchrun.main([option, "x", "-m", "moe_lab"])


def test_a_killed_rank_starts_all_again_from_the_last_checkpoint(tmp_path, caplog, asked):
    out, pids, logs = (tmp_path / name for name in ("out", "pids", "logs"))
    pids.mkdir(), logs.mkdir()
    meeting = dict([asked["--rdzv-conf"].split("=")])
    config = LaunchConfig(
        *(1, 1, 2),  # from one to one machine, two ranks on it
        run_id="test",
        rdzv_backend=asked["--rdzv-backend"],
        rdzv_configs=meeting,
        local_addr=asked["--local-addr"],
        max_restarts=3,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(1) as pool:
        running = pool.submit(elastic_launch(config, be_a_rank), out, pids)
        while latest_checkpoint(out) is None and not running.done():
            time.sleep(0.02)
        killed = int((pids / "1").read_text())
        group = os.getpid(), *(int(path.read_text()) for path in pids.iterdir())
        assert len(addresses(*group)) >= 3 and outside(*group) == []
        os.kill(killed, signal.SIGKILL)
        running.result(timeout=240)
    assert re.search(rf"exitcode: -9\) local_rank: 1 \(pid: {killed}\)", caplog.text), (
        "the rank that was killed is named"
    )
    assert int((pids / "1").read_text()) != killed
    words = "".join(path.read_text() for path in logs.rglob("*.log"))
    assert re.search(r"going on from \S+ at step [123]0 of 40", words), words[-2000:]
    assert words.count("trained: ") == 1, "one rank speaks"
    assert len(json.loads((out / "step-000040" / "history.json").read_text())["losses"]) == 40


def test_experts_on_ranks_that_nobody_started_are_refused(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "none"), "--expert-parallel", "4"]) == 1
    assert "torchrun --nproc-per-node 4 -m moe_lab train" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
