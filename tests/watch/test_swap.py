"""Two tables swap their names by RENAME: each keeps its own rows' embeddings, whatever is running on them."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from servers import server
from support import PATIENCE, embed_one, same_embedding, until, value, vector

IN_ONE = (
    "BEGIN; ALTER TABLE photo RENAME TO photo_old; ALTER TABLE photo_new RENAME TO photo; SELECT pg_sleep({0}); COMMIT"
)
IN_THREE = "ALTER TABLE photo RENAME TO photo_old; ; SELECT pg_sleep({0}); ALTER TABLE photo_new RENAME TO photo"
BY_SCHEMA = "BEGIN; ALTER SCHEMA here RENAME TO before; ALTER SCHEMA there RENAME TO here; SELECT pg_sleep({0}); COMMIT"


@pytest.fixture(scope="module")
def preloaded(bindir):
    with server(bindir, preload="photo-mini", worker_retry_delay="50ms") as made:
        yield made


@pytest.fixture
def db(preloaded):
    with preloaded.connect() as connection:
        connection.execute("SET client_min_messages = error")
        yield connection
        connection.execute("DROP TABLE IF EXISTS photo, photo_old, photo_new CASCADE")
        connection.execute("DROP SCHEMA IF EXISTS here, there, before CASCADE")


def pair(db: psycopg.Connection, watched: str = "photo", other: str = "photo_new", rest: str = "") -> None:
    db.execute(f"CREATE TABLE {watched} (id int PRIMARY KEY, body text)")
    db.execute(f"SELECT clip_watch('{watched}', 'body', mode => 'queued'{rest})")
    db.execute(f"CREATE TABLE {other} (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
    db.execute(f"INSERT INTO {other} SELECT g, 'a bank ' || g FROM generate_series(1, 40) g")


def run(db: psycopg.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            db.execute(statement)


def check(db: psycopg.Connection, watched: str, other: str) -> None:
    rows = db.execute(f"SELECT body, embedding::text FROM {watched}").fetchall()
    assert all(text is not None and same_embedding(vector(text), embed_one(db, "text", body)) for body, text in rows)
    assert value(db, f"SELECT count(embedding) FROM {other}") == 0, "written into a table that is not watched"
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0


@pytest.mark.parametrize("swap", [IN_ONE, IN_THREE], ids=["one", "three"])
def test_while_rows_are_queued(preloaded, db, swap):
    pair(db)
    with preloaded.connect() as other:
        swapping = threading.Thread(target=run, args=(other, swap.format(2)))
        db.execute("INSERT INTO photo SELECT g, 'a cat ' || g FROM generate_series(1, 40) g")
        swapping.start()
        swapping.join()
    until(lambda: value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0, "the queue's end")
    check(db, "photo_old", "photo")


def test_schemas_that_change_places(preloaded, db):
    db.execute("CREATE SCHEMA here; CREATE SCHEMA there")
    pair(db, "here.photo", "there.photo")
    with preloaded.connect() as other:
        swapping = threading.Thread(target=run, args=(other, BY_SCHEMA.format(1)))
        db.execute("INSERT INTO here.photo SELECT g, 'a cat ' || g FROM generate_series(1, 40) g")
        swapping.start()
        swapping.join()
    until(lambda: value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0, "the queue's end")
    check(db, "before.photo", "here.photo")


@pytest.mark.parametrize("swap", [IN_ONE, IN_THREE], ids=["one", "three"])
@pytest.mark.parametrize(
    "work",
    [
        "CALL clip_backfill('{0}'::oid::regclass)",
        "CALL clip_reembed('{0}'::oid::regclass, 'photo-mini+photo-mini')",
        "SELECT clip_retry('{0}'::oid::regclass)",
        "SELECT clip_unwatch('{0}'::oid::regclass)",
        "SELECT clip_watch('{0}'::oid::regclass, 'body', cluster => 'cluster_id')",
    ],
    ids=["backfill", "reembed", "retry", "unwatch", "watch"],
)
def test_while_a_session_is_at_work(preloaded, db, swap, work):
    """The swap is in progress when the call begins: the call waits for the table, and must then find the same one."""
    pair(db)
    db.execute("INSERT INTO photo SELECT g, 'a cat ' || g FROM generate_series(1, 20) g")
    oid = value(db, "SELECT 'photo'::regclass::oid")
    with preloaded.connect() as other:
        swapping = threading.Thread(target=run, args=(other, swap.format(1.5)))
        swapping.start()
        time.sleep(0.5)
        db.execute(work.format(oid))
        swapping.join()
    if "unwatch" in work:
        assert value(db, "SELECT count(*) FROM clip_search.watch") == 0
        assert value(db, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
        assert value(db, "SELECT count(embedding) FROM photo") == 0
        return
    db.execute(f"CALL clip_backfill('{oid}'::oid::regclass)")
    until(lambda: value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0, "the queue's end")
    assert value(db, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'photo'::regclass") == 0
    assert value(db, "SELECT count(embedding) FROM photo_old") == 20
    assert value(db, "SELECT count(embedding) FROM photo") == 0


@pytest.mark.parametrize("swap", [IN_ONE, IN_THREE], ids=["one", "three"])
def test_while_groups_are_made_again(preloaded, db, swap):
    pair(db, rest=", cluster => 'cluster_id'")
    db.execute("INSERT INTO photo SELECT g, 'a cat ' || g FROM generate_series(1, 20) g")
    db.execute("CALL clip_backfill('photo')")
    # No row has a group any more, so clip_recluster has rows to move.
    db.execute("UPDATE photo SET cluster_id = NULL")
    with preloaded.connect() as other:
        swapping = threading.Thread(target=run, args=(other, swap.format(1.5)))
        swapping.start()
        time.sleep(0.5)
        db.execute("SELECT count(*) FROM clip_recluster('photo')")
        swapping.join()
    assert value(db, "SELECT count(*) FROM photo_old o JOIN clip_search.cluster c ON c.id = o.cluster_id") == 20
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == 20
    assert value(db, "SELECT count(cluster_id) FROM photo") == 0


def test_to_and_fro_for_some_seconds(preloaded, db):
    """Renames the tables all the time while rows are written, embedded and backfilled."""
    pair(db, rest=", cluster => 'cluster_id'")
    oid, other_oid = (value(db, f"SELECT '{name}'::regclass::oid") for name in ("photo", "photo_new"))
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(work) -> None:
        try:
            with preloaded.connect() as own:
                own.execute("SET client_min_messages = error")
                while not stop.is_set():
                    work(own)
        except BaseException as error:
            errors.append(error)

    def rename(own: psycopg.Connection) -> None:
        run(
            own,
            "BEGIN; ALTER TABLE photo RENAME TO aside; ALTER TABLE photo_new RENAME TO photo; "
            "ALTER TABLE aside RENAME TO photo_new; COMMIT",
        )
        time.sleep(0.02)

    def backfill(own: psycopg.Connection) -> None:
        own.execute(f"CALL clip_backfill('{oid}'::oid::regclass, 4)")

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (rename, backfill)]
    for thread in threads:
        thread.start()
    began, row = time.monotonic(), 100
    while time.monotonic() < began + 8 or (row <= 110 and time.monotonic() < began + PATIENCE):
        with db.transaction():
            # Under a lock, the name stays this table's.
            name = value(db, "SELECT relname FROM pg_class WHERE oid = %s", oid)
            try:
                with db.transaction():
                    db.execute(f"LOCK TABLE {name} IN ROW EXCLUSIVE MODE")
                    if value(db, "SELECT %s::regclass::oid", name) == oid:
                        db.execute(f"INSERT INTO {name} VALUES (%s, 'a cat ' || %s)", (row, row))
                        row += 1
            except psycopg.errors.UndefinedTable:
                pass
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert row > 110
    db.execute(f"CALL clip_backfill('{oid}'::oid::regclass)")
    until(lambda: value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0, "the queue's end")
    name, other = (value(db, "SELECT %s::oid::regclass::text", relation) for relation in (oid, other_oid))
    check(db, name, other)
    assert value(db, f"SELECT count(*) FROM {name}") == row - 100
    sizes = value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'")
    assert sizes == row - 100
