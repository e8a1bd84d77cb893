"""The built site, opened as files: every page quiet and accessible, every widget alive, nothing asked of a network."""

import os
import re
import time
from pathlib import Path
from urllib.parse import unquote

import axe_playwright_python
import pytest
from playwright.sync_api import Error

from moe_lab.notebooks import FOLDER
from moe_lab.site import build

from .reactions import change_by_keyboard, change_by_mouse

pytestmark = pytest.mark.browser

LESSONS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
# Coloured code is thousands of elements, which cost axe seconds and hold nothing but text; contrast has its own test.
PLAIN_CODE = "document.querySelectorAll('pre.code code').forEach((code) => { code.textContent = code.textContent; })"
ALIVE = "document.querySelectorAll('[data-widget]').length === document.querySelectorAll('[data-alive]').length"


def wait_until(page, condition):
    """Ask again and again from here: a page that forbids `eval` forbids Playwright's own way of waiting, too.

    A question to a page that is just left for another one has no answer, and is asked again.
    """
    deadline, true = time.monotonic() + 30, False
    while not true:
        assert time.monotonic() < deadline, f"never true: {condition}"
        try:
            true = page.evaluate(condition)
        except Error as error:
            if "Execution context was destroyed" not in error.message:
                raise
        page.wait_for_timeout(0 if true else 50)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "site"
    build(folder)
    return folder


@pytest.fixture
def visit(site, page):
    """A function that opens a page of the site; the test fails if anything but files of the site is ever asked for."""
    asked = []
    page.on("request", lambda request: asked.append(unquote(request.url)))

    def go(name):
        page.goto(f"{site.as_uri()}/{name}")
        wait_until(page, ALIVE)
        return page

    yield go
    inside = (site.as_uri(), "data:", "blob:", "about:")
    assert [address for address in asked if not address.startswith(inside)] == []


def violations(page, *rules):
    """What axe finds that is serious or critical; of the given rules, or of WCAG's levels A and AA without contrast."""
    page.evaluate(AXE)
    options = {"runOnly": list(rules or RULES), "resultTypes": ["violations"], "preload": False}
    if not rules:
        options["rules"] = {"color-contrast": {"enabled": False}}
    found = page.evaluate("async (options) => (await axe.run(document, options)).violations", options)
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in grave]


def unnamed_controls(page):
    tree = page.locator("body").aria_snapshot()
    kinds = "link|slider|combobox|checkbox|spinbutton|button|textbox|searchbox|grid|gridcell|img|radio"
    found = re.findall(rf"- ({kinds})\b(.*)", tree)
    assert len(found) > 5
    return [kind for kind, rest in found if not re.match(r' "\S', rest)]


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_is_alive_and_accessible(visit, lesson):
    page = visit(f"{lesson}.html")
    for widget in page.locator("[data-widget]").all():
        name = widget.evaluate("node => JSON.parse(live.textContent).widgets[Number(node.dataset.widget)].module")
        change_by_keyboard(page, widget)
        change_by_mouse(page, widget, name)
    page.evaluate(PLAIN_CODE)
    assert unnamed_controls(page) == []
    assert violations(page) == []


def test_the_other_pages_are_accessible(site, visit):
    lessons = {f"{lesson}.html" for lesson in LESSONS}
    others = sorted({str(path.relative_to(site)) for path in site.rglob("*.html")} - lessons)
    assert {"index.html", "search.html", f"solutions/{LESSONS[0]}.html"} <= set(others)
    some = others if os.environ.get("MOE_LAB_THOROUGH") else sorted({"index.html", "search.html", *others[::4]})
    for name in some:
        page = visit(name)
        page.evaluate(PLAIN_CODE)
        assert violations(page) == [], name


def test_text_reads_in_both_schemes(visit):
    for name in ("index.html", "search.html#router", "glossary.html", "solutions/01_routing.html"):
        page = visit(name)
        for _ in ("light", "dark"):
            assert violations(page, "color-contrast") == [], name
            page.get_by_role("button", name="Dark colours").click()


def test_search_finds_and_leads_there(visit):
    page = visit("index.html")
    page.keyboard.press("/")
    page.keyboard.type("noise floor")
    page.keyboard.press("Enter")
    wait_until(page, "document.querySelectorAll('.results li').length > 5")
    assert re.fullmatch(r"\d+ places.*", page.get_by_role("status").inner_text())
    first = page.locator(".results li").first
    assert "noise floor" in first.inner_text()
    words = page.get_by_label("Words, all of which must occur")
    words.fill("zzz no such words")
    assert page.get_by_role("status").inner_text() == "0 places."
    words.fill("measures of a load")
    page.get_by_role("link", name="Measures of a load").first.click()
    page.wait_for_url("**/03_load_balancing.html#*")
    assert page.get_by_role("heading", name="Measures of a load").is_visible()


def test_lessons_lead_to_each_other(visit):
    page = visit("index.html")
    assert page.locator(".lessons li").count() == len(LESSONS)
    page.locator(".lessons a").first.click()
    page.wait_for_url(f"**/{LESSONS[0]}.html")
    assert page.get_by_role("link", name="Previous:").count() == 0
    page.get_by_role("link", name="Next:").click()
    page.wait_for_url(f"**/{LESSONS[1]}.html")
    page.get_by_role("link", name="Solutions of this lesson").click()
    page.wait_for_url(f"**/solutions/{LESSONS[1]}.html")
    page.go_back()
    page.get_by_role("link", name="Previous:").click()
    page.wait_for_url(f"**/{LESSONS[0]}.html")
    page.get_by_role("link", name="moe-lab", exact=True).click()
    page.wait_for_url("**/index.html")


PAPER = "getComputedStyle(document.body).backgroundColor"


def test_dark_colours_stay_chosen(visit):
    page = visit("index.html")
    page.emulate_media(color_scheme="light")
    light = page.evaluate(PAPER)
    switch = page.get_by_role("button", name="Dark colours")
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    dark = page.evaluate(PAPER)
    assert dark != light and switch.get_attribute("aria-pressed") == "true"
    page = visit("search.html")
    assert page.evaluate(PAPER) == dark
    page.get_by_role("button", name="Dark colours").press("Enter")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(PAPER) == light, "the reader's choice goes before the system's"
    page.evaluate("localStorage.clear()")
    assert visit("search.html").evaluate(PAPER) == dark, "without a choice it is the system's"


def test_keyboard_and_print(visit):
    page = visit(f"{LESSONS[3]}.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    scrolling = (
        "[...document.querySelectorAll('main pre, main .wide')].filter((box) => box.scrollWidth > box.clientWidth)"
    )
    assert page.evaluate(f"{scrolling}.every((box) => box.tabIndex === 0) && {scrolling}.length > 0")
    page.set_viewport_size({"width": 480, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 480
    page.emulate_media(media="print")
    assert not page.locator("header").is_visible() and not page.locator(".contents").is_visible()
    assert page.locator("h1").is_visible() and page.locator("[data-widget]").first.is_visible()
