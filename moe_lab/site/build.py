"""Build the site: read every page, revive the widgets, fill the templates, and put all in place at once."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from moe_lab.notebooks import lessons
from moe_lab.paths import check_file
from moe_lab.site.pages import Page, read_document, read_notebook
from moe_lab.site.programs import WidgetProgram
from moe_lab.site.render import MARK, render
from moe_lab.site.widgets import LiveWidget, make_widget
from moe_lab.writing import alone, explained, flush, put_in_place

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "GLOSSARY.md")
MAX_BYTES = 2_000_000


def build(out: Path, root: Path = ROOT) -> list[Path]:
    """Write the site of the repository at ``root`` to the folder ``out``; the same files give the same bytes.

    All is built beside ``out`` and then takes its place, so that a build that fails or is killed leaves the old site as
    it was. Returns the pages.

    Raises ValueError if ``out`` holds anything but such a site, if another process builds it, if a page is over 2 MB,
    if a link leads nowhere, or if a widget no longer says what its notebook says; CannotWrite.
    """
    _check_replaceable(out)
    out = out.resolve() if out.is_symlink() else out.absolute()  # a link stays one
    with _beside(out) as fresh:
        pages = read_pages(root)
        _check_links(pages)
        with explained(out):
            for path, text in render(pages):
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_bytes(_small_enough(path, text.encode()))
                flush(fresh / path)
            put_in_place(fresh, out)
            flush(out.parent)
    return sorted(out.rglob("*.html"))


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A place for the new site, for this process alone; afterwards nothing of it is left, the old site's included."""
    folder = out.with_name(f".unfinished-{out.name}")
    with alone(folder / ".lock", out, f"another process builds {out}; wait for it, or give another --out"):
        fresh = folder / "new"
        try:
            with explained(out):
                shutil.rmtree(fresh, ignore_errors=True)  # what a killed process left
                fresh.mkdir()
            yield fresh
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sources(root: Path) -> list[str]:
    """The files that become pages: lessons, their solutions, and the documents, in reading order."""
    notebooks = sorted(lessons(root / "notebooks"), key=lambda path: (len(path.relative_to(root).parts), path.name))
    documents = [root / name for name in DOCUMENTS if (root / name).is_file()] + sorted((root / "docs").rglob("*.md"))
    return [path.relative_to(root).as_posix() for path in [*notebooks, *documents]]


def read_pages(root: Path) -> list[Page]:
    """Every page of the site, with its widgets made."""
    names, pages = sources(root), []
    with tempfile.TemporaryDirectory() as folder, _as_a_lesson(Path(folder)):
        for name in tqdm(names, desc="site"):
            if name.endswith(".ipynb"):
                pages.append(read_notebook(root, name, names, _make_in_its_folder))
            else:
                pages.append(read_document(root, name, names))
    return pages


@contextlib.contextmanager
def _as_a_lesson(folder: Path) -> Iterator[None]:
    """A lesson's surroundings: its own progress file, its prints to nobody; this process's own are back at the end."""
    before, here = dict(os.environ), Path.cwd()
    os.environ["MOE_LAB_PROGRESS"] = str(folder / "progress.json")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.chdir(here)


def _make_in_its_folder(program: WidgetProgram, lesson: Path) -> LiveWidget:
    os.chdir(lesson.parent)
    return make_widget(program, lesson)


def _small_enough(path: str, text: bytes) -> bytes:
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path} has {len(text):,} bytes, allowed {MAX_BYTES:,}")
    return text


def _check_replaceable(out: Path) -> None:
    index = out / "index.html"
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if empty:
        return
    if not (index.is_file() and MARK in check_file(index, most_bytes=MAX_BYTES).read_text(encoding="utf-8")):
        raise ValueError(f"{out} is not empty and no site of this command's; give another --out, or remove it")
    for path in out.rglob("*"):
        if path.is_symlink() or (path.suffix != ".html" and not path.is_dir()):
            name = path.relative_to(out)
            raise ValueError(
                f"{out} is a site and holds {name} besides, which would be lost; move it, or give another --out"
            )


def _check_links(pages: list[Page]) -> None:
    anchors = {page.path: {heading.anchor for heading in page.headings} for page in pages}
    for page in pages:
        for target, anchor in page.links:
            if anchor and anchor not in anchors[target]:
                raise ValueError(f"{page.source}: a link leads to {target}#{anchor}, and there is no such heading")
