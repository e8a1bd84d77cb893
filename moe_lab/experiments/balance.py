"""One small model trained with every balancing method from the same seeds, and judged under every inference rule.

``python -m moe_lab experiment balance`` trains what is missing in its folder and writes the record, in three quarters
of an hour on two cores. Lessons 03 and 04 and the widget *Collapse and rescue* read the one in ``data/training/``.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from moe_lab.balance import Balance, measure_balance
from moe_lab.checkpoint import read_json, write_json
from moe_lab.checks import check_whole
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus, draw_batch, standard_library
from moe_lab.experiments.runner import time_steps
from moe_lab.folders import DATA
from moe_lab.lm import LanguageModel
from moe_lab.paths import check_new_or_ours
from moe_lab.routers import find_method, options_of
from moe_lab.train import Trainer, describe_machine

SEEDS = (0, 1, 2)
GROUP = 64  # tokens in a row that balanced_causal balances: one text
EVERY = 10  # steps between two samples of the loads
RECORD = DATA / "training" / "balance.json"
BEGINS = '{\n  "model":'  # such a record, and so what a new one may replace
WEIGHTS = {"score": "sigmoid", "renormalise": True}  # the same for every method, so that only the selection differs
ON_SCORES = {**WEIGHTS, "objective": "score"}
MODEL = LanguageModelConfig(d_model=64, num_layers=2, context=64, d_expert=64, method="top_k", bias_rate=0.0)
TRAIN = TrainConfig(steps=600, batch=32, warmup=30)


@dataclass(frozen=True)
class Run:
    """One method: what it changes in the model and in the training, and how its model is then judged."""

    label: str
    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    rules: tuple[str, ...] = ("own", "balanced")

    def configs(self, seed: int, steps: int | None = None) -> tuple[LanguageModelConfig, TrainConfig]:
        """The two configs of this run with one seed."""
        model = dataclasses.replace(MODEL, **{"router_options": WEIGHTS, **self.model})
        return model, dataclasses.replace(TRAIN, seed=seed, steps=steps or TRAIN.steps, **self.train)


LEARNED = ("own", "top_k", "balanced", "balanced_causal")  # rules for a model that has learned a bias
BATCH = ("own", "prices", "top_k", "balanced", "balanced_causal")  # and was trained by another method

RUNS = {
    "none": Run("no balancing"),
    "random": Run("random experts", {"method": "random"}, rules=("own",)),
    "noisy_top_k": Run("noisy top-k", {"method": "noisy_top_k", "eval_method": "top_k"}, rules=("own",)),
    "z_loss": Run("z-loss 1e-3", {}, {"z_coefficient": 1e-3}),
    "switch_aux_1e-3": Run("auxiliary loss 1e-3", {}, {"aux_loss": "switch_aux", "aux_coefficient": 1e-3}),
    "switch_aux_1e-2": Run("auxiliary loss 1e-2", {}, {"aux_loss": "switch_aux", "aux_coefficient": 1e-2}),
    "switch_aux_1e-1": Run("auxiliary loss 1e-1", {}, {"aux_loss": "switch_aux", "aux_coefficient": 1e-1}),
    "sequence_aux_1e-2": Run("sequence loss 1e-2", {}, {"aux_loss": "sequence_aux", "aux_coefficient": 1e-2}),
    "sign_1e-3": Run("bias, sign 1e-3", {"bias_rate": 1e-3}, rules=LEARNED),
    "sign_1e-2": Run("bias, sign 1e-2", {"bias_rate": 1e-2}, rules=LEARNED),
    "quantile": Run("bias, quantile", {"balancer": "quantile", "bias_rate": 1.0}, rules=LEARNED),
    "bip": Run("bias, BIP", {"balancer": "bip", "bias_rate": 1.0}, rules=LEARNED),
    "midpoint": Run("bias, midpoint prices", {"balancer": "midpoint", "bias_rate": 0.5}, rules=LEARNED),
    "capacity_drop": Run(
        "capacity 1.0, drop", {"method": "capacity_top_k", "router_options": WEIGHTS}, rules=("own", "top_k")
    ),
    "capacity_reroute": Run(
        "capacity 1.0, reroute",
        {"method": "capacity_top_k", "router_options": {**WEIGHTS, "overflow": "reroute"}},
        rules=("own", "top_k"),
    ),
    "expert_choice": Run("expert choice", {"method": "expert_choice"}, rules=("own", "top_k")),
    "grouped_experts": Run(
        "grouped experts", {"method": "grouped_experts", "router_options": {**WEIGHTS, "num_groups": 2}}, rules=("own",)
    ),
    "sinkhorn": Run("sinkhorn", {"method": "sinkhorn"}, rules=("own", "top_k")),
    "balanced": Run(
        "balanced",
        {"method": "balanced", "balancer": "midpoint", "bias_rate": 0.5, "router_options": ON_SCORES},
        rules=BATCH,
    ),
    "balanced_causal": Run(
        "balanced, causal",
        {
            "method": "balanced_causal",
            "balancer": "midpoint",
            "bias_rate": 0.5,
            "router_options": {**ON_SCORES, "group_size": GROUP},
        },
        rules=BATCH,
    ),
}


@contextlib.contextmanager
def judged_by(model: LanguageModel, rule: str) -> Iterator[None]:
    """Route the model by another rule than it was trained with, for a while.

    "own": as trained; "prices": top_k with the learned bias; "top_k": without it; "balanced", "balanced_causal":
    exactly even in each batch, or in each 64 tokens.
    """
    was = [(layer.eval_method, dict(layer.router_options), layer.balancer) for layer in model.layers]
    try:
        for layer in model.layers:
            if rule != "own":
                layer.eval_method = "top_k" if rule == "prices" else rule
                known = options_of(find_method(layer.eval_method))
                options = {**ON_SCORES, "group_size": GROUP}
                layer.router_options = {name: value for name, value in options.items() if name in known}
            if rule == "top_k":
                layer.balancer = None
        yield
    finally:
        for layer, (method, options, balancer) in zip(model.layers, was, strict=True):
            layer.eval_method, layer.router_options, layer.balancer = method, options, balancer


@torch.no_grad()
def judge(model: LanguageModel, corpus: Corpus, rule: str, batches: int = 24) -> dict[str, float]:
    """Held-out loss (nats a byte) and balance of a model under a rule, means over batches and layers."""
    draw, losses, balances = torch.Generator().manual_seed(12345), [], []
    torch.manual_seed(12345)  # for routers that draw
    with judged_by(model.eval(), rule):
        for _ in range(batches):
            now, after = draw_batch(corpus.validation, TRAIN.batch, model.config.context, draw)
            losses.append(F.cross_entropy(model(now).flatten(0, 1), after.flatten()).item())
            balances += [measure_balance(layer.routing) for layer in model.layers]
    return {"loss": statistics.fmean(losses), **_mean(balances)}


def _mean(balances: list[Balance]) -> dict[str, float]:
    names = ("max_violation", "cv", "noise_floor_cv", "dead", "dropped_fraction", "unserved_fraction")
    return {name: statistics.fmean(getattr(balance, name) for balance in balances) for name in names}


def configs_of(name: str, seed: int, steps: int | None = None) -> dict[str, dict]:
    """What a run was trained with, as its record holds it."""
    model, train = RUNS[name].configs(seed, steps)
    return {"model": dataclasses.asdict(model), "train": dataclasses.asdict(train)}


def train_one(name: str, seed: int, corpus: Corpus, steps: int | None = None) -> dict:
    """Train one method with one seed; what the record keeps of it."""
    run = RUNS[name]
    trainer = Trainer(*run.configs(seed, steps), corpus)
    trace, loads = [], []
    for _ in tqdm(range(trainer.config.steps), desc=f"{name}, seed {seed}", unit="step", leave=False):
        trainer.step()
        if trainer.history.steps % EVERY == 0:
            step = _mean([measure_balance(layer.routing) for layer in trainer.model.layers])
            step["loss"] = statistics.fmean(trainer.history.losses[-EVERY:])
            trace.append({"step": trainer.history.steps, **{name: round(value, 5) for name, value in step.items()}})
            loads.append(trainer.loads())
    return {
        "name": name,
        "label": run.label,
        "seed": seed,
        "configs": configs_of(name, seed, steps),
        "trace": trace,
        "loads": loads if seed == SEEDS[0] else [],  # one seed is enough to look at
        "judged": {rule: judge(trainer.model, corpus, rule) for rule in run.rules},
    }


def step_times(names: list[str], corpus: Corpus, rounds: int = 40) -> dict[str, float]:
    """Median milliseconds of a training step for each method, the methods taking turns, from the same start."""
    trainers = {name: Trainer(*RUNS[name].configs(SEEDS[0]), corpus) for name in names}
    return time_steps(trainers, rounds - rounds // 8, warmup=rounds // 8)


def chosen_runs(only: str = "") -> list[str]:
    """The methods of the grid, or the one that was asked for."""
    if only and only not in RUNS:
        raise ValueError(f"only must be one of {', '.join(RUNS)}; got {only!r}")
    return [only] if only else list(RUNS)


def run_missing(folder: Path, corpus: Corpus, steps: int | None = None, only: str = "") -> list[dict]:
    """Train every method and seed that ``folder`` does not hold yet; all their records. A kill costs one run."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, seed in tqdm([(name, seed) for seed in SEEDS for name in chosen_runs(only)], desc="runs", unit="run"):
        path = folder / f"{name}-{seed}.json"
        if not path.is_file():
            write_json(path, train_one(name, seed, corpus, steps))
        record = read_json(path)
        if record.get("configs") != configs_of(name, seed, steps):
            raise ValueError(f"{path} holds a run with other settings than were asked for; give another --out")
        records.append(record)
    return records


def write_record(folder: Path, path: Path, steps: int | None = None, only: str = "") -> Path:
    """Train what is missing, time a step of every method, and write it all into one file.

    Raises ValueError for a file at ``path`` that is no such record.
    """
    check_new_or_ours(path, BEGINS)
    if steps is not None:
        check_whole("steps", steps, EVERY)
    corpus = standard_library()
    record = {
        "model": dataclasses.asdict(MODEL),
        "train": dataclasses.asdict(dataclasses.replace(TRAIN, steps=steps or TRAIN.steps)),
        "corpus": corpus.fingerprint,
        "machine": describe_machine(),
        "runs": run_missing(folder, corpus, steps, only),
        "step_ms": step_times(chosen_runs(only), corpus),
    }
    write_json(path, record)
    return path
