"""How much of the drills is run: a slice that `make test` has time for, or with MOE_LAB_DRILLS=1 everything."""

import os

import pytest

WHOLE = bool(os.environ.get("MOE_LAB_DRILLS"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Without MOE_LAB_DRILLS what takes long is no part of the run."""
    long = [] if WHOLE else [item for item in items if item.get_closest_marker("drill")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def whole():
    """Whether this is `make drills`."""
    return WHOLE
