"""clip_watch, clip_unwatch and clip_reembed beside an application that reads a table and then writes it."""

from __future__ import annotations

import threading

import psycopg
import pytest

from support import raised_error, until, value
from watched import notes

CALLS = {
    "first": "SELECT clip_watch('note', 'body')",
    "again": "SELECT clip_watch('note', 'body', on_error => 'skip')",
    "grouped": "SELECT clip_watch('note', 'body', cluster => 'cluster_id', index => true)",
    "unwatch": "SELECT clip_unwatch('note')",
    "reembed": "CALL clip_reembed('note', 'photo-mini+photo-mini')",
}


@pytest.mark.parametrize("call", CALLS)
def test_an_application_never_ends_in_a_deadlock(database, db, call):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    if call != "first":
        db.execute("SELECT clip_watch('note', 'body')")
    outcome: list[BaseException | None] = []

    def act() -> None:
        with database.connect() as other:
            other.execute("SET client_min_messages = error")
            # The session whose wait closes a cycle of waits gets a deadlock error after this time.
            other.execute("SET deadlock_timeout = '100ms'")
            try:
                other.execute(CALLS[call])
                outcome.append(None)
            except psycopg.Error as error:
                outcome.append(error)

    with database.connect(autocommit=False) as application:
        application.execute("SET deadlock_timeout = '100ms'")
        application.execute("SELECT * FROM note")
        acting = threading.Thread(target=act)
        acting.start()
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 'note'::regclass AND NOT granted"
        until(lambda: outcome or value(db, waits) > 0, "its wait for the table")
        application.execute("UPDATE note SET body = 'a dog' WHERE id = 1")
    acting.join(60)
    assert outcome == [None], outcome
    assert value(db, "SELECT body FROM note") == "a dog"


@pytest.mark.parametrize("call", [name for name in CALLS if name != "again"])
def test_it_gives_up_by_lock_timeout(database, db, call):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    if call != "first":
        db.execute("SELECT clip_watch('note', 'body')")
    with database.connect(autocommit=False) as application:
        application.execute("LOCK TABLE note IN ACCESS SHARE MODE")
        db.execute("SET lock_timeout = '200ms'")
        state, _ = raised_error(db, CALLS[call])
        assert state == "55P03"
        db.execute("RESET lock_timeout")
        application.rollback()
    db.execute(CALLS[call])


def test_a_second_call_lets_others_read(database, db):
    notes(db)
    with database.connect(autocommit=False) as reader:
        reader.execute("SELECT * FROM note")
        db.execute("SET lock_timeout = '60s'")
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip')")
        reader.rollback()


def test_others_may_not_lock_a_table_by_calling_it(database, db, plain_role):
    notes(db)
    with database.connect(plain_role) as other:
        for call in CALLS.values():
            assert raised_error(other, call)[0] == "42501"
