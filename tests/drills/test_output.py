"""What a command prints goes nowhere, and what it would write cannot be written: a sentence, and no traceback."""

import os
import sys

import pytest

from moe_lab import lesson
from moe_lab.__main__ import main

from .children import Ended, in_a_child

FULL = "No space left on device"


def test_progress_on_a_full_disk_does_not_stop_the_reader(tmp_path, monkeypatch, capsys):
    """An exercise is checked, and the sentence comes after its outcome."""
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "a file" / "progress.json"))
    (tmp_path / "a file").touch()
    lesson.check("00.1", None)
    said = capsys.readouterr().out
    assert f"(progress was not saved: cannot write {tmp_path}/a file/progress.json: " in said
    assert "the variable MOE_LAB_PROGRESS may name another file)" in said and "00.1 not attempted yet" in said


@pytest.mark.parametrize(
    "command", [["doctor"], ["count", "mixtral-8x7b"], ["scoreboard", "--json"], ["count", "--list"]]
)
def test_what_cannot_be_printed_is_told_of(command):
    def run():
        sys.stdout = open("/dev/full", "w")  # noqa: PTH123
        return main(command)

    ended = in_a_child(run)
    assert ended.code == 1 and ended.said == f"moe-lab {command[0]}: [Errno 28] {FULL}\n"


def test_who_reads_the_first_lines_only_gets_no_complaint(tmp_path):
    def run():
        reading, writing = os.pipe()
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w")
        return main(["count", "--list"])

    assert in_a_child(run) == Ended(0, "")


def test_the_command_says_which_option_names_another_place(tmp_path, capsys):
    (tmp_path / "a file").touch()
    record = tmp_path / "a file" / "x.json"
    assert main(["compile", "--record", str(record)]) == 1, "before anything is compiled"
    said = capsys.readouterr().err
    assert said.startswith(f"moe-lab compile: cannot write {record}: ")
    assert said.endswith("(--record and the variable TRITON_CACHE_DIR name the places)\n")
