"""Fuzzing: shapes are checked by nobody but our own code, as for a user; cases are counted over all processes."""

import json
import os
from pathlib import Path

import jaxtyping
import pytest

from .cases import FULL, SEED, TALLY

TALLY_FILE = "FUZZ_TALLY"
"""The environment's name for the file that the counts of a run are written into, for `make fuzz`."""


@pytest.fixture(autouse=True, scope="module")
def unchecked_by_the_test_run():
    """Bad input has to meet our own refusals, and not those of the shape checks that only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker of pytest-xdist is done: what it counted."""
    TALLY.add(getattr(node, "workeroutput", {}).get("fuzz", {}))


def pytest_sessionfinish(session):
    """A worker hands its counts on; whoever started it, or ran alone, writes them down."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzz"] = {subject: dict(ways) for subject, ways in TALLY.ended.items()}
    elif path := os.environ.get(TALLY_FILE):
        Path(path).write_text(json.dumps(TALLY.ended), encoding="utf-8")


def pytest_terminal_summary(terminalreporter, config):
    """What was tried, at the end of a run of nothing but this folder."""
    if config.getoption("hypothesis_profile", None) == FULL:
        terminalreporter.write_line(f"fuzzing, FUZZ_SEED={SEED}:\n{TALLY.describe()}")
