"""Each widget on a blank page with no kernel: names, keyboard, sentences, contrast, and nothing left behind."""

import math
import re

import numpy as np
import pytest
import torch

from moe_lab.experiments.balance import RUNS
from moe_lab.models import published
from moe_lab.profiling import CATEGORIES, Trace, TraceEvent
from moe_lab.profiling.trace import ABOUT
from moe_lab.roofline import DEVICES, Device
from moe_lab.routers import route
from moe_lab.tracing import Launch, Outside, Record, Step
from moe_lab.widgets import (
    Accountant,
    CapacityBins,
    CollapseAndRescue,
    ExpertRoofline,
    RouteOneBatch,
    TextView,
    TileMap,
    TracePlayer,
)
from moe_lab.widgets.expert_roofline import say_rate, say_time, three_digits
from moe_lab.widgets.memory_tracer import MemoryTracer
from moe_lab.widgets.trace_player import say_ns

from .reactions import show_tables

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
        const svg = node.namespaceURI.endsWith("svg");
        const chip = svg && node.parentNode.querySelector(":scope > rect");
        if (chip) under.push(getComputedStyle(chip).fill);
        const ink = svg ? style.fill : style.color;
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


def bins(num_experts=8):
    """Every kind of chip at once: four choices, rerouted ones, some dropped."""
    return CapacityBins(40, num_experts, 4, capacity_factor=0.95, skew=1.5, overflow="reroute")


