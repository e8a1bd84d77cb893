"""Exercises: for each, the properties that tell a right answer from a wrong one, and three hints.

A lesson's exercises live in ``lesson_NN.py`` as ``EXERCISES``, by id. A property is a named function of the answer that
returns None if it holds, or what is wrong in words: "yours 3, spec 4".
"""

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass

from moe_lab.exercises.untouched import ArgumentChanged, untouched

Property = Callable[[object], str | None]


@dataclass(frozen=True)
class Outcome:
    """Whether an answer is right, and what to tell its author."""

    solved: bool
    says: str


@dataclass(frozen=True)
class Exercise:
    """A task with properties that are tried in order, the simplest first.

    Example:
        >>> task = Exercise("double it", {"doubles 3": lambda f: None if f(3) == 6 else f"yours {f(3)}, spec 6"}, ())
        >>> task.examine(lambda n: n * n)
        Outcome(solved=False, says='0 of 1 properties hold. First failing: doubles 3: yours 9, spec 6.')
    """

    title: str
    properties: dict[str, Property]
    hints: tuple[str, ...]

    def examine(self, answer: object) -> Outcome:
        """Try every property; an exception inside the answer, or an edited argument, is one that does not hold."""
        if answer is None:
            return self._not_attempted()
        answer = watched(answer)
        failing = {}
        for name, holds in self.properties.items():
            try:
                fault = holds(answer)
            except NotImplementedError:
                return self._not_attempted()
            except ArgumentChanged as error:
                fault = str(error)
            except Exception as error:  # whatever a learner's code can raise is theirs to read, not a crash
                fault = f"it raised {type(error).__name__}: {error}"
            if fault is not None:
                failing[name] = fault
        total = len(self.properties)
        if not failing:
            return Outcome(True, f"solved: all {total} properties hold.")
        name, fault = next(iter(failing.items()))
        says = f"{total - len(failing)} of {total} properties hold. First failing: {name}: {fault}."
        return Outcome(False, says)

    def _not_attempted(self) -> Outcome:
        return Outcome(False, "not attempted yet.")


def of_lesson(lesson: str) -> dict[str, Exercise]:
    """The exercises of a lesson, by id.

    Example:
        >>> list(of_lesson("00"))
        ['00.1', '00.2']

    Raises ValueError for a lesson that does not exist.
    """
    name = f"moe_lab.exercises.lesson_{lesson}"
    if not isinstance(lesson, str) or not re.fullmatch(r"\d\d", lesson) or importlib.util.find_spec(name) is None:
        raise ValueError(f'lesson must be the two digits of a lesson that exists, such as "00"; got {lesson!r}')
    return importlib.import_module(name).EXERCISES


def watched(answer: object) -> object:
    """Every function of an answer with an eye on its arguments; Triton's kernels have that in `puzzles`."""
    if isinstance(answer, tuple | list):
        return type(answer)(watched(part) for part in answer)
    return untouched(answer) if callable(answer) and not hasattr(answer, "arg_names") else answer
