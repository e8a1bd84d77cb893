"""Pages into the files of the site, through the templates; every page carries all that it shows and runs."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import jinja2

from moe_lab.site.links import badges, relative, site_path
from moe_lab.site.pages import Page
from moe_lab.site.search import search_index

TEMPLATES = Path(__file__).parent / "templates"
MARK = "built by moe-lab"  # in index.html: what a build may replace


def render(pages: list[Page]) -> Iterator[tuple[str, str]]:
    """(path on the site, text) of every page, and of the index and the search, which no file of the repository is."""
    write, known = _environment(), {page.path for page in pages}
    lessons = [page for page in pages if page.is_lesson]
    for page in pages:
        values = {"page": page, "live": _live(page), "styles": sorted({one.style for one in page.widgets})}
        yield page.path, _fill(write, "page.html", page.path, known, **values, **_around(page, lessons, known))
    yield "search.html", _fill(write, "search.html", "search.html", known, index=search_index(pages))
    yield "index.html", _fill(write, "index.html", "index.html", known, lessons=lessons, mark=MARK)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _as_data
    return environment


def _around(page: Page, lessons: list[Page], known: set[str]) -> dict:
    """What a lesson's page links to: its neighbours, its solutions, and services that open its notebook."""
    if not page.is_lesson:
        return {"before": None, "after": None, "solution": "", "badges": []}
    at = lessons.index(page)
    solution = site_path(page.source.replace("notebooks/", "notebooks/solutions/"))
    return {
        "before": lessons[at - 1] if at else None,
        "after": lessons[at + 1] if at + 1 < len(lessons) else None,
        "solution": solution if solution in known else "",
        "badges": badges(page.source),
    }


def _live(page: Page) -> dict:
    """Each module once, and the first state of every widget."""
    return {
        "modules": {widget.name: widget.module for widget in page.widgets},
        "widgets": [{"module": widget.name, "traits": widget.traits} for widget in page.widgets],
    }


def _fill(environment: jinja2.Environment, template: str, path: str, known: set[str], **values) -> str:
    """A template's text; its scripts are allowed by their hashes, everything else from anywhere is forbidden."""
    names = {"theme": ["theme.js"], "site": ["site.js"], "search": ["search.js"], "widgets": ["model.js", "widgets.js"]}
    scripts = {name: "".join(map(_template, files)) for name, files in names.items()}
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts.values())
    # blob: for the widgets' modules, which the page makes of its own text; a style can fetch nothing but images
    policy = f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; img-src data:; "
    return environment.get_template(template).render(
        css=_template("site.css"),
        scripts=scripts,
        policy=policy + "base-uri 'none'; form-action 'none'",
        known=known,
        to=lambda target: relative(target, path),
        **values,
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _as_data(value) -> str:
    """JSON for a script element: nothing in it ends the element."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