def rescue(num_experts=8, method="none", compare="capacity_drop", layer=0, step=20):
    """Four runs of three samples: one that collapses, one that drops, one exactly even, one by chance."""
    draw = torch.Generator().manual_seed(0)
    asked = 40 * num_experts
    drawn = torch.randint(20, (3, 2, num_experts), generator=draw)
    alone = torch.eye(num_experts, dtype=torch.int64)[:2] * asked
    loads = {
        "none": torch.stack([alone, drawn[1] + alone // 3, drawn[2]]),
        "random": 20 + drawn,
        "capacity_drop": (drawn + alone // 2).clamp_max(40),
        "balanced": torch.full_like(drawn, 40),
    }
    trace = [{"step": step, "loss": loss} for step, loss in ((10, 5.5), (20, 3.0), (30, 2.0))]
    runs = [
        {"name": name, "label": RUNS[name].label, "trace": trace, "loads": load.tolist()}
        for name, load in loads.items()
    ]
    sizes = {"model": {"top_k": 2, "context": 10}, "train": {"batch": 2 * num_experts}}
    return CollapseAndRescue({**sizes, "runs": runs}, method, compare, layer, step)


DESK = Device("desk, 2 threads, 2026-01-02", {"bfloat16": 4e11, "float32": 1.6e11}, 3.2e10, "measured", "desk.json")


def roof(num_experts=8, device="H200", **options):
    """A measured machine before the data sheets, experts on both sides of the ridge."""
    options = {"tokens": 512, "skew": 2.5, **options}
    return ExpertRoofline(device, "Mixtral 8x7B", num_experts=num_experts, devices=[DESK, *DEVICES.values()], **options)


def account(num_experts=8):
    """The custom model, for its sliders; with 16 experts, beside shared ones and in training."""
    more = {"num_shared": 2, "mode": "training", "d_expert": 1408} if num_experts == 16 else {}
    return Accountant("custom", models=["mixtral-8x7b", "deepseek-v3"], num_experts=num_experts, **more)


def published_account(num_experts=8):
    """A model with every part in its bars but recurrent layers."""
    return Accountant("llama-4-maverick", models=["llama-4-maverick"], context=2**13)


def tracer(num_experts=8, **options):
    """A product of experts in tiles of 4 x 4: 4 rows each, 6 columns; the last program does nothing."""
    tensors = {"x": torch.zeros(4 * num_experts, 4), "w": torch.zeros(num_experts, 4, 6), "y": torch.zeros(6)}
    columns, steps = np.arange(8), []
    for program in range(2 * num_experts):
        expert, tile = program // 2, program % 2
        column = columns[4 * tile : 4 * tile + 4]
        box = (24 * expert + 6 * np.arange(4)[:, None] + column).reshape(-1)
        inside = np.tile(column < 6, 4)
        for kind, name, elements, masked, source in (
            ("load", "x", 16 * expert + np.arange(16), box[:0], "left = tl.load(x + ..., mask=...)"),
            ("load", "w", box[inside], box[~inside & (box < 24 * num_experts)], "right = tl.load(w + ...)"),
            ("dot", None, box[:0], box[:0], "total = tl.dot(left, right, total)"),
            ("atomic", "y", column[column < 6], column[:0], "tl.atomic_add(y + columns, total)"),
            ("store", "y", column[column < 6], column[:0], "tl.store(y + columns, total)"),
        ):
            place = {"bytes_at": 4 * elements, "width": 4, "masked_lanes": len(masked), "flops": 128 * (kind == "dot")}
            number = sum(step.program == program for step in steps)
            steps.append(Step(0, program, number, kind, name, elements, masked, source=source, **place))
    record = Record.written_down(
        tensors, [Launch("experts", (2, num_experts, 1), 0), Launch("idle", (1, 1, 1), 2 * num_experts)], steps
    )
    record.outside.append(Outside(1, 4, "store", "y", 2, 6, 4096, 6))
    return MemoryTracer(record, **{"program": 1, "step": 1, **options})


def tile_map(num_experts=8, **options):
    """Ragged loads, some of them empty; the published map by default, since it has every kind of tile."""
    load = [(37 * expert) % 130 if expert % 5 != 3 else 0 for expert in range(num_experts)]
    return TileMap(load, **{"order": "broken_column_major", "tiles_n": 5, "step": 2, **options})


def played(num_experts=8, **options):
    """A loop over experts on a GPU, each launched from the CPU, beside one kernel for all; both with a roofline."""
    about = dict.fromkeys(ABOUT, "?") | {
        "kind": "cuda",
        "device": "a <b>GPU</b>",
        "shape": {},
        "versions": {"torch": "2"},
    }
    launches = [TraceEvent("launch", "other", "CPU", 10.0 * at, 3.0) for at in range(num_experts)]
    kernels = [
        TraceEvent(f"mm<{at % 3}>", CATEGORIES[at % 5], "GPU stream 7", 10.0 * at + 4, 4.5, 9000 * at, None)
        for at in range(num_experts)
    ]
    one = TraceEvent("grouped_mm", "matrix product", "GPU stream 7", 2.0, 20.0, 9000, 4000)
    traces = {"loop": Trace(about, launches + kernels), "grouped": Trace(about, [one])}
    return TracePlayer(traces, **{"floors_us": {"loop": 12.5, "grouped": 12.5}, "bar": (0, 1), **options})


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
BINS_CONTROLS = [
    ("slider", "Tokens"),
    ("slider", "Experts"),
    ("slider", "Top-k"),
    ("slider", "Capacity factor"),
    ("slider", "Skew"),
    ("combobox", "Overflow"),
    ("combobox", "Priority"),
    ("spinbutton", "Seed"),
    ("button", "New sample"),
    ("checkbox", "Show as table"),
]
RESCUE_CONTROLS = [
    ("combobox", "Method"),
    ("combobox", "Compare with"),
    ("combobox", "Layer"),
    ("slider", "Step"),
    ("button", "Play"),
    ("checkbox", "Show as table"),
]
ROOF_CONTROLS = [
    ("combobox", "Device"),
    ("combobox", "Model"),
    ("combobox", "Pass"),
    ("combobox", "Dtype"),
    ("combobox", "Skew"),
    ("slider", "Tokens"),
    ("slider", "Experts"),
    ("slider", "Top-k"),
    ("checkbox", "Show as table"),
]
ACCOUNT_CONTROLS = [
    ("combobox", "Model"),
    ("combobox", "For"),
    ("combobox", "Weights in"),
    ("slider", "Context"),
    ("combobox", "Embeddings"),
    ("button", "Reset"),
    ("checkbox", "Show as table"),
    ("group", "Sizes of the custom model"),
    ("slider", "Layers"),
    ("slider", "d_model"),
    ("slider", "Heads"),
    ("slider", "KV heads"),
    ("slider", "d_expert"),
    ("slider", "Experts"),
    ("slider", "Top-k"),
    ("slider", "Shared experts"),
    ("slider", "Vocabulary"),
]
TRACER_CONTROLS = [
    ("slider", "Program"),
    ("slider", "Step"),
    ("button", "Back"),
    ("button", "Next"),
    ("combobox", "Count"),
    ("checkbox", "Show as table"),
]
MAP_CONTROLS = [
    ("combobox", "Load"),
    ("combobox", "Scheduler"),
    ("combobox", "Rows a tile"),
    ("slider", "Column tiles"),
    ("slider", "Multiprocessors"),
    ("combobox", "Launch cost"),
    ("combobox", "Order"),
    ("slider", "Row tiles a group"),
    ("combobox", "Caches (chiplets)"),
    ("slider", "Step"),
    ("button", "Play"),
    ("checkbox", "Show as table"),
]
PLAYER_CONTROLS = [
    ("combobox", "A"),
    ("combobox", "B"),
    ("searchbox", "Search names"),
    ("checkbox", "Show as table"),
    ("slider", "From"),
    ("slider", "To"),
    ("button", "Whole call"),
    ("slider", "Bars of A"),
    ("slider", "Bars of B"),
]
READING_CONTROLS = [("textbox", "Text to read"), ("combobox", "Layer"), ("combobox", "Choice")]


@pytest.mark.parametrize(
    ("make", "controls"),
    [
        (batch, BATCH_CONTROLS),
        (reading, READING_CONTROLS),
        (bins, BINS_CONTROLS),
        (rescue, RESCUE_CONTROLS),
        (roof, ROOF_CONTROLS),
        (account, ACCOUNT_CONTROLS),
        (tracer, TRACER_CONTROLS),
        (tile_map, MAP_CONTROLS),
        (played, PLAYER_CONTROLS),
    ],
)
def test_every_control_has_a_name(page, mount, make, controls):
    mount(make())
    for role, name in controls:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    tree = page.locator("div").first.aria_snapshot()
    found = re.findall(r"- (slider|combobox|checkbox|spinbutton|button|textbox|grid|gridcell|img|group)\b(.*)", tree)
    assert len(found) > len(controls)
    assert [role for role, rest in found if not re.match(r' "\S', rest)] == []


def test_the_sentence_is_pythons(page, mount):
    for widget in (
        batch(),
        batch(64),
        reading(),
        reading(64),
        bins(),
        bins(16),
        rescue(),
        rescue(16),
        account(),
        account(16),
        tracer(),
        tracer(64, program=128, step=0),
        tile_map(),
        tile_map(64, scheduler="loop", step=0),
        played(),
        played(64, second="", search="MM<1", brush=(30, 100)),
    ):
        mount(widget)
        expect_summary(page, widget.summary())


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("make", "num_experts"),
    [
        (batch, 8),
        (batch, 64),
        (reading, 8),
        (reading, 64),
        (bins, 4),
        (bins, 16),
        (rescue, 4),
        (rescue, 64),
        (roof, 4),
        (roof, 512),
        (account, 8),
        (account, 16),
        (published_account, 8),
        (tracer, 2),
        (tracer, 64),
        (tile_map, 2),
        (tile_map, 64),
        (played, 8),
    ],
)
def test_text_reads_on_any_background_and_fits(page, mount, make, num_experts, dark):
    page.set_viewport_size({"width": 500, "height": 800})
    mount(make(num_experts), dark=dark)
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


@pytest.mark.parametrize("make", [batch, reading, bins, rescue, roof, account, tracer, tile_map, played])
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
    show_tables(page)
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


def bins_twin(page):
    names = ("tokens", "num_experts", "top_k", "capacity_factor", "skew", "overflow", "priority", "seed")
    return CapacityBins(**state_of(page, *names))


def test_bins_by_keyboard(page, mount):
    mount(CapacityBins())
    before = page.locator(".summary").inner_text()
    page.get_by_role("slider", name="Capacity factor").press("ArrowRight")
    assert state_of(page, "capacity_factor") == {"capacity_factor": 1.3}
    expect_summary(page, CapacityBins(capacity_factor=1.3).summary())
    assert page.locator(".summary").inner_text() != before
    page.get_by_role("slider", name="Skew").press("Home")
    page.get_by_role("slider", name="Top-k").press("End")
    page.get_by_role("slider", name="Tokens").press("End")
    page.get_by_role("slider", name="Experts").press("Home")
    want = CapacityBins(64, 2, 2, capacity_factor=1.3, skew=0)
    expect_summary(page, want.summary())
    assert page.get_by_role("slider", name="Top-k").get_attribute("max") == "2"
    assert page.evaluate("model.saved") == 5 and bins_twin(page).summary() == want.summary()


def test_bins_change_rule_and_sample(page, mount):
    mount(CapacityBins())
    sentences = []
    for overflow in ("reroute", "drop"):
        page.get_by_role("combobox", name="Overflow").select_option(overflow)
        for priority in ("score", "random", "order"):
            page.get_by_role("combobox", name="Priority").select_option(priority)
            expect_summary(page, CapacityBins(overflow=overflow, priority=priority).summary())
            sentences.append(page.locator(".summary").inner_text())
    assert len(set(sentences)) > 2
    page.get_by_label("Seed").fill("41")
    page.get_by_role("button", name="New sample").click()
    expect_summary(page, CapacityBins(seed=42).summary())
    for seed in ("-1", "2147483648", "1.5", ""):  # no seeds: nothing happens
        page.get_by_label("Seed").fill(seed)
        assert state_of(page, "seed") == {"seed": 42}


@pytest.mark.parametrize("overflow", ["drop", "reroute"])
def test_bins_draw_what_python_counts(page, mount, overflow):
    widget = CapacityBins(40, 5, 3, capacity_factor=0.9, skew=1.5, overflow=overflow)
    mount(widget)
    found, load, experts = widget.count(), widget.routing.load.tolist(), widget.routing.experts
    assert found["dropped"] > 0 and (found["rerouted"] > 0) == (overflow == "reroute")
    places = page.locator(".bins svg")
    assert [places.nth(number).locator(".chip").count() for number in range(5)] == load
    assert page.locator(".bins .rerouted").count() == found["rerouted"]
    assert page.evaluate(
        "[...box.querySelectorAll('.bins .empty')].map((p) => p.getAttribute('d').split('z').length - 1)"
    ) == [found["capacity"] - taken for taken in load]
    for number in range(5):
        tokens = places.nth(number).locator("text").all_text_contents()
        assert sorted(map(int, tokens)) == (experts == number).any(dim=1).nonzero().flatten().tolist()
    lost = [str(token) for token, row in enumerate(experts.tolist()) for expert in row if expert < 0]
    assert page.locator(".tray text").all_text_contents() == lost
    share = f"{100 * found['dropped'] / found['asked']:.1f} %"
    name = f"Dropped {share}, {found['dropped']} of {found['asked']} assignments"
    assert page.get_by_role("img", name=name, exact=True).count() == 1
    third = 13 * 3
    assert page.locator(".who").inner_text().startswith(f"Who is dropped: {100 * found['early'] / third:.1f} % of what")
    assert f"{100 * found['late'] / third:.1f} % of what the last third did." in page.locator(".who").inner_text()


def test_a_bin_is_as_tall_as_its_capacity(page, mount):
    mount(CapacityBins(64, 4, 4, capacity_factor=1))
    height = "box.querySelector('.bins svg').getBoundingClientRect().height"
    heights = []
    for factor in (1, 2, 3):
        page.evaluate("(factor) => model.set('capacity_factor', factor)", factor)
        expect_summary(page, CapacityBins(64, 4, 4, capacity_factor=factor).summary())
        heights.append(page.evaluate(height))
    assert heights[2] - heights[1] == heights[1] - heights[0] > 100


def test_bins_as_a_table(page, mount):
    widget = CapacityBins(9, 3, 2, capacity_factor=0.75, skew=2, overflow="reroute", seed=1)
    mount(widget)
    assert not page.get_by_role("table", name="Totals").is_visible()
    show_tables(page)
    found, load = widget.count(), widget.routing.load.tolist()
    totals = page.get_by_role("table", name="Totals").get_by_role("row").all_inner_texts()
    assert totals[1].startswith(f"Dropped\t{found['dropped']} of 18 assignments (")
    assert totals[2] == f"Rerouted\t{found['rerouted']} of 18 assignments"
    assert totals[3].startswith(f"Padding\t{found['empty']} of {found['places']} places (")
    first = route(widget.logits, 2).experts
    rows = page.get_by_role("table", name="Experts").get_by_role("row").all_inner_texts()[1:]
    asked = first.flatten().bincount(minlength=3).tolist()
    capacity = found["capacity"]
    assert [list(map(int, row.split("\t"))) for row in rows] == [
        [expert, asked[expert], capacity, load[expert], capacity - load[expert]] for expert in range(3)
    ]
    fates = page.get_by_role("table", name="Tokens").get_by_role("row").all_inner_texts()[1:]
    for token, row in enumerate(fates):
        pairs = zip(first[token].tolist(), widget.routing.experts[token].tolist(), strict=True)
        words = [
            f"dropped, asked for expert {wish}"
            if got < 0
            else f"expert {got}" + (f", rerouted from {wish}" if got != wish else "")
            for wish, got in pairs
        ]
        assert row.split("\t") == [str(token), *words]
    assert len(fates) == 9 and "rerouted" in "".join(fates) and "dropped" in "".join(fates)
    assert not page.locator(".picture").is_visible()


def show_step(page):
    """The step that the panels are drawn for: of the slider, once the page has followed."""
    return page.get_by_role("slider", name="Step").get_attribute("aria-valuetext")


def test_rescue_by_keyboard(page, mount):
    widget = rescue()
    mount(widget)
    slider = page.get_by_role("slider", name="Step")
    for key, step in (("ArrowRight", 30), ("Home", 10), ("ArrowRight", 20), ("End", 30), ("ArrowRight", 30)):
        slider.press(key)
        widget.step = step
        expect_summary(page, widget.summary())
        assert state_of(page, "step") == {"step": step} and show_step(page) == f"step {step}"
    page.get_by_role("combobox", name="Layer").select_option("1")
    page.get_by_role("combobox", name="Method").select_option("balanced")
    page.get_by_role("combobox", name="Compare with").select_option("no balancing")
    widget.layer, widget.method, widget.compare = 1, "balanced", "none"
    expect_summary(page, widget.summary())
    assert state_of(page, "layer", "method", "compare") == {"layer": 1, "method": "balanced", "compare": "none"}
    groups = page.get_by_role("combobox", name="Method").locator("optgroup")
    assert [groups.nth(number).get_attribute("label") for number in range(groups.count())] == ["no balancing", "rules"]


def test_rescue_tallies_what_python_counts(page, mount):
    widget = rescue(num_experts=16, step=30)
    mount(widget)
    panels = page.locator(".panel")
    for side, name in enumerate((widget.method, widget.compare)):
        found, panel = widget.tally(name), panels.nth(side)
        assert panel.locator(".tally b").inner_text() == f"Experts without a token: {found['dead']} of 16"
        lost = f", dropped {100 * found['dropped'] / widget.asked:.0f} %" if found["dropped"] else ""
        said = f"MaxVio {found['max_violation']:.2f}, loss {found['loss']:.2f}{lost}"
        assert panel.locator(".tally span").inner_text() == said
        assert panel.get_attribute("aria-label") == RUNS[name].label
        assert panel.locator(".band").count() == 16
    assert page.locator(".tally").all_inner_texts()[0] != page.locator(".tally").all_inner_texts()[1]


HEIGHTS = """() => [...box.querySelectorAll("svg")].map((svg) => {
    const top = (path) => Math.min(...path.getAttribute("d").match(/ [0-9.]+/g).map(Number));
    return {
        bands: [...svg.querySelectorAll(".band")].map((path) => path.getBBox().y),
        own: [...svg.querySelectorAll(".own")].map(top), other: [...svg.querySelectorAll(".other")].map(top),
        dot: Number(svg.querySelector("circle").getAttribute("cx")), now: svg.querySelector(".now").getBBox().x,
    };
})"""


def test_rescue_draws_both_methods_on_the_same_scales(page, mount):
    mount(rescue(method="none", compare="balanced", step=10))
    left, right = page.evaluate(HEIGHTS)
    assert left["own"] == right["other"] and left["other"] == right["own"]
    assert left["own"][0] < right["own"][0], "MaxVio of a collapse lies above that of an even load"
    assert left["dot"] == left["now"] == right["now"]
    evenly = [18 + 180 * (7 - expert) / 8 for expert in range(8)]  # eight bands of 1/8 from the bottom up
    assert right["bands"] == pytest.approx(evenly, abs=0.1)
    page.evaluate("model.set('step', 30)")
    page.wait_for_function("box.querySelector('.now').getBBox().x > 390")
    assert page.evaluate(HEIGHTS)[0]["own"] == left["own"], "the lines stay, the reader moves along them"


def test_rescue_leaves_free_what_was_dropped(page, mount):
    widget = rescue(method="capacity_drop", compare="balanced", step=30)
    mount(widget)
    kept = [sum(load[0]) / widget.asked for load in widget._runs["capacity_drop"]["loads"]]
    assert max(kept) < 1
    top = min(page.evaluate(HEIGHTS)[0]["bands"])
    assert top == pytest.approx(198 - 180 * max(kept), abs=0.1)


def test_rescue_plays_to_the_end_and_says_so_once(page, mount):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)  # from here on time moves only when it is told to
    widget = rescue(step=30)
    mount(widget)
    first = page.locator(".summary").inner_text()
    page.get_by_role("button", name="Play").press("Enter")
    page.clock.run_for(100)
    assert page.get_by_role("button", name="Pause").count() == 1
    assert state_of(page, "step") == {"step": 20} and page.locator(".summary").inner_text() == first
    page.clock.run_for(1000)
    assert state_of(page, "step") == {"step": 30} and page.evaluate("model.saved") == 1
    assert page.get_by_role("button", name="Play").count() == 1
    expect_summary(page, widget.summary())
    page.get_by_role("button", name="Play").press("Enter")
    page.clock.run_for(100)
    page.get_by_role("button", name="Pause").press("Enter")
    page.clock.run_for(1000)
    widget.step = 20
    expect_summary(page, widget.summary())
    page.get_by_role("button", name="Play").press("Enter")
    page.evaluate("cleanup()")
    page.clock.run_for(1000)
    assert state_of(page, "step") == {"step": 20}, "nothing plays on after the widget is gone"


def test_rescue_jumps_where_motion_is_unwanted(page, mount):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)
    page.emulate_media(reduced_motion="reduce")
    widget = rescue(step=10)
    mount(widget)
    page.get_by_role("button", name="Jump to the end").press("Enter")
    assert state_of(page, "step") == {"step": 30}, "at once, with no time passing"
    page.clock.run_for(100)
    widget.step = 30
    expect_summary(page, widget.summary())
    assert page.evaluate("model.saved") == 1 and page.get_by_role("button", name="Jump to the end").count() == 1


