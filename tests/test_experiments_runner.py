"""Runs side by side: each leaves one record, a kill costs a few steps, and what diverges or does not fit says so."""

import dataclasses
import os
import signal
import time

import pytest
import torch

from moe_lab.checkpoint import latest_checkpoint, read_json
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import standard_library
from moe_lab.experiments.runner import Run, count_model, count_step, read_run, run_missing, train_one
from moe_lab.lm import LanguageModel
from moe_lab.train import Trainer

MODEL = LanguageModelConfig(
    d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4, top_k=1, bias_rate=0.0, method="top_k"
)
TRAIN = TrainConfig(steps=12, batch=4, warmup=2, validate_every=5, checkpoint_every=4)
RUN = Run("one", MODEL, TRAIN)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return train_one(RUN, tmp_path_factory.mktemp("runs"), standard_library())


def test_a_record_says_what_came_out(record):
    assert [step for step, _ in record["curve"]] == list(range(1, 13))
    assert [step for step, _ in record["validation"]] == [5, 10, 12]
    assert 4 < record["loss"] < 5.6 and record["seconds"] > 0
    assert record["dropped"] == [0.0] and record["tokens_a_step"] == 4 * 16
    expert = 3 * 16 * 8
    assert record["total_params"] - record["active_params"] == 3 * expert
    assert record["configs"]["model"] == dataclasses.asdict(MODEL)


def test_flops_of_a_step_are_the_closed_form(record):
    """By hand, a token: projections, causal-or-not scores as the counter sees them, expert, head; backward twice."""
    tokens, d_model, length = 64, 16, 16
    attention = 2 * d_model * 4 * d_model + 2 * 2 * length * d_model
    layer, router, head = 2 * 3 * d_model * 8, 2 * d_model * 4, 2 * d_model * 256
    dear = 3 * tokens * (attention + layer + router + head)
    assert record["flops_a_step"]["routers"] == 3 * tokens * router
    assert record["flops_a_step"]["all"] == pytest.approx(dear, rel=0.05)  # attention's backward computes scores again


def test_counting_a_step_changes_nothing():
    trainer, other = (Trainer(MODEL, TRAIN) for _ in range(2))
    count_step(trainer)
    assert [trainer.step() for _ in range(3)] == [other.step() for _ in range(3)]


def test_a_dense_model_has_no_idle_parameters():
    counts = count_model(LanguageModel(dataclasses.replace(MODEL, num_experts=0)))
    assert counts["total_params"] == counts["active_params"]


def test_what_is_there_is_not_trained_again(tmp_path):
    runs = [RUN, Run("two", MODEL, dataclasses.replace(TRAIN, seed=1))]
    first = run_missing(runs[:1], tmp_path, workers=1)
    stamp = (tmp_path / "one.json").stat().st_mtime_ns
    both = run_missing(runs, tmp_path, workers=2)
    assert both[0] == first[0] and (tmp_path / "one.json").stat().st_mtime_ns == stamp
    assert both[1]["configs"]["train"]["seed"] == 1 and both[1]["loss"] != both[0]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]
    with pytest.raises(ValueError, match=r"one.json holds a run with other settings"):
        read_run(Run("one", MODEL, dataclasses.replace(TRAIN, steps=13)), tmp_path)
    with pytest.raises(ValueError, match="runs must have names of their own"):
        run_missing([RUN, RUN], tmp_path)


def test_a_run_that_diverges_is_a_record_and_stops_no_other(tmp_path):
    wild = Run("wild", MODEL, dataclasses.replace(TRAIN, learning_rate=1e30))
    records = run_missing([wild, RUN], tmp_path, workers=1)
    assert "training diverged at step" in records[0]["diverged"] and "loss" not in records[0]
    assert records[1]["loss"] < 5.6


SCRIPT = """
import sys, time
from pathlib import Path
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.experiments.runner import Run, run_missing
from moe_lab.train import Trainer

def step(trainer, step=Trainer.step):
    time.sleep(0.02)  # so that the kill finds it at work
    return step(trainer)

if __name__ == "__main__":
    Trainer.step = step
    model = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4, top_k=1,
        bias_rate=0.0, method="top_k")
    run_missing([Run("one", model, TrainConfig(steps=60, batch=4, warmup=2, validate_every=25, checkpoint_every=5))],
        Path(sys.argv[1]), workers=1)
"""


def test_killed_and_started_again_it_is_the_same_curve(fresh, tmp_path, unchecked_shapes):
    """A real process, killed after its first checkpoint. The other tests check the shapes of a step."""
    config = dataclasses.replace(TRAIN, steps=60, validate_every=25, checkpoint_every=5)
    out = tmp_path / "runs"
    with fresh.start(SCRIPT, str(out), session=True) as process:
        while latest_checkpoint(out / "one") is None:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "one.json").exists(), "the kill came too late to mean anything"
    assert 0 < len(read_json(latest_checkpoint(out / "one") / "history.json")["losses"]) < 60
    run = Run("one", MODEL, config)
    torch.set_num_threads(1)
    resumed = train_one(run, out, standard_library())
    whole = train_one(run, tmp_path / "whole", standard_library())
    for field in ("loss", "curve", "validation", "max_violation"):
        assert resumed[field] == whole[field]
