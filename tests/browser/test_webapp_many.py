"""The web application with 10,000 photos: the page has only as many elements as fit the screen, wherever the list is
scrolled to."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from webapp import SIZES, environment, ready, schema, serve, until

from screens import check_page

PHOTOS = 10_000
NODES = 1500  # elements of the whole page; a list without recycling has 40,000
LOADED = "[...document.querySelectorAll('.tile')].filter(t => t.dataset.id && t.querySelector('img').complete)"


@pytest.fixture(scope="module")
def address(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    schema(database)
    script = pathlib.Path(__file__).with_name("many.sql")
    subprocess.run(
        ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(script)], env=environment(database), check=True, timeout=120
    )
    with serve(database, tmp_path_factory) as address:
        yield address


def check(page: Page) -> int:
    """Checks that the visible photos are drawn in their places, with few other elements. Returns the number of the
    first visible photo."""
    ready(page)
    nodes, tiles, uncovered, first = page.evaluate("""() => {
        const tiles = [...document.querySelectorAll('.tile')], box = document.querySelector('.grid').getBoundingClientRect();
        // Every row of the screen that the list reaches is covered by a tile, a heading, or the gap below a section.
        let uncovered = 0;
        const rows = tiles.map(t => t.getBoundingClientRect());
        const heads = [...document.querySelectorAll('.section')].map(h => h.getBoundingClientRect());
        for (let y = Math.max(0, box.top); y < Math.min(innerHeight, box.bottom); y += 10)
            if (![...rows, ...heads].some(r => r.top - 26 <= y && y <= r.bottom + 26)) uncovered++;
        const seen = tiles.filter(t => t.getBoundingClientRect().bottom > 140);
        return [document.querySelectorAll('*').length, tiles.length, uncovered,
                Math.min(...seen.map(t => Number(t.getAttribute('aria-posinset'))))] }""")
    assert nodes < NODES and 0 < tiles < 400 and uncovered == 0, (nodes, tiles, uncovered)
    places = page.evaluate(
        "[...document.querySelectorAll('.tile')].map(t => [Number(t.getAttribute('aria-posinset')), t.title])"
    )
    assert [place for place, _ in places] == sorted(place for place, _ in places)
    return first


@pytest.mark.parametrize("screen", SIZES[::3], ids=lambda screen: screen[0])
def test_the_list_scrolls(address: str, open_page, screen: tuple) -> None:
    page = open_page(screen)
    page.goto(address)
    expect(page.locator("#status")).to_have_text("10,000 photos")
    assert check(page) == 1
    height = page.evaluate("document.documentElement.scrollHeight")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    # Scrolls by the wheel and by large jumps, to the end and back.
    for _ in range(10):
        page.mouse.move(200, 500)
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(50)
    assert check(page) > 10
    last = 0
    for share in (0.25, 0.5, 0.75, 1):
        page.evaluate(f"scrollTo(0, {share} * document.documentElement.scrollHeight)")
        page.wait_for_timeout(200)
        first = check(page)
        assert first > max(last, PHOTOS * share * 0.9 - 400), (share, first)
        last = first
    # The height was right from the beginning, and the page didn't request the photos that were jumped over.
    assert page.evaluate("document.documentElement.scrollHeight") == height
    assert sum("small.jpg" in url for url in asked) < 2500
    assert page.evaluate("[...document.querySelectorAll('.tile')].at(-1).title") == f"Photo {PHOTOS}"
    check_page(page, f"webapp-many-{screen[0]}", whole=False)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(200)
    assert check(page) == 1


def test_keys_lead_through_all(address: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("End")
    ready(page)
    assert page.evaluate("document.activeElement.title") == f"Photo {PHOTOS}"
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-place")).to_have_text("10,000 of 10,000")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-place")).to_have_text("9,999 of 10,000")
    linked = page.url
    page.keyboard.press("Escape")
    until(page, f"document.activeElement.title === 'Photo {PHOTOS - 1}'")
    check(page)
    page.keyboard.press("Home")
    ready(page)
    assert page.evaluate("document.activeElement.title") == "Photo 1"
    for _ in range(5):
        page.keyboard.press("PageDown")
    assert check(page) > 20
    # A link finds its photo among all 10,000.
    page.goto(linked)
    expect(page.locator("#viewer-place")).to_have_text("9,999 of 10,000")
    page.keyboard.press("Escape")
    page.get_by_label("Go to a month").select_option("2021-06")
    until(
        page,
        "[...document.querySelectorAll('.section h2')].some(h => h.textContent === 'June 2021' && Math.abs(h.getBoundingClientRect().top - 90) < 80)",
    )
    check(page)


def test_all_are_selected(address: str, open_page) -> None:
    page = open_page()
    page.goto(f"{address}/?sort=added")
    ready(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("Control+a")
    expect(page.locator("#bar-count")).to_have_text("10,000 selected", timeout=20_000)
    check(page)


def test_a_search_scrolls_to_the_farthest(address: str, open_page) -> None:
    page = open_page()
    page.goto(f"{address}/?like=17")
    expect(page.locator("#status")).to_contain_text("9,999 photos, nearest first")
    check(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_timeout(200)
    check(page)
    until(page, "[...document.querySelectorAll('.tile')].at(-1).getAttribute('aria-posinset') === '9999'")
    check(page)
