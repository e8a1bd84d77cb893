"""What the tests share. Warnings are errors, and every shape in a signature is checked while they run."""

import jaxtyping
import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def unchecked_shapes():
    """Switch the shape checks of the test run off, so that our own errors for bad input are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """A figure left open is drawn a second time by the notebook that made it."""
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left, "this test left a figure open: is there a path on which a plot function does not close it?"
