import ast
import json
import math

import pytest
import torch

from moe_lab.corpus import standard_library
from moe_lab.lm import LanguageModel, LanguageModelConfig
from moe_lab.specialisation import label_classes, mutual_information
from moe_lab.types import Routing
from moe_lab.widgets import WhoGoesWhere
from moe_lab.widgets.passages import MOST_BYTES, held_out_files, held_out_passages, passages_of
from moe_lab.widgets.who_goes_where import draw_orders, label_text, read_windows

CODE = "total = 0\nfor i in range(9):\n    total += i  # so far\n"


def routing_of(experts, num_experts=4):
    experts = torch.tensor(experts)
    return Routing(experts, torch.where(experts < 0, 0.0, 0.5), num_experts)


def read(text, num_experts=4):
    """Layer 0 knows the byte, layer 1 only the place."""
    data = text.encode()
    by_byte = [[byte % num_experts, (byte + 1) % num_experts] for byte in data]
    by_place = [[place % num_experts, (place + 2) % num_experts] for place in range(len(data))]
    return [routing_of(by_byte, num_experts), routing_of(by_place, num_experts)]


def made(texts=None, **settings):
    return WhoGoesWhere({"code": CODE, "sum": "1 + 2\n" * 6} if texts is None else texts, read, **settings)


def test_bits_are_those_of_a_count_by_hand():
    """Four letters to expert 0, two spaces and two digits to expert 1: one bit is all that an expert can say."""
    routings = [routing_of([[0], [0], [1], [0], [0], [1], [1], [1]])]
    widget = WhoGoesWhere({"a": "ab cd 12"}, routings={"a": routings})
    found = widget.count()
    assert found["bits"] == [1.0] and found["loads"] == [[4, 4, 0, 0]] and found["idle"] == [2]
    letter = found["names"].index("letter")
    assert found["pairs"][letter].tolist() == [4, 0, 0, 0] and int(found["pairs"].sum()) == 8
    assert found["random"] == [pytest.approx((2 * 0.5**8 + 2) / 4)]
    assert found["equal"] == [pytest.approx(0.75**8)]


def test_bits_are_the_librarys_for_one_choice_and_for_all():
    classes = label_classes(CODE.encode()).values
    for slot in (0, 1, -1):
        found = made(slot=slot).count()
        for layer, routing in enumerate(read(CODE)):
            experts = routing.experts if slot < 0 else routing.experts[:, slot]
            assert found["bits"][layer] == pytest.approx(mutual_information(experts, classes, 4), abs=1e-9)


def test_shuffles_keep_what_labels_and_experts_are_and_lose_how_they_meet():
    found = made({"code": CODE * 8}).count()
    assert torch.equal(found["pairs"].sum(0), found["mixed"].sum(0))
    assert torch.equal(found["pairs"].sum(1), found["mixed"].sum(1))
    assert found["bits"][0] > 5 * found["chance"][0][2], "the byte decides: far more than chance"
    low, mean, high = found["chance"][1]
    assert 0 < low < mean < high
    inside = (found["mixed"] >= found["low"]) & (found["mixed"] <= found["high"])
    assert inside.double().mean() > 0.9


def test_chance_says_more_about_short_texts_and_fine_labels():
    widget = made({"code": CODE * 8})
    whole = widget.count()["chance"][0][1]
    widget.length = 32
    short = widget.count()["chance"][0][1]
    widget.labels = "byte"
    assert 3 * whole < short < widget.count()["chance"][0][1]


def test_another_seed_is_another_sample_and_the_same_one_the_same():
    widget = made()
    first, again = widget.count(), widget.count()
    assert first["chance"] == again["chance"] and torch.equal(first["mixed"], again["mixed"])
    widget.seed = 1
    other = widget.count()
    assert other["chance"] != first["chance"] and other["bits"] == first["bits"]


def test_orders_are_orders_and_any_of_them():
    orders = draw_orders(3, 40)
    assert orders.shape == (100, 40)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(40).expand(100, 40))
    stays = (orders == torch.arange(40)).sum(dim=1).double().mean()
    assert abs(float(stays) - 1) < 0.4, "one stays in place on average"


def test_texts_are_shuffled_by_stretches():
    texts = {"a": "x" * 200, "b": "y" * 100}
    widget = WhoGoesWhere(texts, read, labels="text", layer=1)
    found = widget.count()
    assert found["tokens"] == 300 and found["names"] == ["a", "b"]
    assert found["pairs"].sum(dim=1).tolist() == [200, 100]
    possible = {64 * whole + rest for whole in range(5) for rest in (0, 8, 36, 44)}
    for seed in range(12):
        widget.seed = seed
        assert set(widget.count()["mixed"].sum(dim=1).tolist()) <= possible
    assert widget.count()["bits"][0] == pytest.approx(widget.compare_labels()["text"][0][0])


