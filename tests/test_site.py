"""The site without a browser: what runs for a widget, where links lead, and that a build is whole, equal or nothing."""

import base64
import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from moe_lab.notebooks import lessons, write
from moe_lab.site import build as build_site
from moe_lab.site import links
from moe_lab.site.build import _check_links, build, sources
from moe_lab.site.pages import read_notebook
from moe_lab.site.programs import VIEW, widget_programs
from moe_lab.site.prose import Prose, anchor_of
from moe_lab.site.widgets import LiveWidget, make_widget
from moe_lab.widgets import CapacityBins

ROOT = Path(__file__).parents[1]
build_module = sys.modules["moe_lab.site.build"]
SENTENCE = repr(CapacityBins(tokens=12, num_experts=3, top_k=1))


def notebook_of(*sources, sentence=SENTENCE):
    """A notebook whose last cell shows a widget."""
    shown = new_output("execute_result", {"text/plain": sentence, VIEW: {"model_id": "0"}}, execution_count=1)
    *before, last = sources
    return new_notebook(cells=[*map(new_code_cell, before), new_code_cell(last, outputs=[shown])])


def kept(*sources):
    (program,) = widget_programs(notebook_of(*sources))
    return program.source.splitlines()


def test_only_what_a_widget_needs_is_run():
    assert kept("a = 1\nb = slow()", "c = a + 1\nd = b", "Bins(c)") == ["a = 1", "c = a + 1"]
    assert kept("a = 1\na = 2", "Bins(a)") == ["a = 2"], "what is bound anew is not needed from before"
    assert kept("a = 1\nprint(a)\nfor x in slow():\n    print(x)", "Bins(a)") == ["a = 1"]
    assert kept("a = []\na.append(1)\nb = []\nb.append(2)", "Bins(a)") == ["a = []", "a.append(1)"]
    assert kept("a = {}\na['x'] = 1", "Bins(a)") == ["a = {}", "a['x'] = 1"]
    assert kept("import random\nimport math\nrandom.seed(0)", "Bins(math.pi)") == [
        "import random",
        "import math",
        "random.seed(0)",
    ], "what sets things up is kept"


def test_a_function_may_read_what_is_bound_after_it():
    assert kept("def f():\n    return size", "size = 3\nother = 4", "Bins(f())") == [
        "def f():",
        "    return size",
        "size = 3",
    ]
    twice = ["def f():", "    return size", "size = 3", "x = f()", "size = 99"]
    assert kept("\n".join(twice), "Bins(x)") == twice, "nobody knows when it is called"
    assert kept("x = 5\nloads = [x for x in range(3)]", "Bins(loads)") == ["loads = [x for x in range(3)]"]


def test_a_widget_must_be_its_cells_last_expression():
    with pytest.raises(ValueError, match="cell 0 must show one widget"):
        widget_programs(notebook_of("bins = Bins(3)"))


def test_a_widget_that_says_something_else_is_refused():
    source = "from moe_lab.widgets import CapacityBins", "CapacityBins(tokens=12, num_experts=3, top_k=1)"
    (program,) = widget_programs(notebook_of(*source))
    made = make_widget(program, Path("notebooks/01_made_up.ipynb"))
    assert made.name == "CapacityBins" and made.traits["tokens"] == 12 and "export default" in made.module
    (program,) = widget_programs(notebook_of(*source, sentence="CapacityBins: something else."))
    with pytest.raises(ValueError, match="make notebooks ONLY=01"):
        make_widget(program, Path("notebooks/01_made_up.ipynb"))


def prose(source="notebooks/01_a.ipynb", pages=("notebooks/01_a.ipynb", "GLOSSARY.md")):
    return Prose(ROOT, source, pages)


def test_links_stay_on_the_site_or_lose_their_address():
    page = prose("notebooks/solutions/01_a.ipynb")
    assert page.read("[words](../../GLOSSARY.md#load)") == '<p><a href="../glossary.html#load">words</a></p>\n'
    assert page.read("[code](../../Makefile)") == "<p>code</p>\n"
    assert page.read("[web](https://a.example/b)") == '<p><a href="https://a.example/b">web</a></p>\n'
    assert page.links == [("glossary.html", "load")]


