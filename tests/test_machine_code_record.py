"""Rows, the record of them, and what counts as worse."""

from dataclasses import replace

import pytest

from moe_lab.machine_code import Row, compare, describe, read_record, select_rows, write_record

DOT = Row("dot", "hopper", "sm_90", True, 154, 0, 180224, {"wgmma": 4})
SMALL = Row("dot:transposed/first", "hopper_small", "sm_90", True, 51, 16, 114712, {"mma": 32, "wgmma": 1})
ADD = Row("add", None, "gfx942", True, 16, 0, 0)
ROWS = [DOT, SMALL, ADD]


def test_a_row_as_json():
    assert DOT.as_dict() == {
        "kernel": "dot",
        "config": "hopper",
        "target": "sm_90",
        "ok": True,
        "registers": 154,
        "spill_bytes": 0,
        "shared_bytes": 180224,
        "matrix_ops": {"wgmma": 4},
        "error": None,
    }
    assert list(DOT.as_dict())[-1] == "error"


def test_names():
    assert (DOT.name, SMALL.name, ADD.name) == (
        "dot hopper sm_90",
        "dot:transposed/first hopper_small sm_90",
        "add gfx942",
    )
    assert [row.file for row in ROWS] == ["dot", "dot", "add"]


def test_the_table():
    failed = Row("bad", "cdna", "gfx950", False, error="at 3:4:\n    def bad(x):\n    ^\nNameError('y')\n")
    lines = describe([*ROWS, failed, Row("worse", None, None, False)]).splitlines()
    assert (
        len({line.index(cell) for line, cell in zip(lines, ["target", "sm_90", "sm_90", "gfx942"], strict=False)}) == 1
    )
    assert lines[1].endswith("4 wgmma") and lines[2].endswith("32 mma, 1 wgmma") and lines[3].endswith("-")
    assert lines[4].endswith("FAILED: NameError('y')") and lines[5].endswith("FAILED: no reason given")
    assert lines[-1] == "3 of 5 compiled"


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "record.json"
    write_record(path, "3.7.1", ROWS)
    assert read_record(path) == ("3.7.1", ROWS)
    assert sum('"kernel"' in line for line in path.read_text().splitlines()) == len(ROWS), "one line a row"


def test_a_failure_is_not_recorded(tmp_path):
    with pytest.raises(ValueError, match=r"not recorded, 1 of 4 did not compile: dot hopper sm_90"):
        write_record(tmp_path / "record.json", "3.7.1", [*ROWS, replace(DOT, ok=False)])
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("text", ["[]", '{"rows": []}', '{"triton": "3", "rows": [{"name": "dot"}]}', '{"triton'])
def test_a_damaged_record_says_which(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        read_record(path)


def test_nothing_is_worse_than_itself():
    assert compare(ROWS, ROWS) == [] == compare([], [])


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (replace(DOT, ok=False, error="no"), ["dot hopper sm_90 does not compile: no"]),
        (replace(DOT, spill_bytes=4), ["dot hopper sm_90 spills 4 bytes, recorded 0"]),
        (replace(DOT, matrix_ops={}), ["dot hopper sm_90 has no wgmma instruction any more, recorded 4"]),
        (replace(DOT, matrix_ops={"mma": 64}), ["dot hopper sm_90 has no wgmma instruction any more, recorded 4"]),
        (
            replace(DOT, config="fast"),
            ["dot fast sm_90 is not in the record", "dot hopper sm_90 is recorded and was not compiled"],
        ),
        (replace(DOT, registers=255, shared_bytes=1, matrix_ops={"wgmma": 1, "mma": 1}), []),
    ],
)
def test_what_is_worse(now, says):
    assert compare(ROWS, [now, SMALL, ADD]) == says


def test_fewer_spilled_bytes_are_better_and_more_are_worse():
    assert compare([SMALL], [replace(SMALL, spill_bytes=8)]) == []
    assert compare([SMALL], [replace(SMALL, spill_bytes=24)]) == [f"{SMALL.name} spills 24 bytes, recorded 16"]


def test_one_of_two_kinds_is_lost():
    assert compare([SMALL], [replace(SMALL, matrix_ops={"mma": 1})]) == [
        f"{SMALL.name} has no wgmma instruction any more, recorded 1"
    ]


def test_a_row_that_disappears_or_is_new():
    assert compare(ROWS, [DOT, ADD]) == [f"{SMALL.name} is recorded and was not compiled"]
    assert compare([DOT, ADD], ROWS) == [f"{SMALL.name} is not in the record"]


def test_a_part_of_a_record():
    assert select_rows(ROWS) == ROWS
    assert select_rows(ROWS, ["dot"]) == [DOT, SMALL] and select_rows(ROWS, ["do"]) == []
    assert select_rows(ROWS, [], ["gfx942"]) == [ADD]
    assert select_rows(ROWS, ["dot", "add"], ["sm_90", "sm_80"], "hopper_small") == [SMALL]
