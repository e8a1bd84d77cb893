"""No check is satisfied by a constant, an empty, an identity or a random answer, nor by one that edits its inputs."""

import dataclasses
import functools
import random
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from .test_answers import EXERCISES, LESSONS, refuses

RIGHT = {key: answer for lesson in LESSONS for key, answer in lesson.RIGHT.items()}
CONSTANTS = [
    0, 1, -1, 0.5, True, False, "", "yes", float("nan"), float("inf"), (), [], {}, set(), (0, 0), [1], {"a": 1},
    torch.zeros(0), torch.zeros(4), torch.ones(4, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool),
]  # fmt: skip
IDENTITIES = {
    "the first argument": lambda *given: given[0] if given else 0,
    "the last argument": lambda *given: given[-1] if given else 0,
    "all arguments": lambda *given: given,
    "a copy of the first": lambda *given: given[0].clone() if isinstance(given[0], torch.Tensor) else given[0],
}
TRIES = 12


def parts_of(answer):
    return answer if isinstance(answer, tuple | list) else (answer,)


def is_kernel(answer):
    return any(hasattr(part, "arg_names") for part in parts_of(answer))


def is_function(answer):
    return all(callable(part) for part in parts_of(answer)) and not is_kernel(answer)


def with_parts(answer, change):
    """An answer of one function or of several, each changed."""
    return type(answer)(map(change, answer)) if isinstance(answer, tuple | list) else change(answer)


FUNCTIONS = [key for key in RIGHT if is_function(RIGHT[key])]
PREDICTIONS = [key for key in RIGHT if key not in FUNCTIONS and not is_kernel(RIGHT[key])]


def fooled_by(exercise_id, answers):
    """Which of the answers no property refuses; the others are not asked once one has."""
    properties = EXERCISES[exercise_id].properties.values()
    return [name for name, answer in answers.items() if not any(refuses(holds, answer) for holds in properties)]


@pytest.mark.parametrize("exercise_id", RIGHT)
def test_constants_are_refused(exercise_id):
    answers = {repr(value): value for value in CONSTANTS if value != ()}
    if is_function(RIGHT[exercise_id]):
        for value in CONSTANTS:
            constant = lambda *_, value=value: value  # noqa: E731
            answers[f"always {value!r}"] = with_parts(RIGHT[exercise_id], lambda _, constant=constant: constant)
    assert fooled_by(exercise_id, answers) == []


@pytest.mark.parametrize("exercise_id", FUNCTIONS)
def test_identities_are_refused(exercise_id):
    answers = {
        name: with_parts(RIGHT[exercise_id], lambda _, answer=answer: answer) for name, answer in IDENTITIES.items()
    }
    assert fooled_by(exercise_id, answers) == []


def scrambled(value, draw):
    """A random value of the same kind and shape."""
    if isinstance(value, torch.Tensor):
        numbers = torch.from_numpy(np.random.default_rng(draw.getrandbits(32)).normal(size=value.shape))
        return (3 * numbers).to(value.dtype)
    if isinstance(value, bool):
        return draw.random() < 0.5
    if isinstance(value, int):
        return draw.randint(-3, 2 * abs(value) + 3)
    if isinstance(value, float):
        return draw.uniform(-1, 2) * (abs(value) + 1)
    if isinstance(value, str):
        return draw.choice(["", value[::-1], "no", "first"])
    if isinstance(value, Mapping):
        return {key: scrambled(part, draw) for key, part in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(scrambled(part, draw) for part in value)
    return draw.choice([None, 0, "x"])


@pytest.mark.parametrize("exercise_id", FUNCTIONS)
def test_random_answers_of_the_right_kind_are_refused(exercise_id):
    def at_random(function, seed):
        draw = random.Random(seed)
        return lambda *given: scrambled(function(*given), draw)

    answers = {
        f"seed {seed}": with_parts(RIGHT[exercise_id], functools.partial(at_random, seed=seed)) for seed in range(TRIES)
    }
    assert fooled_by(exercise_id, answers) == []


@pytest.mark.parametrize("exercise_id", PREDICTIONS)
def test_random_predictions_are_refused(exercise_id):
    right = RIGHT[exercise_id]
    answers = {f"seed {seed}": scrambled(right, random.Random(seed)) for seed in range(TRIES)}
    assert fooled_by(exercise_id, {name: answer for name, answer in answers.items() if answer != right}) == []


def edit(value):
    """Edit an argument in place; whether there was something to edit."""
    if isinstance(value, torch.Tensor) and value.numel() and not value.requires_grad:
        value.reshape(-1)[0] = ~value.reshape(-1)[0] if value.dtype == torch.bool else value.reshape(-1)[0] + 1
        return value.is_contiguous()
    if isinstance(value, list) and value:
        value.append(value[0])
        return True
    if isinstance(value, dict) and value:
        value["edited"] = 0
        return True
    if dataclasses.is_dataclass(value):
        return any(edit(getattr(value, field.name)) for field in dataclasses.fields(value))
    return False


@pytest.mark.parametrize("exercise_id", FUNCTIONS)
def test_an_answer_that_edits_its_inputs_is_refused(exercise_id):
    edits = 0

    def spoils(function):
        @functools.wraps(function)
        def answer(*given):
            nonlocal edits
            result = function(*given)
            edits += sum(edit(value) for value in given)
            return result

        return answer

    outcome = EXERCISES[exercise_id].examine(with_parts(RIGHT[exercise_id], spoils))
    assert outcome.solved is (edits == 0), outcome.says
    assert outcome.solved or "it changed its argument" in outcome.says
    assert EXERCISES[exercise_id].examine(RIGHT[exercise_id]).solved, "what was edited is put back for the next answer"


def test_there_are_enough_exercises_and_mutants_for_each():
    assert len(RIGHT) >= 40
    wrong = {key: answers for lesson in LESSONS for key, answers in lesson.WRONG.items()}
    assert min(len(answers) for answers in wrong.values()) >= 5
    again = {key for lesson in LESSONS for key in getattr(lesson, "ALSO_RIGHT", {})}
    implemented = {key for key in RIGHT if is_function(RIGHT[key]) or is_kernel(RIGHT[key])}
    assert implemented <= again, "a second right answer, written differently, for each implementation"
