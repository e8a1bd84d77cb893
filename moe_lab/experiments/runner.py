"""Train a list of small models, several at a time, and keep one record of each; a kill costs a few steps.

Several at a time, each run has a core to itself: one process, one thread. A run that was cut goes on from its
checkpoint, and one that has its record is not trained again.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from moe_lab.accounting.counter import flop_counter
from moe_lab.balance import measure_balance
from moe_lab.checkpoint import latest_checkpoint, read_json, start_over, write_json
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus, standard_library
from moe_lab.layers import MoE
from moe_lab.lm import LanguageModel
from moe_lab.profiling.timing import time_interleaved
from moe_lab.train import Diverged, Trainer, train

JUDGED = 64  # held-out batches of the last loss of a run
POINTS = 100  # of a recorded training curve


@dataclass(frozen=True)
class Run:
    """One training run of a grid: a name that no other run has, and its two configs."""

    name: str
    model: LanguageModelConfig
    train: TrainConfig

    @property
    def configs(self) -> dict[str, dict]:
        """Both configs, as the record of the run holds them."""
        return {"model": dataclasses.asdict(self.model), "train": dataclasses.asdict(self.train)}


def run_missing(runs: Iterable[Run], folder: Path, workers: int | None = None) -> list[dict]:
    """Train every run that ``folder`` holds no record of; the records of all, in order.

    ``workers`` processes train at the same time, one a core if left out; with 1 it is this process. Ctrl-C stops them
    after the step that is under way, with a checkpoint each.

    Raises ValueError for two runs of one name, and for a record of that name that was made with other configs.
    """
    runs = list(runs)
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"runs must have names of their own, got {[run.name for run in runs]}")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if read_run(run, folder) is None]
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if workers == 1:
        _train_in_turn(missing, folder)
    elif workers:
        _train_side_by_side(missing, folder, workers)
    return [read_run(run, folder) for run in runs]


def read_run(run: Run, folder: Path) -> dict | None:
    """The record of a run, or None if there is none; refuses one that was made with other configs."""
    path = folder / f"{run.name}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if record.get("configs") != run.configs:
        raise ValueError(f"{path} holds a run with other settings than were asked for; give another --out")
    return record


def _train_in_turn(runs: list[Run], folder: Path) -> None:
    with _progress(runs) as bar:
        for run in runs:
            train_one(run, folder, tell=lambda steps, words: _show(bar, steps, words))


def _progress(runs: list[Run]) -> tqdm:
    return tqdm(total=sum(run.train.steps for run in runs), unit="step", desc="training", smoothing=0.02)


def _show(bar: tqdm, steps: int, words: str) -> None:
    bar.update(steps)
    bar.set_postfix_str(words, refresh=False)


def _train_side_by_side(runs: list[Run], folder: Path, workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # a forked process has none of PyTorch's threads
    news = context.Queue()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (news,))
    with _progress(runs) as bar, pool:
        pending = [pool.submit(_train_and_tell, run, folder) for run in runs]
        left = len(pending)
        while left:
            try:
                _show(bar, *news.get(timeout=0.5))
            except queue.Empty:
                pass
            done = [future for future in pending if future.done()]
            left = len(pending) - len(done)
            if any(future.exception() for future in done):
                break
        for future in pending:
            future.cancel()
        for future in pending:
            if not future.cancelled():
                future.result()


_news = None  # where a worker tells of its steps


def _start_worker(news) -> None:
    global _news
    _news = news
    torch.set_num_threads(1)


def _train_and_tell(run: Run, folder: Path) -> None:
    train_one(run, folder, tell=lambda steps, words: _news.put((steps, words)))


def train_one(
    run: Run, folder: Path, corpus: Corpus | None = None, tell: Callable[[int, str], None] | None = None
) -> dict:
    """Train one run to its end, write its record, and let go of its checkpoints.

    ``tell`` hears now and then how many steps were done since it last did, and a few words.
    """
    told = 0

    def watch(trainer: Trainer) -> None:
        nonlocal told
        steps = trainer.history.steps
        if tell is not None and (steps % 20 == 0 or steps == run.train.steps):
            tell(steps - told, f"{run.name}: {trainer.history.losses[-1]:.3f}")
            told = steps

    corpus = corpus or standard_library()
    try:
        train(run.model, run.train, folder / run.name, corpus, watch=watch)
        outcome = describe_run(Trainer.resume(latest_checkpoint(folder / run.name), corpus))
    except Diverged as error:
        outcome = {"diverged": str(error)}
    record = {"name": run.name, "configs": run.configs, **outcome}
    write_json(folder / f"{run.name}.json", record)
    start_over(folder / run.name)
    (folder / run.name / ".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a reader's own files keep the folder
        (folder / run.name).rmdir()
    return record


def describe_run(trainer: Trainer) -> dict:
    """What the record of a finished run keeps: its curve, its last loss, its load, its size and its FLOPs."""
    history = trainer.history
    block = max(1, history.steps // POINTS)
    curve = [
        [at + block, round(statistics.fmean(history.losses[at : at + block]), 4)]
        for at in range(0, history.steps - block + 1, block)
    ]
    final = trainer.validate(JUDGED)
    balances = [measure_balance(layer.routing) for layer in trainer.model.layers]
    return {
        "loss": final,
        "curve": curve,
        "validation": [[step, round(loss, 4)] for step, loss in history.validation],
        "dropped": [balance.dropped_fraction for balance in balances],
        "max_violation": [balance.max_violation for balance in balances],
        "dead": [balance.dead for balance in balances],
        **count_model(trainer.model),
        "flops_a_step": count_step(trainer),
        "tokens_a_step": trainer.config.batch * trainer.model.config.context,
        "seconds": round(history.seconds, 1),
        "corpus": history.corpus,
        "machine": history.machine,
    }


def count_model(model: LanguageModel) -> dict[str, int]:
    """All parameters, and those that one token meets."""
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = sum(_idle_parameters(layer) for layer in model.layers)
    return {"total_params": total, "active_params": total - idle}


def _idle_parameters(layer: MoE) -> int:
    expert = layer.w_gate_up[0].numel() + layer.w_down[0].numel()
    return (layer.num_experts - layer.top_k) * expert


def count_step(trainer: Trainer) -> dict[str, int]:
    """FLOPs of one training step, forward and backward, as `flop_counter` sees them; the routers' products apart."""
    draw = torch.Generator().manual_seed(trainer.config.seed)
    trainer.model.train()
    now, after = trainer.draw(trainer.corpus.train, draw)
    with flop_counter() as counter:
        trainer.loss(now, after).backward()
    trainer.optimizer.zero_grad()
    # forward once, backward twice: by the inputs and by the weights
    routers = sum(3 * 2 * layer.router.numel() * now.numel() for layer in trainer.model.layers)
    return {"all": counter.total_flops, "routers": routers}


def time_steps(
    trainers: dict[str, Trainer], repeats: int, *, warmup: int, threads: int | None = None
) -> dict[str, float]:
    """Median milliseconds of a training step of each trainer, in turns, with a progress bar; see `time_interleaved`."""
    with tqdm(total=(repeats + warmup) * len(trainers), desc="step times", unit="step") as bar:
        steps = {name: lambda step=trainer.step: (step(), bar.update()) for name, trainer in trainers.items()}
        timings = time_interleaved(steps, repeats=repeats, warmup=warmup, threads=threads)
    return {name: timing.p50_ms for name, timing in timings.items()}
