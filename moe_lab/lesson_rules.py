"""The rules that give all lessons one voice: card, objectives and their checks, length, cells, measured run time."""

import re
import statistics

import nbformat

FEWEST_WORDS, MOST_WORDS = 1200, 2500
MAX_MEDIAN_LINES = 8
MAX_RUN_S = 60
MIN_OBJECTIVES = 3
VERBS = ("compute", "predict", "diagnose", "implement", "measure", "read", "find", "design", "prove", "explain")
"""What a reader can be seen to do; nobody sees whether a reader knows, learns or understands."""
CARD = re.compile(
    r"^\| Time \| Difficulty \| Runs on \| Needs \|\n\|[-|]+\|\n"
    r"\| \d+ min \| [●○]{3} \| (?P<runs_on>[^|\n]*\w[^|\n]*) \| [^|\n]*\w[^|\n]* \|$",
    flags=re.MULTILINE,
)
SURPRISE = re.compile(r"# .*\n\n\*[^*\s][^*]*\*(\n\n|\Z)")


def voice_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What keeps a lesson from having the voice of the others, in words; an empty list if nothing does."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    exercises = re.findall(r"ml\.check\(\s*\"(\d\d\.\d+)\"", "\n".join(cell.source for cell in code))
    found = []
    if not (FEWEST_WORDS <= count_words(prose) <= MOST_WORDS):
        found.append(f"{count_words(prose):,} words, allowed {FEWEST_WORDS:,} to {MOST_WORDS:,}")
    lines = statistics.median([count_lines(cell.source) for cell in code] or [0])
    if lines > MAX_MEDIAN_LINES:
        found.append(f"half of the code cells have {lines:g} lines or more, allowed {MAX_MEDIAN_LINES}")
    if not notebook.cells or not SURPRISE.match(notebook.cells[0].source):
        found.append("no surprise: one paragraph in italics under the title")
    if "](../GLOSSARY.md)" not in prose:
        found.append("no link to the glossary")
    if not predicts_first(notebook):
        found.append("'Predict' must come before the first result after the set-up")
    return found + objective_problems(read_objectives(prose), exercises) + time_problems(prose, notebook.metadata)


def count_words(prose: str) -> int:
    """Count the words of a text in Markdown: pieces between spaces that have a letter or a digit.

    Fenced code, spans of code and the addresses of links are none, and a table's rules have neither.

    Example:
        >>> count_words("| --- | **Two** [words](../GLOSSARY.md), `and = code` |")
        2
    """
    text = re.sub(r"^```.*?^```|\]\([^)]*\)|`[^`]*`", " ", prose, flags=re.MULTILINE | re.DOTALL)
    return sum(bool(re.search(r"\w", piece)) for piece in text.split())


def count_lines(source: str) -> int:
    """Count the lines of a code cell that are not blank.

    Example:
        >>> count_lines("one = 1\\n\\n\\ntwo = 2")
        2
    """
    return sum(bool(line.strip()) for line in source.splitlines())


def read_objectives(prose: str) -> list[str]:
    """The rows of a table, or the points of a list, that follow "You will be able to".

    Example:
        >>> read_objectives("You will be able to\\n\\n- **find** it (01.1);\\n- **prove** it\\n  all (01.2).\\n\\nNow")
        ['**find** it (01.1);', '**prove** it all (01.2).']
        >>> read_objectives("| You will be able to | Proved by |\\n|---|---|\\n| **find** it | exercise 01.1 |\\n\\n")
        ['**find** it | exercise 01.1 |']
    """
    found: list[str] = []
    for line in map(str.strip, prose.partition("You will be able to")[2].splitlines()[1:]):
        if line.startswith(("- ", "| ")):
            found.append(line.lstrip("-| "))
        elif found and not line:
            break
        elif found:
            found[-1] += f" {line}"
    return found


def objective_problems(objectives: list[str], exercises: list[str]) -> list[str]:
    """Objectives that begin with no verb of the list, or that no check proves, and exercises that none of them names.

    Example:
        >>> objectives = ["**find** it (01.1)", "**know** it (*Predict*)", "**prove** it"]
        >>> for one in objective_problems(objectives, exercises=["01.1", "01.2"]):
        ...     print(one)
        objective '**know** it (*Predict*)': begin with a bold verb of VERBS
        objective '**prove** it': name an exercise of this lesson, or *Predict*
        no objective names exercise 01.2
    """
    found = [] if len(objectives) >= MIN_OBJECTIVES else [f"{len(objectives)} objectives, at least {MIN_OBJECTIVES}"]
    for one in objectives:
        verb = re.match(r"\*\*(\w+)\*\*", one)
        if not verb or verb[1] not in VERBS:
            found.append(f"objective {one!r}: begin with a bold verb of VERBS")
        named = named_exercises(one)
        if not (named or "*Predict*" in one) or not named <= set(exercises):
            found.append(f"objective {one!r}: name an exercise of this lesson, or *Predict*")
    named = set().union(*map(named_exercises, objectives))
    return found + [f"no objective names exercise {one}" for one in exercises if one not in named]


def named_exercises(text: str) -> set[str]:
    """The numbers of exercises in a text, ranges spelt out.

    Example:
        >>> sorted(named_exercises("exercises 13.1 to 13.3, and 13.7"))
        ['13.1', '13.2', '13.3', '13.7']
    """
    found = set()
    for lesson, first, last in re.findall(r"\b(\d\d)\.(\d+)(?: to \d\d\.(\d+))?", text):
        found |= {f"{lesson}.{number}" for number in range(int(first), int(last or first) + 1)}
    return found


def predicts_first(notebook: nbformat.NotebookNode) -> bool:
    """Whether a heading "Predict" comes before any code cell but the first that prints something to compare."""
    code = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^#+ Predict", cell.source, flags=re.MULTILINE):
            return True
        code += cell.cell_type == "code"
        compared = "nbval-ignore-output" not in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and code > 1 and cell.outputs and compared:
            return False
    return False


def stated_seconds(runs_on: str) -> int | None:
    """How long a run takes at most, by the words of a card; None where they do not say.

    Example:
        >>> [stated_seconds(text) for text in ("CPU, under half a minute", "under a minute", "about 15 s", "any CPU")]
        [30, 60, 15, None]
    """
    number = re.search(r"\b(\d+) s\b", runs_on)
    stated = {"half a minute": 30, "a minute": 60} | ({number[0]: int(number[1])} if number else {})
    return next((seconds for words, seconds in stated.items() if words in runs_on), None)


def time_problems(prose: str, metadata: dict) -> list[str]:
    """A card that is missing or says no time, and a run that, where it was measured, took longer than the card says."""
    card = CARD.search(prose)
    if not card:
        return ["no card: | Time | Difficulty | Runs on | Needs |, with minutes, three of ●○, and words"]
    stated = stated_seconds(card["runs_on"])
    if stated is None or stated > MAX_RUN_S:
        return [f"the card says {card['runs_on']!r}: say how long a run takes, at most a minute"]
    took = metadata.get("moe_lab", {}).get("run_seconds", 0)
    return [f"it took {took} s to run, and its card says {stated} s at most"] if took > stated else []
