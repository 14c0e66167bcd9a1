"""When the postmaster is killed, the launcher and the workers end too, so that the server can start again."""

from __future__ import annotations

import os
import pathlib
import signal

from servers import Server, server
from support import until, value

PROCESSES = "SELECT array_agg(pid) FROM pg_stat_activity WHERE backend_type LIKE 'clip_search %'"


def exists(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def starts(made: Server) -> bool:
    """Starts the server, unless a process of the killed server still exists."""
    try:
        made.start()
        return True
    except AssertionError:
        log = made.messages()
        # A process that nobody has waited for keeps its number, and PostgreSQL takes it for a running server.
        assert "pre-existing shared memory block" in log or "already exists" in log, log
        return False


def test_launcher_and_worker_end_with_the_postmaster(bindir: pathlib.Path) -> None:
    with server(bindir, preload="photo-mini", model="photo-mini") as made:
        with made.connect() as db:
            db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
            db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
            db.execute("INSERT INTO note SELECT n, 'cat ' || n FROM generate_series(1, 5) n")
            # The worker of a watched database stays, with an empty queue.
            until(lambda: len(value(db, PROCESSES)) == 2, "launcher and worker")
            until(lambda: value(db, "SELECT count(*) FROM note WHERE embedding IS NULL") == 0, "embeddings")
            processes = value(db, PROCESSES)
        killed = made.postmaster
        os.kill(killed, signal.SIGKILL)
        for process in [killed, *processes]:
            until(lambda process=process: not exists(process), f"end of process {process}")
        # PostgreSQL's own processes may take a moment longer to end.
        until(lambda: starts(made), "start of the server")
        with made.connect() as db:
            assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 5


def test_a_busy_worker_ends_with_the_postmaster(bindir: pathlib.Path) -> None:
    with server(bindir, preload="photo-mini", model="photo-mini", worker_batch="1") as made:
        with made.connect() as db:
            db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
            db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
            db.execute("""
                CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$;
                CREATE TRIGGER a BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION slow();
                INSERT INTO note SELECT n, 'cat ' || n FROM generate_series(1, 100000) n""")
            until(lambda: value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") > 0, "first embedding")
            processes = value(db, PROCESSES)
        os.kill(made.postmaster, signal.SIGKILL)
        for process in processes:
            until(lambda process=process: not exists(process), f"end of process {process}")
