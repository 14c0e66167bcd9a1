"""The background worker embeds queued rows exactly once, whatever happens to the server and the worker.

These tests start a server of their own that preloads the extension.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import psycopg

import support
from servers import Server
from support import embed_one, raised_error, system_settings, until, value, vector
from watched import drained, workers

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


SERVER = {"worker_retry_delay": "20ms"}


def notes(db: psycopg.Connection, rest: str = "") -> None:
    db.execute(f"CREATE TABLE note (id int PRIMARY KEY, body text, writes int NOT NULL DEFAULT 0{rest})")
    db.execute("""
        CREATE OR REPLACE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            -- How often this row was given an embedding.
            NEW.writes := OLD.writes + (NEW.embedding IS NOT NULL AND OLD.embedding IS NULL)::int;
            RETURN NEW;
        END $$""")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
    db.execute("CREATE TRIGGER count_writes BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION count_writes()")


def check(db: psycopg.Connection, table: str = "note") -> None:
    """Checks that every row has the embedding of its text, and that each cluster's size is the number of its rows."""
    known: dict[str, np.ndarray] = {}
    sizes: dict[int, int] = {}
    for body, embedding, cluster in db.execute(
        f"SELECT body, embedding::text, cluster_id FROM {table} WHERE body IS NOT NULL"
    ):
        if body not in known:
            known[body] = embed_one(db, "text", body)
        assert embedding is not None and float(vector(embedding) @ known[body]) > 0.999999, body
        sizes[cluster] = sizes.get(cluster, 0) + 1
    assert (
        dict(db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = %s", (table,)).fetchall()) == sizes
    )


def test_the_worker_embeds_what_is_queued(db: psycopg.Connection) -> None:
    with psycopg.connect(host=db.info.host, user="postgres", dbname="postgres", autocommit=True) as listener:
        listener.execute("LISTEN clip_search")
        notes(db)
        with db.transaction():
            db.execute("INSERT INTO note SELECT n, 'text number ' || n % 50 FROM generate_series(1, 500) n")
            assert db.execute("SELECT embedded, pending FROM clip_search.watch").fetchone() == (0, 500)
        until(lambda: drained(db))
        check(db)
        assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (
            500,
            500,
            0,
            0,
        )
        assert db.execute("SELECT DISTINCT writes FROM note").fetchall() == [(1,)]
        told = [json.loads(message.payload) for message in listener.notifies(timeout=2)]
        assert sum(message["embedded"] for message in told) == 500
        assert told[-1] == {
            "table": "public.note",
            "embedding": "embedding",
            "embedded": told[-1]["embedded"],
            "failed": 0,
            "queued": 0,
        }
    assert len(workers(db)) == 1

    # Rows edited, set to NULL, renamed and deleted, before and after the worker has done them.
    db.execute("UPDATE note SET body = 'another text ' || id WHERE id <= 20")
    assert (
        value(db, "SELECT count(*) FROM note WHERE id <= 20 AND embedding IS NOT NULL AND body NOT LIKE 'another%'")
        == 0
    )
    db.execute("UPDATE note SET body = NULL WHERE id = 21")
    db.execute("UPDATE note SET id = id + 1000 WHERE id <= 10")
    db.execute("DELETE FROM note WHERE id IN (11, 22)")
    db.execute("UPDATE note SET writes = writes WHERE id > 100")
    until(lambda: drained(db))
    check(db)
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (498, 497, 0, 0)
    db.execute("TRUNCATE note")
    check(db)


def test_it_can_be_switched_off(db: psycopg.Connection) -> None:
    notes(db)
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    until(lambda: drained(db))
    with system_settings(db, worker="off"):
        until(lambda: not workers(db), "its end")
        db.execute("INSERT INTO note VALUES (2, 'a dog')")
        time.sleep(1)
        assert not drained(db) and not workers(db)
        heard: list[str | None] = []
        db.add_notice_handler(lambda notice: heard.append(notice.message_detail))
        db.execute(
            "CREATE TABLE photo (id int PRIMARY KEY, data bytea); SELECT clip_watch('photo', 'data', mode => 'queued')"
        )
        assert heard == ["clip_search.worker is off."]
    until(lambda: drained(db), "what was queued meanwhile")
    check(db)


def test_rolled_back_rows_leave_nothing(db: psycopg.Connection) -> None:
    notes(db)
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO note VALUES (1, 'a text')")
    with db.transaction():
        with db.transaction(force_rollback=True):
            db.execute("INSERT INTO note VALUES (2, 'a text')")
        db.execute("INSERT INTO note VALUES (3, 'a text')")
        assert value(db, "SELECT count(*) FROM clip_search.pending") == 1
    until(lambda: drained(db))
    check(db)


def test_a_partitioned_table(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int, body text, day date, PRIMARY KEY (day, id)) PARTITION BY RANGE (day)")
    db.execute("CREATE TABLE note_a PARTITION OF note FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')")
    db.execute("CREATE TABLE note_b PARTITION OF note FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')")
    db.execute("INSERT INTO note SELECT n, 'text ' || n, '2024-12-01' FROM generate_series(1, 20) n")
    db.execute("SET datestyle = 'SQL, DMY'")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
    db.execute("INSERT INTO note SELECT n, 'text ' || n, '2024-12-02'::date FROM generate_series(21, 40) n")
    db.execute("UPDATE note SET day = '03/02/2025' WHERE id BETWEEN 15 AND 25")
    until(lambda: drained(db))
    check(db)
    db.execute("UPDATE note SET day = '02/02/2025' WHERE id < 15")
    assert drained(db), "moved with its embedding"
    check(db)
    db.execute("UPDATE note SET day = '02/02/2024', body = 'x ' || id WHERE id < 5")
    until(lambda: drained(db))
    check(db)


def test_poison_rows_back_off_and_are_listed(preloaded: Server, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', mode => 'queued')")
    good = (PHOTOS / "cat.jpg").read_bytes()
    db.execute(
        "INSERT INTO photo SELECT n, CASE WHEN n %% 5 = 0 THEN 'no image'::bytea ELSE %s END FROM generate_series(1, 20) n",
        (good,),
    )
    until(lambda: value(db, "SELECT count(*) FROM photo WHERE embedding IS NOT NULL") == 16)
    until(lambda: drained(db))
    listed = db.execute(
        "SELECT key, sqlstate, message, attempts FROM clip_search.failure ORDER BY key[1]::int"
    ).fetchall()
    # No further attempt could read the image, so it is listed at once.
    assert listed == [([str(n)], "22023", "not an image", 1) for n in (5, 10, 15, 20)]
    # A trigger's error may be gone at the next attempt.
    db.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$"
    )
    db.execute("CREATE TRIGGER refuse BEFORE UPDATE ON photo FOR EACH ROW WHEN (old.id = 21) EXECUTE FUNCTION refuse()")
    db.execute("INSERT INTO photo VALUES (21, %b)", (good,))
    until(lambda: drained(db))
    listed = db.execute(
        "SELECT key, sqlstate, message, attempts FROM clip_search.failure WHERE key = '{21}'"
    ).fetchall()
    assert listed == [(["21"], "P0001", "not now", 5)]
    db.execute("DELETE FROM photo WHERE id = 21")
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (20, 16, 0, 4)
    db.execute("UPDATE photo SET data = %s WHERE id = 5", (good,))
    until(lambda: value(db, "SELECT embedded FROM clip_search.watch") == 17)
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 3
    assert value(db, "SELECT clip_retry('photo')") == 3
    until(lambda: value(db, "SELECT count(*) FROM clip_search.failure") == 3)
    # An error in the table's own trigger is a failure of the row.
    db.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today' USING ERRCODE = 'P0042'; END $$"
    )
    db.execute("CREATE TRIGGER fail BEFORE UPDATE ON photo FOR EACH ROW WHEN (old.id = 101) EXECUTE FUNCTION fail()")
    db.execute("INSERT INTO photo SELECT n, %s FROM generate_series(100, 105) n", (good,))
    until(lambda: value(db, "SELECT count(*) FROM clip_search.failure") == 4)
    assert (
        db.execute("SELECT sqlstate, message FROM clip_search.failure WHERE key = '{101}'").fetchone()[1] == "not today"
    )
    assert value(db, "SELECT embedded FROM clip_search.watch") == 22
    db.execute("DROP FUNCTION fail CASCADE")


