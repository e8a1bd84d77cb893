"""The browser of the other browser tests, and a table at the end of a long soak."""

from ..browser.conftest import browser, page, pages
from .growth import TABLES, WHOLE

__all__ = ["browser", "page", "pages"]  # fixtures

collect_ignore = [] if WHOLE else ["test_only_long.py"]


def pytest_terminal_summary(terminalreporter):
    """What each count grew by in a round: the slope of the line with the least squares, and its standard error."""
    for head, body in TABLES.items() if WHOLE else ():
        rows = [head, *body]
        wide = [max(len(row[column]) for row in rows) for column in range(len(head))]
        terminalreporter.section("soak")
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, wide, strict=True)]
            terminalreporter.write_line("  ".join(cells).rstrip())
