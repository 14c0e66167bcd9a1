"""The browser, and a throw-away database."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from webapp import PHOTOS, SUBJECTS, load, schema, serve

from screens import SCREENS

# On a busy machine, content may take a while to appear.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Chromium's sandbox refuses to run as root, as in a container.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The name of an empty database, dropped at the end."""
    name = f"clip_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(dbname="postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield name
    with psycopg.connect(dbname="postgres", autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def address(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a database with ten photos; the raccoon is added later."""
    # Run the schema twice, since users may run it again.
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


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, and fails the test if a page wrote to the console or opened a dialogue.

    `expected` are the beginnings of console messages that the test provokes.
    """
    complaints: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_page(screen: tuple = SCREENS[0], expected: tuple[str, ...] = (), **options: object) -> Page:
            name, width, height, scheme = screen
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
                **options,
            )
            stack.callback(context.close)
            page = context.new_page()

            def heard(message) -> None:
                if not message.text.startswith(expected or ("\0",)):
                    complaints.append(f"{name}: {message.type}: {message.text}")

            page.on("console", heard)
            page.on("pageerror", lambda error: complaints.append(f"{name}: {error}"))
            page.on("dialog", lambda dialog: (complaints.append(f"{name}: {dialog.message}"), dialog.dismiss()))
            return page

        yield open_page
    assert not complaints, complaints
