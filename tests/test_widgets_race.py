"""The race in Python: what it makes of a record, what it says, and that a race ends with its widget."""

import dataclasses
import json
import threading
import time

import pytest
import torch
import traitlets

from moe_lab.corpus import Corpus
from moe_lab.experiments import live, recorded, runner
from moe_lab.experiments.dense_vs_moe import PRESETS, make_runs
from moe_lab.experiments.runner import train_one
from moe_lab.train import describe_machine
from moe_lab.widgets import Race, race
from moe_lab.widgets.race import compare, pick, race_of, say_race, say_span

SMALL = {"sizes": {"x1": (16, 32, 2)}, "num_layers": 1, "context": 8, "batch": 2, "steps": 12, "experts": (4,)}
TINY = dataclasses.replace(PRESETS["quick"], **SMALL, seeds=(0, 1), shorter=(2, 4))
ENDLESS = dataclasses.replace(TINY, steps=10**6)
WAIT_S = 30


@pytest.fixture(scope="module")
def corpus():
    text = torch.randint(97, 123, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Corpus(text[:3000], text[3000:], files=2, source="letters", fingerprint="letters")


@pytest.fixture(scope="module")
def record(corpus, tmp_path_factory):
    """A record as the grid writes it, of runs that train in no time."""
    with live.cpu_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "JUDGED", 2)  # held-out batches at the end
        runs = [train_one(run, tmp_path_factory.mktemp("runs"), corpus) for run in make_runs(TINY, "race")]
    about = {"preset": "tiny", "date": "2026-01-02", "machine": describe_machine()}
    return {**about, "grid": {}, "step_ms": {"dense": 500.0, "moe": 1250.0}, "race": runs}


@pytest.fixture
def widget(corpus, monkeypatch):
    """A widget whose races do not end by themselves; it is closed after the test."""
    monkeypatch.setattr(live, "standard_library", lambda: corpus)
    widget = Race(preset=ENDLESS, num_experts=4)
    yield widget
    widget.stop()
    wait_for(lambda: not is_racing(widget))
    assert not [thread for thread in threading.enumerate() if thread.name == "moe-lab race"]


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def is_racing(widget):
    return widget._race is not None and widget._race.is_running


def done(widget):
    return sum(arm["done"] for arm in widget.live["arms"])


def is_running(widget):
    return widget.live.get("status") == "running"


def test_a_record_becomes_a_race(record):
    shown = Race(record).recorded
    assert json.loads(json.dumps(shown)) == shown
    assert [(arm["name"], arm["steps"]) for arm in shown["arms"]] == [("dense", 12), ("moe", 6), ("moe", 3)]
    assert shown["source"].startswith("Recorded 2026-01-02, grid 'tiny': ") and "threads 1," in shown["source"]
    dense, moe, _ = shown["arms"]
    runs = record["race"]
    assert (dense["seconds"], moe["seconds"]) == (6.0, 7.5)
    assert dense["curve"] == [[step, loss, step * 0.5] for step, loss in runs[0]["curve"]]
    assert moe["validation"] == [[step, loss, step * 1.25] for step, loss in runs[1]["validation"]]
    assert (moe["flops"], moe["router_flops"]) == tuple(runs[1]["flops_a_step"].values())
    assert moe["busiest"] == pytest.approx(1 + runs[1]["max_violation"][0], abs=1e-4) and dense["busiest"] is None
    assert moe["final"] == round(runs[1]["loss"], 4)


def test_a_recorded_arm_has_what_a_live_one_has(record, corpus):
    lively = live.LiveRace(TINY, num_experts=4, corpus=corpus).describe()["arms"]
    assert [set(arm) for arm in race_of(record)["arms"][:2]] == [set(arm) for arm in lively]


def test_a_seed_whose_run_diverged_does_not_race(record):
    gone = {"name": record["race"][0]["name"], "configs": record["race"][0]["configs"], "diverged": "step 3"}
    assert race_of({**record, "race": [gone, *record["race"][1:]]})["arms"][0]["final"] == round(
        record["race"][3]["loss"], 4
    )
    with pytest.raises(ValueError, match="must hold a dense run and a MoE run of one seed"):
        race_of({**record, "race": [gone, *record["race"][1:3]]})


