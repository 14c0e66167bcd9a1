"""Whatever is killed, every committed row is embedded exactly once, or listed as pending or failed.

Each kind of harm is done once with the other tests, 200 of them with `make soak-kill` (KILLS=n: another number). The
test fails on any error that a server's shutdown doesn't explain, and on any internal error in the server's log.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import psycopg

import support
from servers import Server, server
from support import embed_one, value, vector

PATIENCE = 120.0
# Errors that a session may see while the server goes down and comes back; None is a lost connection.
OUTAGE = {None, "08001", "08006", "57P01", "57P02", "57P03"}
SUBJECTS = ("a sleepy cat", "a steam locomotive", "chocolate cake with cherries", "the ocean at night", "an old guitar")
# Rows without an embedding that neither the queue nor the list of failures has.
LOST = """
    SELECT count(*) FROM {table} t WHERE body IS NOT NULL AND embedding IS NULL
    AND NOT EXISTS (SELECT FROM clip_search.watch_queue q WHERE q.watch = {watch} AND q.key = ARRAY[t.id::text])
    AND NOT EXISTS (SELECT FROM clip_search.watch_failure f WHERE f.watch = {watch} AND f.key = ARRAY[t.id::text])"""


@contextlib.contextmanager
def outages() -> Iterator[None]:
    """Ignores the errors that a server's shutdown explains, and no others."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in OUTAGE or not isinstance(error, psycopg.OperationalError):
            raise


class Writers:
    """Sessions that insert, edit and delete their own rows until they are stopped, and remember what was committed."""

    def __init__(self, made: Server, table: str, count: int = 3):
        self.made, self.table = made, table
        self.stop = threading.Event()
        self.known: list[dict[int, str | None]] = [{} for _ in range(count)]
        # Changes in flight when the connection was lost: the row may have either value.
        self.doubt: list[dict[int, set[str | None]]] = [{} for _ in range(count)]
        self.writes: list[collections.Counter[int]] = [collections.Counter() for _ in range(count)]
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, number: int) -> None:
        rng, serial = random.Random(number), 0
        known, doubt = self.known[number], self.doubt[number]
        while not self.stop.is_set():
            try:
                with self.made.reconnect() as db:
                    while not self.stop.is_set():
                        serial += 1
                        id = number * 1_000_000 + (serial if rng.random() < 0.7 else rng.randrange(1, serial + 1))
                        body = f"{rng.choice(SUBJECTS)} {rng.randrange(40)}" if rng.random() < 0.9 else None
                        doubt[id] = {known.get(id), body}
                        self.writes[number][id] += 1
                        db.execute(
                            f"INSERT INTO {self.table} (id, body) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                            (id, body),
                        )
                        known[id] = body
                        del doubt[id]
                        time.sleep(0.01)
            except psycopg.OperationalError as error:
                if error.sqlstate not in OUTAGE:
                    self.errors.append(error)
                    return
                time.sleep(0.05)
            except BaseException as error:
                self.errors.append(error)
                return

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        if self.errors:
            raise self.errors[0]


def processes(db: psycopg.Connection, kind: str) -> list[int]:
    return [
        pid
        for (pid,) in db.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = %s AND pid <> pg_backend_pid()", (kind,)
        )
    ]


def limited(made: Server, pid: int, what: str, limit: int) -> None:
    """Sets a resource limit of a process for a moment; as the server's user, who is allowed to."""
    for soft in (str(limit), "unlimited"):
        try:
            made.run("prlimit", f"--pid={pid}", f"--{what}={soft}:")
        except AssertionError:
            assert (
                not pathlib.Path(f"/proc/{pid}/cmdline").exists()
                or not pathlib.Path(f"/proc/{pid}/cmdline").read_text()
            )
            return
        time.sleep(0.3)


def hurt(made: Server, db: psycopg.Connection, what: str, model: pathlib.Path) -> None:
    """Does one kind of harm."""
    if what in ("clip_search worker", "clip_search launcher", "client backend"):
        for pid in processes(db, what)[:1]:
            os.kill(pid, signal.SIGKILL)
    elif what == "terminate":
        for pid in processes(db, "clip_search worker"):
            os.kill(pid, signal.SIGTERM)
    elif what == "cancel":
        for pid in processes(db, "clip_search worker"):
            os.kill(pid, signal.SIGINT)
    elif what == "memory":
        # The process gets no byte more than it has.
        for pid in processes(db, "clip_search worker"):
            with contextlib.suppress(FileNotFoundError):
                pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0])
                limited(made, pid, "as", pages * resource.getpagesize())
    elif what == "disk":
        # No file may grow, so PostgreSQL sees a failing write.
        for pid in processes(db, "clip_search worker"):
            limited(made, pid, "fsize", 0)
    elif what == "model gone":
        aside = model.with_name("aside")
        model.rename(aside)
        for pid in processes(db, "clip_search worker"):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
        aside.rename(model)
    elif what == "model replaced":
        graph = model / "onnx" / "text_model.onnx"
        good = graph.read_bytes()
        graph.write_bytes(b"no model")
        time.sleep(0.3)
        new = graph.with_name("new")
        new.write_bytes(good)
        new.chmod(0o644)
        new.rename(graph)
    else:
        raise AssertionError(what)


