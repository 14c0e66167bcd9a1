"""The gallery's page in a browser: it needs nothing else, reads well, and works by keyboard."""

from __future__ import annotations

import os
import pathlib
import subprocess

import psycopg
import pytest

from screens import ROOT, SCREENS, check_page

GALLERY = ROOT / "examples" / "gallery"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> & co'


@pytest.fixture(scope="module")
def gallery(database: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    page = tmp_path_factory.mktemp("gallery") / "gallery.html"
    done = subprocess.run(
        [str(GALLERY / "run.sh"), str(page)],
        env=os.environ | {"PGDATABASE": database},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"file://{page}" in done.stdout.splitlines()[-1]
    return page


@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen[0])
def test_it_reads_well(gallery: pathlib.Path, open_page, screen: tuple) -> None:
    page = open_page(screen)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(gallery.as_uri())
    check_page(page, f"gallery-{screen[0]}")
    assert [url for url in asked if not url.startswith("data:")] == [gallery.as_uri()]
    assert page.locator("#search article.query").count() == 12
    assert page.locator("article.group").count() == 12
    assert page.locator("article.guess").count() == 12
    assert page.locator(".map a").count() == 12 and page.locator(".map > i").count() == 37
    # A group of different photos, not of copies.
    hammers = page.locator("article.group", has=page.get_by_role("heading", name="Hammer", exact=True))
    assert len({img.get_attribute("alt") for img in hammers.locator("img").all()}) == 4
    # The right subject comes first, is large, and has its name as alternative text.
    coffee = page.locator("article.query", has_text="a cup of coffee").locator("img").first
    assert coffee.get_attribute("alt").startswith("Espresso") and coffee.bounding_box()["width"] > 150


def test_its_pictures_do_not_cover_each_other(gallery: pathlib.Path, open_page) -> None:
    for screen in SCREENS:
        page = open_page(screen)
        page.goto(gallery.as_uri())
        boxes = [box.bounding_box() for box in page.locator(".map li").all()]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
                down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
                assert across <= 0 or down <= 0, (screen[0], a, b)


def test_its_map_fills_the_frame(gallery: pathlib.Path, open_page) -> None:
    """Of twelve fields (four by three), at least ten contain a photo or a picture."""
    for screen in SCREENS:
        page = open_page(screen)
        page.goto(gallery.as_uri())
        frame = page.locator(".map").bounding_box()
        boxes = [box.bounding_box() for box in page.locator(".map li, .map > i").all()]
        filled = {
            (
                int(4 * (b["x"] + b["width"] / 2 - frame["x"]) / frame["width"]),
                int(3 * (b["y"] + b["height"] / 2 - frame["y"]) / frame["height"]),
            )
            for b in boxes
        }
        assert len(filled) >= 10, (screen[0], sorted(filled))
        for b in boxes:
            assert frame["x"] <= b["x"] and b["x"] + b["width"] <= frame["x"] + frame["width"], (screen[0], b)
            assert frame["y"] <= b["y"] and b["y"] + b["height"] <= frame["y"] + frame["height"], (screen[0], b)


def test_its_sql_wraps(gallery: pathlib.Path, open_page) -> None:
    for screen in SCREENS:
        page = open_page(screen)
        page.goto(gallery.as_uri())
        for code in page.locator("pre").all():
            wide, shown = code.evaluate("e => [e.scrollWidth, e.clientWidth]")
            assert wide <= shown, (screen[0], code.inner_text())


def test_a_query_without_an_answer_shows_no_results(gallery: pathlib.Path, database: str, open_page) -> None:
    """Tested where clip_search has relevance; elsewhere the page doesn't mention it."""
    with psycopg.connect(dbname=database) as db:
        [(has_relevance,)] = db.execute("SELECT count(*) > 0 FROM pg_proc WHERE proname = 'clip_relevance'").fetchall()
    page = open_page()
    page.goto(gallery.as_uri())
    assert page.locator("#nothing").count() == has_relevance
    if has_relevance:
        assert "No photo is relevant" in page.locator("#nothing").inner_text()


def test_it_works_by_keyboard(gallery: pathlib.Path, open_page) -> None:
    page = open_page()
    page.goto(gallery.as_uri())
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "Skip to the photos" and skip.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    # From there on, Tab visits every control in page order, each with a visible outline.
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => { const e = document.activeElement, s = getComputedStyle(e);
            return e === document.body ? null : [e.tagName, e.getAttribute('aria-label') ?? e.getAttribute('href'),
                                                 s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,
                                                 e.getBoundingClientRect().top + scrollY] }""")
        if stop is None:
            break
        stops.append(stop)
    assert len(stops) == 12 and all(stop[1].startswith("#group-") for stop in stops), stops
    assert all(stop[2] for stop in stops), stops
    tops = [stop[3] for stop in stops]
    assert tops == sorted(tops), stops
    page.locator(".map a").first.press("Enter")
    assert page.evaluate("document.querySelector(':target').className") == "group"


def test_a_title_is_text_whatever_it_says(
    gallery: pathlib.Path, database: str, open_page, tmp_path: pathlib.Path
) -> None:
    with psycopg.connect(dbname=database, autocommit=True) as db:
        db.execute("SET search_path = gallery, public")
        db.execute(
            """INSERT INTO photo (title, keywords, data, credit)
               SELECT %s, ARRAY[%s], data, %s FROM photo WHERE title = 'Dahlia'""",
            (HOSTILE, HOSTILE, HOSTILE),
        )
    made = tmp_path / "page.html"
    subprocess.run(
        ["psql", "-X", "-f", "page.sql", "-o", str(made)],
        cwd=GALLERY,
        env=os.environ | {"PGDATABASE": database, "PGCLIENTENCODING": "UTF8"},
        check=True,
        timeout=300,
    )
    page = open_page()
    page.goto(made.as_uri())
    assert page.locator(f"img[alt={psycopg.sql.Literal(HOSTILE).as_string()}]").count() > 0
    assert page.locator("footer li", has_text="<script>alert(1)</script>").count() == 1
    assert page.locator("script").count() == 0
    check_page(page, "gallery-hostile")
