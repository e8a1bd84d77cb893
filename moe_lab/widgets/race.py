"""Race: a dense model and a MoE of equal FLOPs a step, trained side by side while the reader watches."""

import itertools
import math
from pathlib import Path

import traitlets

from moe_lab.checks import check_number, check_whole
from moe_lab.experiments.dense_vs_moe import Preset
from moe_lab.experiments.live import (
    ARMS,
    MOST_SECONDS,
    POINT_LISTS,
    SHORTER,
    BackgroundRace,
    LiveRace,
    describe_source,
    make_runs,
)
from moe_lab.experiments.recorded import RECORD, read_record
from moe_lab.widgets.expert_roofline import three_digits
from moe_lab.widgets.lab_widget import LabWidget

AXES = ("steps", "seconds")
NAMES = {"dense": "the dense model", "moe": "the MoE"}
VERBS = ("start", "stop", "start over")  # of a reader's wish
GOING = ("starting", "running", "playing")
STEP, LOSS, SECONDS = range(3)  # of a point of a curve


class Race(LabWidget):
    """Watch a dense model and a MoE train: losses over steps or seconds, examples a second, and who leads by what.

    Without a kernel, or before the reader starts a race, it shows the runs ``race`` of ``record`` (what ``python -m
    moe_lab experiment dense_vs_moe`` writes; the shipped one by default, if it is there), and says so. With a kernel it
    trains both arms of ``preset`` from ``seed`` for at most ``seconds``, see `moe_lab.experiments.live`; nothing trains
    before `start`, or the button. The MoE has few experts there, so that both schedules end within two minutes.
    ``shorter`` divides the steps of the MoE; of a record the run that is nearest to it is shown. ``axis`` is "steps" or
    "seconds".

    A race stops when the widget is closed, and when another one starts: two at once would share the machine.

    Example:
        >>> curve = {"curve": [[10, 3.0], [20, 2.5]], "validation": [], "total_params": 9, "max_violation": [0.5]}
        >>> run = lambda name, experts, loss: {
        ...     "name": f"race-{name}-20-0", "loss": loss, "flops_a_step": {"all": 2_000_000, "routers": 0}, **curve,
        ...     "configs": {"model": {"num_experts": experts}, "train": {"steps": 20, "batch": 4, "seed": 0}}}
        >>> machine = {"processor": "x86_64", "cores": 2, "threads": 1, "torch": "2.13.0"}
        >>> about = {"date": "2026-01-02", "preset": "small", "machine": machine, "step_ms": {"dense": 50, "moe": 100}}
        >>> Race({**about, "race": [run("dense", 0, 2.75), run("moe", 8, 2.5)]})  # doctest: +NORMALIZE_WHITESPACE
        Race: Recorded. On held-out text, at the ends of their schedules: the dense model 2.75 after 20 steps in 1.0 s,
        the MoE 2.50 after 20 steps in 2.0 s. The MoE leads by 0.25 nats a byte with 1 times the steps and 2 times the
        seconds, at 0.5 times the examples a second.

    Raises ValueError or TypeError for a record without two arms, an unknown preset, a number of experts that does not
    fit it, seconds outside 0..86400, and a shorter or axis that is not offered.
    """

    _esm = Path(__file__).with_name("race.js")
    _css = Path(__file__).with_name("race.css")
    of_the_reader = ("shorter", "axis", "wish")

    recorded = traitlets.Dict().tag(sync=True)  # as `race_of` makes it; {} without a record
    live = traitlets.Dict().tag(sync=True)  # what `BackgroundRace` tells; {} before the first start
    choices = traitlets.List(traitlets.Int(), [*SHORTER]).tag(sync=True)
    shorter = traitlets.Int().tag(sync=True)
    axis = traitlets.Enum(AXES).tag(sync=True)
    wish = traitlets.Dict().tag(sync=True)  # of the browser: {"number": 1, "verb": "start"}
    heard = traitlets.Int(0).tag(sync=True)  # the number of the last wish that a kernel has granted

    _race: BackgroundRace | None = None
    _leaving: tuple[BackgroundRace, ...] = ()  # replaced, and perhaps in their last step

    def __init__(
        self,
        record: dict | None = None,
        *,
        preset: Preset | str = "quick",
        num_experts: int = 8,
        seconds: float | int = 120,
        shorter: int = 1,
        seed: int = 0,
        axis: str = "steps",
    ):
        if record is None and RECORD.is_file():
            record = read_record()
        check_number("seconds", seconds, above=0)
        if seconds > MOST_SECONDS:
            raise ValueError(f"seconds must be at most {MOST_SECONDS}, got {seconds}")
        if shorter not in SHORTER:
            raise ValueError(f"shorter must be one of {', '.join(map(str, SHORTER))}; got {shorter!r}")
        if axis not in AXES:
            raise ValueError(f"axis must be {' or '.join(AXES)}, got {axis!r}")
        self._settings = {"preset": preset, "num_experts": num_experts, "seed": seed}
        make_runs(**self._settings)  # refuses here, and not in a thread later
        self._seconds = seconds
        recorded = {} if record is None else race_of(record)
        super().__init__(recorded=recorded, shorter=shorter, axis=axis)
        self.observe(self._grant, "wish")

    def start(self) -> None:
        """Start a race in the background, or go on with the one that was stopped; nothing while one runs."""
        if self._race is None or self.live.get("status") in ("finished", "time is up", "failed"):
            self.start_over()
        else:
            self._race.start()

    def start_over(self) -> None:
        """Stop what runs, and start a race from the first step."""
        self.stop()
        self._leaving = tuple(race for race in (*self._leaving, self._race) if race is not None and race.is_running)
        settings = {**self._settings, "shorter": self.shorter}
        race = BackgroundRace(lambda: LiveRace(**settings), self._seconds, lambda news: self._hear(race, news))
        self._race = race
        race.start()

    def stop(self) -> None:
        """Stop within a step, if a race runs."""
        if self._race is not None:
            self._race.stop()

    def wait(self) -> None:
        """Return once no race of this widget runs, replaced ones among them."""
        for race in (*self._leaving, self._race):
            if race is not None:
                race.wait()

    def close(self) -> None:
        """Stop, and let go of the page."""
        self.stop()
        super().close()

    def summary(self) -> str:
        """The sentence that the widget shows, computed here."""
        return say_race(self.live or pick(self.recorded, self.shorter))

    def __repr__(self) -> str:
        return f"Race: {self.summary()}"

    def _hear(self, race: BackgroundRace, news: dict) -> None:
        """Called from the thread of a race; one that was replaced has nothing more to say."""
        if race is self._race:
            self.live = news

    def _grant(self, _change) -> None:
        if self.wish:
            dict(zip(VERBS, (self.start, self.stop, self.start_over), strict=True))[self.wish["verb"]]()
            self.heard = self.wish["number"]

    @traitlets.validate("wish")
    def _check_wish(self, proposal):
        wish = proposal["value"]
        if wish and wish.get("verb") not in VERBS:
            raise ValueError(f"wish must have a verb, one of {', '.join(VERBS)}; got {wish.get('verb')!r:.80}")
        if wish:
            check_whole("the number of a wish", wish.get("number"), 0, 2**53)
        return wish

    @traitlets.validate("shorter")
    def _check_shorter(self, proposal):
        if proposal["value"] not in SHORTER:
            raise ValueError(f"shorter must be one of {', '.join(map(str, SHORTER))}; got {proposal['value']}")
        return proposal["value"]


