"""Files and folders that are there whole or not at all, and errors that say what to do."""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
LEFT_BEHIND_S = 3600  # a temporary file of a process that was killed; no write takes so long


class CannotWrite(OSError):
    """A file or folder could not be written: which, why (``reason``), and what to do (``remedy``)."""

    def __init__(self, what: str | Path, error: OSError):
        self.reason, self.remedy = _reason(error), _remedy(error)
        super().__init__(
            f"cannot write {what}: {self.reason}; {self.remedy}, and start again. What was there before is unchanged"
        )

    def __reduce__(self):
        return OSError, self.args  # to another process goes the sentence


def write_whole(path: str | Path, content: str | bytes | Callable[[Path], None]) -> Path:
    """Write a file that is there whole or not at all, into a folder that is made if need be.

    The content, or what a function writes to the path that it is given, goes to a hidden file beside ``path``, to the
    disk, and only then takes the name: whoever looks, and whatever is killed, sees the old file or the new one. A link
    stays a link. After an error the old file is unchanged, and nothing else is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder, "new", "note.txt"), "whole")
        ...     path.read_text(), [one.name for one in path.parent.iterdir()]
        ('whole', ['note.txt'])

    Raises CannotWrite, with the path and what to do; among others for a device or a folder of that name.
    """
    path = Path(path)
    with explained(path):
        real = _prepare(path)
        hidden = real.with_name(hidden_name(real.name))
        try:
            _write(hidden, content)
            if real.exists():
                shutil.copymode(real, hidden)
            flush(hidden)
            hidden.replace(real)
            flush(real.parent)
        finally:
            hidden.unlink(missing_ok=True)
    return path


def check_writable(path: str | Path) -> None:
    """Try, before hours of work, whether `write_whole` can write there; leaves nothing, and makes no folder.

    Raises CannotWrite.
    """
    with explained(path):
        _refuse_other_than_file(Path(path))
        folder = next(one for one in Path(path).absolute().parents if os.path.lexists(one))
        hidden = folder / hidden_name(Path(path).name)
        try:
            hidden.touch()
        finally:
            hidden.unlink(missing_ok=True)


def put_in_place(fresh: Path, final: Path) -> None:
    """Give a folder the name ``final``, in one step; the folder that had it has the name ``fresh`` then.

    Where the system cannot swap two names (it can on Linux), the old folder steps aside for a moment.
    """
    if not final.exists():
        fresh.rename(final)
    elif not _swap(fresh, final):
        aside = final.with_name(hidden_name(f"old-{final.name}"))
        final.rename(aside)
        try:
            fresh.rename(final)
        except OSError:
            aside.rename(final)
            raise
        aside.rename(fresh)


@contextlib.contextmanager
def alone(lock: Path, place: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file while the block runs. The system lets go of it when the process dies, however it dies.

    Raises ValueError with ``refusal`` where another process holds it; CannotWrite, which names the ``place`` that the
    lock is for, where it cannot be made.
    """
    with explained(place):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        try:
            held.acquire()
        except Timeout as error:
            raise ValueError(refusal) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into CannotWrite, which names the path and says what to do.

    Example:
        >>> with explained("runs/x.json"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        moe_lab.writing.CannotWrite: cannot write runs/x.json: No space left on device; make room, and start again. ...
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(path, error) from error


def hidden_name(name: str) -> str:
    """What a file or folder is called until it is whole; checkpoint readers and `git` users know it by its start."""
    return f".unfinished-{name}-{os.getpid()}"


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk; a folder where the system can, which Windows cannot."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _prepare(path: Path) -> Path:
    """The file that the path leads to, in a folder that is there and that no killed process has left anything in."""
    _refuse_other_than_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    real = path.resolve()
    for left in real.parent.iterdir():
        with contextlib.suppress(OSError):
            ours = left.name.startswith(f".unfinished-{real.name}-") and left.is_file()
            if ours and left.stat().st_mtime < time.time() - LEFT_BEHIND_S:
                left.unlink()
    return real


def _refuse_other_than_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # to rename over a device would take it away from everybody
        raise OSError(errno.EISDIR if path.is_dir() else errno.EINVAL, "there is something else than a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _write(hidden: Path, content: str | bytes | Callable[[Path], None]) -> None:
    if callable(content):
        content(hidden)
    else:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


def _swap(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _reason(error: OSError) -> str:
    """The system's words, and the path that it means where that is known."""
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


def _remedy(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return "make room"
    if error.errno in FORBIDDEN:
        return "give another place, or make this one writable"
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return "give a new name inside of it, for a place where a disk is mounted cannot be replaced"
    return "give another place"
