"""What a widget does with a message of its page: take all of it, or nothing and say why."""

import math
from collections.abc import Callable
from typing import ClassVar

import anywidget
import traitlets

MOST_NUMBERS = 1_000_000  # characters and numbers of one message: a long book


class Unfit(traitlets.TraitError, ValueError):
    """A value that does not fit the others."""


class RefusingWidget(anywidget.AnyWidget):
    """A widget whose page may change the traits in ``of_the_reader``, to values that fit together, and nothing else.

    A page is a program of somebody else's: it may send anything, of any size, for any trait. A message that does not
    fit changes nothing; the page hears why, in ``refused``, and gets the present values back.

    Example:
        >>> from moe_lab.widgets import CapacityBins
        >>> bins = CapacityBins(num_experts=4, top_k=2)
        >>> bins.set_state({"num_experts": 2, "top_k": 3})
        >>> bins.num_experts, bins.top_k, bins.refused
        (4, 2, 'Refused: top_k must be in 1..2, got 3')
    """

    of_the_reader: ClassVar[tuple[str, ...]] = ()
    refused = traitlets.Unicode().tag(sync=True)  # why the last message changed nothing; empty if it was welcome

    def set_state(self, sync_data: dict) -> None:
        """Called with what a page sends."""
        before = dict(self._trait_values)
        try:
            super().set_state({name: self._welcome(name, value) for name, value in dict(sync_data).items()})
            self.refused = ""
        except Exception as problem:  # whatever the page sent, its reader gets a sentence, and the kernel goes on
            self._trait_values.update(before)  # past the validators, which compare with what was refused
            self.refused = " ".join(f"Refused: {problem}".split())[:300]
            self.send_state([name for name in dict.fromkeys(sync_data) if name in self.keys])

    def _register_validator(self, handler: Callable, names: tuple) -> None:
        """Let what a validator of ours refuses be taken back by traitlets before anybody hears of it."""

        def validate(widget: traitlets.HasTraits, proposal: dict) -> object:
            try:
                return handler(widget, proposal)
            except (ValueError, TypeError) as problem:
                raise Unfit(str(problem)) from problem

        super()._register_validator(validate, names)

    def _welcome(self, name: str, value: object) -> object:
        """A value in the form that the trait has for it, or ValueError."""
        if name not in self.of_the_reader:
            raise ValueError(f"{name!r:.80} is not the reader's to change, only {', '.join(self.of_the_reader)}")
        if measure(value) > MOST_NUMBERS:
            raise ValueError(f"{name} must have at most {MOST_NUMBERS:,} characters and numbers")
        trait = self.traits()[name]
        if isinstance(value, bool) and not isinstance(trait, traitlets.Bool):
            raise ValueError(f"{name} must be no truth value, got {value}")
        if isinstance(trait, traitlets.Enum):
            if value not in trait.values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, trait.values))}; got {value!r:.80}")
            return trait.values[trait.values.index(value)]  # JSON has 1 for 1.0, and 1.0 for 1
        return value


def measure(value: object) -> int:
    """How many characters and numbers a message's value has; refuses numbers that are not finite.

    Example:
        >>> measure({"rows": [[1.5, 2], [None, "four"]]})
        11

    Raises ValueError for NaN and infinity.
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + measure(one) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(measure, value))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {value}")
    return 1
