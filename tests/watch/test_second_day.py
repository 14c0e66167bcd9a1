"""Situations that arise once a table has been watched for a while: more databases, more sessions, and other users'
settings."""

from __future__ import annotations

import pathlib
import subprocess
import threading

import psycopg
import pytest

import support
from servers import Server, server
from support import embed_one, in_parallel, raised_error, same_embedding, until, value, vector
from watched import PHOTOS, check, drained, fill, notes, workers


def test_databases_take_turns_at_the_worker(bindir: pathlib.Path) -> None:
    """Of three worker slots, one is the launcher's and one is logical replication's; three databases share
    the third, whether or not the database that holds it has work left. A row that is due in an hour keeps no other
    database waiting."""
    names = ("one", "two", "three")
    made = Server(
        bindir,
        {"max_worker_processes": "3", "clip_search.preload": "photo-mini", "clip_search.worker_retry_delay": "3600s"},
    )
    try:
        made.start()
        others: dict[str, psycopg.Connection] = {}
        with made.connect() as db:
            for name in names:
                db.execute(f"CREATE DATABASE {name}")
        for name in names:
            other = others[name] = psycopg.connect(host=str(made.folder), user="postgres", dbname=name, autocommit=True)
            other.execute("SET client_min_messages = warning")
            other.execute("CREATE EXTENSION clip_search CASCADE")
            other.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
            other.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
            other.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$"
            )
            other.execute(
                "CREATE TRIGGER refuse BEFORE UPDATE ON note FOR EACH ROW WHEN (old.body = 'not now') EXECUTE FUNCTION refuse()"
            )
        for turn in range(3):
            for other in others.values():
                other.execute(
                    "INSERT INTO note SELECT n, 'text number ' || n FROM generate_series(%s::int, %s) n",
                    (turn * 100, turn * 100 + 20),
                )
                # This row fails, and rests.
                other.execute("INSERT INTO note VALUES (%s, 'not now')", (turn * 100 + 50,))
            for name, other in others.items():
                until(
                    lambda: (
                        value(other, "SELECT count(*) FROM note WHERE body <> 'not now' AND embedding IS NULL") == 0
                    ),
                    f"turn {turn} of {name}",
                )
        with made.connect() as db:
            until(lambda: sum(len(workers(db, name)) for name in names) <= 1)
        for other in others.values():
            assert (
                value(other, "SELECT count(*) FROM clip_search.pending WHERE attempts = 1 AND message IS NOT NULL") == 3
            )
            other.close()
        assert made.messages().count("databases take turns") >= 1
    finally:
        made.remove()


def test_the_worker_has_its_own_timeouts(bindir: pathlib.Path) -> None:
    """A database may have timeouts set for its sessions."""
    with server(bindir, preload="photo-mini") as made:
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            names = ["statement_timeout", "idle_in_transaction_session_timeout"]
            names += ["transaction_timeout"] if db.info.server_version >= 170000 else []
            db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
            for name in names:
                db.execute(f"ALTER DATABASE postgres SET {name} = '50ms'")
            # The trigger makes each of the worker's transactions last longer than that timeout.
            db.execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END'"
            )
            db.execute("CREATE TRIGGER slow BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION slow()")
            db.execute("SELECT clip_watch('note', 'body', mode => 'queued')")
            db.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog')")
            until(lambda: drained(db))
            assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 2
            assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
        assert "timeout" not in made.messages()


