"""A connection whose watched tables are dropped after each test, and a server that preloads the extension.

A test module that needs a background worker defines SERVER, the clip_search settings of a server of its own; its `db`
is then a connection to that server.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import psycopg
import pytest

import support
from servers import Server, server


@pytest.fixture(scope="module")
def preloaded(bindir: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    with server(bindir, preload="photo-mini", **request.module.SERVER) as made:
        yield made


@pytest.fixture
def db(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    of_its_own = hasattr(request.module, "SERVER")
    with request.getfixturevalue("preloaded" if of_its_own else "database").connect() as connection:
        connection.execute("SET client_min_messages = warning")
        yield connection
        if of_its_own:
            connection.execute("ALTER SYSTEM RESET ALL")
            connection.execute("SELECT pg_reload_conf()")
        for (table,) in connection.execute("SELECT DISTINCT relation::text FROM clip_search.watch").fetchall():
            connection.execute(f"DROP TABLE {table} CASCADE")
        connection.execute("DROP TABLE IF EXISTS note, photo CASCADE")
        connection.execute("SELECT clip_drop_collection(name) FROM clip_search.collection")


@pytest.fixture
def with_clip(database: support.Database, db: psycopg.Connection, clip_mini: pathlib.Path):
    """Makes a second model available to every session of the database."""
    path = f"$system:{clip_mini.parent}"
    db.execute(f"ALTER DATABASE {database.name} SET clip_search.model_path = '{path}'")
    db.execute(f"SET clip_search.model_path = '{path}'")
    yield
    db.execute(f"ALTER DATABASE {database.name} RESET clip_search.model_path")