def race_of(record: dict) -> dict[str, object]:
    """The runs of one seed in a record of the grid, as the page gets them: the dense one, then MoEs, most steps first.

    Seconds are steps times the recorded milliseconds of a step, which were timed in turns on one thread. Raises
    ValueError for a record that lacks a field, or one of the arms.
    """
    for field in ("race", "step_ms", "machine", "date", "preset"):
        if field not in record:
            raise ValueError(f"record must hold the field {field!r}, it has {', '.join(record)}")
    by_seed: dict[int, list[dict]] = {}
    for run in record["race"]:
        if "loss" in run:  # the others diverged
            by_seed.setdefault(run["configs"]["train"]["seed"], []).append(run)
    for _seed, runs in sorted(by_seed.items()):
        arms = [arm_of(run, record["step_ms"]) for run in runs]
        arms.sort(key=lambda arm: (ARMS.index(arm["name"]), -arm["steps"]))
        if [name for name, _ in itertools.groupby(arms, lambda arm: arm["name"])] == [*ARMS]:
            machine = {**record["machine"], "threads": 1}  # that step_ms were measured with
            source = describe_source(machine, f"Recorded {record['date']}, grid {record['preset']!r}")
            return {"status": "recorded", "arms": arms, "source": source}
    raise ValueError("record must hold a dense run and a MoE run of one seed that did not diverge, it has none")


