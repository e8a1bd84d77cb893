"""Labels of bytes: what kind of byte, in which construct of Python, how far into its line."""

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Int64
from torch import Tensor

CLASSES = {
    "letter": b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_",
    "digit": b"0123456789",
    "space": b" \t",
    "indent": b"",  # the same bytes, before anything else on their line
    "newline": b"\n\r",
    "quote": b"'\"",
    "bracket": b"()[]{}",
    "operator": b"+-*/%@&|^~<>=!",
    "punctuation": b".,:;#\\?$`",
    "other": b"",
}
CONSTRUCTS = ("keyword", "name", "docstring", "string", "comment", "number", "operator", "white space")
COLUMNS = (0, 1, 4, 8, 16, 32, 64)
"""Where the classes of columns begin."""


@dataclass(frozen=True, eq=False)
class Labels:
    """One label a token: its number, and the names that the numbers stand for.

    Example:
        >>> label_classes(b"x = 1").words()
        ['letter', 'space', 'operator', 'space', 'digit']
    """

    values: Int64[Tensor, " tokens"]
    names: tuple[str, ...]

    def words(self) -> list[str]:
        """The label of every token, by name."""
        return [self.names[value] for value in self.values.tolist()]

    def __len__(self) -> int:
        return len(self.values)


def label_bytes(text: bytes) -> Labels:
    """Every byte is its own label, 256 of them.

    Example:
        >>> label_bytes(b"moe").values
        tensor([109, 111, 101])
    """
    return Labels(torch.tensor(list(text), dtype=torch.int64), tuple(map(repr, map(chr, range(256)))))


def label_classes(text: bytes) -> Labels:
    """The kind of each byte, by itself; only white space looks around: at the beginning of a line it is indent.

    Letters include the underscore; control characters and bytes above 127 are "other".

    Example:
        >>> label_classes(b"\\tx").words()
        ['indent', 'letter']
    """
    names = tuple(CLASSES)
    by_byte = [names.index("other")] * 256
    for name, members in CLASSES.items():
        for byte in members:
            by_byte[byte] = names.index(name)
    values, start = [], 0
    for line in text.split(b"\n"):
        indent = len(line) - len(line.lstrip(CLASSES["space"]))
        values += [names.index("indent")] * indent + [by_byte[byte] for byte in line[indent:]]
        start += len(line) + 1
        values += [names.index("newline")] * (start <= len(text))
    return Labels(torch.tensor(values, dtype=torch.int64), names)


def label_columns(text: bytes) -> Labels:
    """How far into its line each byte stands, in classes that double: 0, 1-3, 4-7, 8-15, 16-31, 32-63, 64 and more.

    Example:
        >>> label_columns(b"def f():\\n  x").words()[-4:]
        ['8-15', '0', '1-3', '1-3']
    """
    columns = [column for line in text.split(b"\n") for column in range(len(line) + 1)][: len(text)]
    edges = torch.tensor(COLUMNS[1:])
    values = torch.bucketize(torch.tensor(columns, dtype=torch.int64), edges, right=True)
    ends = [f"{low}-{high - 1}" for low, high in pairwise(COLUMNS[1:])]
    return Labels(values, ("0", *ends, f"{COLUMNS[-1]}+"))


def label_constructs(text: bytes) -> Labels:
    """The construct of Python that each byte belongs to, as Python's own ``tokenize`` and ``ast`` see it.

    What no token covers is white space, and so are the ends of lines; an f-string is a string as a whole, whatever the
    version of Python; a string is a docstring where ``ast`` has it first in a module, class or function.

    Example:
        >>> label_constructs(b"x = 1 # !").words()
        ['name', 'white space', 'operator', 'white space', 'number', 'white space', 'comment', 'comment', 'comment']

    Raises ValueError for text that is not Python in UTF-8.
    """
    number = {name: value for value, name in enumerate(CONSTRUCTS)}
    values = [number["white space"]] * len(text)
    try:
        source = text.decode()
        starts = list(accumulate((len(line.encode()) for line in io.StringIO(source)), initial=0))
        for construct, start, end in _tokens(source, starts):
            values[start:end] = [number[construct]] * (end - start)
        for start, end in _docstrings(source, starts):
            values[start:end] = [number["docstring"] if v == number["string"] else v for v in values[start:end]]
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ValueError(f"text must be Python source in UTF-8, got {text[:20]!r}...: {error}") from None
    return Labels(torch.tensor(values, dtype=torch.int64), CONSTRUCTS)


def _tokens(source: str, starts: list[int]) -> Iterator[tuple[str, int, int]]:
    """Construct, first byte and end of every token that is seen; an f-string is one token from end to end."""
    kinds = {tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.NUMBER: "number", tokenize.OP: "operator"}
    lines = io.StringIO(source).readlines()

    def offset(place: tuple[int, int]) -> int:
        row, column = place
        return starts[row - 1] + len(lines[row - 1][:column].encode()) if row <= len(lines) else starts[-1]

    depth, opened = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind, start, end = tokenize.tok_name[token.type], offset(token.start), offset(token.end)
        if kind.endswith("STRING_START"):
            opened, depth = (start if depth == 0 else opened), depth + 1
        elif kind.endswith("STRING_END"):
            depth -= 1
            if depth == 0:  # the names inside came before, and are overwritten
                yield "string", opened, end
        elif token.type == tokenize.NAME:
            yield ("keyword" if keyword.iskeyword(token.string) else "name"), start, end
        elif token.type in kinds:
            yield kinds[token.type], start, end


def _docstrings(source: str, starts: list[int]) -> Iterator[tuple[int, int]]:
    """First byte and end of every docstring; ``ast`` counts columns in bytes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    said = first.value
                    yield starts[said.lineno - 1] + said.col_offset, starts[said.end_lineno - 1] + said.end_col_offset
