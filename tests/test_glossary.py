"""The glossary and the lessons agree: a word is introduced once, in bold, and no lesson needs what comes later."""

import functools
import re
from pathlib import Path

import nbformat
import pytest

from moe_lab import METHODS
from moe_lab.notebooks import FOLDER, lessons

ROOT = FOLDER.parent
CODE = "code"  # in place of a lesson, for words that only code, figures and records have
PLAIN = {
    *("bar", "block", "bound", "copy", "floor", "forced", "idle", "mask", "measured", "order", "overlap", "panel"),
    *("price", "program", "rank", "residual", "room", "share"),
}
"""Words that English needs as well: before their lesson they may stand in their plain sense, never in bold."""
NO_PROSE = re.compile(r"^```.*?^```|\]\([^)]*\)|https?://\S+", flags=re.MULTILINE | re.DOTALL)
REFERENCES = re.compile(r"^## References.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
NUMBERED = re.compile(r"^\d+\. \*\*.+?\*\*", flags=re.MULTILINE)  # the first words of a numbered list are headings
BOLD = re.compile(r"\*\*(.+?)\*\*", flags=re.DOTALL)


def read_glossary(text: str) -> dict[str, str]:
    """Each word and the lesson that introduces it, in the order of the lines."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {word.strip(" `"): cells[1] for cells in lines for word in cells[0].split(",")}


def read_cells(kind: str) -> dict[str, list[str]]:
    """The cells of one kind of each lesson, by its number."""
    paths = [path for path in lessons() if path.parent == FOLDER]
    found = {path.name[:2]: nbformat.read(path, as_version=4).cells for path in paths}
    return {number: [cell.source for cell in cells if cell.cell_type == kind] for number, cells in found.items()}


def paragraphs_of(cells: list[str]) -> list[str]:
    """Prose without code, addresses and titles of other people's works."""
    return re.split(r"\n\s*\n", NO_PROSE.sub(" ", REFERENCES.sub("", "\n\n".join(cells))))


@functools.cache
def pattern(word: str) -> re.Pattern:
    """The word by itself, in either case, with its endings."""
    stem, endings = word, "(?:s|es|d|ed|ing)?"
    if word.endswith("e"):
        stem, endings = word[:-1], "(?:e|es|ed|ing)"
    elif word.endswith("y"):
        stem, endings = word[:-1], "(?:y|ies)"
    return re.compile(r"(?<![\w-])" + r"\s+".join(map(re.escape, stem.split())) + endings + r"(?![\w-])", re.IGNORECASE)


def uses(word: str, words: dict[str, str], paragraphs: list[str]) -> list[str]:
    """The paragraphs that have the word, and not merely as a part of a longer one of the glossary."""
    longer = [pattern(other) for other in words if other != word and pattern(word).search(other)]
    candidates = [paragraph for paragraph in paragraphs if pattern(word).search(paragraph)]
    return [one for one in candidates if pattern(word).search(functools.reduce(_leave_out, longer, one))]


def _leave_out(text: str, word: re.Pattern) -> str:
    return word.sub("", text)


def names_lesson(paragraph: str, number: str) -> bool:
    return bool(re.search(rf"\b[Ll]essons?\b[^.]*?\b{number}\b|\b{number} · |\[{number}\]", paragraph))


def used_too_early(words: dict[str, str], texts: dict[str, list[str]], plain: set[str]) -> dict[str, str]:
    """Words of a later lesson in an earlier one that does not say, where it has them first, which lesson that is."""
    found, terms = {}, {number: bold_terms(paragraphs) for number, paragraphs in texts.items()}
    for word, home in words.items():
        for number, paragraphs in texts.items():
            if not number < home != CODE:
                continue
            first = uses(word, words, paragraphs)[:1] if word not in plain else []
            bold = [term for term in terms[number] if pattern(word).fullmatch(term)]
            if bold or (first and not names_lesson(first[0], home)):
                found[f"{word} (lesson {home}) in lesson {number}"] = " ".join([*bold, *first])[:200]
    return found


def bold_terms(paragraphs: list[str]) -> list[str]:
    """What stands in bold, but for objectives, headings, numbers, letters and names of methods."""
    found, card = [], False
    for paragraph in paragraphs:
        card = "You will be able to" in paragraph or (card and paragraph.lstrip().startswith(("- ", "|")))
        lines = [line for line in paragraph.splitlines() if not (card and line.lstrip().startswith(("- ", "|")))]
        text = NUMBERED.sub("", "\n".join(lines))
        found += [" ".join(one.split()).strip("`") for one in BOLD.findall(text)]
    return [one for one in found if not is_no_term(one)]


def is_no_term(bold: str) -> bool:
    heading = bold.endswith((".", ":", "?")) or bold in ("What to notice", "You will be able to")
    number = re.search(r"\d", bold) and not re.search(r"[A-Za-z]\d", bold)
    return bool(heading or number or bold.lower().replace(" ", "_") in METHODS or re.fullmatch("[A-Z]", bold))


WORDS = read_glossary((ROOT / "GLOSSARY.md").read_text(encoding="utf-8"))
MARKDOWN, PYTHON = read_cells("markdown"), read_cells("code")
TEXTS = {number: paragraphs_of(cells) for number, cells in MARKDOWN.items()}
LINES = [line for line in (ROOT / "GLOSSARY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]


def test_every_line_has_a_word_a_lesson_and_a_meaning():
    for line in LINES:
        cells = line.strip("| ").split(" | ")
        assert len(cells) == 3 and (cells[1] in TEXTS or cells[1] == CODE), line
    homes = [line.strip("| ").split(" | ")[1] for line in LINES]
    assert homes == sorted(homes), "lines stand in the order of the lessons, those of code last"


def test_a_word_has_one_line():
    words = [word.strip(" `") for line in LINES for word in line.strip("| ").split(" | ")[0].split(",")]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("number", TEXTS)
def test_what_a_lesson_sets_in_bold_is_in_the_glossary(number):
    """Add a line for it to GLOSSARY.md, or set what is only stressed in italics."""
    missing = [one for one in bold_terms(TEXTS[number]) if not any(pattern(word).fullmatch(one) for word in WORDS)]
    assert missing == []


@pytest.mark.parametrize("line", [line for line in LINES if f"| {CODE} |" not in line], ids=lambda line: line[2:22])
def test_the_lesson_that_introduces_a_word_has_it_in_bold(line):
    first, *others = read_glossary(f"| word |\n{line}")
    home = WORDS[first]
    bold = [one for paragraph in TEXTS[home] for one in BOLD.findall(paragraph)]
    assert any(pattern(first).search(one) for one in bold), f"lesson {home} does not set {first!r} in bold"
    later = [paragraph for number, text in TEXTS.items() if number >= home for paragraph in text]
    assert [word for word in others if not uses(word, WORDS, later)] == []


def test_no_lesson_uses_a_word_before_its_time():
    """Say "lesson NN" beside the word, put it in other words, or let the earlier lesson introduce it."""
    assert used_too_early(WORDS, TEXTS, PLAIN) == {}


def test_every_plain_word_is_needed():
    without = used_too_early(WORDS, TEXTS, plain=set())
    assert {word for word in PLAIN if not any(one.startswith(f"{word} (") for one in without)} == set()


def test_words_of_code_are_in_the_code():
    files = [path for folder in ("moe_lab", "kernels") for path in (ROOT / folder).rglob("*") if is_source(path)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files).lower()
    assert [word for word, home in WORDS.items() if home == CODE and word.lower() not in text] == []


def is_source(path: Path) -> bool:
    return path.suffix in (".py", ".js")


# ---------------------------------------------------------------- nothing that comes later


@pytest.mark.parametrize("number", TEXTS)
def test_a_lesson_needs_earlier_lessons_only(number):
    card = re.search(r"^\|[^\n]*\bNeeds \|\n\|[-|]+\|\n\|.*\|([^|]*)\|$", "\n".join(MARKDOWN[number]), re.MULTILINE)
    needed = re.findall(r"\b\d\d\b", card[1])
    assert (needed or number == "00") and all(one < number for one in needed)


@pytest.mark.parametrize("number", TEXTS)
def test_a_lesson_links_to_later_ones_in_next_only(number):
    before = "\n\n".join(MARKDOWN[number]).partition("\n## Next")[0]
    assert [one for one in re.findall(r"\]\((?:\.\./notebooks/)?(\d\d)_\w+\.ipynb", before) if one > number] == []


def test_no_code_uses_what_a_later_lesson_explains():
    """A public name stands in the prose of the lesson that uses it first, or of an earlier one."""
    explained, used = {}, {}
    for number in TEXTS:
        for name in re.findall(r"`ml\.(\w+)", "\n".join(MARKDOWN[number])):
            explained.setdefault(name, number)
        for name in re.findall(r"\bml\.(\w+)", "\n".join(PYTHON[number])):
            used.setdefault(name, number)
        other = re.findall(r"exercises\.lesson_(\d\d)", "\n".join(PYTHON[number]))
        assert all(one <= number for one in other), f"lesson {number} imports exercises of a later one"
    late = {name: (used[name], explained[name]) for name in used if used[name] < explained.get(name, "")}
    assert late == {}


# ---------------------------------------------------------------- the rules catch what they should

EXAMPLE = {"tile": "02", "noise floor": "01", "floor": "02", "spill": "02"}


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("Each tile counts.", ["tile"]),
        ("Two tiles, and a spilled one.", ["tile", "spill"]),
        ("Tiles (lesson 02) come later. A tile is small.", []),
        ("A tile.\n\nTiles come in lesson 02.", ["tile"]),
        ("The noise floor, versatile, a tile-like thing.", []),
        ("The floor of the noise.", []),  # a plain word
        ("The **floor** is low (lesson 02).", ["floor"]),
        ("```\ntile = 1\n```\n\n## References\n\n- Smith, *Tile by tile*", []),
        ("**Next.** 02 · Tiles: each tile.", []),
    ],
)
def test_words_before_their_time_are_caught(text, caught):
    found = used_too_early(EXAMPLE, {"01": paragraphs_of([text]), "02": []}, {"floor"})
    assert sorted(one.split(" (")[0] for one in found) == sorted(caught)


def test_bold_that_is_no_term():
    text = "**What to notice.** **3.5** **A** **02.1 · Compute.** **Switch** **T = 1.5 · F** and **L2**, **wave**\n"
    card = "You will be able to\n\n- **compute** much\n- **predict** more\n\n**group** at last"
    assert bold_terms(paragraphs_of([text, card])) == ["L2", "wave", "group"]
