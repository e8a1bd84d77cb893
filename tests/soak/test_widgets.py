"""Widgets that are made, shown and closed: no model, channel, listener, thread or object of one stays."""

import gc

import comm
import pytest
from ipywidgets import Layout
from ipywidgets.widgets import widget as ipywidgets

from moe_lab import widgets
from moe_lab.experiments import live

from ..test_widgets_race import ENDLESS
from .growth import WHOLE, repeat
from .makers import MAKERS
from .ranks import TEXT

pytestmark = pytest.mark.soak

ROUNDS, WARM = (96, 20) if WHOLE else (4, 2)


def test_there_is_one_of_each():
    assert [*MAKERS] == sorted(widgets.__all__)


@pytest.mark.parametrize("name", MAKERS)
def test_a_closed_widget_leaves_nothing(name):
    def open_and_close() -> None:
        widget = MAKERS[name]()
        shown = [widget._repr_mimebundle_(), widget._repr_mimebundle_()]  # two cells show it
        assert shown[0] == shown[1]
        widget.set_trait("tooltip", "changed")
        widget.close()

    before = what_is_there(name)
    repeat(name, open_and_close, ROUNDS, WARM)
    assert what_is_there(name) == before


def what_is_there(name: str) -> dict[str, int]:
    """Widgets of a class, and the models and channels of all: other tests leave some open."""
    gc.collect()
    return {
        "widgets": sum(type(one).__name__ == name for one in gc.get_objects()),
        "models": len(ipywidgets._instances),
        "channels": len(comm.get_comm_manager().comms),
    }


def test_a_layout_of_several_outlives_the_first():
    shared = Layout()
    first, second = (widgets.CapacityBins(tokens=8, num_experts=4, top_k=1) for _ in range(2))
    first.layout = second.layout = shared
    first.close()
    assert shared.comm is not None
    second.close()
    shared.close()


def test_races_end_with_their_widgets(monkeypatch):
    monkeypatch.setattr(live, "standard_library", lambda: TEXT)

    def race() -> None:
        widget = widgets.Race(preset=ENDLESS, num_experts=4)
        widget.start()
        widget.start_over()
        widget.close()
        widget.wait()

    repeat("Race, started twice", race, 96 if WHOLE else 4, 20 if WHOLE else 1)
