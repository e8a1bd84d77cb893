"""A look into a folder of weights before anything is built from it: what is there, and whether it can be what it says.

safetensors itself refuses a file whose header does not fit its bytes. Here is what it and Transformers leave open:
other kinds of files, an index that points elsewhere, links out of the folder, code, and configs that ask for more than
the files hold.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME as INDEX_NAME
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS_NAME

from moe_lab.checkpoint import read_json

RUNS_CODE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_WEIGHTS = (*RUNS_CODE, ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".distcp")
REPEATED = re.compile(r"layer|expert|depth|head|block|group|stage", re.IGNORECASE)
WIDTH = re.compile(r"size|dim|width|inter", re.IGNORECASE)
NO_SIZE = re.compile(r"theta|base|_ids?$|seed", re.IGNORECASE)
MOST_REPEATED, LARGEST = 2**12, 2**24  # what a config may say, however little its files hold
REFUSED_FIELDS: dict[str, str] = {
    "auto_map": "it names Python code, and no code from a checkpoint is run here; Transformers' own families load",
    "quantization_config": "quantised weights cannot be held against their config; take the float version of the model",
    "transformers_weights": "it names another file as the weights; model.safetensors or its index is read",
}
"""Fields of a config.json that are not loaded, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: the config as it stands in the file, and the shape of every tensor in the weight files."""

    folder: Path
    config: dict
    shapes: dict[str, tuple[int, ...]]

    @property
    def numbers(self) -> int:
        """How many numbers the weight files hold."""
        return sum(map(math.prod, self.shapes.values()))


def inspect_folder(folder: Path) -> Checkpoint:
    """Read a folder's config and the headers of its weights, and refuse what cannot be right.

    Raises FileNotFoundError where the config or the weights are missing; ValueError, with the file and the reason, for
    all the rest.
    """
    config = read_object(folder, CONFIG_NAME)
    _check_config(folder / CONFIG_NAME, config)
    if (folder / GENERATION_CONFIG_NAME).exists():
        read_object(folder, GENERATION_CONFIG_NAME)
    _check_kind(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, expected in _weight_files(folder).items():
        found = read_shapes(path)
        if lacking := sorted(set(expected) - set(found)):
            raise ValueError(f"{path} lacks {_some(lacking)}, which {INDEX_NAME} says it holds; were files mixed up?")
        if twice := sorted(set(found) & set(shapes)):
            raise ValueError(f"{path} holds {_some(twice)}, and so does another file; each tensor must stand in one")
        shapes.update(found)
    checkpoint = Checkpoint(folder, config, shapes)
    check_numbers(checkpoint)
    return checkpoint


def read_object(folder: Path, name: str) -> dict:
    """Read one of a folder's JSON files: an object, no field twice."""
    path = inside(folder, name)
    try:
        read_json(path)
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder; links may lead about the folder, or to the blobs of the hub's cache.

    Raises FileNotFoundError where there is none; ValueError for a name or a link that leads out.
    """
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.isprintable():
        raise ValueError(f"{folder / INDEX_NAME} names {name!r:.200}; it may only name files of its own folder")
    path, home = folder / name, folder.resolve()
    try:
        real, there = path.resolve(), path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long for a file; links that lead round and round
        raise ValueError(f"{folder} has no file that could be read as {name!r:.200} ({error!s:.60})") from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if not real.is_relative_to(home) and real.parent != blobs:
        raise ValueError(f"{path} is a link out of its folder, to {real}; put the file itself there")
    if not there:
        raise FileNotFoundError(f"no file {path}; was the download interrupted?")
    return path


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, from its header, which must fit the file to the last byte."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); was it cut off?") from error


def check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse sizes in a config that the files cannot have: more layers than tensors, or a width beyond all numbers.

    Small numbers are let through: what is left of them is settled when the model is built.
    """
    layers, size = max(MOST_REPEATED, len(checkpoint.shapes)), max(LARGEST, checkpoint.numbers)
    for name, value in _whole_numbers(checkpoint.config):
        most = layers if REPEATED.search(name) and not WIDTH.search(name) else size
        if abs(value) > most:
            raise ValueError(
                f"{checkpoint.folder / CONFIG_NAME}: {name} must be at most {most} beside weight files of "
                f"{len(checkpoint.shapes)} tensors with {checkpoint.numbers} numbers, got {value!s:.30}"
            )


def _check_config(path: Path, config: dict) -> None:
    for owner in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, reason in REFUSED_FIELDS.items():
            if owner.get(name) is not None:
                raise ValueError(f"{path} has the field {name!r}: {reason}")
        for name, value in owner.items():
            if name.endswith("_implementation") and "/" in str(value):
                raise ValueError(f"{path} has {name} {value!r:.60}, code from the hub; Transformers' own are allowed")
    if isinstance(config.get("model_type"), str):
        return
    if {"d_model", "d_expert", "top_k"} <= set(config):
        raise ValueError(
            f"{path} is this library's own: ml.load_model reads it, and ml.hf.export writes it for Transformers"
        )
    raise ValueError(f"{path} must name its model_type, got {config.get('model_type')!r}")


def _check_kind(folder: Path) -> None:
    """Refuse what Transformers would read in another way than from model.safetensors or its index."""
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise ValueError(f"{folder / ADAPTER_CONFIG_NAME} makes this an adapter to another model; merge the two first")
    if parts := sorted(path.name for path in folder.glob("shard-*-model-*.safetensors")):
        raise ValueError(f"{folder} holds the parts of a distributed training ({_some(parts)}); save the model whole")


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """The files that Transformers would read, each with the tensors that the index expects in it."""
    if (folder / WEIGHTS_NAME).exists() or (folder / WEIGHTS_NAME).is_symlink():
        return {inside(folder, WEIGHTS_NAME): []}
    if (folder / INDEX_NAME).exists() or (folder / INDEX_NAME).is_symlink():
        return _indexed_files(folder)
    names = sorted(path.name for path in folder.iterdir())
    if found := [name for name in names if name.endswith(OTHER_WEIGHTS)]:
        danger = " (pickle, which runs code when it is opened)" if any(n.endswith(RUNS_CODE) for n in found) else ""
        raise ValueError(
            f"{folder} has weights only as {_some(found)}{danger}; safetensors are needed: take a version of the model "
            f"that has {WEIGHTS_NAME}, or have its makers convert it"
        )
    raise FileNotFoundError(
        f"no weights in {folder}: it must have {WEIGHTS_NAME} or {INDEX_NAME}; it has {_some(names)}"
    )


def _indexed_files(folder: Path) -> dict[Path, list[str]]:
    places = read_object(folder, INDEX_NAME).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{folder / INDEX_NAME} must have a weight_map from tensors to files, got {places!r:.60}")
    files: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX_NAME} names {name!r:.60} for {tensor!r:.60}; allowed: .safetensors")
        files.setdefault(name, []).append(tensor)
    return {inside(folder, name): tensors for name, tensors in files.items()}


def _whole_numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _whole_numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _whole_numbers(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool) and not NO_SIZE.search(name):
        yield name, value


def _once(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r:.60} stands there twice")
    return fields


def _some(names: list[str], most: int = 3) -> str:
    """The first few names."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest
