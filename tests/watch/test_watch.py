"""Embeddings kept in sync: whatever is done to a watched table, its rows have the embedding of their source.

The oracle for embeddings is clip_embed_image and clip_embed_text (whose own oracle is onnxruntime,
tests/embed/test_parity.py), for clusters the sum of their members in numpy.
"""

from __future__ import annotations

import contextlib

import numpy as np
import psycopg
import pytest
from psycopg import sql

import support
from support import embed_one, in_parallel, raised_error, same_embedding, value, vector
from watched import PHOTOS, WORDS, check, fill, notes


def test_rows_follow_their_source(db: psycopg.Connection) -> None:
    notes(db)
    fill(db)
    assert check(db, "note") == 10
    before = db.execute("SELECT id, ctid FROM note").fetchall()
    assert value(db, "SELECT count(DISTINCT cluster_id) FROM note") == 5
    db.execute("UPDATE note SET body = 'an old guitar' WHERE id <= 3")
    db.execute("UPDATE note SET body = NULL WHERE id = 4")
    db.execute("DELETE FROM note WHERE id = 5")
    db.execute("UPDATE note SET body = body, title = 'x' WHERE id = 6")
    assert check(db, "note") == 9
    assert len(before) == 10
    db.execute("UPDATE note SET body = 'a sleepy cat' WHERE id = 4")
    db.execute(
        "MERGE INTO note USING (VALUES (6), (7), (20)) AS v (n) ON id = n WHEN MATCHED AND n = 6 THEN DELETE "
        "WHEN MATCHED THEN UPDATE SET body = 'the ocean at night' WHEN NOT MATCHED THEN INSERT (id, body) VALUES (n, 'a sleepy cat')"
    )
    assert check(db, "note") == 9
    db.execute("TRUNCATE note")
    assert check(db, "note") == 0


IMAGES = "SELECT images FROM clip_models() WHERE name = 'photo-mini'"  # this session has embedded; texts are remembered


def test_only_a_changed_source_is_embedded(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, title text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE photo_a PARTITION OF photo FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE photo_b PARTITION OF photo FOR VALUES FROM (100) TO (200)")
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id')")
    db.execute("INSERT INTO photo SELECT n, %s FROM generate_series(1, 3) n", (PHOTOS["cat"],))
    before = value(db, IMAGES)
    rows = "SELECT embedding::text, cluster_id FROM photo ORDER BY id"
    stored = db.execute(rows).fetchall()
    db.execute("UPDATE photo SET title = 'x', data = data")
    db.execute("UPDATE photo SET data = %s", (PHOTOS["cat"],))  # the same bytes once more
    db.execute("UPDATE photo SET id = id + 100")  # to the other partition
    db.execute("UPDATE photo SET cluster_id = cluster_id")
    assert value(db, IMAGES) == before and db.execute(rows).fetchall() == stored
    assert value(db, "SELECT size FROM clip_search.cluster WHERE collection = 'photo'") == 3
    db.execute("UPDATE photo SET id = id - 100, data = %s WHERE id = 103", (PHOTOS["rocket"],))
    assert value(db, IMAGES) == before + 1
    assert db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'photo' ORDER BY 1").fetchall() == [
        (1,),
        (2,),
    ]


@pytest.mark.parametrize(
    "conflict", ["DO NOTHING", "DO UPDATE SET body = excluded.body", "DO UPDATE SET title = 'again'"]
)
def test_on_conflict(db: psycopg.Connection, conflict: str) -> None:
    """A row that ON CONFLICT doesn't insert is in no cluster, also in a transaction with savepoints."""
    notes(db)
    fill(db, 5)
    insert = (
        f"INSERT INTO note (id, body) SELECT n, 'a sleepy cat' FROM generate_series(3, 8) n ON CONFLICT (id) {conflict}"
    )
    db.execute(insert)
    assert check(db, "note") == 8
    with db.transaction():
        db.execute(insert)
        with db.transaction(force_rollback=True):
            db.execute(insert)
            db.execute("DELETE FROM note WHERE id = 8")
        db.execute("UPDATE note SET body = 'an old guitar' WHERE id = 8")
        db.execute(insert)
        # clip_recluster counts the members, so the conflicting rows must have left nothing behind.
        db.execute("SELECT * FROM clip_recluster('note')")
        check(db, "note")
    check(db, "note")


