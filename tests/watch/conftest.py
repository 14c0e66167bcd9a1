"""A connection whose watched tables are dropped after each test."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

import support


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        connection.execute("SET client_min_messages = warning")
        yield connection
        for (table,) in connection.execute("SELECT DISTINCT relation::text FROM clip_search.watch").fetchall():
            connection.execute(f"DROP TABLE {table} CASCADE")
        connection.execute("DROP TABLE IF EXISTS note CASCADE")
        connection.execute("SELECT clip_drop_collection(name) FROM clip_search.collection")