def test_rescue_as_a_table(page, mount):
    widget = rescue(num_experts=4)
    mount(widget)
    assert not page.get_by_role("table", name="Over the steps").is_visible()
    show_tables(page)
    rows = page.get_by_role("table", name="Assignments at step 20").get_by_role("row").all_inner_texts()
    loads = [widget._runs[name]["loads"][1][0] for name in ("none", "capacity_drop")]
    assert rows[0].split("\t") == ["Expert", "no balancing", "capacity 1.0, drop"]
    for expert, row in enumerate(rows[1:]):
        cells = [f"{load[expert]} ({int(100 * load[expert] / widget.asked + 0.5)} %)" for load in loads]
        assert row.split("\t") == [str(expert), *cells]
    steps = page.get_by_role("table", name="Over the steps").get_by_role("row").all_inner_texts()[1:]
    for step, row in zip(widget.steps, steps, strict=True):
        widget.step = step
        found = [widget.tally(), widget.tally("capacity_drop")]
        cells = [f"{f['dead']} without a token, MaxVio {f['max_violation']:.2f}, loss {f['loss']:.3f}" for f in found]
        assert row.split("\t") == [str(step), *cells]
    assert not page.locator(".picture").is_visible()


def test_two_of_them_keep_their_patterns_apart(page, mount):
    mount(rescue())
    ids = page.evaluate("[...document.querySelectorAll('pattern')].map((pattern) => pattern.id)")
    assert len(ids) == len(set(ids)) == 16
    fills = page.evaluate("[...box.querySelectorAll('.band')].map((band) => band.getAttribute('fill').slice(5, -1))")
    assert fills == ids


ROOF_SIZES = ("d_model", "d_expert", "num_experts", "top_k")


