"""Training: it learns, it survives any kill, and what it resumes is the run that was never cut."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_lab import LanguageModelConfig, checkpoint, losses
from moe_lab.__main__ import main
from moe_lab.checkpoint import checkpoints, latest_checkpoint, publish_folder, remove_older, start_over
from moe_lab.lm import load_model
from moe_lab.train import TrainConfig, Trainer, export, step_name, train

from .forked_kernels import OPTIMISERS
from .fresh_python import Template

TINY = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=32, d_expert=8, num_experts=4)
SHORT = TrainConfig(steps=12, batch=4, warmup=2, validate_every=5, checkpoint_every=3)
COMMAND = (
    "train --d-model 16 --num-layers 1 --num-heads 2 --context 32 --d-expert 8 --num-experts 4 --batch 4 --warmup 2 "
    "--validate-every 5"
).split()
# As many threads as the tests have: their number changes the last bits of a sum.
MOE_LAB = "import runpy, torch; torch.set_num_threads(1); runpy.run_module('moe_lab', run_name='__main__')"


def history_of(out):
    return json.loads((latest_checkpoint(out) / "history.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(TINY, SHORT, out)
    return out


def test_it_learns(tmp_path):
    train(TINY, dataclasses.replace(SHORT, steps=60, learning_rate=1e-2, validate_every=20), tmp_path)
    history = history_of(tmp_path)
    assert len(history["losses"]) == 60
    assert history["losses"][0] == pytest.approx(5.545, abs=1e-3)
    assert history["losses"][-1] < 4.0
    assert [step for step, _ in history["validation"]] == [20, 40, 60]
    assert sum(history["loads"][-1][1][0]) == 4 * 32 * TINY.top_k


def test_only_the_last_checkpoint_stays(uninterrupted):
    assert {path.name for path in uninterrupted.iterdir()} == {".lock", "step-000012"}
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


@pytest.fixture(scope="module")
def fresh():
    """Processes that have imported what training takes."""
    template = Template(*OPTIMISERS, "moe_lab.train")
    yield template
    template.close()


@pytest.fixture
def start(fresh):
    """``python -m moe_lab train`` in a process of its own."""
    return lambda out, *options: fresh.start(MOE_LAB, *COMMAND, "--out", str(out), *options)


def wait_for(stream, words):
    """Read a stream until the words have come."""
    seen = b""
    while words not in seen:
        character = stream.read(1)
        assert character, f"the process ended: {seen[-2000:].decode()}"
        seen += character


def test_sigkill_at_any_moment(start, tmp_path):
    """Kill a real process again and again, wherever it stands; look at the disk each time; then let it finish."""
    chance, out = random.Random(0), tmp_path / "run"
    options = "--steps 200 --checkpoint-every 10 --validate-every 100".split()
    for _ in range(2):
        begun = latest_checkpoint(out)
        with start(out, *options) as process:
            wait_for(process.stderr, b"loss=")
            while latest_checkpoint(out) == begun and process.poll() is None:
                time.sleep(0.002)  # it is at work from here on
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        newest = latest_checkpoint(out)
        assert Trainer.resume(newest).history.steps == int(newest.name.removeprefix("step-"))
    assert 0 < len(history_of(out)["losses"]) < 200, "the kills came too late to mean anything"
    for folder in (out, tmp_path / "never killed"):
        with start(folder, *options) as process:
            said = process.stderr.read()
            assert process.wait() == 0, said[-2000:].decode()
    losses = history_of(out)["losses"]
    assert len(losses) == 200 and losses == history_of(tmp_path / "never killed")["losses"]  # to the bit


def test_ctrl_c_keeps_the_finished_steps(start, tmp_path):
    out = tmp_path / "run"
    with start(out, "--steps", "100000", "--checkpoint-every", "100000") as process:
        wait_for(process.stderr, b"loss=")
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        process.wait()
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


def test_damage_is_named(tmp_path, unchecked_shapes):
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
    shorter = json.loads(history) | {"losses": []}
    (folder / "history.json").write_text(json.dumps(shorter))
    with pytest.raises(ValueError, match=r"holds 0 losses, which is not step-000001"):
        Trainer.resume(folder)
    for bad in ([float("nan")], "abc", None):
        (folder / "history.json").write_text(json.dumps(json.loads(history) | {"losses": bad}))
        with pytest.raises(ValueError, match=r"history.json: losses must be a list of finite numbers"):
            Trainer.resume(folder)
    (folder / "history.json").write_text(history)
    tensors = load_file(folder / "optimizer.safetensors")
    tensors["exp_avg/norm.weight"] = torch.zeros(3)
    save_file(tensors, folder / "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"exp_avg/norm.weight must be float32 \(16,\), found torch.float32 \(3,\)"):
        Trainer.resume(folder)
    (folder / "optimizer.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(ValueError, match=r"optimizer.safetensors is damaged"):
        Trainer.resume(folder)


NOT_OURS = ("step-000001-my-notes", "step-by-step", "step-abc", ".unfinished-thesis", "notes")


def test_only_checkpoints_are_ever_deleted(tmp_path):
    for name in NOT_OURS:
        (tmp_path / name).mkdir()
    (tmp_path / "step-by-step.txt").write_text("mine")
    (tmp_path / "step-000009").symlink_to(tmp_path / "notes")
    train(TINY, dataclasses.replace(SHORT, steps=6), tmp_path)
    assert list(checkpoints(tmp_path)) == [6]
    start_over(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*NOT_OURS, "step-by-step.txt", "step-000009", ".lock"}


def test_steps_are_numbers_and_not_words(tmp_path):
    for step in (999_900, 1_000_000):
        publish_folder(tmp_path, step_name(step), lambda folder: (folder / "x.json").write_text("x"))
    assert latest_checkpoint(tmp_path).name == "step-1000000"
    remove_older(tmp_path, 1_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


def test_fresh_keeps_the_old_run_until_the_new_one_can_start(tmp_path):
    train(TINY, SHORT, tmp_path)
    for change in (dict(method="hash"), dict(method="expert_choice"), dict(method="zzz")):
        with pytest.raises(ValueError, match="method"):
            train(dataclasses.replace(TINY, **change), SHORT, tmp_path, fresh=True)
        assert list(checkpoints(tmp_path)) == [12]
    train(dataclasses.replace(TINY, num_experts=5), dataclasses.replace(SHORT, steps=3), tmp_path, fresh=True)
    assert list(checkpoints(tmp_path)) == [3]


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path):
    wild = dataclasses.replace(SHORT, steps=200, learning_rate=1e30, warmup=0, checkpoint_every=2)
    publish_folder(tmp_path, "step-000001", lambda folder: (folder / "good.json").write_text("good"))
    with pytest.raises(ValueError, match=r"diverged at step \d+: .*learning_rate=1e\+30|logits must be finite"):
        trainer = Trainer(TINY, wild)
        for _ in range(200):
            trainer.step()
            publish_folder(tmp_path, step_name(trainer.history.steps), trainer.save)
    for folder in list(checkpoints(tmp_path).values())[1:]:
        Trainer.resume(folder).step()  # whatever was published can go on
    assert 1 in checkpoints(tmp_path)


def test_a_full_disk_stops_with_the_last_checkpoint_kept(fresh, tmp_path):
    """The system refuses to write more than 100 kB into one file, as it would on a disk without room."""
    out = tmp_path / "run"
    grown = dataclasses.replace(TINY, d_model=64, num_experts=16)

    def stop(trainer):
        if trainer.history.steps == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(grown, dataclasses.replace(SHORT, steps=100), out, watch=stop)
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
    )
    command = [*COMMAND, "--d-model", "64", "--num-experts", "16"]
    done = fresh.run(full + MOE_LAB, *command, "--out", str(out), "--steps", "100", "--checkpoint-every", "3")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = f"cannot write the checkpoint of step 6 into {out}: "
    assert said in done.stderr and "step-000003 is kept: make room, and start again to go on" in done.stderr
    assert Trainer.resume(latest_checkpoint(out)).history.steps == 3


def test_two_processes_do_not_train_into_one_folder(start, tmp_path):
    with start(tmp_path, "--steps", "100000") as process:
        wait_for(process.stderr, b"loss=")
        with pytest.raises(ValueError, match="another process trains into"):
            train(TINY, SHORT, tmp_path)
        process.send_signal(signal.SIGKILL)
    train(TINY, SHORT, tmp_path, fresh=True)  # a dead process holds no lock
    assert list(checkpoints(tmp_path)) == [12]


def test_ctrl_c_between_steps_changes_nothing(tmp_path, uninterrupted, monkeypatch):
    real = Trainer.step

    def step(trainer):
        loss = real(trainer)
        if trainer.history.steps == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, tmp_path)
    monkeypatch.undo()
    assert list(checkpoints(tmp_path)) == [7]
    train(TINY, SHORT, tmp_path)
    ours, theirs = history_of(tmp_path), history_of(uninterrupted)
    assert all(ours[name] == theirs[name] for name in ("losses", "validation", "loads"))


def test_an_error_inside_a_step_is_no_checkpoint(tmp_path, monkeypatch):
    calls = []

    def update(balancer, load):
        calls.append(load)
        if len(calls) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr("moe_lab.balancers.BiasBalancer.update", update)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, tmp_path)
    assert list(checkpoints(tmp_path)) == [6]


CALLS = 40
"""At least as many calls as touch the disk in the test below."""


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A trainer after two steps, and a folder with its checkpoint after one."""
    trainer, folder = Trainer(TINY, SHORT), tmp_path_factory.mktemp("steps")
    trainer.step()
    publish_folder(folder, "step-000001", trainer.save)
    trainer.step()
    return trainer, folder


