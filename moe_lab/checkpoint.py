"""Checkpoints: folders that appear whole or not at all, and readers that name what is damaged."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

UNFINISHED = ".unfinished-"


def publish_folder(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a hidden folder, flush it to the disk, then rename it to ``parent/name``.

    Renaming is one step for the file system: whoever looks sees the whole folder or none. A folder of that name from an
    earlier run is kept, since it holds the same step.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)
    hidden, final = parent / f"{UNFINISHED}{name}", parent / name
    hidden.mkdir()
    write(hidden)
    for path in [*hidden.iterdir(), hidden]:
        _flush(path)
    if final.exists():
        shutil.rmtree(hidden)
    else:
        hidden.rename(final)
        _flush(parent)
    return final


def latest_checkpoint(parent: Path) -> Path | None:
    """The checkpoint with the highest step in ``parent``, or None."""
    return max(parent.glob("step-*"), default=None)


def remove_older(parent: Path, kept: Path) -> None:
    """Delete the checkpoints before ``kept``; they are hidden first, so that none is ever half there."""
    for folder in parent.glob("step-*"):
        if folder.name < kept.name:
            hidden = folder.rename(parent / f"{UNFINISHED}{folder.name}")
            shutil.rmtree(hidden)


def write_json(path: Path, value: dict) -> None:
    """Write JSON with a final newline, long lists of numbers on one line."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    path.write_text("{\n" + rows + "\n}\n")


def read_json(path: Path) -> dict:
    """Read a JSON object, with the path in every error."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut off?") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def read_config(kind: type, path: Path):
    """Read a config dataclass from JSON, refusing fields that it does not have."""
    values = read_json(path)
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path} has the unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, with the path in every error."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); was it cut off?") from error


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk (Windows cannot open a folder, and need not)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
