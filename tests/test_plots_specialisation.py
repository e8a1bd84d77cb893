"""Figures of what experts learn: bars, fields and lines are the data, chance is drawn, sentences are true."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from moe_lab.figures import MAX_ALT
from moe_lab.plots import specialisation as plots
from moe_lab.plots.specialisation import Finding
from moe_lab.plots.style import COLOURS
from moe_lab.specialisation import Share

FINDINGS = [
    Finding("byte", 2.5, (2.4, 2.61), (0.010, 0.012)),
    Finding("domain", 0.1, None, (0.03, 0.07)),
    Finding("bare", 0.02),
]
NEVER = -float("inf")
POINTS = torch.tensor([[2.0, NEVER, 0.1], [-1.5, 3.0, 0.2], [float("nan")] * 3]).double()
NAMES, AS_CHANCE = ["digit", "space", "other"], POINTS.abs() < 0.5
APART = torch.tensor([[0, 1, 4, 5], [1, 0, 6, 7], [4, 6, 0, 3], [5, 7, 3, 0]]).double() / 10
LINES = {"layer 0": [(4, Share(0.5, 0.4)), (64, Share(0.1, 0.0))], "layer 3": [(4, Share(0.6, 0.3))]}


def test_bars_are_the_bits_and_bands_are_chance():
    axes = plots.draw_findings(FINDINGS).axes[0]
    bars = [patch for patch in axes.patches if to_hex(patch.get_facecolor()) == COLOURS[0].lower()]
    bands = [patch for patch in axes.patches if patch.get_hatch() and patch.get_width()]
    assert [bar.get_width() for bar in bars] == [2.5, 0.1, 0.02]
    assert [(band.get_x(), band.get_x() + band.get_width()) for band in bands] == [
        pytest.approx((0.010, 0.012)),
        pytest.approx((0.03, 0.07)),
    ]
    assert [list(line.get_xdata()) for line in axes.lines] == [[2.4, 2.61]]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] == pytest.approx(0.005)
    assert {text.get_text() for text in axes.figure.legends[0].get_texts()} == {"found", "chance, 95 %"}


def test_chance_of_nothing_is_drawn_at_the_edge():
    axes = plots.draw_findings([Finding("x", 0.5, (0.0, 0.9), (0.0, 0.0))]).axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.25, 0.9]
    assert [patch.get_x() for patch in axes.patches if patch.get_hatch() and patch.get_width()] == [0.25]


def test_the_sentence_about_bits():
    assert plots.say_findings(FINDINGS) == (
        "Bits that experts say about labels. byte: 2.5, 95 % interval 2.4 to 2.6, chance 0.01 to 0.01. "
        "domain: 0.1, chance 0.03 to 0.07. bare: 0.02."
    )


def test_fields_have_their_doublings_and_chance_is_hatched():
    axes = plots.draw_pointwise(POINTS, NAMES, AS_CHANCE).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["2.0", "never", "", "-1.5", "3.0", "", "", "", ""]
    hatched = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert hatched == [(1.5, -0.5), (1.5, 0.5)]
    shown = torch.tensor(axes.get_images()[0].get_array().filled(float("nan")))
    assert shown[0].tolist() == pytest.approx([2.0, -4.0, 0.1]) and bool(shown[2].isnan().all())
    assert not plots.draw_pointwise(torch.zeros(20, 20).double(), ["x"] * 20, torch.zeros(20, 20) > 0).axes[0].texts


def test_the_sentence_about_fields_names_the_strongest():
    assert plots.say_pointwise(POINTS, NAMES, AS_CHANCE) == (
        "Labels by expert, in doublings. Strongest: expert 1 with space (8.0 times as often as by chance), expert 0 "
        "with digit (4.0 times as often as by chance). 1 of 9 pairs never met, 2 are as chance has them."
    )
    assert "Strongest: none." in plots.say_pointwise(torch.zeros(1, 2).double(), ["x"], torch.ones(1, 2) > 0)


def test_documents_are_framed_by_domain():
    axes = plots.draw_apart(APART, ["a", "a", "b", "b"]).axes[0]
    frames = [(patch.get_xy(), patch.get_width()) for patch in axes.patches]
    assert frames == [((-0.5, -0.5), 2), ((1.5, 1.5), 2)]
    assert axes.get_images()[0].get_array().tolist() == APART.tolist()
    assert plots.say_apart(APART, ["a", "a", "b", "b"]) == (
        "Divergence of loads of 4 documents, in bits. Between domains 0.550 on average; within a 0.100, b 0.300."
    )


def test_idle_lines_are_the_shares():
    axes = plots.draw_idle(LINES).axes[0]
    assert [(line.get_linestyle(), line.get_ydata().tolist()) for line in axes.lines] == [
        ("-", [50, 10]),
        ("--", [40, 0]),
        ("-", [60]),
        ("--", [30]),
    ]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    assert plots.say_idle(LINES) == (
        "Share of experts left idle. layer 0: with 4 tokens 50 % (chance 40 %), with 64 tokens 10 % (chance 0 %). "
        "layer 3: with 4 tokens 60 % (chance 30 %)."
    )


def test_alt_texts_are_short_enough():
    many = [Finding(f"{'position in the line'} {n}", 1.234567, (1.1, 1.3), (0.0123, 0.0234)) for n in range(6)]
    assert len(plots.say_findings(many)) < MAX_ALT
    assert len(plots.say_apart(torch.rand(12, 12).double(), [f"a domain {n // 2}" for n in range(12)])) < MAX_ALT


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.draw_findings([]), "findings must hold at least one"),
        (lambda: plots.say_findings([]), "findings must hold at least one"),
        (lambda: plots.draw_idle({}), "lines must hold at least one"),
        (lambda: plots.say_idle({}), "lines must hold at least one"),
        (lambda: plots.draw_pointwise(POINTS, ["x"], AS_CHANCE), "names must be one a label, got 1 for 3"),
        (lambda: plots.say_pointwise(POINTS, ["x"], AS_CHANCE), "names must be one a label, got 1 for 3"),
        (lambda: plots.draw_apart(APART, ["a"]), "domains must be one a document, got 1"),
        (lambda: plots.say_apart(APART, ["a", "b", "a", "b"]), "'a' comes in pieces"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
