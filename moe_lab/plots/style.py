"""One look for all figures: Okabe-Ito colours, and a pattern beside each colour."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): told apart with any common colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
HATCHES = ("", "//", "..", "xx", "--", "\\\\", "oo", "++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SEQUENTIAL = "cividis"


def use_style() -> None:
    """Set fonts, colours and sizes for every figure that follows (``ml.start`` does this)."""
    import seaborn  # brings pandas along; `import moe_lab` should not wait for it

    seaborn.set_theme(style="whitegrid", context="notebook", palette=COLOURS)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.constrained_layout.use": True,
            "image.cmap": SEQUENTIAL,
            "axes.titlesize": "medium",
            "hatch.linewidth": 0.6,
        }
    )


def new_figure(width: float = 7.0, height: float = 3.2, rows: int = 1, columns: int = 1, **options):
    """A figure of the lessons' usual size and its axes; ``show`` closes it.

    Example:
        >>> fig, axes = new_figure(columns=2)
        >>> len(axes)
        2
        >>> plt.close(fig)
    """
    use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), **options)
    return fig, axes


def colour(number: int) -> str:
    """Colour of the expert or series with this number; they repeat after eight, so print the number too."""
    return COLOURS[number % len(COLOURS)]


def hatch(number: int) -> str:
    """Pattern of the expert or series with this number; changes when the colours begin again."""
    return HATCHES[(number + number // len(COLOURS)) % len(HATCHES)]


def finish(fig: Figure) -> Figure:
    """Detach a figure from pyplot, so that a notebook does not draw it a second time by itself."""
    plt.close(fig)
    return fig
