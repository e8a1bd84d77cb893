"""A figure of the bug clinic: what the patient says and what the healthy say, while one thing is turned up."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from moe_lab.plots.style import MARKERS, colour, finish, new_figure

LOOKS = {"the patient": (5, "--"), "healthy": (0, "-")}  # vermilion and blue, as well as dashed and whole
AGREE = 1e-3  # of the larger of two numbers: closer ones are drawn, and told, as equal


def draw_symptom(
    dial: Sequence[float | int], sick: Sequence[float | int], healthy: Sequence[float | int], over: str, what: str
) -> Figure:
    """Draw two lines over the values of a dial: the patient's dashed, the healthy one's whole.

    Example:
        >>> fig = draw_symptom([1, 2], [1.0, 1.5], [1.0, 4.0], "margin", "loss")
        >>> [line.get_label() for line in fig.axes[0].lines], fig.axes[0].get_xlabel()
        (['the patient', 'healthy'], 'margin')

    Raises ValueError for lines that are not as long as the dial, or for no values.
    """
    _check(dial, sick, healthy)
    fig, axes = new_figure(5.6, 2.9)
    for number, (name, values) in enumerate((("the patient", sick), ("healthy", healthy))):
        kind, line = LOOKS[name]
        axes.plot(dial, values, line, marker=MARKERS[number], color=colour(kind), label=name, markersize=5)
    axes.set(xlabel=over, ylabel=what)
    axes.legend()
    return finish(fig)


def say_symptom(
    dial: Sequence[float | int],
    sick: Sequence[float | int],
    healthy: Sequence[float | int],
    over: str,
    what: str,
    write: Callable[[float], str] = "{:.3g}".format,
) -> str:
    """The finding of `draw_symptom` as a sentence: both ends, and from where on the lines differ.

    Example:
        >>> say_symptom([1, 2], [1.0, 1.5], [1.0, 4.0], "margin", "loss")
        'Loss over margin: patient 1 and healthy 1 at 1, patient 1.5 and healthy 4 at 2. They differ from 2 on.'

    Raises ValueError for lines that are not as long as the dial, or for no values.
    """
    _check(dial, sick, healthy)
    ends = [f"patient {write(sick[at])} and healthy {write(healthy[at])} at {dial[at]:,}" for at in (0, -1)]
    apart = [at for at, *pair in zip(dial, sick, healthy, strict=True) if _differ(*pair)]
    said = f"They differ from {apart[0]:,} on" if apart else "They do not differ"
    return f"{what[0].upper()}{what[1:]} over {over}: {', '.join(ends)}. {said}."


def _differ(one: float | int, other: float | int) -> bool:
    return abs(one - other) > AGREE * max(abs(one), abs(other))


def _check(dial: Sequence, sick: Sequence, healthy: Sequence) -> None:
    if not len(dial) or not len(dial) == len(sick) == len(healthy):
        lengths = f"{len(dial)}, {len(sick)} and {len(healthy)}"
        raise ValueError(f"dial, sick and healthy must be equally long and not empty, got {lengths} values")