def test_a_table_whose_triggers_take_forever_is_put_off(db: psycopg.Connection) -> None:
    """Its rows wait without delaying other tables' rows, and in the end they are listed."""
    with system_settings(db, worker_timeout="300ms", worker_attempts="2"):
        db.execute("CREATE TABLE photo (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('photo', 'body', mode => 'queued')")
        db.execute("CREATE FUNCTION forever() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LOOP END LOOP; END $$")
        db.execute(
            "CREATE TRIGGER forever BEFORE UPDATE ON photo FOR EACH ROW WHEN (old.id > 5) EXECUTE FUNCTION forever()"
        )
        db.execute("INSERT INTO photo SELECT n, 'text ' || n FROM generate_series(1, 7) n")
        notes(db)
        db.execute("INSERT INTO note SELECT n, 'text ' || n FROM generate_series(1, 50) n")
        until(lambda: value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 50)
        check(db)
        until(lambda: drained(db))
        assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NOT NULL") == 5
        listed = db.execute("SELECT key, sqlstate, message FROM clip_search.failure ORDER BY key").fetchall()
        assert listed == [([n], "57014", "canceling statement due to statement timeout") for n in ("6", "7")]
    db.execute("DROP FUNCTION forever CASCADE")


def test_writers_never_wait_for_the_worker_for_long(preloaded: Server, db: psycopg.Connection) -> None:
    """One session beside the worker: rows that fail and are corrected in any order, renamed, deleted, truncated. The
    session is never in a deadlock, and at the end all rows are right."""
    with system_settings(db, worker_attempts="1"):
        notes(db)
        rng, end, longest = random.Random(3), time.monotonic() + 8, 0.0
        while time.monotonic() < end:
            with db.transaction():
                for _ in range(rng.randrange(1, 12)):
                    start, id = time.monotonic(), rng.randrange(40)
                    what = rng.random()
                    if what < 0.7:
                        body = "" if rng.random() < 0.4 else f"text number {rng.randrange(30)}"
                        db.execute(
                            "INSERT INTO note VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                            (id, body),
                        )
                    elif what < 0.8:
                        db.execute("DELETE FROM note WHERE id = %s", (id,))
                    elif what < 0.98:
                        db.execute(
                            "UPDATE note SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM note WHERE id = %s)",
                            (id + 1000, id, id + 1000),
                        )
                    else:
                        db.execute("TRUNCATE note")
                    longest = max(longest, time.monotonic() - start)
                    time.sleep(rng.random() * 0.02)
        until(lambda: drained(db))
        failed = {int(key[0]) for (key,) in db.execute("SELECT key FROM clip_search.failure")}
        assert failed == {id for (id,) in db.execute("SELECT id FROM note WHERE body = ''")}
        db.execute("DELETE FROM note WHERE body = ''")
        check(db)
        # A statement normally takes milliseconds; one that waits for a whole batch or is in a deadlock takes longer.
        assert longest < 15, f"a statement took {longest:.1f} s"


