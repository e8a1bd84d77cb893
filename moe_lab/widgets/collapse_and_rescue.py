"""Collapse and rescue: where the assignments of a training run went, for two methods side by side."""

from pathlib import Path

import torch
import traitlets

from moe_lab.balance import measure_balance
from moe_lab.checkpoint import read_json
from moe_lab.checks import check_whole
from moe_lab.experiments.balance import RECORD, RUNS
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.route_one_batch import check_range

GROUPS = ("no balancing", "losses", "biases", "rules")


class CollapseAndRescue(LabWidget):
    """Show every expert's share of the assignments over a training run, for two balancing methods on equal scales.

    ``record`` is what ``python -m moe_lab experiment balance`` writes (the shipped one by default); of its runs, those
    that kept their loads are shown. ``method`` and ``compare`` are names of runs, ``step`` a step whose loads were
    kept. A share is of all assignments that were asked for, batch * context * top_k: what is missing to 1 was dropped.
    ``chance`` is the mean max violation of the run "random", what fair lots leave; -1 where there is no such run.

    Example:
        >>> sizes = {"model": {"top_k": 1, "context": 4}, "train": {"batch": 2}}
        >>> trace = [{"step": 10, "loss": 5.5}]
        >>> uneven = {"name": "none", "label": "no balancing", "trace": trace, "loads": [[[6, 0, 2, 0]]]}
        >>> even = {"name": "balanced", "label": "balanced", "trace": trace, "loads": [[[2, 2, 2, 2]]]}
        >>> CollapseAndRescue({**sizes, "runs": [uneven, even]})  # doctest: +NORMALIZE_WHITESPACE
        CollapseAndRescue: Step 10, layer 0. No balancing: expert 0 takes 75 % of all assignments, 2 of 4 experts get
        none. Balanced: every expert takes 25 %.

    Raises ValueError for a record without loads or with runs that do not fit together, an unknown method, and a layer
    or step that the record does not have.
    """

    _esm = Path(__file__).with_name("collapse_and_rescue.js")
    _css = Path(__file__).with_name("collapse_and_rescue.css")
    of_the_reader = ("method", "compare", "layer", "step")

    runs = traitlets.List(traitlets.Dict()).tag(sync=True)  # name, label, group, losses, loads as `pack` writes them
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    num_experts = traitlets.Int().tag(sync=True)
    asked = traitlets.Int().tag(sync=True)
    chance = traitlets.Float(-1.0).tag(sync=True)
    method = traitlets.Unicode().tag(sync=True)
    compare = traitlets.Unicode().tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    step = traitlets.Int().tag(sync=True)

    def __init__(
        self,
        record: dict | None = None,
        method: str | None = None,
        compare: str | None = None,
        layer: int = 0,
        step: int | None = None,
    ):
        record = read_json(RECORD) if record is None else record
        shown = [run for run in record["runs"] if run["loads"]]
        asked = record["train"]["batch"] * record["model"]["context"] * record["model"]["top_k"]
        steps, self._layers, num_experts = check_runs(shown, asked)
        self._runs = {run["name"]: run for run in shown}
        names = list(self._runs)
        method, compare = names[0] if method is None else method, names[-1] if compare is None else compare
        for argument, name in (("method", method), ("compare", compare)):
            if name not in names:
                raise ValueError(f"{argument} must be one of {', '.join(names)}; got {name!r}")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"step must be one of {steps[0]}..{steps[-1]} whose loads were kept, got {step}")
        super().__init__(
            runs=[_as_sent(run) for run in shown],
            steps=steps,
            num_experts=num_experts,
            asked=asked,
            chance=_max_violation_by_chance(self._runs.get("random")),
            method=method,
            compare=compare,
            layer=check_whole("layer", layer, 0, self._layers - 1),
            step=step,
        )

    def tally(self, method: str | None = None) -> dict[str, float | int]:
        """What one run shows at the present layer and step; the method on the left if none is named.

        ``busiest`` and its ``share`` of what was asked for in whole per cent, ``even`` (whether all loads are equal),
        ``dead`` experts, ``dropped`` assignments, ``max_violation`` of the load, ``loss`` (mean of the steps since the
        sample before, nats a byte).
        """
        run = self._runs[self.method if method is None else method]
        sample = self.steps.index(self.step)
        load = run["loads"][sample][self.layer]
        most = max(load)
        return {
            "busiest": load.index(most),
            "share": _per_cent(most, self.asked),
            "even": 0 < most == min(load),
            "dead": load.count(0),
            "dropped": self.asked - sum(load),
            "max_violation": measure_balance(torch.tensor(load)).max_violation,
            "loss": round(run["trace"][sample]["loss"], 4),
        }

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        left, right = self._finding(self.method, " of all assignments"), self._finding(self.compare, "")
        return f"Step {self.step}, layer {self.layer}. {left}. {right}."

    def __repr__(self) -> str:
        return f"CollapseAndRescue: {self.summary()}"

    def _finding(self, name: str, of: str) -> str:
        found, label = self.tally(name), self._runs[name]["label"]
        dead, dropped = found["dead"], found["dropped"]
        who = "every expert" if found["even"] else f"expert {found['busiest']}"
        parts = [f"{label[:1].upper()}{label[1:]}: {who} takes {found['share']} %{of}"]
        if dead:
            parts.append(f"{dead} of {self.num_experts} experts {'gets' if dead == 1 else 'get'} none")
        elif not found["even"]:
            parts.append("every expert gets some")
        if dropped:
            parts.append(f"{_per_cent(dropped, self.asked) or 'under 1'} % are dropped")
        return ", ".join(parts)

    @traitlets.validate("method", "compare")
    def _check_method(self, proposal):
        if proposal["value"] not in self._runs:
            name = proposal["trait"].name
            raise ValueError(f"{name} must be one of {', '.join(self._runs)}; got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("layer")
    def _check_layer(self, proposal):
        check_range("layer", proposal["value"], 0, self._layers - 1)
        return proposal["value"]

    @traitlets.validate("step")
    def _check_step(self, proposal):
        if proposal["value"] not in self.steps:
            raise ValueError(f"step must be one of {self.steps}, got {proposal['value']}")
        return proposal["value"]


def check_runs(runs: list[dict], asked: int) -> tuple[list[int], int, int]:
    """Steps, layers and experts that all runs share; refuses runs that differ in them, or have more than was asked."""
    if not runs:
        raise ValueError("record must hold a run with loads, it has none")
    wanted = None
    for run in runs:
        steps, loads = [sample["step"] for sample in run["trace"]], torch.tensor(run["loads"])
        found = (steps, *loads.shape[1:])
        wanted = wanted or found
        if loads.dim() != 3 or len(loads) != len(steps) or found != wanted:
            raise ValueError(
                f"record must hold loads (samples, layers, experts) for the same steps in every run, got "
                f"{tuple(loads.shape)} for {len(steps)} steps in {run['name']!r}"
            )
        if int(loads.sum(dim=2).max()) > asked:
            raise ValueError(f"record must hold loads of at most {asked} assignments, got more in {run['name']!r}")
    return wanted


def group_of(name: str) -> str:
    """The kind of balancing that a run of the grid trains with: one of `GROUPS`.

    Example:
        >>> group_of("none"), group_of("z_loss"), group_of("quantile"), group_of("balanced")
        ('no balancing', 'losses', 'biases', 'rules')

    Raises ValueError for a name that the grid does not have.
    """
    if name not in RUNS:
        raise ValueError(f"record must hold runs of the grid, {', '.join(RUNS)}; got {name!r}")
    if "method" in RUNS[name].model:
        return "rules"
    if "bias_rate" in RUNS[name].model:
        return "biases"
    return "losses" if RUNS[name].train else "no balancing"


def pack(loads: list[list[int]]) -> str:
    """Loads, samples by experts, as hexadecimal digits, as many for each as the largest of them has.

    A third of the characters that a JSON list would take, and still exact.

    Example:
        >>> pack([[255, 0], [16, 1]])
        'ff001001'
    """
    width = len(f"{max(map(max, loads)):x}")
    return "".join(f"{count:0{width}x}" for load in loads for count in load)


def _as_sent(run: dict) -> dict[str, object]:
    by_layer = [[sample[layer] for sample in run["loads"]] for layer in range(len(run["loads"][0]))]
    return {
        "name": run["name"],
        "label": run["label"],
        "group": group_of(run["name"]),
        "losses": [round(sample["loss"], 4) for sample in run["trace"]],
        "loads": [pack(loads) for loads in by_layer],
    }


def _max_violation_by_chance(run: dict | None) -> float:
    """The mean over samples and layers of a run with random experts, or -1 without one."""
    if run is None:
        return -1.0
    found = [measure_balance(torch.tensor(load)).max_violation for sample in run["loads"] for load in sample]
    return round(sum(found) / len(found), 4)


def _per_cent(part: int, whole: int) -> int:
    """Whole per cent, a half upwards, as the browser has it."""
    return (200 * part + whole) // (2 * whole)
