"""The web application: search, one photo, selection, on every screen."""

from __future__ import annotations

import io
import pathlib
import re
import zipfile
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from playwright.sync_api import expect
from webapp import ODD, PHOTOS, SIZES, names, ready, rows, serve, until

from screens import check_page


def relevance(database: str) -> bool:
    with psycopg.connect(dbname=database) as db:
        return db.execute("SELECT count(*) > 0 FROM pg_proc WHERE proname = 'clip_relevance'").fetchone()[0]


# ---------------------------------------------------------------- search


def test_typing_searches(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    assert len(names(page)) == 10 and page.locator("#title").inner_text() == "Photos"
    expect(page.locator("#status")).to_have_text("10 photos")
    page.keyboard.press("/")
    page.keyboard.type("a cup of coffee", delay=30)
    expect(page.locator(".tile").first).to_have_attribute("title", "Espresso")
    expect(page.locator("#title")).to_have_text("“a cup of coffee”")
    expect(page.locator("#status")).to_contain_text(" ms")
    # A link to the search shows the same photos; Back returns to the start in one step.
    other = open_page()
    other.goto(page.url)
    ready(other)
    assert names(other) == names(page)
    page.go_back()
    expect(page.locator("#title")).to_have_text("Photos")
    for words, name in (
        ("rocket launch", "Rocket"),
        ("flower", "Dahlia"),
        ("photographer with a tripod", "Photographer"),
    ):
        page.locator("#words").fill(words)
        expect(page.locator(".tile").first).to_have_attribute("title", name)
    # Enter moves the keyboard focus from the words to the first result.
    page.locator("#words").press("Enter")
    assert page.evaluate("document.activeElement.title") == "Photographer"
    page.locator("#words").fill("")
    expect(page.locator("#title")).to_have_text("Photos")


def test_words_are_only_words(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    for text in (
        ODD,
        "'); DROP TABLE webapp.photo; -- %s %(words)s \\",
        "100%",
        "#q=cat",
        "a+b c",
        "%00",
        "<img src=x onerror=alert(1)>",
    ):
        page.locator("#words").fill(text)
        expect(page.locator("#title")).to_have_text(f"“{text}”")
        assert parse_qs(urlsplit(page.url).query)["q"] == [text] and not urlsplit(page.url).fragment
        ready(page)
        shown = page.locator("#content").inner_text()
        page.reload()
        ready(page)
        assert page.locator("#words").input_value() == text and page.locator("#content").inner_text() == shown
        assert page.locator("#title img, #content b, #content script").count() == 0
    assert rows(database, "SELECT count(*) FROM webapp.photo") == [(10,)]


def test_a_photo_finds_photos_and_says_why(address: str, open_page) -> None:
    page = open_page()
    page.goto(f"{address}/?q=striped+cat")
    ready(page)
    page.locator(".tile").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    until(page, "document.querySelector('#viewer-image').naturalWidth > 400")
    why = page.locator(".bars li")
    expect(why).to_have_count(3)
    assert [line.split("\n")[0] for line in why.all_inner_texts()] == ["striped cat", "striped", "cat"]
    assert 0.2 < float(why.first.locator(".figure").inner_text()) < 0.6
    facts = page.locator("#details").inner_text()
    assert re.search(r"JPEG, 451 × 300 pixels, 27\.\d kB", facts) and "A group of 2 photos" in facts, facts
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#title")).to_have_text(re.compile("^Like Cat"))
    ready(page)
    assert names(page)[0].startswith("Cat") and len(names(page)) == 9
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.locator(".tile").first.click()
    expect(page.locator(".bars li")).to_have_count(1)
    assert float(page.locator(".bars .figure").inner_text()) > 0.9
    page.get_by_role("link", name="A group of 2 photos").click()
    expect(page.locator("#title")).to_have_text("Look-alikes")
    ready(page)
    assert {"Cat", "Cat mirrored"} == set(names(page))


# ---------------------------------------------------------------- one photo, keyboard


def test_the_viewer_works_by_keyboard(address: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    titles = names(page)
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.className") != "tile":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#viewer-title")).to_have_text(titles[1])
    for key, place in (
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 9),
        ("ArrowRight", 9),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
    ):
        page.keyboard.press(key)
        expect(page.locator("#viewer-title")).to_have_text(titles[place])
        expect(page.locator("#viewer-place")).to_have_text(f"{place + 1} of 10")
    # The focus stays inside the viewer, and no focused button disappears at either end of the list.
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    open_now = page.locator("#details").is_visible()
    page.keyboard.press("i")
    assert page.locator("#details").is_visible() != open_now
    linked = page.url
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    until(page, "!location.search")
    assert page.evaluate("document.activeElement.title") == titles[1]
    # The link shows the photo again; closing it leads to the list, scrolled to where it was opened.
    page.goto(linked)
    expect(page.locator("#viewer-title")).to_have_text(titles[1])
    expect(page.locator("#viewer-place")).to_have_text("2 of 10")
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.locator(".tile").nth(3).click()
    expect(dialog).to_be_visible()
    page.go_back()
    expect(dialog).to_be_hidden()
    page.go_forward()
    expect(page.locator("#viewer-title")).to_have_text(titles[3])