def test_triggers_that_fire_for_a_subscription_stay_so(db: psycopg.Connection) -> None:
    """Changes that logical replication applies fire only triggers that somebody has enabled for that; a second call of
    clip_watch creates the triggers again."""
    notes(db)
    names = [
        row[0] for row in db.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'note'::regclass ORDER BY tgname")
    ]
    for name in names:
        db.execute(f"ALTER TABLE note ENABLE ALWAYS TRIGGER {name}")
    db.execute("SELECT clip_watch('note', 'body', on_error => 'skip')")
    db.execute("SELECT clip_watch('note', 'title', embedding => 'second')")
    states = db.execute("SELECT DISTINCT tgenabled::text FROM pg_trigger WHERE tgrelid = 'note'::regclass").fetchall()
    assert len(names) == 3 and states == [("A",)]
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        fill(db, 5)
    assert check(db, "note") == 5


def test_triggers_of_a_partitioned_table_that_fire_for_a_subscription_stay_so(db: psycopg.Connection) -> None:
    """It has one trigger more, which tells the partitions' triggers that the whole table is truncated."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text) PARTITION BY HASH (id)")
    for n in range(2):
        db.execute(f"CREATE TABLE note_{n} PARTITION OF note FOR VALUES WITH (MODULUS 2, REMAINDER {n})")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    names = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'note'::regclass"
    for (name,) in db.execute(names).fetchall():
        db.execute(f"ALTER TABLE note ENABLE ALWAYS TRIGGER {name}")
    db.execute("SELECT clip_watch('note', 'body', on_error => 'skip')")
    assert db.execute(f"{names} AND tgenabled <> 'A'").fetchall() == []
    db.execute("INSERT INTO note SELECT n, w FROM unnest(%s::text[]) WITH ORDINALITY AS u (w, n)", (list(WORDS),))
    assert check(db, "note") == len(WORDS)
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("TRUNCATE note")
    assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0


def test_other_triggers(db: psycopg.Connection) -> None:
    """A trigger that changes the source comes first; one that turns a deletion into an update, or drops a row, is
    respected."""
    notes(db)
    db.execute("""
        CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'DELETE' THEN
                RETURN NULL;
            END IF;
            NEW.body := btrim(NEW.body);
            RETURN CASE WHEN NEW.body = 'drop me' THEN NULL ELSE NEW END;
        END $$;
        CREATE TRIGGER tidy BEFORE INSERT OR UPDATE OR DELETE ON note FOR EACH ROW EXECUTE FUNCTION tidy();
        CREATE TRIGGER zzz_tidy BEFORE INSERT OR UPDATE ON note FOR EACH ROW EXECUTE FUNCTION tidy();
        """)
    fill(db, 5)
    db.execute("INSERT INTO note (id, body) VALUES (6, ' a sleepy cat '), (7, 'drop me')")
    db.execute("DELETE FROM note WHERE id = 1")
    db.execute("UPDATE note SET body = 'drop me' WHERE id = 2")
    assert check(db, "note") == 6
    # A trigger that fires later and drops the row undoes what was done for it.
    db.execute("DROP TRIGGER tidy ON note")
    db.execute("INSERT INTO note (id, body) VALUES (8, 'drop me')")
    db.execute("UPDATE note SET body = 'drop me' WHERE id = 3")
    assert check(db, "note") == 6


def test_a_partitioned_table(db: psycopg.Connection) -> None:
    """Rows move between partitions with their embedding and cluster, whether or not their source changes too."""
    notes(
        db, rest="PARTITION BY RANGE (id)", key="id int, tag text DEFAULT 'it''s a \"key\"{,}\\', PRIMARY KEY (id, tag)"
    )
    db.execute("""
        CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100);
        CREATE TABLE high (title text, cluster_id bigint, gone int, body text, tag text NOT NULL, embedding vector(512), id int NOT NULL);
        ALTER TABLE high DROP COLUMN gone;
        ALTER TABLE note ATTACH PARTITION high FOR VALUES FROM (100) TO (200);
        """)
    fill(db)
    assert check(db, "note") == 10
    db.execute("UPDATE note SET id = id + 100 WHERE id <= 5")
    assert value(db, "SELECT count(*) FROM high") == 5
    assert check(db, "note") == 10
    db.execute("UPDATE note SET id = id - 100, body = 'an old guitar' WHERE id > 102")
    assert check(db, "note") == 10
    db.execute("DELETE FROM note WHERE id IN (3, 101)")
    db.execute("INSERT INTO low (id, body) VALUES (50, 'a steam locomotive')")
    db.execute(
        "INSERT INTO note (id, body) VALUES (50, 'a steam locomotive') ON CONFLICT (id, tag) DO UPDATE SET body = 'a sleepy cat'"
    )
    assert check(db, "note") == 9
    # Large texts are stored out of line, and images even more so.
    db.execute("UPDATE note SET body = repeat(md5(id::text) || ' ', 500)")
    with db.transaction():
        db.execute("UPDATE note SET id = id + 100 WHERE id < 100")
        db.execute("UPDATE note SET id = id - 100 WHERE id > 107")
    assert check(db, "note") == 9
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
    db.execute("SELECT count(*) FROM clip_recluster('note')")
    assert check(db, "note") == 9


def test_odd_names_keys_and_row_security(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:
    role = sql.Identifier(plain_role)
    with database.connect(user=plain_role) as mine:
        mine.execute("SET client_min_messages = warning")
        mine.execute("SET search_path = ''")
        mine.execute(
            sql.SQL("""
            CREATE TABLE {}."the ""odd"" One" ("Key" uuid DEFAULT gen_random_uuid(), "day" date DEFAULT '2024-02-29',
                n int, twice int GENERATED ALWAYS AS (n * 2) STORED, "The text" text, PRIMARY KEY ("Key", twice, "day"))
            """).format(role)
        )
        table = sql.SQL('{}."the ""odd"" One"').format(role).as_string(mine)
        mine.execute(
            "SELECT public.clip_watch(%s, 'The text', embedding => 'Vec tor', cluster => 'Group', collection => %s, on_error => 'skip', index => true)",
            (table, 'it\'s "odd"'),
        )
        mine.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON {table} USING (n > 1000)")
        mine.execute("SET datestyle = 'German'")
        mine.execute(
            f'INSERT INTO {table} (n, "The text") SELECT n, (%s::text[])[n] FROM generate_series(1, 5) n',
            (list(WORDS),),
        )
        mine.execute(f"INSERT INTO {table} (n, \"The text\") VALUES (6, '')")
        assert value(mine, "SELECT key[2:3] FROM clip_search.failure") == ["12", "2024-02-29"]
        mine.execute("SET datestyle = 'SQL, DMY'")
        assert value(mine, f"SELECT public.clip_retry('{table}')") == 0
        mine.execute(f"UPDATE {table} SET n = 7 WHERE n = 6")
        assert value(mine, "SELECT key[2] FROM clip_search.failure") == "14"
        mine.execute(f"UPDATE {table} SET \"The text\" = 'a cat' WHERE n = 7")
        assert value(mine, "SELECT count(*) FROM clip_search.failure") == 0
        columns = '"The text", "Vec tor"::text, "Group"'
        assert check(db, table, columns, 'it\'s "odd"') == 6
        assert mine.execute("SELECT rows, embedded, pending, failed, active FROM clip_search.watch").fetchone() == (
            6,
            6,
            0,
            0,
            True,
        )
        mine.execute(f"SELECT public.clip_unwatch('{table}', drop_columns => true)")
        shown = mine.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table,),
        )
        assert [name for (name,) in shown] == ["Key", "day", "n", "twice", "The text"]
        assert value(mine, "SELECT count(*) FROM clip_search.collection") == 0


def test_nobody_elses_functions_are_run(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:
    """The caller has operators, functions and temporary tables named like PostgreSQL's or the extension's: code that
    runs with more rights than the caller's uses none of them, and all other code still works."""
    role = sql.Identifier(plain_role)
    with database.connect(user=plain_role) as mine:
        mine.execute("SET client_min_messages = warning")
        mine.execute(sql.SQL("SET search_path = {}, pg_catalog, public").format(role))
        for kind in (
            "text, text",
            "bigint, bigint",
            "int, int",
            "oid, oid",
            "text[], text[]",
            "timestamptz, timestamptz",
            "name, name",
            "bytea, bytea",
        ):
            mine.execute(
                f"CREATE FUNCTION trap({kind}) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$"
            )
            left, right = kind.split(", ")
            for operator in ("=", "<>", "<=", ">", ">=", "+"):
                if operator == "+" and left not in ("int", "bigint"):
                    continue
                mine.execute(f"CREATE OPERATOR {operator} (FUNCTION = trap, LEFTARG = {left}, RIGHTARG = {right})")
        for name, arguments in (
            ("now", ""),
            ("clock_timestamp", ""),
            ("format", "text"),
            ("pg_has_role", "oid, text"),
            ("unnest", "text[]"),
            ("count", "bigint"),
        ):
            mine.execute(
                f"CREATE FUNCTION {name}({arguments}) RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$"
            )
        for table in (
            "watch_setting",
            "watch_queue",
            "watch_failure",
            "watch_live",
            "pg_class",
            "pg_trigger",
            "cluster_sum",
            "collection_setting",
        ):
            mine.execute(f"CREATE TEMPORARY TABLE {table} (id bigint)")
        assert raised_error(mine, "SELECT 1 = 1")[1].startswith("trapped")  # the traps do work
        mine.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        mine.execute("INSERT INTO note VALUES (0, 'a cat'), (-1, '')")
        mine.execute(
            "SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip', collection => 'trapped')"
        )
        mine.execute("CALL clip_backfill('note')")
        mine.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog'), (3, '')")
        mine.execute("INSERT INTO note VALUES (1, 'a dog') ON CONFLICT (id) DO UPDATE SET body = excluded.body")
        mine.execute("SELECT clip_retry('note')")
        mine.execute("UPDATE note SET body = 'x' || body")
        mine.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
        mine.execute("UPDATE note SET body = 'y' || body")
        mine.execute("CALL clip_backfill('note')")
        mine.execute("SELECT * FROM clip_search.watch, clip_search.failure, clip_search.pending")
        mine.execute("DELETE FROM note")
        mine.execute("INSERT INTO note VALUES (10, 'a cat')")
        mine.execute("CALL clip_backfill('note')")
        check(db, f"{plain_role}.note", collection="trapped")
        mine.execute("SELECT clip_unwatch('note', drop_columns => true)")
        # Other roles' collections, and tables of another owner.
        db.execute("SELECT clip_assign_cluster(clip_embed_text('a cat'), 'theirs')")
        state, text = raised_error(mine, "SELECT clip_watch('note', 'body', collection => 'theirs', cluster => 'c')")
        assert state == "42501" and "theirs" in text
        db.execute("CREATE TABLE public.theirs (id int PRIMARY KEY, body text)")
        db.execute(f"GRANT ALL ON public.theirs TO {plain_role}")
        state, text = raised_error(mine, "SELECT clip_watch('public.theirs', 'body')")
        assert state == "42501" and "must be owner" in text
        db.execute("DROP TABLE public.theirs")
        db.execute(f"ALTER TABLE {plain_role}.note FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY")
        state, text = raised_error(mine, "SELECT clip_watch('note', 'body', mode => 'queued')")
        assert state == "55000" and "policies" in text
        mine.execute("SELECT clip_watch('note', 'body')")


