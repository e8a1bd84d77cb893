"""The same table in a page of the project, between two markers."""

from collections.abc import Sequence
from pathlib import Path

from moe_lab.paths import check_file
from moe_lab.scoreboard.rows import Row
from moe_lab.scoreboard.tables import as_markdown
from moe_lab.writing import write_whole

BEGIN, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"


def read_table(text: str, name: str = "the text") -> str:
    """What stands between the markers.

    Example:
        >>> read_table(f"before {BEGIN}\\nrows\\n{END} after")
        'rows'

    Raises ValueError unless each marker is there once, in order.
    """
    _, inside, _ = _split(text, name)
    return inside.strip("\n")


def write_table(path: Path, rows: Sequence[Row]) -> bool:
    """Put the table between the markers of a file, and touch nothing else; whether that changed the file.

    Raises FileNotFoundError, ValueError unless each marker is there once, in order, and CannotWrite.
    """
    text, (before, _, after) = read_page(path)
    new = f"{before}{BEGIN}\n{as_markdown(rows)}\n{END}{after}"
    if new != text:
        write_whole(path, new)
    return new != text


def read_page(path: Path) -> tuple[str, tuple[str, str, str]]:
    """The text of a file that has the markers, and what stands before, between and after them; errors name the file."""
    try:
        text = check_file(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error})") from error
    return text, _split(text, str(path))


def _split(text: str, name: str) -> tuple[str, str, str]:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} must hold {BEGIN} once and, after it, {END} once")
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    return before, inside, after
