"""The worked solutions of the exercises, read from the notebooks that hold them and that are run as tests."""

import json

from moe_lab.folders import NOTEBOOKS

SOLUTIONS = NOTEBOOKS / "solutions"


def worked_solution(exercise_id: str) -> str | None:
    """The reasoning and the code of a solution, as text; None where the notebooks are not at hand.

    Rule: in the lesson's notebook of solutions, the cell that checks this exercise, the text before it that names it,
    and what stands between the two.

    Example:
        >>> print(worked_solution("00.1").splitlines()[-1])
        ml.check("00.1", busiest_expert)
    """
    for path in SOLUTIONS.glob(f"{exercise_id[:2]}_*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        checks = [place for place, text in enumerate(texts) if f'ml.check("{exercise_id}"' in text]
        if checks:
            said = [i for i in range(checks[0]) if cells[i]["cell_type"] == "markdown" and exercise_id in texts[i]]
            begin = max(said, default=checks[0])
            texts[begin] = _from_where_it_is_named(texts[begin], exercise_id)
            return "\n\n".join(texts[begin : checks[0] + 1])
    return None


def _from_where_it_is_named(text: str, exercise_id: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[next(i for i, line in enumerate(lines) if exercise_id in line) :])