def test_databases_are_looked_into_at_the_start(preloaded: Server) -> None:
    """The worker also reaches the others when the first database has a worker that stays."""
    names = ("one", "two", "three")
    with preloaded.connect() as db:
        for name in names:
            db.execute(f"CREATE DATABASE {name}")
    for name in names[1:]:
        with psycopg.connect(host=str(preloaded.folder), user="postgres", dbname=name, autocommit=True) as other:
            other.execute("SET client_min_messages = warning")
            other.execute("CREATE EXTENSION clip_search CASCADE")
            notes(other)
            other.execute("INSERT INTO note SELECT n, 'text number ' || n FROM generate_series(1, 2000) n")
    preloaded.stop("fast")
    preloaded.start()
    with preloaded.connect() as db:
        for name in names[1:]:
            until(lambda: workers(db, name))
        assert not workers(db, "one")
        for name in names:
            db.execute(f"DROP DATABASE {name}")


def test_a_model_that_is_not_there_is_waited_for(preloaded: Server, db: psycopg.Connection) -> None:
    """The rows are not at fault: they stay queued, and the worker serves other tables meanwhile."""
    models = preloaded.folder / "models"
    preloaded.run("mkdir", str(models))
    source = support.FIXTURES / "clip-mini"
    copy = f"mkdir -p {models}/clip-mini && cp -rL {source}/. {models}/clip-mini/"
    subprocess.run(["sh", "-c", f"{copy} && chmod -R a+rX {models}"], check=True)
    with system_settings(db, model_path=f"$system:{models}"):
        until(lambda: value(db, "SELECT count(*) FROM clip_models() WHERE name = 'clip-mini'") == 1)
        db.execute("CREATE TABLE photo (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('photo', 'body', mode => 'queued', model => 'clip-mini')")
        db.execute("INSERT INTO photo VALUES (1, 'a cat')")
        until(lambda: drained(db))
        preloaded.run("mv", str(models / "clip-mini"), str(models / "gone"))
        # This worker has the model in memory; another one doesn't.
        os.kill(workers(db)[0], signal.SIGTERM)
        db.execute("INSERT INTO photo VALUES (2, 'a dog')")
        notes(db)
        db.execute("INSERT INTO note VALUES (1, 'a text')")
        until(lambda: value(db, "SELECT embedding IS NOT NULL FROM note"))
        until(lambda: "rows of public.photo can't be embedded" in preloaded.messages())
        assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
        assert db.execute("SELECT key FROM clip_search.pending").fetchall() == [(["2"],)]
        preloaded.run("mv", str(models / "gone"), str(models / "clip-mini"))
        until(lambda: drained(db))
        assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NOT NULL") == 2