def test_roof_by_keyboard(page, mount):
    widget = roof()
    mount(widget)
    for key, tokens in (("ArrowRight", 1024), ("ArrowLeft", 512), ("End", 2**20), ("Home", 1), ("ArrowRight", 2)):
        page.get_by_role("slider", name="Tokens").press(key)
        widget.tokens = tokens
        expect_summary(page, widget.summary())
        assert state_of(page, "tokens") == {"tokens": tokens}
    assert page.get_by_role("slider", name="Tokens").get_attribute("aria-valuetext") == "2"
    page.get_by_role("slider", name="Experts").press("ArrowRight")
    widget.num_experts = 16
    expect_summary(page, widget.summary())
    assert state_of(page, "model", *ROOF_SIZES) == {
        "model": "custom", "d_model": 4096, "d_expert": 14336, "num_experts": 16, "top_k": 2
    }  # fmt: skip
    page.get_by_role("slider", name="Top-k").press("End")
    assert state_of(page, "top_k") == {"top_k": 16}
    page.get_by_role("slider", name="Experts").press("Home")
    assert state_of(page, "num_experts", "top_k") == {"num_experts": 1, "top_k": 1}
    widget.num_experts = 1
    expect_summary(page, widget.summary())
    assert page.get_by_role("slider", name="Top-k").get_attribute("max") == "1"


def test_roof_choices_fit_together(page, mount):
    widget = roof()
    mount(widget)
    for label, name, value in (
        ("Model", "model", "DeepSeek-V3"),
        ("Pass", "direction", "training"),
        ("Skew", "skew", 7.0),
        ("Dtype", "dtype", "float32"),
        ("Device", "device", DESK.name),
        ("Model", "model", "OLMoE-1B-7B"),
    ):
        choice = "7" if name == "skew" else value
        page.get_by_role("combobox", name=label).select_option(choice)
        setattr(widget, name, value)
        expect_summary(page, widget.summary())
        assert state_of(page, name, *ROOF_SIZES) == {one: getattr(widget, one) for one in (name, *ROOF_SIZES)}
    page.get_by_role("combobox", name="Device").select_option("H200")
    page.get_by_role("combobox", name="Dtype").select_option("bfloat16")
    page.get_by_role("combobox", name="Device").select_option("T4")  # which has none
    assert state_of(page, "dtype") == {"dtype": "float16"}
    widget.device, widget.dtype = "T4", "float16"
    expect_summary(page, widget.summary())
    groups = page.get_by_role("combobox", name="Device").locator("optgroup")
    assert [groups.nth(number).get_attribute("label") for number in range(groups.count())] == ["measured", "data sheet"]
    assert page.locator(".source").inner_text() == f"Ceilings of T4, data sheet: {DEVICES['T4'].source}."


MARKS = """() => Object.fromEntries(["experts", "dense", "one"].map((kind) => {
    const places = [...box.querySelectorAll(`.roof .mark.${kind}`)].map((mark) => mark.getAttribute("transform"));
    return [kind, places.map((place) => place.match(/[0-9.]+/g).map(Number))];
}))"""


def place_on_roof(intensity, flops_per_s):
    """Where a mark belongs: six decades of FLOP/byte from 0.1 on, five decades of FLOP/s from 1e11 on for an H200."""
    x = 62 + 628 * (math.log10(intensity) + 1) / 6
    return [x, 350 - 336 * (math.log10(flops_per_s) - 11) / 5]


def test_roof_draws_what_python_counts(page, mount):
    widget = roof(tokens=1024, skew=2.5)
    mount(widget)
    marks = page.evaluate(MARKS)
    for kind, shape in (("experts", widget.shape), ("dense", widget.shape.dense)):
        intensity, bound, _ = widget.bound(shape)
        assert marks[kind] == [pytest.approx(place_on_roof(intensity, bound.flops_per_s), abs=0.06)]
    assert len(marks["one"]) == 8 and 0 < widget.by_memory() < 8
    ridge = 62 + 628 * (math.log10(DEVICES["H200"].ridge("bfloat16")) + 1) / 6
    assert sum(x < ridge for x, _ in marks["one"]) == widget.by_memory()
    name = page.locator(".roof svg").get_attribute("aria-label")
    assert name.startswith("Roofline of H200, bfloat16, ridge at 206 FLOP/byte; experts at ")
    assert name.endswith(f"each expert alone, {widget.by_memory()} of 8 limited by memory")
    page.get_by_role("combobox", name="Skew").select_option("even")
    page.wait_for_function("!box.querySelector('.roof .mark.one')")


ROOF_ENDS = [(512, 1, 1, "forward"), (512, 1, 1, "training"), (512, 1, 4096, "forward"), (8, 2, 2**20, "forward")]


@pytest.mark.parametrize("device", [DESK.name, *DEVICES])
@pytest.mark.parametrize(("num_experts", "top_k", "tokens", "direction"), ROOF_ENDS)
def test_roof_keeps_its_marks_and_words_inside(page, mount, device, num_experts, top_k, tokens, direction):
    mount(roof(num_experts, device, top_k=top_k, tokens=tokens, direction=direction))
    outside = page.evaluate("""() => [...box.querySelectorAll(".roof text, .roof .mark > :is(circle, rect)")]
        .filter((node) => {
            const [one, all] = [node, node.ownerSVGElement].map((some) => some.getBoundingClientRect());
            return one.left < all.left || one.right > all.right || one.top < all.top || one.bottom > all.bottom;
        }).map((node) => node.outerHTML)""")
    assert outside == []


def test_roof_as_a_table(page, mount):
    widget = roof(skew=7, tokens=64)
    mount(widget)
    assert not page.get_by_role("table", name="Layers").is_visible()
    show_tables(page)
    rows = page.get_by_role("table", name="Layers").get_by_role("row").all_inner_texts()
    for row, shape in zip(rows[1:], (widget.shape, widget.shape.dense), strict=True):
        intensity, bound, start = widget.bound(shape)
        cells = row.split("\t")
        assert cells[3:5] == [f"{three_digits(intensity)} FLOP/byte", bound.limit]
        assert cells[5:] == [say_rate(bound.flops_per_s), say_time(bound.time_ms), f"{start:,} tokens"]
    ceilings = page.get_by_role("table", name="Ceilings").get_by_role("row").all_inner_texts()
    assert ceilings[1].split("\t")[:2] == ["Memory", "4.8 TB/s"]
    assert ceilings[2].split("\t") == ["bfloat16", "989 TFLOP/s", "206 FLOP/byte"]
    assert page.get_by_role("table", name="Each expert alone").get_by_role("row").count() == 9
    assert not page.locator(".picture").is_visible()


def test_account_by_keyboard(page, mount):
    widget = account()
    mount(widget)
    for name, key, trait, value in (
        ("Experts", "ArrowRight", "num_experts", 12),
        ("Top-k", "End", "top_k", 12),
        ("Shared experts", "ArrowRight", "num_shared", 1),
        ("KV heads", "End", "kv_heads", 32),
        ("Layers", "ArrowLeft", "num_layers", 31),
        ("d_model", "PageUp", "d_model", None),
        ("d_expert", "Home", "d_expert", 128),
        ("Vocabulary", "End", "vocab_size", 262144),
        ("Context", "End", "context", 2**20),
    ):
        slider = page.get_by_role("slider", name=name, exact=True)
        slider.press(key)
        found = state_of(page, trait)[trait]
        assert value is None or found == value
        setattr(widget, trait, found)
        expect_summary(page, widget.summary())
        assert slider.get_attribute("aria-valuetext") == f"{found:,}"
    assert widget.d_model != 4096
    page.get_by_role("slider", name="Heads", exact=True).press("Home")
    page.get_by_role("slider", name="Experts", exact=True).press("Home")
    widget.heads, widget.num_experts = 1, 1
    expect_summary(page, widget.summary())
    assert state_of(page, "kv_heads", "top_k") == {"kv_heads": 1, "top_k": 1}
    assert page.get_by_role("slider", name="Top-k").get_attribute("max") == "0"
    page.get_by_role("button", name="Reset").press("Enter")
    expect_summary(page, Accountant("custom", models=[]).summary())
    assert page.evaluate("model.saved") == 12


