"""Rows during which a worker, or the server, has crashed: they are tried after all others, and rest after the second
crash."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import time

import psycopg

from servers import server
from support import until, value

PATIENCE = 120.0
WORKER = "SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'clip_search worker'"


def test_they_come_last(bindir: pathlib.Path) -> None:
    with server(bindir, worker="off", model="photo-mini", worker_batch="4") as made, made.connect() as db:
        db.execute("SET client_min_messages = error")
        db.execute("""
            CREATE SEQUENCE turn;
            CREATE FUNCTION note_turn() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN NEW.turn := nextval('public.turn'); RETURN NEW; END $$""")
        for table in ("first", "second"):
            db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text, turn bigint)")
            db.execute(f"SELECT clip_watch('{table}', 'body', mode => 'queued')")
            db.execute(f"INSERT INTO {table} SELECT n, 'cat ' || n FROM generate_series(1, 10) n")
            db.execute(f"CREATE TRIGGER a BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note_turn()")
        # The state that a worker leaves if it crashes while it embeds a row. This row is due before all others.
        db.execute("""
            UPDATE clip_search.watch_queue SET attempts = 1, due = now() - interval '20 seconds'
            WHERE key = '{1}' AND watch = (SELECT id FROM clip_search.watch_setting WHERE relation = 'first'::regclass)""")
        db.execute("ALTER SYSTEM SET clip_search.worker = on")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0, "empty queue", patience=PATIENCE)
        order = db.execute(
            "SELECT name, id FROM (SELECT 'first', * FROM first UNION ALL SELECT 'second', * FROM second) AS t (name, id) ORDER BY turn"
        ).fetchall()
        assert len(order) == 20 and order[-1] == ("first", 1)


def test_they_rest_after_the_second_time(bindir: pathlib.Path) -> None:
    with server(
        bindir, preload="photo-mini", model="photo-mini", worker_retry_delay="20ms", worker_timeout="100s"
    ) as made:
        with made.connect() as db:
            db.execute("SET client_min_messages = error")
            db.execute("""
                CREATE TABLE note (id int PRIMARY KEY, body text);
                SELECT clip_watch('note', 'body', mode => 'queued');
                CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN IF NEW.id = 1 THEN PERFORM pg_sleep(100); END IF; RETURN NEW; END $$;
                CREATE TRIGGER a BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION hang();
                INSERT INTO note VALUES (1, 'a sleepy cat')""")
        for attempt in (1, 2):
            with made.reconnect() as db:
                until(lambda: value(db, f"{WORKER} AND wait_event = 'PgSleep'"), "worker in the row", patience=PATIENCE)
                assert value(db, "SELECT attempts FROM clip_search.watch_queue") == attempt
                os.kill(value(db, f"{WORKER} AND wait_event = 'PgSleep'"), signal.SIGKILL)
            with contextlib.suppress(psycopg.Error), made.reconnect() as db:
                time.sleep(0.5)
                db.execute("SELECT 1")
        with made.reconnect() as db:
            entry = "SELECT attempts, due > now() + interval '20 seconds', sqlstate FROM clip_search.watch_queue"
            assert db.execute(entry).fetchone() == (2, True, None)
            db.execute("INSERT INTO note SELECT n, 'cat ' || n FROM generate_series(2, 5) n")
            until(lambda: value(db, "SELECT count(embedding) FROM note") == 4, "other rows embedded", patience=PATIENCE)
            assert db.execute(entry).fetchone() == (2, True, None)
            assert not value(db, f"{WORKER} AND wait_event = 'PgSleep'")
