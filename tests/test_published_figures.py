"""Our counts beside what was published: as printed, within half a percent, or different for a reason that is named."""

import pytest

from moe_lab.accounting.compare import Figure, compare, describe
from moe_lab.accounting.parts import Attention
from moe_lab.models import published_models


@pytest.mark.parametrize("name", published_models())
def test_every_published_figure_is_reproduced_or_its_difference_explained(name):
    counts, figures = compare(name)
    assert counts.active_params <= counts.total_params
    for figure in figures:
        assert figure.verdict != "differs", describe([figure])
        assert (figure.reason is not None) == (figure.verdict == "differs, explained"), describe([figure])


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("mixtral-8x7b", (46_702_792_704, 12_879_925_248)),
        ("deepseek-v3", (671_026_404_352, 36_625_603_584)),
        ("gpt-oss-120b", (116_829_156_672, 5_132_849_472)),
        ("olmoe-1b-7b", (6_919_161_856, 1_282_017_280)),
    ],
)
def test_known_totals(name, totals):
    counts, _ = compare(name)
    assert (counts.total_params, counts.active_params) == totals


@pytest.mark.parametrize(
    ("name", "billions"),
    [("switch-base-128", 122.5), ("switch-large-128", 426.8), ("switch-xxl-128", 6268), ("switch-c-2048", 890.5)],
)
def test_what_the_switch_paper_leaves_out_makes_the_difference(name, billions):
    """The reason in data/models, computed: which parts, and how many tokens, give the printed FLOPs."""
    counts, (_, figure) = compare(name)
    by_component = counts.flops_per_sequence_by_component(512, decoder_tokens=114)
    a = counts.architecture
    left_out = by_component["output"] + by_component["router"]
    lengths = {"encoder": 512, "decoder": 114}
    for part in a.parts:
        if isinstance(part, Attention) and part.queries == "decoder":
            left_out += part.flops_per_pair * part.pairs(114, lengths[part.keys], skip_masked=True)
    attention = [weight for weight in a.weights if weight.component == "attention" and weight.use == "product"]
    on_encoder = sum(weight.flops_per_token for weight in attention if weight.stream == "encoder")
    left_out += (512 - 114) * on_encoder // 3  # 2 of the 6 products of a layer that see the encoder's tokens
    assert (figure.counted - left_out) / 1e9 == pytest.approx(billions, rel=1e-3)
    assert (figure.counted - left_out) / figure.published == pytest.approx(1, abs=0.013)


@pytest.mark.parametrize(
    ("counted", "reason", "verdict"),
    [
        (46_749, None, "equal as printed"),
        (46_650, None, "equal as printed"),
        (46_900, None, "within 0.5 %"),
        (47_000, None, "differs"),
        (46_400, "cut off", "differs, explained"),
    ],
)
def test_verdicts(counted, reason, verdict):
    figure = Figure("total_params", published=46_700, counted=counted, step=100, reason=reason)
    assert figure.verdict == verdict
    assert verdict in describe([figure]) and f"{counted:,}" in describe([figure])
    assert figure.difference_percent == pytest.approx(100 * (counted / 46_700 - 1))


def test_a_single_digit_is_said_to_be_one():
    figure = Figure("total_params", published=10**12, counted=1_026 * 10**9, step=10**12)
    assert figure.verdict == "equal to one digit"
