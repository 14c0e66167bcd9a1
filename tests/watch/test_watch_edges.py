"""Watched tables under rare statements, and settings that are easy to get wrong."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from psycopg import sql

import support
from support import raised_error, value
from watched import PHOTOS, check, fill, notes


def test_a_batch_of_null_is_refused(db: psycopg.Connection) -> None:
    """NULL used to be taken for an entry of the queue, again and again."""
    notes(db)
    db.execute("SET statement_timeout = '60s'")
    for call in ("CALL clip_backfill('note', NULL)", "CALL clip_reembed('note', 'clip-mini', batch => NULL)"):
        state, text = raised_error(db, call)
        assert state == "22004" and text.startswith('argument "batch" is NULL')
    db.execute("RESET statement_timeout")


def test_the_view_runs_nobodys_policies(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:
    """A reader of clip_search.watch runs no policy of another role's table, and a table that the reader may not read
    doesn't hide the others."""
    with database.connect(user=plain_role) as mine:
        mine.execute("SET client_min_messages = warning")
        mine.execute(
            """
            CREATE TABLE trapped (id int PRIMARY KEY, body text);
            CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
            INSERT INTO trapped VALUES (1, 'a cat');
            SELECT clip_watch('trapped', 'body');
            GRANT SELECT ON trapped TO PUBLIC;
            ALTER TABLE trapped ENABLE ROW LEVEL SECURITY;
            CREATE POLICY trap ON trapped USING (trap());
            """
        )
        progress = "SELECT rows, embedded, pending FROM clip_search.watch WHERE relation = %s::regclass"
        assert mine.execute(progress, ("trapped",)).fetchone() == (1, 0, 1)
    other, table = f"{plain_role}_other", sql.SQL("{}.trapped").format(sql.Identifier(plain_role)).as_string(db)
    db.execute(f"CREATE ROLE {other} LOGIN")
    try:
        notes(db)
        fill(db, 3)
        db.execute("GRANT SELECT ON note TO PUBLIC")
        for grant in ("", f"GRANT USAGE ON SCHEMA {plain_role} TO {other}"):
            db.execute(grant or "SELECT 1")
            oid = value(db, "SELECT %s::regclass::oid", table)
            with database.connect(user=other) as theirs:
                if grant:
                    assert (
                        raised_error(theirs, f"SELECT * FROM {table}")[1] == f"trapped as {other}"
                    )  # the trap does work
                found = theirs.execute(
                    "SELECT relation::oid, rows, embedded, pending FROM clip_search.watch ORDER BY rows"
                ).fetchall()
                assert found == [(value(db, "SELECT 'note'::regclass::oid"), 3, 3, 0), (oid, None, None, None)]
    finally:
        db.execute(f"DROP OWNED BY {other}; DROP ROLE {other}; DROP TABLE {table}")


def failures(db: psycopg.Connection) -> list[list[str]]:
    return [key for (key,) in db.execute("SELECT key FROM clip_search.failure ORDER BY key")]


def test_a_failure_is_known_by_its_key_in_every_time_zone(db: psycopg.Connection) -> None:
    notes(
        db,
        ", on_error => 'skip'",
        key="id int, at timestamptz, zoned timetz DEFAULT '12:00+03', PRIMARY KEY (at, id, zoned)",
    )
    db.execute("SET timezone = 'Asia/Tokyo'")
    db.execute("INSERT INTO note (id, at, body) VALUES (1, '2024-01-01 00:00+00', ''), (2, '2024-01-01 00:00+00', '')")
    db.execute("SET timezone = 'America/New_York'")
    assert len(failures(db)) == 2
    db.execute("UPDATE note SET body = 'a cat' WHERE id = 1")
    db.execute("DELETE FROM note WHERE id = 2")
    assert failures(db) == []
    # clip_backfill does the same, and the table's own triggers run with the session's time zone.
    db.execute(
        "ALTER TABLE note DISABLE TRIGGER USER; INSERT INTO note (id, at, body) VALUES (3, '2024-01-01 00:00+00', ''); ALTER TABLE note ENABLE TRIGGER USER"
    )
    db.execute("CALL clip_backfill('note')")
    assert len(failures(db)) == 1
    db.execute("RESET timezone")
    db.execute(
        "CREATE FUNCTION zone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.title := current_setting('timezone'); RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER zone BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION zone()")
    db.execute("SET timezone = 'Asia/Tokyo'")
    db.execute("UPDATE note SET body = 'a dog' WHERE id = 3")
    assert failures(db) == []
    db.execute("UPDATE note SET embedding = NULL")
    db.execute("CALL clip_backfill('note')")
    assert db.execute("SELECT DISTINCT title FROM note WHERE embedding IS NOT NULL").fetchall() == [("Asia/Tokyo",)]
    check(db, "note")