def test_all_texts_are_one_where_asked():
    alone, both = made(text=1), made(together=True)
    assert alone.count()["tokens"] == 36 and both.count()["tokens"] == 36 + len(CODE)
    assert "“sum”" in alone.summary() and "all 2 texts" in both.summary()
    both.length = 10
    assert both.count()["tokens"] == 20


def test_idle_experts_stand_beside_random_ones():
    """Of a text that repeats one byte all but one expert are idle; bytes of all texts would reach more of them."""
    widget = made({"one": "a" * 40, "other": "abcd" * 10}, text=0)
    found = widget.count()
    assert found["idle"][0] == 3
    shares = [10 / 80 + 0, 50 / 80, 10 / 80, 10 / 80]
    assert found["random"][0] == pytest.approx(sum((1 - share) ** 40 for share in shares) / 4)
    assert found["equal"][0] == pytest.approx(0.75**40)
    assert "leave 75 % of the experts idle" in widget.summary()


def test_the_sentence_says_whether_it_is_chance():
    widget = made({"code": CODE * 4})
    assert "bits about the token class, more than chance, for" in widget.summary()
    assert "; the strongest is “" in widget.summary()
    same = WhoGoesWhere({"a": "ab 1" * 9}, routings={"a": [routing_of([[0]] * 36)]})
    assert "says 0.00 bits about the token class, no more than chance, for" in same.summary()
    assert "0 of 12 pairs lie outside what shuffling gives. These" in same.summary()
    assert repr(same) == f"WhoGoesWhere: {same.summary()}"


def test_a_long_text_is_read_in_windows_of_the_models_context():
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(d_model=16, num_layers=2, num_heads=2, num_experts=4, context=16)).eval()
    widget = WhoGoesWhere({"code": CODE}, model)
    for start in range(0, len(CODE), 16):
        part = CODE[start : start + 16]
        for layer, routing in enumerate(model.read(part)):
            rows = widget.texts[0]["experts"][layer][start : start + len(part)]
            assert rows == routing.experts.tolist()
    seen = []
    read_windows(lambda text: seen.append(text) or read(text), "aé" * 4, 4)
    assert seen == ["aéa", "éa", "éa", "é"], "no character is cut"


def test_only_the_first_bytes_are_read_and_labels_know_the_rest():
    text = '"""' + "word " * 300 + '"""\n'
    asked = []
    widget = WhoGoesWhere({"long": text}, lambda part: asked.append(part) or read(part))
    assert asked == [text[:MOST_BYTES]]
    [entry] = widget.texts
    assert entry["name"] == "long, first 1,024 of 1,507 bytes" and len(entry["pieces"]) == MOST_BYTES
    names = widget.label_names["construct"]
    assert {names[one] for one in entry["labels"]["construct"]} == {"docstring"}


def test_a_pasted_text_is_read_and_goes_again():
    widget = made(text=1)
    widget.pasted = "x = 'é'\n"
    assert [one["name"] for one in widget.texts] == ["code", "sum", "your text"]
    assert (widget.text, widget.read_pasted, widget.error) == (2, "x = 'é'\n", "")
    assert widget.texts[2]["pieces"] == ["x", "␣", "=", "␣", "'", "é", "⋯", "'", "⏎"]
    assert all(len(one["labels"][kind]) == len(one["pieces"]) for one in widget.texts for kind in widget.label_names)
    widget.pasted = "a b"
    assert len(widget.texts) == 3 and widget.count()["tokens"] == 3
    widget.pasted = ""
    assert len(widget.texts) == 2 and widget.text == 0


def test_what_cannot_be_read_is_a_sentence():
    def fail(text):
        if "!" in text:
            raise RuntimeError("no such\n  byte")
        return read(text)

    widget = WhoGoesWhere({"code": CODE}, fail)
    widget.pasted = "fine"
    widget.pasted = "bad!"
    assert widget.error == "This text could not be read: RuntimeError: no such byte"
    assert len(widget.texts) == 1 and widget.read_pasted == "bad!" and widget.summary().startswith("Layer 0")
    widget.pasted = "a\ud83d"
    assert widget.texts[1]["pieces"] == ["a", "?"] and not widget.error


def test_who_watches_sees_whole_texts():
    widget, said = made(), []
    widget.observe(lambda change: said.append(widget.summary()), ["texts", "text", "label_names"])
    widget.pasted = "y = 2"
    assert said and set(said) == {widget.summary()}


def test_what_is_no_python_says_so():
    assert set(label_text(b"x = (1 +")["construct"].words()) == {"not Python"}
    assert label_text(b"x = '\\d'")["construct"].words()[-1] == "string", "and no warning"
    widget = made({"words": "Dear reader, it's fine", "code": CODE}, labels="construct")
    assert widget.count()["names"][-1] == "not Python"
    assert widget.count()["pairs"][-1].sum() == 22