def test_headings_have_anchors_of_their_own():
    page = prose()
    page.read("## Pitfall: `x`\n\n## Pitfall: x")
    assert [heading.anchor for heading in page.headings] == ["pitfall-x", "pitfall-x-1"]
    assert anchor_of("2 · Who is dropped?") == "2--who-is-dropped"


@pytest.mark.parametrize("text", ["so $x^2$ is", "$$x$$", "\\begin{equation}x\\end{equation}"])
def test_latex_is_refused(text):
    with pytest.raises(ValueError, match=r"notebooks/01_a\.ipynb: the site shows no LaTeX"):
        prose().read(text)


def test_every_notebook_can_be_a_page():
    """Read without running anything: titles, surprises and minutes, one anchor a heading, no link to nowhere."""
    names = sources(ROOT)
    assert {str(path.relative_to(ROOT)) for path in lessons()} <= set(names) and "GLOSSARY.md" in names
    blank = LiveWidget("Blank", {}, "", "")
    pages = [read_notebook(ROOT, n, names, lambda *_: blank) for n in names if n.endswith(".ipynb")]
    own = [page for page in pages if page.is_lesson]
    assert [page.title[:2] for page in own] == [f"{number:02}" for number in range(len(own))]
    assert [page.source for page in own if len(page.surprise) < 20 or not page.minutes] == []
    for page in pages:
        anchors = [heading.anchor for heading in page.headings]
        assert len(anchors) == len(set(anchors)), page.source
    with pytest.raises(ValueError, match="no such heading"):
        own[0].links.append((own[1].path, "nowhere"))
        _check_links(own)


