"""Files: whole ones are taken, damaged ones are taken or refused by name, and what was taken can be used."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from .cases import fuzzed
from .damage import damaged_json, damaged_tensors
from .formats import FORMATS, prepare, try_bytes

TENSORS = ("safetensors", "model weights")
BY_SUBJECT = {
    subject: [name for name, form in FORMATS.items() if form.subject == subject]
    for subject in ("records", "configs", "checkpoints")
}


@functools.cache
def wholes(name):
    return FORMATS[name].wholes()


HOME = tempfile.TemporaryDirectory(prefix="moe-lab-fuzz-")  # no fixture: hypothesis would print all it holds


@functools.cache
def folder_of(name):
    return prepare(name, Path(HOME.name, name))


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_are_taken(name):
    for content in wholes(name):
        try_bytes(name, content, folder_of(name), must="answer")


@st.composite
def files(draw, subject):
    name = draw(st.sampled_from(BY_SUBJECT[subject]))
    return name, draw((damaged_tensors if name in TENSORS else damaged_json)(wholes(name)))


@fuzzed("records", cases=2400, few=60, file=files("records"))
def test_records(file):
    try_bytes(*file, folder_of(file[0]))


@fuzzed("configs", cases=1200, few=40, file=files("configs"))
def test_configs(file):
    try_bytes(*file, folder_of(file[0]))


@fuzzed("checkpoints", cases=1200, few=40, file=files("checkpoints"))
def test_checkpoints(file):
    try_bytes(*file, folder_of(file[0]))
