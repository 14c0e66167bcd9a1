"""However a database is dumped and restored, its watches are the same afterwards, and nothing is embedded again."""

from __future__ import annotations

import pathlib
import subprocess

import psycopg
import pytest

import support
from support import raised_error, value
from watched import WORDS, check

STATE = (
    "SELECT * FROM clip_search.watch ORDER BY relation::text",
    "SELECT relation::text, key, attempts FROM clip_search.pending ORDER BY 1, 2",
    "SELECT relation::text, key, sqlstate, message FROM clip_search.failure ORDER BY 1, 2",
    # The last digit of a centroid depends on the order in which its rows are added up.
    "SELECT id, collection, size, (SELECT array_agg(round(c::numeric, 6) ORDER BY n) FROM unnest(centroid::real[]) WITH ORDINALITY u (c, n))"
    " FROM clip_search.cluster ORDER BY id",
    "SELECT watch, relation::text FROM clip_search.watch_partition ORDER BY 1, 2",
    "SELECT id, body, embedding::text, cluster_id FROM note ORDER BY id",
    "SELECT id, body, embedding::text FROM later ORDER BY id",
    "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgfoid = 'clip_watch_row()'::regprocedure ORDER BY 1, 2",
)


def make(db: psycopg.Connection) -> None:
    """Watches in both modes, a partitioned table, queued rows, failed rows, and rows with another text's vector."""
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE EXTENSION clip_search CASCADE")
    db.execute("CREATE TABLE author (id int PRIMARY KEY)")
    db.execute("INSERT INTO author SELECT generate_series(1, 100)")
    db.execute(
        "CREATE TABLE note (id int PRIMARY KEY, body text, author int REFERENCES author) PARTITION BY RANGE (id)"
    )
    db.execute("CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE high PARTITION OF note FOR VALUES FROM (100) TO (200)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip', index => true)")
    db.execute("CREATE TABLE later (id int PRIMARY KEY, body text, author int REFERENCES author)")
    db.execute("SELECT clip_watch('later', 'body', mode => 'queued')")
    insert = "INSERT INTO {} (id, body, author) SELECT n, (%s::text[])[1 + n %% 5], n %% 9 + 1 FROM generate_series(95, 104) n"
    for table in ("note", "later"):
        db.execute(insert.format(table), (list(WORDS),))
    db.execute("INSERT INTO note VALUES (1, '')")
    db.execute("SELECT set_config('session_replication_role', 'replica', false)")
    db.execute("UPDATE note SET body = 'never embedded' WHERE id = 95")
    db.execute("RESET session_replication_role")


def state(db: psycopg.Connection) -> list[list[tuple]]:
    return [db.execute(query).fetchall() for query in STATE]


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr


WAYS = ("plain", "custom", "sections", "jobs", "data alone", "inserts")


