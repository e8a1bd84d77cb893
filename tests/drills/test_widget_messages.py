"""What a hostile page sends to each widget: the widget stays as it was, says why, and works on."""

import math
import re
from pathlib import Path

import pytest

from moe_lab import widgets
from moe_lab.widgets import refusing
from moe_lab.widgets.refusing import measure

from ..soak.makers import MAKERS

FOLDER = Path(widgets.__file__).parent
MARKUP = "<img src=x onerror=alert(1)></script><b>"
HOSTILE = {
    "not a number": math.nan,
    "infinite": -math.inf,
    "huge": 10**400,
    "negative": -(2**63),
    "a fraction": 0.1234567,
    "true": True,
    "nothing": None,
    "words": MARKUP,
    "half a character": "\ud800",
    "an object": {"number": {"verb": "start"}, "toString": 1},
    "nested": [[[[[[[]]]]]]],
    "ragged": [[1.0], [2.0, 3.0], "x"],
    "a list of not a number": [[math.nan, 1.0]],
    "too long": "x" * 5_001,
    "too many": [0] * 5_001,
}


def send(widget, state):
    """As the kernel gets it from a page: the comm's own message."""
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})


def state_of(widget):
    return {name: getattr(widget, name) for name in widget.keys if name != "refused"}


@pytest.fixture(scope="module")
def made():
    """One widget of each class, made when it is asked for."""
    found = {}
    yield lambda name: found.setdefault(name, MAKERS[name]())
    for widget in found.values():
        widget.close()


@pytest.mark.parametrize("name", widgets.__all__)
def test_no_message_breaks_a_widget(name, made, monkeypatch):
    """Every value for every trait of the reader's; what is taken is valid, what is not leaves no trace."""
    monkeypatch.setattr(refusing, "MOST_NUMBERS", 5_000)
    widget = made(name)
    start = state_of(widget)
    for trait in widget.of_the_reader:
        for what, value in HOSTILE.items():
            before = state_of(widget)
            send(widget, {trait: value})
            after = state_of(widget)
            if widget.refused:
                assert widget.refused.startswith("Refused: ") and len(widget.refused) <= 300
                assert after == before, (trait, what)
            elif after != before:
                measure({one: after[one] for one in widget.of_the_reader})  # whatever it took is finite
                assert repr(widget).startswith(f"{name}: "), (trait, what)
                send(widget, {one: start[one] for one in widget.of_the_reader if after[one] != start[one]})
                assert not widget.refused, widget.refused
    send(widget, {})
    assert not widget.refused, "a welcome message takes the sentence away"


@pytest.mark.parametrize("name", widgets.__all__)
def test_what_is_the_kernels_stays_the_kernels(name, made):
    """A page may set no trait that only Python writes, no attribute that is no trait, and no part of the base class."""
    widget = made(name)
    others = {*widget.traits(), "no_such_trait", "_given", "_race", "__class__", ""} - set(widget.of_the_reader)
    before = state_of(widget)
    for trait in others:
        send(widget, {trait: "words"})
        assert widget.refused.startswith(f"Refused: {trait!r} is not the reader's to change"), trait
        assert state_of(widget) == before


@pytest.mark.parametrize("name", widgets.__all__)
def test_a_page_may_change_what_its_module_changes(name, made):
    """Every trait that the Python class leaves to the reader is set by the module, or a control of its name."""
    widget = made(name)
    assert set(widget.of_the_reader) <= set(widget.keys) and widget.of_the_reader
    file = next(file for file in FOLDER.glob("*.js") if file.read_text() == widget._esm)
    for trait in re.findall(r"model\.set\(\"(\w+)\"", file.read_text()):
        assert trait in widget.of_the_reader, f"{file.name} sets {trait}"


