"""Memory tracer in Python: what it sends holds every access of the record, and it refuses what it cannot draw."""

import json

import numpy as np
import pytest
import torch
import traitlets
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.tracing import Launch, Outside, Record, Step
from moe_lab.widgets.memory_tracer import FIELDS, MOST_PROGRAMS, MOST_STEPS, MemoryTracer, layout, pack


@triton.jit
def double_kernel(x, y, BLOCK: tl.constexpr):
    """y = 2 x."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at)
    tl.store(y + at, 2 * values)


def access(program, number, kind, tensor, elements, masked=(), width=4, **more):
    elements, masked = np.array([*elements], np.int64), np.array([*masked], np.int64)
    more = {"masked_lanes": len(masked), "source": f"{kind} {tensor}", **more}
    return Step(0, program, number, kind, tensor, elements, masked, bytes_at=width * elements, width=width, **more)


def record():
    """Two programs on a row of x each, the second with a mask; program 2 does nothing; z is of no interest."""
    tensors = {"x": torch.zeros(2, 4), "z": torch.zeros(1, dtype=torch.int32), "y": torch.zeros(6)}
    steps = [
        access(0, 0, "load", "z", [0]),
        access(0, 1, "load", "x", range(4)),
        Step(0, 0, 2, "dot", flops=1024, source="tl.dot"),
        access(0, 3, "store", "y", [0, 2, 4]),
        access(1, 0, "load", "x", [2, 3, 4, 5], masked=[6, 7], masked_lanes=3),
        access(1, 1, "atomic", "y", [4, 4, 5]),
    ]
    made = Record.written_down(tensors, [Launch("sum", (3, 1, 1), 0)], steps)
    made.outside.append(Outside(1, 1, "atomic", "y", 2, 6, 4096, 6))
    return made


def test_the_largest_tensors_in_the_kernels_order():
    widget = MemoryTracer(record())
    assert [one["name"] for one in widget.tensors] == ["x", "z", "y"] == widget.names
    assert [one["counted"] for one in widget.tensors] == ["read", "read", "written"]
    assert (widget.program, widget.step, widget.count, widget.launches) == (0, 0, "so far", ["sum"])
    chosen = MemoryTracer(record(), tensors=["y", "x"])
    assert [one["name"] for one in chosen.tensors] == ["y", "x"] and chosen.names == ["y", "x", "z"]
    assert chosen.tensors[1] == dict(name="x", shape=[2, 4], dtype="float32", rows=2, columns=4, counted="read")


def unpack(text, cells):
    counts = np.zeros(cells, int)
    for run in text.split():
        place, _, times = run.partition("*")
        start, _, length = place.partition("+")
        counts[int(start) : int(start) + int(length or 1)] += int(times or 1)
    return counts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 1, 1, 2, 37]), max_size=50))
def test_packed_counts_come_back(counts):
    text = pack(np.array(counts, dtype=np.int64))
    assert unpack(text, len(counts)).tolist() == counts
    assert text.count("+") + text.count("*") <= 2 * len(counts) and "+1 " not in text


def test_what_is_sent_holds_every_access():
    widget, made = MemoryTracer(record()), record()
    assert widget.programs == [[0, 0, 4, 0], [0, 4, 2, 1], [0, 6, 0, 2]]
    for sent, step in zip(widget.steps, made.steps, strict=True):
        found = dict(zip(FIELDS, sent, strict=True))
        assert widget.sources[found["source"]] == step.source
        assert (found["bytes"], found["flops"], found["masked"]) == (step.bytes, step.flops, step.masked_lanes)
        if step.tensor is not None:
            assert widget.names[found["tensor"]] == step.tensor
            for name, masked in (("touched", False), ("held", True)):
                counts = made.count(step.tensor, [step], masked).reshape(-1)
                assert unpack(widget.patterns[found[name]], len(counts)).tolist() == counts.tolist()
    assert [step[FIELDS.index("outside")] for step in widget.steps] == [0, 0, 0, 0, 0, 2]


def test_a_set_that_comes_again_is_sent_once():
    steps = [access(program, 0, "load", "x", range(0, 4096, 2)) for program in range(200)]
    made = Record.written_down({"x": torch.zeros(64, 64)}, [Launch("sum", (200, 1, 1), 0)], steps)
    widget = MemoryTracer(made)
    assert len(widget.patterns) == 2
    state = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
    assert len(json.dumps(state)) < 30_000


def test_tally_counts_the_record():
    widget = MemoryTracer(record(), program=1, step=1)
    found = widget.tally()
    assert (found["kind"], found["tensor"], found["elements"], found["masked"]) == ("atomic", "y", 3, 0)
    assert (found["outside"], found["again"]) == (2, 1), "element 4 was stored before"
    assert found["step"] == {"bytes_read": 12, "bytes_written": 12, "flops": 0, "sectors": 1, "least_sectors": 1}
    assert (found["program"]["bytes_read"], found["program"]["bytes_written"]) == (16 + 12, 12)
    assert found["so_far"] == found["all"]
    assert found["so_far"]["bytes_read"] == 4 + 16 + 16 + 12 and found["so_far"]["flops"] == 1024
    assert found["counts"]["x"] == {"least": 0, "most": 2, "never": 2}
    assert found["counts"]["y"] == {"least": 0, "most": 3, "never": 2}
    widget.program, widget.step = 0, 1
    assert widget.tally()["counts"]["y"] == {"least": 0, "most": 0, "never": 6}
    widget.count = "all programs"
    assert widget.tally()["counts"]["y"] == {"least": 0, "most": 3, "never": 2}
    assert widget.tally()["so_far"]["bytes_read"] == 20, "the sums do not follow the choice"


@pytest.mark.parametrize(
    ("program", "step", "sentence"),
    [
        (
            0,
            1,
            "Program 0 of 0..2, step 1 of 0..3: loads 4 elements of x, 16 bytes in 1 sector (the fewest possible).",
        ),
        (0, 2, "Program 0 of 0..2, step 2 of 0..3: multiplies tiles, 1,024 FLOPs."),
        (
            1,
            0,
            "Program 1 of 0..2, step 0 of 0..1: loads 4 elements of x, 2 of them read before, 16 bytes in 1 sector "
            "(the fewest possible), 3 lanes masked.",
        ),
        (
            1,
            1,
            "Program 1 of 0..2, step 1 of 0..1: updates 3 elements of y atomically, 1 of them written before, "
            "12 bytes in 1 sector (the fewest possible), 2 lanes outside of the tensor.",
        ),
        (2, 0, "Program 2 of 0..2: neither loads nor stores."),
    ],
)
def test_summary_says_what_the_step_did(program, step, sentence):
    widget = MemoryTracer(record(), program=program, step=step)
    assert widget.summary() == sentence and repr(widget) == f"MemoryTracer: {sentence}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_scattered_elements_and_programs_on_two_axes():
    steps = [access(3, 0, "store", "x", [0, 100, 200])]
    launches = [Launch("first", (1, 1, 1), 0), Launch("second", (2, 2, 1), 1)]
    widget = MemoryTracer(Record.written_down({"x": torch.zeros(300)}, launches, steps), program=3)
    assert widget.summary() == (
        "Program 3 of 0..4 at (0, 1), second, step 0 of 0..0: stores 3 elements of x, 12 bytes in 3 sectors "
        "(1 could hold them)."
    )


def test_the_reference_is_another_record_or_every_element_once():
    once = MemoryTracer(record()).reference
    assert (once["title"], once["bytes_read"], once["bytes_written"]) == ("Each element once", 4 + 24 + 8, 16)
    other = Record.written_down({"x": torch.zeros(8)}, [], [access(0, 0, "load", "x", range(8))])
    found = MemoryTracer(record(), reference=other).reference
    assert (found["title"], found["bytes_read"], found["sectors"]) == ("Reference", 32, 1)


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="the interpreter is off")
def test_a_launcher_is_traced():
    def double(x):
        y = torch.empty_like(x)
        double_kernel[(2,)](x, y, BLOCK=4)
        return y

    widget = MemoryTracer(double, [torch.arange(8.0)])
    assert [one["name"] for one in widget.tensors] == ["x", "y"]
    assert widget.summary() == (
        "Program 0 of 0..1, step 0 of 0..1: loads 4 elements of x, 16 bytes in 1 sector (the fewest possible)."
    )
    assert widget.sources[0] == "values = tl.load(x + at)"


def test_layouts():
    assert layout((256, 128)) == (256, 128) and layout((4, 1)) == (1, 4) and layout((33,)) == (2, 32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((65, 64), r"tensors must have 1\.\.4096 elements to be drawn, x is \(65, 64\)"),
        ((0, 3), r"tensors must have 1\.\.4096 elements to be drawn, x is \(0, 3\)"),
        ((2, 129), r"at most 256 rows and 128 columns to be drawn, x is \(2, 129\)"),
        ((257, 2), r"at most 256 rows and 128 columns to be drawn, x is \(257, 2\)"),
    ],
)
def test_tensors_that_cannot_be_drawn_are_refused(shape, message):
    made = Record.written_down({"x": torch.zeros(shape)}, [Launch("sum", (1, 1, 1), 0)], [Step(0, 0, 0, "dot")])
    with pytest.raises(ValueError, match=message):
        MemoryTracer(made, tensors=["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensors": ["w"]}, "tensors must be of x, z, y; got 'w'"),
        ({"tensors": []}, r"tensors must name 1\.\.3 different tensors, got \[\]"),
        ({"tensors": ["x", "x"]}, r"tensors must name 1\.\.3 different tensors"),
        ({"tensors": "x"}, r"tensors must name 1\.\.3 different tensors, got 'x'"),
        ({"program": 3}, r"program must be in 0\.\.2, got 3"),
        ({"program": 1, "step": 2}, r"step must be in 0\.\.1, got 2"),
        ({"program": 2, "step": 1}, r"step must be in 0\.\.0, got 1"),
        ({"count": "never"}, "count must be one of so far, all programs; got 'never'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryTracer(record(), **options)


def test_records_that_are_too_large_are_refused():
    x, one = {"x": torch.zeros(64, 64)}, access(0, 0, "load", "x", [0])
    grid = (MOST_PROGRAMS + 1, 1, 1)
    with pytest.raises(ValueError, match=r"1\.\.1024 programs to be drawn, got 1025; trace a smaller shape"):
        MemoryTracer(Record.written_down(x, [Launch("sum", grid, 0)], [one]))
    with pytest.raises(ValueError, match=r"1\.\.4096 steps to be drawn, got 4097"):
        MemoryTracer(Record.written_down(x, [Launch("sum", (1, 1, 1), 0)], [one] * (MOST_STEPS + 1)))
    with pytest.raises(ValueError, match=r"1\.\.4096 steps to be drawn, got 0"):
        MemoryTracer(Record.written_down(x, [Launch("sum", (1, 1, 1), 0)], []))
    draw = np.random.default_rng(0)
    steps = [access(0, number, "load", "x", draw.choice(4096, 1500, replace=False)) for number in range(100)]
    with pytest.raises(ValueError, match=r"record takes .* bytes to draw, at most 300000 are sent"):
        MemoryTracer(Record.written_down(x, [Launch("sum", (1, 1, 1), 0)], steps))


def test_bad_assignments_are_refused_and_a_step_fits_its_program():
    widget = MemoryTracer(record(), step=3)
    for name, value in (("program", 3), ("program", -1), ("step", 4)):
        with pytest.raises((ValueError, traitlets.TraitError)):
            setattr(widget, name, value)
    with pytest.raises(traitlets.TraitError):
        widget.count = "never"
    assert (widget.program, widget.step) == (0, 3)
    widget.program = 1
    assert (widget.program, widget.step) == (1, 1)
    widget.program = 2
    assert widget.step == 0 and widget.summary().endswith("neither loads nor stores.")