def test_account_chooses_models_and_settings(page, mount):
    widget = account()
    mount(widget)
    page.get_by_role("combobox", name="Model").select_option("DeepSeek-V3")
    widget.model = "deepseek-v3"
    expect_summary(page, widget.summary())
    assert page.locator("fieldset").is_hidden(), "a published model has no sliders"
    choices = (
        ("Weights in", "dtype", "MXFP4 experts, rest bfloat16", "mxfp4"),
        ("Embeddings", "embeddings", "both count", "both"),
        ("For", "mode", "Training", "training"),
    )
    for name, trait, words, value in choices:
        before = page.locator(".summary").inner_text()
        page.get_by_role("combobox", name=name).select_option(words)
        setattr(widget, trait, value)
        expect_summary(page, widget.summary())
        assert page.locator(".summary").inner_text() != before
    assert page.get_by_role("combobox", name="Weights in").is_disabled(), "training has its own dtypes"
    page.get_by_role("button", name="Reset").click()
    names = ("model", "dtype", "embeddings", "mode")
    assert state_of(page, *names) == dict(
        zip(names, ("deepseek-v3", "bfloat16", "published", "inference"), strict=True)
    )
    expect_summary(page, Accountant("deepseek-v3").summary())


PARTS = """() => [...box.querySelectorAll(".bars svg[role]")].map((svg) => ({
    track: svg.querySelector(".track").getBBox(), mark: svg.querySelector(".mark path")?.getBBox().x,
    parts: Object.fromEntries([...svg.querySelectorAll(".part")].map((path) =>
        [path.dataset.part, [path.getBBox().x, path.getBBox().width]])),
})).map(({ track, mark, parts }) => ({ from: track.x, long: track.width, mark, parts }))"""


def test_account_draws_what_python_counts(page, mount):
    widget = published_account()
    mount(widget)
    found, bars = widget.tally(), page.evaluate(PARTS)
    totals = ("total_params", "active_params", "flops_per_token", "total_bytes")
    scales = []
    for bar, drawn, total in zip(("params", "active", "flops", "bytes"), bars, totals, strict=True):
        assert list(drawn["parts"]) == list(found[bar])
        scales.append(sum(width for _, width in drawn["parts"].values()) / found[total])
        at = drawn["from"]
        for part, number in found[bar].items():
            start, width = drawn["parts"][part]
            assert (start, width) == pytest.approx((at, number * scales[-1]), abs=0.1)
            at += width
        assert 0.6 * drawn["long"] < at - drawn["from"] < drawn["long"] or bar == "active"
    assert scales[0] == pytest.approx(scales[1], rel=1e-2), "stored and used share a scale"
    one = published("llama-4-maverick")
    for drawn, number in zip(bars, (one.total_params, one.active_params), strict=False):
        assert drawn["mark"] + 4 == pytest.approx(drawn["from"] + number * scales[0], abs=0.6)  # its cap is 8 wide
    assert [bar["mark"] for bar in bars[2:]] == [None, None]


def test_account_names_its_bars_and_the_whole_models(page, mount):
    mount(Accountant("mixtral-8x7b"))
    names = page.evaluate("[...box.querySelectorAll('.bars svg[role]')].map((svg) => svg.ariaLabel)")
    assert names[0].startswith("Stored, 46.7 B, embedding 131 M, attention 1.34 B, router 1.05 M, experts 45.1 B")
    assert names[0].endswith("8 whole models 57.9 B, published 46.7 B, 0.01 % off")
    assert names[1].startswith("A token uses, 12.9 B, 28 %, ") and "experts 11.3 B" in names[1]
    assert "router 0.01 %" in names[2] and names[3].startswith("Bytes, 87.5 GiB, experts 84 GiB")
    assert page.locator(".ghost").count() == 1
    page.evaluate("model.set('model', 'deepseek-v3')")
    page.wait_for_function("box.querySelectorAll('.ghost').length === 0")  # 256 models would be far off


def test_account_draws_as_wide_as_its_place(page, mount):
    mount(account())
    width = "box.querySelector('.bars svg[role]').getBoundingClientRect().width"
    assert page.evaluate(width) > 800
    page.set_viewport_size({"width": 600, "height": 900})
    page.wait_for_function(f"{width} < 600")
    labels = "[...box.querySelectorAll('.bars svg[role]')].map((svg) => svg.querySelectorAll('.label').length / 2)"
    assert page.evaluate(labels) == [7, 6, 5, 3]  # the first has one for the whole models
    overlaps = """[...box.querySelectorAll(".bars svg[role]")].flatMap((svg) => {
        const boxes = [...svg.querySelectorAll(".label")].map((text) => text.getBBox());
        return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) =>
            Math.abs(a.y - b.y) < 5 && a.x < b.x + b.width && b.x < a.x + a.width));
    }).length"""
    assert page.evaluate(overlaps) == 0


def test_account_as_a_table(page, mount):
    widget = published_account()
    mount(widget)
    assert not page.get_by_role("table", name="Parts").is_visible()
    show_tables(page)
    found, bars = widget.tally(), ("params", "active", "flops")
    rows = page.get_by_role("table", name="Parts").get_by_role("row").all_inner_texts()
    parts = {row.split("\t")[0]: row.split("\t")[1:] for row in rows[1:]}
    words = {"shared_experts": "shared experts", "dense_mlp": "dense MLP"}
    wanted = {part for bar in bars for part in found[bar]}
    assert parts == {words.get(part, part): [f"{found[bar].get(part, 0):,}" for bar in bars] for part in wanted} | {
        "together": [f"{found[key]:,}" for key in ("total_params", "active_params", "flops_per_token")]
    }
    rows = page.get_by_role("table", name="Bytes").get_by_role("row").all_inner_texts()[1:]
    numbers = [*found["bytes"].values(), found["total_bytes"]]
    assert [row.split("\t")[1] for row in rows] == [f"{number:,}" for number in numbers]
    off = page.get_by_role("table", name="Published").get_by_role("row").all_inner_texts()[1:]
    assert [row.split("\t")[1] for row in off] == ["400,000,000,000", "17,000,000,000"]
    assert not page.locator(".picture").is_visible()


def test_tracer_by_keyboard(page, mount):
    widget = tracer(num_experts=2, program=0, step=0)
    mount(widget)
    program, step = page.get_by_role("slider", name="Program"), page.get_by_role("slider", name="Step")

    def expect(at, number):
        widget.program, widget.step = at, number
        expect_summary(page, widget.summary())
        assert state_of(page, "program", "step") == {"program": at, "step": number}
        assert page.locator(".source").inner_text().strip() == (
            widget.sources[widget.steps[5 * at + number][-1]] if at < 4 else ""
        )

    expect(0, 0)
    for key, number in (("ArrowRight", 1), ("End", 4), ("ArrowRight", 4), ("Home", 0), ("End", 4)):
        step.press(key)
        expect(0, number)
    program.press("ArrowRight")
    expect(1, 4)
    assert program.get_attribute("aria-valuetext") == "program 1 at (1, 0)"
    assert step.get_attribute("aria-valuetext") == "step 4, store"
    program.press("End")  # a program without steps
    expect(4, 0)
    assert step.get_attribute("aria-valuetext") == "no step" and step.get_attribute("max") == "0"
    page.get_by_role("button", name="Back").press("Enter")
    expect(3, 4)
    for _ in range(2):  # nothing comes after the last step
        page.get_by_role("button", name="Next").press("Enter")
        expect(3, 4)
    program.press("Home")
    step.press("End")
    page.get_by_role("button", name="Next").press("Enter")
    expect(1, 0)
    page.get_by_role("combobox", name="Count").select_option("all programs")
    assert state_of(page, "count") == {"count": "all programs"}
    page.wait_for_function(
        "box.querySelector('.grid:last-child span:last-child').textContent === 'written 4 times each'"
    )


