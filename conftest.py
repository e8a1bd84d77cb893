"""For every test and every notebook: how signatures are checked, no trace in the reader's own progress file, and what
nbval compares."""

import functools
import gc
import inspect
import os
import sys
import tempfile
import typing
from pathlib import Path

import beartype
import jaxtyping
import pytest
import torch
from jaxtyping import _decorator

SHAPES_AND_TYPES = _decorator.jaxtyped
TYPES = beartype.beartype(conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def names_a_shape(annotation) -> bool:
    """Whether an annotation is an array with a shape, or has one within it."""
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(names_a_shape(part) for part in parts)


def without_a_shape(function) -> bool:
    """Whether beartype alone checks all that a function's signature says, once for arguments and result."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return False
    hints = function.__annotations__.values()
    return not any(isinstance(hint, str) or names_a_shape(hint) for hint in hints)


def jaxtyped(function=_decorator._sentinel, *, typechecker=_decorator._sentinel):
    """jaxtyping's decorator, but only beartype's where a signature names no shape.

    jaxtyping first binds the arguments of every call to their names, for the message in case a shape is wrong. That
    costs far more than the check itself, and most functions that are called often, such as the counts of a part of a
    model, take no tensor.
    """
    if not without_a_shape(function):
        return SHAPES_AND_TYPES(function, typechecker=typechecker)
    checked = TYPES(function)

    @functools.wraps(function)
    def call(*arguments, **options):
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*arguments, **options)

    return call


jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped  # before the first module of moe_lab is imported and decorated

import moe_lab  # noqa: E402  (sets OpenMP's waiting before torch loads it, here and for the notebooks' kernels)
import moe_lab.kernels  # noqa: E402, F401  (without a GPU, switches Triton's interpreter on before anything imports triton)

os.environ["MOE_LAB_PROGRESS"] = str(Path(tempfile.mkdtemp(prefix="moe-lab-")) / "progress.json")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail, not wait
torch.set_num_threads(1)  # the tests' matrices are small: a second thread only waits, and waiting threads spin


gc.disable()  # until all is imported: modules make no garbage worth looking for

LONGEST = (
    "test_machine_code_gate.py",
    "test_widgets_page.py",
    "test_site.py",
    "test_wheel.py",
    "test_lesson_00.py",
    "test_parameters.py",
    "test_train.py",
    "test_operator_triton.py",
    "test_compile.py",
    "test_answers.py",
    "test_widget_logic.py",
    "test_writers.py",
    "test_security.py",
)
"""Files that take longest, some of them for one test. Begun last, one of them would run while the other cores wait."""


@pytest.hookimpl
def pytest_xdist_auto_num_workers(config):
    """One process more than there are cores, for browsers, compilers and ranks are waited for; no more than eight."""
    return min(os.cpu_count() + 1, 8)


def pytest_collection_modifyitems(items):
    """The longest files first, then the notebooks, then the others; within a file and a notebook the order stays."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.suffix != ".ipynb"))


def pytest_collection_finish():
    """What was imported stays: from here on only what tests make is looked through, and not too often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # Python's own 700 takes a tenth of the time of tests that make many objects
    gc.enable()


def pytest_configure(config):
    """Notebooks run in kernels that are forked, with torch loaded: `tests/forked_kernels.py`."""
    if config.getoption("nbval", False):
        sys.path.append(str(Path(__file__).parent))
        from tests.forked_kernels import fork_the_kernels

        fork_the_kernels()


def pytest_collectstart(collector):
    """Compare text, not pictures: a figure's sentence in text/plain says what its data said."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("text/html", "stderr")
