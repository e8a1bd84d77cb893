"""Texts that the shipped model has not seen: files of packages whose versions are pinned, five domains of four each.

The standard library is what the model was trained on, and which of its files were held out depends on the version of
Python. Installed packages were left out of training on every machine, and ``requirements.lock`` says which texts they
are.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.specialisation.labels import Labels

DOMAINS = {
    "library": (
        "jinja2/lexer.py",
        "networkx/algorithms/matching.py",
        "packaging/version.py",
        "traitlets/config/loader.py",
    ),
    "tests": (
        "matplotlib/tests/test_path.py",
        "networkx/algorithms/tests/test_matching.py",
        "numpy/linalg/tests/test_regression.py",
        "pandas/tests/series/test_reductions.py",
    ),
    "tables": (
        "charset_normalizer/constant.py",
        "matplotlib/_color_data.py",
        "matplotlib/_mathtext_data.py",
        "pygments/lexers/_scilab_builtins.py",
    ),
    "prose": ("matplotlib/METADATA", "networkx/METADATA", "numpy/METADATA", "pandas/METADATA"),
    "json": (
        "jsonschema_specifications/schemas/draft4/metaschema.json",
        "jupyter_lsp/schema/schema.json",
        "jupyterlab/static/package.json",
        "nbformat/v4/nbformat.v4.5.schema.json",
    ),
}
"""Files of each domain; METADATA is what a package says about itself. The first three are Python."""

SIZE = 3072
"""Bytes that are read of each: twelve windows of 256."""


@dataclass(frozen=True)
class Document:
    """One text: its name, its domain, and all of its bytes."""

    name: str
    domain: str
    text: bytes

    @property
    def is_python(self) -> bool:
        """Whether `label_constructs` can read it."""
        return self.name.endswith(".py")


def installed_documents() -> list[Document]:
    """The documents of `DOMAINS`, in order, as they are installed here.

    Example:
        >>> documents = installed_documents()
        >>> len(documents), documents[0].name, documents[-1].domain
        (20, 'jinja2/lexer.py', 'json')

    Raises FileNotFoundError for one that is not installed, or shorter than 3,072 bytes.
    """
    return [_read(name, domain) for domain, names in DOMAINS.items() for name in names]


def _read(name: str, domain: str) -> Document:
    package, _, inner = name.partition("/")
    text = b""
    if inner == "METADATA":
        found = next(iter(importlib.metadata.distributions(name=package)), None)
        text = (found.read_text(inner) or "").encode() if found else b""
    elif spec := importlib.util.find_spec(package):
        path = Path(spec.submodule_search_locations[0], inner)
        text = path.read_bytes() if path.is_file() else b""
    if len(text) < SIZE:
        raise FileNotFoundError(f"{name} must be installed with at least {SIZE} bytes of text, found {len(text)}")
    return Document(name, domain, text)


def label_documents(documents: Sequence[Document], label: Callable[[bytes], Labels], size: int = SIZE) -> Labels:
    """Label the first ``size`` bytes of every document, one after the other; the whole text is looked at.

    Example:
        >>> two = [Document("a", "x", b"if"), Document("b", "x", b"1 ")]
        >>> from moe_lab.specialisation.labels import label_classes
        >>> label_documents(two, label_classes, size=1).words()
        ['letter', 'digit']

    Raises ValueError for no document, or one that is shorter.
    """
    check_whole("size", size, 1)
    if not documents or min(len(document.text) for document in documents) < size:
        raise ValueError(f"documents must be at least one, each of at least size={size} bytes")
    labels = [label(document.text) for document in documents]
    return Labels(torch.cat([one.values[:size] for one in labels]), labels[0].names)


def number_documents(documents: Sequence[Document], size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The number of its document for every token, and that of its domain.

    Example:
        >>> two = [Document("a", "x", b"if"), Document("b", "y", b"1 ")]
        >>> number_documents(two, size=2)
        (tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))
    """
    names = list(dict.fromkeys(document.domain for document in documents))
    domains = torch.tensor([names.index(document.domain) for document in documents])
    return torch.arange(len(documents)).repeat_interleave(size), domains.repeat_interleave(size)
