"""Lesson 07: its checks survive whatever they are given, and find what the interpreter would hide."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
import triton

from moe_lab.exercises import puzzles
from moe_lab.exercises.lesson_07 import EXERCISES, footprint
from moe_lab.exercises.puzzles import Case, find_race, solves, time_limit
from moe_lab.kernels import grouped_gemm, sort_tokens
from moe_lab.tracing import Launch, Record, Step, trace, traced
from moe_lab.widgets import MemoryTracer

from ..mutants.answers_07 import RIGHT, kernel_from

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="the interpreter is off: there is a GPU, or TRITON_INTERPRET=0"
)
KERNELS = ["07.2", "07.3", "07.4", "07.5", "07.6"]
BLOCKS = "def blocks(load, start, NUM_EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr):\n"


def says(key, answer):
    outcome = EXERCISES[key].examine(answer)
    assert not outcome.solved
    assert len(outcome.says) < 400, outcome.says
    return outcome.says


# ---------------------------------------------------------------- answers that are no kernels, or not yet


@pytest.mark.parametrize("key", KERNELS)
def test_an_untouched_stub_is_not_attempted(key):
    parameters = ", ".join(RIGHT[key].arg_names)
    stub = kernel_from(f"def kernel({parameters}):\n    raise NotImplementedError\n")
    assert says(key, stub) == says(key, None) == "not attempted yet."


@pytest.mark.parametrize("key", KERNELS)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda load, start: None, "is a plain function; write @triton.jit above it"),
        (7, "give the kernel itself, a function under @triton.jit; this is a int"),
        ("kernel", "this is a str"),
        (torch.zeros(3), "this is a Tensor"),
    ],
)
def test_what_is_no_kernel_is_told_so(key, answer, words):
    assert words in says(key, answer)


def test_parameters_are_those_of_the_stub():
    assert "keep those of the stub, load, start, NUM_EXPERTS, BINS, BLOCK_M" in says("07.3", RIGHT["07.2"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    tl.store(strat, 0)", "it raised NameError: name 'strat' is not defined"),
        ("    raise IndexError('first\\nlast line')", "it raised IndexError: last line"),
        ("    tl.store(start, tl.arange(0, BINS))", "it raised ValueError"),
        ("    while True:\n        pass", "it still ran after 0 seconds; does a loop never end?"),
        ("    while tl.load(load) >= 0:\n        tl.store(start, 1)", "it still ran after 0 seconds"),
        ("    pass", "start, expert 0 is never written"),
        ("    tl.store(load, 1)", "it writes into load, which is there to be read"),
        ("    tl.store(start - 2**40 + tl.arange(0, BINS), 1)", "the store of 4 elements outside of"),
        ("    tl.store(start + 2**40, tl.load(load - 2**50))", "the load of 1 element outside of"),
        ("    tl.atomic_add(start + 10**9, 1)", "the atomic of 1 element outside of start"),
    ],
)
def test_a_kernel_that_fails_is_told_how(body, words, monkeypatch):
    monkeypatch.setattr(puzzles, "MOST_SECONDS", 0.2)
    assert words in says("07.3", kernel_from(BLOCKS + body + "\n"))


def test_a_kernel_that_never_ends_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(puzzles, "MOST_SECONDS", 1.0)
    before = time.perf_counter()
    assert "0 of 7 properties hold" in says("07.3", kernel_from(BLOCKS + "    while True:\n        pass\n"))
    assert time.perf_counter() - before < 4.0, "seven properties, each of them waited for"


def test_an_alarm_that_is_lost_is_followed_by_another(monkeypatch):
    """Python prints and forgets what is raised while it tidies up; a loop behind that would never end."""

    class Tidied:
        def __del__(self):
            until = time.perf_counter() + 0.3
            while time.perf_counter() < until:
                pass

    lost, before = [], time.perf_counter()
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with pytest.raises(TimeoutError), time_limit(0.05):
        Tidied()
        while True:
            pass
    assert [one.exc_type for one in lost] == [TimeoutError] and time.perf_counter() - before < 4.0


def test_an_alarm_waits_while_the_standard_library_is_at_work_but_not_for_ever(monkeypatch):
    walk = os.walk(".")
    with time_limit(60.0):
        stop, again = signal.getsignal(signal.SIGALRM), []
        with monkeypatch.context() as patch:
            patch.setattr(signal, "setitimer", lambda which, seconds: again.append(seconds))
            for _ in range(100):
                stop(signal.SIGALRM, walk.gi_frame)
            with pytest.raises(TimeoutError):
                stop(signal.SIGALRM, walk.gi_frame)
        assert again == [0.01] * 100 + [1.0]
    stop(signal.SIGALRM, None)  # one that comes too late says nothing


def test_the_time_limit_is_for_the_main_thread():
    """A signal reaches no other; there a slow kernel is waited for."""
    done = []

    def wait():
        with time_limit(0.001):
            done.append(sum(range(10**6)))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert done


# ---------------------------------------------------------------- what the checks look for


def case(expected, unused=None, **arguments):
    y = torch.tensor(expected)
    unused = {} if unused is None else {"y": torch.tensor(unused)}
    return Case((2,), {**arguments, "y": torch.int32}, {"y": y}, {"y": ("row",)}, unused)


WRITES = "def writes(x, y):\n    at = tl.program_id(0) * 2 + tl.arange(0, 2)\n    tl.store(y + at, tl.load(x + at))\n"


def test_elements_that_should_be_left_alone():
    kernel, given = kernel_from(WRITES), {"x": torch.arange(4)}
    assert solves(lambda: case([0, 1, 2, 3], **given))(kernel) is None
    unused = [False, False, False, True]
    fault = solves(lambda: case([0, 1, 2, 3], unused, **given))(kernel)
    assert fault == "y, row 3 is written, and should be left alone"
    fault = solves(lambda: case([0, 1, 5, 5], **given))(kernel)
    assert fault == "y, row 2: yours 2, spec 5 (2 of 4 differ)"


def test_atomics_are_refused_unless_they_are_the_point():
    kernel = kernel_from(
        "def adds(x, y):\n    at = tl.program_id(0) * 2 + tl.arange(0, 2)\n"
        "    tl.store(y + at, tl.load(x + at))\n    tl.atomic_add(y + at, 0)\n"
    )
    given = {"x": torch.arange(4)}
    assert "it uses atomics" in solves(lambda: case([0, 1, 2, 3], **given))(kernel)
    assert solves(lambda: case([0, 1, 2, 3], **given), atomics=True)(kernel) is None


def step(program, kind, *elements, tensor="y", launch=0):
    at = np.array(elements)
    return Step(launch, program, 0, kind, tensor, at, bytes_at=4 * at, width=4)


@pytest.mark.parametrize(
    ("steps", "race"),
    [
        ([step(0, "store", 1, 2), step(1, "store", 3)], None),
        ([step(0, "store", 1, 2), step(1, "store", 2)], "programs 0 and 1 both touch element 2"),
        ([step(0, "load", 5), step(1, "load", 5)], None),
        ([step(2, "load", 5), step(0, "store", 5)], "programs 0 and 2 both touch element 5"),
        ([step(0, "atomic", 5), step(1, "atomic", 5)], None),
        ([step(0, "atomic", 5), step(1, "store", 5)], "programs 0 and 1 both touch element 5"),
        ([step(0, "store", 5), step(0, "load", 5), step(0, "store", 5)], None),
        ([step(0, "store", 5), step(1, "store", 5, launch=1)], None),
        ([step(0, "store", 5), step(1, "store", 5, tensor="x")], None),
        ([step(0, "load", 1), step(1, "load", 1), step(2, "store", 0)], None),
    ],
)
def test_races(steps, race):
    launches = [Launch("one", (3, 1, 1), 0), Launch("two", (3, 1, 1), 3)]
    found = find_race(Record.written_down({"x": torch.zeros(9), "y": torch.zeros(9)}, launches, steps))
    assert found is None if race is None else found.startswith(race)


# ---------------------------------------------------------------- what the lesson says


@pytest.mark.parametrize("key", KERNELS)
def test_the_last_hint_is_a_solution(key):
    constants = {"NUM_EXPERTS", "BINS", "BLOCK", "BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_D", "D", "K", "N"}
    names = RIGHT[key].arg_names
    parameters = ", ".join(f"{name}: tl.constexpr" if name in constants else name for name in names)
    body = EXERCISES[key].hints[-1]
    outcome = EXERCISES[key].examine(kernel_from(f"def kernel({parameters}):{body}\n"))
    assert outcome.solved, outcome.says


def test_the_footprint_is_what_the_tracer_counts():
    strided = kernel_from(
        "def strided(x, y, n, STRIDE: tl.constexpr, BLOCK: tl.constexpr):\n"
        "    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n"
        "    tl.store(y + at, tl.load(x + at * STRIDE, mask=at < n), mask=at < n)\n"
    )
    for n, block, stride in ((10, 4, 1), (50, 16, 3), (20, 8, 9)):
        x, y = torch.zeros(n * stride), torch.zeros(n)
        with trace(x=x, y=y) as record:
            strided[(-(-n // block),)](x, y, n, STRIDE=stride, BLOCK=block)
        masked = record.totals().masked_lanes // 2  # the store masks as many
        assert footprint(n, block, stride) == (record.num_programs, masked, record.segments("x")[0])


def test_the_table_of_things_to_try():
    """What Explore promises, by the widget's own count."""
    table = sort_tokens.sort_tokens(torch.tensor([0] * 20 + [2] * 10)[:, None], 3, 16)
    x, w = torch.randn(len(table.row_assignment), 48), torch.randn(3, 16, 48)
    record = traced(grouped_gemm.grouped_gemm, x, w, table.tile_expert, table.num_tiles, 16)
    widget = MemoryTracer(record, tensors=["x", "w", "y"])
    assert "loads 1 element of num_tiles" in widget.summary()
    for program, number, words in (
        (0, 3, "loads 512 elements of w, 2,048 bytes"),
        (0, 3, "512 lanes masked"),
        (0, 5, "loads 256 elements of x, 1,024 bytes"),
        (0, 5, "256 lanes masked"),
        (1, 3, "elements of w, all of them read before"),
    ):
        widget.program = program
        widget.step = number
        assert words in widget.summary()
    assert [record.reads("w")[expert].unique().tolist() for expert in range(3)] == [[2], [0], [1]]
    assert not record.reads("x")[48:].any() and not record.writes("y")[48:].any()
