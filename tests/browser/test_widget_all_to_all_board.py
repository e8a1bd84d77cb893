"""The all-to-all board on a page: its numbers are Python's, experts move by mouse and keyboard, nothing is left."""

import random
import re
from pathlib import Path

import pytest

from moe_lab.parallel.clusters import CLUSTERS, Bus, Cluster
from moe_lab.widgets import AllToAllBoard
from moe_lab.widgets.all_to_all_board import FITTED, fewest_nodes, fit, in_order
from moe_lab.widgets.expert_roofline import say_time
from moe_lab.widgets.trace_player import say_count

from .reactions import show_tables

pytestmark = pytest.mark.browser

# the search for the lowest contrast that every other widget is held to
PAGE_TESTS = Path(__file__).with_name("test_widgets_page.py").read_text()
LOWEST_CONTRAST = re.search(r'^LOWEST_CONTRAST = """(.*?)"""', PAGE_TESTS, re.S | re.M)[1]
DESK = Cluster("desk", 4, 4, None, None, 0.1, "made up", Bus(50.0, 5.0, 2.0, 8.0))
SETTINGS = ("ranks", "experts_per_rank", *FITTED)


def board(ranks=4, tokens=32, **options):
    return AllToAllBoard(ranks, tokens=tokens, clusters=[*CLUSTERS.values(), DESK], **options)


def states_of(widgets):
    """What the browser has of each: the traits, as they are sent."""
    return [{name: value for name, value in widget.get_state().items() if name in widget.keys} for widget in widgets]


def boards(count):
    """Every topology, with and without limits, relays, replicas and moved experts; some with more than one node."""
    rng = random.Random(0)
    for number in range(count):
        cluster = [*CLUSTERS, "desk"][number % (len(CLUSTERS) + 1)]
        crosses = cluster in CLUSTERS and CLUSTERS[cluster].between is not None
        ranks, size = rng.choice([2, 3, 4, 6, 8]), rng.choice([1, 2, 3])
        nodes = rng.choice([n for n in range(1, ranks + 1) if ranks % n == 0]) if crosses else 1
        top_k = rng.randint(1, min(4, ranks * size))
        limit = rng.choice([None, rng.randint(fewest_nodes(top_k, ranks * size, nodes), nodes)])
        homes = [rng.randrange(ranks) for _ in range(ranks * size)] if rng.random() < 0.5 else None
        yield board(
            ranks,
            nodes=nodes,
            tokens=rng.choice([16, 17]),
            cluster=cluster,
            experts_per_rank=size,
            top_k=top_k,
            skew=rng.choice([0.0, 0.7, 2.0]),
            node_limit=limit,
            relay=rng.random() < 0.5,
            replicas=rng.randrange(ranks) if number % 2 else 0,
            homes=homes,
            even=rng.random() < 0.8,
            seed=rng.randrange(2**31),
            d_model=rng.choice([8, 7168]),
        )


def test_both_languages_count_predict_and_say_the_same(logic):
    widgets = list(boards(24))
    asked = """argument.map((state) => { const found = m.examine(state);
        return [found, m.summarise(state, found), m.packByLoad(state)]; })"""
    said = ""
    for widget, (found, sentence, packed) in zip(
        widgets, logic("all_to_all_board", asked, states_of(widgets)), strict=True
    ):
        own, step = widget.count(), widget.step()
        assert sentence == widget.summary()
        assert found["held"] == widget.held and found["loads"] == widget.loads.tolist()
        for name in ("dispatch", "combine", "rows"):
            assert found[name] == own[name].tolist()
        assert (found["crossing"], found["between"]) == widget.between()
        assert (found["ms"], found["evenMs"]) == pytest.approx((step.ms, step.even_ms))
        assert found["expertsMs"] == pytest.approx(step.experts_ms.tolist())
        for time, exchange in zip((found["there"], found["back"]), step.exchanges, strict=True):
            assert time["byRank"] == pytest.approx(exchange.by_rank_ms.tolist())
        widget.pack()
        assert packed == widget.homes
        said += sentence
    for part in ("slowest in all three", "latencies", "sends", "receives", "NVLink", "InfiniBand", "PCIe", "alike"):
        assert part in said, part


