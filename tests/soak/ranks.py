"""A long run that takes readings of itself, alone or on ranks: it stands in a module, since the ranks import it."""

from collections.abc import Callable
from pathlib import Path

import torch

from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus
from moe_lab.parallel.trainer import ParallelTrainer, train_on_ranks
from moe_lab.train import Trainer

from .growth import Diary

DRAW = torch.Generator().manual_seed(3)
LETTERS = (torch.randint(97, 123, (size,), generator=DRAW, dtype=torch.uint8) for size in (4000, 500))
TEXT = Corpus(*LETTERS, files=1, source="letters", fingerprint="letters")


def readings_of(begin: int, every: int) -> tuple[Diary, Callable[[Trainer], None]]:
    """A diary, and what is called after each step to fill it: every so many steps from ``begin`` on."""
    diary = Diary()

    def watch(trainer: Trainer) -> None:
        history = trainer.history
        if history.steps >= begin and history.steps % every == 0:
            diary.note(history.steps, history.losses, history.validation, history.loads)

    return diary, watch


def watch_on_ranks(out: Path, model: LanguageModelConfig, config: TrainConfig, begin: int, every: int) -> Diary:
    """Train on the ranks that are there, and read what this one holds: a trainer on ranks takes no ``watch``."""
    diary, watch = readings_of(begin, every)
    step = ParallelTrainer.step

    def step_and_watch(trainer: ParallelTrainer) -> float:
        watch(trainer)
        return step(trainer)

    ParallelTrainer.step = step_and_watch
    train_on_ranks(model, config, out, expert_ranks=2, corpus=TEXT)
    return diary
