"""Every lesson keeps the rules, and the rules catch what they should."""

import copy
import json

import nbformat
import pytest

from moe_lab.lesson_rules import count_words, stated_seconds
from moe_lab.notebooks import FOLDER, WIDGET, execute, lessons, problems, write

LESSONS = lessons()


def test_there_are_lessons():
    assert len([path for path in LESSONS if path.parent == FOLDER]) >= 3


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_lesson_keeps_the_rules(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", [p for p in LESSONS if p.parent == FOLDER], ids=lambda path: path.stem)
def test_lesson_has_solutions(path):
    assert (FOLDER / "solutions" / path.name).exists()


TITLE = "# 01 · Adding\n\n*Two ones are not always two.*"
CARD = """\
| Time | Difficulty | Runs on | Needs |
|---|---|---|---|
| 5 min | ●○○ | any CPU, under half a minute | lesson 00 |

| You will be able to | Proved by |
|---|---|
| **predict** a sum | *Predict* below |
| **compute** a sum | exercise 01.1 |
| **prove** both | exercises 01.2 to 01.3 |

## Predict

What is one and one?"""
REST = ["Explore", "Exercises", "Check against", "Pitfall", "Summary", "References", "Next"]


def a_good_notebook():
    """Title, set-up, card and questions, a result, the rest, and three exercises."""
    new = nbformat.v4
    code = [new.new_code_cell("import math"), new.new_code_cell("1 + 1")]
    code += [new.new_code_cell(f'ml.check("01.{number}", add)') for number in (1, 2, 3)]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        cell.outputs = [new.new_output("execute_result", {"text/plain": "2"}, execution_count=count)]
    rest = "\n\n".join([*(f"## {section}" for section in REST), "[Words](../GLOSSARY.md)", "one " * 1200])
    first, card, prose = (new.new_markdown_cell(text) for text in (TITLE, CARD, rest))
    return new.new_notebook(cells=[first, code[0], card, code[1], prose, *code[2:]])


CODE, PROSE = 3, 4  # the cell with a result, and that with the rest


def saved(notebook, tmp_path):
    path = tmp_path / "01_adding.ipynb"
    write(notebook, path)
    return path


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(saved(a_good_notebook(), tmp_path)) == []


def code_cell(source):
    def change(notebook):
        notebook.cells[CODE].source = source

    return change


def output(**data):
    def change(notebook):
        notebook.cells[CODE].outputs[0].data = {key.replace("_", "/"): value for key, value in data.items()}

    return change


def not_executed(notebook):
    notebook.cells[CODE].execution_count = None


def executed_twice(notebook):
    notebook.cells[CODE].execution_count = 7


def failed(notebook):
    notebook.cells[CODE].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]


def no_title(notebook):
    notebook.cells[0].source = "Adding"


def no_section(notebook):
    notebook.cells[PROSE].source = notebook.cells[PROSE].source.replace("## Pitfall\n", "")


def prose(old, new):
    """Change one text of the good notebook's prose, wherever it stands."""

    def change(notebook):
        cells = [cell for cell in notebook.cells if cell.cell_type == "markdown" and old in cell.source]
        assert cells, f"the good notebook does not say {old!r}"
        for cell in cells:
            cell.source = cell.source.replace(old, new)

    return change


def picture_without_words(notebook):
    notebook.cells[PROSE].source += "\n![](tree.png)"


def took(seconds):
    def change(notebook):
        notebook.metadata["moe_lab"] = {"run_seconds": seconds}

    return change


def long_cells(notebook):
    for cell in notebook.cells[CODE], notebook.cells[-1], notebook.cells[-2]:
        cell.source += "\n\n" + "\n".join(["x = 1"] * 8)


def predicts_too_late(notebook):
    notebook.cells[2], notebook.cells[3] = notebook.cells[3], notebook.cells[2]


def skipped(notebook):
    notebook.cells[CODE].metadata.tags = ["nbval-skip"]