def test_failures_are_forgotten_whatever_the_settings_are_by_then(db: psycopg.Connection) -> None:
    """Failures listed while errors were skipped, and failures of clip_backfill on a table that raises errors."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO note SELECT n, '' FROM generate_series(1, 4) n")
    db.execute("SELECT clip_watch('note', 'body')")
    db.execute("CALL clip_backfill('note')")
    assert failures(db) == [["1"], ["2"], ["3"], ["4"]]
    for settings in ("on_error => 'skip'", "on_error => 'raise'"):
        db.execute(f"SELECT clip_watch('note', 'body', {settings})")
    db.execute("UPDATE note SET body = 'a cat' WHERE id = 1")
    db.execute("DELETE FROM note WHERE id = 2")
    db.execute("UPDATE note SET id = 30 WHERE id = 3")
    assert failures(db) == [["30"], ["4"]]
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (3, 1, 0, 2)
    db.execute("TRUNCATE note")
    assert failures(db) == []


@pytest.mark.parametrize("column", ["embedding", "cluster_id"])
def test_a_column_that_was_dropped_is_made_and_filled_anew(db: psycopg.Connection, column: str) -> None:
    """By then its rows are in no cluster, so none is counted twice."""
    notes(db)
    fill(db)
    db.execute(f"ALTER TABLE note DROP COLUMN {column}")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    db.execute("INSERT INTO note (id, body) VALUES (100, 'an old guitar')")
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 11


def test_a_failed_row_that_is_renamed_does_not_wait(db: psycopg.Connection) -> None:
    notes(db, ", on_error => 'skip'")
    db.execute("INSERT INTO note (id, body) VALUES (1, '')")
    db.execute("UPDATE note SET id = 2")
    assert failures(db) == [["2"]] and value(db, "SELECT count(*) FROM clip_search.pending") == 0
    db.execute("CALL clip_backfill('note')")
    assert value(db, "SELECT attempts FROM clip_search.failure") == 1, "it is not tried again unasked"


@pytest.mark.parametrize("column", ["embedding", "cluster_id"])
def test_what_is_set_to_null_by_hand_leaves_its_cluster(db: psycopg.Connection, column: str) -> None:
    notes(db)
    fill(db)
    db.execute(f"UPDATE note SET {column} = NULL WHERE id <= 6")
    assert value(db, "SELECT sum(size) FROM clip_search.cluster") == 4
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 10
    db.execute("DELETE FROM note")
    assert check(db, "note") == 0
    # Where a worker embeds the rows, the notice says so.
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
    fill(db)
    db.execute("CALL clip_backfill('note')")
    db.execute("UPDATE note SET embedding = NULL WHERE id <= 3")
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 3
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 10


def test_an_embedding_written_by_hand_changes_the_group(db: psycopg.Connection) -> None:
    """The groups are the sums of the vectors in their members' column, whoever wrote them."""
    key = "id int, part int, PRIMARY KEY (id, part)"
    notes(db, key=key, rest="PARTITION BY LIST (part)")
    db.execute(
        "CREATE TABLE note_1 PARTITION OF note FOR VALUES IN (1); CREATE TABLE note_2 PARTITION OF note FOR VALUES IN (2)"
    )
    db.execute(
        "INSERT INTO note (id, part, body) SELECT i, 1, CASE WHEN i <= 5 THEN 'a cat' ELSE 'a red rocket' END FROM generate_series(1, 10) i"
    )
    cat, rocket = (value(db, "SELECT cluster_id FROM note WHERE id = %s", id) for id in (1, 10))
    assert cat != rocket

    def groups() -> dict[int, int]:
        found = dict(db.execute("SELECT id, size FROM clip_search.cluster").fetchall())
        sums = db.execute(
            "SELECT c.id, c.size, count(*), max(abs(1 - (c.centroid <#> l2_normalize(n.mean)) / -1)) FROM clip_search.cluster c "
            "JOIN (SELECT cluster_id, avg(embedding) AS mean, count(*) AS count FROM note GROUP BY 1) n ON n.cluster_id = c.id "
            "WHERE n.count = c.size GROUP BY c.id, c.size"
        ).fetchall()
        assert len(sums) == len(found) and all(row[3] < 1e-5 for row in sums)
        return found

    # Written, rolled back, written while the row moves to another partition, and written unchanged.
    with db.transaction(force_rollback=True):
        db.execute("UPDATE note SET embedding = clip_embed_text('a red rocket') WHERE id <= 2")
        assert groups() == {cat: 3, rocket: 7}
    assert groups() == {cat: 5, rocket: 5}
    db.execute("UPDATE note SET embedding = clip_embed_text('a red rocket'), part = id WHERE id <= 2")
    assert groups() == {cat: 3, rocket: 7}
    assert value(db, "SELECT array_agg(cluster_id ORDER BY id) FROM note WHERE id <= 3") == [rocket, rocket, cat]
    db.execute("UPDATE note SET embedding = embedding, title = 'x'")
    assert groups() == {cat: 3, rocket: 7}
    # An update that a later trigger suppresses puts the row into no group.
    db.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; SET client_min_messages = error;"
        "CREATE TRIGGER zzzz BEFORE UPDATE ON note_1 FOR EACH ROW EXECUTE FUNCTION no()"
    )
    try:
        db.execute("UPDATE note SET embedding = clip_embed_text('a red rocket') WHERE id = 3")
        assert groups() == {cat: 3, rocket: 7}
    finally:
        db.execute("DROP FUNCTION no CASCADE")
    db.execute("UPDATE note SET body = body || '.'")
    assert check(db, "note") == 10


