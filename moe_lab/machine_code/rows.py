"""One row a kernel, configuration and target; and the rows as a table."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Row:
    """What became of one kernel: numbers a thread (registers, spilled bytes) and a program (shared memory).

    ``config`` is None for a kernel that has no configurations, ``target`` for a file that cannot be imported.
    """

    kernel: str
    config: str | None
    target: str | None
    ok: bool
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    matrix_ops: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def file(self) -> str:
        """The name of the kernel file, which ``kernel`` begins with.

        Example:
            >>> Row("sort_tokens:widest/count", None, "sm_90", True).file
            'sort_tokens'
        """
        return re.split("[:/]", self.kernel)[0]

    @property
    def name(self) -> str:
        """Kernel, configuration and target in one line."""
        return " ".join(part for part in (self.kernel, self.config, self.target) if part)

    def as_dict(self) -> dict:
        """The row as JSON holds it."""
        return asdict(self)


def show_ops(matrix_ops: dict[str, int]) -> str:
    """Matrix instructions in words: ``4 wgmma``, or a dash."""
    return ", ".join(f"{count} {kind}" for kind, count in matrix_ops.items()) or "-"


def describe(rows: Sequence[Row]) -> str:
    """The rows as a table, and how many compiled.

    Example:
        >>> rows = Row("add", None, "sm_90", True, 16, 0, 0), Row("dot", "hopper", "sm_90", False, error="no")
        >>> print(describe(rows))
        kernel                             config        target  registers    spill   shared  matrix instructions
        add                                -             sm_90          16        0        0  -
        dot                                hopper        sm_90           -        -        -  FAILED: no
        1 of 2 compiled
    """
    header = ("kernel", "config", "target", "registers", "spill", "shared", "matrix instructions")
    lines = ["{:34} {:13} {:7} {:>9} {:>8} {:>8}  {}".format(*header)]
    for row in rows:
        numbers = ("-" if n is None else str(n) for n in (row.registers, row.spill_bytes, row.shared_bytes))
        last = show_ops(row.matrix_ops) if row.ok else f"FAILED: {_last_line(row.error)}"
        cells = (row.kernel, row.config or "-", row.target or "-", *numbers, last)
        lines.append("{:34} {:13} {:7} {:>9} {:>8} {:>8}  {}".format(*cells))
    return "\n".join([*lines, f"{sum(row.ok for row in rows)} of {len(rows)} compiled"])


def _last_line(error: str | None) -> str:
    """The line that says what is wrong: below the excerpt of the source, if there is one."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no reason given"
