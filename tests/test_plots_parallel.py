"""Figures of expert parallelism: fields and bars are the data, the slowest is marked, sentences are true."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from moe_lab.figures import MAX_ALT
from moe_lab.plots import parallel as plots
from moe_lab.plots.style import COLOURS

SENT = torch.tensor([[7_000_000, 1_500_000, 0], [12_000_000, 0, 2_000_000], [500_000, 3_000_000, 9_000_000]])
TIMES = {"even": torch.tensor([2.0, 2.0, 2.0]).double(), "hot": torch.tensor([1.0, 1.0, 4.0]).double()}
LINES = {"fast": [(8, 1.0), (64, 1.5), (512, 2.0)], "one machine": [(8, 4.0)]}


def test_bytes_stand_in_their_fields_and_what_stays_is_hatched():
    fig = plots.draw_bytes(SENT)
    axes = fig.axes[0]
    (image,) = axes.get_images()
    assert torch.equal(torch.tensor(image.get_array().data), SENT / 1e6)
    assert image.get_clim() == (0, 12), "the scale is of what crosses links"
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert [[texts[to, rank] for to in range(3)] for rank in range(3)] == [
        ["7", "1.5", "0"],
        ["12", "0", "2"],
        ["0.5", "3", "9"],
    ]
    hatched = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert hatched == [(rank - 0.5, rank - 0.5) for rank in range(3)]
    assert fig.axes[1].get_ylabel() == "MB"


def test_bytes_of_many_ranks_have_no_numbers():
    assert not plots.draw_bytes(torch.ones(17, 17, dtype=torch.int64)).axes[0].texts


def test_the_sentence_about_bytes_leaves_out_what_stays():
    assert plots.say_bytes(SENT) == (
        "Bytes from 3 ranks to 3: 19 MB cross links, 6.33 MB a rank. Most is sent by rank 1, 14 MB, "
        "and received by rank 0, 12.5 MB."
    )
    assert "0 bytes cross links" in plots.say_bytes(torch.eye(2, dtype=torch.int64))


def test_every_rank_has_its_bar_and_the_slowest_its_own_look():
    fig = plots.draw_rank_times(TIMES)
    for axes, by_rank in zip(fig.axes, TIMES.values(), strict=True):
        assert [bar.get_height() for bar in axes.patches] == by_rank.tolist()
        slowest = int(by_rank.argmax())
        looks = [(to_hex(bar.get_facecolor()), bool(bar.get_hatch())) for bar in axes.patches]
        assert looks[slowest] == (COLOURS[5].lower(), True)
        assert all(look == (COLOURS[0].lower(), False) for rank, look in enumerate(looks) if rank != slowest)
        assert axes.lines[0].get_ydata()[0] == pytest.approx(float(by_rank.mean()))
    assert fig.axes[1].texts[0].get_text() == "rank 2: 4.00 ms"
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()
    assert fig.axes[0].get_ylabel() == "ms, predicted"


def test_the_sentence_about_times_names_mean_and_slowest():
    assert plots.say_rank_times(TIMES) == (
        "Predicted time by rank. even: mean 2.00 ms, rank 0 is slowest with 2.00 ms, 1.00 times the mean. "
        "hot: mean 2.00 ms, rank 2 is slowest with 4.00 ms, 2.00 times the mean."
    )
    assert plots.say_rank_times({"nothing": torch.zeros(2).double()}).endswith("rank 0 is slowest with 0.00 ms.")


def test_lines_over_ranks_are_the_points():
    axes = plots.draw_over_ranks(LINES).axes[0]
    found = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert found == LINES
    assert len({(line.get_marker(), line.get_linestyle(), line.get_color()) for line in axes.lines}) == 2
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.xaxis.get_majorticklocs().tolist() == [8, 64, 512]
    assert plots.say_over_ranks(LINES) == (
        "Predicted time over ranks. fast: 1.00 ms with 8, 2.00 with 512. one machine: 4.00 ms with 8."
    )


def test_alt_texts_are_short_enough():
    many = torch.full((64, 64), 123_456_789)
    assert len(plots.say_bytes(many)) < MAX_ALT
    assert len(plots.say_rank_times({f"a name of many words {n}": torch.ones(64).double() for n in range(4)})) < MAX_ALT


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.draw_bytes(torch.ones(1, 1, dtype=torch.int64)), "sent must be of at least two ranks, got 1"),
        (lambda: plots.say_bytes(torch.ones(1, 1, dtype=torch.int64)), "sent must be of at least two ranks, got 1"),
        (lambda: plots.draw_rank_times({}), "times must hold at least one"),
        (lambda: plots.say_rank_times({}), "times must hold at least one"),
        (lambda: plots.draw_over_ranks({}), "lines must hold at least one"),
        (lambda: plots.say_over_ranks({}), "lines must hold at least one"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
