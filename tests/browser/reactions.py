"""What a reader does to a widget, any widget: one key, one click; and whether what it says aloud follows."""

import itertools

KEYS = {"select": ("ArrowDown", "ArrowUp"), "input": ("ArrowRight", "ArrowLeft"), "button": ("Enter",)}
BY_KEYBOARD = ("input[type=range]", "select", "button")
BY_MOUSE = "input[type=range], button, input[type=checkbox]"
SAID = "[aria-live], [role=status]"
PATIENCE = 25  # times 20 ms, for one control
SYSTEM_DRAWN = {"TextView"}
"""Widgets whose sentence follows their selects alone. By mouse a select opens a list that the system draws and no test
reaches; what is left for the mouse is to look closer, at one byte."""


def said(widget):
    """The text of everything that a screen reader announces when it changes."""
    return widget.locator(SAID).all_inner_texts()


def follows(page, widget, before, read=said):
    for _ in range(PATIENCE):
        if read(widget) != before:
            return True
        page.wait_for_timeout(20)
    return False


def usable(widget, selector):
    controls = widget.locator(selector)
    return [control for control in controls.all() if control.is_visible() and control.is_enabled()]


def change_by_keyboard(page, widget) -> str:
    """Press keys on one control after the other until the widget says something else; what did it."""
    for control in itertools.chain.from_iterable(usable(widget, kind) for kind in BY_KEYBOARD):
        kind = control.evaluate("node => node.localName")
        for key in KEYS[kind]:
            before = said(widget)
            control.press(key)
            if follows(page, widget, before):
                return f"{key} on a {kind}"
    raise AssertionError(f"no key changes what this says: {said(widget)}")


def _once_it_has_answered(page, widget):
    """The controls again, after a widget that the keyboard made ask for a kernel has given up waiting for one."""
    page.wait_for_timeout(5000)
    yield from usable(widget, BY_MOUSE)


def change_by_mouse(page, widget, name: str) -> str:
    """Click until the widget says something else, or shows it, where the mouse can do no more."""
    read = (lambda box: box.inner_text()) if name in SYSTEM_DRAWN else said
    for control in itertools.chain(usable(widget, BY_MOUSE), _once_it_has_answered(page, widget)):
        box = control.bounding_box()
        for share in (0.8, 0.2):  # of a slider's way
            before = read(widget)
            control.click(position={"x": share * box["width"], "y": box["height"] / 2})
            if follows(page, widget, before, read):
                return f"a click on {control.evaluate('node => node.outerHTML.slice(0, 80)')}"
    raise AssertionError(f"no click changes what this says: {said(widget)}")


def show_tables(page, name="Show as table"):
    """Check the box, and wait until the page has drawn itself anew, with more tables."""
    shown = page.locator("table:visible")
    before = shown.count()
    page.get_by_role("checkbox", name=name).check()
    shown.nth(before).wait_for()
