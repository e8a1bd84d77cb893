"""Real text that every machine has: the source of the Python standard library, as bytes. No download."""

import hashlib
import os
import platform
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moe_lab.checks import check_whole

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}
VALIDATION_EVERY = 10  # whole files, so that no validation text was seen in training


@dataclass(frozen=True, eq=False)
class Corpus:
    """Bytes to train on and bytes held out, with a fingerprint that changes when the text does."""

    train: UInt8[Tensor, " train_bytes"]
    validation: UInt8[Tensor, " validation_bytes"]
    files: int
    source: str
    fingerprint: str

    def __repr__(self) -> str:
        return (
            f"Corpus({self.source}: {self.files} files, {len(self.train):,} bytes to train on, "
            f"{len(self.validation):,} held out, fingerprint {self.fingerprint})"
        )


@lru_cache(maxsize=2)
def standard_library(folder: str | None = None) -> Corpus:
    """Read the standard library's ``.py`` files, every tenth one held out for validation.

    Files come in the order of their paths; tests and installed packages are left out. Two Python versions
    have two texts, so the losses of one are not the losses of the other: ``fingerprint`` tells them apart.

    Example:
        >>> corpus = standard_library()
        >>> corpus.train.dtype, len(corpus.train) > 1_000_000, corpus.files > 100
        (torch.uint8, True, True)

    A folder is read once; ``standard_library.cache_clear()`` forgets it.

    Raises FileNotFoundError where Python was installed without its source.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    texts = [text for text in (path.read_bytes() for path in python_files(root)) if text]
    if len(texts) < VALIDATION_EVERY:
        raise FileNotFoundError(f"folder {root} holds {len(texts)} Python files with text; at least 10 are needed")
    held_out = texts[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    kept = [text for number, text in enumerate(texts, 1) if number % VALIDATION_EVERY]
    return Corpus(
        train=_as_bytes(kept),
        validation=_as_bytes(held_out),
        files=len(texts),
        source=f"standard library of Python {platform.python_version()}" if folder is None else str(root),
        fingerprint=hashlib.sha256(b"\0".join(texts)).hexdigest()[:16],
    )


def python_files(root: Path) -> list[Path]:
    """All source files below root in the order of their paths, without entering folders that are left out."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in LEFT_OUT]
        found += [path for name in names if name.endswith(".py") and (path := Path(folder, name)).is_file()]
    return sorted(found)


def _as_bytes(texts: list[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"\n".join(texts), dtype=np.uint8).copy())


def draw_batch(
    text: UInt8[Tensor, " bytes"], batch: int, length: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]:
    """Cut windows at random places; the second tensor is the first one shifted by a byte: what comes next.

    Example:
        >>> text = torch.arange(100, dtype=torch.uint8)
        >>> now, after = draw_batch(text, batch=2, length=3, generator=torch.Generator().manual_seed(0))
        >>> bool((after == now + 1).all())
        True

    Raises ValueError for a text that is not longer than ``length``.
    """
    check_whole("batch", batch, 1)
    check_whole("length", length, 1)
    if len(text) <= length:
        raise ValueError(f"text must be longer than length={length}, it has {len(text)} bytes")
    start = torch.randint(len(text) - length, (batch, 1), generator=generator)
    windows = text[start + torch.arange(length + 1)].long()
    return windows[:, :-1], windows[:, 1:]
