"""An answer that edits what it is given is not right, however right its result is."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


class ArgumentChanged(Exception):
    """An answer left an argument other than it came."""


def untouched(answer: Callable) -> Callable:
    """The same function, which raises `ArgumentChanged` when a call leaves an argument other than it came.

    What was edited is put back, whether the answer returns or raises: a law may ask its next question, or the next
    answer, with the same tensors.

    Example:
        >>> untouched(sorted)([2, 1])
        [1, 2]
        >>> untouched(lambda load: load.sort())([2, 1])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        moe_lab.exercises.untouched.ArgumentChanged: it changed its argument load; ...
    """

    @functools.wraps(answer, updated=())
    def call(*arguments, **options):
        given = (*arguments, *options.values())
        before = [fingerprint(value) for value in given]
        undo = [undoing(value) for value in given]
        try:
            result = answer(*arguments, **options)
        finally:
            changed = [place for place, value in enumerate(given) if fingerprint(value) != before[place]]
            for place in changed:
                undo[place]()
        if changed:
            name = _names(answer, len(arguments), options)[changed[0]]
            raise ArgumentChanged(
                f"it changed its argument {name}; answer with something new, and leave what you are given as it is"
            )
        return result

    return call


def fingerprint(value: object) -> object:
    """What is compared of an argument: the bytes of tensors and arrays, the contents of containers and dataclasses.

    Objects of other kinds, functions among them, are told apart by identity alone.

    Example:
        >>> fingerprint([1, {"a": 2.0}])
        ('list', (1, ('dict', (('a', 2.0),))))
    """
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return value.dtype, tuple(value.shape), value.requires_grad, numbers.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(fingerprint(part) for part in value)
    if isinstance(value, Mapping):
        return type(value).__name__, tuple((key, fingerprint(part)) for key, part in value.items())
    if isinstance(value, set | frozenset):
        return type(value).__name__, frozenset(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = tuple(fingerprint(getattr(value, field.name)) for field in dataclasses.fields(value))
        return type(value).__name__, fields
    return value if isinstance(value, bool | int | float | complex | str | bytes | None) else id(value)


def undoing(value: object) -> Callable[[], None]:
    """What puts a value back as it is now, in place, for everything that `fingerprint` looks into.

    Example:
        >>> board = {"scores": [1, 2]}
        >>> undo = undoing(board)
        >>> board["scores"].append(3); board["name"] = "edited"
        >>> undo(); board
        {'scores': [1, 2]}
    """
    if isinstance(value, Tensor):
        return functools.partial(_refill, value, value.detach().clone(), value.requires_grad)
    if isinstance(value, np.ndarray):
        return functools.partial(np.copyto, value, value.copy())
    if isinstance(value, set):
        return functools.partial(_refill_container, value, value.copy(), [])
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return functools.partial(_refill_container, value, copy.copy(value), [undoing(part) for part in parts])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return functools.partial(_refill_fields, value, fields, [undoing(part) for part in fields.values()])
    return lambda: None


def _refill(value: Tensor, numbers: Tensor, requires_grad: bool) -> None:
    if value.shape == numbers.shape:
        value.data.copy_(numbers)  # in place: views of the same numbers are put back with it
    else:
        value.data = numbers
    if value.requires_grad != requires_grad and value.is_leaf:
        value.requires_grad_(requires_grad)


def _refill_container(value: list | tuple | dict | set, content: object, parts: list[Callable[[], None]]) -> None:
    for undo in parts:
        undo()
    if isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)


def _refill_fields(value: object, fields: dict[str, object], parts: list[Callable[[], None]]) -> None:
    for undo in parts:
        undo()
    for name, content in fields.items():
        object.__setattr__(value, name, content)  # frozen or not


def _names(answer: Callable, positional: int, options: Mapping[str, object]) -> list[str]:
    """What its signature calls the arguments of a call; numbers where it has no signature."""
    try:
        parameters = list(inspect.signature(answer).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [plain[place] if place < len(plain) else f"number {place + 1}" for place in range(positional)] + [*options]
