"""Puzzles: a reader's Triton kernel is launched in the interpreter, and what it does wrong is said in words.

A launch is watched by `moe_lab.tracing`: its tensors are copies with free space around them, so that whatever a kernel
does, it neither stops the notebook nor touches another tensor. Outputs hold poison before; a loop that does not end is
ended. What the interpreter hides is looked for as well: its programs run one after the other, a GPU's at once.
"""

import signal
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from moe_lab.exercises import Property
from moe_lab.tracing import Record, trace

MOST_SECONDS = 10.0
"""A right kernel takes less than one on any of the cases."""
STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), "<frozen ")  # how the names of its files begin
_endless: WeakSet = WeakSet()  # kernels that took longer: they are not waited for once for each property
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


@dataclass(frozen=True)
class Case:
    """One launch: its grid, the kernel's arguments by name and in order, and what its outputs should hold.

    In ``arguments`` an output is a dtype, and ``expected`` has its numbers in float64 or int64; elements that are
    ``unused`` must not be written. ``axes`` are the names of an output's axes, by which a fault is reported.
    """

    grid: tuple[int, ...]
    arguments: dict[str, object]
    expected: dict[str, Tensor]
    axes: dict[str, tuple[str, ...]]
    unused: dict[str, Tensor] = field(default_factory=dict)


def solves(make_case: Callable[[], Case], *, atomics: bool = False) -> Property:
    """The property that a kernel does what a case asks for, and no more; without ``atomics`` it may not use them."""

    def holds(kernel: object) -> str | None:
        case = make_case()
        fault = _unfit(kernel, list(case.arguments))
        return fault if fault is not None else _judge(kernel, case, atomics)

    return holds


def _judge(kernel, case: Case, atomics: bool) -> str | None:
    """Launch, then look for the first fault: what would harm on a GPU before what is merely wrong."""
    outputs = {name: poisoned(tensor.shape, case.arguments[name]) for name, tensor in case.expected.items()}
    arguments = {**case.arguments, **outputs}
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    fault = None
    try:
        with trace(**tensors) as record:
            fault = _launch(kernel, case.grid, arguments)
    except NotImplementedError:
        raise
    except RuntimeError as error:  # nothing was launched: Triton could not read the kernel, or it compiles here
        return fault or str(error)
    if record.outside:
        return f"{record.outside[0]}; a mask is missing, or an offset is wrong"
    if fault is not None:
        return fault
    if not atomics and any(step.kind == "atomic" for step in record.steps):
        return "it uses atomics: who comes first is then the scheduler's choice, and no two runs need agree"
    return _strangers(record, tensors, outputs) or find_race(record) or _difference(record, outputs, case)


def _unfit(kernel: object, parameters: list[str]) -> str | None:
    """What is wrong with the answer itself, before it is launched."""
    names = getattr(kernel, "arg_names", None)
    if names is None and callable(kernel):
        return f"{getattr(kernel, '__name__', 'it')} is a plain function; write @triton.jit above it"
    if names is None or not hasattr(kernel, "run"):
        return f"give the kernel itself, a function under @triton.jit; this is a {type(kernel).__name__}"
    if list(names) != parameters:
        return f"its parameters are {', '.join(names)}; keep those of the stub, {', '.join(parameters)}"
    return None