def test_image_and_text_are_averaged(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, caption varchar(100))")
    db.execute("SELECT clip_watch('photo', 'data', text_source => 'caption', text_weight => 0.25)")
    image, text = embed_one(db, "image", PHOTOS["cat"]), embed_one(db, "text", "my cat")
    rows = [
        (1, PHOTOS["cat"], "my cat"),
        (2, PHOTOS["cat"], None),
        (3, None, "my cat"),
        (4, None, None),
        (5, PHOTOS["cat"], " "),
    ]
    for row in rows:
        db.execute("INSERT INTO photo VALUES (%s, %s, %s)", row)
    found = {id: vector(v) for id, v in db.execute("SELECT id, embedding::text FROM photo")}
    mean = 0.75 * image.astype(np.float64) + 0.25 * text
    assert np.abs(found[1] - mean / np.linalg.norm(mean)).max() < 1e-6
    assert (
        same_embedding(found[2], image)
        and same_embedding(found[3], text)
        and found[4] is None
        and same_embedding(found[5], image)
    )
    db.execute("UPDATE photo SET caption = NULL WHERE id = 1")
    assert same_embedding(vector(value(db, "SELECT embedding::text FROM photo WHERE id = 1")), image)


def test_errors_are_raised_or_skipped(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id')")
    state, text = raised_error(db, "INSERT INTO photo VALUES (1, 'not an image')")
    assert state == "22023" and text.startswith("not an image")
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', on_error => 'skip')")
    db.execute("INSERT INTO photo VALUES (1, 'not an image'), (2, %s), (3, NULL), (4, 'nor this')", (PHOTOS["cat"],))
    failed = "SELECT key, sqlstate, message, attempts FROM clip_search.failure ORDER BY key"
    assert db.execute(failed).fetchall() == [(["1"], "22023", "not an image", 1), (["4"], "22023", "not an image", 1)]
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (4, 1, 0, 2)
    # The list follows when a failed row is rolled back, deleted, corrected or renamed.
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO photo VALUES (5, 'no')")
        assert value(db, "SELECT count(*) FROM clip_search.failure") == 3
    db.execute("UPDATE photo SET id = 40 WHERE id = 4")
    assert [key for key, *_ in db.execute(failed)] == [["1"], ["40"]]
    db.execute("CALL clip_backfill('photo')")
    assert [key for key, *_ in db.execute(failed)] == [["1"], ["40"]], "known failures are not tried again unasked"
    assert value(db, "SELECT clip_retry('photo')") == 0
    assert [(key, attempts) for key, _, _, attempts in db.execute(failed)] == [(["1"], 1), (["40"], 1)]
    db.execute("UPDATE photo SET data = %s WHERE id = 1", (PHOTOS["rocket"],))
    db.execute("DELETE FROM photo WHERE id = 40")
    assert db.execute(failed).fetchall() == []
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (3, 2, 0, 0)
    # A failure caused by a setting is gone once the setting is.
    db.execute("SET clip_search.max_image_pixels = 100")
    db.execute("INSERT INTO photo VALUES (6, %s)", (PHOTOS["pagoda"],))
    assert value(db, "SELECT sqlstate FROM clip_search.failure") == "54000"
    db.execute("RESET clip_search.max_image_pixels")
    assert value(db, "SELECT clip_retry('photo')") == 1
    assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 3
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0


def test_one_model_a_column(db: psycopg.Connection, clip_mini) -> None:
    notes(db)
    fill(db, 5)
    db.execute(f"SET clip_search.model_path = '$system:{clip_mini.parent}'")
    state, text = raised_error(db, "SELECT clip_watch('note', 'body', cluster => 'cluster_id', model => 'clip-mini')")
    assert state == "55000" and "clip_reembed" in text
    state, text = raised_error(db, "UPDATE note SET embedding = clip_embed_text(body, 'clip-mini')")
    assert state in ("22000", "22023"), text
    db.execute("ALTER TABLE note DROP COLUMN embedding CASCADE; ALTER TABLE note ADD embedding vector")
    state, text = raised_error(db, "UPDATE note SET embedding = clip_embed_text(body, 'clip-mini')")
    assert state == "22000" and "clip_reembed" in text
    db.execute("UPDATE note SET embedding = clip_embed_text(body)")


def test_sessions_at_once(database: support.Database, db: psycopg.Connection) -> None:
    """Many sessions write, rewrite, move and delete rows of the same few texts; in the end, the clusters match their
    members."""
    notes(db, key="id int PRIMARY KEY", rest="PARTITION BY HASH (id)")
    for n in range(3):
        db.execute(f"CREATE TABLE note_{n} PARTITION OF note FOR VALUES WITH (MODULUS 3, REMAINDER {n})")

    def session(number: int) -> None:
        rng = np.random.default_rng(number)
        with database.connect() as mine:
            for _ in range(25):
                id, word = int(rng.integers(12)), WORDS[rng.integers(5)]
                # Each session handles rows in the order of their ids, so that waits can't form a cycle, whatever the
                # clusters are.
                # PostgreSQL's own error for a DELETE that waits for a row while the row moves to another partition.
                moved = contextlib.suppress(psycopg.errors.SerializationFailure)
                with moved, mine.transaction(force_rollback=bool(rng.integers(5) == 0)):
                    mine.execute(
                        "INSERT INTO note (id, body) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                        (id, word),
                    )
                    if rng.integers(3) == 0:
                        mine.execute(
                            "UPDATE note SET id = id + 100 WHERE id = %s AND NOT EXISTS (SELECT FROM note WHERE id = %s)",
                            (id, id + 100),
                        )
                    elif rng.integers(2) == 0:
                        mine.execute("DELETE FROM note WHERE id = %s", (int(rng.integers(id, 12)),))

    in_parallel([lambda n=n: session(n) for n in range(8)])
    assert check(db, "note") > 0
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0


def test_progress_can_be_read_where_queries_run_in_parallel(db) -> None:
    """The function that counts the rows can't run in a parallel query, and must not keep others from running in one."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body')")
    db.execute("INSERT INTO note VALUES (1, 'a sleepy cat'), (2, NULL)")
    for name in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
        db.execute(f"SET {name} = 0")
    db.execute("CREATE TABLE note_size AS SELECT generate_series(1, 100000) AS size")
    try:
        db.execute("ANALYZE note_size")
        query = "SELECT count(*) FROM note_size s"
        assert "Gather" in str(db.execute(f"EXPLAIN {query}").fetchall())
        assert value(db, f"{query} JOIN clip_search.watch w ON s.size = w.rows AND w.embedded = 1") == 1
    finally:
        db.execute("DROP TABLE note_size")
