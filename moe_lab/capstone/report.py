"""A graded design: a row a budget, as text, as an accessible HTML table and as JSON."""

import html
import json
from dataclasses import asdict, dataclass

from moe_lab.capstone.briefs import AT_LEAST, Brief
from moe_lab.capstone.design import Design

HEADS = ("budget", "limit", "yours", "met", "by how much", "how it is known")
UNITS = {
    "flops": ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    "params": ((1e9, "B"), (1e6, "M")),
    "ms": ((1.0, "ms"),),
    "mean": ((1.0, "x the mean"),),
}
NOTES = (
    "Counted is exact. Predicted is a lower bound from ceilings and rates of links: no such model was run.",
    "What loss such a model would reach no config tells: it is trained, or it is not known (lesson 10).",
)


def say_number(value: float | int, unit: str) -> str:
    """A number with its unit, three digits that count.

    Example:
        >>> say_number(141e9, "bytes"), say_number(33.3, "ms"), say_number(1.25, "mean"), say_number(0, "bytes")
        ('141 GB', '33.3 ms', '1.25 x the mean', '0')
    """
    scale, name = next((pair for pair in UNITS[unit] if value >= pair[0]), UNITS[unit][-1])
    digits = f"{value / scale:,.4g}" if value >= 1000 * scale else f"{value / scale:.3g}"
    return f"{digits} {name}" if value else "0"


@dataclass(frozen=True)
class Row:
    """One budget: its ``limit``, ``yours``, both in ``unit``, what function of the lab said so, and what to know of it.

    A promise has the unit "promise", limit 1, and yours 1 or 0. ``kind`` is "counted", exact; "predicted", from
    ceilings and rates of links; "simulated", the router itself on a drawn batch; or "guaranteed", for all logits.
    """

    budget: str
    limit: float
    yours: float
    unit: str
    kind: str
    by: str
    remark: str = ""

    @property
    def at_least(self) -> bool:
        """Whether the limit must be reached, and not kept."""
        return self.budget in AT_LEAST or self.unit == "promise"

    @property
    def met(self) -> bool:
        """Whether the design keeps the budget."""
        return self.yours >= self.limit if self.at_least else self.yours <= self.limit

    @property
    def used(self) -> float:
        """Yours over the limit, or the limit over yours where it must be reached: above 1 is broken."""
        if self.at_least:
            return self.limit / self.yours if self.yours else float("inf")
        return self.yours / self.limit

    @property
    def margin(self) -> str:
        """How far from the limit, in words."""
        if self.unit == "promise":
            return "kept" if self.met else "broken"
        share = self.yours / self.limit - 1
        far = f"{abs(share):.0%}" if abs(share) >= 0.01 or not share else f"{abs(share):.1%}"
        words = ("more", "short") if self.at_least else ("left", "over")
        return f"{far} {words[0] if self.met else words[1]}"

    @property
    def cells(self) -> tuple[str, ...]:
        """What a table shows, in the order of `HEADS`."""
        if self.unit == "promise":
            limit, yours = "yes", "yes" if self.met else "no"
        else:
            bound = "at least" if self.at_least else "at most"
            limit, yours = f"{bound} {say_number(self.limit, self.unit)}", say_number(self.yours, self.unit)
        known = f"{self.kind}: {self.by}" + (f"; {self.remark}" if self.remark else "")
        return self.budget, limit, yours, "yes" if self.met else "NO", self.margin, known


@dataclass(frozen=True)
class Report:
    """What `grade` found: rows in the order of the brief's budgets."""

    design: Design
    brief: Brief
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every budget is kept."""
        return all(row.met for row in self.rows)

    @property
    def broken(self) -> list[str]:
        """Names of the budgets that are not kept, the worst first."""
        return [row.budget for row in sorted(self.rows, key=lambda row: -row.used) if not row.met]

    @property
    def binds(self) -> str:
        """The budget that is used most, of those with an upper limit: the next one to stop the design, or the worst."""
        return max((row for row in self.rows if not row.at_least), key=lambda row: row.used).budget

    def row(self, budget: str) -> Row:
        """The row of one budget; raises ValueError for one that the brief does not have."""
        found = {row.budget: row for row in self.rows}
        if budget not in found:
            raise ValueError(f"budget must be one of {', '.join(found)}; got {budget!r}")
        return found[budget]

    @property
    def verdict(self) -> str:
        """One sentence."""
        met = sum(row.met for row in self.rows)
        worst = self.row(self.binds)
        state = "passes" if self.passed else f"breaks {', '.join(self.broken)}"
        binds = f"{self.binds} binds ({worst.used:.0%} of its limit)"
        return f"Brief {self.brief.name!r}: {met} of {len(self.rows)} met; the design {state}; {binds}."

    def __repr__(self) -> str:
        widths = [max(len(cells[i]) for cells in (HEADS, *(row.cells for row in self.rows))) for i in range(5)]
        lines = []
        for cells in (HEADS, *(row.cells for row in self.rows)):
            lines.append("  ".join([*(c.ljust(w) for c, w in zip(cells, widths, strict=False)), cells[5]]).rstrip())
        return "\n".join([*lines, "", self.verdict, *NOTES])

    def _repr_html_(self) -> str:
        style = 'style="text-align:left;vertical-align:top"'
        head = "".join(f'<th scope="col" {style}>{name}</th>' for name in HEADS)
        body = []
        for row in self.rows:
            name, *cells = map(html.escape, row.cells)
            rest = "".join(f"<td {style}>{cell}</td>" for cell in cells)
            body.append(f'<tr><th scope="row" {style}>{name}</th>{rest}</tr>')
        caption = f'<caption style="caption-side:top;text-align:left">{html.escape(self.verdict)}</caption>'
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f"{table}<p>{html.escape(' '.join(NOTES))}</p>"

    def to_json(self) -> str:
        """Everything, for programs."""
        rows = [{**asdict(row), "at_least": row.at_least, "met": row.met, "used": row.used} for row in self.rows]
        found = {"brief": self.brief.name, "passed": self.passed, "broken": self.broken, "binds": self.binds}
        found |= {"rows": rows, "design": self.design.as_dict(), "notes": NOTES}
        return json.dumps(found, indent=2)
