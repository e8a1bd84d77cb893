"""Widgets without a kernel: their first state, module and style sheet, ready to be written into a page."""

import linecache
from dataclasses import dataclass
from pathlib import Path

from moe_lab.site.programs import WidgetProgram

NOT_OURS = ("layout", "tabbable", "tooltip")  # what ipywidgets gives every widget, and no module of ours reads


@dataclass(frozen=True)
class LiveWidget:
    """One widget of a page: the name of its class, what its module reads, and the module itself."""

    name: str
    traits: dict
    module: str
    style: str


def make_widget(program: WidgetProgram, lesson: Path) -> LiveWidget:
    """Run a lesson's statements up to a widget, and take down what the widget would send to a browser.

    Raises ValueError if the widget now says something else than the notebook does: one of the two is out of date, or
    the widget needs what was measured while the lesson ran.
    """
    widget = _evaluate(program, f"<{lesson.name}, cell {program.cell}>")
    if repr(widget) != program.sentence:
        raise ValueError(
            f"{lesson.name}, cell {program.cell}: the widget that the site would show says {repr(widget)!r}, the "
            f"notebook {program.sentence!r}; run `make notebooks ONLY={lesson.name[:2]}` first"
        )
    return take_down(widget)


def take_down(widget) -> LiveWidget:
    """What a page needs of an anywidget: its own synchronised traits, its ES module, its style sheet.

    Example:
        >>> from moe_lab.widgets import CapacityBins
        >>> taken = take_down(CapacityBins(tokens=8, num_experts=4, top_k=1))
        >>> taken.name, taken.traits["tokens"], "layout" in taken.traits
        ('CapacityBins', 8, False)
    """
    state = widget.get_state()
    own = {name: state[name] for name in sorted(widget.keys) if not name.startswith("_") and name not in NOT_OURS}
    return LiveWidget(type(widget).__name__, own, str(widget._esm), str(widget._css))


def _evaluate(program: WidgetProgram, name: str):
    """The widget; under a name that `inspect` finds the source by, since Triton reads that of its kernels."""
    text = f"{program.source}\n{program.expression}\n"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    # a lesson of this repository, whose code whoever opens it runs as well
    exec(compile(program.source, name, "exec"), scope)  # noqa: S102
    return eval(compile(program.expression, name, "eval"), scope)  # noqa: S307