def test_reload_terminate_drop_and_create(preloaded: Server, db: psycopg.Connection) -> None:
    notes(db)
    db.execute("INSERT INTO note VALUES (1, 'a text')")
    until(lambda: drained(db))
    with system_settings(db, worker_batch="3"):
        db.execute("INSERT INTO note SELECT n, 'text ' || n FROM generate_series(2, 100) n")
        until(lambda: drained(db))
        check(db)

    # A worker that was terminated by hand comes back.
    old = workers(db)
    assert value(db, "SELECT pg_terminate_backend(%s, 10000)", old[0]) is True
    db.execute("INSERT INTO note VALUES (200, 'a text')")
    until(lambda: drained(db))
    assert workers(db) != old
    check(db)

    # A worker without watched tables ends, and starts again when there is one: after a normal end there is no delay of
    # five seconds, though a busy machine may need up to three attempts to show that.
    took: list[float] = []
    while not took or (min(took) >= 4 and len(took) < 3):
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'immediate')")
        db.execute("INSERT INTO note VALUES (%s, 'a text')", (201 + 2 * len(took),))
        until(lambda: not workers(db), "the worker's end")
        check(db)
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
        start = time.monotonic()
        db.execute("INSERT INTO note VALUES (%s, 'a text')", (202 + 2 * len(took),))
        until(lambda: drained(db))
        took.append(time.monotonic() - start)
        check(db)
    assert min(took) < 4, took
    db.execute("SET statement_timeout = '60s'")
    db.execute("DROP EXTENSION clip_search CASCADE")
    db.execute("RESET statement_timeout")
    until(lambda: not workers(db), "the worker's end")
    assert value(db, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'note'::regclass") == 1, (
        "but one of its own"
    )
    db.execute("DROP TABLE note")
    db.execute("CREATE EXTENSION clip_search")
    notes(db)
    db.execute("INSERT INTO note VALUES (1, 'a text')")
    until(lambda: drained(db))
    check(db)


