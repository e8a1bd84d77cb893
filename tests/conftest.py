"""What the tests share. Warnings are errors, and every shape in a signature is checked while they run."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_shapes():
    """Switch the shape checks of the test run off, so that our own errors for bad input are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
