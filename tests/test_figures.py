"""show: the same finding for eyes, ears and tests."""

import re
import sys

import matplotlib.pyplot as plt
import pytest

from moe_lab import show
from moe_lab.figures import mime_bundle, restart_numbering


def bars(load):
    fig, axes = plt.subplots()
    axes.bar(range(len(load)), load)
    return fig


def test_plain_text_is_the_finding(capsys):
    restart_numbering()
    show(bars([1, 2]), "Busiest expert has 2.", "Load.")
    show(bars([1, 2]), "Again 2.", "Load.")
    assert capsys.readouterr().out == "Figure 1. Busiest expert has 2.\nFigure 2. Again 2.\n"
    assert plt.get_fignums() == []


def test_html_has_alt_text_and_caption_escaped():
    bundle = mime_bundle(bars([1]), 'Is "3" < 4 & true?', "Figure 1. <b>", "plain")
    assert 'alt="Is &quot;3&quot; &lt; 4 &amp; true?"' in bundle["text/html"]
    assert "<figcaption>Figure 1. &lt;b&gt;</figcaption>" in bundle["text/html"]
    assert re.search(r'src="data:image/png;base64,[A-Za-z0-9+/=]{500,}"', bundle["text/html"])
    assert bundle["text/plain"] == "plain"
    plt.close("all")


def test_equal_data_equal_bytes_and_other_data_other_bytes():
    one, same, other = (mime_bundle(bars(load), "a", "c", "p")["text/html"] for load in ([1, 2], [1, 2], [2, 1]))
    assert one == same != other
    plt.close("all")


def test_in_a_notebook_it_displays(capsys, monkeypatch):
    module, published = sys.modules[mime_bundle.__module__], []  # the name moe_lab.figures is the function
    monkeypatch.setattr(module, "get_ipython", lambda: "a notebook")
    monkeypatch.setattr(module, "display", lambda data, raw: published.append((data, raw)))
    restart_numbering()
    show(bars([3]), "Three.", "A bar.")
    ((bundle, raw),) = published
    assert raw and set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == "Figure 1. Three."
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("fig", "a", "c"), TypeError, "fig must be a matplotlib Figure, got str"),
        ((None, "", "c"), ValueError, "alt must be a sentence about the figure, got ''"),
        ((None, "a", "  "), ValueError, "caption must be a sentence about the figure, got '  '"),
        ((None, "a" * 601, "c"), ValueError, "alt must be at most 600 characters, got 601"),
    ],
)
def test_refuses(arguments, error, says, unchecked_shapes):
    fig = bars([1])
    with pytest.raises(error, match=says):
        show(*(fig if argument is None else argument for argument in arguments))
    plt.close("all")