@pytest.mark.parametrize("moment", range(CALLS))
def test_dying_at_any_call_leaves_whole_checkpoints(moment, two_steps, tmp_path, monkeypatch):
    """Stop at the n-th call that touches the disk, in publishing, pruning and starting over; then go on."""
    trainer, before = two_steps
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    calls = []

    def mortal(function):
        def call(*args, **options):
            calls.append(function)
            if len(calls) == moment + 1:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", mortal(checkpoint.shutil.rmtree))
        patch.setattr(checkpoint.os, "fsync", mortal(checkpoint.os.fsync))
        for name in ("rename", "replace", "mkdir", "unlink"):
            patch.setattr(checkpoint.Path, name, mortal(getattr(checkpoint.Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            publish_folder(tmp_path, "step-000002", trainer.save)
            remove_older(tmp_path, 2)
            start_over(tmp_path)
    assert len(calls) < CALLS, "the last moments are reached"
    for step, folder in checkpoints(tmp_path).items():
        assert Trainer.resume(folder).history.steps == step
    publish_folder(tmp_path, "step-000002", trainer.save)  # and the next process cleans up
    assert {path.name for path in tmp_path.iterdir()} <= {"step-000001", "step-000002"}


def test_an_empty_folder_of_that_name_makes_way(tmp_path):
    trainer = Trainer(TINY, SHORT)
    trainer.step()
    (tmp_path / "step-000001").mkdir()
    publish_folder(tmp_path, "step-000001", trainer.save)
    assert Trainer.resume(tmp_path / "step-000001").history.steps == 1


def test_export_is_a_model_without_optimiser(uninterrupted, tmp_path):
    folder = tmp_path / "exported"
    loss = export(uninterrupted, folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "training.json"}
    record = json.loads((folder / "training.json").read_text())
    assert record["validation_of_rounded_weights"] == loss
    assert record["history"]["losses"] == history_of(uninterrupted)["losses"]
    assert load_model(folder).config == TINY
    export(uninterrupted, folder)  # over itself it may
    with pytest.raises(ValueError, match="export must be a new folder or an earlier export"):
        export(uninterrupted, latest_checkpoint(uninterrupted))
    with pytest.raises(ValueError, match="export must be a new folder or an earlier export"):
        export(uninterrupted, folder / "config.json")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        export(tmp_path / "nothing", tmp_path / "other")


def test_the_command_refuses_before_it_trains(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file")]) == 1
    assert main(["train", "--out", str(tmp_path / "run"), "--export", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert "moe-lab train:" in said and "export must be" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(steps=0), "steps must be in 1..4294967296, got 0"),
        (dict(warmup=-1), "warmup must be in 0..4294967296, got -1"),
        (dict(learning_rate=float("nan")), "learning_rate must be a finite number above 0, got nan"),
        (dict(seed=2**62), "seed must be in 0..4294967296"),
        (dict(steps=True), "steps must be a whole number, in 1..4294967296; got True"),
        (dict(learning_rate="1"), "learning_rate must be a finite number above 0, got '1'"),
        (dict(weight_decay=-0.1), "weight_decay must be a finite number of at least 0, got -0.1"),
    ],
)
def test_config_refuses(change, says, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=says):
        TrainConfig(**change)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("aux_loss", ["", "switch_aux", "gshard", "sequence_aux"])
def test_balancing_losses_are_added_and_not_reported(aux_loss, score):
    model = dataclasses.replace(TINY, method="top_k", bias_rate=0.0, router_options={"score": score})
    config = TrainConfig(steps=4, batch=2, aux_loss=aux_loss, aux_coefficient=0.5, z_coefficient=0.25)
    trainer, plain = Trainer(model, config), Trainer(model, TrainConfig(steps=4, batch=2))
    assert trainer.step() == plain.step(), "the first loss is reported without what was added to it"
    want = 0.0
    for layer in trainer.model.layers:
        logits, routing = layer.logits.detach(), layer.routing
        uneven = {
            "": lambda logits, routing: 0.0,
            "switch_aux": lambda logits, routing: losses.switch_aux(logits, routing, score=score),
            "gshard": losses.gshard,
            "sequence_aux": lambda logits, routing: losses.sequence_aux(logits, routing, 2, score=score),
        }[aux_loss](logits, routing)
        want += 0.5 * float(uneven) + 0.25 * float(losses.z_loss(logits))
    assert trainer._balancing_loss(2).item() == pytest.approx(want, rel=1e-5) and want > 0
    router = trainer.model.layers[0].router
    assert not torch.equal(router, plain.model.layers[0].router), "it reaches the router"


def test_resuming_with_prices_repeats_the_losses(tmp_path):
    model = dataclasses.replace(TINY, method="balanced", eval_method="top_k", balancer="midpoint", bias_rate=0.5)
    model = dataclasses.replace(model, router_options={"objective": "score", "score": "sigmoid"})
    config = TrainConfig(steps=6, batch=2)
    whole, first = Trainer(model, config), Trainer(model, config)
    losses_whole = [whole.step() for _ in range(6)]
    losses_first = [first.step() for _ in range(3)]
    folder = publish_folder(tmp_path, step_name(3), first.save)
    again = Trainer.resume(folder)
    assert losses_first + [again.step() for _ in range(3)] == losses_whole
    assert int(again.model.layers[0].balancer.updates) == 6


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (TrainConfig, {"aux_loss": "switch"}, r"aux_loss must be one of switch_aux, .* got 'switch'"),
        (TrainConfig, {"aux_coefficient": -1.0}, r"aux_coefficient must be .* got -1.0"),
        (TrainConfig, {"z_coefficient": float("inf")}, r"z_coefficient must be .* got inf"),
        (TrainConfig, {"device": "tpu"}, r"device must be cpu or cuda, got 'tpu'"),
        (TrainConfig, {"precision": "float16"}, r"precision must be float32 or bfloat16, got 'float16'"),
        (LanguageModelConfig, {"balancer": 3}, r"balancer must be a name, got 3"),
        (LanguageModelConfig, {"pyramid": [4]}, r"pyramid must be a list of num_layers=4 numbers, got \[4\]"),
        (LanguageModelConfig, {"pyramid": [4, 4, 4, -1]}, r"pyramid must be in 0..1048576, got -1"),
        (LanguageModelConfig, {"pyramid": [4, 1, 4, 0]}, r"top_k must be in 1..1, got 2"),
        (LanguageModelConfig, {"mix_shared": 1}, r"mix_shared must be true or false, got 1"),
        (LanguageModelConfig, {"mix_shared": True}, r"mix_shared needs num_shared to be at least 1, got 0"),
        (
            LanguageModelConfig,
            {"router_options": "sigmoid"},
            r"router_options must be a dict of options, got 'sigmoid'",
        ),
    ],
)
def test_new_settings_are_checked(kind, change, says, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=says):
        kind(**change)


def test_router_options_come_from_the_command_line_as_json(tmp_path, capsys):
    command = [
        "train",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1",
        "--batch",
        "1",
        "--d-model",
        "16",
        "--num-layers",
        "1",
    ]
    command += ["--num-heads", "2", "--context", "8", "--d-expert", "4", "--num-experts", "4", "--bias-rate", "0"]
    assert main([*command, "--method", "top_k", "--router-options", '{"score": "sigmoid"}']) == 0
    assert main([*command, "--fresh", "--router-options", '{"colour": 1}', "--method", "top_k"]) == 1
    assert "'colour' is no option of method 'top_k'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--router-options", "{score"])
    assert "--router-options" in capsys.readouterr().err


