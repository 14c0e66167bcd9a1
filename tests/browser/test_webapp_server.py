"""The web application's server: the requests that it refuses, and the page's messages when there is nothing to show."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import urlsplit

import psycopg
from playwright.sync_api import expect
from webapp import REFUSED, names, ready, rows, schema, serve

from screens import check_page

# ---------------------------------------------------------------- empty and error states


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
    # The page recovers without a reload.
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
    # Every change, requested from another site's page: by the headers that new and old browsers send.
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
    # Invalid numbers, cursors, months and bodies.
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
    assert ask("GET", "/photos/1/other.jpg").status == 404
    assert ask("GET", "/api/photos?like=123456").status == ask("GET", "/api/photos?like=123456&rest=1").status == 404
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
    # A browser fetches a picture once, and afterwards only asks whether it has changed.
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
    """By date, by arrival, and by distance: pages of three show every photo once, even while photos are added and
    deleted."""
    for order in ("", "sort=added&", "q=cat&rest=1&", "like=1&rest=1&"):
        seen, cursor = [], ""
        while cursor is not None:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
            connection.request("GET", f"/api/photos?{order}limit=3" + (f"&after={cursor}" if cursor else ""))
            page = json.loads(connection.getresponse().read())
            seen += [photo["id"] for photo in page["photos"]]
            if not cursor:
                # Deletes the first photo of the list: OFFSET would then skip one.
                rows(database, "UPDATE webapp.photo SET deleted_at = now() WHERE id = %s RETURNING id", seen[0])
            cursor = page["next"]
        rows(database, "UPDATE webapp.photo SET deleted_at = NULL WHERE id = %s RETURNING id", seen[0])
        expected = {id for (id,) in rows(database, "SELECT id FROM webapp.photo")} - ({1} if "like" in order else set())
        assert len(seen) == len(set(seen)) and set(seen) == expected, order
