"""Row-level security that also applies to a table's owner: a row that a policy hides is not a deleted row."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import psycopg
import pytest

from servers import Server, server
from support import raised_error, until, value
from watched import drained


@pytest.fixture(scope="module")
def preloaded(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir, preload="photo-mini", worker_retry_delay="20ms", worker_attempts="2") as made:
        with made.connect() as db:
            db.execute("CREATE ROLE owner LOGIN; CREATE SCHEMA owner AUTHORIZATION owner")
        yield made


@pytest.fixture
def owner(preloaded: Server) -> Iterator[psycopg.Connection]:
    """The owner of a watched table whose policy shows only the even rows."""
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
        # Both rows are still queued or listed.
        known = "SELECT count(DISTINCT key) FROM (SELECT key FROM clip_search.watch_queue UNION ALL SELECT key FROM clip_search.watch_failure) AS k"
        assert value(db, known) == 2
        assert value(db, "SELECT count(*) FROM owner.note WHERE embedding IS NOT NULL") == 0
    owner.execute("ALTER TABLE note NO FORCE ROW LEVEL SECURITY")
    owner.execute("SELECT clip_retry('note')")
    with preloaded.connect() as db:
        until(lambda: value(db, "SELECT count(*) FROM owner.note WHERE embedding IS NOT NULL") == 2)


def test_hidden_rows_stay_in_clusters(owner: psycopg.Connection) -> None:
    owner.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    owner.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog'), (3, 'a train')")
    before = owner.execute("SELECT id, cluster_id FROM note ORDER BY id").fetchall()
    owner.execute(HIDE)
    state, text = raised_error(owner, "SELECT * FROM clip_recluster('note')")
    assert state == "42501" and "row-level security" in text, text
    owner.execute("ALTER TABLE note NO FORCE ROW LEVEL SECURITY")
    assert owner.execute("SELECT id, cluster_id FROM note ORDER BY id").fetchall() == before


@pytest.fixture
def reader(preloaded: Server, owner: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A role that may read and write the owner's table as far as its policies allow."""
    with preloaded.connect() as admin:
        admin.execute("CREATE ROLE reader LOGIN")
        admin.execute(
            "GRANT USAGE ON SCHEMA owner TO reader; GRANT SELECT, INSERT, UPDATE, DELETE ON owner.note TO reader"
        )
        with psycopg.connect(host=str(preloaded.folder), user="reader", dbname="postgres", autocommit=True) as db:
            db.execute("SET client_min_messages = warning; SET search_path = owner, public")
            yield db
        admin.execute("DROP OWNED BY reader; DROP ROLE reader")


BROKEN = r"'\x00'::bytea"


def test_force_stops_each_call_before_it_does_anything(
    owner: psycopg.Connection, preloaded: Server, clip_mini: pathlib.Path
) -> None:
    """A call that sees only some of the rows would take the others for done, or for deleted."""
    with preloaded.connect() as admin:
        admin.execute(f"ALTER SYSTEM SET clip_search.model_path = '$system:{clip_mini.parent}'")
        admin.execute("SELECT pg_reload_conf()")
        until(lambda: str(clip_mini.parent) in value(admin, "SHOW clip_search.model_path"))
    owner.execute("ALTER TABLE note ADD photo bytea")
    owner.execute("SELECT clip_watch('note', 'photo', on_error => 'skip')")
    owner.execute(f"INSERT INTO note (id, photo) VALUES (1, {BROKEN}), (2, {BROKEN})")
    owner.execute("ALTER TABLE note DISABLE TRIGGER USER")
    owner.execute(f"INSERT INTO note (id, photo) VALUES (3, {BROKEN}), (4, {BROKEN})")
    owner.execute("ALTER TABLE note ENABLE TRIGGER USER")
    owner.execute(HIDE)
    state = "SELECT (SELECT count(*) FROM clip_search.watch_failure), (SELECT count(*) FROM clip_search.watch_queue), (SELECT count(*) FROM clip_search.watch_setting)"
    with preloaded.connect() as admin:
        before = admin.execute(state).fetchone()
        assert before[0] == 2
        # A superuser's call also runs as the owner.
        for connection in (owner, admin):
            for call in (
                "CALL clip_backfill('owner.note')",
                "SELECT clip_watch('owner.note', 'body', embedding => 'other', existing => 'replace')",
            ):
                code, text = raised_error(connection, call)
                assert code in ("42501", "55000") and ("row-level security" in text or "policies" in text), (call, text)
                assert admin.execute(state).fetchone() == before, call
            # clip_retry leaves the rows in the list, which says why.
            try:
                assert value(connection, "SELECT clip_retry('owner.note')") == 0
            except psycopg.errors.InsufficientPrivilege as error:
                assert "row-level security" in str(error)
            assert admin.execute(state).fetchone()[0] == before[0]
        columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'owner.note'::regclass AND attnum > 0 AND NOT attisdropped"
        assert value(admin, columns) == 4, "clip_watch has left no column"
        # clip_reembed stops while it fills its column; clip_unwatch removes that column.
        code, text = raised_error(owner, "CALL clip_reembed('owner.note', 'clip-mini')")
        assert code == "42501" and "row-level security" in text, text
        beside = value(admin, "SELECT embedding::text FROM clip_search.watch_setting WHERE replaces IS NOT NULL")
        owner.execute("SELECT clip_unwatch('note', %s)", (beside,))
        assert admin.execute(state).fetchone()[2] == before[2] and value(admin, columns) == 4
    owner.execute("ALTER TABLE note NO FORCE ROW LEVEL SECURITY")
    # A policy that doesn't apply to the owner hides nothing from code that runs as the owner.
    assert value(owner, "SELECT clip_retry('note')") == 0
    owner.execute("CALL clip_backfill('note')")
    with preloaded.connect() as admin:
        assert value(admin, "SELECT count(*) FROM clip_search.watch_failure") == 4


