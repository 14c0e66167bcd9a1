"""When the worker starts: at once after a commit, with growing delays after failures, and with no more rows at a time
than allowed."""

from __future__ import annotations

import time

import psycopg

from servers import Server
from support import embed_one, same_embedding, system_settings, until, value, vector
from watched import drained

DELAY = 0.2


SERVER = {"worker_retry_delay": f"{DELAY * 1000:.0f}ms"}


def test_a_commit_wakes_the_worker(db: psycopg.Connection) -> None:
    """Within half a second. Without the wake-up, the worker looks once a second, so a row written soon after its last
    look would wait for most of that second. A busy machine may delay most of the rows, but not all."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    db.execute("INSERT INTO note VALUES (0, 'a text')")
    until(lambda: drained(db))
    took = []
    for id in range(1, 10):
        # Each row is written at another moment, early in the second for which the worker waits.
        time.sleep(0.04 + 0.02 * id)
        start = time.monotonic()
        db.execute("INSERT INTO note VALUES (%s, 'a text')", (id,))
        while not value(db, "SELECT embedding IS NOT NULL FROM note WHERE id = %s", id):
            assert time.monotonic() - start < 30, "the row is not embedded"
            time.sleep(0.01)
        took.append(time.monotonic() - start)
    assert sorted(took)[2] < 0.5, took


def test_each_failure_doubles_the_delay(db: psycopg.Connection) -> None:
    with system_settings(db, worker_attempts="5"):
        db.execute("CREATE TABLE photo (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('photo', 'body', mode => 'queued')")
        # The table's own trigger raises an error that may pass. An error of the source itself would be listed at once.
        # A sequence keeps the time of the last attempt although the attempt is rolled back.
        db.execute("""
            CREATE SEQUENCE attempt;
            CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_catalog.setval('public.attempt', (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
                RAISE EXCEPTION 'not today';
            END $$;
            CREATE TRIGGER wait BEFORE UPDATE ON photo FOR EACH ROW EXECUTE FUNCTION wait()""")
        db.execute("INSERT INTO photo VALUES (1, 'a cat')")
        # When the row is due after each number of attempts; the last value seen counts.
        due: dict[int, float] = {}
        deadline = time.monotonic() + 60
        while value(db, "SELECT count(*) FROM clip_search.failure") == 0:
            assert time.monotonic() < deadline, due
            row = db.execute(
                "SELECT attempts, extract(epoch FROM due)::float8, sqlstate FROM clip_search.watch_queue"
            ).fetchone()
            if row and row[0] > 0 and row[2] is not None:
                due[row[0]] = row[1]
            time.sleep(0.005)
        assert {1, 2, 3, 4} <= due.keys(), due
        for attempts in (1, 2, 3):
            # It is tried when it is due, or later on a busy machine, and each delay is twice the one before; if delays
            # grew fourfold, the last would be 13 s.
            delay = DELAY * 2**attempts
            assert 0.95 * delay <= due[attempts + 1] - due[attempts] < 2 * delay + 5, due
        assert value(db, "SELECT attempts FROM clip_search.failure") == 5
        # The transaction of the last attempt itself lists the row.
        listed = "SELECT extract(epoch FROM failed_at) * 1000 <= last_value FROM clip_search.failure, attempt"
        assert value(db, listed)
        db.execute("DROP SEQUENCE attempt")


def test_what_was_changed_meanwhile_is_not_written(preloaded: Server, db: psycopg.Connection) -> None:
    """A row's text changes after the worker has embedded it and before it writes the embedding."""
    with preloaded.connect() as holder:
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
        db.execute("""
            CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(77); RETURN NEW; END $$;
            CREATE TRIGGER wait BEFORE UPDATE ON note FOR EACH ROW WHEN (old.id = 1) EXECUTE FUNCTION wait()""")
        holder.execute("SELECT pg_advisory_lock(77)")
        db.execute("INSERT INTO note VALUES (1, 'a sleepy cat'), (2, 'a dog')")
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
        until(lambda: value(db, waits))
        db.execute("UPDATE note SET body = 'a steam locomotive' WHERE id = 2")
        holder.execute("SELECT pg_advisory_unlock(77)")
        until(lambda: drained(db))
    stored = vector(value(db, "SELECT embedding::text FROM note WHERE id = 2"))
    assert same_embedding(stored, embed_one(db, "text", "a steam locomotive"))


def test_no_more_rows_than_a_batch_are_claimed(preloaded: Server, db: psycopg.Connection) -> None:
    with system_settings(db, worker_batch="3"), preloaded.connect() as holder:
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
        db.execute("""
            CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(77); RETURN NEW; END $$;
            CREATE TRIGGER wait BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION wait()""")
        holder.execute("SELECT pg_advisory_lock(77)")
        db.execute("INSERT INTO note SELECT n, 'text ' || n FROM generate_series(1, 20) n")
        until(
            lambda: value(
                db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
            )
        )
        # The worker commits its claims before it begins the work.
        assert value(db, "SELECT count(*) FROM clip_search.watch_queue WHERE attempts > 0") == 3
        assert value(db, "SELECT count(*) FROM clip_search.watch_queue WHERE attempts = 0") == 17
        holder.execute("SELECT pg_advisory_unlock(77)")
        until(lambda: drained(db))
    assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 20


def test_a_long_queue_is_not_read_each_round(db: psycopg.Connection) -> None:
    """Each round asks every watch of the database for its first due entry. Watches without entries once had the whole queue
    read, so that each round of 16 rows took a second with 190,000 entries."""
    for number in range(8):
        db.execute(f"CREATE TABLE idle_{number} (id int PRIMARY KEY, body text)")
        db.execute(f"SELECT clip_watch('idle_{number}', 'body', mode => 'queued')")
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
    entries = 40_000
    db.execute("INSERT INTO note SELECT n, 'text ' || n %% 5 FROM generate_series(1, %s) n", (entries,))
    db.execute("ANALYZE clip_search.watch_queue")
    read = "SELECT seq_tup_read FROM pg_stat_all_tables WHERE relid = 'clip_search.watch_queue'::regclass"
    embedded = "SELECT count(embedding) FROM note"
    before, rows, start = value(db, read), value(db, embedded), time.monotonic()
    until(lambda: value(db, embedded) >= rows + 640, "640 rows were not embedded")
    seconds = time.monotonic() - start
    # A worker reports its statistics at its end.
    pids = value(
        db,
        "SELECT array_agg(pg_terminate_backend(pid)::int * pid) FROM pg_stat_activity WHERE backend_type = 'clip_search worker'",
    )
    until(lambda: value(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)", pids) == 0)
    # NOTIFY clip_search says once a second how many are queued, for which they are counted.
    assert value(db, read) - before < entries * (seconds + 4), seconds
