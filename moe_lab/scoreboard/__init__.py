"""The comparison that this lab was started from, cell by cell: who claimed what, what was found here, and a verdict."""

from moe_lab.scoreboard.claims import CLAIMS
from moe_lab.scoreboard.facts import KINDS, Claim, Demand, Finding, Source, There
from moe_lab.scoreboard.page import read_table, write_table
from moe_lab.scoreboard.rows import DATA, Row, make_row, make_rows, say
from moe_lab.scoreboard.sources import SOURCES
from moe_lab.scoreboard.strips import as_strip
from moe_lab.scoreboard.tables import Table, as_html, as_json, as_markdown, as_text
from moe_lab.scoreboard.verdicts import VERDICTS, conditions_met, judge

__all__ = [
    "CLAIMS",
    "DATA",
    "KINDS",
    "SOURCES",
    "VERDICTS",
    "Claim",
    "Demand",
    "Finding",
    "Row",
    "Source",
    "Table",
    "There",
    "as_html",
    "as_json",
    "as_markdown",
    "as_strip",
    "as_text",
    "conditions_met",
    "judge",
    "make_row",
    "make_rows",
    "read_table",
    "say",
    "write_table",
]
