"""The web application's server, and readers of its page."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Page, expect

from screens import ROOT

APP = ROOT / "examples" / "webapp"
PHOTOS = ROOT / "examples" / "gallery" / "photos"
PYTHON = ROOT / "target" / "venv-webapp" / "bin" / "python"
SUBJECTS = ("cat", "clock", "dahlia", "espresso", "pagoda", "photographer", "rocket", "staircase")
# Every character that a URL, HTML or SQL could interpret.
ODD = "50% off? #1 & <b>'quoted'</b> \"twice\" + é 🐈 \\ /../"
REFUSED = "Failed to load resource: the server responded with a status of 4"
# A phone, a tablet and a desk, each light and dark.
SIZES = tuple(
    (f"{width}-{scheme}", width, height, scheme)
    for width, height in ((390, 844), (820, 1180), (1440, 900))
    for scheme in ("light", "dark")
)


def environment(database: str, **more: str) -> dict[str, str]:
    return os.environ | {"PGDATABASE": database, "PYTHONDONTWRITEBYTECODE": "1"} | more


def schema(database: str) -> None:
    subprocess.run(["psql", "-Xq", "-f", str(APP / "schema.sql")], env=environment(database), check=True, timeout=180)


def load(database: str, *files: pathlib.Path) -> subprocess.CompletedProcess:
    command = [str(PYTHON), str(APP / "load.py"), *map(str, files)]
    return subprocess.run(command, env=environment(database), capture_output=True, encoding="utf-8", timeout=60)


@contextlib.contextmanager
def serve(database: str, folders: pytest.TempPathFactory, port: int = 0, **settings: str) -> Iterator[str]:
    """Runs the server on that database; yields its address."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    log = folders.mktemp("webapp") / "log"
    command = [str(PYTHON), "-m", "uvicorn", "server:app", "--app-dir", str(APP), "--port", str(port)]
    # A browser's idle connections must not delay the server's exit.
    command += ["--timeout-graceful-shutdown", "2"]
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment(database, **settings), stdout=out, stderr=subprocess.STDOUT)
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
    assert "Traceback" not in log.read_text(), log.read_text()


def rows(database: str, statement: str, *parameters: object) -> list[tuple]:
    with psycopg.connect(dbname=database, autocommit=True) as db:
        return db.execute(statement, parameters).fetchall()


def names(page: Page) -> list[str]:
    """The titles of the photos on the page, in the list's order."""
    return page.evaluate("[...document.querySelectorAll('.tile')].map(tile => tile.title)")


def until(page: Page, expression: str) -> None:
    """Polls from outside: the page's own policy forbids Playwright's waiting, which uses eval()."""
    deadline = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never: {expression}"
        time.sleep(0.05)


def ready(page: Page) -> None:
    """Waits until the requested photos are on the page, with their pictures."""
    expect(page.locator("#content:not([aria-busy])")).to_have_count(1)
    until(
        page, "[...document.images].every(i => !i.src || i.complete) && !document.querySelector('.tile:not([data-id])')"
    )