def test_databases_can_be_dropped_copied_and_renamed(preloaded: Server, db: psycopg.Connection) -> None:
    """Both while the database's worker is idle, and while it is busy."""
    for busy in (False, True):
        name = f"other_{busy}".lower()
        db.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(host=str(preloaded.folder), user="postgres", dbname=name, autocommit=True) as other:
            other.execute("SET client_min_messages = warning")
            other.execute("CREATE EXTENSION clip_search CASCADE")
            notes(other)
            other.execute("INSERT INTO note VALUES (1, 'a text')")
            until(lambda: drained(other))
            if busy:
                other.execute("INSERT INTO note SELECT n, 'text number ' || n FROM generate_series(2, 3000) n")
        until(lambda: workers(db, name))
        if not busy:
            db.execute(f"CREATE DATABASE copy TEMPLATE {name}")
            db.execute("DROP DATABASE copy")
            db.execute(f"ALTER DATABASE {name} RENAME TO renamed")
            name = "renamed"
        # DROP DATABASE fails if the worker hasn't left after five seconds.
        db.execute(f"DROP DATABASE {name}")


def test_it_goes_on_after_a_restart(preloaded: Server) -> None:
    """Rows that were queued when the server went down, in whichever shutdown mode: in the middle of a batch, before a
    row that a session has locked."""
    with preloaded.connect() as first:
        notes(first)
        first.execute("""
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(77); RETURN NEW; END $$;
            CREATE TRIGGER wait BEFORE UPDATE ON note FOR EACH ROW WHEN (old.id % 400 > 100) EXECUTE FUNCTION wait()""")
    for number, mode in enumerate(("fast", "immediate")):
        with preloaded.connect() as writer:
            writer.execute("SELECT pg_advisory_lock(77)")
            writer.execute(
                "INSERT INTO note SELECT n, 'text number ' || n %% 100 FROM generate_series(%s::int, %s::int) n",
                (1 + 400 * number, 400 + 400 * number),
            )
            waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda waits=waits: value(writer, waits), "the worker's wait")
            assert not drained(writer)
            preloaded.stop(mode)
        preloaded.start()
        with preloaded.connect() as again:
            until(lambda: drained(again))
            check(again)
            assert value(again, "SELECT max(writes) FROM note") == 1
    with preloaded.connect() as again:
        again.execute("DROP TABLE note; DROP FUNCTION wait")