def not_compared(notebook):
    notebook.cells[CODE].metadata.tags = ["nbval-ignore-output"]
    for count in (2, 3, 4):
        cell = copy.deepcopy(notebook.cells[CODE])
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
        (prose("You will be able to", "You"), "no objectives"),
        (prose("one one", "one"), "words, allowed 1,200 to 2,500"),
        (prose("one one", "one one one one one"), "words, allowed 1,200 to 2,500"),
        (long_cells, "half of the code cells have 9 lines or more, allowed 8"),
        (prose("*Two ones are not always two.*", "Two ones are two."), "no surprise"),
        (prose("\n\n*Two ones are not always two.*", ""), "no surprise"),
        (prose("../GLOSSARY.md", "../README.md"), "no link to the glossary"),
        (prose("## Predict", "## Guess"), "no section 'Predict'"),
        (predicts_too_late, "'Predict' must come before the first result"),
        (prose("**prove** both", "**understand** both"), "begin with a bold verb"),
        (prose("**prove** both", "prove both"), "begin with a bold verb"),
        (prose("exercise 01.1", "exercise 02.1"), "name an exercise of this lesson"),
        (prose("*Predict* below", "a look"), "name an exercise of this lesson"),
        (prose("exercise 01.1", "*Predict*"), "no objective names exercise 01.1"),
        (prose("01.2 to 01.3", "01.3"), "no objective names exercise 01.2"),
        (prose("| **predict** a sum | *Predict* below |\n", ""), "2 objectives, at least 3"),
        (prose("| Time |", "| When |"), "no card"),
        (prose("●○○", "hard"), "no card"),
        (prose("lesson 00 |", " |"), "no card"),
        (prose(", under half a minute", ""), "say how long a run takes"),
        (prose("under half a minute", "61 s"), "say how long a run takes, at most a minute"),
        (took(30.1), "it took 30.1 s to run, and its card says 30 s at most"),
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


@pytest.mark.parametrize("seconds", [0.1, 30])
def test_a_run_within_the_cards_time_is_no_problem(seconds, tmp_path):
    notebook = a_good_notebook()
    took(seconds)(notebook)
    assert problems(saved(notebook, tmp_path)) == []


@pytest.mark.parametrize(("words", "seconds"), [("about 12 s", 12), ("half a minute", 30), ("a minute", 60)])
def test_cards_say_seconds_in_words(words, seconds):
    assert stated_seconds(f"any CPU, {words}; no GPU") == seconds
    assert stated_seconds("any CPU, minutes, seconds; 2 spare") is None


def test_words_are_those_that_are_read():
    assert (
        count_words("```python\nx = 1\n```\n| a | 2 |\n|---|---|\n- [two words](a b c.md): `x = 1` · **bold**\n") == 5
    )


def test_a_run_is_timed_and_changes_nothing_else(tmp_path):
    path = tmp_path / "timed.ipynb"
    write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)")]), path)
    runs = []
    for _ in range(2):
        execute(path)
        runs.append(json.loads(path.read_text(encoding="utf-8")))
        nbformat.validate(runs[-1])
    measured = [run["metadata"].pop("moe_lab") for run in runs]
    assert runs[0] == runs[1]
    for run in measured:
        assert list(run) == ["run_seconds", "machine", "date"]
        assert 0 < run["run_seconds"] < 60 and run["machine"] and len(run["date"]) == 10


def test_a_widgets_number_does_not_change_from_run_to_run(tmp_path):
    texts = []
    for drawn in ("9f2c", "41aa"):
        notebook = a_good_notebook()
        notebook.cells[CODE].outputs[0].data = {WIDGET: {"model_id": drawn}, "text/plain": "a widget"}
        texts.append(saved(notebook, tmp_path).read_text(encoding="utf-8"))
    assert texts[0] == texts[1] and '"model_id": "cell-03"' in texts[0]


def test_widget_state_is_caught(tmp_path):
    path = saved(a_good_notebook(), tmp_path)
    path.write_text(path.read_text().replace('"kernelspec"', '"widgets": {}, "kernelspec"'))
    assert "it holds widget state" in problems(path)


@pytest.mark.parametrize("path", [path for path in LESSONS if path.parent == FOLDER], ids=lambda path: path.stem)
def test_a_lessons_run_was_measured(path):
    measured = nbformat.read(path, as_version=4).metadata.get("moe_lab", {})
    assert {"run_seconds", "machine", "date"} <= set(measured), "make notebooks"