def test_settings_that_do_not_fit_are_made_to():
    widget = made(text=9, layer=9, slot=9, length=4)
    state = widget.fitted()
    assert (state["text"], state["layer"], state["slot"], state["length"]) == (1, 1, 1, 4)
    widget.labels = "nonsense"
    assert widget.fitted()["labels"] == "token class"


@pytest.fixture(scope="module")
def shipped():
    return WhoGoesWhere()


def test_it_works_by_itself(shipped):
    assert len(shipped.texts) == 4 and shipped.num_experts == 16
    assert [name.split(",")[0] for name in (one["name"] for one in shipped.texts)] == [
        *("prose", "numbers", "nested", "ordinary")
    ]
    assert shipped.summary().startswith("Layer 0, first choice, ")
    assert shipped.kinds == ["token class", "construct", "position in line", "byte", "text"]


def test_passages_are_whole_statements():
    for text in held_out_passages().values():
        assert 512 <= len(text) <= MOST_BYTES
        ast.parse(text)


def test_what_does_not_parse_has_no_passages(tmp_path):
    path = tmp_path / "old.py"
    statement = "@wrapped\ndef f():\n    return '" + "x" * 600 + "'\n"
    path.write_text(f"print 1\n{statement}")
    assert passages_of("old.py", path) == []
    path.write_text("# é\n" + statement)
    assert passages_of("old.py", path) == []
    path.write_text(f"n = 1\n\n{statement}")
    assert [text for _, text in passages_of("old.py", path)] == [f"n = 1\n\n{statement}", statement]


def test_held_out_files_are_those_of_the_corpus(tmp_path):
    for number in range(25):
        path = tmp_path / ("pack" if number % 3 else "test") / f"file_{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if number == 4 else f"number = {number}\n")
    for number in range(25, 50):
        (tmp_path / f"file_{number}.py").write_text(f"number = {number}\n")
    found = held_out_files(str(tmp_path))
    joined = b"\n".join(path.read_bytes() for path in found.values())
    assert joined == bytes(standard_library(str(tmp_path)).validation) and len(found) == 4
    assert all((tmp_path / name).samefile(path) for name, path in found.items())


def test_the_page_gets_json_and_not_too_much_of_it(shipped):
    shipped.pasted = CODE * 30
    names = ("texts", "label_names", "num_experts")
    assert len(json.dumps({name: shipped.get_state()[name] for name in names})) < 300_000
    shipped.pasted = ""


def test_experts_of_the_shipped_model_know_bytes_best(shipped):
    """What the lesson says: far beyond chance, most of all about the byte itself, and least about the text."""
    for layers in zip(*shipped.compare_labels().values(), strict=True):
        beyond = [bits - mean for bits, (_, mean, _) in layers]
        assert all(bits > high for bits, (_, _, high) in layers)
        assert max(beyond) == beyond[3] and math.isfinite(sum(beyond))


GOOD = {"a": [routing_of([[0], [1]])]}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": {}}, ValueError, "texts must hold at least one text"),
        ({"texts": {"a": ""}}, ValueError, "texts must hold at least one text"),
        ({"texts": {"a": 3}}, ValueError, "texts must hold at least one text"),
        ({"texts": {"a": "xy"}, "model": 3}, TypeError, "model must be a LanguageModel or a function of a text, got 3"),
        ({"routings": GOOD}, ValueError, "routings must come with texts of the same names"),
        ({"texts": {"b": "xy"}, "routings": GOOD}, ValueError, "routings must come with texts of the same names"),
        ({"texts": {"a": "xy"}, "model": read, "routings": GOOD}, ValueError, "without a model"),
        ({"texts": {"a": "xyz"}, "routings": GOOD}, ValueError, "must fit the text 'a': .* 3 tokens, one a byte"),
        ({"texts": {"a": "xy"}, "model": lambda text: []}, ValueError, "must fit the text 'a'"),
        (
            {"texts": {"a": "xy", "b": "z"}, "model": lambda text: read(text, num_experts=len(text) + 3)},
            ValueError,
            "texts must have the same layers, num_experts and slots",
        ),
        (
            {"texts": {str(n): "x" * 1024 for n in range(15)}, "model": read},
            ValueError,
            "texts must have at most 60,000 bytes x layers x slots, got 61,440",
        ),
        ({"model": read, "layer": -1}, ValueError, "layer must be in 0"),
        ({"model": read, "slot": 0.5}, TypeError, "slot must be a whole number"),
        ({"model": read, "seed": 2**31}, ValueError, "seed must be in 0"),
        ({"model": read, "metric": "bits"}, ValueError, "metric must be one of share, pmi, information; got 'bits'"),
        ({"model": read, "texts": {"a": "xy"}, "labels": "text"}, ValueError, "labels must be one of token class"),
        ({"model": read, "colour": 1}, TypeError, "there is no setting 'colour', only text, layer"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        WhoGoesWhere(**{"texts": {"a": "xy"}, **options} if "routings" not in options else options)
