import pytest
import torch

from moe_lab.types import Routing
from moe_lab.widgets import TextView
from moe_lab.widgets.text_view import pieces_of


def read(text, layers=2, num_experts=4):
    """Byte b goes to expert b % 4 and its neighbour, one further in each layer."""
    first = torch.tensor(list(text.encode()))
    weights = torch.tensor([[0.75, 0.25]]).repeat(len(first), 1)
    return [
        Routing(
            torch.stack([(first + layer) % num_experts, (first + layer + 1) % num_experts], 1), weights, num_experts
        )
        for layer in range(layers)
    ]


def test_the_reading_is_what_read_returned():
    view = TextView(read, "abc")  # bytes 97, 98, 99
    assert view.experts == [[[1, 2], [2, 3], [3, 0]], [[2, 3], [3, 0], [0, 1]]]
    assert view.weights[0][0] == [0.75, 0.25]
    assert (view.pieces, view.num_experts, view.read_text, view.error) == (["a", "b", "c"], 4, "abc", "")


def test_load_counts_one_choice_or_all():
    view = TextView(read, "aab")
    assert view.load(0, slot=0) == [0, 2, 1, 0]
    assert view.load(0) == [0, 2, 3, 1]
    assert view.load(1, slot=1) == [1, 0, 0, 2]


def test_summary_follows_layer_and_slot():
    view = TextView(read, "aab")
    assert view.summary() == (
        "Layer 0, first choice: 3 bytes, busiest expert 1 takes 2 of 3 (67 %); experts 0 and 3 have none."
    )
    view.layer, view.slot = 1, -1
    assert view.summary() == ("Layer 1, all choices: 3 bytes, busiest expert 3 takes 3 of 6 (50 %); expert 1 has none.")
    view.layer, view.slot = 9, 9  # the reading has two layers and two choices: the last of each
    assert view.summary().startswith("Layer 1, second choice: 3 bytes, busiest expert 3 takes 2 of 3")


def test_a_new_text_is_read_again():
    asked = []
    view = TextView(lambda text: asked.append(text) or read(text), "one")
    view.text = "four"
    assert asked == ["one", "four"]
    assert (view.read_text, len(view.experts[0])) == ("four", 4)


def test_who_watches_sees_whole_readings():
    said = []
    view = TextView(read, "abc")
    view.observe(lambda change: said.append(view.summary()))
    for text in ("", "abcdefg", "a"):
        said.clear()
        view.text = text
        assert set(said) == {view.summary()}


def test_empty_text_is_a_sentence_and_reads_nothing():
    view = TextView(lambda text: pytest.fail("read was called"), "")
    assert view.summary() == "There is no text to read yet."
    assert (view.experts, view.pieces, view.error) == ([], [], "")


def test_long_text_is_cut_at_a_character():
    asked = []
    view = TextView(lambda text: asked.append(text) or read(text), "aé" * 4, max_bytes=5)
    assert asked == ["aéa"]  # the next é has two bytes and would end at 6
    assert view.summary().endswith("Only the first 4 of 12 bytes are shown.")


def test_an_error_in_read_is_a_sentence():
    def fail(text):
        if "!" in text:
            raise RuntimeError("no such\n  byte")
        return read(text)

    view = TextView(fail, "fine")
    view.text = "bad!"
    assert view.summary() == "This text could not be read: RuntimeError: no such byte"
    assert (view.experts, view.pieces) == ([], [])
    view.text = "good"
    assert view.summary().startswith("Layer 0, first choice: 4 bytes")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "read must return a list with one Routing a layer"),
        (["layer"], "read must return a list with one Routing a layer"),
        (None, "read must return a list with one Routing a layer"),
        (read("ab"), "read must return 3 tokens, one a byte"),
        (read("abc") + read("abc", num_experts=5), "the same num_experts and slots"),
    ],
)
def test_a_wrong_answer_of_read_is_a_sentence(answer, message):
    assert message in TextView(lambda text: answer, "abc").error


def test_empty_slots_count_nowhere():
    routing = Routing(torch.tensor([[1, -1], [0, 1]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 3)
    view = TextView(lambda text: [routing], "ab")
    assert view.load(0) == [1, 2, 0]
    assert view.load(0, slot=1) == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a b", ["a", "␣", "b"]),
        ("\r\n\t", ["␍", "⏎", "⇥"]),
        ("é€", ["é", "⋯", "€", "⋯", "⋯"]),
        ("🙂", ["🙂", "⋯", "⋯", "⋯"]),
        ("e\u0301", ["e", "◌\u0301", "⋯"]),
        ("\x07\u200d", ["U+0007", "U+200D", "⋯", "⋯"]),
        ("", []),
    ],
)
def test_each_byte_has_something_to_show(text, pieces):
    assert pieces_of(text, 200) == pieces
    assert len(pieces) == len(text.encode())


def test_half_an_emoji_is_read_as_a_question_mark():
    view = TextView(read, "a\ud83d")
    assert (view.pieces, view.error) == (["a", "?"], "")


def test_repr_and_plain_text_are_the_summary():
    view = TextView(read, "abc")
    assert repr(view) == f"TextView: {view.summary()}"
    data, _metadata = view._repr_mimebundle_()
    assert data["text/plain"] == repr(view)


@pytest.mark.parametrize("max_bytes", [0, 2001])
def test_max_bytes_is_checked(max_bytes):
    with pytest.raises(ValueError, match=rf"max_bytes must lie in 1\.\.2000, got {max_bytes}"):
        TextView(read, "abc", max_bytes=max_bytes)