def test_the_nearest_moe_is_shown(record):
    widget = Race(record, shorter=2)
    assert "the MoE" in widget.summary() and "after 6 steps" in widget.summary()
    widget.shorter = 10
    assert "after 3 steps in 3.8 s" in widget.summary() and "with 0.25 times the steps" in widget.summary()
    assert pick({}, 4) == {}


def test_without_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(race, "RECORD", tmp_path / "none.json")
    assert repr(Race()) == "Race: No race was run here yet, and there is no recorded one."


def test_the_shipped_record_is_the_default(record, monkeypatch, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(race, "RECORD", path)
    monkeypatch.setattr(race, "read_record", lambda: recorded.read_record(path))
    widget = Race()
    assert widget.recorded == Race(record).recorded and repr(widget) == f"Race: {widget.summary()}"


def arm(name, done, seconds, curve, final=None, steps=100):
    return {"name": name, "done": done, "steps": steps, "seconds": seconds, "curve": curve, "final": final, "batch": 8}


DENSE = arm("dense", 40, 8.0, [[20, 3.0, 4.0], [40, 2.5, 8.0]])
MOE = arm("moe", 22, 8.3, [[10, 3.25, 4.0], [20, 2.75, 7.6]])


def test_who_leads_after_equal_seconds_and_equal_steps():
    assert compare({"arms": [DENSE, MOE]}) == [
        {"axis": "seconds", "far": 8.0, "losses": [2.5, 2.75]},
        {"axis": "steps", "far": 22, "losses": [3.0, 2.75]},
    ]
    assert compare({"arms": [DENSE, {**MOE, "curve": []}]}) == []


PLACES = "the dense model at step 40 of 100 with loss 2.50, the MoE at step 22 of 100 with loss 2.75. "
LEADS = (
    "After 8.0 s each the dense model leads by 0.25 nats a byte, after 22 steps each the MoE leads by 0.25 nats a byte."
)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", f"Running, 17 s of at most 120 s: {PLACES}{LEADS}"),
        ("stopped", f"Stopped after 17 s: {PLACES}{LEADS}"),
        ("time is up", f"Time is up after 17 s, before the ends of the schedules: {PLACES}{LEADS}"),
        ("playing", f"Recorded, at 8.3 s: {PLACES}{LEADS}"),
        ("failed", "The race failed: Diverged: step 3"),
    ],
)
def test_the_state_in_words(status, words):
    state = {"status": status, "error": "Diverged: step 3", "wall_s": 17.2, "limit_s": 120, "arms": [DENSE, MOE]}
    assert say_race(state) == words


def test_the_beginning_and_the_end_in_words():
    about = {"error": "", "wall_s": 0.2, "limit_s": 120}
    assert say_race({"status": "starting", "arms": [], **about}) == "Both models are being made."
    assert say_race({"status": "stopped", "arms": [], **about}) == "Stopped before the first step."
    first = [{**one, "done": 0, "seconds": 0.0, "curve": []} for one in (DENSE, MOE)]
    assert say_race({"status": "running", "arms": first, **about}) == (
        "Running, 0.2 s of at most 120 s: the dense model at step 0 of 100, the MoE at step 0 of 100."
    )
    ends = [arm("dense", 100, 50, [[100, 2, 50]], 2.004), arm("moe", 25, 40, [[25, 2, 40]], 1.996, steps=25)]
    assert say_race({"status": "finished", "arms": ends, **about}) == (
        "Both have finished. On held-out text, at the ends of their schedules: the dense model 2.00 after 100 steps in "
        "50 s, the MoE 2.00 after 25 steps in 40 s. Neither leads with 0.25 times the steps and 0.8 times the seconds, "
        "at 0.313 times the examples a second."
    )


def test_spans_of_time():
    assert [say_span(value) for value in (0, 9.94, 9.96, 299.4, 300, 33 * 60, 1e5)] == [
        "0.0 s",
        "9.9 s",
        "10.0 s",
        "299 s",
        "5 min",
        "33 min",
        "1,667 min",
    ]


