"""Servers with Citus, one without, and the table of measurements printed at the end."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import psycopg
import pytest

from citus_servers import Citus
from servers import Server, server


@pytest.fixture(scope="session")
def citus(bindir: pathlib.Path) -> Iterator[Citus]:
    made = Citus(bindir)
    try:
        made.start()
        made.run("setup")
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def single(bindir: pathlib.Path) -> Iterator[Server]:
    """A server without Citus, for comparison."""
    with server(bindir, preload="photo-mini") as made:
        yield made


@pytest.fixture
def db(citus: Citus) -> Iterator[psycopg.Connection]:
    with citus.coordinator.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
def table() -> Iterator[list[tuple[str, ...]]]:
    """The rows of the table, written to the file that scripts/citus.sh prints."""
    rows: list[tuple[str, ...]] = []
    yield rows
    if path := os.environ.get("CITUS_TABLE"):
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        pathlib.Path(path).write_text("".join(f"{line}\n" for line in lines))
