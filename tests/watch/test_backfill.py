"""clip_backfill returns when all rows that existed at its start are done; failed rows are retried by kind of error;
searches know the model of a watched column."""

from __future__ import annotations

import re
import threading
import time

import psycopg
import pytest

import support
from servers import server
from support import embed_one, in_parallel, raised_error, same_embedding, until, value, vector
from watched import PHOTOS, WORDS, check, notes


@pytest.fixture(scope="module")
def preloaded(bindir):
    with server(bindir, preload="photo-mini") as made:
        yield made


def test_rows_that_the_worker_has_in_hand_are_waited_for(preloaded):
    with preloaded.connect() as db:
        db.execute("SET client_min_messages = warning")
        said: list[str] = []
        db.add_notice_handler(lambda diag: said.append(diag.message_primary))
        db.execute("SET client_min_messages = notice")
        for turn in range(20):
            db.execute("CREATE TABLE early (id int PRIMARY KEY, body text)")
            db.execute("SELECT clip_watch('early', 'body', mode => 'queued')")
            db.execute("INSERT INTO early SELECT i, 'thing ' || i FROM generate_series(1, 40) i")
            db.execute("CALL clip_backfill('early')")
            assert value(db, "SELECT count(embedding) FROM early") == 40, turn
            # The total counts these rows whoever embedded them. The worker may have finished some before the call.
            waited = [text for text in said if " embedded in " in text].pop()
            assert int(re.search(r"(\d+) rows? embedded", waited)[1]) <= 40, waited
            db.execute("DROP TABLE early")


def test_the_total_counts_what_others_have_done(database, db):
    """At the time of the call, another session holds 4 of 10 rows, and one of these fails."""
    notes(db, ", mode => 'queued', on_error => 'skip'")
    db.execute("INSERT INTO note SELECT n, 'thing ' || n FROM generate_series(1, 10) n")
    db.execute("UPDATE note SET body = '' WHERE id = 2")
    watch = value(db, "SELECT id FROM clip_search.watch_setting")
    said: list[str] = []

    def backfill() -> None:
        with database.connect() as other:
            other.add_notice_handler(lambda diag: said.append(diag.message_primary))
            other.execute("CALL clip_backfill('note')")

    with database.connect(autocommit=False) as other:
        other.execute(
            "SELECT clip_search.backfill_batch(%s, (SELECT array_agg(id) FROM clip_search.watch_queue WHERE key[1]::int <= 4))",
            (watch,),
        )
        thread = threading.Thread(target=backfill)
        thread.start()
        until(lambda: any("waiting for" in text for text in said), "the notice")
    thread.join(60)
    assert "1 row could not be embedded" in said
    assert any(
        re.match(r"clip_search: 9 rows embedded in .* s, 3 of them by the background worker", text) for text in said
    ), said
    assert value(db, "SELECT count(embedding) FROM note") == 9


def test_a_row_that_another_session_writes_is_waited_for_with_a_notice(database, db):
    notes(db, ", mode => 'queued'")
    db.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a dog')")
    said: list[str] = []
    done: list[float] = []

    def backfill() -> None:
        with database.connect() as other:
            other.add_notice_handler(lambda diag: said.append(diag.message_primary))
            other.execute("CALL clip_backfill('note')")
            done.append(time.monotonic())

    with database.connect(autocommit=False) as writer:
        writer.execute("UPDATE note SET title = 'mine' WHERE id = 1")
        thread = threading.Thread(target=backfill)
        thread.start()
        until(lambda: value(db, "SELECT count(embedding) FROM note") == 1, "the other row")
        time.sleep(0.5)
        assert not done
        committed = time.monotonic()
    thread.join(60)
    assert done and done[0] > committed
    assert value(db, "SELECT count(embedding) FROM note") == 2
    assert sum("waiting for 1 row that" in message for message in said) == 1, said


def test_what_comes_later_is_not_waited_for(database, db):
    notes(db, ", mode => 'queued'")
    db.execute("INSERT INTO note SELECT n, 'thing ' || n FROM generate_series(1, 30) n")
    stop = threading.Event()

    def write() -> None:
        with database.connect() as other:
            row = 1000
            while not stop.is_set():
                other.execute("INSERT INTO note VALUES (%s, 'another')", (row,))
                row += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        db.execute("SET statement_timeout = '60s'")
        db.execute("CALL clip_backfill('note')")
    finally:
        stop.set()
        thread.join(60)
    assert value(db, "SELECT count(*) FROM note WHERE id <= 30 AND embedding IS NULL") == 0


