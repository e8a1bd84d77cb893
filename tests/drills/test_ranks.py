"""A rank that is lost or never was, and a disk that takes no checkpoint: every rank ends soon, and says what to do.

What names a rank that is lost, and what torchrun then does, is in tests/parallel.
"""

import contextlib
import errno
import os
import signal
import time

import pytest
import torch.distributed as dist

from moe_lab.__main__ import main
from moe_lab.checkpoint import latest_checkpoint
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.parallel import group, launch
from moe_lab.parallel import trainer as ranks_trainer
from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.trainer import ParallelTrainer, train_on_ranks

SOON_S = 1.5
TRAIN = (
    "train --steps 6 --batch 4 --d-model 16 --num-layers 1 --num-heads 2 --context 16 --d-expert 8 --num-experts 4 "
    "--checkpoint-every 2 --validate-every 6 --rank-timeout 20 --out"
).split()
MODEL = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4)
CONFIG = TrainConfig(steps=6, batch=4, checkpoint_every=2, validate_every=6)
LAUNCHER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"RANK": None},
            "RANK not set: start the ranks with torchrun --nproc-per-node N -m moe_lab ...; for one process",
        ),
        ({"RANK": None, "MASTER_PORT": None}, "RANK, MASTER_PORT not set: "),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, got 'two'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number, got ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be at least 1, got 0"),
        ({"RANK": "2"}, "RANK must be in 0..1, got 2"),
        ({"RANK": "-1"}, "RANK must be in 0..1, got -1"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be a whole number, got 'http'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT must be in 0..65535, got 99999"),
    ],
)
def test_an_environment_that_no_launcher_made_is_refused(changes, says, monkeypatch, capsys, tmp_path):
    for name, value in {**LAUNCHER, **changes}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert main([*TRAIN, str(tmp_path / "run")]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def train_as_rank(out, harm):
    """One rank's command; what it says to its user goes to a file beside OUT."""
    group.BEAT_S, group.SILENCE_S = SOON_S / 10, SOON_S
    harm()
    with open(f"{out}.{dist.get_rank() if dist.is_initialized() else os.environ['RANK']}", "w") as file:  # noqa: PTH123
        with contextlib.redirect_stderr(file):
            return main([*TRAIN, str(out)])


def as_commands(out, harm):
    """Two ranks that `run_ranks` started run the command; they join by themselves."""
    dist.barrier()
    dist.destroy_process_group()  # the command joins anew, as under torchrun
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # under names of its own in the store
    return train_as_rank(out, harm)


def die_at_step_4():
    plain = ParallelTrainer.step

    def step(trainer):
        if trainer.history.steps == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(trainer)

    ParallelTrainer.step = step


def fill_the_disk_before():
    """Rank 0 cannot even make a folder, at the second checkpoint."""
    plain = ranks_trainer.publish_folder

    def publish(parent, name, write):
        def full(folder):
            raise OSError(errno.ENOSPC, "No space left on device")

        if name != "step-000004":
            return plain(parent, name, write)
        return plain(parent, name, full)

    ranks_trainer.publish_folder = publish


def fill_the_disk_after():
    """The shards fit, and the history does not."""
    plain = ParallelTrainer.describe

    def describe(trainer, folder):
        if trainer.history.steps == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(trainer, folder)

    ParallelTrainer.describe = describe


@pytest.fixture(autouse=True)
def nobody_waits_long(monkeypatch):
    monkeypatch.setattr(launch, "SILENCE_S", SOON_S)


def said_by(out, rank):
    return out.with_name(f"{out.name}.{rank}").read_text()


def test_the_ranks_that_are_left_say_how_to_go_on(tmp_path):
    out, started = tmp_path / "run", time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 was killed by SIGKILL"):
        run_ranks(as_commands, 2, out, die_at_step_4, timeout_s=20)
    assert time.monotonic() - started < 100
    assert "moe-lab train: rank 1 of 2 stopped answering, seen from rank 0" in said_by(out, 0)
    assert f"start all ranks again to go on from the last checkpoint in {out}" in said_by(out, 0)
    assert latest_checkpoint(out).name == "step-000002"
    assert main([*TRAIN, str(out)]) == 0, "one process alone goes on"
    assert latest_checkpoint(out).name == "step-000006"


def train_here(out, harm):
    """One rank's part of a run, in the group that it has joined."""
    group.BEAT_S, group.SILENCE_S = SOON_S / 10, SOON_S
    harm()
    train_on_ranks(MODEL, CONFIG, out, expert_ranks=2)


@pytest.mark.parametrize("harm", [fill_the_disk_before, fill_the_disk_after])
def test_a_disk_that_takes_no_checkpoint_stops_every_rank_at_once(harm, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError) as error:
        run_ranks(train_here, 2, out, harm, timeout_s=20)
    for rank in (0, 1):
        says = f"rank {rank} failed: OSError: cannot write the checkpoint of step 4 into {out}: "
        assert says in str(error.value), "none of them waits for the other"
    assert str(error.value).count("step-000002 is kept: make room, and start again to go on") >= 2
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == ["step-000002"]
