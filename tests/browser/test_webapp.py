"""The web application, end to end: a browser, the server, the database."""

from __future__ import annotations

import http.client
import io
import json
import os
import pathlib
import re
import zipfile
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from playwright.sync_api import expect
from webapp import PHOTOS, REFUSED, SIZES, load, names, ready, schema, serve, until

from screens import ROOT, check_page

HEIC = ROOT / "tests" / "fixtures" / "heic"
# Everything that a URL, HTML or SQL may take for its own.
ODD = "50% off? #1 & <b>'quoted'</b> \"twice\" + é 🐈 \\ /../"


@pytest.fixture(scope="module")
def address(database: str, tmp_path_factory: pytest.TempPathFactory):
    """A server over a database with ten photos: the raccoon comes later."""
    # Twice, since it may be run again.
    for _ in range(2):
        schema(database)
    files = sorted(path for path in PHOTOS.glob("*.jpg") if path.stem in SUBJECTS)
    files += [PHOTOS / "deep-field.jpg", PHOTOS / "cat-mirrored.jpg"]
    loaded = load(database, *files, PHOTOS / "LICENSES.md")
    assert loaded.stdout == f"{len(files)} photos added, 1 refused\n" and loaded.returncode == 1
    assert loaded.stderr.startswith(f"{PHOTOS / 'LICENSES.md'}: not an image")
    with psycopg.connect(dbname=database, autocommit=True) as db:
        db.execute("UPDATE webapp.photo SET taken_at = timestamp '2026-03-15' - id * interval '9 days'")
    with serve(database, tmp_path_factory, WEBAPP_MAX_BYTES="2000000", WEBAPP_UNDO_SECONDS="6") as address:
        yield address


SUBJECTS = ("cat", "clock", "dahlia", "espresso", "pagoda", "photographer", "rocket", "staircase")


def relevance(database: str) -> bool:
    with psycopg.connect(dbname=database) as db:
        return db.execute("SELECT count(*) > 0 FROM pg_proc WHERE proname = 'clip_relevance'").fetchone()[0]


def rows(database: str, statement: str, *parameters: object) -> list[tuple]:
    with psycopg.connect(dbname=database, autocommit=True) as db:
        return db.execute(statement, parameters).fetchall()


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
    # A link to the search shows the same, and back leads to where it began, in one step.
    other = open_page()
    other.goto(page.url)
    ready(other)
    assert names(other) == names(page)
    page.go_back()
    expect(page.locator("#title")).to_have_text("Photos")
    for words, name in (
        ("rocket launch", "Rocket"),
        ("orange flower", "Dahlia"),
        ("ancient pagoda by a lake", "Pagoda"),
    ):
        page.locator("#words").fill(words)
        expect(page.locator(".tile").first).to_have_attribute("title", name)
    # From the words by keyboard to what was found.
    page.locator("#words").press("Enter")
    assert page.evaluate("document.activeElement.title") == "Pagoda"
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
    # The focus stays inside, and at the ends no button with the focus goes away.
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
    # The link shows it again; closing leads to the list, back to where it was opened.
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


# ---------------------------------------------------------------- uploads


