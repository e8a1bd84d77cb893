"""Every lesson keeps the rules, and the rules catch what they should."""

import copy

import nbformat
import pytest

from moe_lab.notebooks import FOLDER, lessons, problems, write

LESSONS = lessons()


def test_there_are_lessons():
    assert len([path for path in LESSONS if path.parent == FOLDER]) >= 3


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_lesson_keeps_the_rules(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", [p for p in LESSONS if p.parent == FOLDER], ids=lambda path: path.stem)
def test_lesson_has_solutions(path):
    assert (FOLDER / "solutions" / path.name).exists()


def a_good_notebook():
    new = nbformat.v4
    code = new.new_code_cell("1 + 1", execution_count=1)
    code.outputs = [new.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    sections = ["Predict", "Explore", "Exercises", "Check against", "Pitfall", "Summary", "References", "Next"]
    prose = "\n".join(["You will be able to add.", *(f"## {section}" for section in sections)])
    return new.new_notebook(cells=[new.new_markdown_cell("# 01 · Adding"), new.new_markdown_cell(prose), code])


def saved(notebook, tmp_path):
    path = tmp_path / "01_adding.ipynb"
    write(notebook, path)
    return path


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(saved(a_good_notebook(), tmp_path)) == []


def code_cell(source):
    def change(notebook):
        notebook.cells[2].source = source

    return change


def output(**data):
    def change(notebook):
        notebook.cells[2].outputs[0].data = {key.replace("_", "/"): value for key, value in data.items()}

    return change


def not_executed(notebook):
    notebook.cells[2].execution_count = None


def executed_twice(notebook):
    notebook.cells[2].execution_count = 7


def failed(notebook):
    notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]


def no_title(notebook):
    notebook.cells[0].source = "Adding"


def no_section(notebook):
    notebook.cells[1].source = notebook.cells[1].source.replace("## Pitfall\n", "")


def no_objectives(notebook):
    notebook.cells[1].source = notebook.cells[1].source.replace("You will be able to", "You")


def picture_without_words(notebook):
    notebook.cells[1].source += "\n![](tree.png)"


def skipped(notebook):
    notebook.cells[2].metadata.tags = ["nbval-skip"]


def not_compared(notebook):
    notebook.cells[2].metadata.tags = ["nbval-ignore-output"]
    for count in (2, 3, 4):
        cell = copy.deepcopy(notebook.cells[2])
        cell.execution_count = count
        notebook.cells.append(cell)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (not_executed, "not executed once, in order"),
        (executed_twice, "not executed once, in order"),
        (failed, "it stopped with ValueError"),
        (no_title, "the first cell must be a title"),
        (no_section, "no section 'Pitfall'"),
        (no_objectives, "no objectives"),
        (picture_without_words, "a picture without alt text"),
        (skipped, "it is skipped by the test"),
        (not_compared, "4 cells are not compared, allowed 3"),
        (code_cell("\n".join(["x = 1"] * 26)), "26 lines, allowed 25"),
        (code_cell("%timeit 1"), "a shell or magic command"),
        (code_cell("!ls"), "a shell or magic command"),
        (code_cell("import requests"), "a network library"),
        (code_cell("open('/home/me/x')"), "an absolute path"),
        (code_cell("load('https://example.org')"), "an address in code"),
        (code_cell("# pip install x"), "an installation"),
        (output(image_png="AAAA", text_plain="x"), "a picture without alt text"),
        (output(text_html="<img src='x'>", text_plain="x"), "an <img> without alt text"),
        (output(text_plain="/home/me/moe-lab"), "a path of the machine"),
        (output(text_plain="x" * 300_000), "bytes, allowed 300,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rules_catch(change, says, tmp_path):
    notebook = a_good_notebook()
    change(notebook)
    found = problems(saved(notebook, tmp_path))
    assert any(says in problem for problem in found), found


def test_widget_state_is_caught(tmp_path):
    path = saved(a_good_notebook(), tmp_path)
    path.write_text(path.read_text().replace('"kernelspec"', '"widgets": {}, "kernelspec"'))
    assert "it holds widget state" in problems(path)
