"""The web application, end to end: a browser, the server, the database."""

from __future__ import annotations

import contextlib
import http.client
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Page, expect

from screens import ROOT, SCREENS, check_page

APP = ROOT / "examples" / "webapp"
PHOTOS = ROOT / "examples" / "gallery" / "photos"
PYTHON = ROOT / "target" / "venv-webapp" / "bin" / "python"
REFUSED = "Failed to load resource: the server responded with a status of 4"


@pytest.fixture(scope="module")
def address(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a database with nine of the gallery's subjects: the raccoon comes later."""
    environment = os.environ | {
        "PGDATABASE": database,
        "WEBAPP_MAX_BYTES": "2000000",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    schema = ["psql", "-Xq", "-f", str(APP / "schema.sql")]
    # Twice, since it may be run again.
    for _ in range(2):
        subprocess.run(schema, env=environment, check=True, timeout=60)
    files = sorted(path for path in PHOTOS.glob("*.jpg") if "-" not in path.stem and path.stem != "raccoon")
    files += [PHOTOS / "deep-field.jpg", PHOTOS / "cat-mirrored.jpg"]
    loaded = subprocess.run(
        [str(PYTHON), str(APP / "load.py"), *map(str, files), str(PHOTOS / "LICENSES.md")],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert loaded.stdout == f"{len(files)} photos added, 1 refused\n" and loaded.returncode == 1
    assert loaded.stderr.startswith(f"{PHOTOS / 'LICENSES.md'}: not an image")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("webapp") / "log"
    command = [str(PYTHON), "-m", "uvicorn", "server:app", "--app-dir", str(APP), "--port", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def names(page: Page) -> list[str]:
    return page.locator("#content .name").all_inner_texts()


def until(page: Page, expression: str) -> None:
    """Asked from outside: the page's own policy forbids Playwright's waiting, which is by eval()."""
    deadline = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never: {expression}"
        time.sleep(0.05)


def ready(page: Page) -> None:
    """What was asked for has been drawn, with its pictures."""
    expect(page.locator("#content:not([aria-busy])")).to_have_count(1)
    until(page, "[...document.images].every(i => !i.src || i.complete)")


def test_typing_searches(address: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    ready(page)
    assert len(names(page)) == 10 and page.locator("h2#title").inner_text() == "Newest"
    page.keyboard.press("/")
    page.keyboard.type("a cup of coffee", delay=30)
    expect(page.locator("#content .name").first).to_have_text("Espresso")
    expect(page.locator("h2#title")).to_have_text("“a cup of coffee”")
    expect(page.locator("#status")).to_contain_text("10 photos in")
    cosines = [float(text) for text in page.locator("#content .cosine").all_inner_texts()]
    assert cosines == sorted(cosines, reverse=True) and cosines[0] > 0.3
    # A link to the search shows the same, and back leads to where it began, in one step.
    other = open_page()
    other.goto(page.url)
    ready(other)
    assert names(other) == names(page)
    page.go_back()
    expect(page.locator("h2#title")).to_have_text("Newest")
    for words, name in (("rocket launch", "Rocket"), ("wall clock", "Clock"), ("orange flower", "Dahlia")):
        page.locator("#words").fill(words)
        expect(page.locator("#content .name").first).to_have_text(name)
    page.locator("#words").fill("")
    expect(page.locator("h2#title")).to_have_text("Newest")
    # Whatever is typed is words.
    page.locator("#words").fill("'); DROP TABLE webapp.photo; -- %s %(words)s \\")
    expect(page.locator("h2#title")).to_contain_text("DROP TABLE")
    ready(page)
    assert len(names(page)) == 10


def test_an_uploaded_photo_is_found_by_words_and_by_likeness(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    page.locator("#files").set_input_files([PHOTOS / "raccoon.jpg", PHOTOS / "raccoon-mirrored.jpg"])
    expect(page.locator("#notices li")).to_have_text("2 photos are in")
    expect(page.locator("#content .name").first).to_have_text("Raccoon mirrored")
    page.locator("#words").fill("wild animal in the forest")
    expect(page.locator("h2#title")).to_have_text("“wild animal in the forest”")
    ready(page)
    assert set(names(page)[:2]) == {"Raccoon", "Raccoon mirrored"}

    page.locator(".card", has_text="Raccoon mirrored").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    until(page, "document.querySelector('#photo-image').naturalWidth > 400")
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("h2#title")).to_have_text("Like Raccoon mirrored")
    ready(page)
    assert names(page)[0] == "Raccoon" and "Raccoon mirrored" not in names(page)
    assert float(page.locator("#content .cosine").first.inner_text()) > 0.9

    page.get_by_role("link", name="Groups").click()
    expect(page.locator("#status")).to_have_text("2 groups")
    groups = page.locator(".group")
    found = {frozenset(group.locator(".name").all_inner_texts()) for group in groups.all()}
    assert found == {frozenset({"Raccoon", "Raccoon mirrored"}), frozenset({"Cat", "Cat mirrored"})}

    page.locator("#files").set_input_files(PHOTOS / "raccoon.jpg")
    expect(page.locator("#notices")).to_contain_text("raccoon.jpg is there already, as Raccoon")
    with psycopg.connect(dbname=database) as db:
        sizes = db.execute("SELECT size FROM clip_clusters('webapp', 1)").fetchall()
        assert sum(size for (size,) in sizes) == 12


def test_a_deleted_photo_leaves_its_group(address: str, database: str, open_page) -> None:
    page = open_page()
    page.goto(address)
    page.locator("#files").set_input_files(PHOTOS / "pagoda-cropped.jpg")
    expect(page.locator("#content .name").first).to_have_text("Pagoda cropped")
    sizes = (
        "SELECT c.size FROM clip_search.cluster c JOIN webapp.photo p ON p.cluster_id = c.id WHERE p.title = 'Pagoda'"
    )
    with psycopg.connect(dbname=database, autocommit=True) as db:
        assert db.execute(sizes).fetchall() == [(2,)]
        page.locator(".card", has_text="Pagoda cropped").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#notices")).to_contain_text("Pagoda cropped is deleted")
        expect(page.locator(".card", has_text="Pagoda cropped")).to_have_count(0)
        assert db.execute(sizes).fetchall() == [(1,)]


def test_what_the_database_refuses_is_said(address: str, open_page, tmp_path: pathlib.Path) -> None:
    page = open_page(expected=(REFUSED,))
    page.goto(address)
    ready(page)
    before = names(page)
    whole = (PHOTOS / "rocket.jpg").read_bytes()
    avif = b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif" + bytes(64)
    cases = (
        ("notes.jpg", b"no picture at all", ("not an image", "Supported are JPEG, PNG")),
        ("half.jpg", whole[: len(whole) // 2], ("truncated",)),
        ("empty.png", b"", ("empty",)),
        ("phone.avif", avif, ("AVIF", "onvert")),
        ("large.jpg", whole + bytes(2_000_000), ("larger than the 2 MB",)),
    )
    for name, data, words in cases:
        (tmp_path / name).write_bytes(data)
        page.locator("#files").set_input_files(tmp_path / name)
        notice = page.locator("#notices li.error").last
        expect(notice).to_contain_text(f"{name}: ")
        for word in words:
            expect(notice).to_contain_text(word)
    assert page.locator("#notices li.error").count() == len(cases)
    check_page(page, "webapp-errors")
    for _ in cases:
        page.get_by_role("button", name="Dismiss").first.click()
    assert page.locator("#notices li").count() == 0 and names(page) == before
    page.goto(f"{address}/#like=999999")
    expect(page.locator("#content .error")).to_have_text("photo 999999 does not exist")


def test_a_title_is_text_whatever_it_says(address: str, open_page, tmp_path: pathlib.Path) -> None:
    page = open_page()
    page.goto(address)
    file = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    file.write_bytes((PHOTOS / "dahlia-cropped.jpg").read_bytes())
    page.locator("#files").set_input_files(file)
    card = page.locator(".card", has_text="<img src=x onerror=alert(1)>")
    expect(card).to_have_count(1)
    card.click()
    expect(page.locator("#photo-title")).to_have_text("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)


@pytest.mark.parametrize("screen", SCREENS, ids=lambda screen: screen[0])
def test_it_reads_well(address: str, open_page, screen: tuple) -> None:
    page = open_page(screen)
    page.goto(f"{address}/#q=sleepy striped house cat")
    ready(page)
    check_page(page, f"webapp-search-{screen[0]}")
    page.goto(f"{address}/#groups")
    ready(page)
    expect(page.locator(".group").first).to_be_visible()
    check_page(page, f"webapp-groups-{screen[0]}")
    page.locator(".card").first.click()
    until(page, "document.querySelector('#photo-image').naturalWidth > 0")
    check_page(page, f"webapp-photo-{screen[0]}", whole=False)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    # The keyboard is where it was.
    assert page.evaluate("document.activeElement.className") == "card"


def test_the_server_keeps_to_its_own_pages(address: str) -> None:
    host = address.removeprefix("http://")

    def ask(method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()

    page = ask("GET", "/")
    assert page.status == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert ask("GET", "/", Host="example.com").status == 400
    assert ask("DELETE", "/api/photos/1", Origin="http://example.com").status == 403
    assert ask("POST", "/api/photos", Origin="null").status == 403
    assert ask("DELETE", f"/api/photos/{10**40}", Origin=address).status == 404
    assert ask("GET", "/photos/1/small.jpg").headers["content-type"] == "image/jpeg"
    assert ask("GET", "/photos/123456/large.jpg").status == 404
    assert ask("GET", "/api/photos?like=1%20OR%201=1").status == 400
    assert ask("GET", "/static/../server.py").status == 404
    assert ask("GET", "/api/photos?q=a%00b").status == 422


def test_it_outlives_the_database(address: str, database: str, open_page) -> None:
    page = open_page(expected=("Failed to load resource: the server responded with a status of 503",))
    page.goto(address)
    ready(page)
    with psycopg.connect(dbname="postgres", autocommit=True) as db:
        db.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        db.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (database,))
        try:
            page.locator("#words").fill("rocket")
            expect(page.locator("#content .error")).to_be_visible(timeout=20_000)
        finally:
            db.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    deadline = time.monotonic() + 60
    while page.locator("#content .name").count() == 0:
        assert time.monotonic() < deadline, page.locator("#content").inner_text()
        page.locator("#words").fill(f"rocket {time.monotonic()}")
        page.wait_for_timeout(1000)