def test_photos_are_selected_by_click_shift_and_keyboard(address: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    tile = page.locator(".tile")
    chosen = page.locator(".tile[aria-selected=true]")
    tile.nth(1).hover()
    tile.nth(1).locator(".check").click()
    expect(page.locator("#bar-count")).to_have_text("1 selected")
    tile.nth(4).click(modifiers=["Shift"])
    expect(page.locator("#bar-count")).to_have_text("4 selected")
    tile.nth(2).click()
    expect(page.locator("#bar-count")).to_have_text("3 selected")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#bar")).to_be_hidden()
    tile.nth(0).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    expect(chosen).to_have_count(3)
    page.keyboard.press("Space")
    expect(chosen).to_have_count(2)
    page.keyboard.press("Control+a")
    expect(page.locator("#bar-count")).to_have_text("10 selected")
    page.get_by_role("button", name="Clear the selection").click()
    expect(chosen).to_have_count(0)


def test_downloads_are_the_uploaded_bytes(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    page.locator(".tile[title=Rocket]").click()
    with page.expect_download() as one:
        page.get_by_role("link", name="Download").click()
    assert one.value.suggested_filename == "Rocket.jpg"
    assert pathlib.Path(one.value.path()).read_bytes() == (PHOTOS / "rocket.jpg").read_bytes()
    page.keyboard.press("Escape")
    page.locator(".tile[title=Cat]").click(modifiers=["Control"])
    page.locator(".tile[title=Dahlia]").click()
    with page.expect_download() as several:
        page.locator("#bar-download").click()
    with zipfile.ZipFile(io.BytesIO(pathlib.Path(several.value.path()).read_bytes())) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"{name}.jpg": (PHOTOS / f"{name.lower()}.jpg").read_bytes() for name in ("Cat", "Dahlia")
        }


# ---------------------------------------------------------------- relevance


@pytest.fixture(scope="module")
def judging(database: str, address: str, tmp_path_factory):
    """A server with relevance. If the extension has no clip_relevance yet, a function by the cosine replaces it."""
    if not relevance(database):
        with psycopg.connect(dbname=database, autocommit=True) as db:
            db.execute(
                """CREATE FUNCTION clip_relevance(embedding vector, query text) RETURNS float8 STABLE PARALLEL SAFE LANGUAGE sql
                   RETURN 1 / (1 + exp(-40 * (1 - (embedding <=> clip_embed_text(query)) - 0.2)))"""
            )
    with serve(database, tmp_path_factory) as address:
        yield address


def test_a_search_ends_where_relevance_does(judging: str, open_page) -> None:
    page = open_page()
    page.goto(f"{judging}/?q=sleepy striped house cat")
    ready(page)
    relevant = names(page)
    assert relevant and set(relevant) <= {"Cat", "Cat mirrored"}
    expect(page.locator("#status")).to_contain_text(f"{len(relevant)} photo")
    more = page.get_by_role("button", name=f"Show {10 - len(relevant)} more, less likely")
    check_page(page, "webapp-relevant")
    more.click()
    expect(page.locator(".section h2")).to_have_text("Less likely")
    ready(page)
    # Each photo appears once, and the relevant photos stay where they were.
    assert names(page)[: len(relevant)] == relevant and len(set(names(page))) == len(names(page)) == 10
    assert "all=1" in page.url
    page.reload()
    expect(page.locator(".tile")).to_have_count(10)
    page.locator(".tile").first.click()
    expect(page.locator(".why")).to_contain_text(re.compile(r"Relevance [01]\.\d\d of 1"))


def test_nothing_relevant_offers_the_nearest(judging: str, open_page) -> None:
    page = open_page()
    page.goto(f"{judging}/?q=tax return form")
    expect(page.locator(".empty h2")).to_have_text("Nothing here looks like “tax return form”")
    check_page(page, "webapp-nothing-relevant")
    page.get_by_role("button", name="Show the nearest of 10 photos").click()
    expect(page.locator(".tile")).to_have_count(10)
    expect(page.locator("#status")).to_have_text("Nothing relevant; 10 photos, nearest first")


# ---------------------------------------------------------------- screens


@pytest.mark.parametrize("screen", SIZES, ids=lambda screen: screen[0])
def test_it_reads_well(address: str, database: str, open_page, screen: tuple) -> None:
    page = open_page(screen)

    def check(name: str, whole: bool = True) -> None:
        check_page(page, f"webapp-{name}-{screen[0]}", whole)
        wide = page.evaluate(
            "[...document.querySelectorAll('header a, header input, header label, .tools > *, .bar button')].filter(e => e.getClientRects().length).map(e => e.getBoundingClientRect()).filter(r => r.width > 1).map(r => [r.left, r.top, r.right, r.bottom])"
        )
        for i, a in enumerate(wide):
            for b in wide[:i]:
                inside = (
                    a[0] >= b[0]
                    and a[2] <= b[2]
                    and a[1] >= b[1]
                    and a[3] <= b[3]
                    or b[0] >= a[0]
                    and b[2] <= a[2]
                    and b[1] >= a[1]
                    and b[3] <= a[3]
                )
                assert inside or min(a[2], b[2]) - max(a[0], b[0]) <= 1 or min(a[3], b[3]) - max(a[1], b[1]) <= 1, (
                    name,
                    a,
                    b,
                )

    page.goto(address)
    ready(page)
    check("photos")
    page.locator(".tile").nth(1).click(modifiers=["Control"])
    page.locator(".tile").nth(2).click()
    check("selected", whole=False)
    page.locator("#bar-album").click()
    expect(page.get_by_label("Name", exact=True)).to_be_visible()
    check("new-album", whole=False)
    page.get_by_role("button", name="Cancel").click()
    page.goto(f"{address}/?q=sleepy striped house cat")
    ready(page)
    check("search")
    page.locator(".tile").first.click()
    until(page, "document.querySelector('#viewer-image').naturalWidth > 0")
    expect(page.locator("#viewer-facts dl")).to_have_count(1)
    check("photo", whole=False)
    if page.locator("#details").is_hidden():
        page.get_by_role("button", name="Details").click()
        check("photo-details", whole=False)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    # The keyboard focus is back where it was.
    assert page.evaluate("document.activeElement.className") == "tile"
    page.goto(f"{address}/?view=groups")
    expect(page.locator(".card").first).to_be_visible()
    ready(page)
    check("groups")
    [(album,)] = rows(database, "INSERT INTO webapp.album (name) VALUES ('Summer') RETURNING id")
    rows(
        database,
        "INSERT INTO webapp.album_photo (album_id, photo_id) SELECT %s, id FROM webapp.photo WHERE id < 6 RETURNING 1",
        album,
    )
    page.goto(f"{address}/?view=albums")
    expect(page.locator(".card").first).to_be_visible()
    ready(page)
    check("albums")
    page.goto(f"{address}/?album={album}")
    ready(page)
    check("album")
    rows(database, "DELETE FROM webapp.album RETURNING id")
