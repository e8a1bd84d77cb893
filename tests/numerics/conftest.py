"""NumPy computes for Triton's interpreter, and says aloud what a GPU does without a word: overflow, NaN."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quiet_numpy():
    with np.errstate(all="ignore"):
        yield