def test_both_languages_fit_settings_alike(logic):
    rng = random.Random(1)
    states = []
    for _ in range(60):
        ranks, size = rng.randint(2, 16), rng.randint(1, 8)
        state = {"ranks": ranks, "experts_per_rank": size, "nodes": rng.randint(1, 16), "top_k": rng.randint(1, 8)}
        state |= {"node_limit": rng.choice([None, rng.randint(1, 16)]), "replicas": rng.randint(0, 15)}
        states.append({**state, "homes": rng.choice([[0, 1], in_order(ranks, size), [ranks] * ranks * size])})
    clusters = [{"name": "one", "between": None}, {"name": "two", "between": {}}]
    for cluster, crosses in (("one", False), ("two", True)):
        sent = [{**state, "clusters": clusters, "cluster": cluster} for state in states]
        fitted = logic("all_to_all_board", "argument.map(m.fit)", sent)
        assert fitted == [fit(state, crosses) for state in states]


def expect_summary(page, widget):
    page.wait_for_function("(text) => box.querySelector('.summary').textContent === text", arg=widget.summary())


def state_of(page, *names):
    return page.evaluate("(names) => Object.fromEntries(names.map((name) => [name, model.get(name)]))", names)


def follow(page, widget):
    """Give the widget what the page has set, all at once, as a kernel would."""
    widget.set_state(state_of(page, "cluster", "relay", "even", "seed", "skew", "tokens", *SETTINGS))
    expect_summary(page, widget)


CONTROLS = (
    *(("combobox", name) for name in ("Topology", "Ranks", "Nodes", "Nodes a token", "Expert", "lies on")),
    *(("slider", name) for name in ("Experts a rank", "Top-k", "Tokens a rank", "Skew", "Replicas of the hottest")),
    *(("checkbox", name) for name in ("Cross once a node, then relay", "Compare with even loads", "Show as table")),
    *(("button", name) for name in ("New sample", "In order", "Pack by load")),
    ("spinbutton", "Seed"),
)


def test_every_control_has_a_name(page, mount):
    mount(board(nodes=2))
    for role, name in CONTROLS:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    tree = page.locator("div").first.aria_snapshot()
    found = re.findall(r"- '?(slider|combobox|checkbox|spinbutton|button|textbox|img|group)\b(.*)", tree)
    assert len(found) == len(CONTROLS) + 8  # two pictures, two nodes, four ranks
    assert [role for role, rest in found if not re.match(r' "\S', rest)] == []
    assert page.locator(".summary").get_attribute("aria-live") == "polite"


def test_everything_by_keyboard(page, mount):
    widget = board(nodes=2)
    mount(widget)
    expect_summary(page, widget)
    for name, key, trait, value in (
        ("Experts a rank", "ArrowRight", "experts_per_rank", 5),
        ("Top-k", "ArrowRight", "top_k", 3),
        ("Tokens a rank", "ArrowLeft", "tokens", 16),
        ("Skew", "End", "skew", 2),
        ("Replicas of the hottest", "End", "replicas", 3),
    ):
        page.get_by_role("slider", name=name, exact=True).press(key)
        assert state_of(page, trait) == {trait: value}
        follow(page, widget)
    for name in ("Cross once a node, then relay", "Compare with even loads"):
        page.get_by_label(name).press("Space")
        follow(page, widget)
    assert widget.relay and not widget.even
    for name, choice, trait, value in (
        ("Nodes a token", "at most 1", "node_limit", 1),
        ("Nodes", "4", "nodes", 4),
        ("Ranks", "6", "ranks", 6),
        ("Topology", "desk: one machine, whose cores all ranks share", "cluster", "desk"),
    ):
        page.get_by_role("combobox", name=name, exact=True).select_option(choice)
        assert state_of(page, trait) == {trait: value}
        follow(page, widget)
    assert (widget.nodes, widget.node_limit) == (1, None)
    assert page.get_by_role("combobox", name="Nodes a token").is_disabled()
    page.get_by_role("button", name="New sample").press("Enter")
    follow(page, widget)
    page.get_by_role("spinbutton", name="Seed").fill("7")
    follow(page, widget)
    assert widget.seed == 7 and page.evaluate("model.saved") == 13


