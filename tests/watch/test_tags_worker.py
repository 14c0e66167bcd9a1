"""The background worker keeps the tags column up to date; no other process does it here."""

from __future__ import annotations

import psycopg

import support
from support import until, value
from watched import PHOTOS, drained

SERVER = {"worker_retry_delay": "20ms"}


def test_the_worker_tags(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', mode => 'queued', cluster => 'cluster_id', tags => 'tags')")
    for number, photo in enumerate(PHOTOS.values(), 1):
        db.execute("INSERT INTO photo VALUES (%s, %b)", (number, photo))
    wanted = "ARRAY(SELECT tag FROM clip_tags(embedding, 10) WHERE relevance >= 0.5)"
    ready = f"SELECT count(*) = {len(PHOTOS)} FROM photo WHERE tags = {wanted} AND cluster_id IS NOT NULL"
    until(lambda: drained(db) and value(db, ready), "the worker's tags")
    # Rows that lack only tags are not embedded again, and stay in their groups.
    before = db.execute("SELECT id, embedding::text, cluster_id FROM photo ORDER BY id").fetchall()
    db.execute("SELECT clip_watch('photo', reset => '{tags}')")
    db.execute("UPDATE photo SET tags = NULL")
    db.execute("SELECT clip_watch('photo', tags => 'tags')")
    until(lambda: drained(db) and value(db, ready), "the worker's tags")
    assert db.execute("SELECT id, embedding::text, cluster_id FROM photo ORDER BY id").fetchall() == before
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == len(PHOTOS)


def test_words_that_cannot_be_had_are_no_rows_fault(
    db: psycopg.Connection, server_folder: support.ServerFolder
) -> None:
    """The worker rests, and resumes when the word list can be read again."""
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', mode => 'queued', tags => 'tags')")
    with support.system_settings(db, words="/nonexistent/words.txt"):
        until(lambda: value(db, "SHOW clip_search.words") == "/nonexistent/words.txt")
        db.execute("INSERT INTO photo VALUES (1, %b)", (PHOTOS["cat"],))
        until(lambda: value(db, "SELECT count(*) FROM clip_search.pending WHERE attempts = 0") == 1)
        assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
        assert value(db, "SELECT embedding IS NULL FROM photo")
    until(lambda: drained(db), "the worker")
    assert value(db, "SELECT tags IS NOT NULL AND embedding IS NOT NULL FROM photo")
