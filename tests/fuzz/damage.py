"""What a hostile or a careless hand does to a file: JSON changed here and there, then bytes."""

import copy
import json
import math
import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

NASTY = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        2**20,
        2**31,
        2**63,
        -(2**63),
        2**64,
        10**30,
        0.5,
        -0.0,
        1e-320,
        1e308,
        -1e308,
    ),
    *(math.nan, math.inf, -math.inf, "", "x", "\0", "ü", "../x", "/etc/passwd", "1", "nan", "float32", "torch.float32"),
    *([], [0], [[]], [None], [[1, 2], [3]], ["a", "a"], {}, {"": 0}, {"a": {"b": []}}, {"x": None}),
)
"""What may stand in a file where something else should."""


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where something stands in a JSON value, the value itself first."""
    found = [path]
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            found += places(inner, (*path, key))
    return found


def look_up(value, path: tuple):
    for key in path:
        value = value[key]
    return value


def changed(value: object, choose: Callable[[Sequence], object]) -> object:
    """The value with one thing changed, of those that ``choose`` picks: replaced, left out, added, moved, wrapped."""
    value = copy.deepcopy(value)
    everywhere = places(value)
    path = choose(everywhere)
    how = choose(("replace", "replace", "replace", "leave out", "add", "move", "wrap"))
    new = copy.deepcopy(choose(NASTY))
    if how == "move":
        new = copy.deepcopy(look_up(value, choose(everywhere)))
    if how == "wrap":
        new = [copy.deepcopy(look_up(value, path))]
    target = look_up(value, path)
    if how == "add" and isinstance(target, dict):
        target[choose(("", "x", "config", "model_type", "num_experts", "__metadata__"))] = new
        return value
    if how == "add" and isinstance(target, list):
        target.insert(choose(range(len(target) + 1)), new)
        return value
    if not path:
        return new
    owner = look_up(value, path[:-1])
    if how == "leave out":
        del owner[path[-1]]
    else:
        owner[path[-1]] = new
    return value


BYTES = (*["whole"] * 12, "cut", "flip", "insert", "digits", "deep", "twice", "bom")


@st.composite
def damaged_bytes(draw, content: bytes):
    """A file with its bytes as they were, mostly; or cut, or with something else in them."""
    how, at = draw(st.sampled_from(BYTES)), draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "cut":
        return content[:at]
    if how == "flip":
        return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    if how == "digits":  # more than Python makes a number of
        digit = next((n for n in range(at, len(content)) if content[n : n + 1].isdigit()), at)
        return content[:digit] + b"9" * 5000 + content[digit:]
    if how == "deep":
        return content[:at] + b"[" * 10**5
    if how == "twice":
        return content + content
    return b"\xef\xbb\xbf" + content if how == "bom" else content


@st.composite
def damaged_json(draw, wholes: list[bytes]):
    """A valid file after a few changes of its JSON, or none, and then of its bytes, or none."""
    value = json.loads(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2, 3)))):
        value = changed(value, lambda options: draw(st.sampled_from(options)))
    return draw(damaged_bytes(json.dumps(value).encode()))


def parts_of_tensors(content: bytes) -> tuple[object, bytes]:
    """The header of a safetensors file, and the numbers behind it; ValueError where there is none."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def changed_file(content: bytes, choose: Callable[[Sequence], object]) -> bytes:
    """The bytes of a file of JSON, or of tensors, with one thing changed in it; ValueError where it is neither."""
    if content[:1] in (b"{", b"["):
        return json.dumps(changed(json.loads(content), choose)).encode()
    head, data = parts_of_tensors(content)
    text = json.dumps(changed(head, choose)).encode()
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def damaged_tensors(draw, wholes: list[bytes]):
    """A valid safetensors file after changes of its header, its bytes, or its length."""
    head, data = parts_of_tensors(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 2))):
        head = changed(head, lambda options: draw(st.sampled_from(options)))
    text = json.dumps(head).encode()
    said = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**63, len(text) - 1, len(text) + 8)))
    return draw(damaged_bytes(struct.pack("<Q", said) + text + data))
