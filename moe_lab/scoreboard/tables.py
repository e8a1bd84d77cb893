"""The scoreboard as text, as Markdown for the README, and as an accessible HTML table."""

import html
import json
import re
from collections.abc import Sequence
from textwrap import fill

from moe_lab.scoreboard.facts import Finding
from moe_lab.scoreboard.rows import Row, say
from moe_lab.scoreboard.verdicts import VERDICTS

WIDTH = 110
NEVER_BROKEN = ("break_on_hyphens", "break_long_words")
HEADS = ("claim, source", "what was measured there", "mechanism here", "what was found here", "verdict")
WIDTHS_PERCENT = (15, 29, 17, 26, 13)
CELL = 'style="text-align:left;vertical-align:top;overflow-wrap:anywhere"'
NEVER_RANKED = "One metric a row. Rows are not to be ranked: they measure different quantities."


class Table:
    """Some rows, for a notebook: an HTML table with its headers marked, and the same in words.

    Example:
        >>> from moe_lab.scoreboard import make_rows
        >>> print(Table(make_rows()[:1]))  # doctest: +ELLIPSIS
        10x Speedup on AMD Instinct GPUs
          ...
          verdict: not measured yet
    """

    def __init__(self, rows: Sequence[Row], caption: str = NEVER_RANKED):
        self.rows, self.caption = list(rows), caption

    def __repr__(self) -> str:
        return as_text(self.rows)

    def _repr_html_(self) -> str:
        return as_html(self.rows, self.caption)


def as_text(rows: Sequence[Row]) -> str:
    """A block of lines for each row."""
    return "\n\n".join("\n".join(_block(row)) for row in rows)


def as_json(rows: Sequence[Row]) -> str:
    """Everything, values and records included."""
    return json.dumps([row.as_dict() for row in rows], indent=2, ensure_ascii=False)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of the README; below it what each verdict means, and the sources."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for row in rows:
        claim = row.claim
        code = [f"[{name.rsplit('/', 1)[-1]}]({name})" for name in claim.code]
        cells = [
            f"{claim.words}<br>*{claim.source.short}, {claim.source.date}*",
            "<br>".join(_there(row)),
            "<br>".join([f"[lesson {lesson_number(row)}]({claim.lesson})", *code]),
            "<br>".join(_found(row, link=True)),
            f"**{row.verdict}**{'<br>' + row.because if row.because else ''}",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    meanings = [f"- **{verdict}**: {meaning}." for verdict, meaning in VERDICTS.items()]
    named = dict.fromkeys(row.claim.source for row in rows)
    sources = [f"- *{one.short}*: {one.name}, {one.date}; {one.place}." for one in named]
    return "\n".join([*lines, "", NEVER_RANKED, "", *meanings, "", "Sources:", "", *sources])


def as_html(rows: Sequence[Row], caption: str) -> str:
    """A table with a caption, a header for every column and for every row."""
    columns = "".join(f'<col style="width:{percent}%">' for percent in WIDTHS_PERCENT)
    head = "".join(f'<th scope="col" {CELL}>{html.escape(name)}</th>' for name in HEADS)
    return (
        f'<table style="width:100%;table-layout:fixed"><caption>{html.escape(caption)}</caption>'
        f"<colgroup>{columns}</colgroup><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(_html_row, rows))}</tbody></table>"
    )


def _html_row(row: Row) -> str:
    claim, source = row.claim, html.escape(f"{row.claim.source.short}, {row.claim.source.date}")
    cells = [_there(row), [f"lesson {lesson_number(row)}", *claim.code], _found(row), [f"**{row.verdict}**"]]
    cells[-1] += [row.because] if row.because else []
    rest = "".join(f"<td {CELL}>{'<br>'.join(map(_as_marked, cell))}</td>" for cell in cells)
    return f'<tr><th scope="row" {CELL}>{html.escape(claim.words)}<br><small>{source}</small></th>{rest}</tr>'


def _as_marked(line: str) -> str:
    """A line as HTML, its `code` and **strong** words marked; long names may break after / and _."""
    line = re.sub(r"([/_])(?=\w)", r"\1<wbr>", html.escape(line))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", line))


def lesson_number(row: Row) -> str:
    """The two digits of the lesson that builds a row's mechanism."""
    return row.claim.lesson.rsplit("/", 1)[-1][:2]


def _there(row: Row) -> list[str]:
    there = row.claim.there
    named = {
        "metric": there.metric or "none given",
        "baseline": there.baseline or "none given",
        "shape": there.shape,
        "hardware": there.hardware or "none named",
        "evidence of balanced loads": there.balance,
    }
    return [f"{name}: {words}" for name, words in named.items()]


def _found(row: Row, link: bool = False) -> list[str]:
    """What was found, a line each, with where it is from; "not measured" where a record is missing."""
    lines = [_line(row.found, link)] if row.claim.reading else ["not measured: there is nothing to measure"]
    lines += [_line(one, link) for one in row.beside]
    return lines if row.found or not row.claim.reading else [*lines, f"to measure it: {row.claim.settled_by}"]


def _line(finding: Finding | None, link: bool) -> str:
    if finding is None:
        return "not measured"
    return f"{finding.kind}: {say(finding)}{_origin(finding, link)}"


def _origin(finding: Finding, link: bool) -> str:
    """The record and its machine; of many files, the folder and how many."""
    names = finding.files
    if not names:
        return ""
    if len(names) > 1:
        folder = f"data/{names[0].rsplit('/', 1)[0]}"
        return f"; {len(names)} files of " + (f"[{folder}]({folder})" if link else folder)
    shown = f"[{names[0]}](data/{names[0]})" if link else f"data/{names[0]}"
    return f"; {finding.provenance.replace(names[0], shown, 1)}"


def _block(row: Row) -> list[str]:
    claim = row.claim
    lines = [f"source: {claim.source.name}, {claim.source.date}; {claim.source.place}", *_there(row)]
    lines += [f"here: lesson {lesson_number(row)}, {', '.join(claim.code)}", *_found(row)]
    lines.append(f"verdict: {row.verdict}{f' ({row.because})' if row.because else ''}")
    hanging = {"initial_indent": "  ", "subsequent_indent": "    "} | dict.fromkeys(NEVER_BROKEN, False)
    return [claim.words, *(fill(line, WIDTH, **hanging) for line in lines)]
