"""Tracing: every load, store and product of a Triton kernel, element by element, while it runs in the interpreter.

Triton's interpreter computes in NumPy, and each access of a kernel passes through a few methods of one class. While a
`trace` is on, those methods note what they are asked for. Each launch then works on a copy of its tensors: a copy
starts at a multiple of 128 bytes, as on a GPU, and has free space around it, so that an access which leaves its tensor
is seen, and does no harm. The tensors themselves receive the results when the launch ends.
"""

import inspect
import linecache
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_lab.checks import check_whole

SECTOR_BYTES = 32  # what a GPU moves at least; four of them are a cache line
ALIGNMENT = 128
GUARD = 1 << 16  # bytes between two copies: whoever leaves his tensor by less does not reach another one
KINDS = ("load", "store", "atomic", "dot")

_READS, _WRITES = ("load", "atomic"), ("store", "atomic")  # an atomic reads what it changes
_running = False


def _nothing() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name, its grid, and the number of its first program among those of all launches."""

    kernel: str
    grid: tuple[int, ...]
    first_program: int


@dataclass(frozen=True, eq=False)
class Step:
    """One thing that one program did.

    ``kind`` is "load", "store", "atomic" or "dot"; ``number`` counts the steps of the program from 0. ``elements`` are
    those that it touched in ``tensor``, one for each lane: offsets from the tensor's first element, in elements of
    memory; ``masked`` are those that ``masked_lanes`` lanes would have touched without their mask, as far as they are
    the tensor's. ``bytes_at`` is where the touched ones start, in bytes from the start of the storage, and ``width``
    the bytes of each. ``flops`` is 2 * M * N * K for a dot of (M, K) by (K, N), and 0 otherwise. ``source`` is the line
    of the kernel that asked for it.
    """

    launch: int
    program: int
    number: int
    kind: str
    tensor: str | None = None
    elements: np.ndarray = field(default_factory=_nothing)
    masked: np.ndarray = field(default_factory=_nothing)
    masked_lanes: int = 0
    bytes_at: np.ndarray = field(default_factory=_nothing)
    width: int = 0
    flops: int = 0
    source: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of all lanes that were not masked; two lanes at the same place count twice."""
        return len(self.bytes_at) * self.width

    def segments(self, size: int = SECTOR_BYTES) -> tuple[int, int]:
        """Aligned segments of ``size`` bytes that this step touches, and the fewest that could hold its elements.

        Example:
            >>> far = np.arange(8) * 64  # eight numbers of 4 bytes, one in every other sector
            >>> Step(0, 0, 0, "load", "x", far // 4, bytes_at=far, width=4).segments()
            (8, 1)
        """
        starts = np.unique(self.bytes_at)
        touched = np.unique(np.concatenate([starts // size, (starts + self.width - 1) // size]))
        return len(touched), -(-len(starts) * self.width // size)


@dataclass(frozen=True)
class Outside:
    """An access that left its tensor: ``count`` lanes without a mask, on elements that are not the tensor's own.

    ``first`` is the offset of the first of them from the tensor's first element, in elements; ``address`` is its
    address. Such a lane reads 0 (or what the load has for masked lanes) and writes nothing, unless it is elsewhere in
    a storage that the kernel was given, where it does what it was told.
    """

    program: int
    number: int
    kind: str
    tensor: str
    count: int
    first: int
    address: int
    span: int

    def __str__(self) -> str:
        if self.first < 0:
            where = f"{-self.first} before its start"
        elif self.first >= self.span:
            where = f"{self.first - self.span + 1} after its last"
        else:
            where = "between its elements"
        many = "1 element" if self.count == 1 else f"{self.count} elements"
        return (
            f"program {self.program}, step {self.number}: the {self.kind} of {many} outside of {self.tensor}, "
            f"the first {where}"
        )


@dataclass(frozen=True)
class Totals:
    """What some steps add up to: bytes, FLOPs of tl.dot, 32-byte sectors, and lanes that a mask held back.

    ``unique_bytes_read`` and ``unique_bytes_written`` count each element once, however often it was touched: no order
    of the work and no cache can do with less. An atomic is both read and written.
    """

    bytes_read: int
    bytes_written: int
    unique_bytes_read: int
    unique_bytes_written: int
    flops: int
    sectors: int
    least_sectors: int
    masked_lanes: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """FLOPs a byte; 0 where nothing was moved."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def unique_bytes(self) -> int:
        """Bytes read and written if each element is moved once."""
        return self.unique_bytes_read + self.unique_bytes_written


@dataclass(eq=False)
class _Region:
    """A named tensor, and where its copy starts in the launch that is running."""

    name: str
    tensor: Tensor  # kept alive: freed memory could come back as another tensor
    start: int | None = None

    def __post_init__(self):
        sizes, strides = self.tensor.shape, self.tensor.stride()
        offsets = np.zeros((), np.int64)
        for size, stride in zip(sizes, strides, strict=True):
            offsets = offsets[..., None] + np.arange(size) * stride
        self.offsets = offsets.reshape(-1)  # of each element in memory, in the order of the tensor's own elements
        self.span = int(self.offsets.max()) + 1 if len(self.offsets) else 0
        self.member = np.zeros(self.span, bool)
        self.member[self.offsets] = True
        self.itemsize = self.tensor.element_size()
        self.key = _key(self.tensor)

    def holds(self, addresses: np.ndarray) -> np.ndarray:
        elements = (addresses - self.start) // self.itemsize
        inside = (elements >= 0) & (elements < self.span)
        inside[inside] = self.member[elements[inside]]
        return inside


@dataclass(eq=False)
class Record:
    """What a traced run did: ``steps`` in the order of execution, ``launches``, and accesses ``outside`` of tensors.

    Programs are numbered through all launches; within one, x varies fastest, as on a GPU (the interpreter runs them
    with x slowest). ``result`` is what the launcher returned, where `traced` called it.
    """

    steps: list[Step] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    outside: list[Outside] = field(default_factory=list)
    result: object = None
    _regions: dict[str, _Region] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @classmethod
    def written_down(cls, tensors: dict[str, Tensor], launches: list[Launch], steps: list[Step]) -> "Record":
        """A record of steps that no kernel took: for examples, and for tests of what reads records."""
        return cls([*steps], [*launches], _regions=_name(tensors), _seen={*tensors})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a kernel was given, by name: yours if you named them, else the kernel's."""
        return {name: region.tensor for name, region in self._regions.items() if name in self._seen}

    @property
    def num_programs(self) -> int:
        """Programs of all launches, also those that did nothing."""
        return sum(math.prod(launch.grid) for launch in self.launches)

    def launch_of(self, program: int) -> Launch:
        """The launch that a program belongs to."""
        check_whole("program", program, 0, self.num_programs - 1)
        return [launch for launch in self.launches if launch.first_program <= program and math.prod(launch.grid)][-1]

    def place_of(self, program: int) -> tuple[int, ...]:
        """What ``tl.program_id`` gave to a program: a number for each axis of its grid.

        Axes of size 1 at the end of the grid are left out.
        """
        launch = self.launch_of(program)
        number, place = program - launch.first_program, []
        for size in launch.grid:
            place.append(number % size)
            number //= size
        axes = max([axis for axis, size in enumerate(launch.grid) if size > 1], default=0) + 1
        return tuple(place[:axes])

    def of_program(self, program: int) -> list[Step]:
        """The steps of one program, in their order."""
        check_whole("program", program, 0, self.num_programs - 1)
        return [step for step in self.steps if step.program == program]

    def reads(self, name: str, program: int | None = None) -> Tensor:
        """How many times each element of a tensor was read (loads and atomics), int64 in the tensor's shape."""
        return self._count(name, _READS, program)

    def writes(self, name: str, program: int | None = None) -> Tensor:
        """How many times each element of a tensor was written (stores and atomics), int64 in the tensor's shape."""
        return self._count(name, _WRITES, program)

    def never_written(self, name: str) -> Tensor:
        """Which elements no program wrote, bool in the tensor's shape."""
        return self.writes(name) == 0

    def written_twice(self, name: str) -> Tensor:
        """Which elements were stored more than once, bool in the tensor's shape; atomics add up on purpose."""
        return self._count(name, ("store",), None) > 1

    def segments(self, name: str | None = None, size: int = SECTOR_BYTES, kind: str | None = None) -> tuple[int, int]:
        """Segments of ``size`` bytes that all steps touched, each step for itself, and the fewest that could do.

        Their ratio is 1 where every access is coalesced. ``name`` and ``kind`` choose a tensor and "load", "store"
        or "atomic"; 32 bytes are a sector, 128 a cache line.
        """
        check_whole("size", size, 1)
        if name is not None:
            self._region(name)
        chosen = [
            step for step in self.steps if name in (None, step.tensor) and kind in (None, step.kind) and step.tensor
        ]
        pairs = [step.segments(size) for step in chosen]
        return sum(touched for touched, _ in pairs), sum(least for _, least in pairs)

    def totals(self, steps: Iterable[Step] | None = None) -> Totals:
        """Sums over the given steps, or over all of them."""
        steps = [*(self.steps if steps is None else steps)]
        sectors = [step.segments() for step in steps]
        return Totals(
            bytes_read=sum(step.bytes for step in steps if step.kind in _READS),
            bytes_written=sum(step.bytes for step in steps if step.kind in _WRITES),
            unique_bytes_read=self._unique_bytes(steps, _READS),
            unique_bytes_written=self._unique_bytes(steps, _WRITES),
            flops=sum(step.flops for step in steps),
            sectors=sum(touched for touched, _ in sectors),
            least_sectors=sum(least for _, least in sectors),
            masked_lanes=sum(step.masked_lanes for step in steps),
        )

    def score(self, reference: "Record | None" = None) -> str:
        """A small table: reads, writes, FLOPs, FLOPs a byte and sectors, beside another record's.

        Without one, beside what moving each element once would take.
        """
        own = self.totals()
        other = own if reference is None else reference.totals()
        flops = own.flops / own.unique_bytes if own.unique_bytes else 0.0
        once = (own.unique_bytes_read, own.unique_bytes_written, own.flops, flops, None)
        columns = [("this kernel", _measures(own))]
        columns.append(("each once", once) if reference is None else ("reference", _measures(other)))
        names = ("bytes read", "bytes written", "FLOPs of tl.dot", "FLOPs a byte", "sectors, over the fewest")
        lines = [" " * 26 + "".join(f"{title:>14}" for title, _ in columns)]
        for row, name in enumerate(names):
            lines.append(f"{name:<26}" + "".join(f"{_show(values[row]):>14}" for _, values in columns))
        if self.outside:
            lines.append(f"{len(self.outside)} accesses leave their tensor, first: {self.outside[0]}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        total = self.totals()
        more = f", {len(self.outside)} accesses outside of their tensors" if self.outside else ""
        return (
            f"Record: {self.num_programs} programs, {len(self.steps)} steps, {total.bytes_read} bytes read, "
            f"{total.bytes_written} written, {total.flops} FLOPs{more}"
        )

    def _region(self, name: str) -> _Region:
        if name not in self._seen:
            known = ", ".join(self.tensors) or "none"
            raise ValueError(
                f"name must be a tensor that a traced kernel was given ({known}); got {name!r}. "
                "A launcher that copies its argument gives the kernel another tensor"
            )
        return self._regions[name]

    def _count(self, name: str, kinds: tuple[str, ...], program: int | None) -> Tensor:
        steps = self.steps if program is None else self.of_program(program)
        return self.count(name, [step for step in steps if step.kind in kinds])

    def count(self, name: str, steps: Iterable[Step], masked: bool = False) -> Tensor:
        """How many times the given steps touched each element of a tensor, int64 in its shape; or were masked."""
        region = self._region(name)
        counts = np.zeros(region.span, np.int64)
        for step in steps:
            if step.tensor == name:
                np.add.at(counts, step.masked if masked else step.elements, 1)
        return torch.from_numpy(counts[region.offsets]).reshape(region.tensor.shape)

    def _unique_bytes(self, steps: list[Step], kinds: tuple[str, ...]) -> int:
        touched: dict[str, list[np.ndarray]] = {}
        for step in steps:
            if step.kind in kinds and step.tensor is not None:
                touched.setdefault(step.tensor, []).append(step.elements)
        return sum(
            len(np.unique(np.concatenate(elements))) * self._regions[name].itemsize
            for name, elements in touched.items()
        )


def _measures(total: Totals) -> tuple:
    sectors = total.sectors / total.least_sectors if total.least_sectors else 0.0
    return total.bytes_read, total.bytes_written, total.flops, total.intensity, sectors


def _show(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


@contextmanager
def trace(**tensors: Tensor) -> Iterator[Record]:
    """Record every load, store, atomic and tl.dot of the kernels that run in Triton's interpreter meanwhile.

    ``tensors`` gives names to tensors. Any other tensor that a kernel is given goes by the name of the kernel's
    parameter, with the kernel's name before it if that one is taken: so outputs that a launcher allocates have a
    name too. Each access is looked up by its addresses, and belongs to the tensor in which most of its lanes lie; those
    that do not are in ``record.outside``. When a kernel raises, its tensors keep their values, and the record what
    happened until then.

    Example:
        >>> import moe_lab.kernels, triton, triton.language as tl
        >>> @triton.jit
        ... def double(x, y, n, BLOCK: tl.constexpr):
        ...     at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        ...     tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)
        >>> numbers, doubled = torch.arange(6.0), torch.empty(6)
        >>> with trace() as record:
        ...     double[(2,)](numbers, doubled, 6, BLOCK=4)
        >>> record
        Record: 2 programs, 4 steps, 24 bytes read, 24 written, 0 FLOPs
        >>> [step.kind for step in record.of_program(1)], record.reads("x")
        (['load', 'store'], tensor([1, 1, 1, 1, 1, 1]))

    Raises RuntimeError where kernels are compiled and not interpreted, where this Triton lacks one of the methods, if
    a trace is already on, and when nothing was launched until the end; TypeError for what is no tensor; ValueError for
    two names of one tensor.
    """
    global _running
    if _running:
        raise RuntimeError("a trace is already on: traces do not nest; end the other one first")
    regions = _name(tensors)
    record = Record(_regions=regions)
    hooks = _find_hooks(_Recorder(record))
    _running = True
    try:
        for owner, name, original, replacement in hooks:
            setattr(owner, name, _wrap(original, replacement))
        yield record
    finally:
        for owner, name, original, _ in hooks:
            setattr(owner, name, original)
        _running = False
    if not record.launches:
        raise RuntimeError("no kernel was launched in the interpreter while the trace was on: nothing was recorded")


def traced(launch: Callable, *arguments, **options) -> Record:
    """Call a launcher under `trace`; tensors go by the names that the kernel has for them.

    Example:
        >>> import moe_lab.kernels, triton, triton.language as tl
        >>> @triton.jit
        ... def fill(y, value):
        ...     tl.store(y + tl.program_id(0), value)
        >>> def full(size, value):
        ...     y = torch.empty(size)
        ...     fill[(size,)](y, value)
        ...     return y
        >>> record = traced(full, 3, 7.0)
        >>> record.result, record.writes("y")
        (tensor([7., 7., 7.]), tensor([1, 1, 1]))

    Raises what `trace` raises.
    """
    with trace() as record:
        record.result = launch(*arguments, **options)
    return record


def _name(tensors: dict[str, object]) -> dict[str, _Region]:
    regions: dict[str, _Region] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor with values, got {type(tensor).__name__}")
        for other in regions.values():
            if other.key == _key(tensor):
                raise ValueError(f"{other.name} and {name} must be different tensors, they are the same memory")
        regions[name] = _Region(name, tensor.detach())
    return regions


def _key(tensor: Tensor) -> tuple:
    storage = tensor.untyped_storage().data_ptr()
    return tensor.device, storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _find_hooks(recorder: "_Recorder") -> list[tuple]:
    """The methods of the interpreter that are replaced: all of them, with the parameters that we read, or an error."""
    import moe_lab.kernels  # noqa: F401  (switches the interpreter on where there is no GPU)

    import triton  # isort: skip  (after it)
    from triton.runtime import interpreter

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "trace watches Triton's interpreter, and kernels are compiled here; start Python with TRITON_INTERPRET=1 "
            "in the environment"
        )
    wanted = [
        ("GridExecutor", "_init_args_hst", ("args_dev", "kwargs"), recorder.begin),
        ("InterpreterBuilder", "set_grid_dim", ("nx", "ny", "nz"), recorder.size),
        ("InterpreterBuilder", "create_masked_load", ("ptrs", "mask"), recorder.load),
        ("InterpreterBuilder", "create_masked_store", ("ptrs", "value", "mask"), recorder.store),
        ("InterpreterBuilder", "create_atomic_rmw", ("rmwOp", "ptr", "val", "mask"), recorder.atomic),
        ("InterpreterBuilder", "create_atomic_cas", ("ptr", "cmp", "val"), recorder.compare_and_swap),
        ("InterpreterBuilder", "create_dot", ("a", "b", "d"), recorder.dot),
    ]
    hooks = []
    for owner, name, parameters, replacement in wanted:
        original = getattr(getattr(interpreter, owner, None), name, None)
        if original is None or tuple(inspect.signature(original).parameters)[1 : len(parameters) + 1] != parameters:
            raise RuntimeError(
                f"Triton {triton.__version__} has no {owner}.{name}({', '.join(parameters)}, ...) in its interpreter: "
                "trace works with Triton 3.6 and 3.7"
            )
        hooks.append((getattr(interpreter, owner), name, original, replacement))
    return hooks


def _wrap(original: Callable, replacement: Callable) -> Callable:
    def hooked(*arguments, **options):
        return replacement(original, *arguments, **options)

    return hooked


class _Recorder:
    """Stands in for the interpreter's methods: notes what is asked for, then lets the original do it."""

    def __init__(self, record: Record):
        self.record = record
        self.present: list[_Region] = []
        self.storages: dict[int, tuple[int, int]] = {}  # by the storage's own address: where its copy starts and ends
        self.buffers: list[np.ndarray] = []
        self.next_step: dict[int, int] = {}

    def begin(self, original, executor, args_dev, kwargs):
        """A launch: copy its tensors apart from each other, and name them."""
        args_hst, kwargs_hst = original(executor, args_dev, kwargs)
        self.present, self.storages, self.buffers, copies = [], {}, [], {}
        kernel = executor.fn.__name__
        record = self.record
        record.launches.append(Launch(kernel, (0,), record.num_programs))
        given = [*zip(executor.arg_names, args_dev, args_hst, strict=False)]
        given += [(name, kwargs[name], kwargs_hst[name]) for name in kwargs]
        pairs = [pair for one in given for pair in _tensors_in(*one)]
        for _, tensor, copy in pairs:
            storage = tensor.untyped_storage().data_ptr()
            if storage not in copies:
                copies[storage], self.storages[storage] = self._copy(copy.untyped_storage())
            copy.set_(copies[storage], copy.storage_offset(), copy.size(), copy.stride())
        for region in record._regions.values():  # tensors with names of the reader's come first
            self._put(region)
        for name, tensor, _ in pairs:
            if all(region.key != _key(tensor) for region in record._regions.values()):
                fresh = _free_name(name, kernel, record._regions)
                record._regions[fresh] = _Region(fresh, tensor.detach())
                self._put(record._regions[fresh])
        return args_hst, kwargs_hst

    def size(self, original, builder, nx, ny, nz):
        """A launch: the size of its grid."""
        last = self.record.launches[-1]
        grid = tuple(int(getattr(size, "value", size)) for size in (nx, ny, nz))
        self.record.launches[-1] = Launch(last.kernel, grid, last.first_program)
        return original(builder, nx, ny, nz)

    def load(self, original, builder, ptrs, mask, *rest, **options):
        """Note a load, and do it where there is memory."""
        return original(builder, ptrs, self._note("load", builder, ptrs, mask), *rest, **options)

    def store(self, original, builder, ptrs, value, mask, *rest, **options):
        """Note a store, and do it where there is memory."""
        return original(builder, ptrs, value, self._note("store", builder, ptrs, mask), *rest, **options)

    def atomic(self, original, builder, rmwOp, ptr, val, mask, *rest, **options):
        """Note an atomic, and do it where there is memory."""
        return original(builder, rmwOp, ptr, val, self._note("atomic", builder, ptr, mask), *rest, **options)

    def compare_and_swap(self, original, builder, ptr, cmp, val, *rest, **options):
        """Note a compare-and-swap; it has no mask, so one outside of all memory cannot go on."""
        everywhere = type(ptr)(np.ones(np.shape(ptr.data), bool), _bool_type())
        if not self._note("atomic", builder, ptr, everywhere).data.all():
            raise IndexError(str(self.record.outside[-1]))
        return original(builder, ptr, cmp, val, *rest, **options)

    def dot(self, original, builder, a, b, d, *rest, **options):
        """Note a product of tiles."""
        product = original(builder, a, b, d, *rest, **options)
        flops = 2 * int(product.data.size) * int(a.data.shape[-1])
        self._add(builder, "dot", flops=flops)
        return product

    def _copy(self, storage) -> tuple:
        """The bytes of a storage in a place of their own, and where that is."""
        buffer = np.empty(storage.nbytes() + 2 * GUARD + ALIGNMENT, np.uint8)
        start = GUARD + -(buffer.ctypes.data + GUARD) % ALIGNMENT
        copy = torch.from_numpy(buffer[start : start + storage.nbytes()]).untyped_storage()
        if storage.nbytes():
            copy.copy_(storage)
        self.buffers.append(buffer)
        low = buffer.ctypes.data + start
        return copy, (low, low + storage.nbytes())

    def _put(self, region: _Region) -> None:
        storage = region.tensor.untyped_storage().data_ptr()
        if storage in self.storages:
            region.start = self.storages[storage][0] + region.tensor.storage_offset() * region.itemsize
            self.present.append(region)
            self.record._seen.add(region.name)

    def _note(self, kind: str, builder, ptrs, mask):
        """Record one access; the mask of the lanes that can be served."""
        shape = np.shape(ptrs.data)
        addresses = np.asarray(ptrs.data).astype(np.int64).reshape(-1)
        lanes = mask if isinstance(mask, np.ndarray) else mask.data  # an array, where a descriptor made it
        lanes = np.broadcast_to(np.asarray(lanes, bool), shape).reshape(-1)
        width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        inside = [region.holds(addresses) for region in self.present]
        chosen = self._choose(inside, addresses, lanes)
        if chosen is None:
            raise IndexError(f"the {kind} has a pointer, but the kernel was given no tensor")
        region, own = self.present[chosen], inside[chosen]
        low, _ = self.storages[region.tensor.untyped_storage().data_ptr()]
        touched, stray = addresses[lanes & own], addresses[lanes & ~own]
        elements, masked = (_elements(at, region, width) for at in (touched, addresses[~lanes & own]))
        found = dict(elements=elements, masked=masked, masked_lanes=int((~lanes).sum()))
        found |= dict(bytes_at=touched - low, width=width)
        step = self._add(builder, kind, region.name, **found)
        if len(stray):
            first = int((stray[0] - region.start) // region.itemsize)
            where = (len(stray), first, int(stray[0]), region.span)
            self.record.outside.append(Outside(step.program, step.number, kind, region.name, *where))
        served = np.zeros(len(addresses), bool)
        for start, stop in self.storages.values():
            served |= (addresses >= start) & (addresses + width <= stop)
        lanes = (lanes & served).reshape(shape)
        return lanes if isinstance(mask, np.ndarray) else type(mask)(lanes, mask.dtype)

    def _choose(self, inside: list[np.ndarray], addresses: np.ndarray, lanes: np.ndarray) -> int | None:
        """The tensor that an access means: where most of its lanes lie, else the one nearest to its first lane."""
        if not self.present:
            return None
        for some in (lanes, ~lanes):
            most = [int((own & some).sum()) for own in inside]
            if max(most):
                return most.index(max(most))
        first = int(addresses[lanes][0] if lanes.any() else addresses[0])
        ends = [(region.start, region.start + region.span * region.itemsize) for region in self.present]
        apart = [max(start - first, first - stop, 0) for start, stop in ends]
        return apart.index(min(apart))

    def _add(self, builder, kind: str, tensor: str | None = None, **found) -> Step:
        launch = self.record.launches[-1]
        x, y, z = (int(index) for index in builder.grid_idx)
        program = launch.first_program + x + launch.grid[0] * (y + launch.grid[1] * z)
        number = self.next_step.get(program, 0)
        self.next_step[program] = number + 1
        at = (len(self.record.launches) - 1, program, number)
        self.record.steps.append(Step(*at, kind, tensor, **found, source=_source_line()))
        return self.record.steps[-1]


def _elements(addresses: np.ndarray, region: _Region, width: int) -> np.ndarray:
    """Offsets in elements of a tensor; a pointer to a wider type touches several of them."""
    covered = np.arange(0, max(width, 1), region.itemsize)
    return ((addresses[:, None] - region.start + covered) // region.itemsize).reshape(-1)


def _tensors_in(name: str, given, copy) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors in an argument of a kernel with their copies: itself, a descriptor's, those of a tuple."""
    if isinstance(given, tuple):
        for number, (one, other) in enumerate(zip(given, copy, strict=True)):
            yield from _tensors_in(f"{name}_{number}", one, other)
    elif isinstance(given, Tensor):
        yield name, given, copy
    elif isinstance(getattr(given, "base", None), Tensor):  # a descriptor, or a tensor read as another dtype
        yield name, given.base, copy.base


def _free_name(name: str, kernel: str, taken: dict[str, _Region]) -> str:
    names = [name, f"{kernel}.{name}", *(f"{kernel}.{name}_{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in names if one not in taken)


def _bool_type():
    import triton.language as tl

    return tl.int1


def _source_line() -> str:
    """What the kernel, or a function that it calls, asked Triton for just now: whole lines, put into one."""
    triton = str(Path(sys.modules["triton"].__file__).parent)
    frame, entered = sys._getframe(1), False
    while frame is not None:
        within = frame.f_code.co_filename.startswith(triton)
        if entered and not within:
            break
        entered, frame = entered or within, frame.f_back
    if frame is None:
        return ""
    positions = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), (None, None))
    first = positions[0] or frame.f_lineno
    lines = range(first, max(first, positions[1] or first) + 1)
    text = " ".join(linecache.getline(frame.f_code.co_filename, line).strip() for line in lines)
    return text.strip().replace("( ", "(").replace(" )", ")").replace(",)", ")")
