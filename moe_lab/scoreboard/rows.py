"""Rows of the scoreboard: each claim with what the records in a folder say of it, and the verdict."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from moe_lab.folders import DATA
from moe_lab.scoreboard.claims import CLAIMS
from moe_lab.scoreboard.facts import Claim, Finding
from moe_lab.scoreboard.verdicts import HOLDS, NOT_COMPARABLE, conditions_met, judge

MOST_NAMES = 2  # conditions that a verdict lists by name


@dataclass(frozen=True)
class Row:
    """A claim, what was found, what else can be said, and what its own code or figures say; the rest follows."""

    claim: Claim
    found: Finding | None
    beside: tuple[Finding | None, ...] = ()
    own: Finding | None = None

    @property
    def contradicted(self) -> bool:
        """Whether what was published does not give the claim."""
        check = self.claim.self_check
        return bool(check and self.own and not all(map(check.demand.met_by, self.own.values.values())))

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return judge(self.claim, self.found, self.contradicted)

    @property
    def because(self) -> str:
        """Why, in a few words; empty where the verdict says all."""
        if self.contradicted and self.own:
            return f"{self.own.kind}: {say(self.own)}"
        if self.found is None or self.verdict in (HOLDS, NOT_COMPARABLE):
            return ""
        met = conditions_met(self.claim, self.found)
        count = f"{len(met)} of {len(self.found.values)}"
        if not self.claim.is_about(self.found.device):
            away = f"on {self.found.device}, not {' or '.join(self.claim.devices)}"
            return f"met by {count} {away}" if met else f"met by none {away}"
        return f"met by {' and by '.join(met)}" if 0 < len(met) <= MOST_NAMES else f"met by {count}"

    @property
    def files(self) -> tuple[str, ...]:
        """Every record below the folder that the row reads."""
        every = [one for one in (self.found, *self.beside) if one is not None]
        return tuple(dict.fromkeys(name for one in every for name in one.files))

    def as_dict(self) -> dict:
        """Everything in it, as JSON can hold it."""
        claim = self.claim
        return {
            "slug": claim.slug,
            "claim": claim.words,
            "source": dataclasses.asdict(claim.source),
            "there": dataclasses.asdict(claim.there),
            "code": list(claim.code),
            "lesson": claim.lesson,
            "here": as_dict(self.found),
            "beside": [as_dict(one) for one in self.beside],
            "own": as_dict(self.own) if claim.self_check else None,
            "verdict": self.verdict,
            "because": self.because,
            "settled_by": claim.settled_by,
        }


def make_rows(data: Path = DATA) -> list[Row]:
    """A row a claim, in the order of `CLAIMS`; a record that is missing in ``data`` makes its cell "not measured".

    Example:
        >>> rows = {row.claim.slug: row for row in make_rows()}
        >>> rows["switch-steps"].verdict, rows["pytorch-column-major"].verdict
        ('holds under conditions', 'not reproducible')

    Raises ValueError for a record that is damaged, with its path.
    """
    return [make_row(claim, data) for claim in CLAIMS]


def make_row(claim: Claim, data: Path = DATA) -> Row:
    """One of these rows."""
    return Row(
        claim,
        claim.reading(data) if claim.reading else None,
        tuple(read(data) for read in claim.beside),
        claim.self_check.reading(data) if claim.self_check else None,
    )


def say(finding: Finding | None) -> str:
    """A finding in words, without where it is from; "not measured" for none.

    Example:
        >>> say(Finding("counted", {"a": 4.0, "b": 8.0}, about="FLOPs")), say(None)
        ('4.00x to 8.00x, FLOPs', 'not measured')
    """
    if finding is None:
        return "not measured"
    return finding.span + (f", {finding.about}" if finding.about else "")


def as_dict(finding: Finding | None) -> dict | str:
    """A finding as JSON can hold it."""
    return "not measured" if finding is None else {**dataclasses.asdict(finding), "says": say(finding)}
