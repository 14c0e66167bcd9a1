"""Two owners' watched tables beside a malicious role, while processes are killed and tables renamed.

The test takes half a minute with the other tests, an hour with `make soak-hostile` (HOSTILE=seconds: another time). At
the end, nothing that alice and bob have committed is lost, embedded twice or mixed up: no row has another text's
vector, no unwatched table has any vector, no cluster counts rows that are not in it, and no code of eve's has run with
another role's rights.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import psycopg
import pytest

from servers import Server, server
from support import embed_one, value, vector

SECONDS = float(os.environ.get("HOSTILE") or 30)
SEED = int(os.environ.get("SEED") or 0)
# After an hour, a kill leaves more to recover, and the machine may be busy: after 12 minutes it once took over 120 s.
PATIENCE = 120.0 if SECONDS < 600 else 600.0
OWNERS = ("alice", "bob")
SUBJECTS = ("a sleepy cat", "a steam locomotive", "chocolate cake with cherries", "the ocean at night", "an old guitar")

# The server was killed or isn't up yet, the connection was ended, or a statement was cancelled.
ENDED = {"57P01", "57P02", "57P03", "57014", "08006", "08003", "08001", None}
# Errors that a client of these isolation levels must expect while tables are renamed.
EXPECTED = {"40001", "42P01", "55P03", *ENDED}

TABLES = """
    CREATE TABLE {table} (id bigint NOT NULL, kind int NOT NULL DEFAULT 0, body text, versions int NOT NULL DEFAULT 1,
                          writes int NOT NULL DEFAULT 0, embedding vector(512), cluster_id bigint, PRIMARY KEY (id, kind)) {rest}"""
# Counts how often a row was given an embedding, and how often its text changed.
COUNT = """
    CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.writes := OLD.writes + (NEW.embedding IS NOT NULL AND OLD.embedding IS NULL)::int;
        NEW.versions := OLD.versions + (NEW.body IS DISTINCT FROM OLD.body)::int;
        RETURN NEW;
    END $$"""

# eve.seen records each role that runs this; a superuser would make eve one.
EVIL = """
    CREATE SCHEMA eve AUTHORIZATION eve;
    SET ROLE eve;
    CREATE TABLE eve.seen (who name, session name, at timestamptz DEFAULT clock_timestamp());
    GRANT USAGE ON SCHEMA eve TO PUBLIC;
    GRANT INSERT ON eve.seen TO PUBLIC;
    CREATE FUNCTION eve.evil(n bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF current_user <> 'eve' THEN
            INSERT INTO eve.seen (who, session) VALUES (current_user, session_user);
            BEGIN ALTER ROLE eve SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END;
        END IF;
        RETURN n;
    EXCEPTION WHEN OTHERS THEN RETURN n; -- a read-only transaction
    END $$;
    CREATE FUNCTION eve.quick() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM eve.evil(1);
        PERFORM pg_advisory_lock(4711);
        PERFORM set_config('search_path', 'eve, pg_catalog', false);
        RETURN NEW;
    END $$;
    CREATE FUNCTION eve.slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM eve.evil(2); PERFORM pg_sleep(2); RETURN NEW; END $$;
    CREATE FUNCTION eve.stubborn() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM eve.evil(3);
        FOR i IN 1..20 LOOP
            BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN query_canceled THEN NULL; END;
        END LOOP;
        RETURN NEW;
    END $$;
    RESET ROLE;"""


class Storm:
    """Threads that use one server, and the errors that they must not get."""

    def __init__(self, made: Server):
        self.made = made
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.done: collections.Counter[str] = collections.Counter()
        # By owner and id: the committed text, or the texts that may have been committed.
        self.known: dict[tuple[str, str, int], set[str | None]] = {}
        self.lock = threading.Lock()

    def connect(self, user: str = "postgres") -> psycopg.Connection:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                db = psycopg.connect(
                    host=str(self.made.folder), user=user, dbname="postgres", autocommit=True, connect_timeout=20
                )
                db.execute("SET client_min_messages = error")
                return db
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server did not come back"
                time.sleep(0.1)

    def spawn(
        self,
        what: str,
        user: str,
        turn: Callable[[psycopg.Connection, random.Random], None],
        seed: int,
        expected: set = EXPECTED,
    ) -> None:
        """Repeats the turn in a session of that user until the storm is over."""

        def run() -> None:
            rng = random.Random(1000 * SEED + seed)
            while not self.stop.is_set():
                try:
                    with self.connect(user) as db:
                        while not self.stop.is_set():
                            turn(db, rng)
                            self.done[what] += 1
                except psycopg.Error as error:
                    if error.sqlstate not in expected:
                        error.add_note(f"in {what} as {user}: {error.sqlstate}")
                        self.errors.append(error)
                        return
                    time.sleep(0.05)
                except BaseException as error:
                    error.add_note(f"in {what} as {user}")
                    self.errors.append(error)
                    return

        thread = threading.Thread(target=run, daemon=True, name=what)
        self.threads.append(thread)
        thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread.name} has not ended"
        if self.errors:
            raise AssertionError("what must not happen:\n" + "\n".join(map(repr, self.errors))) from self.errors[0]


# ---------------------------------------------------------------- alice and bob


def writer(storm: Storm, owner: str, table: str, number: int) -> Callable[[psycopg.Connection, random.Random], None]:
    """Inserts, edits, moves and deletes rows that only this thread writes."""
    serial = [0]
    known = storm.known

    def turn(db: psycopg.Connection, rng: random.Random) -> None:
        serial[0] += 1
        old = rng.random() < 0.4 and serial[0] > 1
        id = number * 1_000_000 + (rng.randrange(1, serial[0]) if old else serial[0])
        body = f"{rng.choice(SUBJECTS)} {rng.randrange(12)}" if rng.random() < 0.9 else None
        place = (owner, table, id)
        was = known.get(place, {"absent"})
        level = rng.choice(("READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"))
        what = rng.choice(("upsert", "upsert", "upsert", "delete", "move", "undo", "touch"))
        if not old:
            what = "upsert" if what != "undo" else what
        after = {"upsert": {body}, "delete": {"absent"}, "undo": was, "touch": was, "move": was}[what]
        known[place] = was | after
        try:
            with db.transaction():
                db.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
                if what == "upsert":
                    # Not ON CONFLICT: two tables swap their names, and the row may be in either.
                    done = db.execute(f"UPDATE {table} SET body = %s WHERE id = %s", (body, id)).rowcount
                    if not done and table == "doc":
                        done = db.execute("UPDATE doc_next SET body = %s WHERE id = %s", (body, id)).rowcount
                    if not done:
                        db.execute(
                            f"INSERT INTO {table} (id, kind, body) VALUES (%s, %s, %s)", (id, rng.randrange(2), body)
                        )
                elif what == "delete":
                    db.execute(f"DELETE FROM {table} WHERE id = %s", (id,))
                    if table == "doc":
                        db.execute("DELETE FROM doc_next WHERE id = %s", (id,))
                elif what == "move":
                    db.execute(f"UPDATE {table} SET kind = 1 - kind WHERE id = %s", (id,))
                elif what == "touch":
                    db.execute(f"UPDATE {table} SET versions = versions WHERE id = %s", (id,))
                else:
                    with contextlib.suppress(psycopg.errors.RaiseException), db.transaction():
                        db.execute(f"INSERT INTO {table} (id, kind, body) VALUES (%s, 0, 'undone')", (-id,))
                        db.execute("DO $$ BEGIN RAISE EXCEPTION 'undone'; END $$")
        except (psycopg.errors.SerializationFailure, psycopg.errors.UndefinedTable, psycopg.errors.LockNotAvailable):
            known[place] = was
            raise
        known[place] = after
        time.sleep(rng.random() * 0.02)

    return turn


def swap(db: psycopg.Connection, rng: random.Random) -> None:
    """The usual way to replace one table by another, in one transaction or three."""
    steps = (
        "ALTER TABLE doc RENAME TO doc_old",
        "ALTER TABLE doc_next RENAME TO doc",
        "ALTER TABLE doc_old RENAME TO doc_next",
    )
    if value(db, "SELECT to_regclass('doc_old') IS NOT NULL"):
        # A kill interrupted the last swap.
        db.execute(steps[1] if value(db, "SELECT to_regclass('doc') IS NULL") else steps[2])
        return
    with db.transaction() if rng.random() < 0.5 else contextlib.nullcontext():
        for step in steps:
            db.execute(step)
    time.sleep(rng.random())


def quiet(db: psycopg.Connection, rng: random.Random) -> None:
    """Nobody else uses this table: nothing may block it, and its counts are exact right after a TRUNCATE or DELETE."""
    db.execute("SET lock_timeout = '4s'")
    db.execute(
        "INSERT INTO quiet (id, body) SELECT n, 'an old guitar ' || n % 3 FROM generate_series(1, 5) n ON CONFLICT DO NOTHING"
    )
    size = "SELECT coalesce(sum(size), 0) FROM clip_search.cluster WHERE collection = current_user || '_quiet'"
    assert value(db, size) == value(db, "SELECT count(*) FROM quiet")
    db.execute(rng.choice(("TRUNCATE quiet", "DELETE FROM quiet WHERE id > 2")))
    assert value(db, size) == value(db, "SELECT count(*) FROM quiet")
    if rng.random() < 0.2:
        db.execute("SELECT count(*) FROM clip_recluster(current_user || '_quiet')")
    time.sleep(rng.random() * 0.2)


def maintain(db: psycopg.Connection, rng: random.Random) -> None:
    what = rng.choice(
        (
            "CALL clip_backfill('note')",
            "CALL clip_backfill('doc')",
            "SELECT clip_retry('note')",
            "SELECT count(*) FROM clip_recluster(current_user || '_note')",
            "SELECT count(*) FROM clip_recluster(current_user || '_part')",
            "TRUNCATE scratch",
            "INSERT INTO scratch (id, body) SELECT (random() * 1e9)::bigint, 'an old guitar' FROM generate_series(1, 20) ON CONFLICT DO NOTHING",
        )
    )
    # At this moment, doc may be the table that is not watched.
    with contextlib.suppress(psycopg.errors.UndefinedObject, psycopg.errors.UndefinedTable):
        db.execute(what)
    time.sleep(rng.random())


# ---------------------------------------------------------------- eve, a superuser, and the killer


def attack(db: psycopg.Connection, rng: random.Random) -> None:
    assert value(db, "SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'") is False, "eve is superuser"
    assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection ~ '^(alice|bob)'") == 0, (
        "eve sees others' clusters"
    )
    collection = f"{rng.choice(OWNERS)}_{rng.choice(('note', 'quiet', 'part', 'scratch'))}"
    own = db.execute("SELECT embedding::text FROM eve.plain WHERE embedding IS NOT NULL LIMIT 1").fetchone()
    calls = [("SELECT clip_drop_collection(%s)", (collection,)), ("SELECT * FROM clip_recluster(%s)", (collection,))]
    if own:
        calls.append(("SELECT clip_assign_cluster(%s::vector, %s)", (own[0], collection)))
    for call in calls:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute("SET LOCAL statement_timeout = '10s'")
            db.execute(*call)
    if own:
        # Most of these ids are other owners' clusters, which must not lose a member. Some of eve's own have other
        # members.
        cluster, hers = rng.randrange(1, 200), "SELECT count(*) FROM clip_search.cluster WHERE id = %s"
        before = value(db, hers, cluster)
        try:
            db.execute("SELECT clip_leave_cluster(%s, %s::vector)", (cluster, own[0]))
        except psycopg.errors.InvalidParameterValue:
            assert before or value(db, hers, cluster), f"eve learns that cluster {cluster} has other members"
    # A transaction that stays open after it has tried, and has written eve's own rows.
    with db.transaction():
        db.execute(
            "INSERT INTO eve.plain (id, body) VALUES ((random() * 1e9)::bigint, 'a sleepy cat') ON CONFLICT DO NOTHING"
        )
        if own:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege), db.transaction():
                db.execute("SELECT clip_assign_cluster(%s::vector, %s)", (own[0], collection))
        time.sleep(rng.random() * 3)


def feed(db: psycopg.Connection, rng: random.Random) -> None:
    table = rng.choice(("quick", "slow", "stubborn", "plain"))
    db.execute(
        f"INSERT INTO eve.{table} (id, body) SELECT (random() * 1e9)::bigint, 'an old guitar' FROM generate_series(1, 8) ON CONFLICT DO NOTHING"
    )
    time.sleep(1 + rng.random() * 2)


def look(db: psycopg.Connection, rng: random.Random) -> None:
    """The queries of an administrator, and the nightly jobs."""
    for query in (
        "SELECT * FROM clip_search.watch",
        "SELECT * FROM clip_search.collection",
        "SELECT count(*) FROM clip_search.cluster",
        "SELECT * FROM clip_search.failure",
        "SELECT * FROM clip_search.pending LIMIT 5",
    ):
        db.execute(query).fetchall()
    collection = rng.choice(("eve_plain", "eve_quick", "alice_note"))
    for call in (
        f"SELECT * FROM clip_recluster('{collection}')",
        f"SELECT * FROM clip_clusters('{collection}')",
        f"SELECT * FROM clip_cluster_groups('{collection}')",
    ):
        db.execute(call).fetchall()
    time.sleep(rng.random())


def kill(storm: Storm) -> Callable[[psycopg.Connection, random.Random], None]:
    def turn(db: psycopg.Connection, rng: random.Random) -> None:
        time.sleep(1 + rng.random() * max(2.0, SECONDS / 60))
        kind, number = rng.choice(
            (
                ("clip_search worker", signal.SIGKILL),
                ("clip_search worker", signal.SIGTERM),
                ("clip_search worker", signal.SIGINT),
                ("client backend", signal.SIGTERM),
                ("client backend", signal.SIGINT),
                ("client backend", signal.SIGKILL),
                ("clip_search launcher", signal.SIGTERM),
            )
        )
        found = [
            pid
            for (pid,) in db.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = %s AND pid <> pg_backend_pid()", (kind,)
            )
        ]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(found), number)
            storm.done[f"{kind} {number.name}"] += 1

    return turn


# ---------------------------------------------------------------- before and after


def prepare(db: psycopg.Connection) -> None:
    db.execute("SET client_min_messages = warning")
    for owner in OWNERS:
        db.execute(
            f"CREATE ROLE {owner} LOGIN; CREATE SCHEMA {owner} AUTHORIZATION {owner}; SET ROLE {owner}; SET search_path = {owner}, public"
        )
        db.execute(COUNT)
        for table in ("note", "tag", "doc", "doc_next", "quiet", "scratch"):
            db.execute(TABLES.format(table=table, rest=""))
        db.execute(TABLES.format(table="part", rest="PARTITION BY LIST (kind)"))
        for kind in (0, 1):
            db.execute(f"CREATE TABLE part_{kind} PARTITION OF part FOR VALUES IN ({kind})")
        for table, mode, grouped in (
            ("note", "queued", True),
            ("tag", "immediate", True),
            ("part", "queued", True),
            ("doc", "queued", False),
            ("quiet", "immediate", True),
            ("scratch", "queued", True),
        ):
            rest = f", cluster => 'cluster_id', collection => '{owner}_{table}'" if grouped else ""
            db.execute(f"SELECT clip_watch('{table}', 'body', mode => '{mode}'{rest})")
        for table in ("note", "tag", "doc", "doc_next", "part"):
            db.execute(
                f"CREATE TRIGGER count_writes BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION count_writes()"
            )
        db.execute("RESET ROLE; RESET search_path")
    db.execute("CREATE ROLE eve LOGIN")
    db.execute(EVIL)
    db.execute("SET ROLE eve; SET search_path = eve, public")
    for table in ("plain", "quick", "slow", "stubborn"):
        db.execute(TABLES.format(table=table, rest=""))
        grouped = f", cluster => 'cluster_id', collection => 'eve_{table}'" if table in ("plain", "quick") else ""
        db.execute(f"SELECT clip_watch('{table}', 'body', mode => 'queued'{grouped})")
        db.execute(f"CREATE INDEX ON {table} ((id + eve.evil(1))) WHERE eve.evil(5) = 5")
        if table != "plain":
            db.execute(f"CREATE TRIGGER {table} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION eve.{table}()")
    db.execute("RESET ROLE; RESET search_path")


def check(storm: Storm, db: psycopg.Connection) -> None:
    """Checks what is left after the storm."""
    vectors: dict[str, np.ndarray] = {}
    for owner in OWNERS:
        watched = {
            oid
            for (oid,) in db.execute(
                "SELECT relation::oid FROM clip_search.watch WHERE relation::oid IN (SELECT oid FROM pg_class WHERE relowner = %s::regrole)",
                (owner,),
            )
        }
        for table in ("note", "tag", "part", "doc"):
            names = [f"{owner}.{table}", *([f"{owner}.doc_next"] if table == "doc" else [])]
            found: dict[int, str | None] = {}
            for name in names:
                is_watched = value(db, "SELECT %s::regclass::oid", name) in watched
                query = f"SELECT id, body, embedding::text, cluster_id, writes, versions FROM {name}"
                sizes: collections.Counter[int] = collections.Counter()
                for id, body, embedding, cluster, writes, versions in db.execute(query).fetchall():
                    assert id not in found, f"{name}: row {id} is there twice"
                    found[id] = body
                    if not is_watched or body is None:
                        assert embedding is None and cluster is None, (
                            f"{name}: row {id} has a vector and should have none"
                        )
                        continue
                    if body not in vectors:
                        vectors[body] = embed_one(db, "text", body)
                    assert embedding is not None, f"{name}: row {id} has no embedding"
                    assert float(vector(embedding) @ vectors[body]) > 0.999999, (
                        f"{name}: row {id} has another text's vector"
                    )
                    assert writes <= versions, f"{name}: row {id} was embedded {writes} times for {versions} texts"
                    sizes[cluster] += 1
                if is_watched and table != "doc":
                    stored = dict(
                        db.execute(
                            "SELECT id, size FROM clip_search.cluster WHERE collection = %s", (f"{owner}_{table}",)
                        ).fetchall()
                    )
                    assert stored == dict(sizes), f"{name}: the clusters count other members than the rows"
            mine = {id: texts for (who, where, id), texts in storm.known.items() if (who, where) == (owner, table)}
            for id, texts in mine.items():
                assert found.get(id, "absent") in texts, (
                    f"{owner}.{table}: row {id} is {found.get(id, 'absent')!r}, not of {texts}"
                )
            assert set(found) <= set(mine), f"{owner}.{table}: rows that nobody has committed"
        query = "SELECT count(*) FROM clip_search.failure WHERE relation::oid = ANY (%s)"
        assert value(db, query, list(watched)) == 0, "rows are listed as failed"
    assert db.execute("SELECT DISTINCT who, session FROM eve.seen").fetchall() == [], "eve's code ran as somebody else"
    assert value(db, "SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'") is False


@pytest.mark.timeout(2 * SECONDS + 600)
def test_nothing_is_lost_doubled_or_crossed(bindir: pathlib.Path) -> None:
    with server(
        bindir, preload="photo-mini", worker_retry_delay="20ms", worker_timeout="3s", model="photo-mini"
    ) as made:
        with made.connect() as db:
            prepare(db)
        storm = Storm(made)
        number = 0
        for owner in OWNERS:
            for table in ("note", "note", "tag", "part", "part", "doc"):
                number += 1
                storm.spawn("writing", owner, writer(storm, owner, table, number), number)
            storm.spawn("swapping", owner, swap, number)
            # No 55P03 (lock_timeout) in the errors allowed here: another role would have caused it.
            storm.spawn("quiet", owner, quiet, number, ENDED)
            storm.spawn("maintaining", owner, maintain, number)
        storm.spawn("attacking", "eve", attack, 101)
        storm.spawn("feeding", "eve", feed, 102)
        storm.spawn("looking", "postgres", look, 103)
        storm.spawn("killing", "postgres", kill(storm), 104)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not storm.errors:
            time.sleep(0.2)
        storm.end()
        print(dict(storm.done))
        assert storm.done["writing"] > 20 * SECONDS / 10, storm.done
        with storm.connect() as db:
            if value(db, "SELECT to_regclass('alice.doc_old') IS NOT NULL OR to_regclass('bob.doc_old') IS NOT NULL"):
                for owner in OWNERS:
                    with storm.connect(owner) as mine:
                        while value(mine, "SELECT to_regclass('doc_old') IS NOT NULL"):
                            swap(mine, random.Random(1))
            mine = "SELECT count(*) FROM clip_search.watch_queue q JOIN clip_search.watch_setting w ON w.id = q.watch WHERE w.relation IN (SELECT oid FROM pg_class WHERE relowner IN ('alice'::regrole, 'bob'::regrole))"
            # Waits as long as the number of rows falls: an hour on a busy machine once left 47,000.
            least, deadline = value(db, mine), time.monotonic() + PATIENCE
            while left := value(db, mine):
                if left < least:
                    least, deadline = left, time.monotonic() + PATIENCE
                assert time.monotonic() < deadline, f"{left} rows of alice's and bob's still wait"
                time.sleep(0.2)
            check(storm, db)
