"""A connection, and a collection that no other test uses."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

import support


@pytest.fixture
def collection() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection
