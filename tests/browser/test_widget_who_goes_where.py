"""Who goes where on a page: its numbers are Python's, experts light up by mouse and keyboard, nothing is left."""

import random
import re
from pathlib import Path

import pytest
import torch

from moe_lab.types import Routing
from moe_lab.widgets import WhoGoesWhere
from moe_lab.widgets.who_goes_where import draw_orders

from .reactions import show_tables

pytestmark = pytest.mark.browser

# the search for the lowest contrast that every other widget is held to
PAGE_TESTS = Path(__file__).with_name("test_widgets_page.py").read_text()
LOWEST_CONTRAST = re.search(r'^LOWEST_CONTRAST = """(.*?)"""', PAGE_TESTS, re.S | re.M)[1]
CODE = "total = 0\nfor i in range(9):\n    total += i  # so far\n"
WORDS = "Dear reader, ask naïvely:\nwhat is 3 + 4?\n"
KINDS = ("token class", "construct", "position in line", "byte", "text")
ANSWER_MS = 3000  # as in who_goes_where.js


def read(text, num_experts=8, top_k=2, layers=2):
    """Experts that follow from the byte and, the deeper the layer, from its place."""
    codes, places = torch.tensor(list(text.encode())), torch.arange(len(text.encode()))
    first = [(codes * 7 + layer * places) % num_experts for layer in range(layers)]
    tables = [torch.stack([(one + 3 * slot) % num_experts for slot in range(top_k)], dim=1) for one in first]
    return [Routing(one, torch.ones(one.shape) / top_k, num_experts) for one in tables]


def made(**settings):
    return WhoGoesWhere({"code": CODE, "words": WORDS}, read, **settings)


def drawn_routing(rng, tokens, num_experts, slots):
    """Skewed choices, some of them empty."""
    bag = [expert for expert in range(num_experts) for _ in range(rng.choice([1, 1, 8]))]
    rows = []
    for _ in range(tokens):
        row = []
        while len(row) < slots:
            expert = rng.choice(bag) if rng.random() < 0.9 else -1
            if expert < 0 or expert not in row:
                row.append(expert)
        rows.append(row)
    experts = torch.tensor(rows)
    return Routing(experts, torch.where(experts < 0, 0.0, 1.0), num_experts)


def widgets(count):
    """All kinds of labels and choices, one text or three, settings that do not fit, long and short."""
    rng = random.Random(0)
    for number in range(count):
        num_experts, layers = rng.choice([3, 8, 17]), rng.choice([1, 2])
        slots = rng.randint(1, 3)
        texts = {str(one): "".join(rng.choice("ab1 \n(é'") for _ in range(rng.randint(1, 150))) for one in range(3)}
        texts = {"code": CODE} | (texts if number % 4 else {})
        routings = {
            name: [drawn_routing(rng, len(text.encode()), num_experts, slots) for _ in range(layers)]
            for name, text in texts.items()
        }
        kinds = KINDS if len(texts) > 1 else KINDS[:-1]
        settings = {"together": rng.random() < 0.3, "length": rng.choice([0, 1, 20, 64, 100])}
        settings |= {"seed": rng.randrange(2**31), "labels": kinds[number % len(kinds)], "slot": rng.randint(-1, 3)}
        yield WhoGoesWhere(texts, routings=routings, text=rng.randrange(5), layer=rng.randrange(4), **settings)


def state_of(widget):
    """What the browser has: the traits, as they are sent."""
    return {name: value for name, value in widget.get_state().items() if name in widget.keys}


EXAMINED = """argument.map((traits) => {
    const state = m.fit(traits);
    const found = m.examine(state);
    const range = ({ low, mean, high }) => [low, mean, high];
    const { counts, shuffled } = found.layers[state.layer];
    const fitted = ["text", "layer", "slot", "labels", "together", "length"].map((name) => [name, state[name]]);
    return { loads: found.layers.map(({ load }) => load), bits: found.layers.map(({ bits }) => bits),
        chance: found.layers.map(({ chance }) => range(chance)), idle: found.layers.map(({ idle }) => idle),
        random: found.layers.map(({ same }) => same), equal: found.layers.map(({ equal }) => equal),
        pairs: [...counts], mixed: [...shuffled[0]], low: found.ranges.map(({ low }) => low),
        high: found.ranges.map(({ high }) => high), names: found.sample.names, tokens: found.sample.units.length,
        fitted: Object.fromEntries(fitted), sentence: m.summarise(state, found),
        labels: m.compareLabels(state).map(({ name, cells }) =>
            [name, cells.map(({ bits, chance }) => [bits, ...range(chance)])]) };
})"""


def test_both_languages_count_and_say_the_same(logic):
    made_up, said = list(widgets(20)), []
    results = logic("who_goes_where", EXAMINED, [state_of(one) for one in made_up])
    for number, (widget, result) in enumerate(zip(made_up, results, strict=True)):
        own = widget.count()
        for name in ("loads", "idle", "names", "tokens"):
            assert result[name] == own[name], name
        for name in ("pairs", "mixed"):
            assert result[name] == own[name].flatten().tolist(), name
        for name in ("bits", "random", "equal"):
            assert result[name] == pytest.approx(own[name], abs=1e-9), name
        for name in ("low", "high"):
            assert result[name] == pytest.approx(own[name].flatten().tolist(), abs=1e-9), name
        for ours, theirs in zip(own["chance"], result["chance"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-9)
        assert result["fitted"] == widget.fitted() and result["sentence"] == widget.summary(own)
        said.append(result["sentence"])
        for kind, layers in widget.compare_labels().items() if number % 5 == 0 else ():
            cells = dict(result["labels"])[kind]
            for (bits, chance), cell in zip(layers, cells, strict=True):
                assert cell == pytest.approx([bits, *chance], abs=1e-9)
    for part in ("no more than chance", "; the strongest is", "all 4 texts", "all choices", "about the byte"):
        assert any(part in sentence for sentence in said), part


def test_both_languages_draw_the_same_orders(logic):
    asked = [[0, 7], [2**31 - 1, 200], [5, 1]]
    drawn = logic("who_goes_where", "argument.map((a) => m.drawOrders(...a).map((order) => [...order]))", asked)
    assert drawn == [draw_orders(*one).tolist() for one in asked]


def expect_summary(page, sentence):
    page.wait_for_function("(text) => box.querySelector('.summary').textContent === text", arg=sentence)


CONTROLS = [
    *(("combobox", name) for name in ("Text", "Layer", "Choice", "Labels", "Table")),
    ("slider", "Bytes"),
    ("checkbox", "Count all texts together"),
    ("checkbox", "Shuffle the labels beside"),
    ("checkbox", "Text as table"),
    ("spinbutton", "Seed"),
    ("button", "New sample"),
    ("slider", "Bytes of the text"),
]


def test_every_control_has_a_name(page, mount):
    mount(made())
    experts = [("button", f"expert {expert}, {load} bytes") for expert, load in enumerate(made().count()["loads"][0])]
    for role, name in [*CONTROLS, *experts]:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    tree = page.locator("div").first.aria_snapshot()
    found = re.findall(r"- (slider|combobox|checkbox|button|textbox|spinbutton|table)\b(.*)", tree)
    assert [role for role, rest in found if not re.match(r' "\S', rest)] == []
    assert page.locator(".summary").get_attribute("aria-live") == "polite"


def test_controls_change_what_is_counted(page, mount):
    mount(made())
    settings = {}
    for label, option, setting in (
        ("Text", "words", {"text": 1}),
        ("Layer", "1", {"layer": 1}),
        ("Choice", "all choices", {"slot": -1}),
        ("Labels", "byte", {"labels": "byte"}),
    ):
        page.get_by_role("combobox", name=label, exact=True).select_option(label=option)
        settings |= setting
        expect_summary(page, made(**settings).summary())
    page.get_by_role("checkbox", name="Count all texts together").check()
    page.get_by_role("button", name="New sample").press("Enter")
    settings |= {"together": True, "seed": 1}
    expect_summary(page, made(**settings).summary())
    page.get_by_role("spinbutton", name="Seed").fill("-3")
    page.get_by_role("spinbutton", name="Seed").fill("42")
    page.get_by_role("slider", name="Bytes", exact=True).press("Home")
    expect_summary(page, made(**settings | {"seed": 42, "length": 16}).summary())
    assert page.evaluate("model.saved") == 8


def test_an_expert_lights_up_its_bytes(page, mount):
    widget = made()
    mount(widget)
    rows = [row[0] for row in widget.texts[0]["experts"][0]]
    lit = "[...box.querySelectorAll('.chip')].flatMap((chip, at) => /colour/.test(chip.className) ? [at] : [])"
    assert page.evaluate(lit) == list(range(len(rows)))
    page.locator(".legend button").nth(3).click()
    page.wait_for_function("box.querySelector('.legend [aria-pressed=true]')")
    assert page.evaluate(lit) == [at for at, expert in enumerate(rows) if expert == 3]
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box.querySelectorAll('.legend button')[4].getAttribute('aria-pressed') === 'true'")
    assert page.evaluate(lit) == [at for at, expert in enumerate(rows) if expert == 4]
    assert page.evaluate("document.activeElement.dataset.expert") == "4"
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    page.wait_for_function("!box.querySelector('.legend [aria-pressed=true]')")
    assert page.evaluate("model.get('expert')") == -1
    page.get_by_role("table", name="Load of each expert").locator("[data-layer='1'][data-expert='5']").click()
    page.wait_for_function("box.querySelector('.loads .chosen')")
    assert page.evaluate("[model.get('layer'), model.get('expert')]") == [1, 5]


def test_bytes_are_read_out_by_keyboard(page, mount):
    mount(made())
    text = page.get_by_role("slider", name="Bytes of the text")
    text.press("ArrowRight")
    labels = "token class letter, construct name, position in line 1-3, byte o"
    said = f"Byte 1, o: {labels}; layer 0, 1 and 4; layer 1, 2 and 5."
    assert text.get_attribute("aria-valuetext") == said == page.locator(".byte").inner_text()
    text.press("End")
    assert text.get_attribute("aria-valuenow") == str(len(CODE) - 1)
    page.locator(".chip").nth(6).hover()
    assert page.locator(".byte").inner_text().startswith("Byte 6, =: token class operator, construct operator")


def test_tables_say_what_is_as_chance(page, mount):
    widget = made()
    mount(widget)
    found = widget.count()
    rows = page.get_by_role("table", name="PMI, bits: token class by expert, layer 0").get_by_role("row")
    cells = [row.split("\t") for row in rows.all_inner_texts()]
    labels = [at for at, total in enumerate(found["pairs"].sum(dim=1).tolist()) if total]
    assert [row[0] for row in cells[1:]] == [f"{found['names'][at]} ({int(found['pairs'][at].sum())})" for at in labels]
    for row, at in zip(cells[1:], labels, strict=True):
        for expert, text in enumerate(row[1:]):
            count, low, high = (float(found[name][at, expert]) for name in ("pairs", "low", "high"))
            assert text.startswith("≈ ") == (low <= count <= high), (row, expert)
            assert text.endswith("\N{EN DASH}") == (count == 0)
    page.get_by_role("checkbox", name="Shuffle the labels beside").check()
    page.wait_for_function("box.querySelectorAll('.pairs table').length === 2")
    assert page.locator(".pairs td:has-text('≈')").count() > page.locator(".pairs table").first.locator("td").count()
    page.get_by_role("combobox", name="Table").select_option(label="Share of the label, %")
    page.wait_for_function("box.querySelector('.pairs caption').textContent.startsWith('Share')")
    shown = page.get_by_role("table", name=re.compile("^Share.*layer 0$")).get_by_role("row").all_inner_texts()
    shares = [int(text.split("\t")[1].removeprefix("≈ ")) for text in shown[1:]]
    assert shares == [int(100 * int(found["pairs"][at, 0]) / int(found["pairs"][at].sum()) + 0.5) for at in labels]


def test_information_compares_the_labels(page, mount):
    widget = made(metric="information")
    mount(widget)
    rows = page.get_by_role("table", name="Bits that the expert says").get_by_role("row").all_inner_texts()
    assert [row.split("\t")[0] for row in rows[1:]] == list(KINDS)
    for row, layers in zip(rows[1:], widget.compare_labels().values(), strict=True):
        for said, (bits, (_, _, high)) in zip(row.split("\t")[1::2], layers, strict=True):
            assert said == f"{'≈ ' if bits <= high else ''}{bits:.2f}"
        assert row.split("\t")[2] == f"{layers[0][1][0]:.2f} to {layers[0][1][2]:.2f}"


def test_layers_have_bits_and_idle_experts(page, mount):
    widget = made(length=16)
    mount(widget)
    found = widget.count()
    rows = page.get_by_role("table", name="What the expert says about the token class").get_by_role("row")
    for layer, row in enumerate(rows.all_inner_texts()[1:]):
        bits, shuffled, idle = row.split("\t")[2:5]
        low, _, high = found["chance"][layer]
        assert (bits, shuffled) == (f"{found['bits'][layer]:.2f}", f"{low:.2f} to {high:.2f}")
        assert idle.startswith(f"{found['idle'][layer]} (")


def test_the_text_as_a_table(page, mount):
    mount(made(length=16))
    show_tables(page, "Text as table")
    rows = page.get_by_role("table", name="Bytes of code").get_by_role("row").all_inner_texts()
    assert len(rows) == 17 and rows[1].split("\t") == ["0", "t", "letter", "4, 7", "4, 7"]
    assert not page.get_by_role("slider", name="Bytes of the text").is_visible()


def test_a_pasted_text_needs_a_kernel(page, mount):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)
    widget = made()
    mount(widget)
    page.get_by_text("Paste a text of your own").press("Enter")
    page.get_by_role("textbox", name="Text to read").fill("1 + 1")
    page.clock.run_for(300)
    assert page.evaluate("model.get('pasted')") == "1 + 1"
    assert page.locator(".notice").inner_text() == "Reading …"
    page.clock.run_for(ANSWER_MS)
    alone = "No kernel answers, so your text is not read. The others were read before."
    assert page.locator(".notice").inner_text() == alone
    widget.pasted = "1 + 1"
    answer = {name: getattr(widget, name) for name in ("texts", "label_names", "text", "read_pasted")}
    page.evaluate("(traits) => Object.entries(traits).forEach(([name, value]) => model.set(name, value))", answer)
    page.clock.run_for(100)
    expect_summary(page, widget.summary())
    assert page.locator(".notice").inner_text() == "" and "5 bytes of “your text”" in widget.summary()


def test_without_a_model_nothing_can_be_pasted(page, mount):
    mount(WhoGoesWhere({"code": CODE}, routings={"code": read(CODE)}))
    assert page.get_by_role("textbox", name="Text to read", include_hidden=True).is_disabled()
    assert "other texts cannot be read" in page.locator(".notice").inner_text()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("settings", [{"shuffle": True, "expert": 4}, {"metric": "information", "slot": -1}])
def test_text_reads_on_any_background_and_fits(page, mount, settings, dark):
    page.set_viewport_size({"width": 500, "height": 900})
    mount(WhoGoesWhere({"code": CODE, "words": WORDS}, lambda text: read(text, num_experts=33), **settings), dark=dark)
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


def test_cleanup_leaves_nothing(page, mount):
    mount(made())
    page.get_by_role("button", name="New sample").press("Enter")
    assert page.evaluate("model.count()") > 10
    assert page.evaluate("[cleanup(), model.count(), box.childNodes.length].slice(1)") == [0, 0]
