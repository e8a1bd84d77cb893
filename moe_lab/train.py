"""Train the small language model; a kill at any moment loses at most the steps since the last checkpoint."""

import contextlib
import dataclasses
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from moe_lab import losses
from moe_lab.balance import measure_balance
from moe_lab.checkpoint import (
    latest_checkpoint,
    publish_folder,
    read_config,
    read_json,
    read_tensors,
    remove_older,
    start_over,
    step_name,
    write_json,
    write_tensors,
)
from moe_lab.checks import check_fits
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus, draw_batch, standard_library
from moe_lab.lm import LanguageModel, load_model
from moe_lab.routers.registry import NotFinite
from moe_lab.sharded import is_sharded, load_training, optimizer_tensors
from moe_lab.types import Routing
from moe_lab.writing import alone


@dataclass
class History:
    """What happened so far: one loss a step (nats a byte), validation losses, loads, and where it ran."""

    losses: list[float] = field(default_factory=list)
    validation: list[list] = field(default_factory=list)  # [step, nats a byte]
    loads: list[list] = field(default_factory=list)  # [step, loads by layer and expert]
    seconds: float = 0.0
    corpus: str = ""
    machine: dict[str, str | int] = field(default_factory=dict)

    def __post_init__(self):
        numbers = isinstance(self.losses, list) and all(isinstance(loss, float) for loss in self.losses)
        if not numbers or not all(map(math.isfinite, self.losses)):
            raise ValueError("losses must be a list of finite numbers")
        kinds = {"validation": list[list[float]], "loads": list[list], "seconds": float, "corpus": str}
        for name, kind in (kinds | {"machine": dict[str, str | int]}).items():
            check_fits(name, getattr(self, name), kind)

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)