@pytest.fixture
def root(tmp_path):
    """A repository of two lessons, one with a widget, with solutions and documents."""
    folder = tmp_path / "repository"
    (folder / "notebooks" / "solutions").mkdir(parents=True)
    (folder / "README.md").write_text("# Start\n\n[first](notebooks/00_first.ipynb)\n")
    (folder / "GLOSSARY.md").write_text("# Words\n\n## load\n\nAssignments of an `</script>`.\n")
    card = "# 00 · First\n\n*Two are\nenough.*\n\n| Time | Runs on |\n|---|---|\n| 20 min | any |\n"
    widget = notebook_of(
        "from moe_lab.widgets import CapacityBins\ncount = 12", "CapacityBins(tokens=count, num_experts=3, top_k=1)"
    )
    widget.cells.insert(0, new_markdown_cell(card + "\n[load](../GLOSSARY.md#load)"))
    text = new_output("stream", name="stdout", text="1 < 2\n")
    plain = new_notebook(cells=[new_markdown_cell("# 01 · Second"), new_code_cell("print('1 < 2')", outputs=[text])])
    write(widget, folder / "notebooks" / "00_first.ipynb")
    write(plain, folder / "notebooks" / "01_second.ipynb")
    write(plain, folder / "notebooks" / "solutions" / "00_first.ipynb")
    return folder


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_give_the_same_bytes(root, tmp_path):
    names = {"index.html", "search.html", "readme.html", "glossary.html", "solutions/00_first.html"}
    assert {str(path.relative_to(tmp_path / "a")) for path in build(tmp_path / "a", root)} > names
    build(tmp_path / "b", root)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_page_carries_all_that_it_needs_and_asks_for_nothing(root, tmp_path):
    for path in build(tmp_path / "site", root):
        page = path.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
        assert policy.startswith("default-src 'none'; ") and "http" not in policy and "unsafe-eval" not in policy
        scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', page, re.DOTALL)
        assert len(scripts) >= 2
        for script in scripts:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        tags = re.findall(r"<[a-z][^>]*>", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
        assert [tag for tag in tags if re.search(r"\son\w+=", tag)] == []
        assert [tag for tag in tags if re.search(r'<(link|iframe)\b|\bsrc="(?!data:)', tag)] == []
        assert page.count("</script>") == page.count("<script")


def test_pages_hold_what_the_notebooks_hold(root, tmp_path):
    build(tmp_path / "site", root)
    first, second = ((tmp_path / "site" / name).read_text() for name in ("00_first.html", "01_second.html"))
    assert f"<pre>{SENTENCE}</pre>" in first, "without scripts the widget's sentence stands there"
    live = json.loads(re.search(r'id="live">(.*?)</script>', first)[1])
    assert live["widgets"][0]["traits"]["tokens"] == 12 and list(live["modules"]) == ["CapacityBins"]
    assert "<pre>1 &lt; 2\n</pre>" in second and 'id="live"' not in second
    assert 'href="glossary.html#load"' in first and 'rel="next" href="01_second.html"' in first
    assert 'href="solutions/00_first.html"' in first and 'rel="prev" href="00_first.html"' in second
    index = (tmp_path / "site" / "index.html").read_text()
    assert "20 minutes" in index and "Two are enough." in index
    found = json.loads(re.search(r'id="index">(.*?)</script>', (tmp_path / "site" / "search.html").read_text())[1])
    entry = {"page": "Words", "heading": "load", "address": "glossary.html#load"}
    assert {**entry, "text": "Assignments of an </script>."} in found


def test_a_build_that_fails_leaves_the_old_site(root, tmp_path, monkeypatch):
    out = tmp_path / "site"
    build(out, root)
    before, around = bytes_of(out), set(tmp_path.iterdir())
    (root / "GLOSSARY.md").write_text("# Words\n")
    with pytest.raises(ValueError, match=r"glossary\.html#load"):
        build(out, root)
    (root / "GLOSSARY.md").write_text("# Words\n\n## load\n\nChanged.\n")
    monkeypatch.setattr(build_module, "MAX_BYTES", 20_000)
    with pytest.raises(ValueError, match="allowed 20,000"):
        build(out, root)
    assert bytes_of(out) == before and set(tmp_path.iterdir()) == around
    monkeypatch.undo()
    build(out, root)
    assert bytes_of(out) != before and set(tmp_path.iterdir()) == around


def test_a_folder_of_something_else_is_not_replaced(root, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="no site of this command's"):
        build_site(tmp_path / "thesis", root)
    assert (tmp_path / "thesis" / "index.html").read_text() == "mine"


def test_badges_wait_for_an_address(monkeypatch):
    assert links.badges("notebooks/00_start_here.ipynb") == [] or links.REPOSITORY
    monkeypatch.setattr(links, "REPOSITORY", "https://github.com/someone/moe-lab")
    assert links.badges("notebooks/00_start_here.ipynb") == [
        ("Open in Colab", "https://colab.research.google.com/github/someone/moe-lab/blob/main/notebooks/00_start_here.ipynb"),
        ("Open in Binder", "https://mybinder.org/v2/gh/someone/moe-lab/main?urlpath=lab/tree/notebooks/00_start_here.ipynb"),
    ]  # fmt: skip


def test_what_the_readme_names_is_there():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"notebooks/[\w/]+\.ipynb", readme))
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    linked = re.findall(r"\]\((?!\w+:|#)([^)#]+)", readme)
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_the_citation_says_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "the fields that the format requires"
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["authors"] and all(
        author.get("name") or author.get("family-names") for author in citation["authors"]
    )
    assert str(citation["version"]) == project["version"] and citation["license"] == project["license"]


def test_the_container_is_set_up_by_make():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    recipe = (ROOT / ".devcontainer" / container["build"]["dockerfile"]).read_text()
    target = re.fullmatch(r"make ([a-z]+)", container["postCreateCommand"])[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    python = re.search(r"^FROM python:3\.(\d+)", recipe, re.MULTILINE)
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert int(python[1]) >= int(required.removeprefix(">=3."))
    assert container["forwardPorts"] == [int(re.search(r"^PORT \?= (\d+)", (ROOT / "Makefile").read_text(), re.M)[1])]
