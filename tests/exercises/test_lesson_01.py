"""Lesson 01's checks: a wrong answer is told by its values, and the message names them."""

import pytest

from moe_lab.exercises.lesson_01 import EXERCISES

from ..mutants.answers_01 import WRONG, not_renormalised


@pytest.mark.parametrize(("exercise", "slip"), [(key, slip) for key, answers in WRONG.items() for slip in answers])
def test_a_wrong_answer_fails_by_its_values_and_not_by_an_exception(exercise, slip):
    assert "it raised" not in EXERCISES[exercise].examine(WRONG[exercise][slip]).says


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize("answer", [lambda *_: [][7], lambda *_: None, "not a function"])
def test_an_answer_that_raises_is_reported(exercise, answer):
    outcome = EXERCISES[exercise].examine(answer)
    assert not outcome.solved
    assert "0 of " in outcome.says


def test_the_message_names_the_token_and_both_values():
    says = EXERCISES["01.1"].examine(not_renormalised).says
    assert "token 0: weights yours [0.5, 0.25], spec [0.667, 0.333]" in says
