"""The clinic's figure: both lines are the data, told apart by colour, dash and marker; the sentence is true."""

import pytest

from moe_lab.figures import MAX_ALT
from moe_lab.plots.clinic import draw_symptom, say_symptom

DIAL, SICK, HEALTHY = [0, 1000, 2000], [1.0, 2.0, -3.0], [1.0, 2.0005, 5.0]


def test_lines_are_the_data_and_look_different():
    axes = draw_symptom(DIAL, SICK, HEALTHY, "tokens", "loss").axes[0]
    patient, healthy = axes.lines
    assert [list(line.get_xdata()) for line in axes.lines] == [DIAL, DIAL]
    assert list(patient.get_ydata()) == SICK and list(healthy.get_ydata()) == HEALTHY
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(patient, look)() != getattr(healthy, look)()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens", "loss")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["the patient", "healthy"]


def test_the_sentence_names_ends_and_where_they_part():
    said = say_symptom(DIAL, SICK, HEALTHY, "tokens", "loss", "{:.1f}".format)
    assert said == (
        "Loss over tokens: patient 1.0 and healthy 1.0 at 0, patient -3.0 and healthy 5.0 at 2,000. "
        "They differ from 2,000 on."
    )
    assert len(said) < MAX_ALT
    assert say_symptom(DIAL, SICK, SICK, "x", "y").endswith("They do not differ.")


@pytest.mark.parametrize("draw", [draw_symptom, say_symptom])
def test_lines_of_other_lengths_are_refused(draw):
    with pytest.raises(ValueError, match="equally long and not empty, got 3, 3 and 2 values"):
        draw(DIAL, SICK, HEALTHY[:2], "x", "y")
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        draw([], [], [], "x", "y")
