"""The grid of balancing methods: it runs, resumes, judges by other rules, and its record is what the code says."""

import dataclasses
import functools
import json

import pytest
import torch

from moe_lab.__main__ import main
from moe_lab.checkpoint import read_json
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import standard_library
from moe_lab.experiments import balance as experiment
from moe_lab.lm import LanguageModel


@pytest.fixture
def small(monkeypatch):
    """The same grid on a model that trains in no time."""
    monkeypatch.setattr(experiment, "MODEL", dataclasses.replace(experiment.MODEL, d_model=16, d_expert=8, context=16))
    monkeypatch.setattr(experiment, "TRAIN", dataclasses.replace(experiment.TRAIN, steps=10, batch=4))
    monkeypatch.setattr(experiment, "SEEDS", (0, 1))
    monkeypatch.setattr(experiment, "GROUP", 16)
    monkeypatch.setattr(experiment, "judge", functools.partial(experiment.judge, batches=2))
    monkeypatch.setattr(experiment, "step_times", functools.partial(experiment.step_times, rounds=3))


@pytest.mark.parametrize("name", sorted(experiment.RUNS))
def test_every_method_trains_and_is_judged(name, small):
    record = experiment.train_one(name, 0, standard_library())
    assert json.loads(json.dumps(record)) == record
    assert set(record["judged"]) == set(experiment.RUNS[name].rules)
    assert [point["step"] for point in record["trace"]] == [10]
    assert sum(record["loads"][0][0]) <= 4 * 16 * 2
    if "balanced" in record["judged"]:
        assert record["judged"]["balanced"]["max_violation"] == 0.0


def test_a_kill_costs_one_run(small, tmp_path, monkeypatch):
    trained, train_one = [], experiment.train_one

    def stop_at_the_second(name, seed, corpus, steps=None):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append((name, seed))
        return train_one(name, seed, corpus, steps)

    monkeypatch.setattr(experiment, "train_one", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        experiment.write_record(tmp_path, tmp_path / "record.json", only="none")
    assert [path.name for path in tmp_path.iterdir()] == ["none-0.json"]
    monkeypatch.setattr(experiment, "train_one", train_one)
    before = (tmp_path / "none-0.json").stat().st_mtime_ns
    record = read_json(experiment.write_record(tmp_path, tmp_path / "record.json", only="none"))
    assert (tmp_path / "none-0.json").stat().st_mtime_ns == before
    assert [(run["name"], run["seed"]) for run in record["runs"]] == [("none", 0), ("none", 1)]
    assert record["step_ms"]["none"] > 0
    with pytest.raises(
        ValueError, match=r"none-0.json holds a run with other settings than were asked for; give another --out"
    ):
        experiment.write_record(tmp_path, tmp_path / "record.json", steps=20, only="none")


def test_a_judged_model_routes_as_before_afterwards(small):
    model = LanguageModel(experiment.RUNS["balanced"].configs(0)[0]).eval()
    text = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model(text)
    with experiment.judged_by(model, "top_k"):
        assert model.layers[0].balancer is None
        model(text)
    assert model.layers[0].balancer is not None and torch.equal(model(text), before)


def test_the_command_line(small, tmp_path, capsys):
    command = ["experiment", "balance", "--out", str(tmp_path), "--record", str(tmp_path / "r.json"), "--steps", "10"]
    assert main([*command, "--only", "z_loss"]) == 0
    assert "recorded: " in capsys.readouterr().out
    assert main([*command, "--only", "luck"]) == 1
    assert "only must be one of none, random" in capsys.readouterr().err
    assert main([*command[:-1], "3"]) == 1
    assert "steps must be at least 10, got 3" in capsys.readouterr().err


def read_configs(record):
    """The two configs; a field that is newer than the record has its default there."""
    return LanguageModelConfig(**record["model"]), TrainConfig(**record["train"])


def test_the_committed_record_is_the_whole_grid():
    record = read_json(experiment.RECORD)
    assert read_configs(record) == (experiment.MODEL, experiment.TRAIN)
    found = {(run["name"], run["seed"]) for run in record["runs"]}
    assert found == {(name, seed) for name in experiment.RUNS for seed in experiment.SEEDS}
    assert set(record["step_ms"]) == set(experiment.RUNS)
    for run in record["runs"]:
        assert read_configs(run["configs"]) == experiment.RUNS[run["name"]].configs(run["seed"])
        assert set(run["judged"]) == set(experiment.RUNS[run["name"]].rules)
        assert len(run["trace"]) == experiment.TRAIN.steps // experiment.EVERY
        assert len(run["loads"]) == (len(run["trace"]) if run["seed"] == 0 else 0)
        if run["name"] in ("balanced", "balanced_causal"):
            assert max(point["max_violation"] for point in run["trace"]) == 0.0
