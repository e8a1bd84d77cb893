"""Checkpoints: folders that appear whole or not at all, and readers that name what is damaged."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

STEP = re.compile(r"step-(\d+)")
HIDDEN = re.compile(r"\.unfinished-.+-\d+")  # name, then the process that made it


def publish_folder(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a hidden folder, flush it to the disk, then rename it to ``parent/name``.

    Renaming is one step for the file system: whoever looks sees the whole folder or none. A folder that has the name
    already makes way. One process at a time may publish into a parent.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.iterdir():
        if HIDDEN.fullmatch(leftover.name) and leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
    hidden, final = parent / _hidden(name), parent / name
    hidden.mkdir()
    write(hidden)
    for path in [*hidden.iterdir(), hidden]:
        _flush(path)
    if final.exists():
        hide_and_delete(final)
    hidden.rename(final)
    _flush(parent)
    return final


def step_name(step: int) -> str:
    """The folder of a checkpoint: step-000100, which `STEP` reads."""
    return f"step-{step:06d}"


def checkpoints(parent: Path) -> dict[int, Path]:
    """The checkpoints in ``parent`` by step, the oldest first: folders named step-NUMBER, and nothing else."""
    found = {}
    for path in parent.iterdir() if parent.is_dir() else ():
        match = STEP.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def latest_checkpoint(parent: Path) -> Path | None:
    """The checkpoint with the highest step in ``parent``, or None."""
    return next(reversed(checkpoints(parent).values()), None)


def remove_older(parent: Path, kept: int) -> None:
    """Delete the checkpoints before step ``kept``."""
    for step, folder in checkpoints(parent).items():
        if step < kept:
            hide_and_delete(folder)


def start_over(parent: Path) -> None:
    """Delete the checkpoints in ``parent``, and nothing else."""
    for folder in checkpoints(parent).values():
        hide_and_delete(folder)


def hide_and_delete(folder: Path) -> None:
    """Delete a folder so that it is never half there: it loses its name first."""
    shutil.rmtree(folder.rename(folder.parent / _hidden(f"old-{folder.name}")))


def write_json(path: Path, value: dict) -> None:
    """Write JSON with a final newline, long lists of numbers on one line."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    path.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


def write_json_whole(path: Path, value: dict) -> None:
    """As `write_json`, into a folder that is made if need be; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_suffix(f".{os.getpid()}.part")
    write_json(hidden, value)
    hidden.replace(path)


def read_json(path: Path) -> dict:
    """Read a JSON object, with the path in every error."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut off?") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def read_config(kind: type, path: Path):
    """Read a config dataclass from JSON, refusing fields that are unknown, missing or wrong.

    A field that is newer than the file means its default, under which the file was made.
    """
    values = read_json(path)
    known = {field.name for field in dataclasses.fields(kind)}
    newer = {field.name for field in dataclasses.fields(kind) if field.metadata.get("newer")}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path} has the unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if missing := sorted(known - newer - set(values)):
        raise ValueError(f"{path} lacks the field {missing[0]!r}")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, with the path in every error."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); was it cut off?") from error


def _hidden(name: str) -> str:
    return f".unfinished-{name}-{os.getpid()}"


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk (Windows cannot open a folder, and need not)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
