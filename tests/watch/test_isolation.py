"""TRUNCATE, DELETE and UPDATE leave groups, queue and failures exact in every isolation level."""

from __future__ import annotations

import psycopg
import pytest

from support import value
from watched import check, fill, notes

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def later(database, level: str) -> psycopg.Connection:
    """A transaction that already has its snapshot: except in READ COMMITTED, it sees no later changes of others."""
    connection = database.connect(autocommit=False)
    connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    connection.execute("SELECT 1")
    return connection


@pytest.mark.parametrize("level", LEVELS)
def test_truncate_forgets_what_came_after_its_snapshot(database, db, level):
    notes(db, ", on_error => 'skip'")
    fill(db, 5)
    with later(database, level) as other:
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued', on_error => 'skip')")
        db.execute("INSERT INTO note VALUES (11, 'queued'), (12, NULL)")
        db.execute(
            "SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'immediate', on_error => 'skip')"
        )
        db.execute("INSERT INTO note VALUES (13, 'a group of its own, joined after the snapshot')")
        db.execute(
            "INSERT INTO clip_search.watch_failure (watch, key, sqlstate, message) "
            "SELECT id, '{12}', 'XX000', 'of after the snapshot' FROM clip_search.watch_setting"
        )
        assert value(db, "SELECT count(*) FROM clip_search.watch_queue") == 1
        other.execute("TRUNCATE note")
    assert value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0
    assert value(db, "SELECT count(*) FROM clip_search.watch_failure") == 0
    assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'note'") == 0
    fill(db, 5)
    assert check(db, "note") == 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("command", ["DELETE FROM note WHERE id = 1", "UPDATE note SET body = NULL WHERE id = 1"])
def test_a_row_that_is_listed_after_the_snapshot_is_taken_off_the_list(database, db, level, command):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body bytea)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    db.execute("INSERT INTO note VALUES (1, 'not an image')")
    with later(database, level) as other:
        db.execute("CALL clip_backfill('note')")
        assert value(db, "SELECT count(*) FROM clip_search.failure") == 1
        other.execute(command)
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
    assert value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_key_that_is_changed_takes_its_failure_along(database, db, level):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body bytea)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    db.execute("INSERT INTO note VALUES (1, 'not an image')")
    with later(database, level) as other:
        db.execute("CALL clip_backfill('note')")
        other.execute("UPDATE note SET id = 2")
    assert db.execute("SELECT key FROM clip_search.failure").fetchall() == [(["2"],)]


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_are_deleted_leave_groups_that_others_have_joined_since(database, db, level):
    notes(db)
    fill(db, 10)
    with later(database, level) as other:
        db.execute(
            "INSERT INTO note (id, body) SELECT n, (SELECT body FROM note WHERE id = 1) FROM generate_series(11, 60) n"
        )
        other.execute("DELETE FROM note WHERE id <= 5")
        other.execute("UPDATE note SET body = 'something else' WHERE id = 6")
    assert check(db, "note") == 55