def test_nothing_trains_before_it_is_asked_to(widget):
    assert widget.live == {} and not widget._race


def test_start_stop_go_on_and_start_over(widget):
    widget.start()
    wait_for(lambda: is_running(widget))
    assert widget.summary().startswith("Running, ")
    widget.stop()
    widget.wait()
    before = done(widget)
    assert widget.live["status"] == "stopped" and before > 0
    widget.start()
    wait_for(lambda: done(widget) > before)
    widget.shorter = 4
    widget.start_over()
    wait_for(lambda: is_running(widget) and widget.live["arms"][1]["steps"] == ENDLESS.steps // 4)
    widget.stop()
    widget.wait()
    assert widget.live["status"] == "stopped"


def test_wishes_of_the_browser_are_granted(widget):
    widget.set_state({"wish": {"number": 1, "verb": "start"}})
    assert widget.heard == 1
    wait_for(lambda: is_running(widget))
    widget.set_state({"shorter": 4, "wish": {"number": 2, "verb": "start over"}})
    wait_for(lambda: is_running(widget) and widget.live["arms"][1]["steps"] == 250_000)
    widget.set_state({"wish": {"number": 3, "verb": "stop"}})
    widget.wait()
    assert widget.live["status"] == "stopped" and widget.heard == 3
    widget.set_state({"wish": {"number": 4, "verb": "fly"}})
    assert widget.heard == 3 and widget.live["status"] == "stopped"


def test_a_finished_race_starts_from_the_first_step(corpus, monkeypatch):
    monkeypatch.setattr(live, "standard_library", lambda: corpus)
    monkeypatch.setattr(live, "JUDGED", 2)
    widget = Race(preset=TINY, num_experts=4)
    for _ in range(2):
        widget.start()
        widget.wait()
        assert widget.live["status"] == "finished" and done(widget) == 24
        assert widget.summary().startswith("Both have finished. On held-out text")


def test_closing_it_stops_the_race(widget):
    widget.start()
    wait_for(lambda: is_running(widget))
    widget.close()
    wait_for(lambda: not is_racing(widget))
    assert widget.live["status"] == "stopped"


def test_another_widget_takes_the_machine(widget):
    other = Race(preset=ENDLESS, num_experts=4)
    widget.start()
    wait_for(lambda: is_running(widget))
    other.start()
    wait_for(lambda: is_running(other) and widget.live["status"] == "stopped")
    other.stop()
    other.wait()


def test_what_goes_wrong_in_the_thread_is_on_the_page(widget, monkeypatch):
    def missing():
        raise FileNotFoundError("folder /lib holds 0 Python files with text; at least 10 are needed")

    monkeypatch.setattr(live, "standard_library", missing)
    widget.start()
    widget.wait()
    assert widget.summary() == (
        "The race failed: FileNotFoundError: folder /lib holds 0 Python files with text; at least 10 are needed"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"record": {"race": []}}, ValueError, "record must hold the field 'step_ms', it has race"),
        ({"preset": "slow"}, ValueError, "preset must be a Preset or one of laptop, quick, gpu; got 'slow'"),
        ({"num_experts": 0}, ValueError, "num_experts must be in 1"),
        ({"seconds": -1}, ValueError, "seconds must be a finite number above 0, got -1"),
        ({"seconds": 1e6}, ValueError, "seconds must be at most 86400, got"),
        ({"shorter": 3}, ValueError, "shorter must be one of 1, 2, 4, 7, 10; got 3"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"axis": "tokens"}, ValueError, "axis must be steps or seconds, got 'tokens'"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        Race(**options)


def test_bad_assignments_are_refused(record):
    widget = Race(record)
    with pytest.raises(ValueError, match="shorter must be one of"):
        widget.shorter = 3
    with pytest.raises(traitlets.TraitError, match="'axis' trait"):
        widget.axis = "tokens"
    assert (widget.shorter, widget.axis) == (1, "steps")
