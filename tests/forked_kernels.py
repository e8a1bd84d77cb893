"""Kernels for the notebooks that are compared, forked from a process that has imported what all of them import.

Importing torch and matplotlib takes four seconds of a core, and there are two notebooks a lesson. What is loaded is not
called: names, seeds and settings of a notebook are its own.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import nbval.kernel
from jupyter_client.provisioning import local_provisioner

from moe_lab.parallel import PRELOADED

OPTIMISERS = ["moe_lab.kernels", "torch._dynamo"]
"""What making the first optimiser imports, behind what has to come before Triton."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["moe_lab", "torch", "matplotlib.pyplot", "ipykernel.kernelapp", "moe_lab.widgets", *PRELOADED, *OPTIMISERS]
)


def fork_the_kernels() -> None:
    """From here on nbval's kernels are forked; others start as ever."""
    start = nbval.kernel.start_new_kernel

    def start_new_kernel(**options):
        with mock.patch.object(local_provisioner, "launch_kernel", launch_kernel):
            return start(**options)

    nbval.kernel.start_new_kernel = start_new_kernel
    forkserver.ensure_running()  # the one that tests with ranks use too


class Forked:
    """A forked process, with what Jupyter asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        self.pid, self.kill, self.terminate, self.process = process.pid, process.kill, process.terminate, process

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("kernel", timeout)
        return self.process.exitcode


def launch_kernel(command: list[str], *, cwd: str, env: dict[str, str], **_: object) -> Forked:
    """In the place of Jupyter's own: ``python -m MODULE ...`` in a process that was forked."""
    assert Path(command[0]).name.startswith("python") and command[1] == "-m", f"no module of Python's: {command}"
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=be_a_kernel, args=(command[2:], cwd, {**env}, there))
    process.start()
    with here, there:
        here.recv()  # it leads a group of its own: Jupyter ends a kernel by its group
    return Forked(process)


def be_a_kernel(command: list[str], cwd: str, env: dict[str, str], ready: Connection) -> None:
    """The rest of the life of a forked process. What it says on standard error is not read."""
    os.setsid()
    ready.send("a group of its own")
    ready.close()
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))  # it ends when that one does
    os.chdir(cwd)
    sys.path[0], sys.argv = cwd, command
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
