"""Collapse and rescue in Python: what it counts and sends is the record's, and it refuses what does not fit."""

import json
import math

import pytest
import torch
import traitlets

from moe_lab import measure_balance
from moe_lab.experiments.balance import RUNS
from moe_lab.widgets import CollapseAndRescue
from moe_lab.widgets.collapse_and_rescue import GROUPS, group_of, pack

LOADS = {  # two samples of two layers of four experts; 20 assignments asked for
    "none": [[[20, 0, 0, 0], [5, 5, 5, 5]], [[11, 0, 9, 0], [1, 2, 3, 14]]],
    "random": [[[6, 4, 5, 5], [5, 5, 5, 5]], [[4, 6, 7, 3], [5, 5, 4, 6]]],
    "capacity_drop": [[[5, 0, 0, 0], [5, 5, 5, 5]], [[5, 1, 5, 0], [5, 5, 5, 5]]],
    "balanced": [[[5, 5, 5, 5]] * 2] * 2,
}


def record(loads=LOADS):
    sizes = {"model": {"top_k": 2, "context": 5}, "train": {"batch": 2}}
    trace = [{"step": 10, "loss": 5.54321}, {"step": 20, "loss": 3.0}]
    runs = [
        {"name": name, "label": RUNS[name].label, "seed": 0, "trace": trace, "loads": samples}
        for name, samples in loads.items()
    ]
    return {**sizes, "runs": [*runs, {**runs[0], "seed": 1, "loads": []}]}


def test_the_first_and_the_last_run_at_the_last_step():
    widget = CollapseAndRescue(record())
    assert (widget.method, widget.compare, widget.layer, widget.step) == ("none", "balanced", 0, 20)
    assert (widget.steps, widget.num_experts, widget.asked) == ([10, 20], 4, 20)
    assert [run["name"] for run in widget.runs] == list(LOADS), "a run without loads is not shown"


def test_tally_counts_the_record():
    widget = CollapseAndRescue(record(), step=10)
    assert widget.tally() == {
        "busiest": 0,
        "share": 100,
        "even": False,
        "dead": 3,
        "dropped": 0,
        "max_violation": 3.0,
        "loss": 5.5432,
    }
    widget.layer, widget.step = 1, 20
    found = widget.tally()
    assert (found["busiest"], found["share"], found["dead"], found["loss"]) == (3, 70, 0, 3.0)
    assert found["max_violation"] == pytest.approx(14 / 5 - 1)
    assert widget.tally("balanced")["even"] and not widget.tally("balanced")["max_violation"]
    assert CollapseAndRescue(record(), "capacity_drop", step=10).tally()["dropped"] == 15


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {},
            "Step 20, layer 0. No balancing: expert 0 takes 55 % of all assignments, 2 of 4 experts get none. "
            "Balanced: every expert takes 25 %.",
        ),
        (
            {"compare": "capacity_drop"},
            "Step 20, layer 0. No balancing: expert 0 takes 55 % of all assignments, 2 of 4 experts get none. "
            "Capacity 1.0, drop: expert 0 takes 25 %, 1 of 4 experts gets none, 45 % are dropped.",
        ),
        (
            {"method": "balanced", "compare": "none", "layer": 1},
            "Step 20, layer 1. Balanced: every expert takes 25 % of all assignments. "
            "No balancing: expert 3 takes 70 %, every expert gets some.",
        ),
    ],
)
def test_summary_says_what_the_loads_say(options, sentence):
    widget = CollapseAndRescue(record(), **options)
    assert widget.summary() == sentence
    assert repr(widget) == f"CollapseAndRescue: {sentence}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_few_drops_are_under_one_per_cent_and_halves_go_up():
    loads = {"none": [[[199, 0]]], "capacity_drop": [[[100, 99]]]}
    small = {"model": {"top_k": 1, "context": 100}, "train": {"batch": 2}}
    runs = [
        {"name": name, "label": name, "trace": [{"step": 1, "loss": 1.0}], "loads": load}
        for name, load in loads.items()
    ]
    sentence = CollapseAndRescue({**small, "runs": runs}).summary()
    assert "expert 0 takes 100 % of all assignments" in sentence, "199 of 200 are 99.5 %"
    assert "1 of 2 experts gets none, 1 % are dropped" in sentence, "1 of 200 is 0.5 %"
    runs[1]["loads"] = [[[100, 100]]]
    assert "every expert takes 50 %." in CollapseAndRescue({**small, "runs": runs}).summary()
    wide = {"model": {"top_k": 1, "context": 500}, "train": {"batch": 2}}
    runs[1]["loads"] = [[[500, 499]]]
    assert "under 1 % are dropped" in CollapseAndRescue({**wide, "runs": runs}).summary()


