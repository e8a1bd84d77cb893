"""Train the small language model; a kill at any moment loses at most the steps since the last checkpoint."""

import dataclasses
import math
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from moe_lab.balance import BiasBalancer, measure_balance
from moe_lab.checkpoint import (
    latest_checkpoint,
    publish_folder,
    read_config,
    read_tensors,
    remove_older,
    write_json,
)
from moe_lab.corpus import Corpus, draw_batch, standard_library
from moe_lab.lm import LanguageModel, LanguageModelConfig, load_model, option


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed. Every draw of a step follows from ``seed`` and the step alone.

    Raises ValueError, with the name and the value, for numbers that cannot be.
    """

    steps: int = option(1800, "optimiser steps in all")
    batch: int = option(16, "texts a step, each as long as the context")
    learning_rate: float = option(3e-3, "highest learning rate")
    warmup: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's weight decay, matrices only")
    seed: int = option(0, "seed of the weights and of every batch")
    validate_every: int = option(100, "steps between validations")
    checkpoint_every: int = option(100, "steps between checkpoints: the most that a kill can cost")

    def __post_init__(self):
        for name in ("steps", "batch", "validate_every", "checkpoint_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        for name in ("warmup", "seed"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be a finite number above 0, got {self.learning_rate!r}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a finite number of at least 0, got {self.weight_decay!r}")


@dataclass
class History:
    """What happened so far: one loss a step (nats a byte), validation losses, loads, and where it ran."""

    losses: list[float] = field(default_factory=list)
    validation: list[list] = field(default_factory=list)  # [step, nats a byte]
    loads: list[list] = field(default_factory=list)  # [step, loads by layer and expert]
    seconds: float = 0.0
    corpus: str = ""
    machine: dict[str, str | int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)


class Trainer:
    """A model, its optimiser and its history, moved on a step at a time.

    Example:
        >>> tiny = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4)
        >>> trainer = Trainer(tiny, TrainConfig(steps=2, batch=2))
        >>> round(trainer.step(), 3)  # an untrained model knows nothing: log(256)
        5.545
    """

    def __init__(self, model_config: LanguageModelConfig, config: TrainConfig, corpus: Corpus | None = None):
        self.config = config
        self.corpus = corpus or standard_library()
        torch.manual_seed(config.seed)
        self.model = LanguageModel(model_config).train()
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
        self.history = History(corpus=self.corpus.fingerprint, machine=describe_machine())

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a tenth."""
        if step < self.config.warmup:
            return self.config.learning_rate * (step + 1) / self.config.warmup
        done = (step - self.config.warmup) / max(1, self.config.steps - self.config.warmup)
        return self.config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))

    def step(self) -> float:
        """One optimiser step; returns its loss in nats a byte."""
        started, number = time.perf_counter(), self.history.steps
        # All chance of a step hangs on (seed, step), so a resumed run repeats an uninterrupted one.
        draw = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        now, after = draw_batch(self.corpus.train, self.config.batch, self.model.config.context, draw)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        loss = F.cross_entropy(self.model(now).flatten(0, 1), after.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        for layer in self.model.layers:
            if isinstance(layer.balancer, BiasBalancer):
                layer.balancer.update(layer.routing.load)
        self.history.losses.append(loss.item())
        self.history.seconds += time.perf_counter() - started
        return self.history.losses[-1]

    def loads(self) -> list[list[int]]:
        """Loads of the last step, layer by expert."""
        return [layer.routing.load.tolist() for layer in self.model.layers]

    @torch.no_grad()
    def validate(self, batches: int = 8) -> float:
        """Mean loss over the same held-out windows every time, in nats a byte."""
        draw = torch.Generator().manual_seed(12345)
        self.model.eval()
        losses = []
        for _ in range(batches):
            now, after = draw_batch(self.corpus.validation, self.config.batch, self.model.config.context, draw)
            losses.append(F.cross_entropy(self.model(now).flatten(0, 1), after.flatten()).item())
        self.model.train()
        return sum(losses) / batches

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder: model, optimiser, configs, history."""
        self.model.save(folder)
        save_file(self._optimizer_tensors(), folder / "optimizer.safetensors")
        write_json(folder / "train.json", dataclasses.asdict(self.config))
        write_json(folder / "history.json", dataclasses.asdict(self.history))

    @classmethod
    def resume(cls, folder: Path, corpus: Corpus | None = None) -> "Trainer":
        """Continue from a checkpoint folder; raises ValueError for a damaged one or another corpus."""
        model = load_model(folder)
        trainer = cls(model.config, read_config(TrainConfig, folder / "train.json"), corpus)
        trainer.model.load_state_dict(model.state_dict())
        history = read_config(History, folder / "history.json")
        if history.corpus != trainer.corpus.fingerprint:
            raise ValueError(
                f"{folder} was trained on a text with fingerprint {history.corpus}, this machine's "
                f"{trainer.corpus.source} has {trainer.corpus.fingerprint}; resume with the same Python version"
            )
        trainer.history = history
        tensors = read_tensors(folder / "optimizer.safetensors")
        for name, parameter in trainer.model.named_parameters():
            names = {key: f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if not all(tensor in tensors for tensor in names.values()):
                raise ValueError(f"{folder / 'optimizer.safetensors'} lacks the state of parameter {name}")
            trainer.optimizer.state[parameter] = {key: tensors[tensor] for key, tensor in names.items()}
        return trainer

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{key}/{name}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }


def train(model_config: LanguageModelConfig, config: TrainConfig, out: Path, corpus: Corpus | None = None) -> Path:
    """Train to the end, or go on from the newest checkpoint in ``out``; returns the last checkpoint's folder.

    Shows a progress bar with loss and load. Raises ValueError where ``out`` holds a run with another config.
    """
    newest = latest_checkpoint(out)
    if newest is None:
        trainer = Trainer(model_config, config, corpus)
    else:
        trainer = Trainer.resume(newest, corpus)
        refuse_other_config(trainer, model_config, config, out)
        tqdm.write(f"going on from {newest} at step {trainer.history.steps} of {config.steps}")
    saved_at = trainer.history.steps if newest else -1
    bar = tqdm(total=config.steps, initial=trainer.history.steps, unit="step", desc="training")
    try:
        while trainer.history.steps < config.steps:
            trainer.step()
            bar.update()
            report(trainer, bar)
            if trainer.history.steps % config.checkpoint_every == 0:
                checkpoint(trainer, out)
                saved_at = trainer.history.steps
    finally:  # also on Ctrl-C: the bar closes, and the finished steps are kept
        bar.close()
        if trainer.history.steps > max(saved_at, 0):
            checkpoint(trainer, out)
    return latest_checkpoint(out)


def report(trainer: Trainer, bar: tqdm) -> None:
    """Record load and validation loss when due, and keep the bar's figures fresh."""
    history, config = trainer.history, trainer.config
    loads = trainer.loads()
    if history.steps % config.validate_every == 0 or history.steps == config.steps:
        history.loads.append([history.steps, loads])
        history.validation.append([history.steps, trainer.validate()])
    uneven = max(measure_balance(torch.tensor(load)).max_over_mean for load in loads)
    figures = {"loss": f"{history.losses[-1]:.3f}", "busiest/mean": f"{uneven:.2f}"}
    if history.validation:
        figures["validation"] = f"{history.validation[-1][1]:.3f}"
    bar.set_postfix(figures, refresh=False)


def checkpoint(trainer: Trainer, out: Path) -> Path:
    """Write the checkpoint whole or not at all, then drop the older ones."""
    folder = publish_folder(out, f"step-{trainer.history.steps:06d}", trainer.save)
    remove_older(out, folder)
    return folder


def refuse_other_config(trainer: Trainer, model_config: LanguageModelConfig, config: TrainConfig, out: Path) -> None:
    """A run goes on with the config that it began with, or not at all."""
    for asked, begun in ((model_config, trainer.model.config), (config, trainer.config)):
        for name, value in dataclasses.asdict(asked).items():
            if value != getattr(begun, name):
                raise ValueError(
                    f"{out} holds a run with {name}={getattr(begun, name)!r}, asked for {name}={value!r}; "
                    "give the same value, another --out, or --fresh to start over"
                )


def export(run: Path, folder: Path) -> float:
    """Write the newest model of a run for readers: weights rounded to float16, its curve, no optimiser.

    Returns the validation loss of the rounded model, which the record holds too. Raises ValueError for a run without
    a checkpoint.
    """
    newest = latest_checkpoint(run)
    if newest is None:
        raise ValueError(f"run {run} holds no checkpoint")
    trainer = Trainer.resume(newest)
    trainer.model.save(folder, dtype=torch.float16)
    trainer.model.load_state_dict(load_model(folder).state_dict())
    record = {
        "train": dataclasses.asdict(trainer.config),
        "corpus": trainer.corpus.source,
        "validation_of_rounded_weights": trainer.validate(),
        "history": dataclasses.asdict(trainer.history),
    }
    write_json(folder / "training.json", record)
    return record["validation_of_rounded_weights"]


def start_over(out: Path) -> None:
    """Delete the checkpoints in ``out``, and nothing else."""
    for folder in out.glob("step-*"):
        shutil.rmtree(folder)


def describe_machine() -> dict[str, str | int]:
    """What a reader must know to compare losses and seconds."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }
