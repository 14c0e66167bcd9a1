"""Another model for a watched column: clip_reembed."""

from __future__ import annotations

import threading
import time

import psycopg

import support
from support import embed_one, in_parallel, raised_error, same_embedding, until, value, vector
from watched import WORDS, check, notes


def test_reembed_swaps_when_it_is_complete(
    database: support.Database, db: psycopg.Connection, clip_mini, plain_role: str
) -> None:
    """Until the swap, searches use the old column, and writers keep both columns in sync; afterwards no trace of the
    process is left."""
    db.execute(f"ALTER DATABASE {database.name} SET clip_search.model_path = '$system:{clip_mini.parent}'")
    db.execute(f"SET clip_search.model_path = '$system:{clip_mini.parent}'")
    notes(db, watch=", index => true, threshold => 0.9, on_error => 'skip'")
    db.execute("INSERT INTO note (id, body) SELECT n, 'text number ' || n % 40 FROM generate_series(1, 400) n")
    db.execute("INSERT INTO note (id, body) VALUES (1001, ''), (1002, NULL)")
    db.execute('CREATE INDEX "by Group" ON note (cluster_id)')
    db.execute(
        "ALTER INDEX note_embedding_idx RENAME TO \"my Index\"; COMMENT ON COLUMN note.embedding IS 'it''s mine'"
    )
    db.execute(f"GRANT SELECT (embedding) ON note TO {plain_role}")
    db.execute("CREATE VIEW show AS SELECT embedding FROM note")
    state, text = raised_error(db, "CALL clip_reembed('note', 'clip-mini')")
    assert state == "2BP01" and "view public.show" in text
    db.execute("DROP VIEW show")
    state, text = raised_error(db, "CALL clip_reembed('note', 'photo-mini')")
    assert state == "22023" and "already" in text
    assert raised_error(db, "CALL clip_reembed('note', 'nope')")[0] == "42704"

    # A cancel leaves both columns in sync, and the next call continues.
    def reembed() -> tuple[str | None, str]:
        return raised_error(mine, "CALL clip_reembed('note', 'clip-mini', batch => 2)")

    # This lock keeps the call from ending before it is cancelled.
    mine, holder = database.connect(), database.connect()
    db.execute("""
        CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(77); RETURN NEW; END $$;
        CREATE TRIGGER wait BEFORE UPDATE ON note FOR EACH ROW WHEN (old.id = 399) EXECUTE FUNCTION wait()""")
    holder.execute("SELECT pg_advisory_lock(77)")
    found: list = []
    thread = threading.Thread(target=lambda: found.append(reembed()))
    thread.start()
    embedded = "SELECT coalesce(max(embedded), 0) FROM clip_search.watch WHERE replaces = 'embedding'"
    until(lambda: value(db, embedded) >= 20, "the first rows")
    db.execute("SELECT pg_cancel_backend(%s)", (mine.info.backend_pid,))
    thread.join(support.PATIENCE)
    assert found[0][0] == "57014"
    holder.close()
    db.execute("DROP TRIGGER wait ON note")
    assert value(db, "SELECT vector_dims(embedding) FROM note LIMIT 1") == 512
    check(db, "note WHERE id < 1000", collection="note")
    db.execute("UPDATE note SET body = 'the ocean' WHERE id <= 50; DELETE FROM note WHERE id BETWEEN 51 AND 60")
    db.execute("INSERT INTO note (id, body) VALUES (500, 'an old guitar')")
    check(db, "note WHERE id < 1000", collection="note")
    shadow = value(db, "SELECT embedding FROM clip_search.watch WHERE replaces IS NOT NULL")
    for id, body, embedding in db.execute(
        f"SELECT id, body, {shadow}::text FROM note WHERE {shadow} IS NOT NULL"
    ).fetchall():
        assert same_embedding(vector(embedding), embed_one(db, "text", body, "clip-mini")), id
    state, text = raised_error(db, "CALL clip_reembed('note', 'photo-mini:none')")
    assert state == "55000" and "clip_unwatch" in text

    # Readers and writers work during the re-embedding.
    stop = threading.Event()

    def reader() -> set[int]:
        seen = set()
        with database.connect() as reads:
            while not stop.is_set():
                rows = reads.execute("SELECT DISTINCT vector_dims(embedding) FROM note WHERE id < 500").fetchall()
                assert len(rows) == 1, "one model at a time, and no gap"
                seen.add(rows[0][0])
        return seen

    def writer() -> int:
        number = 0
        with database.connect() as writes:
            while not stop.is_set():
                number += 1
                writes.execute(
                    "INSERT INTO note (id, body) VALUES (%s, %s)", (2000 + number, f"text number {number % 40}")
                )
                writes.execute("UPDATE note SET body = %s WHERE id = %s", (WORDS[number % 5], 60 + number))
                time.sleep(0.02)
        return number

    def main() -> None:
        with database.connect() as calls:
            calls.execute("SET client_min_messages = error")
            calls.execute("CALL clip_reembed('note', 'clip-mini')")
        stop.set()

    (seen, written, _) = in_parallel([reader, writer, main])
    mine.close()
    dimensions = value(db, "SELECT vector_dims(clip_embed_text('x', 'clip-mini'))")
    assert seen <= {512, dimensions} and 512 in seen and written > 0
    for id, body, embedding in db.execute("SELECT id, body, embedding::text FROM note WHERE body <> ''").fetchall():
        assert embedding is not None and same_embedding(vector(embedding), embed_one(db, "text", body, "clip-mini")), id
    members = dict(
        db.execute("SELECT cluster_id, count(*) FROM note WHERE embedding IS NOT NULL GROUP BY 1").fetchall()
    )
    assert dict(db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = 'note'").fetchall()) == members
    assert db.execute("SELECT name, dimensions, threshold, model FROM clip_search.collection").fetchall() == [
        ("note", dimensions, 0.9, "clip-mini")
    ]
    assert db.execute("SELECT embedding, model, replaces, pending, failed FROM clip_search.watch").fetchall() == [
        ("embedding", "clip-mini", None, 0, 1)
    ]
    assert value(db, "SELECT key FROM clip_search.failure") == ["1001"]
    names = db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    assert [name for (name,) in names] == ["id", "body", "title", "embedding", "cluster_id"]
    names = db.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'note'::regclass ORDER BY 1")
    assert [name for (name,) in names] == ['"by Group"', '"my Index"', "note_pkey"]
    assert (
        value(
            db,
            "SELECT col_description('note'::regclass, attnum) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attname = 'embedding'",
        )
        == "it's mine"
    )
    assert value(db, f"SELECT has_column_privilege('{plain_role}', 'note', 'embedding', 'SELECT')")
    assert value(db, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'note'::regclass") == 3
    db.execute(
        "INSERT INTO note (id, body) VALUES (9000, 'a new text'); DELETE FROM note WHERE id = 9000; SELECT count(*) FROM clip_recluster('note')"
    )
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    names = db.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    assert [name for (name,) in names] == ["id", "body", "title"]
    db.execute("DROP TABLE note")
    db.execute(f"ALTER DATABASE {database.name} RESET clip_search.model_path")
