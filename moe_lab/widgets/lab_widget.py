"""What all widgets of the lab share: a page beside the Python file, and nothing left behind once they are closed."""

from pathlib import Path

from moe_lab.widgets.refusing import RefusingWidget


class LabWidget(RefusingWidget):
    """A widget whose class names two files, ``_esm`` and ``_css``, and of which nothing stays after `close`.

    The files are read here and handed on as text: a path anywidget would turn into a list of those who want to hear
    when it changes, and that list holds every widget that was ever made. Nor does ipywidgets close the model of the
    layout that it gives each widget, so this class does.

    Example:
        >>> from ipywidgets.widgets.widget import _instances
        >>> from moe_lab.widgets import CapacityBins
        >>> before = len(_instances)
        >>> CapacityBins(tokens=8, num_experts=4, top_k=1).close()
        >>> len(_instances) - before
        0
    """

    _own_layout = None  # the model that is this widget's alone: a reader may give several widgets one layout

    def __init_subclass__(cls, **options):
        for name, value in [*vars(cls).items()]:
            if name in ("_esm", "_css") and isinstance(value, Path):
                setattr(cls, name, value.read_text(encoding="utf-8"))
        super().__init_subclass__(**options)

    def __init__(self, **traits):
        super().__init__(**traits)
        self._own_layout = self.layout

    def close(self) -> None:
        """Let go of the page; once is enough, and twice does no harm."""
        super().close()
        if self._own_layout is not None:
            self._own_layout.close()