def test_it_has_the_owners_rights_only(preloaded: Server, db: psycopg.Connection) -> None:
    """The worker connects as a superuser. Code that a table's owner has attached to the table runs as the owner, and
    can neither change that nor defer anything until it is no longer so."""
    db.execute("CREATE ROLE mallory LOGIN; CREATE SCHEMA mallory AUTHORIZATION mallory")
    with psycopg.connect(host=str(preloaded.folder), user="mallory", dbname="postgres", autocommit=True) as mallory:
        mallory.execute("SET search_path = mallory, public")
        mallory.execute("SET client_min_messages = warning")
        mallory.execute("""
            CREATE TABLE seen (who text, session text, path text);
            CREATE TABLE loot (id int PRIMARY KEY, body text, attack text, copy text);
            CREATE FUNCTION note_it(what text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN
                INSERT INTO mallory.seen VALUES (current_user, session_user, current_setting('search_path'));
                RETURN what;
            EXCEPTION WHEN feature_not_supported OR invalid_transaction_state THEN RETURN what;
            END $$;
            CREATE FUNCTION attack() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO mallory.seen VALUES (current_user, session_user, current_setting('search_path'));
                IF NEW.attack IS NOT NULL AND NEW.embedding IS NOT NULL THEN
                    EXECUTE NEW.attack;
                END IF;
                RETURN NEW;
            END $$;
            CREATE INDEX ON loot (note_it(body));
            SELECT clip_watch('loot', 'body', mode => 'queued');
            CREATE TRIGGER attack BEFORE UPDATE ON loot FOR EACH ROW EXECUTE FUNCTION attack();
            CREATE FUNCTION trap(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
            CREATE OPERATOR = (FUNCTION = trap, LEFTARG = int, RIGHTARG = int);
            """)
        attacks = [
            None,
            "RESET SESSION AUTHORIZATION",
            "SET ROLE postgres",
            "ALTER ROLE mallory SUPERUSER",
            "CREATE TEMPORARY TABLE watch_queue (id int)",
            "SELECT set_config('search_path', 'mallory', false)",
            "SELECT clip_create_collection('mine')",
            "DELETE FROM clip_search.watch_setting",
        ]
        for number, attack in enumerate(attacks):
            mallory.execute("INSERT INTO loot VALUES (%s, 'a text', %s)", (number, attack))
        until(lambda: drained(db))
        assert {who for (who,) in mallory.execute("SELECT DISTINCT who FROM seen")} == {"mallory"}
        failed = dict(mallory.execute("SELECT key[1]::int, sqlstate FROM clip_search.failure").fetchall())
        assert set(failed) == {1, 2, 3, 4, 6, 7}, failed
        assert value(mallory, "SELECT count(*) FROM loot WHERE embedding IS NOT NULL") == 2

        # Deferred to the end of the transaction: refused, since it would run as the worker.
        mallory.execute("""
            DROP TRIGGER attack ON loot;
            CREATE CONSTRAINT TRIGGER later AFTER UPDATE ON loot DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attack();
            INSERT INTO loot VALUES (100, 'a text', 'ALTER ROLE mallory SUPERUSER')""")
        until(lambda: value(mallory, "SELECT count(*) FROM clip_search.failure WHERE key = '{100}'") == 1)
        assert value(db, "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") is False
        # The owner's code gains no rights from a superuser's calls for the table either.
        db.execute("CALL clip_backfill('mallory.loot')")
        db.execute("SELECT clip_retry('mallory.loot')")
        until(lambda: drained(db))
        assert {who for (who,) in mallory.execute("SELECT DISTINCT who FROM seen")} == {"mallory"}

        # Tables of other owners.
        notes(db)
        db.execute("GRANT ALL ON note TO mallory")
        for query in (
            "SELECT clip_watch('public.note', 'body', mode => 'queued')",
            "SELECT clip_unwatch('public.note')",
            "CALL clip_backfill('public.note')",
            "SELECT clip_retry('public.note')",
            "SELECT * FROM clip_search.backfill_begin('public.note', NULL)",
            "DELETE FROM clip_search.watch_queue",
            "INSERT INTO clip_search.watch_failure VALUES (1, '{1}', now(), '00000', '')",
        ):
            state, text = raised_error(mallory, query)
            assert state in ("42501", "22023"), (query, state, text)
        watch = value(db, "SELECT id FROM clip_search.watch_setting WHERE relation = 'note'::regclass")
        assert raised_error(mallory, f"SELECT clip_search.backfill_claim({watch}, 0, 1000, 1)")[0] == "42501"
        assert value(mallory, f"SELECT clip_search.backfill_claim({watch} + 1, 0, 1000, 1)") == []
        assert raised_error(mallory, f"SELECT * FROM clip_search.backfill_batch({watch}, '{{1}}')")[0] == "42501"
        mallory.execute(
            f"CREATE TRIGGER fake BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION public.clip_watch_row('{watch}')"
        )
        state, text = raised_error(mallory, "INSERT INTO seen VALUES ('x')")
        assert state == "55000" and "not watched" in text
        assert value(mallory, "SELECT count(*) FROM clip_search.pending WHERE relation = 'public.note'::regclass") == 0
    db.execute("DROP OWNED BY mallory CASCADE; DROP ROLE mallory")
