"""The live race: arms train as they would alone, take turns by time, stop within a step, and are never two at once."""

import dataclasses
import json
import signal
import threading
import time

import pytest
import torch

from moe_lab.corpus import Corpus
from moe_lab.experiments import live
from moe_lab.experiments.dense_vs_moe import PRESETS
from moe_lab.experiments.live import BackgroundRace, LiveRace, make_runs, run_race
from moe_lab.train import Diverged, Trainer

SMALL = {"sizes": {"x1": (16, 32, 2)}, "num_layers": 1, "context": 8, "batch": 2, "steps": 12}
TINY = dataclasses.replace(PRESETS["quick"], **SMALL)
ENDLESS = dataclasses.replace(TINY, steps=10**6)
WAIT_S = 30


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Few held-out batches; and one thread, because two wait for each other, longest on a busy machine."""
    monkeypatch.setattr(live, "JUDGED", 3)
    with live.cpu_threads(1):
        yield


@pytest.fixture(scope="module")
def corpus():
    text = torch.randint(97, 123, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Corpus(text[:3000], text[3000:], files=2, source="letters", fingerprint="letters")


@pytest.fixture
def race(corpus):
    return LiveRace(TINY, num_experts=4, shorter=2, corpus=corpus)


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def losses(race):
    return [arm.trainer.history.losses for arm in race.arms]


def test_arms_train_as_they_would_alone(race, corpus):
    assert race.run(seconds=WAIT_S) == "finished"
    for arm, run in zip(race.arms, make_runs(TINY, num_experts=4, shorter=2), strict=True):
        alone = Trainer(run.model, run.train, corpus)
        for _ in range(run.train.steps):
            alone.step()
        assert arm.trainer.history.losses == alone.history.losses
        assert arm.final == alone.validate(live.JUDGED)


def test_both_have_full_schedules_of_equal_flops():
    dense, moe = make_runs("quick", shorter=4)
    assert (dense.train.steps, moe.train.steps) == (1400, 350) and dense.train.batch == moe.train.batch
    assert dense.train.seed == moe.train.seed, "both see the same batches"
    flops = [arm.flops for arm in LiveRace("quick").arms]
    assert flops[1]["all"] == pytest.approx(flops[0]["all"], rel=0.01)
    assert flops[0]["routers"] == 0 < flops[1]["routers"]


def test_the_next_step_belongs_to_the_one_that_has_trained_for_less_time(race):
    cost, order = {"dense": 1.0, "moe": 3.0}, []

    def move(arm):
        arm.trainer.history.seconds += cost[arm.name]
        arm.trainer.history.losses.append(1.0)
        order.append(arm.name[0])

    for _ in range(10):
        move(race.next_arm())
    assert "".join(order) == "dmdddmdddm"
    while arm := race.next_arm():
        move(arm)
    assert order.count("d") == 12 and order.count("m") == 6, "the other goes on alone"


def test_it_stops_within_a_step_and_goes_on_where_it_was(race, corpus):
    moved = []
    assert race.run(WAIT_S, is_stopped=lambda: len(moved) == 3, watch=moved.append) == "stopped"
    assert len(moved) == sum(map(len, losses(race))) == 3
    assert race.run(WAIT_S) == "finished"
    whole = LiveRace(TINY, num_experts=4, shorter=2, corpus=corpus)
    whole.run(WAIT_S)
    assert losses(race) == losses(whole)


def test_time_is_up(race):
    assert race.run(seconds=1e-9) == "time is up" and sum(map(len, losses(race))) == 1
    assert race.run(seconds=1e-9) == "time is up" and sum(map(len, losses(race))) == 1
    assert [arm["final"] for arm in race.describe()["arms"]] == [None, None]


def test_a_seed_is_a_race(corpus):
    first, same, other = (LiveRace(TINY, num_experts=4, seed=seed, corpus=corpus) for seed in (1, 1, 2))
    for race in (first, same, other):
        race.run(WAIT_S)
    assert losses(first) == losses(same) != losses(other)


def test_what_there_is_to_see(race):
    race.run(WAIT_S)
    seen = race.describe()
    assert json.loads(json.dumps(seen)) == seen and "torch" in seen["source"]
    dense, moe = seen["arms"]
    assert [arm["done"] for arm in seen["arms"]] == [12, 6] == [arm["steps"] for arm in seen["arms"]]
    assert [point[0] for point in dense["curve"]] == [*range(1, 13)]
    assert [point[1] for point in moe["curve"]] == [round(loss, 4) for loss in losses(race)[1]]
    assert dense["curve"][-1][2] == dense["seconds"] == pytest.approx(race.arms[0].trainer.history.seconds, abs=1e-3)
    assert [point[0] for point in moe["validation"]] == [6] and moe["final"] > 0
    assert dense["busiest"] is None and 1 <= moe["busiest"] <= 4 and (dense["experts"], moe["experts"]) == (0, 4)
    assert moe["params"] > dense["params"]


def test_a_point_is_a_mean_over_its_part_of_the_steps(race, monkeypatch):
    monkeypatch.setattr(live, "POINTS", 6)
    race.run(WAIT_S)
    curve, dense = race.arms[0].curve, losses(race)[0]
    assert [point[0] for point in curve] == [*range(2, 13, 2)]
    assert curve[-1][1] == round(sum(dense[-2:]) / 2, 4)


def test_the_chance_of_others_is_left_alone(corpus):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    LiveRace(TINY, num_experts=4, corpus=corpus).run(WAIT_S)
    assert torch.equal(torch.rand(3), want)


def test_a_race_in_the_background(corpus):
    heard, here = [], []
    race = BackgroundRace(lambda: LiveRace(ENDLESS, num_experts=4, corpus=corpus), 600, heard.append)
    race.start()
    here.append("not blocked")
    wait_for(lambda: any(news["status"] == "running" for news in heard))
    race.start()  # nothing: it runs
    assert threading.active_count() >= 2 and [news["status"] for news in heard].count("starting") == 1
    race.stop()
    race.wait()
    assert not race.is_running and heard[-1]["status"] == "stopped" and heard[0]["arms"] == []
    steps = [arm["done"] for arm in heard[-1]["arms"]]
    race.start()
    wait_for(lambda: sum(arm["done"] for arm in heard[-1]["arms"]) > sum(steps))
    race.stop()
    race.start()  # at once, while the thread is about to leave
    assert race.is_running
    race.stop()
    race.wait()
    assert heard[-1]["status"] == "stopped" and heard[-1]["limit_s"] == 600
    assert not [thread for thread in threading.enumerate() if thread.name == "moe-lab race"]


def test_the_notebook_keeps_its_threads(corpus):
    torch.set_num_threads(2)
    inside = []
    race = BackgroundRace(
        lambda: LiveRace(ENDLESS, num_experts=4, corpus=corpus),
        600,
        lambda news: inside.append(torch.get_num_threads()),
    )
    race.start()
    wait_for(lambda: len(inside) > 1)
    assert (inside[1], torch.get_num_threads()) == (1, 2)
    race.stop()
    race.wait()
    assert inside[-1] == torch.get_num_threads() == 2


def test_it_does_not_tell_after_every_step(corpus):
    heard = []
    race = BackgroundRace(lambda: LiveRace(TINY, num_experts=4, corpus=corpus), 600, heard.append)
    race.start()
    race.wait()
    assert heard[-1]["status"] == "finished"
    assert len(heard) <= 3 + heard[-1]["wall_s"] / live.TELL_EVERY_S


@pytest.mark.parametrize("error", [Diverged("training diverged at\nstep 3"), FileNotFoundError("no corpus")])
def test_an_error_is_told_and_frees_the_track(error, race, monkeypatch):
    def fail():
        raise error

    heard = []
    if isinstance(error, Diverged):
        monkeypatch.setattr(race.arms[0].trainer, "step", fail)
    broken = BackgroundRace((lambda: race) if isinstance(error, Diverged) else fail, 600, heard.append)
    broken.start()
    broken.wait()
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert (heard[-1]["status"], heard[-1]["error"]) == ("failed", words)
    assert not live._track.locked()


def test_the_newest_race_is_the_only_one(corpus, monkeypatch):
    inside, most = [], []
    real = Trainer.step

    def step(trainer):
        inside.append(trainer)
        most.append(len(inside))
        loss = real(trainer)
        inside.remove(trainer)
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    heard = {name: [] for name in "abc"}
    races = {
        name: BackgroundRace(lambda: LiveRace(ENDLESS, num_experts=4, corpus=corpus), 600, heard[name].append)
        for name in heard
    }
    races["a"].start()
    wait_for(lambda: most)
    races["b"].start()
    races["c"].start()
    wait_for(lambda: [heard[name][-1]["status"] for name in "abc"] == ["stopped", "stopped", "running"])
    assert set(run_race(WAIT_S, TINY, num_experts=4, corpus=corpus)) == {"dense", "moe"}
    races["c"].wait()
    assert heard["c"][-1]["status"] == "stopped" and set(most) == {1}


def test_the_end_of_python_waits_for_the_step(corpus):
    heard = []
    race = BackgroundRace(lambda: LiveRace(ENDLESS, num_experts=4, corpus=corpus), 600, heard.append)
    race.start()
    wait_for(lambda: heard[-1]["arms"])
    live._leave_the_track()
    race.wait()
    assert heard[-1]["status"] == "stopped"


def test_a_race_with_progress_bars(corpus, capsys):
    histories = run_race(WAIT_S, TINY, num_experts=4, shorter=3, corpus=corpus)
    assert {name: history.steps for name, history in histories.items()} == {"dense": 12, "moe": 4}
    bars = capsys.readouterr().err
    assert "dense: 100%" in bars and "12/12" in bars and "4/4" in bars and "busiest/mean" in bars


def test_ctrl_c_ends_a_race_with_what_was_trained(corpus, monkeypatch):
    steps = []
    real = Trainer.step

    def step(trainer):
        steps.append(trainer)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(trainer)

    monkeypatch.setattr(Trainer, "step", step)
    histories = run_race(WAIT_S, TINY, num_experts=4, corpus=corpus)
    assert sum(history.steps for history in histories.values()) == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "slow"}, ValueError, "preset must be a Preset or one of laptop, quick, gpu; got 'slow'"),
        ({"shorter": 0}, ValueError, r"shorter must be in 1\.\.12, got 0"),
        ({"shorter": 13}, ValueError, r"shorter must be in 1\.\.12, got 13"),
        ({"num_experts": 0}, ValueError, "num_experts must be in 1"),
        ({"num_experts": 1000}, ValueError, "does not pay for routers of .* experts"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"seconds": 0}, ValueError, "seconds must be a finite number above 0, got 0"),
    ],
)
def test_bad_arguments_are_named(options, error, message, corpus):
    with pytest.raises(error, match=message):
        run_race(**{"preset": TINY, "seconds": 1, "num_experts": 4, "corpus": corpus, **options})
    assert not live._track.locked()
