"""The command line on ranks: torchrun starts a killed rank's run again, and it goes on from its checkpoint."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from moe_lab.__main__ import main
from moe_lab.checkpoint import latest_checkpoint

TINY = "--steps 40 --batch 4 --d-model 16 --num-layers 1 --num-heads 2 --context 16 --d-expert 8 --num-experts 4"
OFTEN = "--checkpoint-every 10 --validate-every 40 --rank-timeout 60"


def children(pid):
    """Process numbers of a process's children; Linux says."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_rank_starts_all_again_from_the_last_checkpoint(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["--max-restarts", "3", "-m", "moe_lab", "train", "--out", str(tmp_path), *TINY.split(), *OFTEN.split()]
    log = tmp_path / "log"
    with log.open("w") as said, subprocess.Popen([*launch, *train], stdout=said, stderr=said) as torchrun:
        deadline = time.monotonic() + 240
        while latest_checkpoint(tmp_path) is None and torchrun.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(children(torchrun.pid)[-1], signal.SIGKILL)
        torchrun.wait(timeout=240)
    words = log.read_text()
    assert torchrun.returncode == 0, words[-2000:]
    assert "exitcode: -9" in words and "local_rank: 1" in words, "torchrun names the rank that was killed"
    assert re.search(r"going on from \S+ at step [123]0 of 40", words), words[-2000:]
    assert words.count("trained: ") == 1, "one rank speaks"
    assert len(json.loads((tmp_path / "step-000040" / "history.json").read_text())["losses"]) == 40


def test_experts_on_ranks_that_nobody_started_are_refused(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "none"), "--expert-parallel", "4"]) == 1
    assert "torchrun --nproc-per-node 4 -m moe_lab train" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