@pytest.mark.parametrize(
    ("name", "state", "says"),
    [
        ("RouteOneBatch", {"num_experts": 2, "top_k": 8}, "top_k must lie in 1..2, got 8"),
        ("RouteOneBatch", {"logits": [[1.0, 2.0]] * 99}, "logits must have a row for each of the"),
        ("RouteOneBatch", {"labels": ["x"]}, "'labels' is not the reader's to change, only logits, num_experts"),
        ("CapacityBins", {"num_experts": 2, "top_k": 3}, "top_k must be in 1..2, got 3"),
        ("CapacityBins", {"skew": math.nan}, "numbers must be finite, got nan"),
        ("CapacityBins", {"tokens": True}, "tokens must be no truth value, got True"),
        ("AllToAllBoard", {"homes": [99]}, "a rank for each expert; got [99]"),
        ("TileMap", {"block_m": 48}, "block_m must be one of 16, 32, 64, 128; got 48"),
        ("TextView", {"text": "x" * 10_000_000}, "text must have at most 1,000,000 characters and numbers"),
        ("TextView", {"pieces": [MARKUP]}, "'pieces' is not the reader's to change, only text, layer, slot"),
        ("Race", {"wish": {"verb": "start"}}, "the number of a wish must be a whole number"),
        ("Race", {"wish": {"number": 1, "verb": MARKUP}}, "wish must have a verb, one of start, stop, start over"),
        ("Race", {"shorter": 99, "wish": {"number": 7, "verb": "start"}}, "shorter must be one of"),
        ("TracePlayer", {"bar": [0, 10**9]}, "bar[1] must be in 0.."),
        ("MemoryTracer", {"program": 10**9}, "program must lie in 0.."),
        ("Accountant", {"_esm": "alert(1)"}, "'_esm' is not the reader's to change"),
    ],
)
def test_a_refusal_says_what_and_changes_nothing(name, state, says, made):
    widget = made(name)
    before = state_of(widget)
    send(widget, state)
    assert says in widget.refused
    assert state_of(widget) == before
    assert getattr(widget, "_race", None) is None, "nothing was started on the way"


def test_the_page_gets_the_present_values_back(made, monkeypatch):
    widget, messages = made("CapacityBins"), []
    monkeypatch.setattr(widget, "send_state", lambda key=None: messages.append(key))
    send(widget, {"tokens": 24, "top_k": 99})
    assert ["tokens", "top_k"] in messages


def test_ones_become_what_the_trait_has(made):
    widget = made("TileMap")
    send(widget, {"launch_cost": 1, "block_m": 64.0})
    assert not widget.refused
    assert type(widget.launch_cost) is float and type(widget.block_m) is int


def test_observers_that_fail_take_nothing_with_them(made, monkeypatch):
    """A setting that is welcome, and a method of ours that then breaks: the state is as before, and the page hears."""
    widget = made("CapacityBins")

    def fail(_change):
        raise RuntimeError("no such place")

    widget.observe(fail, "seed")
    before = widget.seed
    send(widget, {"seed": before + 1})
    widget.unobserve(fail, "seed")
    assert widget.seed == before and widget.refused == "Refused: no such place"


def test_a_message_that_is_no_state_is_refused(made):
    widget = made("CapacityBins")
    for state in ([1, 2], "words", 7):
        send(widget, state)
        assert widget.refused.startswith("Refused: ")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.js")), ids=lambda file: file.stem)
def test_only_constant_text_becomes_html(file):
    """``PAGE`` stands outside of every function, before any model is there; all else goes in as text."""
    text = file.read_text()
    written = re.findall(r"(?:inner|outer)HTML\s*\+?=\s*(.*)|(insertAdjacentHTML|document\.write|srcdoc|eval\()", text)
    assert written == [("PAGE;", "")]
    assert re.search(r"^const PAGE = `", text, re.M)
    assert (
        '<p class="refused" role="alert"></p>' in text
        and '"refused"' in re.search(r"const TRAITS = .*?;", text, re.S)[0]
    )
