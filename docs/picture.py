"""The picture in the README, taken of the built site: ``make site && python docs/picture.py``."""

from pathlib import Path

from playwright.sync_api import sync_playwright

from moe_lab.doctor import find_browser

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "site" / "00_start_here.html"
PICTURE = ROOT / "docs" / "lab.png"
MAX_BYTES = 200_000


def main() -> None:
    """Open lesson 00 in light colours, bring its widget into view, and take the window."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light", reduced_motion="reduce")
        page.goto(PAGE.as_uri())
        page.wait_for_selector("[data-alive]")
        page.evaluate("document.querySelector('[data-widget]').scrollIntoView(); scrollBy(0, -250)")
        page.screenshot(path=PICTURE)
        browser.close()
    size = PICTURE.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{PICTURE} has {size:,} bytes, allowed {MAX_BYTES:,}")


main()