@pytest.mark.parametrize("way", WAYS)
def test_watches_survive(empty_database: support.Database, pg_program, tmp_path: pathlib.Path, way: str) -> None:
    with empty_database.connect() as db:
        make(db)
        before = state(db)
        assert all(before)
    name, file = empty_database.name, tmp_path / "dump"
    restored = support.Database(extension=False)
    psql = (pg_program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", restored.name, "-f")
    restore = (pg_program("pg_restore"), "--exit-on-error", "-d", restored.name)
    try:
        if way in ("plain", "inserts"):
            run(pg_program("pg_dump"), *(["--inserts"] if way == "inserts" else []), "-f", file, name)
            run(*psql, file)
        elif way == "data alone":
            for part, more in (("--schema-only", ()), ("--data-only", ("--disable-triggers",))):
                run(pg_program("pg_dump"), part, *more, "-f", file, name)
                run(*psql, file)
        else:
            run(pg_program("pg_dump"), "-Fc", "-f", file, name)
            sections = ("pre-data", "data", "post-data") if way == "sections" else (None,)
            for section in sections:
                options = [f"--section={section}"] if section else []
                run(*restore, *options, *(["--jobs=3"] if way == "jobs" else []), file)
        with restored.connect() as db:
            assert state(db) == before
            db.execute("SET client_min_messages = warning")
            db.execute("UPDATE note SET body = 'a cat' WHERE id = 95")
            db.execute("CALL clip_backfill('later')")
            assert value(db, "SELECT count(embedding) FROM later") == 10
            assert check(db, "note WHERE body <> ''", collection="note") == 10
            db.execute("TRUNCATE low")
            assert check(db, "note WHERE body <> ''", collection="note") == 5
            db.execute("ALTER TABLE note DETACH PARTITION high")
            assert check(db, "note", collection="note") == 0
    finally:
        restored.drop()


def test_a_parallel_restore_may_load_partitions_after_the_triggers(empty_database: support.Database) -> None:
    """pg_restore --jobs waits for the data of a trigger's own table, but a partitioned table has no data of its own. It
    empties the tables that it has created before it loads them."""
    with empty_database.connect() as db:
        make(db)
        before = state(db)
        rows = db.execute("SELECT id, body, author, embedding::text, cluster_id FROM low ORDER BY id").fetchall()
        assert len(rows) == 6
        trigger = value(
            db, "SELECT tgname FROM pg_trigger WHERE tgrelid = 'low'::regclass AND tgname LIKE 'zz_clip_partition_%'"
        )
        # pg_restore creates this trigger after it has loaded the trigger's own table.
        db.execute(f"ALTER TABLE low DISABLE TRIGGER {trigger}")
        with empty_database.connect() as restore:
            restore.execute("SET application_name = 'pg_restore'")
            with restore.transaction():
                restore.execute("TRUNCATE TABLE ONLY low")
                with restore.cursor().copy("COPY low (id, body, author, embedding, cluster_id) FROM stdin") as copy:
                    for row in rows:
                        copy.write_row(row)
            assert state(db) == before
            # Rows for a table that existed before the restore are embedded and grouped, whoever loads them.
            restore.execute("INSERT INTO low (id, body) VALUES (2, %s)", (WORDS[0],))
            assert value(db, "SELECT embedding IS NOT NULL AND cluster_id IS NOT NULL FROM note WHERE id = 2")
            assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'note'") == 11

            # Partitions that the dump already knows are not recorded twice.
            noted = db.execute("DELETE FROM clip_search.watch_partition RETURNING watch, relation::text").fetchall()
            assert len(noted) == 3
            restore.execute("ALTER TABLE low ALTER author SET STATISTICS 50")
            assert value(db, "SELECT count(*) FROM clip_search.watch_partition") == 0
            db.execute("ALTER TABLE low ALTER author SET STATISTICS 60")
            assert value(db, "SELECT count(*) FROM clip_search.watch_partition") == 3


def test_only_the_owner_loads_past_the_triggers(database: support.Database, plain_role: str) -> None:
    """Any role can set application_name to pg_restore."""
    with database.connect() as db, database.connect(plain_role) as writer:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
        db.execute(f"GRANT INSERT, TRUNCATE, SELECT ON note TO {plain_role}")
        writer.execute("SET application_name = 'pg_restore'")
        with writer.transaction():
            writer.execute("TRUNCATE note")
            writer.execute(
                "INSERT INTO note VALUES (1, %s, array_fill(0.5, ARRAY[512])::real[]::vector, 77)", (WORDS[0],)
            )
        assert check(db, "note") == 1


STALE = "SELECT count(*) FROM pg_trigger WHERE tgfoid = 'clip_watch_row()'::regprocedure AND tgparentid = 0"


@pytest.mark.parametrize("part", [[], ["--schema-only"]], ids=["data", "schema"])
@pytest.mark.parametrize("call", ["watch", "unwatch"])
def test_a_table_restored_alone_takes_writes_again(
    empty_database: support.Database, pg_program, tmp_path: pathlib.Path, call: str, part: list[str]
) -> None:
    """Its triggers are restored with it, but its watch isn't; by then, another table may have that watch's number."""
    file = tmp_path / "dump"
    said: list[str] = []
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
        db.execute("CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)")
        db.execute("SELECT clip_watch('note', 'body', cluster => 'g')")
        db.execute("INSERT INTO note VALUES (1, %s)", (WORDS[0],))
        triggers = value(db, STALE)
        assert triggers == 5
        run(pg_program("pg_dump"), "-t", "note", "-t", "low", *part, "-f", file, empty_database.name)
        db.execute("DROP TABLE note")
        run(pg_program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database.name, "-f", file)
        assert value(db, STALE) == triggers and value(db, "SELECT count(*) FROM clip_search.watch") == 0
        # The number now belongs to another table's watch.
        db.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
        number = value(db, "SELECT tgargs FROM pg_trigger WHERE tgrelid = 'low'::regclass AND tgargs <> '' LIMIT 1")
        db.execute("SELECT setval('clip_search.watch_id_seq', %s, false)", (int(bytes(number).rstrip(b"\0")),))
        db.execute("SELECT clip_watch('other', 'body')")
        state_of, text = support.raised_error(db, "INSERT INTO note VALUES (2, 'a cat')")
        assert state_of == "55000" and "clip_watch" in text and "clip_unwatch" in text
        db.execute("SET client_min_messages = notice")
        db.add_notice_handler(lambda diag: said.append(diag.message_primary or ""))
        if call == "unwatch":
            db.execute("SELECT clip_unwatch('note')")
            assert support.raised_error(db, "SELECT clip_unwatch('note')")[0] == "42704"
        else:
            db.execute("SELECT clip_watch('note', 'body', cluster => 'g')")
        told = [text for text in said if text.startswith("triggers zz_clip")]
        assert (
            len(told) == 1 and told[0].endswith(" of public.note are dropped") and told[0].count("zz_clip") == triggers
        )
        assert value(db, STALE) == 3 + (0 if call == "unwatch" else triggers)
        db.execute("INSERT INTO note VALUES (2, %s)", (WORDS[1],))
        db.execute("CALL clip_backfill('other')")
        if call == "watch":
            db.execute("CALL clip_backfill('note')")
            assert check(db, "note", "body, embedding::text, g", "note") == (1 if part else 2)
        db.execute("TRUNCATE low")


@pytest.mark.parametrize("schema", ["public", "its Own"])
def test_a_dump_keeps_what_is_watched(empty_database: support.Database, pg_program, tmp_path, schema: str) -> None:
    """Restored in one go, nothing is embedded again (a row whose embedding is not its source's proves it), queued and
    failed rows are still listed, and the triggers work."""
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        if schema != "public":
            db.execute(
                'CREATE SCHEMA v; CREATE SCHEMA "its Own"; CREATE EXTENSION vector SCHEMA v; CREATE EXTENSION clip_search SCHEMA "its Own"'
            )
        else:
            db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute(f'SET search_path = public, "{schema}", v')
        db.execute(
            'CREATE SCHEMA app; CREATE TABLE app."The notes" (id bigint GENERATED ALWAYS AS IDENTITY, day date, body text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)'
        )
        db.execute(
            "CREATE TABLE app.p1 PARTITION OF app.\"The notes\" FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')"
        )
        db.execute(
            "CREATE TABLE app.p2 PARTITION OF app.\"The notes\" FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"
        )
        db.execute(
            "SELECT clip_watch('app.\"The notes\"', 'body', cluster => 'cluster_id', on_error => 'skip', index => true)"
        )
        insert = "INSERT INTO app.\"The notes\" (day, body) SELECT '2024-12-20'::date + n::int, w FROM unnest(%s::text[]) WITH ORDINALITY AS u (w, n)"
        db.execute(insert, ([*WORDS * 4, "", None],))
        db.execute("CREATE TABLE later (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('later', 'body', mode => 'queued')")
        db.execute("INSERT INTO later VALUES (1, 'a cat')")
        db.execute("ALTER TABLE app.p1 DISABLE TRIGGER USER")
        db.execute("UPDATE app.p1 SET body = 'never embedded' WHERE id = 1")
        db.execute("ALTER TABLE app.p1 ENABLE TRIGGER USER")
        views = {
            query: db.execute(query).fetchall()
            for query in (
                "SELECT * FROM clip_search.watch ORDER BY 1",
                "SELECT * FROM clip_search.pending",
                "SELECT * FROM clip_search.failure",
                "SELECT id, collection, size, centroid::text FROM clip_search.cluster ORDER BY 1",
                'SELECT t::text FROM app."The notes" t ORDER BY id',
            )
        }
    dump = tmp_path / "dump"
    subprocess.run(
        [pg_program("pg_dump"), "--format=custom", f"--file={dump}", empty_database.name],
        check=True,
        capture_output=True,
    )
    restored = support.Database(extension=False)
    try:
        done = subprocess.run(
            [pg_program("pg_restore"), "--exit-on-error", "-d", restored.name, str(dump)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with restored.connect() as db:
            db.execute(f'SET search_path = public, "{schema}", v')
            for query, rows in views.items():
                assert rows and db.execute(query).fetchall() == rows, query
            db.execute(insert, (list(WORDS),))
            db.execute("UPDATE app.\"The notes\" SET body = 'a cat' WHERE id = 1")
            db.execute("UPDATE app.\"The notes\" SET day = day + 300 WHERE day < '2025-01-01'")
            db.execute('DELETE FROM app."The notes" WHERE id = 2')
            assert check(db, "app.\"The notes\" WHERE body <> ''", collection="The notes") == 24
            assert value(db, "SELECT count(*) FROM clip_search.failure") == 1
            db.execute("SET client_min_messages = error")
            db.execute("CALL clip_backfill('later')")
            assert value(db, "SELECT embedding IS NOT NULL FROM later")
            # DROP EXTENSION lists what depends on it; CASCADE keeps the tables and nothing else.
            state, text = raised_error(db, "DROP EXTENSION clip_search")
            assert state == "2BP01" and 'trigger zz_clip_watch_1 on table app."The notes"' in text
            db.execute("DROP EXTENSION clip_search CASCADE")
            assert value(db, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
            assert value(db, "SELECT count(*) FROM pg_namespace WHERE nspname = 'clip_search'") == 0
            assert value(db, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'clip\\_%'") == 0
            db.execute(insert, (["no trigger"],))
            assert value(db, 'SELECT count(*) FROM app."The notes" WHERE embedding IS NOT NULL') == 24
    finally:
        restored.drop()
