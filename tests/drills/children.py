"""What a drill does to a function: run it in a process of its own, kill it at every step, fill its disk, forbid it."""

import ctypes
import faulthandler
import fcntl
import gc
import os
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

NOBODY = 65534
LIMIT_S = 60
TOUCHES = ("open", "os.", "shutil.", "ctypes.")  # audit events of what reaches the disk, or a system call of our own


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    said: str


def in_a_child(function: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Ended:
    """Fork; call ``prepare``, then the function, whose error is printed as one line and gives code 1.

    A forked process has all that was imported here. What it returns, if a number, is its exit code.
    """
    sys.stdout.flush(), sys.stderr.flush()
    read, write = os.pipe()  # no file: a drill may forbid to write into one
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 2**20)  # more than a child says, so that it never waits to be read
    with os.fdopen(read, "rb", buffering=0) as said:
        child = os.fork()
        if child == 0:
            os.dup2(write, 1), os.dup2(write, 2), os.close(write)
            faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=2)  # no drill hangs
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
            code = 1
            gc.freeze()  # what the parent left to collect may hold threads, which are not here and would not be found
            # tqdm's own lock is shared by all forks, and whoever is killed never gives it back
            tqdm.set_lock(threading.RLock())
            try:
                prepare()
                code = function()
                code = code if isinstance(code, int) else 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}" if isinstance(error, Exception) else traceback.format_exc())
            finally:  # whatever happens: a child that goes on would be a second pytest
                with suppress(BaseException):
                    sys.stdout.flush()
                os._exit(code)
        os.close(write)
        _, status = os.waitpid(child, 0)
        os.set_blocking(read, False)  # a process that the child has started may still hold the other end
        return Ended(os.waitstatus_to_exitcode(status), (said.read() or b"").decode(errors="replace"))


def at_step(step: int, folder: Path, act: Callable[[], object]) -> Callable[[], int]:
    """Act before this process touches the folder for the ``step``-th time, or calls the system by itself.

    Gives a function that tells how often that was so far. The hook stays as long as the process.
    """
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event.startswith(TOUCHES) and (event.startswith("ctypes.") or str(folder) in str(arguments)):
            count += 1
            if count == step:
                act()

    sys.addaudithook(hook)
    return lambda: count


def count_steps(function: Callable[[], object], folder: Path) -> int:
    """How often the function touches the folder."""

    def run() -> None:
        so_far = at_step(0, folder, lambda: None)
        function()
        print(f"steps: {so_far()}")

    ended = in_a_child(run)
    assert ended.code == 0, ended.said
    return int(ended.said.rpartition("steps: ")[2])


def kill_at(step: int, function: Callable[[], object], folder: Path) -> None:
    """Run the function in a child that dies before its ``step``-th touch of the folder."""
    ended = in_a_child(function, lambda: at_step(step, folder, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert ended.code == -signal.SIGKILL, f"it ended before step {step}: {ended.said}"


def allow_bytes(most: int) -> None:
    """Let the system refuse to write more than so many bytes into one file, as it would on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def be_homeless() -> None:
    """Be a user that the system knows no home of."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MOE_LAB_PROGRESS"):
        os.environ.pop(name, None)

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    pwd.getpwuid = unknown


def forbid_writing(folder: Path) -> None:
    """Let nothing be written into a folder by this process: for root, who may do all, by a mount that only it sees."""
    if os.geteuid() != 0:
        return folder.chmod(0o555)
    new_mounts = 0x00020000  # CLONE_NEWNS
    commands = (["--make-rprivate", "/"], ["--bind", folder, folder], ["-o", "remount,bind,ro", folder])
    if ctypes.CDLL(None).unshare(new_mounts) == 0:
        done = [subprocess.run(["mount", *map(str, command)], capture_output=True).returncode for command in commands]
        if not any(done):
            return os.chdir(folder)  # the one above was entered before
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@contextmanager
def small_disk(size: str) -> Iterator[Path | None]:
    """A folder with a file system of so many bytes of its own; None where this user may not mount one.

    It is not in pytest's folder: what a killed test leaves mounted there, pytest's tidying stumbles over a run later.
    """
    folder = Path(tempfile.mkdtemp(prefix="moe-lab-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def place_for_all() -> Iterator[Path]:
    """A temporary folder that every user can look into, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="moe-lab-drill-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
