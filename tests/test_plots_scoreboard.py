"""Figures of claims tell the truth: bands where they were claimed, marks where they were found, else words."""

import pytest
from matplotlib.patches import Rectangle

from moe_lab.plots.scoreboard import (
    LOOKS,
    Strip,
    draw_baselines,
    draw_shares,
    draw_strips,
    say_baselines,
    say_shares,
    say_strips,
    whole_gain,
)
from moe_lab.scoreboard.facts import KINDS

SECONDS = Strip("Switch, seconds", "times less time", 7, None, {"measured": [6.0, 6.2], "printed": [4.7]})
FLOPS = Strip("ours, FLOPs", "times the FLOPs", 4, 8, {"counted": [4.0, 16.0]})
NOTHING = Strip("AMD", "times faster", 10, None, {})
TIMES = {"loop": 8.0, "ours": 2.0, "dense": 1.0}


def band(axes):
    (found,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return found.get_x(), found.get_x() + found.get_width()


def test_every_claim_has_an_axis_of_its_own_with_its_band_and_its_marks():
    fig = draw_strips([SECONDS, FLOPS, NOTHING])
    seconds, flops, nothing = fig.axes
    assert band(flops) == (4, 8) and band(seconds)[0] == 7 and band(seconds)[1] == seconds.get_xlim()[1]
    assert [list(line.get_xdata()) for line in seconds.lines] == [[6.0, 6.2], [4.7]]
    assert [list(line.get_xdata()) for line in flops.lines] == [[4.0, 16.0]]
    assert [axes.get_xlabel() for axes in fig.axes] == ["times less time", "times the FLOPs", "times faster"]
    assert not nothing.lines and [text.get_text() for text in nothing.texts] == ["not measured"]
    assert not seconds.get_shared_x_axes().joined(seconds, flops)
    words = [text.get_text() for text in fig.legends[0].get_texts()]
    assert words == ["claimed", "measured", "printed", "counted"]
    looks = {(line.get_marker(), line.get_color()) for axes in fig.axes for line in axes.lines}
    assert len(looks) == 3


def test_a_way_of_finding_looks_the_same_in_every_figure():
    assert tuple(LOOKS) == KINDS
    (alone,) = draw_strips([Strip("a", "x", 1, 2, {"printed": [4.7]})]).axes
    (_, beside) = draw_strips([SECONDS]).axes[0].lines
    assert (alone.lines[0].get_marker(), alone.lines[0].get_color()) == (beside.get_marker(), beside.get_color())


def test_no_axis_reaches_far_below_zero_where_no_value_does():
    (axes,) = draw_strips([Strip("dropped", "share", None, 0.01, {"measured": [0.0, 0.09]})]).axes
    assert -0.01 < axes.get_xlim()[0] < 0
    (axes,) = draw_strips([Strip("change", "share", -1, 1, {"measured": [0.0]})]).axes
    assert axes.get_xlim()[0] < -1


def test_a_single_number_is_a_band_that_can_be_seen():
    (axes,) = draw_strips([Strip("variance", "cv", None, 0, {"measured": [0.0, 0.7]})]).axes
    assert band(axes)[1] == 0
    (axes,) = draw_strips([Strip("exact", "x", 5, 5, {"measured": [5.0]})]).axes
    assert band(axes)[0] < 5 < band(axes)[1]


def test_the_words_name_every_claim():
    said = say_strips([SECONDS, FLOPS, NOTHING, Strip("cv", "cv", None, 0, {"measured": [0.0]})])
    assert "Switch, seconds: claimed 7 or more, measured 6 to 6.2, printed 4.7." in said
    assert "ours, FLOPs: claimed 4 to 8, counted 4 to 16." in said and "AMD: claimed 10 or more, not measured." in said
    assert "cv: claimed 0, measured 0." in said


@pytest.mark.parametrize("strips", [[], [NOTHING] * 11])
def test_too_few_and_too_many_claims_are_refused(strips):
    with pytest.raises(ValueError, match="strips must hold 1"):
        draw_strips(strips)


def test_bars_begin_at_one_and_end_at_the_ratio():
    (axes,) = draw_baselines(TIMES, "ours").axes
    ends = [(bar.get_x(), round(bar.get_x() + bar.get_width(), 9)) for bar in axes.patches]
    assert ends == [(1, 4.0), (1, 1.0), (1, 0.5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["loop", "ours", "dense"]
    assert [text.get_text() for text in axes.texts] == ["4.0x", "1.0x", "0.5x"]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 0.5 and axes.get_xlim()[1] > 4
    assert say_baselines(TIMES, "ours").endswith("loop 4.0x, dense 0.5x.")


@pytest.mark.parametrize("times", [{"ours": 1.0}, {"loop": 1.0, "dense": 2.0}, {"ours": 1.0, "loop": 0.0}])
def test_ratios_without_two_times_are_refused(times):
    with pytest.raises(ValueError, match="times_ms must hold times above 0 of 'ours'"):
        draw_baselines(times, "ours")


def test_the_gain_of_the_whole_is_amdahls():
    (axes,) = draw_shares([10, 6], 0.3).axes
    ten, six, marked = axes.lines
    assert (
        ten.get_ydata()[0] == 1 and ten.get_ydata()[-1] == pytest.approx(10) and six.get_ydata()[-1] == pytest.approx(6)
    )
    assert six.get_ydata()[30] == pytest.approx(100 / 75) and set(marked.get_xdata()) == {0.3}
    assert ten.get_linestyle() != six.get_linestyle()
    assert whole_gain(6, 0.3) == pytest.approx(4 / 3) and "1.33x for a part that is 6x faster" in say_shares([6], 0.3)


@pytest.mark.parametrize(("ratios", "share"), [([], 0.1), ([10], 1.5)])
def test_no_ratio_and_no_share_are_refused(ratios, share):
    with pytest.raises(ValueError, match="ratios must hold at least one"):
        draw_shares(ratios, share)
