"""The instructor's pages keep to the lessons: exercises, wrong answers, minutes, numbers and links that exist."""

import functools
import json
import re
from importlib import import_module

import pytest

from moe_lab.notebooks import FOLDER, lessons

ROOT = FOLDER.parent
PAGES = ROOT / "docs" / "instructor"
LESSONS = {path.name[:2]: path for path in lessons() if path.parent == FOLDER}
SECTIONS = (
    "The one idea",
    "Before the lesson",
    "Timing",
    "Misconceptions",
    "Discussion",
    "Exercises",
    "Rubric",
    "Extensions",
)
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")


def read_page(number: str) -> str:
    return (PAGES / f"{number}.md").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    return re.search(rf"^## {name}$(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)[1]


def table_rows(text: str) -> list[list[str]]:
    """Cells of each row of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def minutes_of(number: str) -> int:
    """The minutes that a lesson's card states."""
    return int(re.match(r"(\d+) min", card_of(number)[0])[1])


@functools.cache
def card_of(number: str) -> list[str]:
    """Time, difficulty, what it runs on, and needs."""
    text = "\n".join(cell["source"] for cell in read_notebook(LESSONS[number]))
    return table_rows(re.search(r"^\| Time \|.*?(?=\n\n)", text, flags=re.MULTILINE | re.DOTALL)[0])[0]


@functools.cache
def read_notebook(path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"), object_hook=_join_lines)["cells"]


def _join_lines(found: dict) -> dict:
    """A notebook keeps texts whole, or as lists of lines."""
    lists = {key: "".join(found[key]) for key in ("source", "text", "text/plain") if isinstance(found.get(key), list)}
    return found | lists


def exercises_of(number: str) -> list[str]:
    return list(import_module(f"moe_lab.exercises.lesson_{number}").EXERCISES)


def test_each_lesson_has_its_page():
    assert {path.stem for path in PAGES.glob("[0-9]*.md")} == set(LESSONS)


@pytest.mark.parametrize("number", LESSONS)
def test_a_page_has_its_sections(number):
    headings = re.findall(r"^## (.*)", read_page(number), flags=re.MULTILINE)
    assert headings == list(SECTIONS)


@pytest.mark.parametrize("number", LESSONS)
def test_a_page_names_each_exercise_and_no_other(number):
    page, own = read_page(number), exercises_of(number)
    assert re.findall(r"^### (\d\d\.\d+) · \S", section(page, "Exercises"), flags=re.MULTILINE) == own
    assert [row[0] for row in table_rows(section(page, "Rubric"))] == own
    named = re.findall(r"\bexercises? (\d\d\.\d+)(?: (?:and|to) (\d\d\.\d+))?", page)
    assert {one for pair in named for one in pair if one} <= set(own)


@pytest.mark.parametrize("number", LESSONS)
def test_wrong_answers_are_those_that_the_tests_refuse(number):
    wrong = import_module(f".mutants.answers_{number}", __package__).WRONG
    for part in re.split(r"^### ", section(read_page(number), "Exercises"), flags=re.MULTILINE)[1:]:
        rows = table_rows(part)
        assert len(rows) >= 4, part[:40]
        assert [row[0] for row in rows if row[0] not in wrong[part.split(" ")[0]]] == []


@pytest.mark.parametrize("number", LESSONS)
def test_minutes_add_up_to_the_cards(number):
    timing = section(read_page(number), "Timing")
    assert sum(int(row[1]) for row in table_rows(timing)) == minutes_of(number)
    assert f"takes {minutes_of(number)} minutes" in timing


@pytest.mark.parametrize("number", LESSONS)
def test_every_number_is_the_lessons(number):
    """Of decimals, and of whole numbers from 100 on: each stands in the lesson, its solution or its exercises' code."""
    page = re.sub(r"\]\([^)]*\)|`[^`]*`|^\| [^|]* \|", " ", read_page(number), flags=re.MULTILINE)
    own = [LESSONS[number], *FOLDER.glob(f"solutions/{number}_*")]
    own += [ROOT / "moe_lab" / "exercises" / f"lesson_{number}.py", ROOT / "tests" / "mutants" / f"answers_{number}.py"]
    known = {float(one.replace(",", "")) for path in own for one in NUMBER.findall(read_text(path))}
    found = {one: float(one.rstrip(",").replace(",", "")) for one in NUMBER.findall(page)}
    strange = {one: value for one, value in found.items() if ("." in one or value >= 100) and value not in known}
    assert sorted(strange.keys() - set(exercises_of(number))) == []


def read_text(path) -> str:
    """A file's text, of a notebook sources and outputs."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = read_notebook(path)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join([*(cell["source"] for cell in cells), *shown])


# ---------------------------------------------------------------- the README of the folder

README = (PAGES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert links and [link for link in links if not (path.parent / link).exists()] == []


def test_the_overview_has_each_lesson_and_its_minutes():
    found = re.findall(r"\[(\d\d) [^]]*\]\((\d\d)\.md\) \| (\d+) \|", README)
    assert sorted((one, int(minutes)) for one, _, minutes in found) == [(one, minutes_of(one)) for one in LESSONS]
    assert all(one == page for one, page, _ in found)


def test_course_plans_add_up_and_keep_the_order_of_needs():
    plans = {}
    for plan, _, numbers, minutes in table_rows(section(README, "Course plans")):
        taught = plans.setdefault(plan, [])
        assert int(minutes) == sum(minutes_of(one) for one in numbers.split(", ")), (plan, numbers)
        for number in numbers.split(", "):
            assert needs_of(number) <= {*taught}, f"{plan}: lesson {number} comes before what it needs"
            taught.append(number)
    assert len(plans) >= 3 and all(len(taught) == len(set(taught)) for taught in plans.values())


def needs_of(number: str) -> set[str]:
    return set(re.findall(r"\b\d\d\b", card_of(number)[-1]))


def test_the_table_of_a_class_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada.json").write_text('{"01.1": true, "01.2": false}')
    (tmp_path / "bob.json").write_text('{"01.1": true}')
    exec(re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1], {})
    assert capsys.readouterr().out.splitlines() == [
        "01.1: 2 of 2 who tried solved it",
        "01.2: 0 of 1 who tried solved it",
    ]
