"""The web application: uploads, deletion, albums and dates."""

from __future__ import annotations

import base64
import os
import pathlib
import re
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from playwright.sync_api import expect
from webapp import ODD, PHOTOS, REFUSED, names, ready, rows, until

from screens import ROOT, check_page

HEIC = ROOT / "tests" / "fixtures" / "heic"


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
    # With the keyboard only.
    page.locator(".tile", has_text="Raccoon mirrored").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#status")).to_have_text("11 photos")
    page.keyboard.press("Control+z")
    expect(page.locator("#status")).to_have_text("12 photos")
    # Delete in the viewer, which shows the next photo; this time without undo.
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


def test_photos_are_dropped_and_pasted(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(f"{address}/?sort=added")
    ready(page)
    for event, kind, carrier, name in (
        ("drop", "DragEvent", "dataTransfer", "pagoda-cropped"),
        ("paste", "ClipboardEvent", "clipboardData", "rocket-cropped"),
    ):
        data = base64.b64encode((PHOTOS / f"{name}.jpg").read_bytes()).decode()
        page.evaluate(
            """([event, kind, carrier, name, data]) => {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name, { type: "image/jpeg", lastModified: Date.UTC(2020, 1, 2) }));
                document.body.dispatchEvent(new window[kind](event, { [carrier]: transfer, bubbles: true, cancelable: true }));
            }""",
            [event, kind, carrier, f"{name}.jpg", data],
        )
        title = name.replace("-", " ").capitalize()
        expect(page.locator(f'.tile[title="{title}"]')).to_have_count(1)
        expect(page.locator("#tray h2")).to_have_text("1 photo added")
        page.locator("#tray").get_by_role("button", name="Close").click()
    added = "DELETE FROM webapp.photo WHERE title LIKE '%% cropped' RETURNING to_char(taken_at, 'YYYY-MM'), dated_by"
    assert rows(database, added) == [("2020-02", "file")] * 2


def test_a_photo_has_the_cameras_date(database: str, address: str) -> None:
    """The date in the EXIF block, whatever the file's own date is; without one, the date sent with the upload."""
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
    jpeg_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64)
    cases = {
        "notes.jpg": (b"no picture at all", "This isn’t a photo", "Supported are JPEG, PNG"),
        "half.jpg": (whole[: len(whole) // 2], "Part of the file is missing", "truncated"),
        "empty.png": (b"", "The file is empty", "SQLSTATE 22023"),
        "scan.jp2": (jpeg_2000, "This kind of file isn’t supported", "onvert"),
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

    # The network is back: the failed uploads succeed.
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
    # A name can be used only once, regardless of case.
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
    # A search inside the album, a photo of its results, and the link to both.
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
