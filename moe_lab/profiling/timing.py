"""How long a thing takes: timed in turns with its rivals, reported as a spread instead of one number."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from moe_lab.checks import check_number

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds that one call took: the 20th, 50th and 80th percentile of ``repeats`` calls."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int


def time_interleaved(
    functions: dict[str, Callable[[], object]],
    *,
    repeats: int = 15,
    warmup: int = 2,
    threads: int | None = None,
    seconds: float | int | None = None,
    rest_s: float | int = 0,
) -> dict[str, Timing]:
    """Time functions without arguments in turns, so that a slow moment of the machine meets all of them.

    Each is called ``warmup`` times, untimed. Then ``repeats`` rounds follow; a round calls every function once, and
    each round starts with another one. Percentiles are linear between the nearest calls. With ``seconds`` no round
    begins after so long, but for the first three. ``threads`` sets PyTorch's
    CPU threads meanwhile: 1 measures the work, where more also measure how the threads wait for each other on a shared
    machine. On a GPU a call ends when the GPU has finished. Before each call there is a rest of ``rest_s``, in which
    threads that look out for more work of the call before can go to sleep.

    Compare the results of the functions first: a wrong answer is always fast.

    Example:
        >>> timings = time_interleaved({"sum": lambda: sum(range(10)), "max": lambda: max(range(10))}, repeats=5)
        >>> list(timings), timings["sum"].p20_ms <= timings["sum"].p80_ms
        (['sum', 'max'], True)

    Raises TypeError for what cannot be called; ValueError for no functions, ``repeats`` or ``threads`` below 1 or a
    ``warmup``, ``seconds`` or ``rest_s`` below 0.
    """
    _check(functions, repeats, warmup, threads)
    check_number("rest_s", rest_s, at_least=0)
    if seconds is not None:
        check_number("seconds", seconds, at_least=0)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    with cpu_threads(threads):
        for function in functions.values():
            for _ in range(warmup):
                function()
        end = None if seconds is None else time.perf_counter() + seconds
        for turn in range(repeats):
            if end is not None and turn >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if rest_s:
                    time.sleep(rest_s)
                samples[name].append(_milliseconds(functions[name]))
    return {name: summarise(calls) for name, calls in samples.items()}


def _milliseconds(function: Callable[[], object]) -> float:
    """One call, with the GPU idle before it and finished after it."""
    _wait_for_gpu()
    start = time.perf_counter()
    function()
    _wait_for_gpu()
    return (time.perf_counter() - start) * 1e3


def _wait_for_gpu() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def summarise(calls_ms: list[float]) -> Timing:
    """The percentiles of calls, linear between the nearest ones.

    Example:
        >>> timing = summarise([1.0, 2.0, 3.0])
        >>> round(timing.p20_ms, 3), timing.p50_ms, timing.repeats
        (1.4, 2.0, 3)
    """
    points = torch.quantile(torch.tensor(calls_ms, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8]).double())
    return Timing(*points.tolist(), repeats=len(calls_ms))


@contextmanager
def cpu_threads(threads: int | None):
    """Another number of CPU threads for a while; None leaves it.

    It holds for the thread that asks, and for those that start meanwhile.
    """
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _check(functions: dict, repeats: int, warmup: int, threads: int | None) -> None:
    if not functions:
        raise ValueError("functions must name at least one function, got none")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"functions[{name!r}] must be callable without arguments, got {type(function).__name__}")
    counts = {"repeats": (repeats, 1), "warmup": (warmup, 0), "threads": (1 if threads is None else threads, 1)}
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
