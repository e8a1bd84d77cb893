"""Training: it learns, it survives any kill, and what it resumes is the run that was never cut."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from moe_lab import LanguageModelConfig
from moe_lab.checkpoint import latest_checkpoint, publish_folder
from moe_lab.lm import load_model
from moe_lab.train import TrainConfig, Trainer, start_over, train

TINY = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=32, d_expert=8, num_experts=4)
SHORT = TrainConfig(steps=12, batch=4, warmup=2, validate_every=5, checkpoint_every=3)
COMMAND = [
    *(sys.executable, "-m", "moe_lab", "train", "--d-model", "16", "--num-layers", "1", "--num-heads", "2"),
    *("--context", "32", "--d-expert", "8", "--num-experts", "4", "--batch", "4", "--warmup", "2"),
    *("--validate-every", "5"),
]


def history_of(out):
    return json.loads((latest_checkpoint(out) / "history.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(TINY, SHORT, out)
    return out


def test_it_learns(tmp_path):
    train(TINY, dataclasses.replace(SHORT, steps=60, learning_rate=1e-2), tmp_path)
    history = history_of(tmp_path)
    assert len(history["losses"]) == 60
    assert history["losses"][0] == pytest.approx(5.545, abs=1e-3)
    assert history["losses"][-1] < 4.0
    assert [step for step, _ in history["validation"]] == [*range(5, 61, 5)]
    assert sum(history["loads"][-1][1][0]) == 4 * 32 * TINY.top_k


def test_only_the_last_checkpoint_stays(uninterrupted):
    assert [folder.name for folder in uninterrupted.iterdir()] == ["step-000012"]
    names = {path.name for path in latest_checkpoint(uninterrupted).iterdir()}
    assert names == {"config.json", "history.json", "model.safetensors", "optimizer.safetensors", "train.json"}


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_resuming_repeats_the_uninterrupted_run(stop, uninterrupted, tmp_path):
    trainer = Trainer(TINY, SHORT)
    for _ in range(stop):
        trainer.step()
    publish_folder(tmp_path, f"step-{stop:06d}", trainer.save)
    train(TINY, SHORT, tmp_path)
    assert history_of(tmp_path)["losses"] == history_of(uninterrupted)["losses"]  # to the bit
    ours, theirs = (load_model(latest_checkpoint(out)).state_dict() for out in (tmp_path, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("method", ["noisy_top_k", "gshard"])
def test_methods_that_draw_resume_too(method, tmp_path):
    config = dataclasses.replace(TINY, method=method)
    whole, parts = (Trainer(config, SHORT) for _ in range(2))
    for _ in range(4):
        whole.step()
    parts.step(), parts.step()
    publish_folder(tmp_path, "step-000002", parts.save)
    resumed = Trainer.resume(tmp_path / "step-000002")
    torch.rand(7)  # somebody else's draw in between changes nothing
    resumed.step(), resumed.step()
    assert resumed.history.losses == whole.history.losses


def start(out, *options):
    """A training process of its own, with as many threads as this one: their number changes the last bits of a sum."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [*COMMAND, "--out", str(out), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)


def wait_for(stream, words):
    """Read a stream until the words have come."""
    seen = b""
    while words not in seen:
        character = stream.read(1)
        assert character, f"the process ended: {seen[-2000:].decode()}"
        seen += character


def test_sigkill_at_any_moment(tmp_path):
    """Kill a real process again and again, wherever it stands; look at the disk each time; then let it finish."""
    chance, out = random.Random(0), tmp_path / "run"
    config = dataclasses.replace(SHORT, steps=300, checkpoint_every=10)
    for _ in range(5):
        begun = latest_checkpoint(out)
        with start(out, "--steps", "300", "--checkpoint-every", "10") as process:
            wait_for(process.stderr, b"loss=")
            while latest_checkpoint(out) == begun and process.poll() is None:
                time.sleep(0.002)  # it is at work from here on
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        newest = latest_checkpoint(out)
        assert Trainer.resume(newest).history.steps == int(newest.name.removeprefix("step-"))
    assert 0 < len(history_of(out)["losses"]) < 300, "the kills came too late to mean anything"
    train(TINY, config, out)
    losses = history_of(out)["losses"]
    reference = Trainer(TINY, config)
    assert losses == [reference.step() for _ in range(300)]  # to the bit


def test_ctrl_c_keeps_the_finished_steps(tmp_path):
    out = tmp_path / "run"
    with start(out, "--steps", "100000", "--checkpoint-every", "100000") as process:
        wait_for(process.stderr, b"loss=")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert Trainer.resume(latest_checkpoint(out)).history.steps > 0


def test_half_written_folders_are_not_checkpoints(tmp_path):
    def interrupted(folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_folder(tmp_path, "step-000001", interrupted)
    assert latest_checkpoint(tmp_path) is None
    trainer = Trainer(TINY, SHORT)
    trainer.step()
    publish_folder(tmp_path, "step-000002", trainer.save)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000002"]


def test_another_config_is_refused(uninterrupted):
    with pytest.raises(ValueError, match=r"holds a run with num_experts=4, asked for num_experts=8.*--fresh"):
        train(dataclasses.replace(TINY, num_experts=8), SHORT, uninterrupted)
    with pytest.raises(ValueError, match=r"holds a run with steps=12, asked for steps=13"):
        train(TINY, dataclasses.replace(SHORT, steps=13), uninterrupted)


def test_damage_is_named(tmp_path):
    trainer = Trainer(TINY, SHORT)
    trainer.step()
    folder = publish_folder(tmp_path, "step-000001", trainer.save)
    history = (folder / "history.json").read_text()
    (folder / "history.json").write_text(history[:30])
    with pytest.raises(ValueError, match=r"history.json is not valid JSON"):
        Trainer.resume(folder)
    (folder / "history.json").write_text(history.replace(trainer.corpus.fingerprint, "0" * 16))
    with pytest.raises(ValueError, match=r"fingerprint 0000000000000000, this machine's .* same Python version"):
        Trainer.resume(folder)
    (folder / "history.json").write_text(history)
    (folder / "optimizer.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(ValueError, match=r"optimizer.safetensors is damaged"):
        Trainer.resume(folder)


def test_start_over_deletes_checkpoints_and_nothing_else(tmp_path):
    trainer = Trainer(TINY, SHORT)
    trainer.step()
    publish_folder(tmp_path, "step-000001", trainer.save)
    (tmp_path / "notes.txt").write_text("mine")
    start_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(steps=0), "steps must be a whole number of at least 1, got 0"),
        (dict(warmup=-1), "warmup must be a whole number of at least 0, got -1"),
        (dict(learning_rate=float("nan")), "learning_rate must be a finite number above 0, got nan"),
        (dict(weight_decay=-0.1), "weight_decay must be a finite number of at least 0, got -0.1"),
    ],
)
def test_config_refuses(change, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**change)
