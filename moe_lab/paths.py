"""Paths that a reader names: refused before anything is opened, read into memory, written over or deleted."""

import os
import stat
from pathlib import Path

JSON_BYTES = 64 * 2**20  # the index of the largest models has some hundred thousand lines
RECORDING_BYTES = 2**30  # of a watch: a hundred thousand tokens in forty layers
OUR_FILES = (".json", ".safetensors")  # what a checkpoint consists of


def check_file(path: str | Path, name: str = "", most_bytes: int | None = JSON_BYTES) -> Path:
    """Refuse what is no plain file, or one too large to be what it is taken for; a pipe is not waited for.

    ``name`` is the argument that the path was given for.

    Example:
        >>> check_file("/dev/zero", "--against")
        Traceback (most recent call last):
        ...
        FileNotFoundError: --against: there is no file /dev/zero, it is a device or a pipe

    Raises FileNotFoundError, and ValueError for a file of more bytes.
    """
    path, before = Path(path), f"{name}: " if name else ""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        raise FileNotFoundError(f"{before}there is no file {path}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise FileNotFoundError(f"{before}there is no file {path}, it is {kind}")
    if most_bytes is not None and found.st_size > most_bytes:
        raise ValueError(f"{before}{path} must have at most {most_bytes} bytes, it has {found.st_size}")
    return path


def check_folder(path: str | Path, name: str) -> Path:
    """Refuse what is no folder.

    Raises FileNotFoundError, or NotADirectoryError for a file, a device or a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name}: {path} is no folder")
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {path}")
    return path


def check_new_or_ours(path: str | Path, begins: str, name: str = "path") -> Path:
    """Refuse to write over a file that does not begin as ours do; an empty one is nobody's.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("a diary"), file.flush()
        ...     check_new_or_ours(file.name, '{"otherData":')
        Traceback (most recent call last):
        ...
        ValueError: path must be new or written by this lab, and ... is neither; give another, or remove it

    Raises ValueError; FileNotFoundError for a folder, a device or a pipe of that name.
    """
    path = Path(path)
    if path.exists():
        with check_file(path, name, most_bytes=None).open("rb") as file:
            head = file.read(len(begins))
        if head and head != begins.encode():
            raise ValueError(
                f"{name} must be new or written by this lab, and {path} is neither; give another, or remove it"
            )
    return path


def find_foreign(folder: Path) -> Path | None:
    """The first thing in a folder that no checkpoint holds: whoever put it there would miss it."""
    foreign = (one for one in folder.iterdir() if one.suffix not in OUR_FILES or one.is_symlink() or not one.is_file())
    return min(foreign, default=None)


def check_our_folder(folder: Path) -> None:
    """Refuse to delete a folder that holds more than the files of a checkpoint.

    Raises ValueError with the name of what is not ours.
    """
    if foreign := find_foreign(folder):
        raise ValueError(f"{folder} holds {foreign.name}, and no checkpoint does; move it, or give another folder")


def printable(text: str) -> str:
    """A text in which a terminal finds nothing to obey: what is not printed is spelt out, but for line breaks.

    Example:
        >>> printable("runs/\\x1b[2J")
        'runs/\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shown(path: str | Path) -> str:
    """A path on one line of a terminal.

    Example:
        >>> shown("two\\nlines")
        'two\\\\nlines'
    """
    return printable(os.fspath(path)).replace("\n", "\\n")