def test_a_row_that_a_trigger_keeps_as_it_is_has_failed(db):
    notes(db, ", mode => 'queued'")
    db.execute(
        "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER keep BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    db.execute("CALL clip_backfill('note')")
    failed = db.execute("SELECT key, sqlstate, message FROM clip_search.failure").fetchall()
    assert failed == [(["1"], "27000", "the row could not be updated")]
    assert value(db, "SELECT count(embedding) FROM note") == 0
    assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'note'") == 0


def test_failures_are_tried_again_by_kind(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, image bytea)")
    db.execute("SELECT clip_watch('note', 'image', mode => 'queued', on_error => 'skip')")
    db.execute("INSERT INTO note SELECT i, 'not an image' FROM generate_series(1, 6) i")
    db.execute("CALL clip_backfill('note')")
    db.execute("UPDATE clip_search.watch_failure SET sqlstate = '0A000' WHERE key[1]::int > 4")
    db.execute("UPDATE clip_search.watch_failure SET sqlstate = '54000' WHERE key = '{1}'")
    assert value(db, "SELECT clip_retry('note', sqlstate => '0A000')") == 2
    assert value(db, "SELECT clip_retry('note', NULL, '54')") == 1
    assert value(db, "SELECT clip_retry('note', sqlstate => '42000')") == 0
    assert value(db, "SELECT array_agg(key[1] ORDER BY key) FROM clip_search.pending") == ["1", "5", "6"]
    assert value(db, "SELECT clip_retry('note')") == 3
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
    assert raised_error(db, "SELECT clip_retry('note', sqlstate => '0A0')")[0] == "22023"


def test_sources_are_compared_by_their_bytes(database, db):
    """A text that its collation considers equal to the one being embedded is still a different text."""
    create = "CREATE COLLATION IF NOT EXISTS punctuation_blind (provider = icu, locale = 'und-u-ka-shifted', deterministic = false)"
    try:
        db.execute(create)
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("the server was built without ICU, as make matrix builds them: only its collations can be so")
    db.execute("CREATE TABLE note (id int PRIMARY KEY, image bytea, body text COLLATE punctuation_blind)")
    db.execute("SELECT clip_watch('note', 'image', text_source => 'body', mode => 'queued')")
    photos = list(PHOTOS.values())
    db.execute(
        "INSERT INTO note SELECT n, (%s::bytea[])[1 + n %% 3], 'black-bird' FROM generate_series(1, 64) n", (photos,)
    )
    with database.connect() as other:
        thread = threading.Thread(target=lambda: other.execute("CALL clip_backfill('note', 64)"))
        thread.start()
        # By now it has read the rows and is embedding them.
        until(
            lambda: (
                value(
                    db, "SELECT count(*) FROM pg_locks WHERE relation = 'note'::regclass AND mode = 'RowExclusiveLock'"
                )
                > 0
            )
        )
        time.sleep(0.05)
        db.execute("UPDATE note SET body = 'black bird'")
        thread.join(60)
    db.execute("CALL clip_backfill('note')")
    text = embed_one(db, "text", "black bird")
    images = {photo: embed_one(db, "image", photo) for photo in photos}
    for image, stored in db.execute("SELECT image, embedding::text FROM note"):
        mean = images[image] + text
        assert same_embedding(vector(stored), mean / (mean @ mean) ** 0.5)


# ---------------------------------------------------------------- the column's model


def test_a_query_is_embedded_by_the_columns_model(db, clip_mini, plain_role, database):
    db.execute("LOAD 'clip_search'")
    db.execute(
        "SELECT set_config('clip_search.model_path', current_setting('clip_search.model_path') || ':' || %s, false)",
        (str(clip_mini.parent),),
    )
    notes(db, f", model => '{clip_mini.name}'")
    expected = embed_one(db, "text", "a cat", clip_mini.name)
    assert same_embedding(vector(value(db, "SELECT clip_embed_text_for('note', 'a cat')::text")), expected)
    assert same_embedding(
        vector(value(db, "SELECT clip_embed_image_for('note', %b)::text", PHOTOS["cat"])),
        embed_one(db, "image", PHOTOS["cat"], clip_mini.name),
    )
    assert value(db, "SELECT clip_embed_text_for('note', NULL)") is None
    assert raised_error(db, "SELECT clip_embed_text_for('pg_class', 'a cat')")[0] == "42704"
    assert raised_error(db, "SELECT clip_embed_text_for(NULL, 'a cat')")[0] == "22004"
    assert raised_error(db, "SELECT clip_embed_text_for('note', 'a cat', 'body')")[0] == "42704"
    with database.connect(plain_role) as other:
        state, text = raised_error(other, "SELECT clip_embed_text_for('note', 'a cat')")
        assert state == "42501" and "GRANT SELECT" in text
        db.execute(f"GRANT SELECT (id) ON note TO {plain_role}")
        # The role may read the table now, but its session doesn't find the model.
        assert raised_error(other, "SELECT clip_embed_text_for('note', 'a cat')")[0] == "42704"


def test_reembed_with_a_missing_model_changes_nothing(db):
    notes(db)
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'note'"
    before = value(db, columns)
    with db.cursor() as cursor, pytest.raises(psycopg.Error) as raised:
        cursor.execute("CALL clip_reembed('note', 'no-such-model')")
    assert raised.value.sqlstate == "42704"
    assert value(db, columns) == before and value(db, "SELECT count(*) FROM clip_search.watch_setting") == 1


def test_reembed_says_what_searches_need(db):
    notes(db)
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    hints: list[str] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: hints.append(diag.message_hint or ""))
    db.execute("CALL clip_reembed('note', 'photo-mini+photo-mini')")
    assert any(
        "clip_embed_text_for" in hint and "SET clip_search.model = 'photo-mini+photo-mini'" in hint for hint in hints
    ), hints
    assert same_embedding(
        vector(value(db, "SELECT embedding::text FROM note")),
        vector(value(db, "SELECT clip_embed_text_for('note', 'a cat')::text")),
    )


