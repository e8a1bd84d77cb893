"""Figures that a reader, a screen reader and a test all see: a picture, and a sentence computed from its data."""

import base64
import html
import io

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

MAX_ALT = 600
_count = 0


def restart_numbering() -> None:
    """Make the next figure Figure 1 (``ml.start`` does this)."""
    global _count
    _count = 0


def show(fig: Figure, alt: str, caption: str) -> None:
    """Display a figure with its alt text and caption, and close it.

    The output holds ``text/plain``, "Figure 3. <alt>", and ``text/html`` with the picture. nbval compares the first, so
    a figure whose data changed fails the test although its pixels are never looked at; a screen reader reads the same
    sentence. So compute ``alt`` from the data: ``f"Bar chart of load; the busiest expert has {load.max()}."``

    Example:
        >>> fig, axes = plt.subplots()
        >>> show(fig, "An empty pair of axes.", "Nothing yet.")  # doctest: +ELLIPSIS
        Figure ...

    Raises TypeError for anything but a matplotlib figure; ValueError for an alt text or caption that is empty, or an
    alt text over 600 characters.
    """
    global _count
    if not isinstance(fig, Figure):
        raise TypeError(f"fig must be a matplotlib Figure, got {type(fig).__name__}")
    for name, text in (("alt", alt), ("caption", caption)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a sentence about the figure, got {text!r}")
    if len(alt) > MAX_ALT:
        raise ValueError(f"alt must be at most {MAX_ALT} characters, got {len(alt)}; say the finding, not the data")
    _count += 1
    bundle = mime_bundle(fig, alt, f"Figure {_count}. {caption}", f"Figure {_count}. {alt}")
    plt.close(fig)
    if get_ipython() is None:  # a terminal shows no picture, but the finding is a sentence
        print(bundle["text/plain"])
    else:
        display(bundle, raw=True)


def mime_bundle(fig: Figure, alt: str, caption: str, plain: str) -> dict[str, str]:
    """The picture as HTML with alt text, beside the same finding as plain text."""
    png = io.BytesIO()
    # no version inside, so that equal data give equal bytes; optimised, since every figure is kept in a notebook
    fig.savefig(png, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    data = base64.b64encode(png.getvalue()).decode()
    return {
        "text/plain": plain,
        "text/html": (
            f'<figure style="margin:0"><img alt="{html.escape(alt, quote=True)}" style="max-width:100%" '
            f'src="data:image/png;base64,{data}"/><figcaption>{html.escape(caption)}</figcaption></figure>'
        ),
    }