def test_a_name_that_is_too_long(db: psycopg.Connection) -> None:
    """PostgreSQL would truncate the name, and nothing would be found by it."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    for argument in ("embedding", "cluster"):
        state, text = raised_error(db, f"SELECT clip_watch('note', 'body', {argument} => repeat('é', 32))")
        assert state == "42622" and text.startswith('column name "éé') and "has 64 bytes" in text
    db.execute("SELECT clip_watch('note', 'body', cluster => repeat('é', 31) || 'x')")


def test_another_key(db: psycopg.Connection) -> None:
    """Once clip_watch knows the new key, failures listed by the old key are listed by the new one, and groups name
    their members by it."""
    notes(db, ", on_error => 'skip'", key="id int PRIMARY KEY, other uuid NOT NULL DEFAULT gen_random_uuid()")
    db.execute("INSERT INTO note (id, body) VALUES (1, ''), (2, 'a cat'), (3, 'a cat')")
    db.execute("ALTER TABLE note DROP CONSTRAINT note_pkey, ADD PRIMARY KEY (other)")
    with pytest.raises(psycopg.Error) as caught:
        db.execute("SELECT clip_retry('note')")
    assert caught.value.sqlstate == "55000" and "clip_watch" in (caught.value.diag.message_hint or "")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip')")
    assert db.execute("SELECT pending, failed FROM clip_search.watch").fetchone() == (1, 0)
    db.execute("CALL clip_backfill('note')")
    assert db.execute(
        "SELECT sqlstate FROM clip_search.failure WHERE key[1] IN (SELECT other::text FROM note WHERE id = 1)"
    ).fetchall() == [("22023",)]
    db.execute("ALTER TABLE note DROP COLUMN id")
    db.execute("ALTER TABLE note RENAME other TO number")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip')")
    db.execute("UPDATE note SET body = 'a dog' WHERE body = ''")
    assert failures(db) == []
    members = {str(number) for (number,) in db.execute("SELECT number FROM note WHERE body = 'a cat'")}
    assert value(db, "SELECT representative FROM clip_clusters('note')") in members


def test_arguments_of_clusters(db: psycopg.Connection) -> None:
    """No column that has another use is overwritten, and no argument is silently ignored."""
    db.execute("CREATE TABLE note (id bigint PRIMARY KEY, body text, title text)")
    state, text = raised_error(db, "SELECT clip_watch('note', 'body', cluster => 'id')")
    assert state == "22023" and "part of its key" in text
    for argument in ("threshold => 0.9", "collection => 'x'"):
        state, text = raised_error(db, f"SELECT clip_watch('note', 'body', {argument})")
        assert state == "22023" and text.startswith(argument.split()[0])
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', threshold => 0.9)")
    state, text = raised_error(
        db, "SELECT clip_watch('note', 'title', 'other', cluster => 'cluster_id', collection => 'x')"
    )
    assert state == "22023" and 'clusters of column "embedding"' in text
    threshold = "SELECT threshold FROM clip_search.collection WHERE name = 'note'"
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    assert value(db, threshold) == 0.9
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', threshold => 0.5)")
    assert value(db, threshold) == 0.5


def test_a_dump_of_the_schema_alone_can_be_watched_again(empty_database: support.Database, pg_program) -> None:
    """Such a dump has the triggers, but not the watches that they belong to."""
    with empty_database.connect() as db:
        db.execute("CREATE EXTENSION clip_search CASCADE")
        for table in ("one", "two", "three"):
            db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text) PARTITION BY LIST (id)")
            db.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
            db.execute(f"SELECT clip_watch('{table}', 'body', cluster => 'cluster_id')")
        # The state after restoring a dump without the rows of the extension's tables.
        db.execute(
            "TRUNCATE clip_search.watch_setting, clip_search.collection_setting; ALTER SEQUENCE clip_search.watch_id_seq RESTART"
        )
        with pytest.raises(psycopg.Error, match="not watched"):
            db.execute("INSERT INTO one VALUES (1, 'a cat')")
        for table in ("three", "one", "two"):
            db.execute(f"SELECT clip_watch('{table}', 'body', cluster => 'cluster_id')")
        for table in ("one", "two", "three"):
            db.execute(f"INSERT INTO {table} VALUES (1, 'a cat')")
            check(db, table)
            assert (
                value(db, "SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal", table)
                == 4
            )


def test_two_columns_of_a_partitioned_table(db: psycopg.Connection) -> None:
    """A row that moves keeps both of its embeddings, whichever modes the watches have."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, data bytea) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE high PARTITION OF note FOR VALUES FROM (100) TO (200)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued')")
    db.execute("SELECT clip_watch('note', 'data', 'other', cluster => 'other_id', collection => 'other')")
    db.execute("INSERT INTO note (id, body, data) SELECT n, 'a cat', %b FROM generate_series(1, 3) n", (PHOTOS["cat"],))
    db.execute("CALL clip_backfill('note')")
    images = "SELECT images FROM clip_models() WHERE name = 'photo-mini'"
    rows = "SELECT embedding::text, cluster_id, other::text, other_id FROM note ORDER BY id"
    before, stored = value(db, images), db.execute(rows).fetchall()
    db.execute("UPDATE note SET id = id + 100")
    assert db.execute(rows).fetchall() == stored and value(db, images) == before
    db.execute("UPDATE note SET id = id - 100, data = %b WHERE id > 101", (PHOTOS["rocket"],))
    assert value(db, images) == before + 2
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
    assert check(db, "note") == 3
    assert db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'other' ORDER BY 1").fetchall() == [
        (1,),
        (2,),
    ]