def test_what_waits_and_what_was_done_is_told_as_it_is(db):
    """A row written twice waits once; a row that was deleted or got another key counts as embedded by nobody."""
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', mode => 'queued')")
    db.execute(
        "INSERT INTO photo VALUES (1, %s), (2, %s), (3, %s)", tuple(PHOTOS[n] for n in ("cat", "rocket", "pagoda"))
    )
    db.execute("UPDATE photo SET data = data || ''::bytea, id = id WHERE id = 1")
    db.execute("UPDATE photo SET data = %s WHERE id = 1", (PHOTOS["pagoda"],))
    db.execute("UPDATE photo SET data = %s WHERE id = 1", (PHOTOS["cat"],))
    db.execute(
        "UPDATE clip_search.watch_queue SET attempts = 1, sqlstate = 'XX000', message = 'once' WHERE id = (SELECT max(id) FROM clip_search.watch_queue)"
    )
    assert value(db, "SELECT count(*) FROM clip_search.watch_queue") > 3
    keys = "SELECT key[1]::int, attempts, sqlstate, message FROM clip_search.pending ORDER BY 1"
    assert db.execute(keys).fetchall() == [(1, 1, "XX000", "once"), (2, 0, None, None), (3, 0, None, None)]
    db.execute("DELETE FROM photo WHERE id = 2; UPDATE photo SET id = 4 WHERE id = 3")
    said = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: said.append(diag.message_primary))
    db.execute("CALL clip_backfill('photo')")
    assert re.fullmatch(r"clip_search: 2 rows embedded in [0-9.]+ s", said[-1]), said
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
    db.execute("CALL clip_backfill('photo')")
    assert re.fullmatch(r"clip_search: 0 rows embedded in [0-9.]+ s", said[-1]), said
    # These rows already have their embedding.
    db.execute("SELECT clip_watch('photo', tags => 'tags')")
    db.execute("CALL clip_backfill('photo')")
    assert re.fullmatch(r"clip_search: 2 rows tagged in [0-9.]+ s", said[-1]), said
    db.execute("SELECT clip_watch('photo', cluster => 'cluster_id')")
    db.execute("INSERT INTO photo VALUES (5, %s)", (PHOTOS["cat"],))
    db.execute("CALL clip_backfill('photo')")
    assert re.fullmatch(r"clip_search: 1 row embedded, 2 rows grouped in [0-9.]+ s", said[-1]), said