def test_bfloat16_rounds_products_and_nothing_else():
    config = dataclasses.replace(SHORT, precision="bfloat16")
    narrow, wide = Trainer(TINY, config), Trainer(TINY, SHORT)
    losses = [(narrow.step(), wide.step()) for _ in range(8)]
    assert losses[0][0] == pytest.approx(losses[0][1], abs=1e-6), "an untrained head gives zeros in any precision"
    assert losses[-1][0] == pytest.approx(losses[-1][1], rel=0.02) and losses[-1][0] != losses[-1][1]
    assert {parameter.dtype for parameter in narrow.model.parameters()} == {torch.float32}
    assert narrow.model.layers[0].logits.dtype == torch.float32


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda' needs a CUDA device, and torch sees none here"):
        Trainer(TINY, dataclasses.replace(SHORT, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains_as_the_cpu_does(gpu, precision, tmp_path):
    here, there = (Trainer(TINY, dataclasses.replace(SHORT, device=d, precision=precision)) for d in ("cpu", "cuda"))
    for _ in range(SHORT.steps):
        assert there.step() == pytest.approx(here.step(), rel=1e-4 if precision == "float32" else 2e-2)
    folder = publish_folder(tmp_path, step_name(SHORT.steps), there.save)
    assert Trainer.resume(folder).history.losses == there.history.losses
