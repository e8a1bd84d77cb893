"""Lessons: set-up, checks that reject wrong answers, hints, and progress that nothing can break."""

import re

import pytest
import torch

import moe_lab as ml
from moe_lab import lesson
from moe_lab.exercises import Exercise, board, solutions


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "deep" / "progress.json"))


def right(routing):
    return int(routing.load.argmax())


def always_three(routing):
    return 3


def test_a_right_answer_is_solved(capsys):
    ml.check("00.1", right)
    assert capsys.readouterr().out == "00.1 solved: all 4 properties hold.\n"
    assert ml.progress() == {"00.1": True}


def test_a_wrong_answer_is_not(capsys):
    ml.check("00.1", always_three)
    said = capsys.readouterr().out
    assert "properties hold. First failing:" in said
    assert "spec" in said
    assert ml.progress() == {"00.1": False}


def test_no_answer_is_not_attempted(capsys):
    def stub(routing):
        raise NotImplementedError

    for answer in (None, stub):
        ml.check("00.1", answer)
        assert capsys.readouterr().out == '00.1 not attempted yet. (ml.hint("00.1") helps)\n'


def test_an_answer_that_raises_is_told_and_not_raised(capsys):
    ml.check("00.1", lambda routing: routing.loda)
    assert "it raised AttributeError" in capsys.readouterr().out
    ml.check("00.1", 7)
    assert "it raised TypeError: 'int' object is not callable" in capsys.readouterr().out


def test_once_solved_stays_solved(capsys):
    ml.check("00.1", right)
    ml.check("00.1", always_three)
    assert ml.progress() == {"00.1": True}


def test_hints_say_more_and_more(capsys):
    ml.hint("00.1")
    assert capsys.readouterr().out.endswith('(more: ml.hint("00.1", 2))\n')
    ml.hint("00.1", 3)
    assert "return int(routing.load.argmax())" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"level must be in 1..3, got 4"):
        ml.hint("00.1", 4)


def test_damaged_progress_is_no_progress():
    path = lesson.progress_file()
    path.parent.mkdir(parents=True)
    for damage in ("{", "[]", "\0"):
        path.write_text(damage)
        assert ml.progress() == {}
    lesson.record("00.1", True)
    assert ml.progress() == {"00.1": True}


def test_progress_that_cannot_be_written_does_not_stop_a_lesson(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "file" / "progress.json"))
    ml.check("00.1", right)
    assert "(progress was not saved:" in capsys.readouterr().out


def test_start_makes_chance_repeatable(capsys):
    ml.start("00")
    first = torch.rand(3)
    ml.start("00")
    assert torch.equal(first, torch.rand(3))
    assert capsys.readouterr().out.startswith("Lesson 00 is set up: seed 0, exercises 00.1")


@pytest.mark.parametrize("bad", ["99", "0", "", "../x", "zz", 0])
def test_a_lesson_that_does_not_exist(bad, unchecked_shapes):
    with pytest.raises(ValueError, match="lesson must be the two digits"):
        ml.start(bad)


@pytest.mark.parametrize("bad", ["00.9", "7", "00", 0.1])
def test_an_exercise_that_does_not_exist(bad, unchecked_shapes):
    with pytest.raises(ValueError, match=f"exercise must be an id such as .*got {bad!r}"):
        ml.check(bad, None)


def test_properties_are_tried_in_order():
    task = Exercise("t", {"first": lambda a: None, "second": lambda a: "no", "third": lambda a: "never"}, ("h",))
    assert task.examine(1).says == "1 of 3 properties hold. First failing: second: no."


@pytest.mark.parametrize("exercise_id", ["00.2", "01.4", "11.5"])
def test_a_solution_is_the_notebooks_reasoning_and_code(exercise_id, capsys):
    ml.solution(exercise_id)
    said = capsys.readouterr().out
    assert exercise_id in said.splitlines()[0]
    assert f'ml.check("{exercise_id}", ' in said and "NotImplementedError" not in said
    assert "(One way of several:" in said.splitlines()[-1]


def test_without_the_notebooks_a_solution_is_the_last_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solutions, "SOLUTIONS", tmp_path)
    ml.solution("00.1")
    assert "return int(routing.load.argmax())" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exercise must be an id"):
        ml.solution("00.9")


def test_progress_is_a_board():
    lesson.record("00.1", True)
    lesson.record("00.2", False)
    board = ml.progress()
    assert board == {"00.1": True, "00.2": False}
    first, start_here, *others = str(board).splitlines()
    assert re.fullmatch(r"Your progress: 1 of \d\d solved, 1 tried\.", first)
    assert start_here == "00  Start here             ●◐ 1 of 2 solved, 1 tried"
    assert all(re.search(r"[○]+ 0 of \d+ solved$", line) for line in others)
    page = board._repr_html_()
    assert "<caption>Your progress: 1 of" in page and page.count('scope="row"') == len(others) + 1


def test_a_board_without_notebooks_has_no_titles(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "NOTEBOOKS", tmp_path)
    assert str(ml.progress()).splitlines()[1].startswith("00  Lesson  ")
