"""Tracing: what it counts is what small kernels do by construction, and it never records nothing without a word."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder
from triton.tools.tensor_descriptor import TensorDescriptor

from moe_lab.tracing import Outside, Step, trace, traced

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="the interpreter is off: there is a GPU, or TRITON_INTERPRET=0"
)
HOOKED = {
    GridExecutor: ["_init_args_hst"],
    InterpreterBuilder: [
        "set_grid_dim",
        "create_masked_load",
        "create_masked_store",
        "create_atomic_rmw",
        "create_atomic_cas",
        "create_dot",
    ],
}


@triton.jit
def copy_kernel(x, y, n, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Every STRIDE-th element of x to the front of y."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at * STRIDE, mask=at < n)
    tl.store(y + at, values, mask=at < n)


@triton.jit
def unmasked_kernel(x, y, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """Elements FIRST.. of x, whether or not they exist."""
    at = FIRST + tl.arange(0, BLOCK)
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + at))


@triton.jit
def matmul_kernel(x, w, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of y = x @ w a program, on a grid of two axes."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        inner = k + tl.arange(0, BLOCK)
        left = tl.load(
            x + rows[:, None] * K + inner,
            mask=(rows < M)[:, None] & (inner < K),
            other=0.0,
        )
        right = tl.load(w + inner[:, None] * N + columns, mask=(inner < K)[:, None] & (columns < N), other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(y + rows[:, None] * N + columns, total, mask=(rows < M)[:, None] & (columns < N))


@triton.jit
def boxes_kernel(x, y, BLOCK: tl.constexpr):
    """Boxes through descriptors, which know where their tensor ends."""
    row = tl.program_id(0) * BLOCK
    y.store([row, 0], x.load([row, 0]))


@triton.jit
def block_pointer_kernel(x, y, n, BLOCK: tl.constexpr):
    """The same through block pointers."""
    first = tl.program_id(0) * BLOCK
    here = tl.make_block_ptr(x, (n,), (1,), (first,), (BLOCK,), (0,))
    there = tl.make_block_ptr(y, (n,), (1,), (first,), (BLOCK,), (0,))
    tl.store(there, tl.load(here, boundary_check=(0,), padding_option="zero"), boundary_check=(0,))


@triton.jit
def gather_kernel(x, index, y, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Rows of x in the order of an index."""
    lane = tl.arange(0, ROWS)
    rows = tl.load(index + lane)
    columns = tl.arange(0, WIDTH)
    tl.store(y + lane[:, None] * WIDTH + columns, tl.load(x + rows[:, None] * WIDTH + columns))


