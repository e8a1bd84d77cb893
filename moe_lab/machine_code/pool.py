"""Worker processes: started when needed, stopped when they hang, started again when the compiler crashed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import platformdirs

ROOT = Path(__file__).parents[2]
LIMIT_S = 60  # for one kernel, which takes 0.1 to 3
START_LIMIT_S = 180  # a worker's first answer: it imports torch, from a cold disk perhaps


class Worker:
    """One process that compiles; it starts at the first request, and again at the next one after a crash.

    Raises ImportError where there is no Triton.
    """

    def __init__(self, folder: Path | None = None, limit_s: float | int = LIMIT_S):
        if importlib.util.find_spec("triton") is None:
            raise ImportError("compiling kernels needs triton, which exists for Linux")
        self._folder, self._limit_s = folder, limit_s
        self._scratch = tempfile.TemporaryDirectory(prefix="moe-lab-")  # the log, and what compilers leave behind
        self._log = Path(self._scratch.name) / "log"
        self._process, self._closed = None, False
        self._state, self._busy = threading.Lock(), threading.Lock()

    def ask(self, **request) -> tuple[list[dict], str | None]:
        """(answers, None); or the answers until something failed, the request or the whole process, and what."""
        with self._busy:
            with self._state:  # no process may start after `close`
                if self._closed:
                    return [], "stopped"
                fresh = self._process is None
                process = self._process = self._process or self._start()
            try:
                answers, failed, alive = self._converse(process, request, START_LIMIT_S if fresh else self._limit_s)
            except BaseException:  # Ctrl-C: the answers that still come would be taken for the next request's
                self._stop()
                raise
            if not alive:
                self._stop()
            return answers, failed

    def close(self) -> None:
        """End the process, whatever it does; a request in progress fails."""
        with self._state:
            self._closed = True
            if self._process is not None:
                _kill(self._process)
        with self._busy:  # whoever waits for an answer sees the end of it
            self._stop()
            self._scratch.cleanup()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _converse(
        self, process: subprocess.Popen, request: dict, limit_s: float | int
    ) -> tuple[list[dict], str | None, bool]:
        """(answers, what failed, whether the process can be asked again)."""
        answers = []
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended while nobody looked
            return answers, self._last_words(process), False
        while True:
            line, hung = _read_line(process, limit_s)
            if not line.endswith("\n"):  # it ended, perhaps in the middle of a line
                return answers, f"no answer within {limit_s} s" if hung else self._last_words(process), False
            answer = json.loads(line)
            if "end" in answer or "failed" in answer:
                return answers, answer.get("failed"), True
            answers.append(answer)
            limit_s = self._limit_s

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "moe_lab.machine_code.worker", str(self._log)]
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - this Python and our own module; no shell reads the folder's name
                [*command, *([] if self._folder is None else [str(self._folder)])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_environment(), "TMPDIR": self._scratch.name},
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for us; we end the worker, and the assembler that it started
            )

    def _stop(self) -> None:
        with self._state:
            process, self._process = self._process, None
        if process is not None:
            _kill(process)
            process.wait()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:  # a request that nobody read
                pass

    def _last_words(self, process: subprocess.Popen) -> str:
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip() if self._log.is_file() else ""
        telling = [line for line in said.splitlines() if "error" in line.lower() or "assert" in line.lower()]
        lines = telling or said.splitlines()[-1:]
        return f"the compiler's process ended ({how})" + (f": {lines[0].strip()[:300]}" if lines else "")


class Pool:
    """Several workers that take requests from one queue."""

    def __init__(self, workers: int, folder: Path | None = None, limit_s: float | int = LIMIT_S):
        self._workers = [Worker(folder, limit_s) for _ in range(workers)]
        self._idle = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def ask(self, **request) -> tuple[list[dict], str | None]:
        """As `Worker.ask`, by whichever is idle."""
        worker = self._idle.get()
        try:
            return worker.ask(**request)
        finally:
            self._idle.put(worker)

    def ask_all(self, requests: Iterable[dict]) -> Iterator[tuple[list[dict], str | None]]:
        """The answers to each request, in order, as they come."""
        with ExitStack() as on_exit:
            threads = on_exit.enter_context(ThreadPoolExecutor(len(self._workers)))
            waiting = [threads.submit(self.ask, **request) for request in requests]
            on_exit.callback(threads.shutdown, wait=False, cancel_futures=True)
            try:
                for one in waiting:
                    yield one.result()
            except BaseException:  # Ctrl-C above all: nobody will read what is being compiled
                self.close()
                raise

    def close(self) -> None:
        """End every worker."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _read_line(process: subprocess.Popen, limit_s: float | int) -> tuple[str, bool]:
    """The next line, or what came of it before the process ended; and whether that was because it took too long."""
    hung = threading.Event()

    def give_up() -> None:
        hung.set()
        _kill(process)

    timer = threading.Timer(limit_s, give_up)
    timer.start()
    try:
        return process.stdout.readline(), hung.is_set()
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _environment() -> dict[str, str]:
    """A real compiler instead of the interpreter, one thread a worker, Triton's cache where files may be written."""
    return {
        "TRITON_INTERPRET": "0",
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR") or str(cache_folder()),
    }


def cache_folder() -> Path:
    """Where compiled kernels are kept: in the checkout, or in the user's cache for what was installed from a wheel."""
    if (ROOT / "pyproject.toml").is_file():
        return ROOT / ".cache" / "triton"
    return platformdirs.user_cache_path("moe-lab") / "triton"
