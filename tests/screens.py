"""The screens on which the tests open pages, and the checks for every page."""

from __future__ import annotations

import pathlib

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCREENSHOTS = ROOT / "target" / "browser"
# (name, width, height, colour scheme)
SCREENS = (
    ("wide-light", 1280, 800, "light"),
    ("wide-dark", 1280, 800, "dark"),
    ("phone-light", 390, 844, "light"),
    ("phone-dark", 320, 640, "dark"),  # the narrowest width that WCAG's reflow criterion asks for
)


def check_page(page: Page, name: str, whole: bool = True) -> None:
    """Takes a screenshot, and checks the page with axe-core and against the width of its screen."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    # A run that examined nothing reports no violations either.
    assert len(found.response["passes"]) > 10
    inside, width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width, f"{name} is {inside} pixels wide on a screen of {width}"
    broken = page.evaluate("[...document.images].filter(i => i.hasAttribute('src') && !i.naturalWidth).map(i => i.alt)")
    assert broken == [], f"images that show nothing: {broken}"
