"""Watched tables under statements that come up once a year, and settings that are easily got wrong."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

import support
from support import sqlstate, value
from test_watch import PHOTOS, check, db, fill, notes  # noqa: F401


def test_a_batch_of_null_is_refused(db: psycopg.Connection) -> None:  # noqa: F811
    """It was taken for an entry of the queue without end."""
    notes(db)
    db.execute("SET statement_timeout = '10s'")
    for call in ("CALL clip_backfill('note', NULL)", "CALL clip_reembed('note', 'clip-mini', batch => NULL)"):
        state, text = sqlstate(db, call)
        assert state == "22004" and text.startswith('argument "batch" is NULL')
    db.execute("RESET statement_timeout")


def test_the_view_runs_nobodys_policies(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:  # noqa: F811
    """Whoever looks at clip_search.watch lends his rights to no policy of somebody else's table, and is not kept from the
    rest by a table that he can't get at."""
    with database.connect(user=plain_role) as mine:
        mine.execute("SET client_min_messages = warning")
        mine.execute(
            """
            CREATE TABLE trapped (id int PRIMARY KEY, body text);
            CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
            INSERT INTO trapped VALUES (1, 'a cat');
            SELECT clip_watch('trapped', 'body');
            GRANT SELECT ON trapped TO PUBLIC;
            ALTER TABLE trapped ENABLE ROW LEVEL SECURITY;
            CREATE POLICY trap ON trapped USING (trap());
            """
        )
        progress = "SELECT rows, embedded, pending FROM clip_search.watch WHERE relation = %s::regclass"
        assert mine.execute(progress, ("trapped",)).fetchone() == (1, 0, 1)
    other, table = f"{plain_role}_other", sql.SQL("{}.trapped").format(sql.Identifier(plain_role)).as_string(db)
    db.execute(f"CREATE ROLE {other} LOGIN")
    try:
        notes(db)
        fill(db, 3)
        db.execute("GRANT SELECT ON note TO PUBLIC")
        for grant in ("", f"GRANT USAGE ON SCHEMA {plain_role} TO {other}"):
            db.execute(grant or "SELECT 1")
            oid = value(db, "SELECT %s::regclass::oid", table)
            with database.connect(user=other) as theirs:
                if grant:
                    assert sqlstate(theirs, f"SELECT * FROM {table}")[1] == f"trapped as {other}"  # the trap does work
                found = theirs.execute("SELECT relation::oid, rows, embedded, pending FROM clip_search.watch ORDER BY rows").fetchall()
                assert found == [(value(db, "SELECT 'note'::regclass::oid"), 3, 3, 0), (oid, None, None, None)]
    finally:
        db.execute(f"DROP OWNED BY {other}; DROP ROLE {other}; DROP TABLE {table}")