def test_what_is_sent_holds_every_load():
    widget = CollapseAndRescue(record())
    for run in widget.runs:
        for layer, text in enumerate(run["loads"]):
            width = len(text) // 8
            numbers = [int(text[at : at + width], 16) for at in range(0, len(text), width)]
            assert numbers == [count for sample in LOADS[run["name"]] for count in sample[layer]]
    assert [run["losses"] for run in widget.runs] == [[5.5432, 3.0]] * 4


def test_packed_loads_are_as_wide_as_the_largest():
    assert pack([[0, 0]]) == "00"
    assert pack([[15, 1], [0, 9]]) == "f109"
    assert pack([[4096, 1]]) == "10000001"


def test_chance_is_the_mean_of_the_random_run():
    found = [measure_balance(torch.tensor(load)).max_violation for sample in LOADS["random"] for load in sample]
    assert CollapseAndRescue(record()).chance == pytest.approx(sum(found) / 4, abs=1e-4)
    assert CollapseAndRescue(record({"none": LOADS["none"]})).chance == -1


def test_every_run_of_the_grid_has_a_group():
    groups = {name: group_of(name) for name in RUNS}
    assert set(groups.values()) == set(GROUPS)
    assert [name for name, group in groups.items() if group == "no balancing"] == ["none"]
    assert {groups[name] for name in ("z_loss", "switch_aux_1e-2", "sequence_aux_1e-2")} == {"losses"}
    assert {groups[name] for name in ("sign_1e-3", "quantile", "bip", "midpoint")} == {"biases"}
    assert {groups[name] for name in ("random", "noisy_top_k", "expert_choice", "balanced")} == {"rules"}


def test_the_grids_record_is_small_to_send():
    draw = torch.Generator().manual_seed(0)
    loads = {name: torch.randint(0, 512, (60, 2, 16), generator=draw) for name in RUNS}
    loads = {name: (load * 4096 // load.sum(dim=2, keepdim=True)).tolist() for name, load in loads.items()}
    trace = [{"step": 10 * sample, "loss": 1.0 + math.pi / sample} for sample in range(1, 61)]
    runs = [{"name": name, "label": RUNS[name].label, "trace": trace, "loads": load} for name, load in loads.items()]
    sizes = {"model": {"top_k": 2, "context": 64}, "train": {"batch": 32}}
    state = CollapseAndRescue({**sizes, "runs": runs}).get_state()
    sent = json.dumps({name: value for name, value in state.items() if not name.startswith("_")})
    assert len(sent) < 150_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "aux"}, "method must be one of none, random, capacity_drop, balanced; got 'aux'"),
        ({"compare": "z_loss"}, "compare must be one of none, random, capacity_drop, balanced; got 'z_loss'"),
        ({"layer": 2}, r"layer must be in 0\.\.1, got 2"),
        ({"step": 15}, r"step must be one of 10\.\.20 whose loads were kept, got 15"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CollapseAndRescue(record(), **options)


def test_records_that_do_not_fit_are_refused():
    none, other = LOADS["none"], LOADS["balanced"]
    cases = [
        ({}, "record must hold a run with loads, it has none"),
        ({"none": none, "balanced": other[:1]}, r"got \(1, 2, 4\) for 2 steps in 'balanced'"),
        ({"none": none, "balanced": [sample[:1] for sample in other]}, r"got \(2, 1, 4\) for 2 steps in 'balanced'"),
        ({"none": [[[21, 0, 0, 0]] * 2] * 2}, "loads of at most 20 assignments, got more in 'none'"),
    ]
    for loads, message in cases:
        with pytest.raises(ValueError, match=message):
            CollapseAndRescue(record(loads) if loads else {**record(), "runs": []})
    stranger = record()
    stranger["runs"][0] = {**stranger["runs"][0], "name": "mine"}
    with pytest.raises(ValueError, match=r"record must hold runs of the grid, none, random, .*; got 'mine'"):
        CollapseAndRescue(stranger)
    late = record()
    late["runs"][1] = {**late["runs"][1], "trace": [{"step": 10, "loss": 5.0}, {"step": 30, "loss": 3.0}]}
    with pytest.raises(ValueError, match="for the same steps in every run"):
        CollapseAndRescue(late)


def test_bad_assignments_are_refused():
    widget = CollapseAndRescue(record())
    for name, value in (("method", "aux"), ("compare", "aux"), ("layer", 2), ("layer", -1), ("step", 15)):
        with pytest.raises(ValueError, match=name):
            setattr(widget, name, value)
    with pytest.raises(traitlets.TraitError):
        widget.step = "20"
    assert (widget.method, widget.compare, widget.layer, widget.step) == ("none", "balanced", 0, 20)
