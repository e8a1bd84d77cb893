"""Views of every widget that come and go on one page: no node, listener, timer or observer stays."""

from types import SimpleNamespace

import pytest

from moe_lab.site.widgets import take_down

from ..browser.conftest import SHIM
from .growth import TABLES, WHOLE
from .makers import MAKERS

pytestmark = [pytest.mark.browser, pytest.mark.soak]

# Counts what a view could leave outside of its own element: listeners elsewhere, timers, drawings due, observers.
WITNESS = """
window.left = { listeners: new Set(), timers: new Set(), frames: new Set(), observers: new Set() };
const elsewhere = (target) => [window, document, document.documentElement, document.body].includes(target) ||
    target instanceof MediaQueryList;
const { addEventListener, removeEventListener } = EventTarget.prototype;
const find = (...call) => [...left.listeners].find((one) => one.every((part, at) => part === call[at]));
EventTarget.prototype.addEventListener = function (kind, listener, ...rest) {
  const call = [this ?? window, kind, listener];
  if (elsewhere(call[0]) && !find(...call)) left.listeners.add(call); // the same one twice is one
  addEventListener.call(...call, ...rest);
};
EventTarget.prototype.removeEventListener = function (kind, listener, ...rest) {
  const call = [this ?? window, kind, listener];
  left.listeners.delete(find(...call));
  removeEventListener.call(...call, ...rest);
};
for (const [start, stop, kept, once] of [["setTimeout", "clearTimeout", left.timers, true],
    ["setInterval", "clearInterval", left.timers, false],
    ["requestAnimationFrame", "cancelAnimationFrame", left.frames, true]]) {
  const [begin, end] = [window[start], window[stop]];
  window[start] = (function_, ...rest) => {
    const number = begin((...given) => { if (once) kept.delete(number); function_(...given); }, ...rest);
    kept.add(number);
    return number;
  };
  window[stop] = (number) => { kept.delete(number); end(number); };
}
for (const name of ["ResizeObserver", "MutationObserver", "IntersectionObserver"]) {
  window[name] = class extends window[name] {
    observe(...given) { left.observers.add(this); super.observe(...given); }
    disconnect() { left.observers.delete(this); super.disconnect(); }
  };
}
Element.prototype.setPointerCapture = () => {}; // the pointers of this test are made up
window.counts = () => Object.fromEntries(Object.entries(left).map(([name, kept]) => [name, kept.size]));
"""

# What a reader does who touches everything and holds it while the view goes.
TOUCH = """
window.touch = (box) => {
  for (const field of box.querySelectorAll("select, input, textarea")) {
    if (field.matches("[type=checkbox]")) field.click();
    for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
  }
  for (const button of box.querySelectorAll("button:enabled")) button.click();
  const at = { bubbles: true, clientX: 300, clientY: 200, pointerId: 1 };
  for (const place of box.querySelectorAll("[tabindex], svg, .chip")) {
    for (const kind of ["pointerover", "pointerdown", "pointermove"]) place.dispatchEvent(new PointerEvent(kind, at));
    place.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  }
};
"""

ROUNDS_OF = """async ([name, traits, rounds]) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (let round = 0; round < rounds; round += 1) {
    const el = document.body.appendChild(document.createElement("div"));
    const model = new Model(structuredClone(traits));
    const cleanup = widgets[name].render({ model, el });
    touch(el);
    if (round % 2) { await frame(); touch(el); } // every other view goes while a drawing is due
    cleanup();
    if (model.count() || el.childNodes.length) throw new Error(`${name}: ${model.count()} listeners of the model stay`);
    model.get = () => { throw new Error(`${name}: a view that is gone asks for its state`); };
    el.remove();
  }
  await frame();
  await frame();
  return counts();
}"""

WARM, ROUNDS = 2, 100 if WHOLE else 2
MOST_HEAP_BYTES = 4096  # a round: what an engine learns about code that runs; the smallest view takes more
NOTHING = {"listeners": 0, "timers": 0, "frames": 0, "observers": 0}


