"""A Chromium for the browser tests, a page that forgives nothing, and a way to put a widget on it."""

import json
import os
from pathlib import Path

import pytest

from moe_lab.doctor import BROWSERS, find_browser

WIDGETS = Path(__file__).parents[2] / "moe_lab" / "widgets"
LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:", "about:")

SHIM = (Path(__file__).parents[2] / "moe_lab" / "site" / "templates" / "model.js").read_text()


# One a module and not one a session: while Playwright is open its event loop counts as running, and a later
# test that calls asyncio.run, as nbclient does, would fail.
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that is already installed; it downloads and asks for nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium_path = find_browser()
    if chromium_path is None:
        missing = f"no browser on the path: looked for {', '.join(BROWSERS)}"
        pytest.fail(missing) if os.environ.get("MOE_LAB_REQUIRE_BROWSER") else pytest.skip(missing)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_path, args=quiet)
        yield chromium
        chromium.close()


def complaint(line) -> str:
    return f"console: {line.text} {line.location}"


def is_our_fault(line) -> bool:
    """An error on the console, unless JupyterLab asks its own server for a thing that does not exist yet.

    Now and then it does, a saved layout or a file that is being renamed, and gets a 404 that it expects.
    """
    own_question = "404" in line.text and "/api/" in line.location.get("url", "")
    return line.type == "error" and not own_question


LASTING = ("clock", "emulate_media", "add_init_script", "expose_function", "route")
"""What a test may do to a page that the next document on it would still feel."""


class Pages:
    """One page for many tests, since a new one costs half a second of a core; a test that marks it is its last."""

    def __init__(self, browser):
        self.browser, self.page, self.problems, self.marks = browser, None, [], []

    def lend(self):
        if self.page is None:
            self.page = self.browser.new_context().new_page()
            self.page.set_default_timeout(10_000)
            self.listen(self.page, self.problems)
        self.page.set_viewport_size({"width": 900, "height": 900})
        return self.page

    def listen(self, page, problems):
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda line: problems.append(complaint(line)) if is_our_fault(line) else None)
        for event in ("request", "websocket"):
            page.on(event, lambda asked: asked.url.startswith(LOCAL) or problems.append(f"request: {asked.url}"))

    def take_back(self):
        """What went wrong on the page. Another document ends all that still ran on it, so nothing comes too late."""
        if self.marks:
            self.page.context.close()
            self.page = None
        else:
            self.page.mouse.move(0, 0)
            self.page.goto("about:blank")
        found = [*self.problems]
        self.problems.clear(), self.marks.clear()
        return found


@pytest.fixture(scope="module")
def pages(browser):
    return Pages(browser)


@pytest.fixture
def page(pages, monkeypatch):
    """A blank page; the test fails if it logs an error or asks for anything outside this machine."""
    page = pages.lend()

    def note(page, name):
        if name in LASTING:
            pages.marks.append(name)
        return object.__getattribute__(page, name)

    monkeypatch.setattr(type(page), "__getattribute__", note)
    yield page
    problems = pages.take_back()
    assert not problems, "\n".join(problems)


@pytest.fixture
def logic(page):
    """Call ``logic(widget, expression, argument)``: JavaScript over the module's exports ``m`` and ``argument``."""

    def call(widget: str, expression: str, argument):
        module = (WIDGETS / f"{widget}.js").read_text()
        script = """async ([module, argument]) => {
            const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
            const m = await import(url);
            return (EXPRESSION);
        }"""
        return page.evaluate(script.replace("EXPRESSION", expression), [module, argument])

    return call


@pytest.fixture
def mount(page):
    """Call ``mount(widget)`` with a widget made in Python: it appears on a blank page with no kernel behind it.

    The page then has ``model`` (the shim), ``box`` (the element) and ``cleanup`` (what render returned).
    """

    def put(widget, dark: bool = False):
        synced = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
        traits = {name: value for name, value in synced.items() if name not in ("layout", "tabbable", "tooltip")}
        theme = "--jp-layout-color1: #111; --jp-ui-font-color1: rgba(255, 255, 255, 0.87)" if dark else ""
        page.set_content(f"<!doctype html><style>{widget._css}</style><body style='{theme}'><div></div>")
        page.evaluate(
            f"""async ([module, traits]) => {{
                {SHIM}
                const url = URL.createObjectURL(new Blob([module], {{ type: "text/javascript" }}));
                const {{ default: widget }} = await import(url);
                window.box = document.querySelector("div");
                window.model = new Model(traits);
                window.cleanup = widget.render({{ model, el: box }});
            }}""",
            [str(widget._esm), json.loads(json.dumps(traits))],
        )

    return put
