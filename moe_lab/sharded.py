"""Checkpoints of which every rank writes its part: torch.distributed.checkpoint, in safetensors files.

Loading asks for whatever parts the ranks hold now, so a checkpoint of four ranks goes on with two, or with one; and the
checkpoint of one process, which has the same names in its files, with four.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_lab.ranks import alone


def save_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors and DTensors into ``folder``, each rank what it holds; all ranks must call it.

    Raises OSError where a rank cannot write.
    """
    import torch.distributed.checkpoint as checkpoint  # takes two seconds, and one process alone does without

    with _quiet(), _as_error(OSError, f"cannot write into {folder}"):
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        checkpoint.save(tensors, storage_writer=writer, no_dist=alone())


def load_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors and DTensors from the safetensors files in ``folder``, each rank what it holds.

    Raises ValueError, with the folder, where a name is missing, a shape differs, or a file is damaged.
    """
    import torch.distributed.checkpoint as checkpoint

    with _quiet(), _as_error(ValueError, f"{folder} does not hold this model and its optimiser"):
        reader = checkpoint.HuggingFaceStorageReader(str(folder))
        checkpoint.load(tensors, storage_reader=reader, no_dist=alone())


def is_sharded(folder: Path) -> bool:
    """Whether several ranks wrote the checkpoint in ``folder``."""
    return any(folder.glob("shard-*.safetensors"))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers of each parameter, by the names that a checkpoint has for it."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def save_training(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write a model and its optimiser, each rank what it holds."""
    save_sharded({**model.state_dict(), **optimizer_tensors(model, optimizer)}, folder)


def load_training(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Fill a model and its optimiser (AdamW), each rank what it holds, whoever wrote them."""
    for parameter in model.parameters():
        moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    own = model.state_dict()
    tensors = {**own, **optimizer_tensors(model, optimizer)}
    load_sharded(tensors, folder)
    model.load_state_dict({name: tensors[name] for name in own})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's word that one process is alone: it is meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


@contextmanager
def _as_error(kind: type[Exception], what: str) -> Iterator[None]:
    """Turn a failure on any rank into one line, the same on all ranks."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise kind(f"{what}: rank {rank}: {cause}") from error
