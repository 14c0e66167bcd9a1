"""Temporary errors, such as another session's lock, that don't go away; and what the lists show of errors."""

from __future__ import annotations

import psycopg
import pytest

from support import raised_error, system_settings, until, value

SERVER = {"model": "photo-mini", "worker_retry_delay": "10ms", "worker_attempts": "2", "worker_timeout": "1s"}


def queued(db: psycopg.Connection, body: str) -> None:
    """A watched table with one row and a trigger with this body."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    db.execute(f"CREATE OR REPLACE FUNCTION note_body() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
    db.execute("CREATE TRIGGER a BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION note_body()")


def failure(db: psycopg.Connection) -> tuple | None:
    return db.execute("SELECT sqlstate, message FROM clip_search.failure").fetchone()


@pytest.mark.parametrize("state", ["55P03", "40P01", "55006"])
def test_a_backfill_ends(db: psycopg.Connection, state: str) -> None:
    with system_settings(db, worker="off"):
        queued(db, f"RAISE EXCEPTION 'somebody has it' USING ERRCODE = '{state}';")
        db.execute("INSERT INTO note VALUES (1, 'a cat')")
        db.execute("SET statement_timeout = '120s'")
        db.execute("CALL clip_backfill('note')")
        assert failure(db) == (state, "somebody has it")
        assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


def test_the_worker_says_why_a_row_waits(db: psycopg.Connection) -> None:
    queued(db, "RAISE EXCEPTION 'somebody has it' USING ERRCODE = '55P03';")
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    query = "SELECT sqlstate, message FROM clip_search.pending WHERE attempts >= 3"
    # More attempts than clip_search.worker_attempts, since the row is not at fault.
    until(lambda: db.execute(query).fetchone() == ("55P03", "somebody has it"), "the third attempt")
    assert failure(db) is None
    db.execute("DROP TRIGGER a ON note")
    until(lambda: value(db, "SELECT embedding IS NOT NULL FROM note"), "embedding")
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


@pytest.mark.parametrize(
    ("body", "state", "message"),
    [
        ("PERFORM pg_sleep(20); RETURN NEW;", "57014", "canceling statement due to statement timeout"),
        ("RAISE EXCEPTION 'no room' USING ERRCODE = '53200';", "53200", "no room"),
    ],
)
def test_the_list_names_the_error_of_a_whole_attempt(
    db: psycopg.Connection, body: str, state: str, message: str
) -> None:
    queued(db, body)
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    until(lambda: failure(db) is not None, "failure")
    assert failure(db) == (state, message)


def test_messages_are_stored_in_part(db: psycopg.Connection) -> None:
    """Stored whole, messages from an owner's trigger could fill other owners' dumps."""
    queued(db, "RAISE EXCEPTION '%', repeat('é', 1000000) USING DETAIL = repeat('x', 1000000);")
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    until(lambda: failure(db) is not None, "failure")
    query = "SELECT octet_length(message), octet_length(detail), message ~ '^é+$' FROM clip_search.failure"
    assert db.execute(query).fetchone() == (4096, 4096, True)


def test_the_steps_of_a_backfill_name_a_null(db: psycopg.Connection) -> None:
    for call in ("backfill_failed(ARRAY[NULL]::bigint[])", "backfill_batch(5, ARRAY[1, NULL]::bigint[])"):
        state, text = raised_error(db, f"SELECT clip_search.{call}")
        assert state == "22004" and "contains NULL" in text