def test_backfill_commits_and_goes_on(database: support.Database, db: psycopg.Connection) -> None:
    """Several calls run at once and one is cancelled: every row is embedded exactly once."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, writes int DEFAULT 0)")
    db.execute("INSERT INTO note SELECT n, 'text number ' || n FROM generate_series(1, 300) n")
    db.execute("INSERT INTO note VALUES (301, NULL), (302, ''), (303, 'another text')")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    db.execute("""
        CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.writes := OLD.writes + 1; RETURN NEW; END $$;
        CREATE TRIGGER count_writes BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION count_writes()""")
    assert db.execute("SELECT rows, embedded, pending, failed FROM clip_search.watch").fetchone() == (303, 0, 302, 0)

    # This lock keeps the call from ending before it is cancelled.
    holder = database.connect(autocommit=False)
    holder.execute("SELECT FROM note WHERE id = 299 FOR UPDATE")
    with database.connect() as first:
        pid = first.info.backend_pid
        found: list = []
        thread = threading.Thread(
            target=lambda: found.append(raised_error(first, "CALL clip_backfill('note', batch => 4)"))
        )
        thread.start()
        until(lambda: value(db, "SELECT embedded FROM clip_search.watch") >= 8, "the first rows")
        db.execute("SELECT pg_cancel_backend(%s)", (pid,))
        thread.join(support.PATIENCE)
        assert found[0][0] == "57014"
    holder.close()
    done = value(db, "SELECT embedded FROM clip_search.watch")
    assert 8 <= done < 302

    locker = database.connect(autocommit=False)
    locker.execute("SELECT FROM note WHERE id = 303 FOR UPDATE")

    def backfill(batch: int) -> None:
        with database.connect() as mine:
            mine.execute("SET client_min_messages = error")
            mine.execute("CALL clip_backfill('note', batch => %s)", (batch,))

    sessions = threading.Thread(target=in_parallel, args=([lambda n=n: backfill(n) for n in (1, 5, 16)],))
    sessions.start()
    counts = "SELECT rows, embedded, pending, failed FROM clip_search.watch"
    until(lambda: db.execute(counts).fetchone() == (303, 300, 1, 1), "the other rows")
    assert value(db, "SELECT key FROM clip_search.pending") == ["303"], (
        "the others don't wait for a row that another session has"
    )
    time.sleep(0.3)
    assert sessions.is_alive(), "the calls wait for it"
    locker.rollback()
    locker.close()
    sessions.join(60)
    assert not sessions.is_alive()
    db.execute("DELETE FROM note WHERE id = 302")
    assert check(db, "note") == 302
    assert db.execute("SELECT writes, count(*) FROM note GROUP BY 1 ORDER BY 1").fetchall() == [(0, 1), (1, 301)]
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


@pytest.mark.parametrize(
    "meanwhile",
    ["DELETE FROM note WHERE id = 1", "UPDATE note SET id = 2 WHERE id = 1", "UPDATE note SET body = 'a cat'"],
)
def test_a_row_that_is_changed_while_it_fails_is_not_listed_for_ever(
    database: support.Database, db: psycopg.Connection, meanwhile: str
) -> None:
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued', on_error => 'skip')")
    db.execute("INSERT INTO note VALUES (1, '')")
    work = "SELECT failed FROM clip_search.watch_queue q, clip_search.backfill_batch(q.watch, ARRAY[q.id])"
    with database.connect() as other:
        with other.transaction():
            assert value(other, work) == 1  # listed as failed, but not yet committed
            pid = value(db, "SELECT pg_backend_pid()")
            writer = threading.Thread(target=db.execute, args=(meanwhile,))
            writer.start()
            waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
            deadline = time.monotonic() + 20
            while not value(other, waits, pid) and writer.is_alive():
                assert time.monotonic() < deadline
                other.execute("SELECT pg_stat_clear_snapshot()")
                time.sleep(0.01)
        writer.join()
    listed = "SELECT count(*) FROM clip_search.failure WHERE key = '{1}'"
    assert value(db, listed) == 0
    db.execute("CALL clip_backfill('note')")
    assert value(db, listed) == 0
    assert value(db, "SELECT count(*) FROM clip_search.failure") == value(
        db, "SELECT count(*) FROM note WHERE body = ''"
    )
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


def test_backfill_groups_what_is_embedded_already(db: psycopg.Connection) -> None:
    """Backfill doesn't read the source: nobody could have made these embeddings from it."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512))")
    db.execute(
        "INSERT INTO note SELECT n, 'same', clip_embed_text(w) FROM unnest(%s::text[]) WITH ORDINALITY AS u (w, n)",
        (list(WORDS),),
    )
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', existing => 'keep')")
    db.execute("CALL clip_backfill('note')")
    assert value(db, "SELECT count(DISTINCT cluster_id) FROM note") == 5
    db.execute("ALTER TABLE note DISABLE TRIGGER ALL")
    assert value(db, "SELECT active FROM clip_search.watch") is False
    db.execute("UPDATE note SET body = (%s::text[])[id]", (list(WORDS),))
    db.execute("ALTER TABLE note ENABLE TRIGGER ALL")
    assert check(db, "note") == 5
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    shown = db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    assert [name for (name,) in shown] == ["id", "body", "embedding"], "only what it has added"
    db.execute("DROP TABLE note")