class Views:
    """A page with the modules of some widgets, and what it holds."""

    def __init__(self, page, taken: dict):
        self.page, self.taken, self.tools = page, taken, page.context.new_cdp_session(page)
        self.tools.send("Performance.enable")
        styles = "".join(f"<style>{one.style}</style>" for one in taken.values())
        page.set_content(f"<!doctype html>{styles}<body>")
        page.evaluate(
            f"""async (modules) => {{
                {WITNESS}{TOUCH}{SHIM}
                Object.assign(window, {{ Model, widgets: {{}} }});
                for (const [name, module] of Object.entries(modules)) {{
                    const url = URL.createObjectURL(new Blob([module], {{ type: "text/javascript" }}));
                    widgets[name] = (await import(url)).default;
                }}
            }}""",
            {name: one.module for name, one in taken.items()},
        )

    def come_and_go(self, rounds: int) -> dict[str, dict[str, int]]:
        """So many views of each; what is left of them, by widget."""
        return {name: self.page.evaluate(ROUNDS_OF, [name, one.traits, rounds]) for name, one in self.taken.items()}

    def look(self) -> dict[str, int]:
        """What the page holds once its garbage is collected."""
        self.tools.send("HeapProfiler.collectGarbage")
        found = {one["name"]: int(one["value"]) for one in self.tools.send("Performance.getMetrics")["metrics"]}
        return {name: found[name] for name in ("Nodes", "JSEventListeners", "JSHeapUsedSize")}


def check_views(page, taken: dict) -> None:
    """Fail where views that came and went leave anything on the page."""
    views = Views(page, taken)
    views.come_and_go(WARM)
    before, left, after = views.look(), views.come_and_go(ROUNDS), views.look()
    heap_bytes = (after["JSHeapUsedSize"] - before["JSHeapUsedSize"]) / ROUNDS
    figures = [str(after[name] - before[name]) for name in ("Nodes", "JSEventListeners")]
    some = [str(sum(one[name] for one in left.values())) for name in NOTHING]
    head = ("views of", "rounds", "nodes more", "listeners more", "heap bytes a round", *NOTHING)
    TABLES.setdefault(head, []).append((", ".join(taken), str(ROUNDS), *figures, f"{heap_bytes:.0f}", *some))
    assert {name: one for name, one in left.items() if one != NOTHING} == {}
    assert figures == ["0", "0"], f"nodes and listeners more after {ROUNDS} rounds of {', '.join(taken)}: {figures}"
    assert not WHOLE or heap_bytes < MOST_HEAP_BYTES


# all on one page in a slice, since a page takes longer than its views
@pytest.mark.parametrize("names", [[name] for name in MAKERS] if WHOLE else [[*MAKERS]], ids=" ".join)
def test_views_leave_nothing(page, names):
    check_views(page, {name: take_down(MAKERS[name]()) for name in names})


LEAKS = {
    "a listener of the window": "addEventListener('resize', () => el)",
    "a listener of a medium": "matchMedia('print').addEventListener('change', () => el)",
    "a timer": "setInterval(() => el, 1000)",
    "a timer that goes off later": "setTimeout(() => el, 10000)",
    "a drawing that asks for the next": "const draw = () => requestAnimationFrame(draw); draw()",
    "an observer": "new ResizeObserver(() => el).observe(el)",
    "nodes": "(globalThis.kept ??= []).push(el.appendChild(document.createElement('p')))",
    "listeners": "(globalThis.kept ??= []).push(new Image()); kept.at(-1).addEventListener('x', () => 0)",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_view_that_leaves_something_is_seen(page, leak):
    module = f"export default {{ render({{ el }}) {{ {LEAKS[leak]}; return () => el.replaceChildren(); }} }}"
    with pytest.raises(AssertionError):
        check_views(page, {leak: SimpleNamespace(module=module, style="", traits={})})
