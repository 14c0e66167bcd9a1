"""Grouping under the isolation levels that keep one snapshot per transaction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from grouping import ASSIGN, LEVELS, check_clusters, clusters, direction, storm, unit, variants

import support
from support import value, vector_text


def test_a_storm_in_repeatable_read(database: support.Database, db: psycopg.Connection, collection: str) -> None:
    """Sessions like those of postgres_fdw: each sums up rows and makes codes where its snapshot allows it, and no
    transaction fails because it can't. The next session that finds no concurrent ones makes them at the latest."""
    committed, _ = storm(database, collection, 700, 4, 3, leave=True, kill=False, level=LEVELS[0])
    check_clusters(db, collection, committed)
    with database.connect(autocommit=False) as later:
        later.isolation_level = LEVELS[0]
        value(later, ASSIGN, vector_text(direction(300_000)), collection)
        later.commit()
    codes = "SELECT count(*) FILTER (WHERE code IS NULL), count(*) FROM clip_search.cluster_sum WHERE collection = %s"
    without, count = db.execute(codes, (collection,)).fetchone()
    assert count >= 700 and without < 500, "codes are made whenever 432 clusters have none"


def test_searches_stay_short_in_repeatable_read(database: support.Database, collection: str) -> None:
    with database.connect(autocommit=False) as mine:
        mine.isolation_level = LEVELS[0]
        for n in range(1000):
            value(mine, ASSIGN, vector_text(direction(200_000 + n)), collection)
            mine.commit()
        for row in variants(200_000, 200, seed=4):
            value(mine, ASSIGN, vector_text(row), collection)
            mine.commit()
        codes = "SELECT count(*) FROM clip_search.cluster_sum WHERE collection = %s AND code IS NULL"
        assert value(mine, codes, collection) < 500
        changes = "SELECT count(*) FROM clip_search.cluster_change WHERE collection = %s"
        assert value(mine, changes, collection) <= 16


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def strict(request, database: support.Database) -> Iterator[psycopg.Connection]:
    """A session with that isolation level."""
    with database.connect(autocommit=False) as connection:
        connection.execute("SELECT clip_version()")
        connection.commit()
        connection.isolation_level = request.param
        yield connection
        connection.rollback()


def take_snapshot(strict: psycopg.Connection) -> None:
    strict.execute("SELECT count(*) FROM clip_search.cluster")


@pytest.mark.parametrize("existing", [False, True], ids=["new-collection", "old-collection"])
@pytest.mark.parametrize("ends", ["committed", "under-way", "rolled-back"])
def test_an_old_snapshot_joins_what_it_can_not_see(
    strict: psycopg.Connection,
    database: support.Database,
    db: psycopg.Connection,
    collection: str,
    existing: bool,
    ends: str,
) -> None:
    """Clusters are found regardless of the snapshot, so no second one is created, and no session has to retry."""
    subject = vector_text(direction(6))
    if existing:
        value(db, ASSIGN, vector_text(direction(7)), collection)
    take_snapshot(strict)
    with database.connect(autocommit=False) as first:
        theirs = value(first, ASSIGN, subject, collection)
        if ends == "committed":
            first.commit()
        mine = value(strict, ASSIGN, subject, collection)
        assert mine == theirs
        if ends == "rolled-back":
            first.rollback()
        strict.commit()
        first.commit()
    found = clusters(db, collection)
    assert found[mine][0] == (1 if ends == "rolled-back" else 2)
    assert len(found) == 1 + existing
    assert value(db, ASSIGN, subject, collection) == mine


def test_an_old_snapshot_does_not_undo_anothers_joining(
    strict: psycopg.Connection, db: psycopg.Connection, collection: str
) -> None:
    """Its change is added to what others have added since, even if they have summed up the rows."""
    subject, other = direction(8), direction(9)
    kept = value(db, ASSIGN, vector_text(subject), collection)
    take_snapshot(strict)
    rows = [unit(subject + 0.1 * direction(50 + n)).astype(np.float32) for n in range(40)]
    for row in rows[:20]:
        assert value(db, ASSIGN, vector_text(row), collection) == kept
    for row in rows[20:]:
        assert value(strict, ASSIGN, vector_text(row), collection) == kept
        assert value(db, ASSIGN, vector_text(unit(subject + 0.1 * other)), collection) == kept
    strict.commit()
    size, centroid, _ = clusters(db, collection)[kept]
    assert size == 61
    mean = unit(subject + np.sum(rows, axis=0) + 20 * unit(subject + 0.1 * other))
    assert np.abs(centroid - mean).max() < 1e-5
