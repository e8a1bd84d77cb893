"""Python processes of their own for tests, forked from one that has imported torch, or whatever else it is told to.

Importing torch takes three seconds of a core, and making the first optimiser, which imports Dynamo, as many again.
What a template was not told to import is not there until a process imports it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

LIMIT_S = 120

TEMPLATE = """
import importlib, json, os, socket, sys

def serve(line):
    while request := line.recv(1 << 16):
        request = json.loads(request)
        if "wait" in request:
            line.send(json.dumps(os.waitpid(request["wait"], os.WNOHANG if request["at_once"] else 0)).encode())
            continue
        _, files, _, _ = socket.recv_fds(line, 1, 2)
        child = os.fork()
        if child == 0:
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
            request["session"] and os.setsid()
            return request
        line.send(json.dumps(child).encode())
        for file in files:
            os.close(file)

for name in sys.argv[2:]:
    importlib.import_module(name)
line = socket.socket(fileno=int(sys.argv[1]))
request = serve(line)
line.close()
if request:
    sys.argv = ["fresh", *request["arguments"]]
    for name in request["without"]:
        os.environ.pop(name, None)
    exec(compile(request["code"], "fresh", "exec"), {"__name__": "__main__"})
"""


class Template:
    """The process that has imported modules, and what is forked from it."""

    def __init__(self, *modules: str):
        self.line, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(LIMIT_S)
        with there:
            command = [sys.executable, "-c", TEMPLATE, str(there.fileno()), *modules]
            self.process = subprocess.Popen(command, pass_fds=[there.fileno()])

    def close(self) -> None:
        """End it at once: nothing of it is wanted any more."""
        self.line.close()
        self.process.kill()
        self.process.wait()

    def ask(self, request: dict, files: list[int] | None = None):
        """One request, one answer; ``files`` become the standard output and error of a new process."""
        self.line.send(json.dumps(request).encode())
        if files:
            socket.send_fds(self.line, [b"!"], files)
        return json.loads(self.line.recv(1 << 16))

    def start(self, code: str, *arguments: str, session: bool = False, without: tuple[str, ...] = ()) -> "Forked":
        """``python -c code arguments``, in a session of its own or not, without some variables of the environment.

        Its standard error is to be read from ``stderr``; what it prints is dropped.
        """
        reading, writing = os.pipe()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        request = {"code": code, "arguments": arguments, "session": session, "without": without}
        pid = self.ask(request, [nowhere, writing])
        os.close(nowhere), os.close(writing)
        return Forked(self, pid, os.fdopen(reading, "rb", buffering=0))

    def run(
        self, code: str, *arguments: str, without: tuple[str, ...] = (), check: bool = False
    ) -> subprocess.CompletedProcess:
        """The same to its end, with all that it printed, as `subprocess.run` gives it; to ``check`` is to want 0."""
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
            request = {"code": code, "arguments": arguments, "session": False, "without": without}
            process = Forked(self, self.ask(request, [said.fileno(), complained.fileno()]))
            with process:
                process.wait()
            texts = [(file.seek(0), file.read().decode())[1] for file in (said, complained)]
        assert not check or process.returncode == 0, texts[1]
        return subprocess.CompletedProcess(code, process.returncode, *texts)


class Forked:
    """A forked process, with what tests ask of a `subprocess.Popen`."""

    returncode = None

    def __init__(self, template: Template, pid: int, stderr=None):
        self.template, self.pid, self.stderr = template, pid, stderr

    def poll(self, at_once: bool = True) -> int | None:
        """How it ended, or None while it runs."""
        if self.returncode is None:
            pid, status = self.template.ask({"wait": self.pid, "at_once": at_once})
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """How it ended, once it has; nothing else is forked until then."""
        return self.poll(at_once=False)

    def send_signal(self, number: int) -> None:
        """To it alone, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        """Whatever a test left running ends here."""
        self.send_signal(signal.SIGKILL)
        self.wait()
        if self.stderr is not None:
            self.stderr.close()
