"""A child forked from the test itself, which must come to its end."""

import os
import time
import traceback
from collections.abc import Callable

import pytest

LIMIT_S = 10


def forked(test):
    """Marks for a test that forks, where there may be threads: Python warns of just what is tested."""
    test = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")(test)
    return pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")(test)


def start_child(work: Callable[[], object]) -> int:
    """Fork a child that calls ``work`` and is gone, with 0 if it returned; gives the child's number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return child


def wait_for_child(child: int) -> None:
    """Fail the test if the child hangs, or failed."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for something that only its parent has")
