"""Refusals in one voice: the argument's name, what it was, what is allowed."""

import math
import numbers
import operator
import sys
import types
import typing


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Refuse anything but a whole number in low..high; NumPy's whole numbers are welcome, True and False are not.

    Example:
        >>> check_whole("top_k", 3, 1, 8)
        3

    Raises TypeError for what is no whole number, ValueError for one out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        # operator.index would make torch.compile compile anew for every number of tokens
        number = value if type(value) is int else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, {_range(low, high)}; got {show_value(value)}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {_range(low, high)}, got {show_value(number)}")
    return number


LARGEST = 2**40
"""No size of any model; a larger one is a slip, and its products would not fit where they are printed."""


def check_size(name: str, value: object, low: int, high: int | None = None) -> int:
    """Refuse anything but a whole number in low..high, or beyond `LARGEST`."""
    number = check_whole(name, value, low, high)
    if number > LARGEST:
        raise ValueError(f"{name} must be at most 2**40, got a number of {number.bit_length()} bits")
    return number


def _range(low: int, high: int | None) -> str:
    return f"at least {low}" if high is None else f"in {low}..{show_value(high)}"


def check_number(
    name: str, value: object, *, above: float | int | None = None, at_least: float | int | None = None
) -> float:
    """Refuse anything but a finite number above, or not below, a bound.

    Example:
        >>> check_number("rate", 0.5, above=0)
        0.5

    Raises TypeError for what is no number, ValueError for one out of range.
    """
    bound = f" above {above}" if above is not None else f" of at least {at_least}" if at_least is not None else ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a finite number{bound}, got {show_value(value)}")
    in_range = (above is None or value > above) and (at_least is None or value >= at_least)
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        number = math.inf
    if not in_range or not -math.inf < number < math.inf:  # torch.compile has no math.isfinite
        raise ValueError(f"{name} must be a finite number{bound}, got {show_value(value)}")
    return number


def check_fits(name: str, value: object, kind: object) -> None:
    """Refuse a value, such as a file has it, that is not of the kind that an annotation says.

    Knows str, bool, int, float, None, unions of them, and lists and dicts from text to them. True is no number, a whole
    number will do for a float, and a number that is not finite, or larger than any float, for neither.

    Example:
        >>> check_fits("shape", {"tokens": 4}, dict[str, int | float])

    Raises TypeError.
    """
    if not _fits(value, kind):
        words = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        raise TypeError(f"{name} must be {words}, got {show_value(value)}")


def _fits(value: object, kind: object) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(n, str) and _fits(v, inner[1]) for n, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, inner[0]) for entry in value)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    return value is None if kind in (None, types.NoneType) else isinstance(value, kind)


def show_value(value: object) -> str:
    """What was given, in at most 80 characters; of a number that Python refuses to write out, its size.

    Example:
        >>> show_value("two"), show_value(10**5000)
        ("'two'", 'a whole number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 1024:  # from 4300 digits on, repr raises
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.80}"
