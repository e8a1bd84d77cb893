"""The race on a page: its words are Python's, without a kernel it plays its recording, and it does not chatter."""

import math
import random
import re
from pathlib import Path

import pytest

from moe_lab.widgets import Race
from moe_lab.widgets.expert_roofline import three_digits
from moe_lab.widgets.race import compare, pick, rate_of, say_loss, say_race, say_span

from .reactions import show_tables

pytestmark = pytest.mark.browser

# the search for the lowest contrast that every other widget is held to
PAGE_TESTS = Path(__file__).with_name("test_widgets_page.py").read_text()
LOWEST_CONTRAST = re.search(r'^LOWEST_CONTRAST = """(.*?)"""', PAGE_TESTS, re.S | re.M)[1]
STATUSES = ("running", "stopped", "time is up", "finished", "recorded", "playing")
ANSWER_MS, PLAY_MS = 3000, 20_000  # as in race.js


def made_up_arm(rng, name, steps, loss_end):
    """An arm at some point of its schedule, with a curve that falls."""
    done = rng.choice([0, rng.randrange(steps + 1), steps])
    step_s, block = rng.uniform(0.01, 2), max(1, steps // 20)
    curve = [
        [step, round(loss_end + (5.5 - loss_end) * math.exp(-5 * step / steps), 4), round(step * step_s, 3)]
        for step in range(block, done + 1, block)
    ]
    return {
        **{"name": name, "experts": 8 if name == "moe" else 0, "params": rng.randrange(10**4, 10**7), "batch": 16},
        **{"flops": 310_378_496, "router_flops": 25_165_824 if name == "moe" else 0, "steps": steps, "done": done},
        **{"seconds": round(done * step_s, 3), "busiest": 1.5 if name == "moe" and done else None, "curve": curve},
        **{"validation": curve[4::5], "final": loss_end if done == steps else None},
    }


def made_up_race(rng):
    dense_steps = rng.randrange(1, 30_000)
    divided = [dense_steps // shorter for shorter in rng.choice([(1,), (4,), (4, 7, 10)])]
    arms = [
        made_up_arm(rng, name, max(1, steps), round(rng.uniform(1, 3), 4))
        for name, steps in [("dense", dense_steps), *(("moe", steps) for steps in divided)]
    ]
    about = {"error": "", "wall_s": round(rng.uniform(0, 150), 1), "limit_s": 120, "source": "somewhere"}
    return {"status": rng.choice(STATUSES), **about, "arms": arms}


def run(name, steps, loss):
    """A run of a record, as the grid keeps it."""
    block = max(1, steps // 100)
    curve = [
        [step, round(loss + (5.5 - loss) * math.exp(-6 * (step / steps) ** 0.5), 4)]
        for step in range(block, steps + 1, block)
    ]
    experts = 64 if name == "moe" else 0
    return {
        **{"name": f"race-{name}-{steps}-0", "loss": loss, "curve": curve, "validation": curve[4::5]},
        **{"total_params": 40_960 * max(1, experts), "max_violation": [0.25] if experts else []},
        "flops_a_step": {"all": 620_756_992, "routers": 50_331_648 if experts else 0},
        "configs": {
            "model": {"num_experts": experts},
            "train": {"steps": steps, "batch": 32, "seed": 0},
        },
    }


RECORD = {
    **{"preset": "made up", "date": "2026-01-02", "step_ms": {"dense": 70.0, "moe": 190.0}},
    "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "torch": "2.13.0"},
    "race": [run("dense", 28_000, 1.42), run("moe", 7000, 1.39), run("moe", 4000, 1.47)],
}


def recorded(**options):
    return Race(RECORD, **{"shorter": 4, **options})


def live_state(status="running", done=(420, 130)):
    """What a kernel sends of a race of 1,400 and 350 steps."""
    rng = random.Random(1)
    arms = [made_up_arm(rng, name, steps, 2.0) for name, steps in (("dense", 1400), ("moe", 350))]
    for arm, steps in zip(arms, done, strict=True):
        block = max(1, arm["steps"] // 100)
        curve = [[step, round(5.5 - 3 * step / arm["steps"], 4), step / 10] for step in range(block, steps + 1, block)]
        final = 2.5 if steps == arm["steps"] else None
        arm.update(curve=curve, validation=curve[4::5], done=steps, seconds=steps / 10, final=final)
        arm["busiest"] = 1.5 if arm["name"] == "moe" else None
    return {"status": status, "error": "", "wall_s": 60.0, "limit_s": 120, "source": "This machine: x", "arms": arms}


def going(**options):
    widget = recorded(**options)
    widget.live = live_state()
    return widget


def summary(page):
    return page.locator(".summary").inner_text()


def expect_summary(page, sentence):
    page.wait_for_function("(text) => box.querySelector('.summary').textContent === text", arg=sentence)


def expect_notice(page, part):
    page.wait_for_function("(text) => box.querySelector('.notice').textContent.includes(text)", arg=part)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).press("Enter")


def kernel_says(page, **traits):
    page.evaluate("(traits) => Object.entries(traits).forEach(([name, value]) => model.set(name, value))", traits)


def stop_the_clock(page):
    page.clock.install(time=0)
    page.clock.pause_at(3_600_000)  # from here on time moves only when it is told to


def test_both_languages_count_and_say_the_same(logic):
    rng = random.Random(0)
    races = [made_up_race(rng) for _ in range(80)]
    races += [{}, {**races[0], "arms": [], "status": "starting"}, {**races[0], "arms": [], "status": "stopped"}]
    races += [{**races[0], "status": "failed", "error": "Diverged: step 3"}]
    asked = """argument.map(([race, shorter]) => { const two = m.pick(race, shorter);
        return [two, m.sayRace(two), two.arms?.length ? m.compare(two) : [], (two.arms ?? []).map(m.rateOf)]; })"""
    states = [[race, rng.choice([1, 2, 4, 7, 10])] for race in races]
    said = []
    for (race, shorter), (two, sentence, found, rates) in zip(states, logic("race", asked, states), strict=True):
        own = pick(race, shorter)
        assert two == own and sentence == say_race(own)
        assert rates == [rate_of(arm) for arm in own.get("arms", [])]
        assert found == (compare(own) if own.get("arms") else [])
        said.append(sentence)
    parts = ("Both have finished", "Time is up", "Recorded, at", "with loss", "the MoE leads", "min each")
    for part in parts:
        assert any(part in sentence for sentence in said), part


def test_both_languages_write_numbers_alike(logic):
    values = [0, 0.125, 2.125, 2.0625, 1.005, 9.995, 9.949, 9.95, 10, 99.5, 299.5, 300, 1980, 123456.7, 1e-3, 0.6745]
    asked = "argument.map((value) => [m.sayLoss(value), m.saySpan(value), value ? m.threeDigits(value) : '0'])"
    want = [[say_loss(value), say_span(value), three_digits(value) if value else "0"] for value in values]
    assert logic("race", asked, values) == want


def test_a_cut_shows_nothing_that_came_later(logic):
    race = pick(recorded().recorded, 4)
    whole = max(arm["seconds"] for arm in race["arms"])
    cuts = logic("race", "argument[1].map((at) => m.cut(argument[0], at))", [race, [0, 100, 1400, whole]])
    for at, shown in zip([0, 100, 1400], cuts, strict=False):
        assert shown["status"] == "playing"
        for arm, full in zip(shown["arms"], race["arms"], strict=True):
            assert arm["curve"] == [point for point in full["curve"] if point[2] <= at]
            assert arm["validation"] == [point for point in full["validation"] if point[2] <= at]
            if full["seconds"] > at:
                assert (arm["final"], arm["seconds"], arm["busiest"]) == (None, at, None)
                assert arm["done"] <= full["steps"] * at / full["seconds"] < arm["done"] + 1
            else:
                assert arm == full
    assert cuts[-1] == race


def test_ticks_are_round_and_few(logic):
    limits = [10, 12.3, 60, 99, 350, 1400, 1960, 28_000, 10**6]
    for limit, ticks in zip(limits, logic("race", "argument.map(m.ticksUpTo)", limits), strict=True):
        assert ticks[0] == 0 and 3 <= len(ticks) <= 7 and limit - ticks[1] < ticks[-1] <= limit


@pytest.mark.parametrize("make", [recorded, going, Race])
def test_every_control_has_a_name(page, mount, make):
    mount(make())
    controls = [
        ("button", "Stop" if make is going else "Start"),
        ("button", "Start over"),
        ("combobox", "Steps of the MoE"),
        ("combobox", "Against"),
        ("checkbox", "Show as table"),
    ]
    for role, name in controls:
        assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    if make is not Race:
        assert page.get_by_role("progressbar").count() == 2 and page.get_by_role("img").count() == 1
    tree = page.locator("div").first.aria_snapshot()
    found = re.findall(r"- (slider|combobox|checkbox|button|textbox|img|progressbar)\b(.*)", tree)
    assert [role for role, rest in found if not re.match(r' "\S', rest)] == []


def test_it_says_what_is_recorded_and_what_is_live(page, mount):
    widget = recorded()
    mount(widget)
    assert summary(page) == widget.summary() and summary(page).startswith("Recorded. ")
    assert page.locator(".notice").inner_text() == "This is a recorded race. Start trains both models here."
    assert page.locator(".source").inner_text().startswith("Recorded 2026-01-02")
    page.get_by_role("combobox", name="Steps of the MoE").select_option("as many as dense")
    widget.shorter = 1
    expect_notice(page, "It has no MoE with so many steps; the nearest one is shown.")
    assert summary(page) == widget.summary()
    widget = going()
    kernel_says(page, live=widget.live)
    expect_summary(page, widget.summary())
    assert page.locator(".source").inner_text() == "This machine: x" and not page.locator(".notice").is_visible()


def test_the_chart_says_what_it_shows(page, mount):
    mount(going())
    name = page.get_by_role("img").get_attribute("aria-label")
    assert name == (
        "Training loss against steps: the dense model from 5.47 to 4.60 after 420 steps, "
        "the MoE from 5.47 to 4.39 after 129 steps"
    )
    page.get_by_role("combobox", name="Against").select_option("seconds")
    page.wait_for_function("box.querySelector('svg').getAttribute('aria-label').includes('against seconds')")
    assert "after 42 s, the MoE" in page.get_by_role("img").get_attribute("aria-label")
    assert page.evaluate("[model.get('axis'), model.saved]") == ["seconds", 1]


HEADS = """() => Object.fromEntries(["dense", "moe"].map((name) => {
    const place = box.querySelector(`.chart .${name} .head`).parentNode.getAttribute("transform");
    return [name, place.match(/[0-9.]+/g).map(Number)];
}))"""


def test_points_lie_where_the_axes_say(page, mount):
    mount(going())
    place = {"dense": (420, 4.6), "moe": (129, 5.5 - 3 * 129 / 350)}
    for axis, limit, unit in (("steps", 1400, 1), ("seconds", 42, 0.1)):
        page.get_by_role("combobox", name="Against").select_option(axis)
        page.wait_for_function(f"box.querySelector('svg').getAttribute('aria-label').includes('against {axis}')")
        for name, (x, y) in page.evaluate(HEADS).items():
            step, loss = place[name]
            assert x == pytest.approx(46 + 554 * step * unit / limit, abs=0.2)
            assert y == pytest.approx(296 - 282 * math.log(loss / 2) / math.log(3), abs=0.3)


def test_figures_are_pythons(page, mount):
    widget = going()
    mount(widget)
    rows = page.get_by_role("table", name="Figures").get_by_role("row").all_inner_texts()
    dense, moe = widget.live["arms"]
    want = [
        ["FLOPs a step", "310 MFLOP", "310 MFLOP"],
        ["of these, router", "none", "25.2 MFLOP (8.11 %)"],
        ["Parameters", f"{dense['params']:,}", f"{moe['params']:,}"],
        ["Examples a second", "160", "160"],
        ["Seconds of training", "42 s", "13 s"],
        ["Training loss", say_loss(dense["curve"][-1][1]), say_loss(moe["curve"][-1][1])],
        ["Held-out loss", "4.60 at step 420", "4.47 at step 120"],
        ["Busiest expert", "no experts", "1.5 times the mean load"],
    ]
    assert [row.split("\t") for row in rows[1:]] == want
    bars = page.get_by_role("progressbar")
    assert [bars.nth(n).evaluate("bar => [bar.value, bar.max]") for n in (0, 1)] == [[420, 1400], [130, 350]]


def test_curves_as_a_table(page, mount):
    mount(going())
    show_tables(page)
    rows = page.get_by_role("table", name="Training loss, dense").get_by_role("row").all_inner_texts()
    assert rows[0].split("\t") == ["Step", "Seconds", "Loss"] and 10 <= len(rows) - 1 <= 15
    assert rows[-1].split("\t") == ["420", "42 s", "4.60"]
    assert page.get_by_role("table", name="Training loss, MoE").count() == 1
    assert not page.locator(".picture").is_visible()


def test_buttons_ask_the_kernel(page, mount):
    stop_the_clock(page)
    mount(recorded())
    press(page, "Start")
    page.clock.run_for(100)
    assert page.evaluate("model.get('wish')") == {"number": 1, "verb": "start"}
    expect_notice(page, "Asking the kernel")
    kernel_says(page, heard=1, live={**live_state(), "status": "starting", "arms": []})
    page.clock.run_for(100)
    assert summary(page) == "Both models are being made." and not page.locator(".picture").is_visible()
    assert page.get_by_role("button", name="Stop", exact=True).evaluate("button => button === document.activeElement")
    kernel_says(page, live=live_state())
    page.clock.run_for(2 * ANSWER_MS)
    assert summary(page) == say_race(live_state()), "a kernel that has answered is believed"
    assert page.get_by_role("combobox", name="Steps of the MoE").is_disabled()
    press(page, "Stop")
    kernel_says(page, heard=2, live=live_state("stopped"))
    page.clock.run_for(100)
    assert page.evaluate("model.get('wish').verb") == "stop"
    assert summary(page) == say_race(live_state("stopped"))
    press(page, "Go on")
    assert page.evaluate("model.get('wish')") == {"number": 3, "verb": "start"}
    kernel_says(page, heard=3, live=live_state("finished", (1400, 350)))
    page.clock.run_for(100)
    assert summary(page).startswith("Both have finished. ")
    press(page, "Start over")
    assert page.evaluate("[model.get('wish').verb, model.saved]") == ["start over", 4]


def test_without_a_kernel_it_plays_the_recording(page, mount):
    stop_the_clock(page)
    widget = recorded()
    mount(widget)
    press(page, "Start")
    page.clock.run_for(ANSWER_MS + PLAY_MS // 2)
    assert page.locator(".notice").inner_text() == (
        "No kernel answers, so nothing is trained here. This is a recorded race."
    )
    assert summary(page).startswith("Recorded, at 16 min: the dense model at step 1")
    chart = page.locator(".chart svg").bounding_box()
    press(page, "Stop")
    page.clock.run_for(1000)
    stopped = summary(page)
    press(page, "Go on")
    page.clock.run_for(1000)
    assert summary(page) != stopped and page.locator(".chart svg").bounding_box() == chart
    page.clock.run_for(PLAY_MS)
    assert summary(page) == widget.summary() and page.get_by_role("button", name="Start", exact=True).count() == 1
    press(page, "Start")
    page.clock.run_for(200)
    assert "Recorded, at 9.8 s" in summary(page), "from its beginning, and without waiting again"
    press(page, "Start over")
    page.clock.run_for(200)
    page.get_by_role("button", name="Stop").press("Enter")
    assert page.evaluate("model.get('wish').number") == 1, "nobody is asked a second time"
    kernel_says(page, heard=1, live=live_state())  # it was busy, and answers now
    page.clock.run_for(100)
    assert summary(page) == say_race(live_state()) and not page.locator(".notice").is_visible()


def test_without_a_kernel_and_a_recording(page, mount):
    stop_the_clock(page)
    mount(Race({**RECORD}))
    kernel_says(page, recorded={})
    press(page, "Start")
    page.clock.run_for(ANSWER_MS + 100)
    assert page.locator(".notice").inner_text() == "No kernel answers, so nothing is trained here."
    assert summary(page) == say_race({})


def test_it_jumps_where_motion_is_unwanted(page, mount):
    stop_the_clock(page)
    page.emulate_media(reduced_motion="reduce")
    widget = recorded()
    mount(widget)
    press(page, "Start")
    page.clock.run_for(ANSWER_MS + 100)
    assert summary(page) == widget.summary()


def test_it_is_read_out_a_few_times_only(page, mount):
    mount(going())
    assert page.locator(".summary").get_attribute("aria-live") is None
    assert page.locator(".said").get_attribute("aria-live") == "polite"
    page.evaluate("""() => {
        const said = box.querySelector(".said");
        window.heard = [];
        new MutationObserver(() => heard.push(said.textContent)).observe(said, { childList: true });
    }""")
    for step in range(420, 1401, 49):
        state = live_state("running", (step, min(349, step // 3)))
        kernel_says(page, live=state)
        expect_summary(page, say_race(state))
    kernel_says(page, live=live_state("finished", (1400, 350)))
    expect_summary(page, say_race(live_state("finished", (1400, 350))))
    said = page.evaluate("heard")
    assert 3 <= len(said) <= 5 and said[-1] == summary(page)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("make", [recorded, going])
def test_text_reads_on_any_background_and_fits(page, mount, make, dark):
    page.set_viewport_size({"width": 500, "height": 900})
    mount(make(), dark=dark)
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


def test_labels_at_the_ends_of_the_curves_do_not_touch(logic):
    points = [[[100, 2.5, 10.0], [100, other, 10.0]] for other in (2.49, 2.5, 2.52, 3.5)]
    states = [[{"curve": [dense]}, {"curve": [moe]}] for dense, moe in points]
    asked = """argument.map((arms) => { const scales = { x: (value) => 5 * value, y: (loss) => 300 - 100 * loss };
        return m.shiftsOf(arms, "steps", scales).map((shift, side) => shift + scales.y(arms[side].curve[0][1])); })"""
    for dense, moe in logic("race", asked, states):
        assert abs(dense - moe) >= 14.9


def test_cleanup_leaves_nothing(page, mount):
    stop_the_clock(page)
    mount(recorded())
    press(page, "Start")
    page.clock.run_for(ANSWER_MS + 1000)
    assert page.evaluate("model.count()") > 5
    assert page.evaluate("[cleanup(), model.count(), box.childNodes.length].slice(1)") == [0, 0]
    page.evaluate("() => { model.get = () => { throw new Error('a race that is gone still asks for its state'); }; }")
    page.clock.run_for(1000)  # such an error fails the test