def test_unwatch_leaves_a_column_that_has_the_name_since(db: psycopg.Connection) -> None:
    notes(db)
    db.execute("ALTER TABLE note RENAME embedding TO before; ALTER TABLE note RENAME cluster_id TO before_id")
    db.execute("ALTER TABLE note ADD embedding text DEFAULT 'mine', ADD cluster_id int")
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    shown = "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0"
    assert value(db, shown) == ["id", "body", "title", "before", "before_id", "embedding", "cluster_id"]


def test_a_publication_for_all_tables_stops_nobody(db: psycopg.Connection) -> None:
    db.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    try:
        notes(db)
        fill(db, 40)
        db.execute("UPDATE note SET body = 'an old guitar' WHERE id < 20")
        db.execute("DELETE FROM note WHERE id > 30")
        assert check(db, "note") == 30
        db.execute("SELECT count(*) FROM clip_recluster('note')")
        db.execute("TRUNCATE note")
        assert check(db, "note") == 0
    finally:
        db.execute("DROP PUBLICATION everything")


def test_unwatch_waits_for_nobody_who_works_on_the_queue(database: support.Database, db: psycopg.Connection) -> None:
    """That session holds queue entries and waits for the table: after ALTER TABLE in the same transaction, this was a
    deadlock."""
    notes(db, ", mode => 'queued'")
    fill(db, 5)
    with database.connect() as worker, worker.transaction():
        assert len(worker.execute("SELECT FROM clip_search.watch_queue FOR UPDATE").fetchall()) == 5
        with db.transaction():
            db.execute("SET LOCAL lock_timeout = '60s'")
            db.execute("ALTER TABLE note ADD tags text[]")
            db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    # The entries that the worker held belong to no watch any more, and are gone.
    db.execute("SELECT clip_watch('note', 'title', 'title_embedding')")
    assert value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0


