"""The count beside what a model's makers published, figure by figure."""

from dataclasses import dataclass

from moe_lab.accounting.counts import Counts, count
from moe_lab.models import published

ALLOWED_SHARE = 0.005
"""Half a percent: beyond it a difference needs a reason."""


@dataclass(frozen=True)
class Figure:
    """One published figure and ours; ``step`` is the last digit that was printed (100 million in "46.7B")."""

    name: str
    published: int
    counted: int
    step: int
    reason: str | None = None

    @property
    def difference_percent(self) -> float:
        """How far the count lies above the published figure, in percent of it."""
        return 100 * (self.counted - self.published) / self.published

    @property
    def verdict(self) -> str:
        """Whether the count, rounded as the figure was, is the figure; or is near it; or differs, for a reason.

        A figure of a single digit, as in "1T", says so little that its verdict says so.
        """
        if abs(self.counted - self.published) * 2 <= self.step:
            return "equal as printed" if self.step * 10 <= self.published else "equal to one digit"
        if abs(self.counted - self.published) <= ALLOWED_SHARE * self.published:
            return "within 0.5 %"
        return "differs" if self.reason is None else "differs, explained"


def compare(name: str) -> tuple[Counts, list[Figure]]:
    """Count a published model under its publisher's convention for embeddings; the figures, each beside ours.

    FLOPs of an encoder-decoder are those of a forward pass over one sequence of the published lengths.

    Example:
        >>> _, figures = compare("mixtral-8x7b")
        >>> [(figure.name, figure.verdict) for figure in figures]
        [('total_params', 'equal as printed'), ('active_params', 'equal as printed')]

    Raises ValueError for a name that is not in data/models.
    """
    model = published(name)
    counts = count(model.config, embeddings=model.embeddings or "both")
    ours = {
        "total_params": lambda: counts.total_params,
        "active_params": lambda: counts.active_params,
        "flops_per_sequence": lambda: _flops(counts, model.sequence),
    }
    theirs = {name: getattr(model, name) for name in ours}
    return counts, [
        Figure(figure, value, ours[figure](), model.precision[figure], model.discrepancies.get(figure))
        for figure, value in theirs.items()
        if value is not None
    ]


def describe(figures: list[Figure]) -> str:
    """The figures as text, a line each, and the reason for every one that differs."""
    lines = [f"{'published figure':20} {'published':>22} {'counted':>22} {'off by':>9}  verdict"]
    for figure in figures:
        lines.append(
            f"{figure.name:20} {figure.published:22,} {figure.counted:22,} {figure.difference_percent:+8.2f}%  "
            f"{figure.verdict}"
        )
        if figure.verdict.startswith("differs"):
            lines.append(f"  {figure.reason or 'no reason is known'}")
    return "\n".join(lines)


def _flops(counts: Counts, sequence: dict[str, int] | None) -> int:
    if sequence is None:
        raise ValueError("flops_per_sequence was published, and the file does not say for which sequence")
    return counts.flops_per_sequence(sequence["tokens"], decoder_tokens=sequence.get("decoder_tokens"))
