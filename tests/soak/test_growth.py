"""The rule by which all soaks judge: it sees 100 bytes a round, and nothing where there is nothing."""

import subprocess
import tempfile
import threading

import pytest
import torch

from . import growth
from .growth import repeat

pytestmark = pytest.mark.soak

KEPT, PROCESSES, RELEASE = [], [], threading.Event()
ROUNDS = 1600  # at a hundred bytes each, more than a process may take once


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    for file in (one for one in KEPT if hasattr(one, "close")):
        file.close()
    KEPT.clear()
    for process in PROCESSES:
        process.wait()
    PROCESSES.clear()
    RELEASE.set()
    for thread in [one for one in threading.enumerate() if one.name == "leak"]:
        thread.join()
    RELEASE.clear()


def end_at_once():
    PROCESSES.append(subprocess.Popen(["true"]))


LEAKS = {
    "an object of 100 bytes": (lambda: KEPT.append(bytes(67)), "entries"),
    "an entry of a list": (lambda: KEPT.append(None), "entries"),
    "a tensor": (lambda: KEPT.append(torch.zeros(1)), "tensors"),
    "memory of C's": (lambda: KEPT.append(growth.C.malloc(100)), "heap_bytes"),
    "a file": (lambda: KEPT.append(tempfile.TemporaryFile()), "files"),
    "a thread": (lambda: threading.Thread(target=RELEASE.wait, name="leak", daemon=True).start(), "threads"),
    "a process that nobody waits for": (end_at_once, "children"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak):
    once, field = LEAKS[leak]
    few = field in ("files", "threads", "children")
    with pytest.raises(AssertionError, match=rf"{leak} grows\..*{field}: median "):
        repeat(leak, once, growth.STRETCHES if few else ROUNDS, 4, whole=True)


@pytest.mark.parametrize("work", [lambda: bytes(67), lambda: torch.zeros(1), lambda: [None]])
def test_what_is_forgotten_is_not_seen(work):
    repeat("nothing", work, ROUNDS, 20, whole=False)


def test_what_is_kept_on_purpose_is_left_out():
    curve, diary = [], growth.Diary()
    for step in range(1, 501):
        curve.append(step / 3)
        if step % 125 == 0:
            diary.note(step, curve)
    growth.check_steady("a curve", diary, whole=False)
    assert diary.growth("entries")[0] == 0
