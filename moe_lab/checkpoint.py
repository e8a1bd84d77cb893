"""Checkpoints: folders that appear whole or not at all, and readers that name what is damaged."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_lab.paths import JSON_BYTES, check_file, check_our_folder, find_foreign
from moe_lab.writing import explained, flush, hidden_name, put_in_place, write_whole

STEP = re.compile(r"step-(\d+)")
HIDDEN = re.compile(r"\.unfinished-(?:old-)?(.+)-\d+")  # name, then the process that made it
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # as safetensors words it


def publish_folder(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a hidden folder, flush it to the disk, then rename it to ``parent/name``.

    Renaming is one step for the file system: whoever looks sees the whole folder or none. A folder that has the name
    already is swapped for the new one, and deleted. One process at a time may publish a name, and checkpoints, into a
    parent. After an error of the system nothing is left of the new folder; what a kill leaves, the next call deletes.

    Raises CannotWrite, with the path and what to do; ValueError where the folder of that name holds other files.
    """
    final = parent / name
    if final.is_dir():
        check_our_folder(final)
    if final.is_symlink():  # which stays one
        final = final.resolve()
        parent, name = final.parent, final.name
    hidden = parent / hidden_name(name)
    with explained(final):
        parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(parent, name)
        hidden.mkdir()
        try:
            write(hidden)
            for path in [*hidden.iterdir(), hidden]:
                flush(path)
            put_in_place(hidden, final)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        flush(parent)
        if hidden.exists():  # the old folder, after the swap
            shutil.rmtree(hidden)
    return final


def _delete_leftovers(parent: Path, name: str) -> None:
    """Delete what killed processes left of this name, or of any checkpoint: another name may be another's, at work."""
    for leftover in parent.iterdir():
        match = HIDDEN.fullmatch(leftover.name)
        ours = match and (match[1] == name or (STEP.fullmatch(name) and STEP.fullmatch(match[1])))
        if ours and leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


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
    """Delete the checkpoints before step ``kept``; a folder of such a name with a reader's files stays."""
    for step, folder in checkpoints(parent).items():
        if step < kept and not find_foreign(folder):
            hide_and_delete(folder)


def start_over(parent: Path) -> None:
    """Delete the checkpoints in ``parent``, and nothing else."""
    for folder in checkpoints(parent).values():
        hide_and_delete(folder)


def hide_and_delete(folder: Path) -> None:
    """Delete a checkpoint so that it is never half there: it loses its name first. Refuses what holds other files."""
    check_our_folder(folder)
    shutil.rmtree(folder.rename(folder.parent / hidden_name(f"old-{folder.name}")))


def write_json(path: Path, value: dict) -> None:
    """Write JSON with a final newline, long lists of numbers on one line; whole or not at all, see `write_whole`."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    write_whole(path, "{\n" + rows + "\n}\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file; an error of the system is an OSError, as everywhere else."""
    with system_errors():
        save_file(tensors, path)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Let an error of the system come out of safetensors or tokenizers, both in Rust, as the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tokenizers raises just that
        if system := SYSTEM_ERROR.search(str(error)):
            raise OSError(int(system[1]), os.strerror(int(system[1]))) from error
        raise


def read_json(path: Path, most_bytes: int = JSON_BYTES) -> dict:
    """Read a JSON object, with the path in every error; see `check_file` for what is not even opened."""
    check_file(path, most_bytes=most_bytes)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError too
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
    check_file(path, most_bytes=None)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); was it cut off?") from error
