"""What every lesson starts with, and the checks of its exercises; progress is kept in one small file."""

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import platformdirs
import torch

from moe_lab.checks import check_whole
from moe_lab.exercises import Exercise, of_lesson
from moe_lab.exercises.board import Progress
from moe_lab.exercises.solutions import worked_solution
from moe_lab.figures import restart_numbering
from moe_lab.paths import check_file
from moe_lab.plots.style import use_style
from moe_lab.writing import write_whole

EXERCISE_ID = re.compile(r"(\d\d)\.(\d+)")


def start(lesson: str) -> None:
    """Begin a lesson: fixed seeds, the figures' style, numbering from 1, and a line about progress.

    Example:
        >>> start("00")  # doctest: +ELLIPSIS
        Lesson 00 is set up: seed 0, exercises 00.1...

    Raises ValueError for a lesson that does not exist.
    """
    exercises = of_lesson(lesson)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (seaborn and others draw from it)
    torch.manual_seed(0)
    use_style()
    restart_numbering()
    print(f"Lesson {lesson} is set up: seed 0, exercises {', '.join(exercises)}.")


def check(exercise_id: str, answer: object) -> None:
    """Test an answer against the properties that a right one has; prints the outcome and never raises for a wrong one.

    Example:
        >>> check("00.1", None)
        00.1 not attempted yet. (ml.hint("00.1") helps)

    Raises ValueError for an exercise that does not exist.
    """
    exercise = find_exercise(exercise_id)
    outcome = exercise.examine(answer)
    record(exercise_id, outcome.solved)
    print(f"{exercise_id} {outcome.says}" + ("" if outcome.solved else f' (ml.hint("{exercise_id}") helps)'))


def hint(exercise_id: str, level: int = 1) -> None:
    """Print hint 1, 2 or 3 of an exercise, each saying more than the one before.

    Raises ValueError for an exercise or a level that does not exist.
    """
    hints = find_exercise(exercise_id).hints
    check_whole("level", level, 1, len(hints))
    more = f'  (more: ml.hint("{exercise_id}", {level + 1}))' if level < len(hints) else ""
    print(f"Hint {level} of {len(hints)}: {hints[level - 1]}{more}")


def solution(exercise_id: str) -> None:
    """Print the worked solution of an exercise: the reasoning, then the code. Hints first is the better way.

    Raises ValueError for an exercise that does not exist.
    """
    exercise = find_exercise(exercise_id)
    worked = worked_solution(exercise_id) or f"{exercise.title}\n\n{exercise.hints[-1]}"
    print(f"{worked}\n\n(One way of several: ml.check knows properties, not code.)")


def progress() -> Progress:
    """Which exercises were tried, and which are solved, {"01.2": True, ...}; a notebook shows it as a board.

    A damaged file counts as no progress: it never stands between a reader and a lesson.
    """
    try:
        saved = json.loads(check_file(progress_file()).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Progress()
    return Progress({key: bool(value) for key, value in saved.items()} if isinstance(saved, dict) else {})


def record(exercise_id: str, solved: bool) -> None:
    """Keep a result; an exercise once solved stays solved."""
    results = progress()
    results[exercise_id] = solved or results.get(exercise_id, False)
    try:
        write_whole(progress_file(), json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    except OSError as error:
        print(f"(progress was not saved: {error}; the variable MOE_LAB_PROGRESS may name another file)")


def progress_file() -> Path:
    """Where progress is kept: ``MOE_LAB_PROGRESS``, or the user's data folder.

    Raises FileNotFoundError for a user without a home.
    """
    if named := os.environ.get("MOE_LAB_PROGRESS"):
        return Path(named)
    try:
        folder = platformdirs.user_data_path("moe-lab")
    except RuntimeError as error:  # what platformdirs says without a home, in its newer versions
        raise FileNotFoundError("this user has no home folder") from error
    if not folder.is_absolute():  # in its older ones, a folder "~" would appear wherever this runs
        raise FileNotFoundError("this user has no home folder")
    return folder / "progress.json"


def find_exercise(exercise_id: str) -> Exercise:
    """The exercise with this id, such as "01.2"."""
    match = EXERCISE_ID.fullmatch(exercise_id) if isinstance(exercise_id, str) else None
    exercises = of_lesson(match[1]) if match else {}
    if exercise_id not in exercises:
        known = f"; lesson {match[1]} has {', '.join(exercises)}" if match else ""
        raise ValueError(f'exercise must be an id such as "01.2", got {exercise_id!r}{known}')
    return exercises[exercise_id]
