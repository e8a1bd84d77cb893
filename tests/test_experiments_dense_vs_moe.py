"""The grid of lesson 10: arms of equal FLOPs and equal data, and a record that is what the code says."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.__main__ import main
from moe_lab.checkpoint import read_json
from moe_lab.corpus import standard_library
from moe_lab.experiments import dense_vs_moe, recorded, runner
from moe_lab.experiments.dense_vs_moe import PARTS, PRESETS, architectures, make_run, make_runs, matched_width
from moe_lab.experiments.ratios import Ratios
from moe_lab.experiments.runner import count_step
from moe_lab.lm import LanguageModel
from moe_lab.train import Trainer

LAPTOP = PRESETS["laptop"]
TINY = dataclasses.replace(
    LAPTOP,
    sizes={"x1": (8, 64, 2)},
    context=16,
    batch=4,
    steps=60,
    grid_steps=3,
    seeds=(0,),
    grid_seeds=(0,),
    experts=(1, 4),
    rates=(1e-3,),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", TINY)
    monkeypatch.setattr(runner, "JUDGED", 1)
    monkeypatch.setattr(recorded, "ROUNDS", 4)
    monkeypatch.setattr(recorded, "architectures", lambda _: architectures(4))
    monkeypatch.setattr(dense_vs_moe, "EXPERTS_OF_ARCHITECTURES", 4)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_runs_have_names_of_their_own_and_models_that_can_be_built(preset, part):
    runs = make_runs(PRESETS[preset], part)
    assert runs and len({run.name for run in runs}) == len(runs)
    for run in {str(run.model): run for run in runs}.values():
        with torch.device("meta"):
            LanguageModel(run.model)


def models():
    """One run a model: sizes, numbers of experts and architectures."""
    runs = [run for part in ("race", "scaling", "architectures") for run in make_runs(LAPTOP, part)]
    return {str(run.model): run for run in runs}.values()


def test_flops_of_a_step_are_equal_within_a_percent():
    """Counted, not calculated, in every model of the grid; the dense one of the same size is the measure."""
    short = {"batch": 2, "device": "cpu"}
    counts = {}
    for run in models():
        counted = count_step(Trainer(run.model, dataclasses.replace(run.train, **short), standard_library()))
        counts.setdefault((run.model.d_model, run.model.num_layers), []).append((run, counted))
    for (d_model, num_layers), found in counts.items():
        size = next(name for name, sizes in LAPTOP.sizes.items() if sizes[0] == d_model)
        run = make_run(LAPTOP, "dense", size, 1, 0, 1e-3, num_layers=num_layers)
        dense = count_step(Trainer(run.model, dataclasses.replace(run.train, **short), standard_library()))
        assert dense["routers"] == 0
        for run, counted in found:
            share = counted["all"] / dense["all"]
            if run.model.method == "switch":  # a token that is dropped has no products, and at the start many are
                assert 0.4 < share <= 1.01, run.name
            else:
                assert share == pytest.approx(1, abs=0.01), run.name
            assert (counted["routers"] > 0) == (run.model.num_experts > 0)


@given(
    st.integers(100, 4096),
    st.lists(st.integers(0, 64), min_size=1, max_size=4).filter(any),
    st.integers(1, 4),
    st.booleans(),
)
def test_matched_width_spends_what_a_dense_layer_does(d_expert, experts, chosen, mixes):
    """Within half a column of each expert a layer: nearer cannot be."""
    width = matched_width(d_expert, experts, chosen, mixes)
    spent = sum(6 * width * chosen + 2 * e + 4 * mixes for e in experts)
    assert abs(spent - 6 * d_expert * len(experts)) <= 3 * chosen * len(experts)


def test_routers_that_cost_too_much_are_refused():
    with pytest.raises(ValueError, match="d_expert=16 does not pay for routers of"):
        matched_width(16, [64, 64], 1)


@pytest.mark.parametrize("steps", [40])
def test_one_expert_is_the_dense_model(steps):
    """Same weights at the start, same batches, same curve: a router with one choice changes nothing."""
    config = dataclasses.replace(TINY, steps=steps)
    one = next(run for run in make_runs(config, "scaling") if run.model.num_experts == 1)
    dense = make_run(config, "dense", "x1", one.train.steps, one.train.seed, one.train.learning_rate)
    curves = []
    for run in (one, dense):
        trainer = Trainer(run.model, run.train)
        trainer.model.double()
        curves.append([trainer.step() for _ in range(steps)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)
    assert curves[0][-1] < curves[0][0]


def test_arms_see_the_same_batches_in_the_same_order():
    seen = {}
    for run in make_runs(TINY, "race"):
        if run.train.seed == 0:
            trainer, windows = Trainer(run.model, run.train), []
            trainer.model.register_forward_pre_hook(lambda _, args, kept=windows: kept.append(args[0].clone()))
            trainer.step(), trainer.step()
            seen[run.name] = torch.stack(windows)
    first, *others = seen.values()
    assert len(others) == 4 and all(torch.equal(first, other) for other in others)


def test_the_whole_grid_runs_and_its_record_is_read(tiny, tmp_path, capsys, unchecked_shapes):
    out, path = tmp_path / "runs", tmp_path / "record.json"
    command = ["experiment", "dense_vs_moe", "--quick", "--out", str(out), "--record", str(path), "--workers", "1"]
    assert main([*command, "--part", "race", "architectures"]) == 0
    printed = capsys.readouterr().out
    assert "race, seed 0: dense" in printed and f"recorded: {path}" in printed
    record = recorded.read_record(path)
    assert set(recorded.race(record)) == {0}
    assert [steps for steps, _ in recorded.race(record)[0]["moe"]] == [4, 6, 8, 15]
    ratios = recorded.race_ratios(record)[0]
    assert isinstance(ratios, Ratios) and ratios.examples > 0
    rows = recorded.architecture_table(record)
    assert [row["name"] for row in rows] == list(architectures(4)) and all(len(row["losses"]) == 1 for row in rows)
    assert main([*command, "--part", "luck"]) == 1
    assert "part must be one of tuning, race, scaling, architectures; got 'luck'" in capsys.readouterr().err
    assert main(["experiment", "dense_vs_moe", "--preset", "big"]) == 1
    assert "preset must be one of laptop, quick, gpu; got 'big'" in capsys.readouterr().err


def test_a_race_on_a_gpu_that_is_not_there_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["experiment", "dense_vs_moe", "--preset", "gpu", "--part", "race", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "device 'cuda' needs a CUDA device" in capsys.readouterr().err


def test_the_committed_record_is_the_grid():
    record = read_json(recorded.RECORD)
    assert record["preset"] == "laptop"
    assert record["grid"] == json.loads(json.dumps(dataclasses.asdict(LAPTOP)))
    for part in PARTS:
        assert [run["name"] for run in record[part]] == [run.name for run in make_runs(LAPTOP, part)]
        for found, run in zip(record[part], make_runs(LAPTOP, part), strict=True):
            assert found["configs"] == run.configs
    assert set(record["step_ms"]) == {"dense", "moe"} and set(record["architecture_ms"]) == set(architectures(1))
