"""Memory tracer: which elements each program of a kernel loads, stores and masks, step by step."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import traitlets

from moe_lab.checks import check_whole
from moe_lab.tracing import KINDS, Record, Step, Totals, traced
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.route_one_batch import check_range

MOST_TENSORS, MOST_CELLS, MOST_ROWS, MOST_COLUMNS = 3, 4096, 256, 128
MOST_PROGRAMS, MOST_STEPS, MOST_PATTERN_BYTES = 1024, 4096, 300_000
WRAP = 32  # a vector is drawn in rows of so many elements
COUNTS = ("so far", "all programs")


class MemoryTracer(LabWidget):
    """Show a traced kernel one step at a time: what it touches, what the mask held back, and what was read before.

    ``record`` is a `Record` of `moe_lab.tracing`, or a launcher that is traced here with ``arguments``. Up to three
    ``tensors`` are drawn, the largest ones unless they are named; the others are told of and not drawn. ``reference``
    is the record that the totals are held against; without one it is every element moved once. Programs come in the
    order of their numbers; ``count`` says whether the numbers in the cells count "so far" or over "all programs".
    Drawing needs no kernel: everything is sent at the start, equal sets of elements once.

    Example:
        >>> import torch
        >>> from moe_lab.tracing import Launch
        >>> def load(program, start, stop):
        ...     at = np.arange(start, stop)
        ...     return Step(0, program, 0, "load", "x", at, bytes_at=4 * at, width=4)
        >>> x, launch = torch.zeros(2, 4), Launch("sum", (2, 1, 1), 0)
        >>> record = Record.written_down({"x": x}, [launch], [load(0, 0, 4), load(1, 2, 8)])
        >>> MemoryTracer(record, program=1)  # doctest: +NORMALIZE_WHITESPACE
        MemoryTracer: Program 1 of 0..1, step 0 of 0..0: loads 6 elements of x, 2 of them read before, 24 bytes in 1
        sector (the fewest possible).

    Raises ValueError for a tensor that the record does not have or that is too large to draw (4096 elements, 256
    rows, 128 columns), for more than three of them, more than 1024 programs or 4096 steps, and for a program or step
    that the record does not have.
    """

    _esm = Path(__file__).with_name("memory_tracer.js")
    _css = Path(__file__).with_name("memory_tracer.css")
    of_the_reader = ("program", "step", "count")

    tensors = traitlets.List(traitlets.Dict()).tag(sync=True)  # name, shape, dtype, rows, columns, counted
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of all tensors, those that are drawn first
    patterns = traitlets.List(traitlets.Unicode()).tag(sync=True)  # sets of elements, as `pack` writes them
    steps = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # in the order of FIELDS
    programs = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # launch, first step, steps, place...
    launches = traitlets.List(traitlets.Unicode()).tag(sync=True)
    sources = traitlets.List(traitlets.Unicode()).tag(sync=True)
    reference = traitlets.Dict().tag(sync=True)
    program = traitlets.Int(0, min=0).tag(sync=True)
    step = traitlets.Int(0, min=0).tag(sync=True)
    count = traitlets.Enum(COUNTS, COUNTS[0]).tag(sync=True)

    def __init__(
        self,
        record: Record | Callable,
        arguments: Sequence = (),
        *,
        tensors: Sequence[str] | None = None,
        reference: Record | None = None,
        program: int = 0,
        step: int = 0,
        count: str = COUNTS[0],
    ):
        record = record if isinstance(record, Record) else traced(record, *arguments)
        if count not in COUNTS:
            raise ValueError(f"count must be one of {', '.join(COUNTS)}; got {count!r}")
        _check_size(record)
        shown = _choose(record, tensors)
        self._record = record
        self._of_program = [[] for _ in range(record.num_programs)]
        for one in record.steps:
            self._of_program[one.program].append(one)
        check_whole("program", program, 0, record.num_programs - 1)
        check_whole("step", step, 0, max(0, len(self._of_program[program]) - 1))
        super().__init__(
            **_as_sent(record, shown, self._of_program),
            launches=[launch.kernel for launch in record.launches],
            reference=_reference(record, reference),
            program=program,
            step=step,
            count=count,
        )
        self.observe(self._fit_step, "program")

    def tally(self) -> dict[str, object]:
        """What the widget shows at its present program and step.

        ``kind``, ``tensor``, ``elements`` (lanes), ``masked``, ``outside``, ``again`` (elements of a drawn tensor that
        were read, or written if nothing loads the tensor, before this step); the sums ``step``, ``program``, ``so_far``
        and ``all``, each bytes_read, bytes_written, flops, sectors and least_sectors; and ``counts``, for each drawn
        tensor how often its elements were counted: least, most, and never (how many elements).
        """
        record, own = self._record, self._of_program[self.program]
        before = [step for steps in self._of_program[: self.program] for step in steps] + own[: self.step]
        present = own[self.step] if self.step < len(own) else None
        here = [] if present is None else [present]
        drawn = {tensor["name"]: _KINDS_COUNTED[tensor["counted"]] for tensor in self.tensors}
        counted = record.steps if self.count == "all programs" else before + here
        counts = {
            name: record.count(name, [step for step in counted if step.kind in kinds]) for name, kinds in drawn.items()
        }
        found = {"kind": None, "tensor": None, "elements": 0, "masked": 0, "outside": 0, "again": 0}
        if present is not None:
            found |= {"kind": present.kind, "tensor": present.tensor}
            found |= {"elements": len(present.bytes_at), "masked": present.masked_lanes}
            found["outside"] = _lanes_outside(record, present)
            if present.kind in drawn.get(present.tensor, ()):
                kinds = drawn[present.tensor]
                earlier = record.count(present.tensor, [step for step in before if step.kind in kinds])
                found["again"] = int(((earlier > 0) & (record.count(present.tensor, here) > 0)).sum())
        sums = {"step": here, "program": own, "so_far": before + here, "all": record.steps}
        return {
            **found,
            **{name: _sums(record.totals(steps)) for name, steps in sums.items()},
            "counts": {
                name: {"least": int(count.min()), "most": int(count.max()), "never": int((count == 0).sum())}
                for name, count in counts.items()
            },
        }

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        found, own = self.tally(), self._of_program[self.program]
        place = self._record.place_of(self.program)
        at = f" at ({', '.join(map(str, place))})" if len(place) > 1 else ""
        who = f"Program {self.program} of 0..{len(self._of_program) - 1}{at}"
        if len(self.launches) > 1:
            who += f", {self._record.launch_of(self.program).kernel}"
        if not own:
            return f"{who}: neither loads nor stores."
        who += f", step {self.step} of 0..{len(own) - 1}"
        if found["kind"] == "dot":
            return f"{who}: multiplies tiles, {found['step']['flops']:,} FLOPs."
        moved = own[self.step].bytes
        fewest, sectors = found["step"]["least_sectors"], found["step"]["sectors"]
        verb = {"load": "loads", "store": "stores", "atomic": "updates"}[found["kind"]]
        parts = [f"{verb} {_many(found['elements'], 'element')} of {found['tensor']}"]
        if found["kind"] == "atomic":
            parts[0] += " atomically"
        if found["again"]:
            counted = next(one["counted"] for one in self.tensors if one["name"] == found["tensor"])
            many = "all" if found["again"] == found["elements"] else f"{found['again']:,}"
            parts.append(f"{many} of them {counted} before")
        if moved:
            than = "the fewest possible" if sectors == fewest else f"{fewest:,} could hold them"
            parts.append(f"{moved:,} bytes in {_many(sectors, 'sector')} ({than})")
        if found["masked"]:
            parts.append(f"{_many(found['masked'], 'lane')} masked")
        if found["outside"]:
            parts.append(f"{_many(found['outside'], 'lane')} outside of the tensor")
        return f"{who}: {', '.join(parts)}."

    def __repr__(self) -> str:
        return f"MemoryTracer: {self.summary()}"

    def _fit_step(self, _) -> None:
        self.step = min(self.step, max(0, len(self._of_program[self.program]) - 1))

    @traitlets.validate("program")
    def _check_program(self, proposal):
        check_range("program", proposal["value"], 0, len(self._of_program) - 1)
        return proposal["value"]

    @traitlets.validate("step")
    def _check_step(self, proposal):
        check_range("step", proposal["value"], 0, max(0, max(map(len, self._of_program)) - 1))
        return proposal["value"]


_KINDS_COUNTED = {"read": ("load", "atomic"), "written": ("store", "atomic")}
FIELDS = ("kind", "tensor", "touched", "held", "elements", "masked", "bytes", "flops", "sectors", "least_sectors")
FIELDS += ("outside", "source")


def pack(counts: np.ndarray) -> str:
    """Counts as runs of equal ones that are not 0: start+length*times, the last two left out where they are 1.

    Example:
        >>> pack(np.array([0, 1, 1, 1, 0, 2, 1]))
        '1+3 5*2 6'
    """
    edges = np.flatnonzero(np.diff(counts, prepend=0, append=0))
    runs = []
    for start, stop in pairwise(edges):
        if times := counts[start]:
            length = f"+{stop - start}" if stop - start > 1 else ""
            runs.append(f"{start}{length}" + (f"*{times}" if times > 1 else ""))
    return " ".join(runs)


def layout(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of cells that a tensor is drawn in: leading axes are stacked, vectors wrap at 32.

    Example:
        >>> layout((6, 10)), layout((2, 3, 4)), layout((5,)), layout((70,)), layout((7, 1)), layout(())
        ((6, 10), (6, 4), (1, 5), (3, 32), (1, 7), (1, 1))
    """
    cells = math.prod(shape)
    if len(shape) > 1 and shape[-1] > 1:
        return cells // shape[-1], shape[-1]
    columns = min(cells, WRAP)
    return -(-cells // columns), columns


def _check_size(record: Record) -> None:
    for what, number, most in (
        ("programs", record.num_programs, MOST_PROGRAMS),
        ("steps", len(record.steps), MOST_STEPS),
    ):
        if not 1 <= number <= most:
            raise ValueError(f"record must hold 1..{most} {what} to be drawn, got {number}; trace a smaller shape")


def _choose(record: Record, names: Sequence[str] | None) -> list[str]:
    """The tensors to draw: those that are named, or the largest."""
    known = record.tensors
    if names is None:
        largest = sorted(known, key=lambda name: -known[name].numel())[:MOST_TENSORS]
        names = [name for name in known if name in largest and known[name].numel()]
    if isinstance(names, str) or not 1 <= len(names) <= MOST_TENSORS or len(set(names)) < len(names):
        raise ValueError(f"tensors must name 1..{MOST_TENSORS} different tensors, got {names!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"tensors must be of {', '.join(known)}; got {name!r}")
        shape = tuple(known[name].shape)
        if not 1 <= math.prod(shape) <= MOST_CELLS:
            raise ValueError(f"tensors must have 1..{MOST_CELLS} elements to be drawn, {name} is {shape}")
        rows, columns = layout(shape)
        if rows > MOST_ROWS or columns > MOST_COLUMNS:
            raise ValueError(
                f"tensors must have at most {MOST_ROWS} rows and {MOST_COLUMNS} columns to be drawn, {name} is {shape}"
            )
    return list(names)


def _as_sent(record: Record, shown: list[str], by_program: list[list[Step]]) -> dict[str, object]:
    names = [*shown, *(name for name in record.tensors if name not in shown)]
    patterns, sources, steps, programs = {"": 0}, {}, [], []
    for program, own in enumerate(by_program):
        launch = record.launches.index(record.launch_of(program))
        programs.append([launch, len(steps), len(own), *record.place_of(program)])
        for step in own:
            sets = ["", ""]
            if step.tensor in shown:
                sets = [pack(record.count(step.tensor, [step], masked).reshape(-1).numpy()) for masked in (False, True)]
            at = [patterns.setdefault(one, len(patterns)) for one in sets]
            tensor = -1 if step.tensor is None else names.index(step.tensor)
            counts = (len(step.bytes_at), step.masked_lanes, step.bytes, step.flops, *step.segments())
            source = sources.setdefault(step.source, len(sources))
            steps.append([KINDS.index(step.kind), tensor, *at, *counts, _lanes_outside(record, step), source])
    size = sum(map(len, patterns))
    if size > MOST_PATTERN_BYTES:
        raise ValueError(
            f"record takes {size} bytes to draw, at most {MOST_PATTERN_BYTES} are sent; trace a smaller shape"
        )
    loaded = {step.tensor for step in record.steps if step.kind == "load"}
    tensors = []
    for name in shown:
        tensor, (rows, columns) = record.tensors[name], layout(tuple(record.tensors[name].shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        counted = "read" if name in loaded else "written"
        tensors.append(dict(name=name, shape=[*tensor.shape], dtype=dtype, rows=rows, columns=columns, counted=counted))
    return dict(tensors=tensors, names=names, patterns=[*patterns], steps=steps, programs=programs, sources=[*sources])


def _lanes_outside(record: Record, step: Step) -> int:
    where = (step.program, step.number)
    return sum(found.count for found in record.outside if (found.program, found.number) == where)


def _reference(record: Record, reference: Record | None) -> dict[str, object]:
    if reference is not None:
        return {"title": "Reference", **_sums(reference.totals())}
    total = record.totals()
    once = {"bytes_read": total.unique_bytes_read, "bytes_written": total.unique_bytes_written, "flops": total.flops}
    return {"title": "Each element once", **once, "sectors": 0, "least_sectors": 0}


def _sums(total: Totals) -> dict[str, int]:
    names = ("bytes_read", "bytes_written", "flops", "sectors", "least_sectors")
    return {name: getattr(total, name) for name in names}


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