@triton.jit
def column_kernel(x, y, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """One element of each row: neighbours in a load are a row apart in memory."""
    lane = tl.arange(0, HEIGHT)
    tl.store(y + lane, tl.load(x + lane * WIDTH + tl.program_id(0)))


@triton.jit
def histogram_kernel(x, y, n, BLOCK: tl.constexpr):
    """Count values with atomics."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y + tl.load(x + at, mask=at < n, other=0), 1, mask=at < n)


@triton.jit
def turn_kernel(x):
    """One compare-and-swap."""
    tl.atomic_cas(x + tl.program_id(0), 0, 1)


@triton.jit
def twice_kernel(x):
    """Doubles in place."""
    at = tl.arange(0, 4)
    tl.store(x + at, 2 * tl.load(x + at))


@triton.jit
def broken_kernel(x, y):
    """Loads, then fails."""
    value = tl.load(x)
    tl.static_assert(False, "on purpose")
    tl.store(y, value)


@triton.jit
def wide_kernel(x, y):
    """Two float32 at once, as one int64."""
    wide = x.to(tl.pointer_type(tl.int64))
    tl.store(y.to(tl.pointer_type(tl.int64)), tl.load(wide))


def methods():
    return {(owner, name): getattr(owner, name) for owner, names in HOOKED.items() for name in names}


@pytest.fixture(autouse=True)
def nothing_stays_hooked():
    before = methods()
    yield
    assert methods() == before


def test_a_copy_reads_and_writes_every_element_once():
    x, y = torch.arange(10.0), torch.full((10,), torch.nan)
    with trace(x=x, y=y) as record:
        copy_kernel[(3,)](x, y, 10, STRIDE=1, BLOCK=4)
    assert torch.equal(x, y), "the result arrives in the tensor itself"
    assert record.num_programs == 3 and record.launches[0].kernel == "copy_kernel"
    assert [step.kind for step in record.steps] == ["load", "store"] * 3
    last = record.of_program(2)
    assert [step.number for step in last] == [0, 1]
    assert [step.tensor for step in last] == ["x", "y"]
    assert last[0].elements.tolist() == [8, 9] and last[0].masked_lanes == 2
    assert last[0].masked.tolist() == [], "10 and 11 are no elements of x"
    assert record.reads("x").tolist() == record.writes("y").tolist() == [1] * 10
    assert record.writes("x").sum() == record.reads("y").sum() == 0
    assert record.reads("x", program=1).tolist() == [0] * 4 + [1] * 4 + [0] * 2
    total = record.totals()
    assert (total.bytes_read, total.bytes_written, total.flops, total.intensity) == (40, 40, 0, 0.0)
    assert record.outside == []
    assert record.steps[0].source == "values = tl.load(x + at * STRIDE, mask=at < n)"


def test_masked_lanes_are_no_accesses():
    x, y = torch.arange(16.0), torch.zeros(16)
    with trace(x=x, y=y) as record:
        copy_kernel[(1,)](x, y, 5, STRIDE=1, BLOCK=8)
    load, store = record.steps
    assert load.elements.tolist() == [0, 1, 2, 3, 4] and load.masked.tolist() == [5, 6, 7]
    assert store.bytes == 20 and record.totals().masked_lanes == 6
    assert record.never_written("y").tolist() == [False] * 5 + [True] * 11
    assert record.count("x", record.steps, masked=True).tolist() == [0] * 5 + [1] * 3 + [0] * 8


def test_a_stride_touches_more_sectors():
    x, y = torch.arange(64.0), torch.zeros(64)
    for stride, sectors, lines in ((1, 1, 1), (2, 2, 1), (8, 8, 2)):
        with trace(x=x, y=y) as record:
            copy_kernel[(1,)](x, y, 8, STRIDE=stride, BLOCK=8)
        assert record.segments("x") == (sectors, 1), "8 numbers of 4 bytes fit one sector"
        assert record.segments("x", size=128) == (lines, 1)
        assert record.segments("y", kind="store") == (1, 1) and record.segments("y", kind="load") == (0, 0)
        assert record.segments() == (sectors + 1, 2)


@pytest.mark.parametrize(("M", "N", "K"), [(32, 48, 16), (33, 47, 20), (1, 1, 1)])
def test_a_matmul_rereads_in_closed_form(M, N, K):
    block, draw = 16, torch.Generator().manual_seed(0)
    x, w, y = torch.randn(M, K, generator=draw), torch.randn(K, N, generator=draw), torch.full((M, N), torch.nan)
    grid = (-(-M // block), -(-N // block))
    inner = -(-K // block)
    with trace(x=x, w=w, y=y) as record:
        matmul_kernel[grid](x, w, y, M, N, K, BLOCK=block)
    assert torch.allclose(y, x @ w, atol=1e-4)
    assert (record.reads("x") == grid[1]).all() and (record.reads("w") == grid[0]).all()
    assert (record.writes("y") == 1).all() and not record.written_twice("y").any()
    total = record.totals()
    assert total.flops == grid[0] * grid[1] * inner * 2 * block**3, "whole tiles, padding too"
    assert total.bytes_read == 4 * (M * K * grid[1] + K * N * grid[0])
    assert total.unique_bytes_read == 4 * (M * K + K * N)
    assert total.bytes_written == total.unique_bytes_written == 4 * M * N
    assert total.intensity == pytest.approx(total.flops / (total.bytes_read + 4 * M * N))
    assert [step.kind for step in record.of_program(0)] == ["load", "load", "dot"] * inner + ["store"]
    source = "left = tl.load(x + rows[:, None] * K + inner, mask=(rows < M)[:, None] & (inner < K), other=0.0)"
    assert record.steps[0].source == source, "in one line"
    assert record.steps[2].source == 'total = tl.dot(left, right, total, input_precision="ieee")'


def test_programs_count_along_x_first():
    x = torch.ones(32, 32)
    with trace(x=x) as record:
        matmul_kernel[(2, 2)](x, torch.ones(32, 32), torch.empty(32, 32), 32, 32, 32, BLOCK=16)
    assert [record.place_of(program) for program in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    store = record.of_program(1)[-1]
    assert store.tensor == "y", "named by the kernel"
    assert sorted(store.elements.tolist()) == [32 * row + column for row in range(16, 32) for column in range(16)]


def test_descriptors_mask_by_themselves():
    x, y = torch.randn(10, 8), torch.full((10, 8), torch.nan)
    with trace() as record:
        boxes_kernel[(3,)](TensorDescriptor.from_tensor(x, [4, 8]), TensorDescriptor.from_tensor(y, [4, 8]), BLOCK=4)
    assert torch.equal(x, y) and not record.outside
    assert list(record.tensors) == ["x", "y"]
    assert (record.reads("x") == 1).all() and (record.writes("y") == 1).all()
    assert len(record.of_program(2)[0].elements) == 16, "two rows of four exist"
    assert record.of_program(2)[0].source == "y.store([row, 0], x.load([row, 0]))"


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers():
    x, y = torch.arange(6.0), torch.full((6,), torch.nan)
    with trace() as record:
        block_pointer_kernel[(2,)](x, y, 6, BLOCK=4)
    assert torch.equal(x, y) and not record.outside and (record.reads("x") == 1).all()


def test_a_sorted_gather_reads_whole_sectors_either_way_and_columns_do_not():
    x, index = torch.randn(32, 8), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    touched = {}
    for name, order in (("sorted", index.sort().values), ("scattered", index)):
        y = torch.empty(32, 8)
        with trace(x=x) as record:
            gather_kernel[(1,)](x, order, y, WIDTH=8, ROWS=32)
        assert torch.equal(y, x[order]) and (record.reads("x") == 1).all()
        touched[name] = record.segments("x")
    assert touched == {"sorted": (32, 32), "scattered": (32, 32)}, "a row is a whole sector"
    narrow = torch.randn(64, 2)
    for name, order in (("sorted", torch.arange(16)), ("scattered", torch.arange(16) * 4)):
        with trace(narrow=narrow) as record:
            gather_kernel[(1,)](narrow, order, torch.empty(16, 2), WIDTH=2, ROWS=16)
        touched[name] = record.segments("narrow")
    assert touched == {"sorted": (4, 4), "scattered": (16, 4)}, "a quarter of a sector each: neighbours share one"
    with trace(x=x) as record:
        column_kernel[(8,)](x, torch.empty(32), HEIGHT=32, WIDTH=8)
    assert record.segments("x") == (8 * 32, 8 * 4), "eight times more than needed"
    assert (record.reads("x") == 1).all()
    assert record.written_twice("y").all(), "all programs write the same 32"


def test_atomics_read_and_write_and_do_not_count_as_written_twice():
    x, y = torch.tensor([0, 1, 1, 2, 1, 0]), torch.zeros(4, dtype=torch.int32)
    with trace(x=x, y=y) as record:
        histogram_kernel[(2,)](x, y, 6, BLOCK=4)
    assert y.tolist() == [2, 3, 1, 0]
    assert record.reads("y").tolist() == record.writes("y").tolist() == [2, 3, 1, 0]
    assert not record.written_twice("y").any() and record.never_written("y").tolist() == [False] * 3 + [True]
    total = record.totals()
    assert (total.bytes_read, total.bytes_written) == (6 * 8 + 6 * 4, 6 * 4)
    assert (total.unique_bytes_read, total.unique_bytes_written) == (6 * 8 + 3 * 4, 3 * 4)


def test_compare_and_swap():
    x = torch.zeros(3, dtype=torch.int32)
    with trace(x=x) as record:
        turn_kernel[(3,)](x)
    assert x.tolist() == [1, 1, 1] and [step.kind for step in record.steps] == ["atomic"] * 3
    with pytest.raises(interpreter.InterpreterError, match="outside of x, the first 1 after its last"), trace(x=x):
        turn_kernel[(4,)](x)


@pytest.mark.parametrize(
    ("first", "count", "stray", "where"),
    [(5, 3, 6, "1 after its last"), (-2, 2, -2, "2 before its start"), (90, 4, 90, "85 after its last")],
)
def test_leaving_a_tensor_is_reported_and_does_no_harm(first, count, stray, where):
    x, y = torch.arange(6.0) + 1, torch.full((4,), torch.nan)
    with trace(x=x, y=y) as record:
        unmasked_kernel[(1,)](x, y, FIRST=first, BLOCK=4)
    (found,) = record.outside
    assert str(found) == f"program 0, step 0: the load of {count} elements outside of x, the first {where}"
    assert (found.kind, found.tensor, found.count, found.first) == ("load", "x", count, stray)
    assert y.tolist() == [x[at].item() if 0 <= at < 6 else 0 for at in range(first, first + 4)]
    assert str(found) in record.score() and "1 accesses outside" in repr(record)
    assert record.reads("x").sum() == 4 - count, "what is not x's does not count as read"


def test_a_store_that_leaves_its_tensor_writes_nothing_else():
    whole = torch.zeros(8)
    x, y = torch.ones(4), torch.zeros(2)
    with trace() as record:
        unmasked_kernel[(1,)](x, y, FIRST=0, BLOCK=4)
    assert [(found.kind, found.tensor, found.count) for found in record.outside] == [("store", "y", 2)]
    with trace() as record:  # within the storage of a view there is memory: done, and reported
        unmasked_kernel[(1,)](x, whole[2:4], FIRST=0, BLOCK=4)
    assert whole.tolist() == [0, 0, 1, 1, 1, 1, 0, 0] and record.outside[0].count == 2
    assert isinstance(record.outside[0], Outside) and record.outside[0].address > 0


def test_gaps_of_a_strided_view_are_not_its_own():
    whole, y = torch.arange(8.0), torch.zeros(4)
    with trace(even=whole[::2]) as record:
        unmasked_kernel[(1,)](whole[::2], y, FIRST=0, BLOCK=4)
    assert y.tolist() == [0, 1, 2, 3], "the kernel knew nothing of the stride"
    assert record.reads("even").tolist() == [1, 1, 0, 0]
    assert str(record.outside[0]).endswith("the load of 2 elements outside of even, the first between its elements")


def test_views_and_transposes_count_in_their_own_shape():
    whole, y = torch.arange(12.0).reshape(3, 4), torch.zeros(8)
    with trace(t=whole.T) as record:
        unmasked_kernel[(1,)](whole.T, y, FIRST=4, BLOCK=8)
    assert record.reads("t").T.tolist() == [[0] * 4, [1] * 4, [1] * 4]
    with trace(part=whole[1:]) as record:
        unmasked_kernel[(1,)](whole[1:], y, FIRST=0, BLOCK=8)
    assert (record.reads("part") == 1).all() and y.tolist() == list(range(4, 12))
    assert record.segments("part") == (2, 1), "16 bytes into the storage, as on a GPU: two sectors for 32 bytes"


def test_in_place_and_repeated_launches():
    x = torch.ones(4)
    with trace(x=x) as record:
        twice_kernel[(1,)](x)
        twice_kernel[(1,)](x)
    assert x.tolist() == [4] * 4 and record.reads("x").tolist() == [2] * 4
    assert record.written_twice("x").all() and record.num_programs == 2
    assert [step.program for step in record.steps] == [0, 0, 1, 1]
    assert [launch.first_program for launch in record.launches] == [0, 1]


def test_names_that_two_kernels_share():
    x, y, z = torch.ones(4), torch.empty(4), torch.empty(4)
    with trace() as record:
        copy_kernel[(1,)](x, y, 4, STRIDE=1, BLOCK=4)
        copy_kernel[(1,)](y, z, 4, STRIDE=1, BLOCK=4)
    assert list(record.tensors) == ["x", "y", "copy_kernel.y"]
    assert record.reads("y").tolist() == record.writes("y").tolist() == [1] * 4
    assert record.tensors["copy_kernel.y"].data_ptr() == z.data_ptr()


def test_a_wider_pointer_touches_several_elements():
    x, y = torch.arange(4.0), torch.zeros(4)
    with trace(x=x, y=y) as record:
        wide_kernel[(1,)](x, y)
    assert record.reads("x").tolist() == record.writes("y").tolist() == [1, 1, 0, 0]
    assert record.totals().bytes_read == record.totals().unique_bytes_read == 8


def test_programs_without_a_step_and_empty_tensors():
    x, y = torch.ones(2), torch.empty(2)
    with trace(x=x) as record:
        copy_kernel[(3,)](x, y, 2, STRIDE=1, BLOCK=2)
    assert record.of_program(2)[0].bytes == 0 and record.num_programs == 3
    assert record.segments("x") == (1, 1)
    with trace() as record:
        copy_kernel[(1,)](torch.empty(0), torch.empty(0), 0, STRIDE=1, BLOCK=4)
    assert record.totals().bytes == 0 and not record.outside
    assert record.reads("x").shape == (0,)
    with trace() as record:
        copy_kernel[(0,)](x, y, 2, STRIDE=1, BLOCK=2)
    assert record.num_programs == 0 and record.score()


def test_results_of_a_launcher_and_the_score():
    def double(x):
        y = torch.empty_like(x)
        copy_kernel[(1,)](x, y, len(x), STRIDE=1, BLOCK=8)
        return y

    record, twice = traced(double, torch.arange(8.0)), traced(double, torch.arange(4.0))
    assert record.result.tolist() == list(range(8))
    assert repr(record) == "Record: 1 programs, 2 steps, 32 bytes read, 32 written, 0 FLOPs"
    rows = [line.split() for line in record.score(twice).splitlines()]
    assert rows[0] == ["this", "kernel", "reference"]
    assert rows[1][-2:] == ["32", "16"] and rows[2][-2:] == ["32", "16"] and rows[3][-2:] == ["0", "0"]
    assert rows[5][-2:] == ["1.00", "1.00"]
    assert record.score().splitlines()[1].split()[-2:] == ["32", "32"]


def test_an_exception_inside_takes_the_hooks_off_and_keeps_what_happened():
    x, y = torch.ones(1), torch.zeros(1)
    with pytest.raises(interpreter.InterpreterError, match="on purpose"), trace(x=x, y=y) as record:
        broken_kernel[(1,)](x, y)
    assert [step.kind for step in record.steps] == ["load"]
    with pytest.raises(KeyError), trace(x=x):
        raise KeyError("before any launch")
    with trace(x=x) as record:
        turn_kernel[(1,)](x.int())
    assert len(record.steps) == 1, "the next trace works"


def test_traces_do_not_nest():
    x = torch.zeros(1, dtype=torch.int32)
    with trace(x=x) as record:
        with pytest.raises(RuntimeError, match="traces do not nest"), trace(x=x):
            pass
        turn_kernel[(1,)](x)
    assert len(record.steps) == 1


def test_nothing_launched_is_an_error():
    with pytest.raises(RuntimeError, match="nothing was recorded"), trace():
        pass


def test_compiled_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1"), trace():
        pass


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in HOOKED.items() for name in names])
def test_another_triton_is_refused(monkeypatch, owner, name):
    with monkeypatch.context() as patch:
        patch.delattr(owner, name)
        with pytest.raises(RuntimeError, match=rf"has no {owner.__name__}\.{name}\("), trace():
            pass
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda self, something, other: None)
        with pytest.raises(RuntimeError, match=rf"has no {owner.__name__}\.{name}\("), trace():
            pass


def test_bad_names_are_refused(unchecked_shapes):
    x, y = torch.ones(4), torch.empty(4)
    with pytest.raises(TypeError, match="x must be a dense tensor with values, got list"), trace(x=[1.0]):
        pass
    with pytest.raises(TypeError, match="x must be a dense tensor"), trace(x=x.to("meta")):
        pass
    with pytest.raises(ValueError, match="x and again must be different tensors"), trace(x=x, again=x):
        pass
    with trace(x=x, unused=torch.ones(2)) as record:
        copy_kernel[(1,)](x, y, 4, STRIDE=1, BLOCK=4)
    for name in ("unused", "z"):
        with pytest.raises(ValueError, match=rf"\(x, y\); got '{name}'"):
            record.reads(name)
        with pytest.raises(ValueError, match="name must be a tensor"):
            record.segments(name)
    for program in (-1, 1):
        with pytest.raises(ValueError, match=r"program must be in 0\.\.0"):
            record.of_program(program)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=40), st.sampled_from([1, 2, 4, 8]), st.sampled_from([32, 64, 128]))
def test_segments_against_a_set_of_bytes(places, width, size):
    at = np.array(places, np.int64) * width
    step = Step(0, 0, 0, "load", "x", at // width, bytes_at=at, width=width)
    touched = {byte for place in at.tolist() for byte in range(place, place + width)}
    assert step.segments(size) == (len({byte // size for byte in touched}), -(-len(touched) // size))