def test_sessions_share_a_reembedding(database: support.Database, db: psycopg.Connection, with_clip) -> None:
    """No session fails, whichever of them swaps the column in."""
    notes(db)
    db.execute("INSERT INTO note (id, body) SELECT n, 'text number ' || n % 40 FROM generate_series(1, 200) n")
    for model in ("clip-mini", "photo-mini", "clip-mini"):

        def session(model: str = model) -> str | None:
            with database.connect() as calls:
                calls.execute("SET client_min_messages = error")
                try:
                    calls.execute(f"CALL clip_reembed('note', '{model}', batch => 3)")
                except psycopg.errors.InvalidParameterValue as error:
                    return error.diag.message_primary
                return None

        # A session that starts after the swap gets this error.
        assert set(in_parallel([session] * 4)) <= {None, f'column "embedding" holds vectors of model "{model}" already'}
        assert value(db, "SELECT model FROM clip_search.watch") == model
        for id, body, embedding in db.execute("SELECT id, body, embedding::text FROM note").fetchall():
            assert embedding is not None and same_embedding(vector(embedding), embed_one(db, "text", body, model)), id
        members = dict(db.execute("SELECT cluster_id, count(*) FROM note GROUP BY 1").fetchall())
        assert (
            dict(db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = 'note'").fetchall()) == members
        )
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
    assert value(db, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'note'::regclass") == 3


def test_a_reembedding_that_is_given_up_meanwhile(
    database: support.Database, db: psycopg.Connection, with_clip
) -> None:
    notes(db)
    db.execute("INSERT INTO note (id, body) SELECT n, 'text number ' || n FROM generate_series(1, 300) n")
    found: list[tuple[str | None, str]] = []
    with database.connect() as calls:
        thread = threading.Thread(
            target=lambda: found.append(raised_error(calls, "CALL clip_reembed('note', 'clip-mini', batch => 1)"))
        )
        thread.start()
        embedded = "SELECT coalesce(max(embedded), 0) FROM clip_search.watch WHERE replaces = 'embedding'"
        until(lambda: value(db, embedded) >= 3, "the first rows")
        db.execute("SELECT clip_unwatch('note', (SELECT embedding FROM clip_search.watch WHERE replaces IS NOT NULL))")
        thread.join(30)
        assert found[0][0] == "55000" and "is not watched any more" in found[0][1]
    assert check(db, "note") == 300
    assert value(db, "SELECT array_agg(model) FROM clip_search.watch") == ["photo-mini"]


def test_a_batch_below_one_makes_nothing(db: psycopg.Connection, with_clip) -> None:
    notes(db)
    for call in ("CALL clip_reembed('note', 'clip-mini', batch => 0)", "CALL clip_backfill('note', 0)"):
        assert raised_error(db, call) == ("22023", "batch 0 is not at least 1")
    assert value(db, "SELECT count(*) FROM clip_search.watch") == 1


def test_what_a_swap_keeps(db: psycopg.Connection, with_clip) -> None:
    notes(db, watch=", index => true")
    db.execute("CREATE INDEX \"my Index\" ON note (cluster_id); COMMENT ON INDEX \"my Index\" IS 'it''s \\ mine'")
    db.execute(
        "ALTER TABLE note ALTER embedding SET (n_distinct = -0.5), ALTER embedding SET STATISTICS 7, ALTER embedding SET COMPRESSION pglz"
    )
    db.execute("ALTER TABLE note ALTER embedding SET STORAGE MAIN; COMMENT ON COLUMN note.embedding IS 'a \\ b'")
    shown = (
        "SELECT array(SELECT o FROM unnest(attoptions) o WHERE o ~ 'distinct'), attstattarget, attcompression, attstorage, col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'note'::regclass AND attname = 'embedding'"
    )
    before = db.execute(shown).fetchone()
    assert before == (["n_distinct=-0.5"], 7, "p", "m", "a \\ b")
    fill(db, 5)
    db.execute("SET standard_conforming_strings = off; SET escape_string_warning = off")
    db.execute("CALL clip_reembed('note', 'clip-mini')")
    db.execute("RESET standard_conforming_strings; RESET escape_string_warning")
    assert db.execute(shown).fetchone() == before
    assert value(db, "SELECT obj_description('\"my Index\"'::regclass)") == "it's \\ mine"


def test_strings_of_the_old_kind(empty_database: support.Database) -> None:
    """A database may set standard_conforming_strings to off, where a backslash in a literal is an escape."""
    with empty_database.connect() as db:
        db.execute(f"ALTER DATABASE {empty_database.name} SET standard_conforming_strings = off")
        db.execute(f"ALTER DATABASE {empty_database.name} SET client_min_messages = warning")
    with empty_database.connect() as db:
        heard: list[str | None] = []
        db.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        db.execute("CREATE EXTENSION clip_search CASCADE")
        notes(db, key='"a \\ b" text PRIMARY KEY', watch=", on_error => 'skip'")
        db.execute("INSERT INTO note VALUES (E'c \\\\ d', 'a cat'), (E'\"e\\\\', '')")
        assert value(db, "SELECT active FROM clip_search.watch")
        assert value(db, "SELECT key FROM clip_search.failure") == ['"e\\']
        assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 1
        db.execute(
            "ALTER TABLE note DISABLE TRIGGER ALL; UPDATE note SET embedding = NULL; ALTER TABLE note ENABLE TRIGGER ALL"
        )
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'immediate')")
        db.execute("CALL clip_backfill('note')")
        assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL") == 1
        assert value(db, "SELECT clip_retry('note')") == 0
        assert not [text for text in heard if text and "escape" in text], heard


def test_procedures_inside_a_transaction(db: psycopg.Connection, with_clip) -> None:
    notes(db)
    db.execute("ALTER TABLE note DISABLE TRIGGER ALL")
    fill(db, 3)
    db.execute("ALTER TABLE note ENABLE TRIGGER ALL")
    for call in ("clip_backfill('note')", "clip_reembed('note', 'clip-mini')"):
        with db.transaction(force_rollback=True):
            state, text = raised_error(db, f"CALL {call}")
            assert state == "25001" and text.startswith(f"{call.split('(')[0]}() can't run inside a transaction block")
        # Several statements sent in one message are a transaction, too.
        assert raised_error(db, f"SELECT 1; CALL {call}")[0] == "25001"
    assert value(db, "SELECT count(*) FROM clip_search.watch") == 1
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 3


def test_progress_of_a_table_that_is_dropped(db: psycopg.Connection) -> None:
    """The planner may have the view clip_search.watch ask for a table's progress before it filters the table out."""
    notes(db)
    found = db.execute(
        "SELECT rows, embedded, open FROM clip_search.watch_progress(4000000000, NULL, 'body', 'embedding', NULL, NULL)"
    )
    assert found.fetchall() == [(None, None, None)]
    for join in ("hashjoin", "mergejoin", "nestloop"):
        db.execute(f"SET enable_{join} = off")
    db.execute("DROP TABLE note")
    assert db.execute("SELECT * FROM clip_search.watch").fetchall() == []


def test_progress_of_a_table_that_is_being_dropped(database: support.Database, db: psycopg.Connection) -> None:
    notes(db)
    with database.connect() as drops, database.connect() as looks:
        looks.execute("SET statement_timeout = '60s'")
        with drops.transaction():
            drops.execute("DROP TABLE note")
            # The query doesn't wait for the table.
            query = "SELECT rows, embedded, pending FROM clip_search.watch"
            assert looks.execute(query).fetchall() == [(None, None, None)]
    assert db.execute("SELECT * FROM clip_search.watch").fetchall() == []


@pytest.mark.parametrize(
    "call",
    ["clip_watch({}, 'body')", "clip_unwatch({})", "clip_retry({})", "clip_create_collection('x', members => {})"],
)
def test_an_oid_of_no_table(db: psycopg.Connection, call: str) -> None:
    assert raised_error(db, f"SELECT {call.format(4000000000)}") == ("42P01", "there is no table with oid 4000000000")
    assert raised_error(db, "CALL clip_backfill(4000000000)")[0] == "42P01"


def test_a_key_that_is_too_long_to_be_noted(database: support.Database, db: psycopg.Connection) -> None:
    """An index entry takes 2,704 bytes, and the index of the list needs some of them for the watch's number: a key that
    fits into the table's own index may be too long for the list. That matters only if the row must be listed."""
    notes(db, key="id text PRIMARY KEY", watch=", on_error => 'skip'")
    # PostgreSQL compresses keys, so this one is noise.
    key = value(db, "SELECT substr(string_agg(md5(n::text), ''), 1, 2680) FROM generate_series(1, 90) n")
    db.execute("INSERT INTO note (id, body) VALUES (%s, 'a cat')", (key,))
    assert check(db, "note") == 1
    state, text = raised_error(db, "INSERT INTO note (id, body) VALUES (%s, '')", f"x{key[1:]}")
    assert state == "54000" and text.startswith(
        "a key of public.note is too long to be noted\nAs a text it has 2684 bytes"
    )
    db.execute(
        "ALTER TABLE note DISABLE TRIGGER ALL; UPDATE note SET embedding = NULL; ALTER TABLE note ENABLE TRIGGER ALL"
    )
    backfilled = raised_error(db, "CALL clip_backfill('note')")
    assert backfilled[0] == state and backfilled[1].split("\n")[0] == text.split("\n")[0]
    db.execute("INSERT INTO note (id, body) VALUES (%s, '')", (key[:2600],))
    assert value(db, "SELECT key FROM clip_search.failure") == [key[:2600]]


def test_a_key_that_two_rows_may_have_for_a_while(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int PRIMARY KEY DEFERRABLE, body text)")
    state, text = raised_error(db, "SELECT clip_watch('note', 'body')")
    assert state == "55000" and "the primary key of public.note is deferrable" in text
    db.execute("ALTER TABLE note ADD other int NOT NULL UNIQUE; SELECT clip_watch('note', 'body')")


def test_the_trigger_function_out_of_place(db: psycopg.Connection) -> None:
    notes(db)
    fill(db, 4)
    assert raised_error(db, "SELECT clip_watch_row()")[0] in ("39P01", "0A000")
    watch = value(db, "SELECT substring(tgname FROM '[0-9]+') FROM pg_trigger WHERE tgrelid = 'note'::regclass LIMIT 1")
    db.execute(
        f"CREATE TRIGGER mine AFTER INSERT ON note FOR EACH STATEMENT EXECUTE FUNCTION clip_watch_row('{watch}')"
    )
    state, text = raised_error(db, "INSERT INTO note (id, body) VALUES (99, 'a cat')")
    assert state == "39P01" and "for a statement by TRUNCATE only" in text
    db.execute("DROP TRIGGER mine ON note")
    assert check(db, "note") == 4


def test_the_owner_of_a_database_dumps_it(empty_database: support.Database, pg_program, tmp_path: pathlib.Path) -> None:
    """An owner who isn't a superuser could dump the whole database before the extension was created, and still can;
    other roles can't read the extension's tables."""
    name, owner = empty_database.name, f"{empty_database.name}_owner"
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute(
            f"CREATE ROLE {owner} LOGIN; CREATE ROLE {owner}_other LOGIN; ALTER DATABASE {name} OWNER TO {owner}"
        )
    restored = support.Database(extension=False)
    try:
        with empty_database.connect(user=owner) as mine:
            notes(mine, watch=", on_error => 'skip'")
            fill(mine, 5)
            mine.execute("INSERT INTO note (id, body) VALUES (6, '')")
        dump = tmp_path / "dump"
        command = [pg_program("pg_dump"), "--format=custom", f"--file={dump}"]
        done = subprocess.run([*command, f"--username={owner}", name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        done = subprocess.run([*command, f"--username={owner}_other", name], capture_output=True, text=True)
        assert done.returncode == 1 and "permission denied" in done.stderr
        subprocess.run([*command, f"--username={owner}", name], check=True, capture_output=True)
        subprocess.run(
            [pg_program("pg_restore"), "--exit-on-error", "-d", restored.name, str(dump)],
            check=True,
            capture_output=True,
        )
        with restored.connect() as db:
            assert check(db, "note WHERE body <> ''", collection="note") == 5
            assert value(db, "SELECT key FROM clip_search.failure") == ["6"]
            # A dump doesn't repeat CREATE EXTENSION's own grants, and they are restored.
            assert value(db, "SELECT has_table_privilege('pg_database_owner', 'clip_search.watch_queue', 'SELECT')")
    finally:
        restored.drop()
        with support.connect("postgres") as db:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")
            db.execute(f"DROP ROLE {owner}; DROP ROLE {owner}_other")


def test_a_search_during_a_reembedding_uses_the_old_column(db: psycopg.Connection, with_clip) -> None:
    """From the start of clip_reembed to its end, or after it was cancelled, the table has a second embedding column."""
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF photo FOR VALUES FROM (0) TO (100)")
    db.execute("SELECT clip_watch('photo', 'data')")
    db.execute("INSERT INTO photo VALUES (1, %s), (2, %s)", (PHOTOS["cat"], PHOTOS["rocket"]))
    find = "SELECT id, relevance FROM clip_find(%s, 'a cat', cut => 0) ORDER BY 1"
    found = [db.execute(find, (table,)).fetchall() for table in ("photo", "low")]
    assert [len(rows) for rows in found] == [2, 2]
    model = value(db, "SELECT name FROM clip_models() WHERE name <> 'photo-mini' LIMIT 1")
    db.execute("SELECT clip_search.reembed_begin('photo', %s, NULL)", (model,))
    assert value(db, "SELECT count(*) FROM clip_search.watch") == 2
    # The search uses the old column's model, whatever the session's model is.
    db.execute("SELECT set_config('clip_search.model', %s, false)", (model,))
    assert [db.execute(find, (table,)).fetchall() for table in ("photo", "low")] == found
    # A second vector column of the user's own is as ambiguous as before.
    db.execute("ALTER TABLE photo ADD mine vector(512)")
    state, text = raised_error(db, "SELECT * FROM clip_find('photo', 'a cat')")
    assert state == "42P08" and "It has 2 of type" in text


def test_what_depends_on_a_column_is_told_of_before_any_work(db: psycopg.Connection, with_clip) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, CONSTRAINT pos CHECK (id > 0))")
    db.execute("SELECT clip_watch('photo', 'data', tags => 'tags')")
    db.execute("ALTER TABLE photo ADD CONSTRAINT whole CHECK (embedding IS NULL OR vector_dims(embedding) = 512)")
    db.execute("CREATE INDEX bare ON photo (id) WHERE embedding IS NULL")
    db.execute("CREATE INDEX half ON photo USING hnsw ((embedding::halfvec(512)) halfvec_cosine_ops)")
    model = value(db, "SELECT name FROM clip_models() WHERE name <> 'photo-mini' LIMIT 1")
    state, text = raised_error(db, "SELECT clip_search.reembed_begin('photo', %s, NULL)", model)
    assert state == "2BP01"
    for name, definition in (
        ("index public.bare:", "WHERE (embedding IS NULL)"),
        ("index public.half:", "halfvec"),
        ("constraint whole on table public.photo:", "vector_dims"),
    ):
        detail = text.split("\n")[1]
        assert detail.count(name) == 1 and definition in detail, text
    assert "create it again" in text
    assert value(db, "SELECT count(*) FROM clip_search.watch") == 1
