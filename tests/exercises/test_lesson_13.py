"""Lesson 13: pairs of a property and a cure are judged by both halves, and the last hint is one."""

import textwrap

import pytest

import moe_lab as ml
from moe_lab.clinic import PATIENTS
from moe_lab.exercises.lesson_13 import EXERCISES

from ..mutants.answers_13 import ALSO_RIGHT, FOOLED_BY, HINT_NAMES, RIGHT


def stub(*_):
    raise NotImplementedError


def test_every_patient_has_an_exercise():
    assert list(EXERCISES) == list(PATIENTS) == [f"13.{number}" for number in range(1, 13)]


@pytest.mark.parametrize("key", EXERCISES)
def test_the_last_hint_is_a_solution(key):
    names = dict(HINT_NAMES)
    exec(textwrap.dedent(EXERCISES[key].hints[-1]), names)
    outcome = EXERCISES[key].examine((names["holds"], names["fixed"]))
    assert outcome.solved, outcome.says


@pytest.mark.parametrize("key", EXERCISES)
def test_what_was_left_as_it_was_is_not_attempted_or_not_written(key):
    holds, fixed = RIGHT[key]
    assert EXERCISES[key].examine((stub, stub)).says == "not attempted yet."
    assert EXERCISES[key].examine((stub, fixed)).says == "not attempted yet."
    assert "First failing: cure" in (says := EXERCISES[key].examine((holds, stub)).says) and "not written yet" in says


@pytest.mark.parametrize("key", EXERCISES)
def test_a_fooled_property_is_told_by_whom(key):
    for name, fooled in FOOLED_BY[key].items():
        says = EXERCISES[key].examine((fooled, RIGHT[key][1])).says
        assert "First failing: property" in says, (name, says)


@pytest.mark.parametrize("key", EXERCISES)
def test_either_half_of_a_right_pair_goes_with_the_other(key):
    """What one pair's property lets pass is no accident of its own cure."""
    assert EXERCISES[key].examine([RIGHT[key][0], ALSO_RIGHT[key][1]]).solved
    assert EXERCISES[key].examine([ALSO_RIGHT[key][0], RIGHT[key][1]]).solved


def test_a_property_sees_neither_name_nor_code():
    seen = []
    EXERCISES["13.1"].examine((lambda function: seen.append(function.__name__), RIGHT["13.1"][1]))
    assert set(seen) == {"<lambda>"}


def test_one_function_alone_is_told_so():
    assert "give two functions, (holds, fixed)" in EXERCISES["13.7"].examine(len).says


def test_two_digits_of_an_exercise(capsys):
    ml.check("13.12", RIGHT["13.12"])
    assert capsys.readouterr().out == "13.12 solved: all 16 properties hold.\n"
    with pytest.raises(ValueError, match="exercise must be an id such as"):
        ml.check("13.13", None)
