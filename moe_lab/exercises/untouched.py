"""An answer that edits what it is given is not right, however right its result is."""

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

    Example:
        >>> untouched(sorted)([2, 1])
        [1, 2]
        >>> untouched(lambda load: load.sort())([2, 1])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        moe_lab.exercises.untouched.ArgumentChanged: it changed its argument load; ...
    """

    @functools.wraps(answer, updated=())
    def call(*arguments, **options):
        before = [fingerprint(value) for value in (*arguments, *options.values())]
        result = answer(*arguments, **options)
        for place, value in enumerate((*arguments, *options.values())):
            if fingerprint(value) != before[place]:
                name = _names(answer, len(arguments), options)[place]
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


def _names(answer: Callable, positional: int, options: Mapping[str, object]) -> list[str]:
    """What its signature calls the arguments of a call; numbers where it has no signature."""
    try:
        parameters = list(inspect.signature(answer).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [plain[place] if place < len(plain) else f"number {place + 1}" for place in range(positional)] + [*options]