def test_an_uploaded_photo_is_found_and_can_be_deleted(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    page.locator("#files").set_input_files([PHOTOS / "raccoon.jpg", PHOTOS / "raccoon-mirrored.jpg"])
    expect(page.locator("#tray h2")).to_have_text("2 photos added")
    page.get_by_role("link", name="Show what was added").click()
    expect(page.locator("#title")).to_have_text("Last added")
    ready(page)
    assert set(names(page)[:2]) == {"Raccoon", "Raccoon mirrored"}
    page.locator("#words").fill("wild animal in the forest")
    expect(page.locator("#title")).to_have_text("“wild animal in the forest”")
    ready(page)
    assert set(names(page)[:2]) == {"Raccoon", "Raccoon mirrored"}
    page.get_by_role("link", name="Groups").click()
    expect(page.locator("#status")).to_have_text("2 groups")
    expect(page.locator(".card", has_text="Raccoon")).to_contain_text("2 photos")
    # The same file a second time.
    page.locator("#tray").get_by_role("button", name="Close").click()
    page.locator("#files").set_input_files(PHOTOS / "raccoon.jpg")
    expect(page.locator("#tray")).to_contain_text("raccoon.jpg is here already, as Raccoon")

    page.goto(f"{address}/?sort=added")
    ready(page)
    page.locator(".tile", has_text="Raccoon mirrored").click(modifiers=["Control"])
    page.locator("#bar-delete").click()
    expect(page.locator("#toasts")).to_contain_text("1 photo deleted")
    expect(page.locator("#status")).to_have_text("11 photos")
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(page.locator("#status")).to_have_text("12 photos")
    expect(page.locator(".tile", has_text="Raccoon mirrored")).to_have_count(1)
    # From the viewer, which goes to the next photo; and now for good.
    titles = names(page)
    page.locator(".tile").first.click()
    page.keyboard.press("Delete")
    expect(page.locator("#viewer-title")).to_have_text(titles[1])
    page.keyboard.press("Delete")
    expect(page.locator("#viewer-place")).to_have_text("1 of 10")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("10 photos")
    groups = "SELECT coalesce(sum(size), 0) FROM clip_clusters('webapp', 1)"
    assert rows(database, groups) == [(12,)]
    for _ in range(200):
        if rows(database, "SELECT count(*) FROM webapp.photo") == [(10,)]:
            break
        page.wait_for_timeout(100)
    assert rows(database, groups) == [(10,)]


@pytest.mark.skipif(os.environ.get("HEIC") == "0", reason="built without HEIC")
def test_a_phones_photo_is_added(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    page.locator("#files").set_input_files(HEIC / "lossless.heic")
    expect(page.locator("#tray h2")).to_have_text("1 photo added")
    [(kind, thumbnail)] = rows(database, "SELECT format, thumbnail FROM webapp.photo WHERE title = 'Lossless'")
    assert kind == "HEIC" and thumbnail.startswith(b"\xff\xd8")
    page.goto(f"{address}/?sort=added")
    page.locator(".tile").first.click()
    until(page, "document.querySelector('#viewer-image').naturalWidth > 0")
    with page.expect_download() as one:
        page.get_by_role("link", name="Download").click()
    assert one.value.suggested_filename == "Lossless.heic"
    rows(database, "DELETE FROM webapp.photo WHERE title = 'Lossless' RETURNING id")


def test_a_photo_has_the_cameras_date(database: str, address: str) -> None:
    """As the EXIF block says it, whatever the file's own date is; else the date that came with the upload."""
    exif = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
        b"\x01\x32\0\x02\0\0\0\x14\0\0\0\x26\x87\x69\0\x04\0\0\0\x01\0\0\0\x3a\0\0\0\0"
        b"2021:05:06 07:08:09\0"
        b"\0\x01\x90\x03\0\x02\0\0\0\x14\0\0\0\x4c\0\0\0\0"
        b"2019:12:24 18:30:00\0"
    )
    photo = (PHOTOS / "clock-cropped.jpg").read_bytes()
    dated = photo[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + photo[2:]
    for data, date, expected in (
        (dated, "2026-01-01 00:00", ("2019-12-24 18:30:00", "camera")),
        (dated.replace(b"2019:12:24", b"2019:13:45"), None, ("2021-05-06 07:08:09", "camera")),
        (
            dated.replace(b"2019:12:24", b"2019:13:45").replace(b"2021:05", b"2921:05"),
            "2020-02-02 02:02",
            ("2020-02-02 02:02:00", "file"),
        ),
        (photo + b" ", "2020-02-02 02:02", ("2020-02-02 02:02:00", "file")),
    ):
        with psycopg.connect(dbname=database) as db:
            [row] = db.execute(
                "INSERT INTO webapp.photo (title, data, taken_at) VALUES ('Dated', %s, %s) RETURNING taken_at::text, dated_by",
                (data, date),
            ).fetchall()
            assert row == expected
            db.rollback()


def test_what_is_refused_is_collected_and_can_be_tried_again(
    address: str, database: str, open_page, tmp_path: pathlib.Path
) -> None:
    page = open_page(expected=(REFUSED, "Failed to load resource: net::"))
    page.goto(address)
    ready(page)
    before = names(page)
    whole = (PHOTOS / "rocket.jpg").read_bytes()
    avif = b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif" + bytes(64)
    cases = {
        "notes.jpg": (b"no picture at all", "This isn’t a photo", "Supported are JPEG, PNG"),
        "half.jpg": (whole[: len(whole) // 2], "Part of the file is missing", "truncated"),
        "empty.png": (b"", "The file is empty", "SQLSTATE 22023"),
        "phone.avif": (avif, "This kind of file isn’t supported", "onvert"),
        "large.jpg": (whole + bytes(2_000_000), "The file is too large", "larger than the 2 MB"),
        "<b>bold</b> #1 50%.jpg": (b"GIF87a", "", ""),
    }
    for name, (data, _, _) in cases.items():
        (tmp_path / name.replace("/", "_")).write_bytes(data)
    page.locator("#files").set_input_files(sorted(tmp_path.iterdir()))
    expect(page.locator("#tray h3")).to_have_text("6 files couldn’t be added")
    for name, (_, plain, more) in cases.items():
        entry = page.locator(".errors li", has_text=name.replace("/", "_"))
        expect(entry.locator(".what")).to_contain_text(plain)
        expect(entry).to_contain_text(more)
    check_page(page, "webapp-errors", whole=False)
    page.get_by_role("button", name="Retry half.jpg").click()
    expect(page.locator("#tray h3")).to_have_text("6 files couldn’t be added")
    page.get_by_role("button", name="Dismiss half.jpg").click()
    expect(page.locator("#tray h3")).to_have_text("5 files couldn’t be added")
    page.get_by_role("button", name="Dismiss all").click()
    expect(page.locator("#tray")).to_be_hidden()
    assert names(page) == before

    # The network comes back: what failed goes in.
    page.context.set_offline(True)
    page.locator("#files").set_input_files(PHOTOS / "staircase-cropped.jpg")
    expect(page.locator(".errors .what")).to_have_text("The server can’t be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Retry staircase-cropped.jpg").click()
    expect(page.locator("#tray h2")).to_have_text("1 photo added")
    rows(database, "DELETE FROM webapp.photo WHERE title = 'Staircase cropped' RETURNING id")


def test_a_title_is_text_whatever_it_says(address: str, database: str, open_page) -> None:
    [(id,)] = rows(
        database,
        "INSERT INTO webapp.photo (title, data) SELECT %s, data || '\\x00' FROM webapp.photo WHERE title = 'Dahlia' RETURNING id",
        ODD,
    )
    rows(
        database,
        "INSERT INTO webapp.photo (title, data) SELECT %s, data || '\\x0000' FROM webapp.photo WHERE title = 'Dahlia' RETURNING id",
        "<img src=x onerror=alert(1)>",
    )
    page = open_page()
    page.goto(f"{address}/?sort=added")
    ready(page)
    assert names(page)[:2] == ["<img src=x onerror=alert(1)>", ODD]
    page.locator(".tile").nth(1).click()
    expect(page.locator("#viewer-title")).to_have_text(ODD)
    with page.expect_download() as one:
        page.get_by_role("link", name="Download").click()
    assert not set('/\\:*?"<>|') & set(one.value.suggested_filename) and "🐈" in one.value.suggested_filename
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#title")).to_have_text(f"Like {ODD}")
    page.goto(f"{address}/?view=groups")
    expect(page.locator(".card").first).to_contain_text("3 photos")
    page.goto(f"{address}/?photo={id}")
    expect(page.locator("#viewer-title")).to_have_text(ODD)
    assert page.locator("img[src=x]").count() == 0
    rows(database, "DELETE FROM webapp.photo WHERE id >= %s RETURNING id", id)


# ---------------------------------------------------------------- albums, dates


def test_albums(address: str, database: str, open_page) -> None:
    page = open_page(expected=("Failed to load resource: the server responded with a status of 409",))
    page.goto(address)
    page.get_by_role("link", name="Albums").click()
    expect(page.locator(".empty")).to_contain_text("No albums yet")
    page.get_by_role("button", name="New album").click()
    page.get_by_label("Name", exact=True).fill(ODD)
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text(ODD)
    expect(page.locator(".empty")).to_contain_text("This album is empty")
    album = parse_qs(urlsplit(page.url).query)["album"][0]
    # A name is taken once, in whatever case.
    page.get_by_role("link", name="Albums").click()
    page.get_by_role("button", name="New album").click()
    page.get_by_label("Name", exact=True).fill(ODD.upper())
    page.keyboard.press("Enter")
    expect(page.locator("#ask-error")).to_have_text("An album of that name exists already.")
    page.get_by_role("button", name="Cancel").click()

    page.get_by_role("link", name="Photos", exact=True).last.click()
    ready(page)
    for name in ("Cat", "Rocket", "Espresso"):
        page.locator(f".tile[title={name}]").click(modifiers=["Control"])
    page.locator("#bar-album").click()
    page.get_by_role("dialog").get_by_role("button", name=ODD).click()
    expect(page.locator("#toasts")).to_contain_text(f"3 photos added to {ODD}")
    page.locator("#toasts").get_by_role("button", name="Show").click()
    expect(page.locator("#title")).to_have_text(ODD)
    expect(page.locator("#status")).to_have_text("3 photos")
    assert page.url.endswith(f"?album={album}")
    # A search inside, a photo of it, and the link to both.
    page.locator("#words").fill("coffee")
    expect(page.locator(".tile").first).to_have_attribute("title", "Espresso")
    expect(page.locator("#title")).to_have_text("“coffee”")
    ready(page)
    assert set(names(page)) <= {"Espresso", "Cat", "Rocket"}
    page.locator(".tile").first.click()
    expect(page.locator("#viewer-facts")).to_contain_text(ODD)
    assert parse_qs(urlsplit(page.url).query).keys() == {"q", "album", "photo"}
    page.reload()
    expect(page.locator("#viewer-title")).to_have_text("Espresso")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    until(page, "!location.search.includes('photo')")

    page.goto(f"{address}/?album={album}")
    ready(page)
    page.locator(".tile[title=Cat]").click(modifiers=["Control"])
    page.get_by_role("button", name="Remove from album").click()
    expect(page.locator("#status")).to_have_text("2 photos")
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(page.locator("#status")).to_have_text("3 photos")
    page.get_by_role("button", name="Rename").click()
    assert page.get_by_label("Name", exact=True).input_value() == " ".join(ODD.split())
    page.get_by_label("Name", exact=True).fill("Favourites")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Favourites")
    page.get_by_role("button", name="Remove album").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove album").click()
    expect(page.locator(".empty")).to_contain_text("No albums yet")
    assert rows(database, "SELECT count(*) FROM webapp.photo") == [(10,)]


def test_dates(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    expected = rows(
        database,
        "SELECT DISTINCT to_char(taken_at, 'YYYY-MM') m, count(*) FROM webapp.photo GROUP BY 1 ORDER BY 1 DESC",
    )
    options = page.get_by_label("Go to a month").locator("option")
    assert [
        (o.get_attribute("value"), int(re.search(r"\((\d+)\)", o.inner_text())[1])) for o in options.all()
    ] == expected
    assert [head.inner_text() for head in page.locator(".section h2").all()][0] == "March 2026"
    page.get_by_label("Go to a month").select_option(expected[-1][0])
    assert parse_qs(urlsplit(page.url).query) == {"month": [expected[-1][0]]}
    shown = rows(database, "SELECT array_agg(title ORDER BY taken_at DESC, id DESC) FROM webapp.photo")
    assert names(page) == shown[0][0]


# ---------------------------------------------------------------- states that differ


def test_empty_states(address: str, database: str, open_page, tmp_path_factory) -> None:
    page = open_page(expected=(REFUSED,))
    empty = page.locator(".empty h2")
    page.goto(f"{address}/?like=999999")
    expect(empty).to_have_text("Photo 999999 does not exist")
    page.goto(f"{address}/?album=999999")
    expect(empty).to_have_text("Album 999999 does not exist")
    page.goto(f"{address}/?group=999999")
    expect(empty).to_have_text("This group is gone")
    page.goto(f"{address}/?photo=999999")
    expect(page.locator("#toasts")).to_contain_text("That photo doesn’t exist any more")
    ready(page)
    assert len(names(page)) == 10
    [(album,)] = rows(database, "INSERT INTO webapp.album (name) VALUES ('Nothing yet') RETURNING id")
    page.goto(f"{address}/?album={album}&q=cat")
    expect(empty).to_have_text("Nothing matches")
    page.get_by_role("link", name="Search all photos").first.click()
    ready(page)
    assert names(page)[0].startswith("Cat")
    rows(database, "DELETE FROM webapp.album RETURNING id")


def test_an_empty_collection(browser, open_page, tmp_path_factory, database: str) -> None:
    name = f"{database}_empty"
    with psycopg.connect(dbname="postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        schema(name)
        with serve(name, tmp_path_factory) as address:
            for query, text in (
                ("", "No photos yet"),
                ("q=cat", "No photos yet"),
                ("view=albums", "No albums yet"),
                ("view=groups", "No groups yet"),
            ):
                page = open_page()
                page.goto(f"{address}/?{query}")
                expect(page.locator(".empty h2")).to_have_text(text)
                check_page(page, f"webapp-empty-{query.partition('=')[2] or 'photos'}")
    finally:
        with psycopg.connect(dbname="postgres", autocommit=True) as db:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_it_outlives_the_database(address: str, database: str, open_page) -> None:
    page = open_page(expected=("Failed to load resource: the server responded with a status of 503",))
    page.goto(address)
    ready(page)
    with psycopg.connect(dbname="postgres", autocommit=True) as db:
        db.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        db.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (database,))
        try:
            page.locator("#words").fill("rocket")
            expect(page.locator(".empty h2")).to_have_text("The database can’t be reached", timeout=20_000)
            check_page(page, "webapp-no-database")
        finally:
            db.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    # By itself.
    expect(page.locator(".tile").first).to_be_visible(timeout=60_000)
    expect(page.locator(".tile").first).to_have_attribute("title", "Rocket")


def test_it_says_that_the_server_is_down(database: str, open_page, tmp_path_factory) -> None:
    page = open_page(expected=("Failed to load resource: net::",))
    with serve(database, tmp_path_factory) as address:
        page.goto(address)
        ready(page)
    page.locator("#words").fill("rocket")
    expect(page.locator(".empty h2")).to_have_text("The server can’t be reached")
    with serve(database, tmp_path_factory, port=urlsplit(address).port):
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".tile").first).to_have_attribute("title", "Rocket")


# ---------------------------------------------------------------- relevance


@pytest.fixture(scope="module")
def judging(database: str, address: str, tmp_path_factory):
    """A server that knows relevance. Where the extension has no clip_relevance yet, one by the cosine takes its place."""
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
    # Each photo once, and the relevant where they were.
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


# ---------------------------------------------------------------- the server


def test_the_server_keeps_to_its_own_pages(address: str) -> None:
    host = address.removeprefix("http://")

    def ask(method: str, path: str, body: str | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()

    page = ask("GET", "/")
    assert page.status == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert re.fullmatch(r"(db;dur=[\d.]+, )?total;dur=[\d.]+", page.headers["server-timing"])
    assert ask("GET", "/api/months").headers["server-timing"].startswith("db;dur=")
    assert ask("GET", "/", Host="example.com").status == 400
    # Every change, from another site's page: by what browsers say of its origin, old and new.
    ids = json.dumps({"ids": [1]})
    for method, path in (
        ("POST", "/api/photos"),
        ("POST", "/api/photos/delete"),
        ("POST", "/api/photos/restore"),
        ("POST", "/api/albums"),
        ("PATCH", "/api/albums/1"),
        ("DELETE", "/api/albums/1"),
        ("POST", "/api/albums/1/photos"),
        ("DELETE", "/api/albums/1/photos"),
    ):
        for headers in (
            {"Origin": "http://example.com"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            assert ask(method, path, ids, **headers).status == 403, (method, path, headers)
    assert ask("GET", "/api/photos").status == 200
    # Numbers, cursors, months and bodies that are none.
    for path in (
        "/api/photos?like=1%20OR%201=1",
        "/api/photos?album=-1",
        "/api/photos?after=1_2",
        "/api/photos?q=cat&rest=1&after=x_1",
        "/api/photos?month=2026-13",
        "/api/photos?limit=1e9",
        "/download?ids=1;2",
        "/download",
    ):
        assert ask("GET", path).status == 400, path
    for body in (
        "",
        "[]",
        '{"ids": "1"}',
        '{"ids": [1.5]}',
        '{"ids": [true]}',
        '{"ids": [-1]}',
        '{"ids": [99999999999999999999]}',
    ):
        assert ask("POST", "/api/photos/delete", body, Origin=address).status == 400, body
    for name in ('{"name": ""}', '{"name": "  "}', json.dumps({"name": "x" * 101}), '{"name": "a\\u0000b"}'):
        assert ask("POST", "/api/albums", name, Origin=address).status == 422, name
    assert ask("POST", "/api/photos/delete", json.dumps({"ids": [1] * 500_000}), Origin=address).status == 413
    assert ask("DELETE", f"/api/albums/{10**17}", Origin=address).status == 404
    assert ask("GET", f"/photos/{10**40}/small.jpg").status == 404
    assert ask("GET", "/photos/123456/large.jpg").status == 404
    assert ask("GET", "/download?ids=123456").status == 404
    assert ask("GET", "/api/photos?q=a%00b").status == 422
    for path in (
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/static/....//server.py",
    ):
        assert ask("GET", path).status == 404, path
    # A picture is asked for once; afterwards, whether it is still the same.
    first = ask("GET", "/photos/1/small.jpg")
    assert first.headers["content-type"] == "image/jpeg" and first.read().startswith(b"\xff\xd8")
    again = ask("GET", "/photos/1/small.jpg", If_None_Match=first.headers["etag"])
    assert again.status == 304 and again.read() == b"" and again.headers["etag"] == first.headers["etag"]
    assert ask("GET", "/photos/1/large.jpg", If_None_Match=first.headers["etag"]).status == 200
    file = ask("GET", "/download?ids=1")
    assert (
        file.headers["content-disposition"].startswith("attachment;")
        and file.headers["content-type"] == "application/octet-stream"
    )


def test_pages_have_no_gaps(address: str, database: str) -> None:
    """By date, by arrival, and by distance: all photos once, in pages of three, also while some are added and deleted."""
    for order in ("", "sort=added&", "q=cat&rest=1&", "like=1&rest=1&"):
        seen, cursor = [], ""
        while cursor is not None:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
            connection.request("GET", f"/api/photos?{order}limit=3" + (f"&after={cursor}" if cursor else ""))
            page = json.loads(connection.getresponse().read())
            seen += [photo["id"] for photo in page["photos"]]
            if not cursor:
                # The first of the list goes: an OFFSET would leave out one.
                rows(database, "UPDATE webapp.photo SET deleted_at = now() WHERE id = %s RETURNING id", seen[0])
            cursor = page["next"]
        rows(database, "UPDATE webapp.photo SET deleted_at = NULL WHERE id = %s RETURNING id", seen[0])
        expected = {id for (id,) in rows(database, "SELECT id FROM webapp.photo")} - ({1} if "like" in order else set())
        assert len(seen) == len(set(seen)) and set(seen) == expected, order


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
    # The keyboard is where it was.
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
