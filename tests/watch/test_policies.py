"""Row-level security that applies to a table's owner, too: a row that a policy hides is no deleted one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import psycopg
import pytest

from servers import Server, server
from support import sqlstate, until, value
from watched import drained


@pytest.fixture(scope="module")
def preloaded(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir, preload="photo-mini", worker_retry_delay="20ms", worker_attempts="2") as made:
        with made.connect() as db:
            db.execute("CREATE ROLE owner LOGIN; CREATE SCHEMA owner AUTHORIZATION owner")
        yield made


@pytest.fixture
def owner(preloaded: Server) -> Iterator[psycopg.Connection]:
    """The owner of a watched table, of whose rows the policy shows the even ones."""
    with psycopg.connect(host=str(preloaded.folder), user="owner", dbname="postgres", autocommit=True) as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        yield db
        db.execute("DROP TABLE note")


HIDE = """ALTER TABLE note ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY even ON note USING (id % 2 = 0) WITH CHECK (true)"""


def test_the_worker_says_that_a_policy_is_in_its_way(preloaded: Server, owner: psycopg.Connection) -> None:
    owner.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    owner.execute(HIDE)
    owner.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog')")
    with preloaded.connect() as db:
        until(
            lambda: (
                drained(db)
                or value(db, "SELECT count(*) FROM clip_search.watch_queue WHERE sqlstate IS NOT NULL")
                or "row-level security" in preloaded.messages()
            )
        )
        # Neither is forgotten.
        known = "SELECT count(DISTINCT key) FROM (SELECT key FROM clip_search.watch_queue UNION ALL SELECT key FROM clip_search.watch_failure) AS k"
        assert value(db, known) == 2
        assert value(db, "SELECT count(*) FROM owner.note WHERE embedding IS NOT NULL") == 0
    owner.execute("ALTER TABLE note NO FORCE ROW LEVEL SECURITY")
    owner.execute("SELECT clip_retry('note')")
    with preloaded.connect() as db:
        until(lambda: value(db, "SELECT count(*) FROM owner.note WHERE embedding IS NOT NULL") == 2)


def test_nor_are_hidden_rows_left_out_of_the_clusters(owner: psycopg.Connection) -> None:
    owner.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    owner.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog'), (3, 'a train')")
    before = owner.execute("SELECT id, cluster_id FROM note ORDER BY id").fetchall()
    owner.execute(HIDE)
    state, text = sqlstate(owner, "SELECT * FROM clip_recluster('note')")
    assert state == "42501" and "row-level security" in text, text
    owner.execute("ALTER TABLE note NO FORCE ROW LEVEL SECURITY")
    assert owner.execute("SELECT id, cluster_id FROM note ORDER BY id").fetchall() == before
