"""Worker processes: what they answer, and what becomes of a crash, a hang, noise, and an end in the middle."""

import os
import threading
import time
from pathlib import Path

import pytest

from moe_lab.machine_code.pool import Pool, Worker

ADD = """
@triton.jit
def add(x, BLOCK: tl.constexpr):
    place = x + tl.arange(0, BLOCK)
    tl.store(place, tl.load(place) + 1.0)
"""


@pytest.fixture
def request_of(tmp_path):
    """A function that makes the request to compile a source; what the source does besides happens in the worker."""

    def make(source):
        path = tmp_path / f"source_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        signature = {"x": "*fp32", "BLOCK": 64}
        return dict(do="source", path=str(path), name=None, signature=signature, target="sm_80", options={})

    return make


@pytest.fixture(scope="module")
def worker():
    """One for all: it is asked again after whatever happened to it."""
    with Worker() as one:
        yield one


def check_works(worker, request_of):
    answers, failed = worker.ask(**request_of(ADD))
    assert failed is None and [answer["kernel"] for answer in answers] == ["add"]


def test_noise_does_not_stand_between_the_answers(worker, request_of):
    noise = "import os\nprint('{\"end\": true}')\nos.write(1, b'noise')\nos.write(2, b'more')\n"
    answers, failed = worker.ask(**request_of(noise + ADD))
    assert failed is None and answers[0]["measured"]["ok"]
    silent = worker.ask(**request_of("import os\nos._exit(3)"))
    assert silent == ([], "the compiler's process ended (exit code 3)"), "the noise was another request's"
    check_works(worker, request_of)


def test_an_error_fails_one_request(worker, request_of):
    process = worker._process
    assert worker.ask(**request_of("x = 1")) == ([], "the source has no function under @triton.jit")
    answers, failed = worker.ask(**request_of("1 / 0"))
    assert answers == [] and failed == "ZeroDivisionError: division by zero"
    check_works(worker, request_of)
    assert worker._process is process


@pytest.mark.parametrize(
    ("ending", "how", "line"),
    [
        ("os._exit(3)", "exit code 3", "LLVM ERROR: out of tiles"),
        ("os.abort()", "SIGABRT", "python: Tiles.cpp:7: Assertion `tiles' failed."),
        ("os._exit(0)", "exit code 0", "bye"),
    ],
)
def test_a_crash_says_how_and_the_next_request_starts_anew(ending, how, line, worker, request_of):
    said = f"hello\n{line}\nbye\n".encode()
    crash = f"import os\nos.write(2, {said!r})\n{ending}"
    assert worker.ask(**request_of(crash)) == ([], f"the compiler's process ended ({how}): {line}")
    check_works(worker, request_of)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_hang_is_ended_with_what_it_started(request_of, tmp_path):
    note = tmp_path / "pid"
    hang = f"""
import pathlib, subprocess, time
pathlib.Path({str(note)!r}).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
time.sleep(1000)
"""
    with Worker(limit_s=1) as worker:
        check_works(worker, request_of)  # the first answer has more time, since the process starts for it
        assert worker.ask(**request_of(hang)) == ([], "no answer within 1 s")
        wait_until(lambda: not alive(int(note.read_text())))


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.02)


def test_closing_ends_what_is_in_progress(request_of, tmp_path):
    note = tmp_path / "started"
    pool, found = Pool(1), []
    hang = f"import pathlib, time\npathlib.Path({str(note)!r}).touch()\ntime.sleep(1000)"
    asking = threading.Thread(target=lambda: found.append(pool.ask(**request_of(hang))))
    asking.start()
    wait_until(note.exists)
    (worker,) = pool._workers
    process, scratch = worker._process, Path(worker._scratch.name)
    pool.close()
    asking.join(timeout=60)
    assert found == [([], "the compiler's process ended (SIGKILL)")] and process.poll() is not None
    assert not scratch.exists()
    assert pool.ask(**request_of(ADD)) == ([], "stopped"), "nothing starts after the end"


def test_answers_come_in_the_order_of_the_requests_and_an_interruption_ends_the_workers(request_of):
    with Pool(2) as pool:
        sources = ["import time\ntime.sleep(0.3)\n" + ADD, ADD.replace("add", "plus"), "1 / 0"]
        kernels = [answers[0]["kernel"] if not failed else failed for answers, failed in ask(pool, request_of, sources)]
        assert kernels == ["add", "plus", "ZeroDivisionError: division by zero"]
        found = ask(pool, request_of, [ADD, *["import time\ntime.sleep(1000)"] * 4])
        assert next(found)[1] is None
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt())
        assert pool.ask(do="kernels") == ([], "stopped")


def ask(pool, request_of, sources):
    return pool.ask_all(request_of(source) for source in sources)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="compiling kernels needs triton, which exists for Linux"):
        Worker()