def check_device(device: str) -> None:
    """Refuse a device that is not here, with a ValueError."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' needs a CUDA device, and torch sees none here; use device 'cpu'")


class Diverged(ValueError):
    """The loss, a gradient or a weight stopped being finite."""


class Trainer:
    """A model, its optimiser and its history, moved on a step at a time.

    Example:
        >>> tiny = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4)
        >>> trainer = Trainer(tiny, TrainConfig(steps=2, batch=2))
        >>> round(trainer.step(), 3)  # an untrained model knows nothing: log(256)
        5.545
    """

    group = None  # the ranks that share a batch; none but this process
    leads = True  # whether this process writes files and speaks, where several train

    def __init__(self, model_config: LanguageModelConfig, config: TrainConfig, corpus: Corpus | None = None):
        self.config = config
        self.corpus = corpus or standard_library()
        check_device(config.device)
        torch.manual_seed(config.seed)
        self.model = LanguageModel(model_config).to(config.device).train()
        self.forward = self.spread()
        groups = [group for group in self.parameter_groups() if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.history = History(corpus=self.corpus.fingerprint, machine=describe_machine())

    def spread(self) -> Callable[[Tensor], Tensor]:
        """What calls the model: the model. A trainer over several ranks spreads it first."""
        return self.model

    def parameter_groups(self) -> list[dict]:
        """The optimiser's groups: weight decay is for matrices only."""
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        return [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

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
        now, after = self.draw(self.corpus.train, draw)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        loss = self.loss(now, after)
        self.optimizer.zero_grad()
        (loss + self._balancing_loss(now.shape[0])).backward()
        nats, length = self.mean(loss.item()), self.clip(1.0)
        if not math.isfinite(nats) or not math.isfinite(length):
            self._diverged(f"loss {nats}, gradient norm {length}{self._first_not_finite()}")
        self.optimizer.step()
        for layer in self.model.layers:
            layer.update_balancer(self.group)
        self.history.losses.append(nats)
        self.history.seconds += time.perf_counter() - started
        return nats

    def draw(self, text: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch, on the device that trains."""
        windows = draw_batch(text, self.config.batch, self.model.config.context, draw)
        return tuple(window.to(self.config.device) for window in windows)

    def loss(self, now: Tensor, after: Tensor) -> Tensor:
        """Mean loss in nats a byte; with precision "bfloat16" the products are rounded to it, and nothing else."""
        narrow = self.config.precision == "bfloat16"
        try:
            with torch.autocast(self.config.device, torch.bfloat16, enabled=narrow):
                logits = self.forward(now)
        except NotFinite as error:  # a router that met NaN knows no step, and no remedy
            self._diverged(str(error))
        return F.cross_entropy(logits.float().flatten(0, 1), after.flatten())

    def mean(self, loss: float) -> float:
        """The loss of the whole batch."""
        return loss

    def clip(self, longest: float) -> float:
        """Shorten the gradient to a norm of ``longest``; the norm that it had."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), longest).item()

    def batch_load(self, logits: Tensor, routing: Routing) -> Tensor | None:
        """The load that a balancing loss counts, where it is not the one of this process."""
        return None

    def _balancing_loss(self, sequences: int) -> Tensor:
        """What is added to the loss and never reported as part of it: the balancing losses of all layers."""
        config, total = self.config, torch.zeros((), device=self.config.device)
        for layer in self.model.layers:
            score = "sigmoid" if layer.score == "sigmoid" else "softmax"
            uneven = {
                "": lambda logits, routing, score: logits.new_zeros(()),
                "switch_aux": lambda logits, routing, score: losses.switch_aux(
                    logits, routing, score=score, load=self.batch_load(logits, routing)
                ),
                "gshard": lambda logits, routing, score: losses.gshard(logits, routing),
                "sequence_aux": lambda logits, routing, score: losses.sequence_aux(
                    logits, routing, sequences, score=score
                ),
            }[config.aux_loss](layer.logits, layer.routing, score)
            total = total + config.aux_coefficient * uneven
            if config.z_coefficient:
                total = total + config.z_coefficient * losses.z_loss(layer.logits)
        return total

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
            losses.append(self.loss(*self.draw(self.corpus.validation, draw)).item())
        self.model.train()
        return self.mean(sum(losses) / batches)

    def _first_not_finite(self) -> str:
        """Which gradient to look at, in words; nothing where all are finite, and only their norm is not."""
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            part = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # this rank's, where it is spread
            if part is not None and not bool(part.isfinite().all()):
                return f", first in {name}"
        return ""

    def _diverged(self, what: str) -> None:
        raise Diverged(
            f"training diverged at step {self.history.steps}: {what}; "
            f"is learning_rate={self.config.learning_rate} too high? The last checkpoint is kept"
        )

    def agree(self, wish: bool) -> bool:
        """Whether any process that trains here wishes so."""
        return wish

    def publish(self, out: Path) -> None:
        """Add a checkpoint to ``out``, and let go of those before it."""
        publish_folder(out, step_name(self.history.steps), self.save)
        remove_older(out, self.history.steps)

    def check_finite(self) -> None:
        """Refuse weights that are not finite."""
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                self._diverged(f"{name} is not finite")

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder: model, optimiser, configs, history. Refuses weights that are not finite."""
        self.check_finite()
        self.model.save(folder)
        write_tensors(folder / "optimizer.safetensors", optimizer_tensors(self.model, self.optimizer))
        self.describe(folder)

    def describe(self, folder: Path) -> None:
        """Write the three configs of a checkpoint: the model's, the training's, and what happened."""
        for name, value in (("config", self.model.config), ("train", self.config), ("history", self.history)):
            write_json(folder / f"{name}.json", dataclasses.asdict(value))

    @classmethod
    def resume(cls, folder: Path, corpus: Corpus | None = None) -> "Trainer":
        """Continue from a checkpoint folder; raises ValueError for a damaged one or another corpus."""
        config = read_config(TrainConfig, folder / "train.json")
        trainer = cls(read_config(LanguageModelConfig, folder / "config.json"), config, corpus)
        history = read_config(History, folder / "history.json")
        if history.corpus != trainer.corpus.fingerprint:
            raise ValueError(
                f"{folder} was trained on a text with fingerprint {history.corpus}, this machine's "
                f"{trainer.corpus.source} has {trainer.corpus.fingerprint}; resume with the same Python version"
            )
        if folder.name != step_name(history.steps):
            raise ValueError(f"{folder / 'history.json'} holds {history.steps} losses, which is not {folder.name}")
        trainer.history = history
        trainer.load(folder)
        return trainer

    def load(self, folder: Path) -> None:
        """Take model and optimiser from a checkpoint folder; raises ValueError for a damaged one."""
        if is_sharded(folder):
            return load_training(self.model, self.optimizer, folder)
        self.model.load_state_dict(load_model(folder).state_dict())
        path = folder / "optimizer.safetensors"
        tensors = read_tensors(path)
        for name, parameter in self.model.named_parameters():
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            for key, shape in shapes.items():
                tensor = tensors.get(f"{key}/{name}")
                if tensor is None or tensor.shape != shape or tensor.dtype != torch.float32:
                    found = None if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise ValueError(f"{path}: {key}/{name} must be float32 {tuple(shape)}, found {found}")
                self.optimizer.state[parameter][key] = tensor.to(parameter.device)


def train(
    model_config: LanguageModelConfig,
    config: TrainConfig,
    out: Path,
    corpus: Corpus | None = None,
    fresh: bool = False,
    watch: Callable[[Trainer], None] | None = None,
) -> Path:
    """Train to the end, or go on from the newest checkpoint in ``out``; returns the last checkpoint's folder.

    Shows a progress bar with loss and load; ``watch`` is called after each step in its place. ``fresh`` deletes the
    checkpoints in ``out`` first, once it is sure that the new run can start. Ctrl-C stops after the step that is under
    way, and keeps it; a second one stops at once.

    Raises ValueError where ``out`` holds a run with another config, where another process trains into it, and where the
    loss stops being finite; KeyboardInterrupt after Ctrl-C.
    """
    with alone_in(out):
        return train_in(Trainer, model_config, config, out, corpus, fresh, watch)


def alone_in(out: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder for one run; raises ValueError where another process trains into it, and CannotWrite."""
    return alone(out / ".lock", out, f"another process trains into {out}; wait for it, or give another --out")


def train_in(
    kind: type[Trainer],
    model_config: LanguageModelConfig,
    config: TrainConfig,
    out: Path,
    corpus: Corpus | None,
    fresh: bool,
    watch: Callable[[Trainer], None] | None,
) -> Path:
    """`train` with a trainer of any kind, in a folder that this run has to itself."""
    newest = None if fresh else latest_checkpoint(out)
    if newest is None:
        trainer = kind(model_config, config, corpus)
        if fresh and trainer.leads:
            start_over(out)
    else:
        trainer = kind.resume(newest, corpus)
        refuse_other_config(trainer, model_config, config, out)
        if watch is None and trainer.leads:
            tqdm.write(f"going on from {newest} at step {trainer.history.steps} of {config.steps}")
    started = {"initial": trainer.history.steps, "disable": watch is not None or not trainer.leads}
    bar = tqdm(total=config.steps, unit="step", desc="training", **started)
    with bar, interrupt_between_steps() as stop:
        while trainer.history.steps < config.steps:
            trainer.step()
            bar.update()
            report(trainer, bar)
            if watch is not None:
                watch(trainer)
            done = trainer.history.steps == config.steps
            # Checkpoints are made here and nowhere else: between two steps, never after an error.
            stopped = trainer.agree(stop.is_set())
            if done or stopped or trainer.history.steps % config.checkpoint_every == 0:
                _keep(trainer, out)
            if stopped:
                raise KeyboardInterrupt
    return latest_checkpoint(out)


def _keep(trainer: Trainer, out: Path) -> None:
    """Publish a checkpoint; where the disk does not take it, say that the one before is still there."""
    try:
        trainer.publish(out)
    except OSError as error:
        before = latest_checkpoint(out)
        reason, remedy = getattr(error, "reason", error), getattr(error, "remedy", "make room")
        raise OSError(
            f"cannot write the checkpoint of step {trainer.history.steps} into {out}: {reason}; "
            f"{'no checkpoint is there yet' if before is None else f'{before.name} is kept'}: "
            f"{remedy}, and start again to go on"
        ) from error


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event that the loop looks at between steps; the second Ctrl-C acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(*_) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def report(trainer: Trainer, bar: tqdm) -> None:
    """Record load and validation loss when due, and keep the bar's figures fresh."""
    history, config = trainer.history, trainer.config
    loads = trainer.loads()
    if history.steps % config.validate_every == 0 or history.steps == config.steps:
        history.loads.append([history.steps, loads])
        history.validation.append([history.steps, trainer.validate()])
    figures = {"loss": f"{history.losses[-1]:.3f}"}
    if loads:
        uneven = max(measure_balance(torch.tensor(load)).max_over_mean for load in loads)
        figures["busiest/mean"] = f"{uneven:.2f}"
    if history.validation:
        figures["validation"] = f"{history.validation[-1][1]:.3f}"
    bar.set_postfix(figures, refresh=False)


def refuse_other_config(trainer: Trainer, model_config: LanguageModelConfig, config: TrainConfig, out: Path) -> None:
    """A run goes on with the config that it began with, or not at all."""
    for asked, begun in ((model_config, trainer.model.config), (config, trainer.config)):
        for name, value in dataclasses.asdict(asked).items():
            if value != getattr(begun, name):
                raise ValueError(
                    f"{out} holds a run with {name}={getattr(begun, name)!r}, asked for {name}={value!r}; "
                    "give the same value, another --out, or --fresh to start over"
                )


def check_export(folder: Path) -> None:
    """Refuse to export over anything but an earlier export."""
    if folder.exists() and not (folder.is_dir() and (folder / "training.json").is_file()):
        raise ValueError(f"export must be a new folder or an earlier export, {folder} is neither")


def export(run: Path, folder: Path, corpus: Corpus | None = None) -> float:
    """Write the newest model of a run for readers: weights rounded to float16, its curve, no optimiser.

    Returns the validation loss of the rounded model, which the record holds too. Raises ValueError for a run without
    a checkpoint, or a folder that holds anything but an earlier export.
    """
    check_export(folder)
    newest = latest_checkpoint(run)
    if newest is None:
        raise ValueError(f"run {run} holds no checkpoint")
    trainer = Trainer.resume(newest, corpus)

    def write(hidden: Path) -> None:
        trainer.model.save(hidden, dtype=torch.float16)
        trainer.model.load_state_dict(load_model(hidden).state_dict())
        record = {
            "train": dataclasses.asdict(trainer.config),
            "corpus": trainer.corpus.source,
            "validation_of_rounded_weights": trainer.validate(),
            "history": dataclasses.asdict(trainer.history),
        }
        write_json(hidden / "training.json", record)

    record = read_json(publish_folder(folder.parent, folder.name, write) / "training.json")
    return record["validation_of_rounded_weights"]


def describe_machine() -> dict[str, str | int]:
    """What a reader must know to compare losses and seconds."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }
