"""Each widget on a blank page with no kernel: names, keyboard, sentences, contrast, and nothing left behind."""

import re

import pytest
import torch

from moe_lab.routers import route
from moe_lab.widgets import RouteOneBatch, TextView

pytestmark = pytest.mark.browser

# The lowest contrast of any text with what is painted under it (WCAG 2, relative luminance).
LOWEST_CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of ["#fff", ...colours]) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ratios = [...box.querySelectorAll("*")].filter((node) => node.checkVisibility() &&
        [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())).map((node) => {
        const under = [];
        for (let at = node; at; at = at.parentElement) under.unshift(getComputedStyle(at).backgroundColor);
        const style = getComputedStyle(node);
        const ink = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
        const [low, high] = [paint(under), paint([...under, ink])].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), node.outerHTML.slice(0, 80)];
    });
    return ratios.reduce((worst, one) => (one[0] < worst[0] ? one : worst));
}"""


def read(text, num_experts=8, top_k=2):
    """Three layers that look only at the byte."""
    tables = [torch.randn(256, num_experts, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    return [route(table[list(text.encode())], top_k) for table in tables]


def batch(num_experts=8):
    return RouteOneBatch(num_experts=num_experts)


def reading(num_experts=8):
    return TextView(lambda text: read(text, num_experts), "a naïve café,\n3 €")


def state_of(page, *names):
    return page.evaluate("(names) => Object.fromEntries(names.map((name) => [name, model.get(name)]))", list(names))


def expect_summary(page, sentence):
    page.wait_for_function("(text) => box.querySelector('[aria-live=polite]').textContent === text", arg=sentence)


def python_twin(page):
    return RouteOneBatch(**state_of(page, "logits", "labels", "top_k", "score", "temperature", "renormalise"))


BATCH_CONTROLS = [
    ("slider", "Experts"),
    ("slider", "Top-k"),
    ("slider", "Temperature"),
    ("combobox", "Score"),
    ("checkbox", "Renormalise"),
    ("spinbutton", "Seed"),
    ("button", "New sample"),
    ("checkbox", "Show as table"),
    ("grid", "Router logits, tokens by experts"),
    ("spinbutton", "Logit of token 0, expert 0"),
]
READING_CONTROLS = [("textbox", "Text to read"), ("combobox", "Layer"), ("combobox", "Choice")]


@pytest.mark.parametrize(("make", "controls"), [(batch, BATCH_CONTROLS), (reading, READING_CONTROLS)])
def test_every_control_has_a_name(page, mount, make, controls):
    mount(make())
    for role, name in controls:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    tree = page.locator("div").first.aria_snapshot()
    found = re.findall(r"- (slider|combobox|checkbox|spinbutton|button|textbox|grid|gridcell|img|group)\b(.*)", tree)
    assert len(found) > len(controls)
    assert [role for role, rest in found if not re.match(r' "\S', rest)] == []


def test_the_sentence_is_pythons(page, mount):
    for widget in (batch(), batch(64), reading(), reading(64)):
        mount(widget)
        expect_summary(page, widget.summary())


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("make", "num_experts"), [(batch, 8), (batch, 64), (reading, 8), (reading, 64)])
def test_text_reads_on_any_background_and_fits(page, mount, make, num_experts, dark):
    page.set_viewport_size({"width": 500, "height": 800})
    mount(make(num_experts), dark=dark)
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


@pytest.mark.parametrize("make", [batch, reading])
def test_cleanup_leaves_nothing(page, mount, make):
    mount(make())
    assert page.evaluate("model.count()") > 5
    assert page.evaluate("[cleanup(), model.count(), box.childNodes.length].slice(1)") == [0, 0]


def test_batch_by_keyboard(page, mount):
    mount(RouteOneBatch([[1.0, 0.95, 0.0], [0.0, 0.0, 2.0]], top_k=1))
    page.locator("td[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "token 0, expert 1, logit 0.95"
    page.keyboard.press("+")  # 1.05 is above 1.00: the choice flips
    flipped = "2 tokens, top-1 of 3 experts by softmax: busiest expert 1 has 1 of 2 assignments"
    page.get_by_text(flipped).wait_for()
    expect_summary(page, python_twin(page).summary())
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "token 0, expert 1, logit 1.05, choice 1, weight 0.4"
    )
    page.keyboard.press("-")
    page.keyboard.press("-")
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    page.get_by_label("Logit of token 1, expert 2", exact=True).fill("-3")
    assert state_of(page, "logits")["logits"] == [[1.0, 0.85, 0.0], [0.0, 0.0, -3]]
    expect_summary(page, python_twin(page).summary())
    assert page.evaluate("model.saved") == 4


def test_batch_by_drag(page, mount):
    mount(batch())
    before = state_of(page, "logits")["logits"][2][3]
    cell = page.locator("td[data-token='2'][data-expert='3']").bounding_box()
    page.mouse.move(cell["x"] + 10, cell["y"] + 10)
    page.mouse.down()
    page.mouse.move(cell["x"] + 10, cell["y"] - 70)  # 80 pixels up is 2.0 more
    page.mouse.up()
    page.mouse.move(cell["x"] + 10, cell["y"] + 200)  # after the drag nothing follows the pointer
    assert state_of(page, "logits")["logits"][2][3] == pytest.approx(before + 2)
    expect_summary(page, python_twin(page).summary())


def test_batch_controls_change_what_they_say(page, mount):
    mount(batch())
    experts = "[...box.querySelectorAll('.choice')].map((cell) => cell.ariaLabel.replace(/weight.*/, ''))"
    before, sentence = page.evaluate(experts), page.locator(".summary").inner_text()
    page.get_by_role("combobox", name="Score").select_option("softmax after top-k")
    page.get_by_role("slider", name="Temperature").press("ArrowRight")
    expect_summary(page, python_twin(page).summary())
    assert page.evaluate(experts) == before and page.locator(".summary").inner_text() != sentence
    page.get_by_role("slider", name="Experts").press("End")
    page.get_by_role("slider", name="Top-k").press("End")
    page.get_by_label("Renormalise").check()
    page.get_by_label("Seed").fill("41")
    page.get_by_role("button", name="New sample").click()
    expected = RouteOneBatch(
        num_experts=64, top_k=8, score="softmax_after_top_k", temperature=1.05, seed=42, renormalise=True
    )
    expect_summary(page, expected.summary())
    assert state_of(page, "logits")["logits"] == expected.logits
    page.get_by_role("slider", name="Experts").press("Home")
    expect_summary(page, python_twin(page).summary())
    assert state_of(page, "num_experts", "top_k") == {"num_experts": 2, "top_k": 2}


def test_batch_as_a_table(page, mount):
    widget = RouteOneBatch([[1.0, 0.0], [0.0, 1.0]], labels=["the", "<b>cat</b>"], top_k=1)
    mount(widget)
    assert not page.get_by_role("table", name="Load").is_visible()
    page.get_by_label("Show as table").check()
    rows = page.get_by_role("table", name="Experts and weights").get_by_role("row").all_inner_texts()
    assert [row.split("\t") for row in rows] == [
        ["Token", "Choice 1"],
        ["the", "expert 0 (0.73)"],
        ["<b>cat</b>", "expert 1 (0.73)"],
    ]
    assert page.get_by_role("table", name="Load").get_by_role("row").all_inner_texts()[1:] == ["0\t1", "1\t1"]
    assert not page.locator(".picture").is_visible()


def test_reading_by_keyboard(page, mount):
    view = reading()
    mount(view)
    page.locator(".chip[tabindex='0']").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("byte 5, continues ï: expert ")
    rows = page.get_by_role("table", name="In every layer: byte 5, continues ï").get_by_role("row").all_inner_texts()
    for layer, row in enumerate(rows):
        choices = zip(view.experts[layer][5], view.weights[layer][5], strict=True)
        assert row == f"Layer {layer}\t" + ", ".join(f"expert {expert} ({weight:.2f})" for expert, weight in choices)
    assert len(rows) == 3
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.byte") == str(len(view.pieces) - 1)
    assert page.locator(".chip[tabindex='0']").count() == 1


def test_reading_layer_choice_and_expert(page, mount):
    view = reading()
    mount(view)
    page.get_by_role("combobox", name="Layer").select_option("2")
    page.get_by_role("combobox", name="Choice").select_option("all choices")
    view.layer, view.slot = 2, -1
    expect_summary(page, view.summary())
    assert state_of(page, "layer", "slot") == {"layer": 2, "slot": -1}
    load = view.load(2)
    busiest = load.index(max(load))
    name = f"expert {busiest}, {load[busiest]} bytes"
    page.get_by_role("button", name=name, exact=True).press("Enter")
    page.wait_for_function("box.querySelectorAll('.chip:not([class*=colour])').length > 0")
    assert page.locator(".chip[class*='colour']").count() == load[busiest]
    assert set(page.locator(".chip[class*='colour'] b").all_inner_texts()) == {str(busiest)}
    assert page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
    table = page.get_by_role("table", name="Bytes of each expert, all choices").get_by_role("row")
    assert table.nth(3).inner_text().split("\t") == ["Layer 2", *map(str, load)]


def test_a_text_that_no_kernel_reads(page, mount):
    page.clock.install()
    view = reading()
    mount(view)
    page.get_by_label("Text to read").fill("something else")
    page.clock.run_for(300)  # the pause in the typing
    assert state_of(page, "text", "read_text") == {"text": "something else", "read_text": view.text}
    assert page.get_by_role("status").inner_text() == "Reading …"
    page.clock.run_for(4000)
    assert page.get_by_role("status").inner_text().startswith("No kernel: this is a recorded reading of “a naïve")
    expect_summary(page, view.summary())
    page.get_by_label("Text to read").fill(view.text)
    page.clock.run_for(300)
    assert page.get_by_role("status").inner_text() == ""


def test_a_text_that_a_kernel_reads(page, mount):
    page.clock.install()
    view = reading()
    mount(view)
    page.get_by_label("Text to read").fill("new")
    page.clock.run_for(300)
    view.text = "new"
    names = ("text", "total_bytes", "pieces", "experts", "weights", "read_text")
    page.evaluate(
        "(traits) => { for (const [name, value] of Object.entries(traits)) model.set(name, value); }",
        {name: getattr(view, name) for name in names},
    )
    page.clock.run_for(5000)
    expect_summary(page, view.summary())
    assert page.get_by_role("status").inner_text() == ""
    assert page.locator(".chip span").all_inner_texts() == ["n", "e", "w"]


def test_sentences_in_place_of_a_reading(page, mount):
    def fail(text):
        raise RuntimeError("the model <b>broke</b>")

    cut = TextView(read, "aé" * 4, max_bytes=5)
    for view in (TextView(fail, "abc"), TextView(fail, ""), cut):
        mount(view)
        expect_summary(page, view.summary())
        assert page.locator(".chip").count() == len(view.pieces)
    assert page.locator(".chip").count() == 4
