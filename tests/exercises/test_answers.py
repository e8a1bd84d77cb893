"""What holds for the exercises of all lessons: right answers pass, and every wrong one is refused with a reason.

The answers are in ``tests/mutants/answers_NN.py``: RIGHT, in ALSO_RIGHT the same written differently, WRONG with a
name for each slip, ARGUMENTS of those that are functions, and HINT_NAMES, the modules that the last hint may use.
"""

from importlib import import_module
from pathlib import Path

import pytest
import triton

from moe_lab.exercises import watched

NUMBERS = sorted(path.stem[-2:] for path in (Path(__file__).parents[1] / "mutants").glob("answers_*.py"))
LESSONS = [import_module(f"..mutants.answers_{number}", __package__) for number in NUMBERS]
EXERCISES = {
    key: exercise
    for number in NUMBERS
    for key, exercise in import_module(f"moe_lab.exercises.lesson_{number}").EXERCISES.items()
}
WRONG = {key: answers for lesson in LESSONS for key, answers in lesson.WRONG.items()}
INTERPRETED = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="the interpreter is off: there is a GPU, or TRITON_INTERPRET=0"
)
RIGHT = [
    pytest.param(key, answer, id=f"{key} {way}", marks=[INTERPRETED] if hasattr(answer, "arg_names") else [])
    for lesson in LESSONS
    for way in ("RIGHT", "ALSO_RIGHT")
    for key, answer in getattr(lesson, way, {}).items()
]
FUNCTIONS = [(key, lesson) for lesson in LESSONS for key in lesson.ARGUMENTS]
PROPERTIES = dict.fromkeys(EXERCISES, 5) | {"00.1": 4, "06.4": 4}
"""How many properties an exercise has at least; 00.1 is the first of all, 06.4 a prediction."""


@pytest.mark.parametrize(("exercise_id", "answer"), RIGHT)
def test_a_right_answer_passes(exercise_id, answer):
    exercise = EXERCISES[exercise_id]
    outcome = exercise.examine(answer)
    assert outcome.solved, outcome.says
    assert len(exercise.properties) >= PROPERTIES[exercise_id] and len(exercise.hints) == 3


def first_fault(exercise_id, answer):
    """What the first property that an answer fails says of it, or raises; None if it has them all."""
    for holds in EXERCISES[exercise_id].properties.values():
        try:
            fault = holds(watched(answer))
        except Exception as error:
            fault = f"it raised {type(error).__name__}: {error}"
        if fault is not None:
            return fault
    return None


@pytest.mark.parametrize(("exercise_id", "slip"), [(key, slip) for key in sorted(WRONG) for slip in WRONG[key]])
def test_a_wrong_answer_is_refused_with_a_reason(exercise_id, slip):
    fault = first_fault(exercise_id, WRONG[exercise_id][slip])
    assert fault
    assert len(fault) < 350, fault


@pytest.mark.parametrize("exercise_id", EXERCISES)
def test_the_message_names_the_first_failing_property(exercise_id):
    wrong = next(iter(WRONG[exercise_id].values()))
    outcome = EXERCISES[exercise_id].examine(wrong)
    assert not outcome.solved
    assert "properties hold. First failing: " in outcome.says
    assert len(outcome.says) < 400, outcome.says


@pytest.mark.parametrize("exercise_id", EXERCISES)
def test_every_property_refuses_something(exercise_id):
    """A property that nothing fails is decoration."""
    for name, holds in EXERCISES[exercise_id].properties.items():
        assert any(refuses(holds, wrong) for wrong in WRONG[exercise_id].values()), f"{exercise_id}: {name}"


def refuses(holds, answer):
    try:
        return holds(watched(answer)) is not None
    except Exception:
        return True


def test_every_exercise_has_answers():
    assert set(WRONG) == set(EXERCISES) == {key for lesson in LESSONS for key in lesson.RIGHT}


@pytest.mark.parametrize("exercise_id", [key for key, _ in FUNCTIONS])
def test_an_untouched_stub_is_not_attempted(exercise_id):
    def stub(*_):
        raise NotImplementedError

    assert EXERCISES[exercise_id].examine(stub).says == "not attempted yet."


@pytest.mark.parametrize(("exercise_id", "lesson"), FUNCTIONS, ids=[key for key, _ in FUNCTIONS])
def test_the_last_hint_is_a_solution(exercise_id, lesson):
    namespace = dict(lesson.HINT_NAMES)
    exec(f"def answer({lesson.ARGUMENTS[exercise_id]}): {EXERCISES[exercise_id].hints[-1]}", namespace)
    outcome = EXERCISES[exercise_id].examine(namespace["answer"])
    assert outcome.solved, outcome.says
