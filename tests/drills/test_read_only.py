"""A folder that nobody may write into, and a user without a home: what writes says where else, the rest works."""

import importlib
import json
import os
from pathlib import Path

import pytest
from nbformat.v4 import new_notebook

from moe_lab import doctor, lesson, notebooks
from moe_lab.__main__ import main
from moe_lab.capstone.design import write_design
from moe_lab.capstone.examples import laptop_design
from moe_lab.folders import NOTEBOOKS
from moe_lab.scoreboard.page import BEGIN, END

from .children import be_homeless, forbid_writing, in_a_child, place_for_all

for module in (
    "accounting.compare",
    "bench",
    "exercises.lesson_00",
    "experiments.balance",
    "hf",
    "machine_code",
    "profiling.layer",
    "scoreboard",
    "site",
):  # what commands import when they run: once here, and not in every child
    importlib.import_module(f"moe_lab.{module}")

WHY = ("Read-only file system", "Permission denied")
WRITE = {
    "train --steps 1": ("runs/first", "(--out and --export name the places)"),
    "experiment balance --steps 20": ("runs/balance.json", "(--out and --record name the places)"),
    "profile --out traces": ("traces/trace.json", "(--out names the place)"),
    "compile --record kernels.json": ("kernels.json", "(--record and the variable TRITON_CACHE_DIR name the places)"),
    "scoreboard --write page.md": ("page.md", "(--write names the file; without it the table is printed)"),
    "export model": ("model", "(FOLDER names the place)"),
    "site": ("site", "(--out names the place)"),
}
READ = (
    "doctor",
    "count mixtral-8x7b",
    "count --list",
    "scoreboard",
    "grade design.json --brief laptop",
)


@pytest.fixture(scope="module")
def project():
    """A folder with a page, a notebook and a design, which every user can read."""
    with place_for_all() as folder:
        (folder / "page.md").write_text(f"{BEGIN}\n{END}\n")
        (folder / "lesson.ipynb").write_text(json.dumps(new_notebook()))
        write_design(laptop_design(), folder / "design.json")
        yield folder
        folder.chmod(0o755)


def in_a_closed_folder(function, folder):
    """Run it where it may not write, as a user without a home; nothing has changed there."""

    def prepare():
        be_homeless()
        forbid_writing(folder)
        os.chdir(folder)

    before = {path: path.read_bytes() for path in folder.iterdir()}
    ended = in_a_child(function, prepare)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return ended


@pytest.mark.parametrize("command", WRITE)
def test_what_writes_says_where_and_what_puts_it_elsewhere(command, project):
    place, option = WRITE[command]
    ended = in_a_closed_folder(lambda: main(command.split()), project)
    (said,) = [line for line in ended.said.splitlines() if line.startswith("moe-lab ")]
    assert ended.code == 1 and "Traceback" not in ended.said
    assert said.startswith(f"moe-lab {command.split()[0]}: cannot write ") and f"{place}: " in said, said
    assert any(why in said for why in WHY) and "; give another place, or make this one writable, and start" in said
    assert said.endswith(option)


@pytest.mark.parametrize("command", READ)
def test_what_need_not_write_works(command, project):
    ended = in_a_closed_folder(lambda: main(command.split()), project)
    assert "Traceback" not in ended.said
    assert ended.code == 0 and ended.said, ended.said


def test_a_lesson_begins_and_checks_without_a_home(project, monkeypatch, tmp_path):
    def take_a_lesson():
        lesson.start("00")
        lesson.check("00.1", None)
        print(lesson.progress())

    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "progress.json"))
    take_a_lesson()  # with a home it works, and all is imported
    ended = in_a_closed_folder(take_a_lesson, project)
    assert ended.code == 0 and "Lesson 00 is set up" in ended.said and "00.1 not attempted yet" in ended.said
    says = "(progress was not saved: this user has no home folder; the variable MOE_LAB_PROGRESS may name another file)"
    assert says in ended.said


def test_a_package_that_wants_a_home_is_told_of(monkeypatch, capsys):
    def examine():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(doctor, "examine", examine)
    assert main(["doctor"]) == 1
    assert "a package wants a home folder (Could not determine home directory.); set HOME" in capsys.readouterr().err


def test_progress_that_may_not_be_written_says_so(project):
    def check():
        os.environ["MOE_LAB_PROGRESS"] = str(project / "progress.json")
        lesson.check("00.1", None)

    ended = in_a_closed_folder(check, project)
    assert ended.code == 0 and f"(progress was not saved: cannot write {project / 'progress.json'}: " in ended.said
    assert "00.1 not attempted yet" in ended.said


def test_a_notebook_is_refused_before_it_runs(project, monkeypatch):
    monkeypatch.setattr(notebooks, "NotebookClient", None)  # nothing may run
    ended = in_a_closed_folder(lambda: notebooks.execute(project / "lesson.ipynb"), project)
    assert ended.code == 1 and ended.said.startswith(f"CannotWrite: cannot write {project / 'lesson.ipynb'}: ")


@pytest.mark.drill
@pytest.mark.parametrize("command", ["compile permute --target sm_90", "count mixtral-8x7b", "doctor", "notebooks 00"])
def test_in_a_checkout_that_is_read_only(command):
    """The whole of it, where this user may mount: commands that work on the project's own folders."""
    if os.geteuid() != 0:
        return
    root = Path(NOTEBOOKS).parent

    def prepare():
        forbid_writing(root)
        os.environ.pop("TRITON_CACHE_DIR", None)

    ended = in_a_child(lambda: main(command.split()), prepare)
    assert "Traceback" not in ended.said
    if command.startswith("notebooks"):
        assert ended.code == 1 and "lessons are written where they lie: copy the project)" in ended.said
    else:
        assert ended.code == 0, ended.said