def _launch(kernel, grid: tuple[int, ...], arguments: dict[str, object]) -> str | None:
    """Run it; what the kernel raises in words. NotImplementedError goes through: an untouched stub."""
    try:
        with time_limit(0.01 if kernel in _endless else MOST_SECONDS):
            kernel[grid](**arguments)
    except Exception as error:
        while error.__cause__ is not None:  # the interpreter wraps what the kernel raised, once a call
            error = error.__cause__
        if isinstance(error, NotImplementedError):
            raise error from None
        if isinstance(error, TimeoutError):
            _endless.add(kernel)
            return f"it still ran after {MOST_SECONDS:.0f} seconds; does a loop never end?"
        lines = str(error).strip().splitlines()
        return f"it raised {type(error).__name__}: {lines[-1] if lines else ''}"[:200]
    return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer. Only the main thread can be interrupted; in another nothing happens.

    Example:
        >>> with time_limit(0.01):  # doctest: +IGNORE_EXCEPTION_DETAIL
        ...     while True:
        ...         pass
        Traceback (most recent call last):
        TimeoutError
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, put_off = False, 0

    def stop(_, frame: FrameType | None) -> None:
        nonlocal put_off
        if over:
            return
        # Some of the standard library Python calls by itself, such as what tidies up a WeakSet. There an exception is
        # printed and forgotten, so it waits for another place, if that comes soon.
        if frame and frame.f_code.co_filename.startswith(STANDARD_LIBRARY) and put_off < 100:
            put_off += 1
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        signal.setitimer(signal.ITIMER_REAL, 1.0)  # once more, should this one be forgotten, too
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An output nobody has written yet: NaN, or half the lowest whole number."""
    return torch.full(tuple(shape), float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min // 2).to(dtype)


def _strangers(record: Record, tensors: dict[str, Tensor], outputs: dict[str, Tensor]) -> str | None:
    """Whether it wrote into what it was given to read."""
    for name in record.tensors:
        if name in tensors and name not in outputs and bool(record.writes(name).any()):
            return f"it writes into {name}, which is there to be read"
    return None


def find_race(record: Record) -> str | None:
    """Two programs of one launch of which one writes what the other reads or writes, in words; None if there are none.

    Atomics do not race with each other. The interpreter runs programs one after the other, so such a kernel may be
    right here; on a GPU they run at once.

    Example:
        >>> from moe_lab.tracing import Launch, Step
        >>> def store(program):
        ...     return Step(0, program, 0, "store", "y", np.array([3]), bytes_at=np.array([12]), width=4)
        >>> find_race(Record.written_down({"y": torch.zeros(4)}, [Launch("k", (2, 1, 1), 0)], [store(0), store(1)]))
        'programs 0 and 1 both touch element 3 of y, and one of them writes it: on a GPU they run at once'
    """
    touched: dict[tuple[int, str], list[tuple[np.ndarray, int, str]]] = {}
    for step in record.steps:
        if step.tensor is not None:
            touched.setdefault((step.launch, step.tensor), []).append((step.elements, step.program, step.kind))
    for (_, name), accesses in touched.items():
        stored = np.concatenate([np.zeros(0, int), *(elements for elements, _, kind in accesses if kind == "store")])
        pairs = [np.stack([elements, np.full(len(elements), program)], axis=1) for elements, program, _ in accesses]
        visitors = np.unique(np.concatenate(pairs), axis=0)  # (element, program), each once, by element
        again = np.flatnonzero((np.diff(visitors[:, 0]) == 0) & np.isin(visitors[1:, 0], stored))
        if len(again):
            (element, one), (_, other) = visitors[again[0] : again[0] + 2].tolist()
            return (
                f"programs {one} and {other} both touch element {element} of {name}, and one of them writes it: "
                "on a GPU they run at once"
            )
    return None


def _difference(record: Record, outputs: dict[str, Tensor], case: Case) -> str | None:
    """The first element of an output that is not written, should not be, or holds something else."""
    for name, output in outputs.items():
        unused = case.unused.get(name, torch.zeros(output.shape, dtype=torch.bool))
        missed = record.never_written(name) if name in record.tensors else torch.ones(output.shape, dtype=torch.bool)
        if bool((missed & ~unused).any()):
            return f"{_place(missed & ~unused, name, case)} is never written"
        if bool((~missed & unused).any()):
            return f"{_place(~missed & unused, name, case)} is written, and should be left alone"
        spec = case.expected[name]
        wrong = ~unused & _wrong(output, spec, unused)
        if bool(wrong.any()):
            yours, right = (tensor[tuple(wrong.nonzero()[0])] for tensor in (output, spec))
            many = f"{int(wrong.sum())} of {int((~unused).sum())} differ"
            return f"{_place(wrong, name, case)}: yours {_number(yours)}, spec {_number(right)} ({many})"
    return None


def _wrong(output: Tensor, spec: Tensor, unused: Tensor) -> Tensor:
    """Which elements differ; floating-point ones by more than their dtype's share of the RMS."""
    if not output.dtype.is_floating_point:
        return output != spec
    rms = spec[~unused].square().mean().sqrt()
    return ~((output.double() - spec).abs() <= TOLERANCE[output.dtype] * (rms + spec.abs()))


def _place(found: Tensor, name: str, case: Case) -> str:
    index = found.nonzero()[0].tolist()
    return f"{name}, " + ", ".join(f"{axis} {i}" for axis, i in zip(case.axes[name], index, strict=True))


def _number(value: Tensor) -> str:
    number = value.item()
    return f"{number:.4g}" if isinstance(number, float) else str(number)