def arm_of(run: dict, step_ms: dict[str, float | int]) -> dict[str, object]:
    """A recorded run in the form of `moe_lab.experiments.live.Arm.describe`."""
    name, train = run["name"].split("-")[1], run["configs"]["train"]
    step_s = step_ms[name] / 1e3
    violations = run["max_violation"]
    return {
        "name": name,
        "experts": run["configs"]["model"]["num_experts"],
        "params": run["total_params"],
        "flops": run["flops_a_step"]["all"],
        "router_flops": run["flops_a_step"]["routers"],
        "batch": train["batch"],
        "steps": train["steps"],
        "done": train["steps"],
        "seconds": round(train["steps"] * step_s, 3),
        "busiest": 1 + round(max(violations), 4) if name == "moe" and violations else None,
        "final": round(run["loss"], 4),
        **{kind: [[step, loss, round(step * step_s, 3)] for step, loss in run[kind]] for kind in POINT_LISTS},
    }


def pick(race: dict, shorter: int) -> dict:
    """A race between two: the dense arm, and the MoE whose steps are nearest to 1/``shorter`` of the dense one's.

    Example:
        >>> arms = [{"steps": 100}, {"steps": 25}, {"steps": 10}]
        >>> pick({"arms": arms}, 4)["arms"], pick({"arms": arms}, 7)["arms"]
        ([{'steps': 100}, {'steps': 25}], [{'steps': 100}, {'steps': 10}])
    """
    if not race or len(race["arms"]) < 3:
        return race
    dense, *others = race["arms"]
    return {
        **race,
        "arms": [dense, min(others, key=lambda arm: abs(math.log(arm["steps"] * shorter / dense["steps"])))],
    }


def loss_at(arm: dict, column: int, limit: float | int) -> float | int | None:
    """Training loss of an arm at the last point of its curve up to a step or second, None before the first."""
    return next((point[LOSS] for point in reversed(arm["curve"]) if point[column] <= limit), None)


def compare(race: dict) -> list[dict[str, object]]:
    """Both arms' training losses after equal seconds and after equal steps, as far as both have come.

    Each has its ``axis``, how ``far``, and ``losses`` of dense and MoE; left out where an arm has no point yet.
    """
    found = []
    for axis, column, field in (("seconds", SECONDS, "seconds"), ("steps", STEP, "done")):
        far = min(arm[field] for arm in race["arms"])
        losses = [loss_at(arm, column, far) for arm in race["arms"]]
        if None not in losses:
            found.append({"axis": axis, "far": far, "losses": losses})
    return found