def test_a_trigger_that_comes_later_is_told_of(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute(
        "CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := btrim(NEW.body); RETURN NEW; END $$"
    )
    heard: list[str] = []
    db.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    for name, event in (("tidy", "BEFORE UPDATE"), ("zzz", "AFTER INSERT")):
        db.execute(f"CREATE TRIGGER {name} {event} ON note FOR EACH ROW EXECUTE FUNCTION tidy()")
    db.execute("SELECT clip_watch('note', 'body'), clip_watch('note', 'body', 'other')")
    assert heard == []
    db.execute("CREATE TRIGGER überarbeiten BEFORE INSERT ON note FOR EACH ROW EXECUTE FUNCTION tidy()")
    db.execute("SELECT clip_watch('note', 'body')")
    assert heard == ['trigger "überarbeiten" of public.note fires after the one that embeds']


def test_a_dump_leaves_out_what_is_of_dropped_tables(
    database: support.Database, db: psycopg.Connection, pg_program
) -> None:
    notes(db, ", on_error => 'skip'")
    db.execute("INSERT INTO note (id, body) VALUES (1, '')")
    oid = value(db, "SELECT 'note'::regclass::oid::text")
    db.execute("CREATE TABLE stays (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('stays', 'body', mode => 'queued', on_error => 'skip')")
    db.execute("INSERT INTO stays VALUES (1, 'a cat')")
    # The state that a drop leaves while another session holds a lock on the collection.
    db.execute("ALTER EVENT TRIGGER clip_search_drop DISABLE")
    db.execute("DROP TABLE note")
    db.execute("ALTER EVENT TRIGGER clip_search_drop ENABLE")
    assert value(db, "SELECT count(*) FROM clip_search.watch_setting") == 2
    command = [pg_program("pg_dump"), "--data-only", "--dbname", database.name]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {
        table: dump.split(f"COPY clip_search.{table} ")[1].split("FROM stdin;\n")[1].split("\\.")[0].splitlines()
        for table in ("watch_setting", "watch_queue", "watch_failure")
    }
    assert {table: len(lines) for table, lines in rows.items()} == {
        "watch_setting": 1,
        "watch_queue": 1,
        "watch_failure": 0,
    }
    assert "public.stays" in rows["watch_setting"][0] and oid not in rows["watch_setting"][0]
    db.execute("SELECT clip_unwatch('stays', drop_columns => true)")
    db.execute("DROP TABLE stays")
