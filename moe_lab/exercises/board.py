"""A reader's progress as a board: a line a lesson, a mark an exercise."""

import html
import json
import pkgutil

import moe_lab.exercises
from moe_lab.folders import NOTEBOOKS

MARKS = {"solved": "●", "tried": "◐", "open": "○"}


class Progress(dict[str, bool]):
    """Which exercises were tried, and which are solved: ``{"01.2": True}``; shown as a board of all lessons.

    Example:
        >>> board = Progress({"00.1": True, "00.2": False})
        >>> board == {"00.1": True, "00.2": False}
        True
        >>> print(str(board).splitlines()[1])
        00  Start here             ●◐ 1 of 2 solved, 1 tried
    """

    def __repr__(self) -> str:
        lines = [f"{n}  {title:<22} {self._marks(ids)} {self._says(ids)}" for n, (title, ids) in lessons().items()]
        return "\n".join([self._total(), *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th scope="row">{number} {html.escape(title)}</th>'
            f'<td aria-hidden="true">{self._marks(ids)}</td><td>{self._says(ids)}</td></tr>'
            for number, (title, ids) in lessons().items()
        )
        head = '<tr><th scope="col">lesson</th><th aria-hidden="true"></th><th scope="col">exercises</th></tr>'
        return f"<table><caption>{self._total()}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"

    def state(self, exercise_id: str) -> str:
        """The state of an exercise, one of `MARKS`: "solved", "tried" or "open"."""
        return {True: "solved", False: "tried", None: "open"}[self.get(exercise_id)]

    def _marks(self, ids: list[str]) -> str:
        return "".join(MARKS[self.state(exercise_id)] for exercise_id in ids)

    def _says(self, ids: list[str]) -> str:
        states = [self.state(exercise_id) for exercise_id in ids]
        tried = f", {states.count('tried')} tried" if "tried" in states else ""
        return f"{states.count('solved')} of {len(ids)} solved{tried}"

    def _total(self) -> str:
        every = [exercise_id for _, ids in lessons().values() for exercise_id in ids]
        return f"Your progress: {self._says(every)}."


def lessons() -> dict[str, tuple[str, list[str]]]:
    """Number of a lesson -> its title, and the ids of its exercises."""
    found = {}
    for module in sorted(pkgutil.iter_modules(moe_lab.exercises.__path__), key=lambda module: module.name):
        if module.name.startswith("lesson_"):
            number = module.name.removeprefix("lesson_")
            exercises = moe_lab.exercises.of_lesson(number)
            found[number] = _title(number), list(exercises)
    return found


def _title(number: str) -> str:
    """What stands above the lesson between its number and a colon; "Lesson" where the notebooks are not at hand."""
    for path in NOTEBOOKS.glob(f"{number}_*.ipynb"):
        heading = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
        return heading.partition("·")[2].partition(":")[0].strip()
    return "Lesson"