HARMS = (
    "clip_search worker",
    "client backend",
    "model gone",
    "clip_search worker",
    "memory",
    "disk",
    "model replaced",
    "clip_search launcher",
    "terminate",
    "cancel",
)
# Each kind of harm once; 200 with `make soak-kill`.
KILLS = int(os.environ.get("KILLS") or len(HARMS))
# Internal errors of the extension, which no harm excuses.
INTERNAL = re.compile(r"^.*\b(XX\d\d\d|panicked)\b.*$", re.MULTILINE)


def test_nothing_is_lost_or_done_twice(bindir: pathlib.Path) -> None:
    with server(
        bindir, preload="photo-mini", worker_retry_delay="50ms", worker_batch="8", model_path="$system:/nowhere"
    ) as made:
        models = made.folder / "models"
        made.run("mkdir", str(models))
        model = models / "clip-mini"
        shutil.copytree(support.FIXTURES / "clip-mini", model)
        for path in (models, *model.rglob("*"), model):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute(f"ALTER SYSTEM SET clip_search.model_path = '$system:{models}'")
            # Each log line includes the SQLSTATE.
            db.execute("ALTER SYSTEM SET log_line_prefix = '%m [%p] %e '")
            db.execute("SELECT pg_reload_conf()")
        with made.reconnect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("""
                CREATE TABLE embedding_made (tab text, id int, body text);
                CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF NEW.embedding IS NOT NULL AND OLD.embedding IS NULL THEN
                        INSERT INTO public.embedding_made VALUES (TG_TABLE_NAME, NEW.id, NEW.body);
                    END IF;
                    RETURN NULL;
                END $$""")
            for table, name in (("note", "photo-mini"), ("other", "clip-mini")):
                db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
                db.execute(
                    f"SELECT clip_watch('{table}', 'body', cluster => 'cluster_id', model => '{name}', mode => 'queued')"
                )
                db.execute(
                    f"CREATE TRIGGER count_writes AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION count_writes()"
                )
            watches = dict(db.execute("SELECT relation::regclass::text, id FROM clip_search.watch_setting").fetchall())

        writers = [Writers(made, "note"), Writers(made, "other", 1)]
        rng = random.Random(1)
        for number in range(KILLS):
            time.sleep(rng.uniform(0.2, 1.0))
            with outages(), made.reconnect() as db:
                hurt(made, db, HARMS[number % len(HARMS)], model)
            with outages(), made.reconnect() as db:
                for table, watch in watches.items():
                    assert value(db, LOST.format(table=table, watch=watch)) == 0, HARMS[number % len(HARMS)]
        for each in writers:
            each.end()

        # Once nothing is killed any more, everything gets done.
        deadline = time.monotonic() + PATIENCE
        while True:
            with outages(), made.reconnect() as db:
                if value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0:
                    break
            assert time.monotonic() < deadline, "the queue is not empty"
            time.sleep(0.2)
        with made.reconnect() as db:
            db.execute("SET client_min_messages = warning")
            failed = db.execute(
                "SELECT relation::text, key[1]::int, sqlstate, message FROM clip_search.failure"
            ).fetchall()
            for table, _, state, message in failed:
                # Only attempts that a kill ended are listed.
                assert state in ("57P02",), (table, state, message)
            for each in writers:
                rows = {
                    id: (body, embedding, cluster)
                    for id, body, embedding, cluster in db.execute(
                        f"SELECT id, body, embedding::text, cluster_id FROM {each.table}"
                    )
                }
                for known, doubt in zip(each.known, each.doubt, strict=True):
                    assert sum(id in rows for id in known) == len(known), "a committed row is not there"
                    for id, body in known.items():
                        assert rows[id][0] == body or rows[id][0] in doubt.get(id, ()), id
                vectors: dict[str, np.ndarray] = {}
                sizes: dict[int, int] = {}
                name = "photo-mini" if each.table == "note" else "clip-mini"
                listed = {id for table, id, *_ in failed if table == each.table}
                for id, (body, embedding, cluster) in rows.items():
                    if body is None:
                        assert embedding is None and cluster is None
                    elif embedding is None:
                        assert id in listed, f"{each.table} {id} is lost"
                    else:
                        assert id not in listed
                        if body not in vectors:
                            vectors[body] = embed_one(db, "text", body, name)
                        assert float(vector(embedding) @ vectors[body]) > 0.999999, (id, body)
                        sizes[cluster] = sizes.get(cluster, 0) + 1
                query = "SELECT id, size FROM clip_search.cluster WHERE collection = %s"
                assert dict(db.execute(query, (each.table,)).fetchall()) == sizes
                # A row that was written once was embedded once.
                made_of = dict(
                    db.execute(
                        "SELECT id, count(*) FROM embedding_made WHERE tab = %s GROUP BY 1", (each.table,)
                    ).fetchall()
                )
                once = [id for writes in each.writes for id, count in writes.items() if count == 1 and id in rows]
                assert {id: made_of.get(id, 0) for id in once} == {id: int(rows[id][1] is not None) for id in once}
                assert len(once) > 10
            assert not (internal := INTERNAL.findall(made.messages())), internal
            print(
                f"{KILLS} kills, {sum(len(known) for each in writers for known in each.known)} rows, {len(failed)} failed"
            )