def say_race(race: dict) -> str:
    """The state of a race in words.

    Example:
        >>> say_race({})
        'No race was run here yet, and there is no recorded one.'
    """
    if not race:
        return "No race was run here yet, and there is no recorded one."
    status = race["status"]
    if status == "failed":
        return f"The race failed: {race['error']}"
    if not race["arms"]:
        return "Both models are being made." if status == "starting" else "Stopped before the first step."
    if all(arm["final"] is not None for arm in race["arms"]):
        return f"{'Recorded' if status in ('recorded', 'playing') else 'Both have finished'}. {say_end(race['arms'])}"
    places = [
        f"{NAMES[arm['name']]} at step {arm['done']:,} of {arm['steps']:,}"
        + (f" with loss {say_loss(arm['curve'][-1][LOSS])}" if arm["curve"] else "")
        for arm in race["arms"]
    ]
    say = {"seconds": say_span, "steps": many_steps}
    found = [f"after {say[one['axis']](one['far'])} each {lead(one['losses'])}" for one in compare(race)]
    leads = f" {capital(', '.join(found))}." if found else ""
    return f"{say_status(race)}: {', '.join(places)}.{leads}"


def say_status(race: dict) -> str:
    """How far a race has come that is not at its end."""
    status = race["status"]
    if status == "playing":
        return f"Recorded, at {say_span(max(arm['seconds'] for arm in race['arms']))}"
    if status in GOING:
        return f"Running, {say_span(race['wall_s'])} of at most {say_span(race['limit_s'])}"
    if status == "time is up":
        return f"Time is up after {say_span(race['wall_s'])}, before the ends of the schedules"
    return f"Stopped after {say_span(race['wall_s'])}"


def say_end(arms: list[dict]) -> str:
    """Two arms at the ends of their schedules: losses, who leads, and the three ratios."""
    dense, moe = arms
    ends = [
        f"{NAMES[arm['name']]} {say_loss(arm['final'])} after {many_steps(arm['steps'])} in {say_span(arm['seconds'])}"
        for arm in arms
    ]
    steps, seconds = moe["steps"] / dense["steps"], moe["seconds"] / dense["seconds"]
    rate = rate_of(moe) / rate_of(dense)
    return (
        f"On held-out text, at the ends of their schedules: {', '.join(ends)}. "
        f"{capital(lead([arm['final'] for arm in arms]))} with {three_digits(steps)} times the steps and "
        f"{three_digits(seconds)} times the seconds, at {three_digits(rate)} times the examples a second."
    )


def rate_of(arm: dict) -> float:
    """Examples a second, 0 before the first step."""
    return arm["batch"] * arm["done"] / arm["seconds"] if arm["seconds"] else 0.0


def lead(losses: list[float | int]) -> str:
    """Who leads by what, of the losses as they are shown.

    Example:
        >>> lead([2.314, 2.404]), lead([2.0, 2.001])
        ('the dense model leads by 0.09 nats a byte', 'neither leads')
    """
    dense, moe = map(hundredths, losses)
    if dense == moe:
        return "neither leads"
    return f"{NAMES[ARMS[moe < dense]]} leads by {say_loss(abs(dense - moe) / 100)} nats a byte"


def hundredths(value: float | int) -> int:
    """Whole hundredths, a half upwards, as the browser has it."""
    return math.floor(value * 100 + 0.5)


def say_loss(loss: float | int) -> str:
    """A loss with two decimals, a half upwards.

    Example:
        >>> say_loss(2.125), say_loss(2)
        ('2.13', '2.00')
    """
    whole, rest = divmod(hundredths(loss), 100)
    return f"{whole}.{rest:02d}"


def say_span(seconds: float | int) -> str:
    """A span of time with the unit in which it reads best.

    Example:
        >>> say_span(2.25), say_span(34.4), say_span(1980)
        ('2.3 s', '34 s', '33 min')
    """
    if seconds < 10:
        tenths = math.floor(seconds * 10 + 0.5)
        return f"{tenths // 10}.{tenths % 10} s"
    return f"{math.floor(seconds + 0.5)} s" if seconds < 300 else f"{math.floor(seconds / 60 + 0.5):,} min"


def many_steps(steps: int) -> str:
    """A number of steps in words."""
    return f"{steps:,} {'step' if steps == 1 else 'steps'}"


def capital(sentence: str) -> str:
    """A sentence with a capital letter."""
    return sentence[:1].upper() + sentence[1:]