def test_tracer_draws_what_python_counts(page, mount):
    widget = tracer(num_experts=3, program=3, step=1)
    mount(widget)
    grids = page.locator(".grid")
    assert grids.count() == 3 and page.locator(".grid.mine b").inner_text() == "w"
    for at, sent in enumerate(widget.tensors):
        rows, columns, grid = sent["rows"], sent["columns"], grids.nth(at)
        size = min(20, 290 // columns, 330 // rows)
        kinds = ("load",) if sent["counted"] == "read" else ("store", "atomic")
        steps = [step for step in widget._record.steps if step.kind in kinds]
        steps = [step for step in steps if (step.program, step.number) <= (3, 1)]
        counts = widget._record.count(sent["name"], steps).reshape(-1).tolist()
        numbers = grid.locator("text").evaluate_all(
            "(all) => all.map((text) => [text.getAttribute('x'), text.getAttribute('y'), text.textContent].map(Number))"
        )
        shown = {(int(y // size) * columns + int(x // size)): times for x, y, times in numbers}
        assert shown == ({cell: times for cell, times in enumerate(counts) if times} if size >= 14 else {})
        area = "(d) => d.split('M').slice(1).reduce((all, one) => {" + (
            " const [w, h] = one.match(/h(\\d+)v(\\d+)/).slice(1).map(Number); return all + w * h; }, 0)"
        )
        levels = [grid.locator(f".level-{level}").get_attribute("d") for level in range(1, 6)]
        filled = [page.evaluate(area, d) // size**2 for d in levels]
        limits = [(1, 1), (2, 2), (3, 4), (5, 8), (9, 10**6)]
        assert filled == [sum(low <= times <= high for times in counts) for low, high in limits]
    now, held = (
        page.locator(".grid.mine .now").get_attribute("d"),
        page.locator(".grid.mine path.masked").get_attribute("d"),
    )
    size = 20
    assert now == f"M{4 * size} {4 * size}h{2 * size}v{4 * size}h{-2 * size}z", (
        "two of the four columns of the tile exist"
    )
    assert held == f"M0 {5 * size}h{2 * size}v{4 * size}h{-2 * size}z", "past the end of a row the next one begins"
    assert page.locator(".blocks").nth(1).get_attribute("d").count("M") == 2, "lines between three experts"
    label = page.locator(".grid.mine svg").get_attribute("aria-label")
    assert label.startswith("w, loads 8 elements of w, 32 bytes in ") and "8 lanes masked; read 0 to 1 times" in label


def test_tracer_sums_and_tables(page, mount):
    widget = tracer(num_experts=2, program=1, step=4)
    mount(widget)
    found = widget.tally()
    rows = page.get_by_role("table", name="Traffic").get_by_role("row").all_inner_texts()[1:]
    named = {"This step": "step", "This program": "program", "So far": "so_far", "All programs": "all"}
    for row, (title, name) in zip(rows, named.items(), strict=False):
        total = found[name]
        read, written, flops = (total[key] for key in ("bytes_read", "bytes_written", "flops"))
        ratio = f"{total['sectors'] / total['least_sectors']:.2f}"
        assert row.split("\t") == [
            title,
            f"{read:,}",
            f"{written:,}",
            f"{flops:,}",
            f"{flops / (read + written):.2f}",
            ratio,
        ]
    assert rows[4].split("\t")[0] == "Each element once" and len(rows) == 5
    assert not page.get_by_role("table", name="Steps of program 1").is_visible()
    show_tables(page)
    page.get_by_role("table", name="Steps of program 1").wait_for()
    steps = page.get_by_role("table", name="Steps of program 1").get_by_role("row").all_inner_texts()[1:]
    for row, step in zip(steps, widget._record.of_program(1), strict=True):
        outside = "2" if step.kind == "store" else "0"
        cells = [str(step.number), step.kind, step.tensor or "-", str(len(step.bytes_at)), str(step.masked_lanes)]
        cells += [outside, str(step.bytes), str(step.segments()[0]), str(step.flops), step.source]
        assert row.split("\t") == cells
    tensors = page.get_by_role("table", name="Tensors, so far").get_by_role("row").all_inner_texts()[1:]
    counts = found["counts"]["w"]
    assert tensors[1].split("\t") == [
        "w",
        "2 \u00d7 4 \u00d7 6",
        "float32",
        "read",
        str(counts["least"]),
        str(counts["most"]),
        str(counts["never"]),
    ]
    assert not page.locator(".picture").is_visible()


def test_two_tracers_keep_their_patterns_apart(page, mount):
    mount(tracer())
    fills = page.evaluate("[...box.querySelectorAll('.now, path.masked')].map((path) => path.getAttribute('fill'))")
    ids = page.evaluate("[...document.querySelectorAll('pattern')].map((pattern) => `url(#${pattern.id})`)")
    assert fills and set(fills) <= set(ids)
    first = set(ids)
    mount(tracer())
    assert not first & set(page.evaluate("[...document.querySelectorAll('pattern')].map((one) => `url(#${one.id})`)"))


def test_map_by_keyboard(page, mount):
    widget = TileMap(step=0)
    mount(widget)

    def expect(**changes):
        for name, value in changes.items():
            setattr(widget, name, value)
        expect_summary(page, widget.summary())
        assert state_of(page, *changes) == changes

    step = page.get_by_role("slider", name="Step")
    assert step.get_attribute("aria-valuetext") == "launch 1 of 1"
    for key, number in (("ArrowRight", 1), ("End", 7), ("ArrowRight", 7), ("Home", 0), ("ArrowRight", 1)):
        step.press(key)
        expect(step=number)
    assert step.get_attribute("aria-valuetext") == "wave 1 of 6, 8 tiles"
    for name, key, trait, value in (
        ("Column tiles", "ArrowRight", "tiles_n", 5),
        ("Column tiles", "Home", "tiles_n", 1),
        ("Multiprocessors", "ArrowLeft", "programs", 7),
        ("Multiprocessors", "End", "programs", 132),
    ):
        page.get_by_role("slider", name=name).press(key)
        expect(**{trait: value})
    for name, trait, value in (
        ("Load", "preset", "half on one expert"),
        ("Scheduler", "scheduler", "loop"),
        ("Rows a tile", "block_m", 16),
        ("Launch cost", "launch_cost", 0.25),
        ("Caches (chiplets)", "num_xcds", 4),
    ):
        page.get_by_role("combobox", name=name).select_option(str(value))
        expect(**{trait: value})


def test_map_says_which_controls_apply(page, mount):
    mount(TileMap())
    order, group = page.get_by_role("combobox", name="Order"), page.get_by_role("slider", name="Row tiles a group")
    said = page.locator(".applies")
    assert order.is_enabled() and group.is_disabled() and "for the orders grouped and xcd remapped" in said.inner_text()
    order.select_option("grouped")
    page.wait_for_function("!box.querySelector('[name=group_m]').disabled")
    assert said.inner_text() == ""
    group.press("ArrowRight")
    assert state_of(page, "order", "group_m") == {"order": "grouped", "group_m": 5}
    order.select_option("xcd_remapped")
    page.wait_for_function("box.querySelector('.applies').textContent.startsWith('With one cache')")
    page.evaluate("model.set('num_xcds', 8); model.set('programs', 9)")
    page.wait_for_function("box.querySelector('.applies').textContent.startsWith('Chiplets take items in turn only')")
    for scheduler, enabled in (("padded", False), ("loop", False), ("persistent", True), ("grouped", True)):
        page.get_by_role("combobox", name="Scheduler").select_option(scheduler)
        page.wait_for_function(f"box.querySelector('[name=order]').disabled === {str(not enabled).lower()}")
        assert group.is_enabled() == enabled and ("go row by row" in said.inner_text()) != enabled


# The boxes of a path: how many, and what they cover.
BOXES = """(path) => [...path.getAttribute("d").matchAll(/M\\S+ \\S+h([0-9.]+)v([0-9.]+)h/g)]
    .map(([, wide, high]) => wide * high)"""


def boxes(page, selector):
    return page.locator(selector).evaluate(BOXES)


@pytest.mark.parametrize("scheduler", ["loop", "padded", "grouped", "persistent"])
@pytest.mark.parametrize(
    ("order", "tiles_n"), [("grouped", 3), ("broken_column_major", 3), ("broken_column_major", 14)]
)
def test_map_draws_what_python_counts(page, mount, scheduler, order, tiles_n):
    widget = tile_map(scheduler=scheduler, order=order, tiles_n=tiles_n, step=4, launch_cost=0.5)
    mount(widget)
    found, counts = widget.schedule(), widget.tally()
    here = found.moments[4]
    later = {(one.launch, one.wave) for one in found.moments[5:] if one.kind == "wave"}
    running = found.running(here)
    done = [one for one in found.visits if (one.launch, one.wave) not in later and one not in running]
    tiles = {kind: {(one.tile_m, one.tile_n) for one in some} for kind, some in (("running", running), ("done", done))}
    tiles["done"] -= tiles["running"]
    for kind, some in tiles.items():
        assert len(boxes(page, f".map .area.{kind}")) == len(some), kind
    assert len(boxes(page, ".map .area.never")) == counts["never"]
    assert len(boxes(page, ".map .area.repeated")) == counts["repeated"]
    assert len(boxes(page, ".map path.now")) == len(tiles["running"])
    wide, high = min(60, 336 / tiles_n), min(24, 340 / len(found.row_tiles))
    empty = sum(1 - one.rows / found.block_m for one in found.row_tiles)
    assert sum(boxes(page, ".map .area.padding")) == pytest.approx(tiles_n * empty * wide * high, rel=0.01)
    # on the right: the same visits over time, the launches and what is left over
    assert len(boxes(page, ".chart .area.running")) == len(running)
    assert len(boxes(page, ".chart .area.done")) == len(done)
    unit = 370 / found.makespan * min(24, 336 / found.programs)
    for kind, time in (
        ("launch", counts["launching"]),
        ("tail", counts["tail"]),
        ("padding", counts["rows_empty"] / found.block_m),
    ):
        assert sum(boxes(page, f".chart .area.{kind}")) == pytest.approx(time * unit, rel=0.01), kind
    label = page.get_by_role("img", name="Tiles,").get_attribute("aria-label")
    assert f"{len(tiles['done'])} done, {len(tiles['running'])} running" in label
    assert (f"{counts['never']} never written" in label) == (counts["never"] > 0)
    items = [[] for _ in range(found.tiles)]
    for one in found.visits:
        items[one.tile_m * tiles_n + one.tile_n].append(str(one.item))
    texts = page.locator(".map text.middle").all_text_contents()[1:]  # the first is the title of the columns
    assert len(texts) == (found.tiles if high >= 11 else 0)
    for come, text in zip(items, texts, strict=False):
        room = [" ".join(come[:2]) + (" \u2026" if len(come) > 2 else ""), come[0], ""] if come else ["never", "\u00d7"]
        assert text == (room[0] if wide > 40 else text) and text in room


def test_map_numbers_and_legend(page, mount):
    widget = tile_map(tiles_n=3, num_xcds=2)
    mount(widget)

    def figures():
        names, values = (page.locator(f".figures {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))

    found, shown = widget.tally(), figures()
    time = widget.programs * found["makespan"]
    assert shown == {
        "Tiles": str(found["tiles"]),
        "Launches": "1",
        "Makespan": f"{found['makespan']:g}",
        "Busy": f"{100 * found['visits'] / time:.0f} %",
        "Launching": f"{100 * found['launching'] / time:.0f} %",
        "Tail": f"{100 * found['tail'] / time:.0f} % ({found['tail']:g} tile times)",
        "Padding": f"{100 * found['rows_empty'] / found['rows_computed']:.0f} %",
        "Never written": str(found["never"]),
        "Written more than once": str(found["repeated"]),
        "Running now": str(found["running"]),
        "They read": f"{found['x_panels']} of x, {found['w_panels']} of w",
        "Panels in all waves": f"{found['panels']} of {2 * found['visits']} without sharing",
    }
    assert found["never"] and found["repeated"]
    legend = page.locator(".legend > span")
    wanted = ["done", "running now", "padding", "launch", "out of work", "never written", "written more than once"]
    assert legend.all_inner_texts() == wanted
    page.get_by_role("combobox", name="Order").select_option("row_major")
    page.get_by_role("combobox", name="Launch cost").select_option("0")
    page.wait_for_function("box.querySelectorAll('.legend > span').length === 4")
    assert legend.all_inner_texts() == ["done", "running now", "padding", "out of work"]


def test_map_plays_to_the_end_and_says_so_once(page, mount):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)
    widget = TileMap(step=5)
    mount(widget)
    first = page.locator(".summary").inner_text()
    page.get_by_role("button", name="Play").press("Enter")
    page.clock.run_for(700)
    assert state_of(page, "step") == {"step": 6} and page.locator(".summary").inner_text() == first
    page.clock.run_for(2000)
    assert state_of(page, "step") == {"step": 7} and page.evaluate("model.saved") == 1
    widget.step = 7
    expect_summary(page, widget.summary())
    page.get_by_role("button", name="Play").press("Enter")  # from the start again
    page.clock.run_for(700)
    page.get_by_role("button", name="Pause").press("Enter")
    page.clock.run_for(2000)
    widget.step = 1
    expect_summary(page, widget.summary())
    page.get_by_role("button", name="Play").press("Enter")
    page.evaluate("cleanup()")
    page.clock.run_for(2000)
    assert state_of(page, "step") == {"step": 1}, "nothing plays on after the widget is gone"


def test_map_jumps_where_motion_is_unwanted(page, mount):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)
    page.emulate_media(reduced_motion="reduce")
    widget = TileMap()
    mount(widget)
    page.get_by_role("button", name="Jump to the end").press("Enter")
    assert state_of(page, "step") == {"step": 7}, "at once, with no time passing"
    page.clock.run_for(100)
    widget.step = 7
    expect_summary(page, widget.summary())
    assert page.evaluate("model.saved") == 1


def test_map_as_a_table(page, mount):
    widget = tile_map(tiles_n=3)
    mount(widget)
    assert not page.get_by_role("table", name="Steps").is_visible()
    show_tables(page)
    page.get_by_role("table", name="Steps").wait_for()
    found = widget.schedule()
    read = {
        name: [row.split("\t") for row in page.get_by_role("table", name=name).get_by_role("row").all_inner_texts()]
        for name in ("Tiles by work item", "Steps", "Multiprocessors")
    }
    assert read["Tiles by work item"][0] == ["Row tile", "Expert", "Rows in use", "Column 0", "Column 1", "Column 2"]
    items = {}
    for one in found.visits:
        items.setdefault((one.tile_m, one.tile_n), []).append(str(one.item))
    for number, (row, tile) in enumerate(zip(read["Tiles by work item"][1:], found.row_tiles, strict=True)):
        assert row[:3] == [str(number), str(tile.expert), str(tile.rows)]
        for column, cell in enumerate(row[3:]):
            come = items.get((number, column))
            assert cell.rpartition(" ")[0] == ", ".join(come) if come else cell == "never"
            assert come is None or cell.rpartition(" ")[2] in ("done", "running", "waiting")
    for step, (row, moment) in enumerate(zip(read["Steps"][1:], found.moments, strict=True)):
        assert row[:2] == [str(step), f"{moment.time:g}"]
        assert row[3:] == [str(number) for number in (len(found.running(moment)), *found.panels(moment))]
    for who, row in enumerate(read["Multiprocessors"][1:]):
        own = [str(one.item) for one in found.visits if one.multiprocessor == who]
        assert row == [str(who), str(len(own)), ", ".join(own)]
    assert not page.locator(".picture").is_visible()


def test_map_without_tiles_or_with_too_many(page, mount):
    widget = TileMap([0, 0])
    mount(widget)
    expect_summary(page, widget.summary())
    for part in (".picture", ".figures", ".tables"):
        assert not page.locator(part).is_visible()
    widget = TileMap([40_000, 0], block_m=128)
    mount(widget)
    assert page.locator(".picture").is_visible()
    page.get_by_role("combobox", name="Rows a tile").select_option("16")
    widget.block_m = 16
    assert "at most 8,192 are drawn" in widget.summary()
    expect_summary(page, widget.summary())
    assert not page.locator(".picture").is_visible() and page.get_by_role("slider", name="Step").is_disabled()
    page.get_by_role("combobox", name="Rows a tile").select_option("64")
    widget.block_m = 64
    expect_summary(page, widget.summary())
    assert page.locator(".picture").is_visible() and page.get_by_role("slider", name="Step").is_enabled()


def test_two_maps_keep_their_patterns_apart(page, mount):
    known = []
    for _ in range(2):
        mount(tile_map())
        fills = page.evaluate("[...box.querySelectorAll('.area')].map((path) => path.getAttribute('fill'))")
        ids = page.evaluate("[...document.querySelectorAll('pattern')].map((pattern) => `url(#${pattern.id})`)")
        assert fills and set(fills) <= set(ids) and len(ids) == len(set(ids))
        known += ids
    assert len(known) == len(set(known))


def expect_bar(page, sentence):
    page.wait_for_function("(text) => box.querySelector('p.bar').textContent === text", arg=sentence)


def test_player_by_keyboard(page, mount):
    widget = played()
    mount(widget)
    bars = page.get_by_role("slider", name="Bars of A")
    for key, changes in (  # launches are bars 0, 2, 4 and so on, their kernels 1, 3, 5
        ("ArrowRight", {"bar": [0, 3]}),
        ("ArrowUp", {"bar": [0, 2]}),
        ("Home", {"bar": [0, 0]}),
        ("ArrowDown", {"bar": [0, 1]}),
        ("End", {"bar": [0, 15]}),
        ("ArrowDown", {"bar": [0, 15]}),
        ("+", {"brush": [38.125, 77.375]}),
        ("Home", {"bar": [0, 1], "brush": [0, 39.25]}),  # the time that is shown follows the bar
        ("-", {"brush": [0, 72.25]}),
        ("0", {"brush": []}),
        ("Escape", {"bar": []}),
        ("ArrowRight", {"bar": [0, 1]}),
    ):
        bars.press(key)
        for name, value in changes.items():
            setattr(widget, name, value)
        expect_summary(page, widget.summary())
        assert state_of(page, *changes) == changes
        expect_bar(page, widget.say_bar() or "No bar is looked at.")
        assert bars.get_attribute("aria-valuetext") == (widget.say_bar() or "no bar is looked at")
    page.get_by_role("slider", name="Bars of B").press("End")
    widget.bar = [1, 0]
    expect_bar(page, widget.say_bar())


def test_player_chooses_traces_and_time(page, mount):
    widget = played()
    mount(widget)
    ends = [page.get_by_role("slider", name=name) for name in ("From", "To")]
    for end, key, brush in ((0, "ArrowRight", [0.393, 78.5]), (1, "Home", [0.393, 0.786]), (0, "Home", [0, 0.786])):
        ends[end].press(key)
        widget.brush = brush
        expect_summary(page, widget.summary())
        assert state_of(page, "brush") == {"brush": brush}
    assert ends[1].get_attribute("aria-valuetext") == "0.786 µs"
    page.get_by_role("button", name="Whole call").press("Enter")
    page.get_by_role("combobox", name="B", exact=True).select_option("none")
    widget.brush, widget.second = [], ""
    expect_summary(page, widget.summary())
    assert page.locator(".lanes").count() == 1 and state_of(page, "bar") == {"bar": [0, 1]}
    page.get_by_role("combobox", name="A", exact=True).select_option("grouped")
    widget.first = "grouped"
    expect_summary(page, widget.summary())
    assert state_of(page, "bar", "second") == {"bar": [], "second": ""}


def test_player_by_pointer(page, mount):
    widget = played(bar=())
    mount(widget)
    place = page.locator(".overview svg").bounding_box()
    left, wide = place["x"] + 92, place["width"] - 92  # of the time axis
    page.mouse.move(left + 0.5 * wide, place["y"] + 5)
    page.mouse.down()
    page.mouse.move(left + 0.25 * wide, place["y"] + 5, steps=2)
    widget.brush = state_of(page, "brush")["brush"]
    expect_summary(page, widget.summary())  # it follows the pointer, and Python hears of the end alone
    assert widget.brush and page.evaluate("model.saved") == 0
    page.mouse.up()
    assert page.evaluate("model.saved") == 1
    assert state_of(page, "brush")["brush"] == pytest.approx([78.5 / 4, 78.5 / 2], abs=0.2)
    page.get_by_role("button", name="Whole call").click()
    widget.brush = []
    expect_summary(page, widget.summary())
    place = page.locator(".lanes svg").first.bounding_box()
    at = (left + wide * 36.2 / 78.5, place["y"] + 20 + 31 + 13)  # the fourth kernel, on the second lane
    page.mouse.move(*at)
    widget.bar = [0, 7]
    expect_bar(page, widget.say_bar())
    assert state_of(page, "bar") == {"bar": []}
    page.mouse.down()
    page.mouse.up()
    assert state_of(page, "bar") == {"bar": [0, 7]}
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] + 0.25 * wide, at[1], steps=2)
    assert state_of(page, "brush") == {"brush": []}, "the time under the pointer stays where it is"
    page.mouse.up()
    assert state_of(page, "brush")["brush"] == pytest.approx([36.2, 36.2 + 78.5 / 4], abs=0.2)
    page.mouse.move(at[0], at[1], steps=2)  # after the drag nothing follows the pointer
    assert state_of(page, "brush")["brush"][1] < 60


@pytest.mark.parametrize("brush", [(), (5, 35)])
def test_player_draws_what_python_counts(page, mount, brush):
    widget = played(brush=brush, bar=())
    mount(widget)
    found, (start, stop) = widget.tally(), widget.window_ns
    scale = (float(page.locator(".sums svg").get_attribute("width")) - 92) / (stop - start)
    sums = page.locator(".sums [data-part]").evaluate_all(
        "(all) => all.map((path) => [path.dataset.part, Number(path.getAttribute('d').match(/h([0-9.]+)/)[1])])"
    )
    wanted = [[*one["by_category"].items(), ("gaps", one["window"] - one["busy"])] for one in found]
    most = max(one["window"] for one in found)
    wanted = [(name, time * scale * (stop - start) / most) for side in wanted for name, time in side if time]
    assert [name for name, _ in sums] == [name for name, _ in wanted]
    assert [wide for _, wide in sums] == pytest.approx([wide for _, wide in wanted], abs=0.02)
    for side, one in enumerate(found):
        lanes = page.locator(".lanes svg").nth(side)
        for number, name in enumerate(CATEGORIES[:5]):  # the launches on the CPU's lane are "other"
            drawn = [area for path in lanes.locator(f".category-{number}").all() for area in path.evaluate(BOXES)]
            assert sum(drawn) == pytest.approx(26 * scale * one["by_category"][name], abs=1), name
        assert sum(lanes.locator(".gap").evaluate(BOXES)) == pytest.approx(
            26 * scale * one["window"] * len(widget.traces[side]["lanes"]), abs=1
        )
        line = lanes.locator("path.floor").get_attribute("d")
        assert float(line[1:].split(" ")[0]) == pytest.approx(92 + scale * (12_500 - start), abs=0.01)
        assert lanes.locator(".floor-words").text_content() == "roofline 12.5 µs"
    assert page.locator(".sums path.floor").count() == (0 if brush else 2), "it is the time of a whole call"


def test_player_searches_and_has_a_table(page, mount):
    widget = played()
    mount(widget)
    page.get_by_label("Search names").fill("MM<1")
    widget.search = "MM<1"
    expect_summary(page, widget.summary())
    lanes = page.locator(".lanes svg").first
    bright = [area for path in lanes.locator(".area:not(.dim)").all() for area in path.evaluate(BOXES)]
    assert len(bright) == len(lanes.locator(".found").evaluate(BOXES)) == widget.tally()[0]["found"]["bars"] == 3
    assert not page.get_by_role("table", name="Time by category").is_visible()
    show_tables(page)
    rows = page.get_by_role("table", name="Time by category").get_by_role("row").all_inner_texts()
    found = widget.tally()
    for row, name in zip(rows[1:], CATEGORIES, strict=False):
        cells = [
            f"{say_ns(time)} ({100 * time / one['window']:.0f} %)"
            for one in found
            for time in [one["by_category"][name]]
        ]
        assert row.split("\t") == [name, *cells]
    assert rows[-2:] == ["together\t78.5 µs\t22 µs", "roofline, whole call\t12.5 µs\t12.5 µs"]
    tops = page.get_by_role("table", name="What took longest in A, loop").get_by_role("row").all_inner_texts()[1:]
    names = [[row["name"], row["category"], str(row["calls"]), say_ns(row["time"])] for row in widget.top()]
    assert [row.split("\t")[:4] for row in tops] == names and tops[0].split("\t")[6:] == ["not counted", "6 GFLOP/s"]
    top = page.get_by_role("table", name="What took longest in B").get_by_role("row").nth(1).inner_text()
    assert top == "grouped_mm\tmatrix product\t1\t20 µs\t91 %\t9 kFLOP\t4 kB\t450 MFLOP/s"
    assert not page.locator(".picture").is_visible()


def test_a_long_trace_is_drawn_in_few_boxes(page, mount):
    widget = played(800)
    mount(widget)
    width = int(page.locator(".lanes svg").first.get_attribute("width"))
    drawn = (
        page.locator(".lanes svg")
        .first.locator(".area")
        .evaluate_all("(all) => all.map((path) => path.getAttribute('d').split('M').length - 1)")
    )
    assert 0 < sum(drawn) < 6 * width and len(drawn) < 20
    page.get_by_role("slider", name="Bars of A").press("End")
    widget.bar = [0, 1599]
    expect_bar(page, widget.say_bar())


def test_two_players_keep_their_patterns_apart(page, mount):
    ids = []
    for _ in range(2):
        mount(played())
        fills = page.evaluate("[...box.querySelectorAll('.area, path.gap')].map((path) => path.getAttribute('fill'))")
        here = page.evaluate("[...document.querySelectorAll('pattern')].map((pattern) => `url(#${pattern.id})`)")
        assert fills and set(fills) <= set(here) and len(here) > len(CATEGORIES)
        ids += here
    assert len(ids) == len(set(ids))