def test_a_writer_need_not_see_the_row(
    owner: psycopg.Connection, reader: psycopg.Connection, preloaded: Server
) -> None:
    """The triggers get the row from PostgreSQL, not from a query that a policy could filter."""
    owner.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    owner.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY")
    owner.execute("CREATE POLICY writes ON note FOR INSERT TO reader WITH CHECK (true)")
    owner.execute("CREATE POLICY changes ON note FOR UPDATE TO reader USING (id = 1)")
    owner.execute("CREATE POLICY sees ON note FOR SELECT TO reader USING (id = 1)")
    reader.execute("INSERT INTO note (id, body) VALUES (1, 'a cat'), (2, 'a train'), (3, 'a cat')")
    assert value(reader, "SELECT count(*) FROM note") == 1
    assert reader.execute("UPDATE note SET body = 'a train'").rowcount == 1
    assert value(owner, "SELECT count(*) FROM note WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 3
    sizes = "SELECT array_agg(size ORDER BY size) FROM clip_search.cluster"
    assert value(owner, sizes) == [1, 2]
    # The writer sees nothing of the collection, nor of the lists of other roles' rows.
    for view in ("cluster", "collection", "failure", "pending"):
        assert value(reader, f"SELECT count(*) FROM clip_search.{view}") == 0
    assert reader.execute("SELECT rows, embedded, pending FROM clip_search.watch").fetchall() == [(None, None, None)]
    with preloaded.connect() as admin:
        admin.execute("ALTER ROLE reader BYPASSRLS")
        assert reader.execute("SELECT rows, pending FROM clip_search.watch").fetchall() == [(3, 0)]
        # It sees every row of the table, but still isn't the owner.
        assert value(reader, "SELECT count(*) FROM clip_search.cluster") == 0
        assert raised_error(reader, "SELECT * FROM clip_recluster('note')")[0] == "42501"
        assert raised_error(reader, "CALL clip_backfill('note')")[0] == "42501"
        assert raised_error(reader, "SELECT clip_retry('note')")[0] == "42501"


def test_a_leaky_condition_sees_nothing_of_hidden_lists(owner: psycopg.Connection, reader: psycopg.Connection) -> None:
    """Without a security barrier, PostgreSQL would run a cheap function that isn't leakproof before the view's own
    condition."""
    owner.execute("ALTER TABLE note ADD photo bytea")
    owner.execute("SELECT clip_watch('note', 'photo', on_error => 'skip')")
    owner.execute(f"INSERT INTO note (id, photo) VALUES (4711, {BROKEN})")
    assert value(owner, "SELECT count(*) FROM clip_search.failure") == 1
    owner.execute("REVOKE ALL ON note FROM reader")
    seen: list[str] = []
    reader.add_notice_handler(lambda notice: seen.append(notice.message_primary))
    reader.execute("""
        CREATE FUNCTION pg_temp.leak(anyelement) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS
        $$ BEGIN RAISE WARNING 'leaked %', $1::text; RETURN true; END $$""")
    for view, columns in {
        "failure": ("relation::text", "key::text", "message"),
        "pending": ("relation::text", "key::text"),
        "watch": ("relation::text", "source::text", "embedding::text"),
    }.items():
        for column in columns:
            assert reader.execute(f"SELECT * FROM clip_search.{view} WHERE pg_temp.leak({column})").fetchall() == []
    assert not any("4711" in text or "note" in text or "photo" in text for text in seen), seen
