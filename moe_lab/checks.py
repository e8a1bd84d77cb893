"""Refusals in one voice: the argument's name, what it was, what is allowed."""

import math
import numbers
import operator


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Refuse anything but a whole number in low..high; NumPy's whole numbers are welcome, True and False are not.

    Example:
        >>> check_whole("top_k", 3, 1, 8)
        3

    Raises TypeError for what is no whole number, ValueError for one out of range.
    """
    allowed = f"at least {low}" if high is None else f"in {low}..{high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        # operator.index would make torch.compile compile anew for every number of tokens
        number = value if type(value) is int else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, {allowed}; got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number


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
        raise TypeError(f"{name} must be a finite number{bound}, got {value!r}")
    in_range = (above is None or value > above) and (at_least is None or value >= at_least)
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        number = math.inf
    if not in_range or not -math.inf < number < math.inf:  # torch.compile has no math.isfinite
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r:.80}")
    return number
