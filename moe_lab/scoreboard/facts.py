"""What the scoreboard is made of: a source, a claim, what was found about it, and what it would take to meet it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("measured", "counted", "simulated", "printed")
"""How a value came about: by a clock or a training run; by counting; by a model of a machine; from what was printed."""


@dataclass(frozen=True)
class Source:
    """Who said it, when, and where it can be read; ``date`` is as exact as the source is, "2022-01" or "2025-04-10"."""

    short: str
    name: str
    date: str
    place: str


@dataclass(frozen=True)
class Demand:
    """What a value must be to meet a claim: from ``low`` to ``high`` once rounded to the ``digits`` that were printed.

    Example:
        >>> seven = Demand(low=7)
        >>> seven.met_by(6.6), seven.met_by(6.4)
        (True, False)
        >>> Demand(low=1.42, high=2.62, digits=2).met_by(2.7)
        False
    """

    low: float | int | None = None
    high: float | int | None = None
    digits: int = 0

    def met_by(self, value: float | int) -> bool:
        """Whether a value, rounded as the claim was, lies within."""
        rounded = round(value, self.digits)
        return (self.low is None or rounded >= self.low) and (self.high is None or rounded <= self.high)


@dataclass(frozen=True)
class Finding:
    """Values by their conditions, how they came about (one of `KINDS`), and the records that they were read from.

    ``device``, ``date`` and ``commit`` are the record's; "" where it names none, or where nothing was run on a device.
    """

    kind: str
    values: dict[str, float] | dict[str, int]
    unit: str = "x"
    digits: int = 2
    about: str = ""
    files: tuple[str, ...] = ()
    device: str = ""
    date: str = ""
    commit: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.values:
            raise ValueError("values must hold at least one value, got none")

    @property
    def span(self) -> str:
        """The lowest and the highest value with their unit.

        Example:
            >>> Finding("counted", {"a": 3.999, "b": 8.0}).span, Finding("counted", {"a": 0.05}, "%").span
            ('4.00x to 8.00x', '5.00%')
        """
        ends = dict.fromkeys(self.write(end) for end in (min(self.values.values()), max(self.values.values())))
        words = f" {self.unit}" if self.unit not in ("x", "%") and self.unit else ""
        return " to ".join(ends) + words

    @property
    def provenance(self) -> str:
        """Where it comes from, in one line; what a record does not say is said to be missing."""
        if self.kind != "measured":
            return ", ".join(self.files)
        commit = f"commit {self.commit[:9]}" if self.commit else "commit not recorded"
        return ", ".join([*self.files, self.device or "device not recorded", self.date or "date not recorded", commit])

    def write(self, value: float | int) -> str:
        """A value, with its unit where that is a sign."""
        if self.unit == "%":
            return f"{value:.{self.digits}%}"
        return f"{value:,.{self.digits}f}{'x' if self.unit == 'x' else ''}"


Reading = Callable[[Path], Finding | None]
"""From the folder of records to what is found there; None where the record is missing."""


@dataclass(frozen=True)
class SelfCheck:
    """What the published code or figures give by themselves, and what they would have to give for the claim."""

    reading: Reading
    demand: Demand


@dataclass(frozen=True)
class There:
    """What was measured where the claim was made; an empty ``baseline`` or ``metric`` means that none was given."""

    metric: str
    baseline: str
    shape: str
    hardware: str
    balance: str
    """Evidence of balanced loads in that source: what was measured, or that nothing was."""


@dataclass(frozen=True)
class Claim:
    """A row: one claim about one metric.

    ``devices`` are the names of the hardware that the claim is about, none where it names none. ``reading`` gives our
    measurement of the same quantity, ``beside`` what else can be said, ``self_check`` what the published code or
    figures say of it by themselves. ``settled_by`` is what measures it on a reader's machine.
    """

    slug: str
    words: str
    source: Source
    there: There
    code: tuple[str, ...]
    lesson: str
    settled_by: str
    demand: Demand = field(default_factory=Demand)
    devices: tuple[str, ...] = ()
    reading: Reading | None = None
    beside: tuple[Reading, ...] = ()
    self_check: SelfCheck | None = None

    def is_about(self, device: str) -> bool:
        """Whether a device is one that the claim names; any is, where it names none."""
        return not self.devices or any(name.lower() in device.lower() for name in self.devices)
