"""The committed record of what was compiled, and what got worse since."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from moe_lab.checks import check_fits
from moe_lab.machine_code.rows import Row
from moe_lab.paths import check_new_or_ours
from moe_lab.writing import write_whole

BEGINS = '{\n"triton":'
"""How such a file begins, and so what a new one may replace."""


def write_record(path: Path, triton: str, rows: Sequence[Row]) -> None:
    """Write the rows, one a line so that a diff shows which changed, under the version of Triton that made them.

    Raises ValueError if a row failed, since a record is what later rows are held against, and for a file of that name
    that is no such record.
    """
    check_new_or_ours(path, BEGINS)
    if failed := [row.name for row in rows if not row.ok]:
        raise ValueError(f"not recorded, {len(failed)} of {len(rows)} did not compile: {', '.join(failed[:5])}")
    lines = ",\n".join(f"  {json.dumps(row.as_dict())}" for row in rows)
    write_whole(path, f'{BEGINS} {json.dumps(triton)},\n"rows": [\n{lines}\n]\n}}\n')


def read_record(path: Path) -> tuple[str, list[Row]]:
    """(version of Triton, rows) of a record; ValueError with the path where it is damaged."""
    from moe_lab.checkpoint import read_json  # torch comes with it, and a worker for a reader's kernel does without

    value = read_json(path)
    try:
        check_fits("triton", value["triton"], str)
        rows = [Row(**row) for row in value["rows"]]
        for row in rows:
            for field in fields(row):
                check_fits(f"{field.name} of {row.kernel}", getattr(row, field.name), field.type)
        return value["triton"], rows
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of compiled kernels ({error}); write it again") from error


def select_rows(
    recorded: Sequence[Row], kernels: Sequence[str] = (), targets: Sequence[str] = (), config: str | None = None
) -> list[Row]:
    """Those rows that `compile_kernels` makes when asked for these; an empty list means all.

    Example:
        >>> rows = [Row("dot:transposed", "hopper", "sm_90", True), Row("add", None, "sm_80", True)]
        >>> [row.name for row in select_rows(rows, ["dot"])], select_rows(rows, targets=["gfx942"])
        (['dot:transposed hopper sm_90'], [])
    """
    return [
        row
        for row in recorded
        if not kernels or row.file in kernels
        if not targets or row.target in targets
        if config is None or row.config == config
    ]


def compare(recorded: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """What is worse than it was, one sentence each; nothing if the list is empty.

    Worse is: a row that does not compile, that spills more bytes, or that has lost a kind of matrix instruction; a
    row without a recorded one, and a recorded one without a row, since neither would be noticed otherwise. Registers,
    shared memory and the number of instructions may change.

    Example:
        >>> before = Row("dot", "hopper", "sm_90", True, 154, 0, 180224, {"wgmma": 4})
        >>> after = Row("dot", "hopper", "sm_90", True, 255, 48, 180224, {"mma": 32})
        >>> for sentence in compare([before], [after]):
        ...     print(sentence)
        dot hopper sm_90 spills 48 bytes, recorded 0
        dot hopper sm_90 has no wgmma instruction any more, recorded 4
    """
    known = {(row.kernel, row.config, row.target): row for row in recorded}
    worse = []
    for row in rows:
        before = known.pop((row.kernel, row.config, row.target), None)
        if not row.ok:
            worse.append(f"{row.name} does not compile: {row.error}")
        elif before is None:
            worse.append(f"{row.name} is not in the record")
        else:
            if (row.spill_bytes or 0) > (before.spill_bytes or 0):
                worse.append(f"{row.name} spills {row.spill_bytes} bytes, recorded {before.spill_bytes}")
            lost = {kind: count for kind, count in before.matrix_ops.items() if kind not in row.matrix_ops}
            worse += [f"{row.name} has no {kind} instruction any more, recorded {n}" for kind, n in lost.items()]
    return worse + [f"{row.name} is recorded and was not compiled" for row in known.values()]