def test_experts_move_by_keyboard(page, mount):
    widget = board(nodes=2, skew=1.5)
    mount(widget)
    page.get_by_role("combobox", name="Expert", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert state_of(page, "homes")["homes"] == [0, 3, *in_order(4, 4)[2:]]
    follow(page, widget)
    rank = page.get_by_role("group", name=re.compile("^Rank 3: ")).get_attribute("aria-label")
    assert "; experts 1, 12, 13, 14, 15" in rank
    page.get_by_role("button", name="Pack by load").press("Enter")
    follow(page, widget)
    packed = board(nodes=2, skew=1.5)
    packed.pack()
    assert widget.homes == packed.homes
    page.get_by_role("button", name="In order").press("Enter")
    follow(page, widget)
    assert widget.homes == in_order(4, 4)


def settle(page):
    """Let drawings that are due happen."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def middle(page, selector):
    settle(page)  # or the mark could be replaced while it is looked up
    place = page.locator(selector).bounding_box()
    return place["x"] + place["width"] / 2, place["y"] + place["height"] / 2


def test_experts_move_by_pointer(page, mount):
    widget = board(nodes=2, skew=2.0, replicas=1)
    mount(widget)
    page.mouse.move(*middle(page, '[data-expert="5"].own'))
    page.mouse.down()
    page.mouse.move(*middle(page, '[data-rank="3"]'), steps=3)
    assert page.locator(".rank.over").get_attribute("data-rank") == "3"
    page.evaluate("model.set('seed', 3)")  # a kernel speaks in the middle of it
    settle(page)
    assert page.locator(".chip.held").count() == 1 and page.evaluate("model.saved") == 0
    page.mouse.up()
    assert state_of(page, "homes")["homes"] == [*in_order(4, 4)[:5], 3, *in_order(4, 4)[6:]]
    assert page.evaluate("model.saved") == 1
    follow(page, widget)
    assert page.get_by_role("combobox", name="Expert", exact=True).input_value() == "5"
    assert page.get_by_role("combobox", name="lies on").input_value() == "3"
    page.mouse.move(*middle(page, '[data-expert="0"].own'))
    page.mouse.down()
    page.mouse.move(2, 2, steps=2)
    page.mouse.up()  # beside the board: it goes back
    page.mouse.move(*middle(page, ".chip.replica"))
    page.mouse.down()
    page.mouse.move(*middle(page, '[data-rank="2"]'), steps=2)
    page.mouse.up()  # replicas are not for moving
    assert page.evaluate("model.saved") == 1 and page.locator(".chip.held, .rank.over").count() == 0


def test_the_pictures_are_pythons(page, mount):
    widget = board(nodes=2, replicas=2, skew=1.5)
    mount(widget)
    step, own = widget.step(), widget.count()
    dispatch, rows = own["dispatch"], own["rows"].tolist()
    times, matrix = (page.get_by_role("img").nth(number).get_attribute("aria-label") for number in (0, 1))
    parts = [say_time(ms) for ms in (step.ms, step.exchanges[0].ms, step.busiest_ms, step.exchanges[1].ms)]
    assert times.startswith(
        "Predicted time, this board {}: dispatch {}, experts {}, combine {}; even loads ".format(*parts)
    )
    crossing, between = (say_count(count, "B") for count in widget.between())
    slowest = step.exchanges[0].slowest
    assert matrix.startswith(
        f"Predicted dispatch from rank to rank, {crossing} in all, {between} of it between nodes; rank {slowest} is"
    )
    widths = page.locator(".times rect").evaluate_all("(all) => all.map((one) => one.width.baseVal.value)")
    ends = [*step.exchanges[:1], step, *step.exchanges[1:]]
    want = [one.ms if one is not step else step.busiest_ms for one in ends]
    even = [one.even_ms if one is not step else float(step.experts_ms.mean()) for one in ends]
    assert widths == pytest.approx([ms * sum(widths[:3]) / step.ms for ms in (*want, *even)], abs=0.02)
    assert page.locator(".matrix > b").inner_text() == "Predicted dispatch, kB"
    cells = page.locator(".matrix g:has(.cell) text").all_text_contents()
    assert [float(cell) for cell in cells] == pytest.approx((dispatch / 1e3).flatten().tolist(), abs=0.51)
    assert all("L" in one for one in page.locator(".kept .lines").evaluate_all("(all) => all.map((p) => p.outerHTML)"))
    assert page.locator(".kept .lines").count() == 4 and page.locator(".frame").count() == 2
    dispatch.fill_diagonal_(0)
    for kind, dim in (("sends", 1), ("gets", 0)):
        shown = page.locator(f".matrix text.{kind}").all_text_contents()
        assert [float(one) for one in shown] == pytest.approx((dispatch.sum(dim=dim) / 1e3).tolist(), abs=0.51)
    for rank, experts in enumerate(widget.held):
        shown = page.locator(f'[data-rank="{rank}"]')
        assert shown.locator(".rows").inner_text() == f"{rows[rank]:,} rows"
        assert shown.locator(".chip").all_inner_texts() == [str(expert) for expert in experts]
        bar = float(re.search(r"width: ([0-9.]+)%", shown.locator(".track i").first.get_attribute("style"))[1])
        assert bar == pytest.approx(100 * rows[rank] / max(rows), abs=0.01)
    assert page.locator(".chip.replica").count() == 2
    assert "experts" in page.locator(f'[data-rank="{rows.index(max(rows))}"] .waits').inner_text()


def test_numbers_as_tables(page, mount):
    widget = board(nodes=2, replicas=1)
    mount(widget)
    show_tables(page)
    read = {}
    for name in ("Predicted times", "Ranks, predicted", "Predicted dispatch", "Experts"):
        rows = page.get_by_role("table", name=name).get_by_role("row").all_inner_texts()
        read[name] = [row.split("\t") for row in rows[1:]]
    step, own = widget.step(), widget.count()
    there, back = step.exchanges
    assert read["Predicted times"][0] == [
        "This board",
        *map(say_time, (there.ms, step.busiest_ms, back.ms, step.ms)),
    ]
    assert read["Predicted times"][1][-1] == say_time(step.even_ms)
    for rank, cells in enumerate(read["Ranks, predicted"]):
        experts = ", ".join(map(str, widget.held[rank]))
        assert cells[:4] == [str(rank), str(rank // 2), experts, f"{int(own['rows'][rank]):,}"]
        times = (there.by_rank_ms[rank], step.experts_ms[rank], back.by_rank_ms[rank])
        assert cells[-3:] == [say_time(float(ms)) for ms in times]
    assert [cells[1:] for cells in read["Predicted dispatch"]] == [
        [say_count(count, "B") for count in row] for row in own["dispatch"].tolist()
    ]
    assert [int(cells[1]) for cells in read["Experts"]] == widget.loads.tolist()
    assert sum(cells[3] != "none" for cells in read["Experts"]) == 1
    assert not page.locator(".picture").is_visible()


def test_it_says_that_nothing_is_measured(page, mount):
    mount(board(nodes=2))
    source = page.locator(".source").inner_text()
    assert source.startswith("Nothing here is measured. H800: NVLink of the H800 160 GB/s (DeepSeek-V3 (arXiv")
    for one in (".summary", ".times > b", ".matrix > b"):
        assert "predicted" in page.locator(one).inner_text().lower()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("ranks", "nodes"), [(4, 2), (16, 1)])
def test_text_reads_on_any_background_and_fits(page, mount, ranks, nodes, dark):
    page.set_viewport_size({"width": 500, "height": 900})
    mount(board(ranks, tokens=16, nodes=nodes, skew=2.0, replicas=3), dark=dark)
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    outside = page.locator(".matrix svg, .times svg").evaluate_all("""(all) => all.flatMap((svg) =>
        [...svg.querySelectorAll("text, rect, path")].filter((mark) => {
            const [own, whole] = [mark.getBoundingClientRect(), svg.getBoundingClientRect()];
            return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
        }).map((mark) => mark.outerHTML))""")
    assert outside == []


def test_cleanup_leaves_nothing(page, mount):
    mount(board(nodes=2))
    assert page.evaluate("model.count()") > 5
    left = page.evaluate("""() => {
        model.set("seed", 9); // a drawing is due
        cleanup();
        model.get = () => { throw new Error("a board that is gone still asks for its state"); };
        return [model.count(), box.childNodes.length];
    }""")
    assert left == [0, 0]
    settle(page)
