"""The record of the grid `dense_vs_moe`: how it is written, and what is read out of it."""

import dataclasses
import time
from pathlib import Path

from moe_lab.checkpoint import read_json, write_json
from moe_lab.corpus import standard_library
from moe_lab.experiments.dense_vs_moe import PARTS, PRESETS, Preset, architectures, make_runs
from moe_lab.experiments.ratios import Ratios, compare_arms
from moe_lab.experiments.runner import Run, run_missing, time_steps
from moe_lab.experiments.scaling_law import Fit, fit_law
from moe_lab.folders import DATA
from moe_lab.paths import check_new_or_ours
from moe_lab.train import Trainer, check_device, describe_machine

RECORD = DATA / "training" / "dense_vs_moe.json"
BEGINS = '{\n  "preset":'  # such a record, and so what a new one may replace
ROUNDS = 24  # in which every arm makes one step on the clock


def write_record(
    preset: str, folder: Path, path: Path, parts: tuple[str, ...] = PARTS, workers: int | None = None
) -> Path:
    """Train what is missing of these parts, time the steps, and write everything into one file.

    Raises ValueError for an unknown preset or part, for runs in ``folder`` that were made with other settings, and for
    a file at ``path`` that is no such record.
    """
    check_new_or_ours(path, BEGINS)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    grid = PRESETS[preset]
    check_device(grid.device)
    workers = 1 if grid.device == "cuda" else workers
    runs = {part: make_runs(grid, part) for part in parts}
    records = iter(run_missing([run for part in parts for run in runs[part]], folder, workers))
    record = {
        "preset": preset,
        "grid": dataclasses.asdict(grid),
        "date": time.strftime("%Y-%m-%d"),
        "corpus": standard_library().fingerprint,
        "machine": describe_machine(),
        **{part: [next(records) for _ in runs[part]] for part in parts},
        "step_ms": time_arms(race_arms(grid)),
        "architecture_ms": time_arms(architecture_arms(grid)) if "architectures" in parts else {},
    }
    write_json(path, record)
    return path


def race_arms(grid: Preset) -> dict[str, Run]:
    """A run of each racer."""
    return {run.name.split("-")[1]: run for run in make_runs(grid, "race")}


def architecture_arms(grid: Preset) -> dict[str, Run]:
    """A run of each architecture."""
    names = architectures(1)
    return dict(zip(names, make_runs(grid, "architectures")[: len(names)], strict=True))


def time_arms(arms: dict[str, Run]) -> dict[str, float]:
    """Median milliseconds of a step of each arm on one thread, the arms taking turns, after the first few."""
    corpus = standard_library()
    trainers = {name: Trainer(run.model, run.train, corpus) for name, run in arms.items()}
    return time_steps(trainers, ROUNDS - ROUNDS // 4, warmup=ROUNDS // 4, threads=1)


def read_record(path: Path = RECORD) -> dict:
    """Read the record of a grid; raises FileNotFoundError or ValueError, with the path."""
    record = read_json(path)
    for field in ("preset", "grid", "machine", "step_ms"):
        if field not in record:
            raise ValueError(f"{path} lacks the field {field!r}")
    try:
        describe(record)  # which reads all of it but the law's runs
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is no record of a grid ({type(error).__name__}: {error})") from error
    return record


def race(record: dict) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """Seed -> arm -> (steps, last loss) of its runs, the shortest first."""
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for run in record["race"]:
        if "loss" in run:
            train, arm = run["configs"]["train"], run["name"].split("-")[1]
            found.setdefault(train["seed"], {}).setdefault(arm, []).append((train["steps"], run["loss"]))
    return {seed: {arm: sorted(runs) for arm, runs in arms.items()} for seed, arms in sorted(found.items())}


def race_ratios(record: dict) -> dict[int, Ratios]:
    """Seed -> the three ratios of the dense run to the MoE runs that reach its last loss."""
    times = record["step_ms"]["dense"], record["step_ms"]["moe"]
    return {seed: compare_arms(arms["dense"][-1], arms["moe"], times) for seed, arms in race(record).items()}


def fit_scaling(record: dict, resamples: int = 200) -> Fit:
    """The law of Clark et al. fitted to the runs of ``scaling``; N is what the run of one expert has."""
    runs = [run for run in record["scaling"] if "loss" in run]
    dense = {
        run["configs"]["model"]["d_model"]: run["total_params"]
        for run in runs
        if run["configs"]["model"]["num_experts"] == 1
    }
    params = [dense[run["configs"]["model"]["d_model"]] for run in runs]
    experts = [run["configs"]["model"]["num_experts"] for run in runs]
    return fit_law(params, experts, [run["loss"] for run in runs], resamples)


def architecture_table(record: dict) -> list[dict]:
    """A row an architecture: losses of its seeds, parameters, dropped assignments, and milliseconds a step."""
    names = list(architectures(1))
    rows: dict[str, dict] = {}
    for run in record["architectures"]:
        name = names[int(run["name"].split("-")[1])]
        row = rows.setdefault(name, {"name": name, "losses": [], "step_ms": record["architecture_ms"][name]})
        if "loss" in run:
            row["losses"].append(run["loss"])
            row.update(total_params=run["total_params"], active_params=run["active_params"], dropped=run["dropped"])
    return list(rows.values())


def describe(record: dict) -> str:
    """A record in a few lines of text: what raced, the three ratios, and the architectures."""
    lines = [f"grid {record['preset']!r}, {record['date']}, torch {record['machine']['torch']}"]
    for seed, arms in race(record).items() if "race" in record else ():
        runs = "; ".join(f"{arm} {', '.join(f'{loss:.3f} at {steps}' for steps, loss in arms[arm])}" for arm in arms)
        lines.append(f"race, seed {seed}: {runs}")
    for seed, ratios in race_ratios(record).items() if "race" in record else ():
        lines.append(
            f"seed {seed}: steps x {ratios.bound}{ratios.steps:.2f}, examples/s x {ratios.examples:.2f}, "
            f"seconds x {ratios.bound}{ratios.seconds:.2f}"
        )
    for row in architecture_table(record) if "architectures" in record else ():
        losses = ", ".join(f"{loss:.3f}" for loss in row["losses"]) or "diverged"
        lines.append(
            f"{row['name']}: {losses}; {row.get('total_params', 0):,} parameters, {row['step_ms']:.1f} ms a step"
        )
    return "\n".join(lines)
