"""Running a suite, and the immutable record of the run."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from moe_lab.bench import machine
from moe_lab.bench.limits import refuse_above_roofline
from moe_lab.bench.rows import Measured
from moe_lab.checkpoint import read_json, write_json
from moe_lab.writing import alone, check_writable

UNFINISHED = Path("runs") / "bench"
"""Where the finished cases of a run wait that was cut: a file a suite, device and commit, below where it began."""


@dataclass(frozen=True)
class Case:
    """A part of a suite that is timed in one go, so that its rows can be compared.

    ``run(seconds)`` verifies, then times for about so long, and returns its rows. A resumed run knows a finished case
    by its ``name``. ``rows_if_late(why_not)`` makes the rows that are left once the time is up.
    """

    name: str
    run: Callable[[float], list[Measured]]
    rows_if_late: Callable[[str], list[Measured]] = lambda why_not: []


def run(
    suite: str, cases: Iterable[Case], folder: Path | None, seconds: float = 600.0
) -> tuple[list[Measured], Path | None]:
    """Run every case with a progress bar; write the record into ``folder``, or none if that is None.

    The cases share ``seconds``: what is left, by the number of those that are left. When the time is up, the rest is
    recorded as not measured. A recorded run that was cut goes on after its last finished case, if the commit is still
    the same.

    Raises ValueError for a row that is not right or above the machine's roofline, and, where a record is wanted, for a
    tree with uncommitted changes or Triton's interpreter: neither could be repeated; and while another process records
    here. CannotWrite, before anything is timed, where record or cases cannot be written.
    """
    cases = list(cases)
    if folder is None:
        return _rows_of(cases, seconds, suite, {}, None, None), None
    machine.refuse_what_cannot_be_repeated()
    commit, started = machine.git("rev-parse", "HEAD"), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    path = folder / f"{suite}-{machine.device_id()}-{started[:10]}-{commit[:9]}.json"
    if path.exists():
        raise ValueError(f"{path} is a record of the same commit and day, and records are immutable; delete it first")
    unfinished = UNFINISHED / f"{suite}-{machine.device_id()}-{commit[:9]}.json"
    check_writable(path)
    refusal = "another process records a suite here, and would share the cores; wait for it"
    with alone(UNFINISHED.with_name("bench.lock"), UNFINISHED, refusal):
        done = _finished(unfinished)
        about = done.pop("run", None) or machine.describe_run(suite, started)
        rows = _rows_of(cases, seconds, suite, done, unfinished, about)
        write_json(path, {"run": about, "rows": [row.as_dict() for row in rows]})
        unfinished.unlink(missing_ok=True)
    return rows, path


def _rows_of(
    cases: list[Case], seconds: float, suite: str, done: dict, unfinished: Path | None, about: dict | None
) -> list[Measured]:
    """Every case's rows: those that are there, and the others, each written down when it is finished."""
    end, rows = time.monotonic() + seconds, []
    left = len([case for case in cases if case.name not in done])
    for case in (bar := tqdm(cases, desc=suite, unit="case")):
        bar.set_postfix_str(case.name)
        if case.name in done:
            rows += [Measured.from_dict(row) for row in done[case.name]]
            continue
        remaining = end - time.monotonic()
        found = case.run(remaining / left) if remaining > 0 else case.rows_if_late("the suite's time was up")
        left -= 1
        _refuse(found, suite, about)
        rows += found
        if unfinished:
            done[case.name] = [row.as_dict() for row in found]
            write_json(unfinished, {"run": about, **done})
    return rows


def _refuse(rows: list[Measured], suite: str, about: dict | None) -> None:
    for row in rows:
        if row.ms_p50 is not None and not row.verified:
            raise ValueError(f"{row.implementation} on {row.shape} is off by {row.error}, allowed {row.tolerance}")
    if about is not None and suite != "ceilings":  # its rows are the ceilings
        refuse_above_roofline(rows, about, lambda: machine.measure(seconds=0.5, repeats=9))


def _finished(unfinished: Path) -> dict:
    """The cases that a cut run of this commit left; a damaged file is no help, and no harm."""
    try:
        return read_json(unfinished)
    except (FileNotFoundError, ValueError):
        return {}
