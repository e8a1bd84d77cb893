"""From a claim and what was found to a verdict, by one rule for all rows."""

from moe_lab.scoreboard.facts import Claim, Finding

HOLDS = "holds"
CONDITIONS = "holds under conditions"
NOT_REPRODUCIBLE = "not reproducible"
NOT_COMPARABLE = "not a comparable quantity"
NOT_MEASURED = "not measured yet"
VERDICTS = {
    HOLDS: "every value meets the claim, on the hardware that it names, if it names any",
    CONDITIONS: "some values meet it, or all do on other hardware: the row says which, and where",
    NOT_REPRODUCIBLE: "the published code or figures, taken by themselves, do not give it; or no value of ours meets "
    "it on the hardware that it names, if it names any",
    NOT_COMPARABLE: "it has no metric or no baseline, so no measurement could meet it or miss it",
    NOT_MEASURED: "there is no record; or one from other hardware, where no value meets it: that refutes nothing",
}
"""The verdicts, each with what it means. Values are rounded as the claim was printed before they are compared."""


def judge(claim: Claim, finding: Finding | None, contradicted: bool = False) -> str:
    """The verdict on a claim; the first line that applies counts.

    no metric or no baseline: not a comparable quantity; contradicted by what was published: not reproducible; no
    finding: not measured yet; every value met, on the claim's hardware: holds; some met: holds under conditions; none
    met, on the claim's hardware: not reproducible; none met elsewhere: not measured yet.

    Example:
        >>> from moe_lab.scoreboard import CLAIMS
        >>> (claim,) = (claim for claim in CLAIMS if claim.slug == "switch-steps")
        >>> judge(claim, Finding("measured", {"seed 0": 8.4}, device="a laptop"))
        'holds under conditions'
        >>> judge(claim, Finding("measured", {"seed 0": 8.4}, device="TPU v3"))
        'holds'
        >>> judge(claim, Finding("measured", {"seed 0": 3.0}, device="a laptop")), judge(claim, None)
        ('not measured yet', 'not measured yet')
    """
    if not claim.there.metric or not claim.there.baseline:
        return NOT_COMPARABLE
    if contradicted:
        return NOT_REPRODUCIBLE
    if finding is None:
        return NOT_MEASURED
    met, at_home = len(conditions_met(claim, finding)), claim.is_about(finding.device)
    if met == 0:
        return NOT_REPRODUCIBLE if at_home else NOT_MEASURED
    return HOLDS if met == len(finding.values) and at_home else CONDITIONS


def conditions_met(claim: Claim, finding: Finding) -> list[str]:
    """The conditions under which a claim is met."""
    return [name for name, value in finding.values.items() if claim.demand.met_by(value)]
