"""Pages: a notebook or a Markdown file read into HTML, headings, facts and widgets."""

import html
import itertools
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from moe_lab.site.links import site_path
from moe_lab.site.programs import WidgetProgram, widget_programs
from moe_lab.site.prose import Heading, Prose, colour, terminal
from moe_lab.site.widgets import LiveWidget


@dataclass
class Page:
    """One page of the site, before its template."""

    source: str
    body: str
    headings: list[Heading]
    links: list[tuple[str, str]]
    widgets: list[LiveWidget] = field(default_factory=list)
    surprise: str = ""
    minutes: int | None = None

    @property
    def path(self) -> str:
        """Where it lies on the site."""
        return site_path(self.source)

    @property
    def title(self) -> str:
        """The words of its first heading."""
        return self.headings[0].title if self.headings else self.source

    @property
    def is_lesson(self) -> bool:
        """Whether it is a lesson, and neither a solution nor a document."""
        return bool(re.fullmatch(r"notebooks/\d\d_\w+\.ipynb", self.source))


def read_document(root: Path, source: str, pages: Collection[str]) -> Page:
    """A Markdown file of the repository."""
    prose = Prose(root, source, pages)
    text = (root / source).read_text(encoding="utf-8")
    return Page(source, _section(prose, text), prose.headings, prose.links)


def read_notebook(
    root: Path, source: str, pages: Collection[str], make: Callable[[WidgetProgram, Path], LiveWidget]
) -> Page:
    """A lesson or its solutions: prose, code, and what the notebook holds of outputs; ``make`` revives its widgets."""
    notebook = nbformat.read(root / source, as_version=4)
    prose, widgets = Prose(root, source, pages), []
    programs = {program.cell: program for program in widget_programs(notebook)}
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(_section(prose, cell.source))
            continue
        parts.append(f'<pre class="code"><code>{colour(cell.source)}</code></pre>')
        if prose.headings:
            prose.headings[-1].text.append(cell.source)
        program = programs.get(number)
        parts += [_output(output, prose) for output in cell.outputs if not (program and _is_view(output))]
        if program:
            parts.append(_place(len(widgets), program))
            widgets.append(make(program, root / source))
    page = Page(source, "\n".join(filter(None, parts)), prose.headings, prose.links, widgets)
    page.surprise, page.minutes = _card(notebook)
    return page


def _card(notebook: nbformat.NotebookNode) -> tuple[str, int | None]:
    """The surprise, the italic paragraph below the title, and the minutes, both from what stands before any code."""
    opening = itertools.takewhile(lambda cell: cell.cell_type == "markdown", notebook.cells)
    text = "\n\n".join(cell.source for cell in opening)
    surprise = re.search(r"^\*(?!\*)(.+?[^*])\*$", text, re.MULTILINE | re.DOTALL)
    minutes = re.search(r"^\|[^|\n]*?(\d+) min", text, re.MULTILINE)
    words = " ".join(surprise[1].replace("*", "").split()) if surprise else ""
    return words, int(minutes[1]) if minutes else None


def _section(prose: Prose, text: str) -> str:
    """HTML of Markdown; its words go to the heading that they stand below."""
    known = len(prose.headings)
    body = prose.read(text)
    pieces = re.split(r"^<h[1-6] id=[^\n]*$", body, flags=re.MULTILINE)
    for heading, piece in zip(prose.headings[max(0, known - 1) :], pieces[0 if known else 1 :], strict=True):
        heading.text.append(_words(piece))
    return body


def _words(piece: str) -> str:
    """The words of some HTML; a mark within a line ends no word."""
    lines = re.sub(r"</?(a|b|code|em|i|span|strong)\b[^>]*>", "", piece)
    return html.unescape(re.sub(r"<[^>]+>", " ", lines))


def _is_view(output) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _output(output, prose: Prose) -> str:
    """A figure or other HTML as it is, everything else as text; the figure's sentence goes to the search."""
    data = output.get("data", {})
    plain = "".join(output.get("text", data.get("text/plain", "")))
    if output.output_type == "error":
        plain = "\n".join(output.traceback)
    if prose.headings:
        prose.headings[-1].text.append(plain)
    shown = "".join(data.get("text/html", "")) or (terminal(plain) if plain.strip() else "")
    return f'<div class="output">{shown}</div>' if shown else ""


def _place(number: int, program: WidgetProgram) -> str:
    """The place of a widget; until its script runs, and without scripts, its sentence stands there."""
    return f'<div class="output widget" data-widget="{number}"><pre>{html.escape(program.sentence)}</pre></div>'
