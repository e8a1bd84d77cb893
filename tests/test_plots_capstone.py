"""The figure of the capstone: a field a design, letters that the legend spells, a sentence that is true."""

import pytest
from matplotlib.colors import to_hex

from moe_lab.figures import MAX_ALT
from moe_lab.plots import capstone as plots

GRID = [[[], ["memory", "mass"], ["mass"]], [["decode"], [], []]]
GIVEN = (GRID, [8, 16, 3000], [2, 4], ("experts", "top_k"))


def test_each_field_says_what_is_broken():
    axes = plots.draw_region(*GIVEN).axes[0]
    said = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert said == {(0, 0): "ok", (1, 0): "em", (2, 0): "m", (0, 1): "d", (1, 1): "ok", (2, 1): "ok"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16", "3,000"]


def test_looks_are_told_apart_without_colour():
    patches = plots.draw_region(*GIVEN).axes[0].patches
    looks = [(to_hex(patch.get_facecolor()), patch.get_hatch()) for patch in patches]
    assert looks[0] == looks[4] == looks[5] == ("#ffffff", None)
    assert len({looks[number] for number in (1, 2, 3)}) == 3
    assert len({looks[number][1] for number in (1, 2, 3)}) == 3


def test_the_legend_spells_every_letter():
    (legend,) = plots.draw_region(*GIVEN).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "ok: every budget kept",
        "d: decode",
        "m: mass",
        "e: memory",
    ]


def test_the_sentence_counts():
    said = plots.say_region(*GIVEN)
    assert said == (
        "3 of 6 designs keep every budget: top_k 2 with experts 8; top_k 4 with experts 16, 3,000. "
        "Of the others memory is broken worst in 1, mass in 1, decode in 1."
    )
    assert len(said) <= MAX_ALT
    assert plots.say_region([[["a"]]], [1], [1], ("x", "y")) == (
        "0 of 1 designs keep every budget. Of the others a is broken worst in 1."
    )
    assert plots.say_region([[[]]], [1], [1], ("x", "y")) == "1 of 1 designs keeps every budget: y 1 with x 1."


@pytest.mark.parametrize("broken", [[], [[]], [[[]], [[]]], [[[], []]]])
def test_another_shape_is_refused(broken):
    for function in (plots.draw_region, plots.say_region):
        with pytest.raises(ValueError, match="broken must be 1 rows of 1"):
            function(broken, [1], [1], ("x", "y"))
