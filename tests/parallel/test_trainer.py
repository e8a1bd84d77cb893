"""Training on 1, 2 and 4 ranks: the curve of one process, checkpoints at another world size, refusals."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moe_lab.checkpoint import latest_checkpoint
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus
from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.trainer import ParallelTrainer, check_ranks, train_on_ranks
from moe_lab.train import Trainer, alone_in, export, train

SMALL = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4, num_shared=1)
FAST = TrainConfig(steps=20, batch=8, warmup=5, validate_every=20, checkpoint_every=10, aux_loss="switch_aux")
DRAW = torch.Generator().manual_seed(3)
LETTERS = (torch.randint(97, 123, (size,), generator=DRAW, dtype=torch.uint8) for size in (4000, 500))
TEXT = Corpus(*LETTERS, files=1, source="letters", fingerprint="letters")


def history(folder):
    return json.loads((folder / "history.json").read_text())


def on_ranks(out, config, model, expert_ranks):
    return train_on_ranks(model, config, Path(out), expert_ranks=expert_ranks, corpus=TEXT)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(SMALL, FAST, tmp_path_factory.mktemp("alone"), TEXT, watch=lambda trainer: None)


@pytest.mark.parametrize(("ranks", "expert_ranks"), [(1, 1), (2, 2), (4, 4), (4, 2)])
def test_the_curve_is_that_of_one_process(ranks, expert_ranks, alone, tmp_path):
    run_ranks(on_ranks, ranks, tmp_path, FAST, SMALL, expert_ranks)
    got, want = history(latest_checkpoint(tmp_path)), history(alone)
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-5)
    assert got["validation"] == [[step, pytest.approx(loss, rel=1e-5)] for step, loss in want["validation"]]
    assert got["loads"] == want["loads"]


@pytest.mark.parametrize(("first", "then"), [((4, 4), (2, 2)), ((2, 1), (4, 2)), ((2, 2), None), (None, (2, 2))])
def test_a_checkpoint_goes_on_at_another_world_size(first, then, tmp_path):
    """The same curve, whether one process or several write the checkpoint and go on with it."""
    short = dataclasses.replace(FAST, steps=10, checkpoint_every=6)
    whole = history(train(SMALL, short, tmp_path / "whole", TEXT, watch=lambda trainer: None))

    def go(setting, stop_at):
        if setting is None:
            with contextlib.suppress(Cut):
                train(SMALL, short, tmp_path, TEXT, watch=lambda trainer: cut_after(trainer, stop_at))
        else:
            run_ranks(until, setting[0], tmp_path, short, setting[1], stop_at)

    go(first, 6)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000006"]
    go(then, None)
    assert history(latest_checkpoint(tmp_path))["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    if then is not None:  # and what several wrote, one process reads and exports
        assert len(list(latest_checkpoint(tmp_path).glob("shard-*.safetensors"))) == then[0]
        assert Trainer.resume(latest_checkpoint(tmp_path), TEXT).history.steps == 10
        assert export(tmp_path, tmp_path / "exported", TEXT) == pytest.approx(whole["validation"][-1][1], rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "ranks", "expert_ranks", "message"),
    [
        ({}, 4, 3, "expert_parallel=3 must divide the 4 ranks that were started"),
        ({}, 2, 4, "expert_parallel=4 must divide the 2 ranks that were started"),
        ({}, 3, 3, "batch=8 must be divisible by the 3 ranks that share it"),
        ({}, 8, 8, "num_experts=4 must be divisible by expert_parallel=8"),
        ({"pyramid": [6]}, 4, 4, "num_experts=6 must be divisible by expert_parallel=4"),
    ],
)
def test_ranks_that_do_not_divide_are_refused_before_anybody_speaks(changes, ranks, expert_ranks, message):
    with pytest.raises(ValueError, match=message):  # no process group is there to speak over
        check_ranks(dataclasses.replace(SMALL, **changes), FAST, ranks, expert_ranks)


def test_a_folder_in_use_is_refused_on_every_rank(tmp_path):
    with alone_in(tmp_path), pytest.raises(RuntimeError) as error:
        run_ranks(on_ranks, 2, tmp_path, FAST, SMALL, 2)
    for rank in (0, 1):
        assert f"rank {rank} failed: ValueError: another process trains into {tmp_path}" in str(error.value)


def blow_up(out, lost):
    """Let a weight of one rank become infinite; the checkpoint that is due must not be written."""
    plain = ParallelTrainer.step

    def step(trainer):
        loss = plain(trainer)
        if trainer.history.steps == 4 and dist.get_rank() == lost:
            trainer.model.layers[0].w_down.to_local().data[0] = float("inf")
        return loss

    ParallelTrainer.step = step
    on_ranks(out, dataclasses.replace(FAST, checkpoint_every=2), SMALL, 2)


def test_a_weight_that_is_lost_on_one_rank_stops_all_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(RuntimeError) as error:
        run_ranks(blow_up, 2, tmp_path, 1)
    assert "rank 1 failed: moe_lab.train.Diverged: training diverged at step 4: blocks.0.moe.w_down" in str(error.value)
    assert "rank 0 failed: moe_lab.train.Diverged: training diverged at step 4: a weight of another" in str(error.value)
    assert latest_checkpoint(tmp_path).name == "step-000002"


def test_a_damaged_shard_is_refused_with_its_folder(tmp_path):
    run_ranks(on_ranks, 2, tmp_path, dataclasses.replace(FAST, steps=2), SMALL, 2)
    folder = latest_checkpoint(tmp_path)
    shard = next(folder.glob("shard-00001*"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{folder} does not hold this model and its optimiser"):
        Trainer.resume(folder, TEXT)


class Cut(Exception):
    """A run is over before its end."""


def cut_after(trainer, step):
    if step is not None and trainer.history.steps > step:
        raise Cut


def until(out, config, expert_ranks, step):
    """Train on ranks, to the end or until one step after a checkpoint."""
    if step is not None:
        plain = ParallelTrainer.step

        def cut(trainer):
            if trainer.history.steps == step:
                raise Cut
            return plain(trainer)

        ParallelTrainer.step = cut
    with contextlib.suppress(Cut):
        on_ranks(out, config, SMALL, expert_ranks)
