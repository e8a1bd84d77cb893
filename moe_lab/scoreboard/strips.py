"""Rows as figures show them: what was claimed, and what was found of the same quantity."""

from moe_lab.plots.scoreboard import Strip
from moe_lab.scoreboard.rows import Row


def as_strip(row: Row) -> Strip:
    """A row for `moe_lab.plots.scoreboard.draw_strips`: our measurement, and printed values in the same unit.

    Example:
        >>> from moe_lab.scoreboard import make_rows
        >>> (row,) = (row for row in make_rows() if row.claim.slug == "switch-seconds")
        >>> strip = as_strip(row)
        >>> strip.low, [round(value, 1) for value in strip.found["printed"]]
        (7, [4.7])
    """
    claim, unit = row.claim, row.found.unit if row.found else "x"
    printed = [one for one in (*row.beside, row.own) if one and one.kind == "printed" and one.unit == unit]
    found = {one.kind: list(one.values.values()) for one in (row.found, *printed) if one}
    return Strip(claim.words, claim.there.metric, claim.demand.low, claim.demand.high, found)
