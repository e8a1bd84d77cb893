"""Lesson 15: what the answers are judged by is right itself."""

import pytest

from moe_lab.capstone import BRIEFS
from moe_lab.exercises.lesson_15 import BROKEN, CASES, EXERCISES, REVIEWED, graded, mend, spec_bytes

from ..mutants.answers_15 import MENDED, RIGHT, WRONG


def test_what_the_colleague_broke_is_what_the_grader_says():
    assert tuple(graded(REVIEWED, "nodes").broken) == BROKEN


def test_each_change_is_needed():
    assert graded(mend(MENDED), "nodes").passed
    for name in MENDED:
        assert not graded(mend({key: value for key, value in MENDED.items() if key != name}), "nodes").passed


def test_the_cases_bind_clearly():
    """The worst budget is worse than the next by a tenth, so that no rounding decides."""
    for letter, make in CASES.items():
        report = graded(*make())
        first, second = sorted((row.used for row in report.rows if not row.at_least), reverse=True)[:2]
        assert report.binds == RIGHT["15.1"][letter] and first > 1.1 * second and first > 1.1, letter


@pytest.mark.parametrize("exercise_id", ["15.3", "15.4"])
def test_each_budget_is_broken_alone_or_with_others_by_some_wrong_design(exercise_id):
    """Not merely by designs that cannot be graded at all."""
    brief, broken = {"15.3": "gpu", "15.4": "nodes"}[exercise_id], set()
    for make in WRONG[exercise_id].values():
        try:
            broken |= set(graded(make(), brief).broken)
        except (ValueError, TypeError):
            continue
    assert broken == set(BRIEFS[brief].budgets)


def test_the_example_in_the_text():
    assert spec_bytes(100, 80, 4, 2, 2, 3, 5, 2) == 190 == RIGHT["15.2"](100, 80, 4, 2, 2, 3, 5, 2)


@pytest.mark.parametrize(
    ("exercise_id", "answer", "says"),
    [
        ("15.1", {"a": "memory_bytes"}, "give a dict with the keys a, b, c, d, e, f"),
        ("15.3", lambda: {}, "give a Design, got dict"),
        ("15.4", lambda: None, "give a Design, got NoneType"),
        ("15.5", (["causal"], None), "a dict of changes second"),
        ("15.5", (["speed"], MENDED), "'speed' is kept, or no budget"),
    ],
)
def test_what_is_no_answer_is_told_so(exercise_id, answer, says):
    assert says in EXERCISES[exercise_id].examine(answer).says
