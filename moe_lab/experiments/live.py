"""The race of lesson 10, live: a dense model and a MoE of equal FLOPs a step take turns at training on this machine.

A turn is one step, and the next one belongs to the arm that has trained for less time: both have the same machine for
the same seconds, whatever else runs on it. `run_race` trains in the foreground, `BackgroundRace` in a thread.
"""

import atexit
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import torch
from tqdm.auto import tqdm

from moe_lab.balance import measure_balance
from moe_lab.checks import check_number, check_whole
from moe_lab.corpus import Corpus, standard_library
from moe_lab.experiments.dense_vs_moe import BY_BIAS, PRESETS, Preset, make_run
from moe_lab.experiments.runner import JUDGED, POINTS, Run, count_model, count_step
from moe_lab.profiling.timing import cpu_threads
from moe_lab.train import History, Trainer, describe_machine, interrupt_between_steps, report

ARMS = ("dense", "moe")
SHORTER = (1, 2, 4, 7, 10)  # what a reader may divide the MoE's steps by
TELL_EVERY_S = 0.4
MOST_SHORTER, MOST_SECONDS = 1000, 24 * 3600


def make_runs(preset: Preset | str = "quick", *, num_experts: int = 8, shorter: int = 1, seed: int = 0) -> list[Run]:
    """The runs of both arms, each with a full schedule: the preset's steps, for the MoE divided by ``shorter``.

    Example:
        >>> [(run.name, run.model.num_experts, run.train.steps) for run in make_runs("quick", shorter=4)]
        [('live-dense', 0, 1400), ('live-moe', 8, 350)]

    Raises ValueError or TypeError for an unknown preset, a ``shorter`` that leaves the MoE no step, a ``num_experts``
    whose router alone costs what the dense layer does, and a ``seed`` outside 0..2**32.
    """
    if not isinstance(preset, Preset):
        if preset not in PRESETS:
            raise ValueError(f"preset must be a Preset or one of {', '.join(PRESETS)}; got {preset!r}")
        preset = PRESETS[preset]
    check_whole("shorter", shorter, 1, min(MOST_SHORTER, preset.steps))
    check_whole("num_experts", num_experts, 1, 2**10)
    fields = {"dense": {}, "moe": {"num_experts": num_experts, **BY_BIAS}}
    steps = {"dense": preset.steps, "moe": preset.steps // shorter}
    return [
        make_run(preset, f"live-{arm}", "x1", steps[arm], seed, preset.learning_rate[arm], **fields[arm])
        for arm in ARMS
    ]


class Arm:
    """One side of a race: its trainer, the FLOPs of one of its steps, and what was seen of it so far.

    Points of the curves are [step, loss, seconds of this arm until then]; those of ``curve`` are means over a hundredth
    of the steps, as in the records. ``final`` is the held-out loss at the end of the schedule, None before.
    """

    def __init__(self, name: str, run: Run, corpus: Corpus):
        self.name = name
        self.trainer = Trainer(run.model, run.train, corpus)
        self.flops = count_step(self.trainer)
        self.curve: list[list] = []
        self.validation: list[list] = []
        self.busiest: float | None = None
        self.final: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether the schedule is over."""
        return self.trainer.history.steps >= self.trainer.config.steps

    def move(self, bar: tqdm) -> None:
        """Train a step, judge where a judgement is due, and keep what there is to see."""
        trainer, history = self.trainer, self.trainer.history
        trainer.step()
        if loads := trainer.loads():  # before validation, which routes other text
            self.busiest = max(measure_balance(torch.tensor(load)).max_over_mean for load in loads)
        judged = len(history.validation)
        report(trainer, bar)
        self.validation += [[step, round(loss, 4), history.seconds] for step, loss in history.validation[judged:]]
        block = max(1, trainer.config.steps // POINTS)
        if history.steps % block == 0:
            mean = statistics.fmean(history.losses[-block:])
            self.curve.append([history.steps, round(mean, 4), history.seconds])
        if self.is_done:
            self.final = trainer.validate(JUDGED)

    def describe(self) -> dict:
        """Everything that there is to see of the arm, ready for JSON."""
        trainer = self.trainer
        return {
            "name": self.name,
            "experts": trainer.model.config.num_experts,
            "params": count_model(trainer.model)["total_params"],
            "flops": self.flops["all"],
            "router_flops": self.flops["routers"],
            "batch": trainer.config.batch,
            "steps": trainer.config.steps,
            "done": trainer.history.steps,
            "seconds": round(trainer.history.seconds, 3),
            "busiest": None if self.busiest is None else round(self.busiest, 4),
            "final": None if self.final is None else round(self.final, 4),
            **{name: [[*point[:2], round(point[2], 3)] for point in getattr(self, name)] for name in POINT_LISTS},
        }


POINT_LISTS = ("curve", "validation")


class LiveRace:
    """Both arms, moved on a step at a time; the next step belongs to the one that has trained for less time.

    ``wall_s`` is what the race has taken so far, judging and telling included; ``arm.trainer.history.seconds`` the time
    of an arm's own steps. The arms train as they would alone: their losses are those of `moe_lab.train.train`.

    Example:
        >>> import dataclasses
        >>> small = {"sizes": {"x1": (16, 32, 2)}, "context": 8, "batch": 2, "steps": 8}
        >>> race = LiveRace(dataclasses.replace(PRESETS["quick"], **small), num_experts=4, shorter=2)
        >>> race.run(seconds=60)
        'finished'
        >>> [(arm.name, arm.trainer.history.steps, len(arm.curve)) for arm in race.arms]
        [('dense', 8, 8), ('moe', 4, 4)]

    Raises what `make_runs` raises, ValueError for a device that is not there, and FileNotFoundError for no corpus.
    """

    def __init__(
        self,
        preset: Preset | str = "quick",
        *,
        num_experts: int = 8,
        shorter: int = 1,
        seed: int = 0,
        corpus: Corpus | None = None,
    ):
        runs = make_runs(preset, num_experts=num_experts, shorter=shorter, seed=seed)
        corpus = corpus or standard_library()
        with chance_of_others_kept(runs[0].train.device):
            self.arms = [Arm(name, run, corpus) for name, run in zip(ARMS, runs, strict=True)]
        self.wall_s = 0.0

    def next_arm(self) -> Arm | None:
        """The arm whose turn it is, or None once both schedules are over."""
        left = [arm for arm in self.arms if not arm.is_done]
        return min(left, key=lambda arm: arm.trainer.history.seconds, default=None)

    def run(
        self,
        seconds: float | int,
        is_stopped: Callable[[], bool] = lambda: False,
        watch: Callable[[Arm], None] = lambda arm: None,
        bars: dict[str, tqdm] | None = None,
    ) -> str:
        """Train until both schedules are over, the race has taken ``seconds``, or ``is_stopped`` says so.

        It is asked before each step, and ``watch`` called after each with the arm that moved. Returns "finished", "time
        is up" or "stopped"; a race that was stopped goes on where it was when it is run again. Raises Diverged where a
        loss stops being finite.
        """
        bars = bars or {arm.name: tqdm(disable=True) for arm in self.arms}
        started = time.perf_counter() - self.wall_s
        # models so small lose more by waiting for a second thread
        with cpu_threads(1):
            while arm := self.next_arm():
                if is_stopped():
                    return "stopped"
                if self.wall_s >= seconds:
                    return "time is up"
                with chance_of_others_kept(arm.trainer.config.device):
                    arm.move(bars[arm.name])
                bars[arm.name].update()
                watch(arm)
                self.wall_s = time.perf_counter() - started
        return "finished"

    def describe(self) -> dict:
        """Both arms and the machine, ready for JSON."""
        machine = {**describe_machine(), "threads": 1}  # see `run`
        return {
            "arms": [arm.describe() for arm in self.arms],
            "wall_s": round(self.wall_s, 1),
            "source": describe_source(machine, "This machine"),
        }


def describe_source(machine: dict, name: str) -> str:
    """A machine in a few words.

    Example:
        >>> describe_source({"processor": "x86_64", "cores": 2, "threads": 1, "torch": "2.13.0"}, "This machine")
        'This machine: x86_64, cores 2, threads 1, torch 2.13.0'
    """
    words = [f"{field} {machine[field]}" for field in ("cores", "threads", "torch")]
    return f"{name}: {', '.join([machine['processor'], *words])}"


@contextlib.contextmanager
def chance_of_others_kept(device: str) -> Iterator[None]:
    """Give torch's global generator back as it was: a step seeds it, and the notebook around the race draws from it."""
    devices = [torch.cuda.current_device()] if device == "cuda" and torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


_track, _swap = threading.Lock(), threading.Lock()
_newest = threading.Event()  # what stops the race that came last


def claim_the_track(stop: threading.Event) -> None:
    """Be the newest race of this process: ``stop`` of the one before is set, and it leaves within a step."""
    global _newest
    with _swap:
        _newest.set()
        _newest = stop


@contextlib.contextmanager
def the_track(stop: threading.Event) -> Iterator[None]:
    """Wait until no other race runs, or until ``stop`` is set because a newer one has claimed the track."""
    mine = False
    while not mine and not stop.is_set():
        mine = _track.acquire(timeout=0.05)
    try:
        yield
    finally:
        if mine:
            _track.release()


@atexit.register
def _leave_the_track() -> None:
    """A thread that trains while Python ends would end it with a crash."""
    _newest.set()
    if _track.acquire(timeout=10):
        _track.release()


def run_race(
    seconds: float | int = 120,
    preset: Preset | str = "quick",
    *,
    num_experts: int = 8,
    shorter: int = 1,
    seed: int = 0,
    corpus: Corpus | None = None,
) -> dict[str, History]:
    """Race for at most so many seconds, with a progress bar for each arm; the histories of both by name.

    Ctrl-C ends it after the step that is under way, and so does a newer race; the histories then hold what was trained.

    Example:
        >>> histories = run_race(seconds=0.001)  # time for a single step
        >>> {name: history.steps for name, history in histories.items()}
        {'dense': 1, 'moe': 0}

    Raises ValueError or TypeError for bad arguments, Diverged where a loss stops being finite.
    """
    check_number("seconds", seconds, above=0)
    stop = threading.Event()
    claim_the_track(stop)
    with the_track(stop), contextlib.ExitStack() as open_bars, interrupt_between_steps() as interrupted:
        race = LiveRace(preset, num_experts=num_experts, shorter=shorter, seed=seed, corpus=corpus)
        bars = {
            arm.name: open_bars.enter_context(tqdm(total=arm.trainer.config.steps, unit="step", desc=arm.name))
            for arm in race.arms
        }
        race.run(seconds, lambda: stop.is_set() or interrupted.is_set(), bars=bars)
    return {arm.name: arm.trainer.history for arm in race.arms}


class BackgroundRace:
    """A race in a thread of its own; ``tell`` is called with what there is to see, from that thread.

    What it is told has ``status`` ("starting", "running", "stopped", "time is up", "finished" or "failed"), ``error``
    (a sentence if it failed), and what `LiveRace.describe` gives, ``arms`` empty before both are made.

    Example:
        >>> heard = []
        >>> race = BackgroundRace(lambda: LiveRace("quick"), seconds=0.001, tell=heard.append)
        >>> race.start()
        >>> race.wait()
        >>> [news["status"] for news in heard if news["status"] != "running"]
        ['starting', 'time is up']
    """

    def __init__(self, make: Callable[[], LiveRace], seconds: float | int, tell: Callable[[dict], None]):
        self._make, self._seconds, self._tell = make, seconds, tell
        self._race: LiveRace | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = 0.0

    @property
    def is_running(self) -> bool:
        """Whether its thread is there, be it that it waits for another race to leave."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start, or go on after a stop; nothing if it runs."""
        if self.is_running and not self._stop.is_set():
            return
        self.wait()
        torch.get_num_threads()  # settles the number of this thread, before `cpu_threads` sets that of new ones
        self._stop = threading.Event()
        claim_the_track(self._stop)  # here and not in the thread, so that the race that was started last is the newest
        self._say("starting")
        # a daemon, so that an open race does not keep Python from ending
        self._thread = threading.Thread(target=self._train, args=(self._stop,), name="moe-lab race", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step that is under way, without waiting for it."""
        self._stop.set()

    def wait(self) -> None:
        """Return once it does not run."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _train(self, stop: threading.Event) -> None:
        try:
            with the_track(stop):
                if self._race is None and not stop.is_set():
                    self._race = self._make()
                status = self._race.run(self._seconds, stop.is_set, self._watch) if self._race else "stopped"
            self._say(status)
        except Exception as problem:  # in a thread nobody would see it
            self._say("failed", " ".join(f"{type(problem).__name__}: {problem}".split())[:300])

    def _watch(self, _arm: Arm) -> None:
        if time.perf_counter() - self._told >= TELL_EVERY_S:
            self._say("running")

    def _say(self, status: str, error: str = "") -> None:
        seen = self._race.describe() if self._race else {"arms": [], "wall_s": 0.0, "source": ""}
        self._tell({"status": status, "error": error, "limit_s": self._seconds, **seen})
        self._told = time.perf_counter()
