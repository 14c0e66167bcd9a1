"""A streaming standby: the reads that work there, and what is refused."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time
from collections.abc import Iterator

import psycopg
import pytest

import support
from servers import Server, Standby, server
from support import embed_one, raised_error, value, vector

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"
READ_ONLY = "25006"


@pytest.fixture(scope="module")
def primary(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir, preload="photo-mini") as made:
        with made.connect() as db:
            db.execute("""
                CREATE TABLE photo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, data bytea,
                                    embedding vector(512), cluster_id bigint)""")
            db.execute("SELECT clip_create_collection('photo', members => 'photo', key => 'title', image => 'data')")
            for file in sorted(PHOTOS.glob("cat*.jpg")) + sorted(PHOTOS.glob("rocket*.jpg")):
                db.execute(
                    "INSERT INTO photo (title, data, embedding) SELECT %s, data, clip_embed_image(data) "
                    "FROM (SELECT %b::bytea) AS file (data)",
                    (file.stem, file.read_bytes()),
                )
            db.execute("UPDATE photo SET cluster_id = clip_assign_cluster(embedding, 'photo')")
            db.execute("CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)")
            db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
            db.execute("SELECT clip_watch('note', 'body', mode => 'queued', on_error => 'skip')")
            db.execute("INSERT INTO note VALUES (1, 'a cat')")
        yield made


@contextlib.contextmanager
def running(made: Standby) -> Iterator[Standby]:
    try:
        made.start()
        yield made
    finally:
        with contextlib.suppress(AssertionError):
            made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def standby(primary: Server) -> Iterator[Standby]:
    with running(Standby(primary)) as made:
        yield made


@pytest.fixture
def db(standby: Standby) -> Iterator[psycopg.Connection]:
    with standby.connect() as db:
        standby.catch_up(db)
        assert value(db, "SELECT pg_is_in_recovery()") is True
        yield db


def test_it_embeds_and_searches(primary: Server, db: psycopg.Connection) -> None:
    photo = (PHOTOS / "cat.jpg").read_bytes()
    with primary.connect() as there:
        for what, item in (("text", "a cat"), ("image", photo)):
            assert (embed_one(db, what, item) == embed_one(there, what, item)).all()
    arrays = (
        "SELECT vector_dims(t[1]), vector_dims(i[1]) FROM clip_embed_texts('{a cat}') AS t, clip_embed_images(%b) AS i"
    )
    assert db.execute(arrays, ([photo],)).fetchone() == (512, 512)
    near = "SELECT title FROM photo ORDER BY embedding <=> clip_query('{cat}', images => %b) LIMIT 1"
    assert value(db, near, [photo]).startswith("cat")
    db.execute("SET enable_seqscan = off")
    query = "SELECT title FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 1"
    assert value(db, query).startswith("cat")
    assert "Index Scan" in str(db.execute(f"EXPLAIN {query}").fetchall())


def test_it_reads_groups(db: psycopg.Connection) -> None:
    assert value(db, "SELECT array_agg(size ORDER BY size) FROM clip_clusters('photo')") == [3, 3]
    groups = value(db, "SELECT clip_cluster_groups('photo')")
    assert sorted(len(group["assets"]) for group in groups) == [3, 3]
    assert all(group["representative_thumbnail"] for group in groups)
    # Mirrored copies are within 0.95; the demo's cropped copies are not.
    assert value(db, "SELECT count(*) FROM clip_duplicates('photo', 0.95)") >= 1
    label = "SELECT label FROM photo, clip_classify(embedding, '{cat, rocket}') WHERE title = 'cat' LIMIT 1"
    assert value(db, label) == "cat"


def test_it_shows_watches(standby: Standby, db: psycopg.Connection) -> None:
    progress = "SELECT relation::text, active, rows, embedded, failed FROM clip_search.watch"
    deadline = time.monotonic() + 60
    while db.execute(progress).fetchall() != [("note", True, 1, 1, 0)]:
        assert time.monotonic() < deadline, "what the primary's worker has done does not come"
        time.sleep(0.05)
    assert (embed_one(db, "text", "a cat") == vector(value(db, "SELECT embedding::text FROM note"))).all()
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT clip_assign_cluster(embedding, 'photo') FROM photo LIMIT 1",
        "SELECT clip_leave_cluster(cluster_id, embedding) FROM photo LIMIT 1",
        "SELECT clip_recluster('photo')",
        "SELECT clip_create_collection('other')",
        "SELECT clip_drop_collection('photo')",
        "SELECT clip_watch('photo', 'data')",
        "SELECT clip_unwatch('photo')",
        "SELECT clip_retry('photo')",
        "CALL clip_backfill('photo')",
        "CALL clip_reembed('photo', 'other')",
        "SELECT clip_group('photo')",
        "SELECT clip_search.backfill_claim(1, 0, 9, 1)",
        "SELECT clip_search.backfill_batch(1, '{1}')",
        "SELECT clip_search.backfill_left(1, 9)",
        "SELECT clip_search.backfill_failed('{1}')",
        "SELECT clip_search.reembed_goes_on('photo', 'next', 'other')",
        "SELECT clip_search.reembed_finish('photo', 'next')",
        "SELECT clip_search.forget_rows('photo')",
        "SELECT clip_search.settle_partitions('{1}')",
    ],
)
def test_it_refuses_to_write(db: psycopg.Connection, statement: str) -> None:
    assert raised_error(db, statement)[0] == READ_ONLY


def test_it_has_figures_and_a_cache_of_its_own(standby: Standby, db: psycopg.Connection) -> None:
    embed_one(db, "text", "a text for the figures")
    assert value(db, "SELECT shared AND texts > 0 FROM clip_stats() WHERE model = 'photo-mini'") is True
    db.execute("SELECT clip_reset_stats()")
    assert value(db, "SELECT count(*) FROM clip_stats()") == 0
    assert standby.cache.exists()


def test_a_promoted_standby_keeps_grouping(primary: Server) -> None:
    """Uses a standby of its own, since promotion ends its life as one."""
    with running(Standby(primary, "promoted")) as standby, standby.connect() as db:
        standby.catch_up(db)
        standby.promote()
        before = value(db, "SELECT cluster_id FROM photo WHERE title = 'cat'")
        assert value(db, "SELECT clip_assign_cluster(embedding, 'photo') FROM photo WHERE title = 'cat'") == before
        assert raised_error(db, "SELECT clip_create_collection('photo')")[0] == "42710"
        # The promoted server starts its own worker.
        db.execute("INSERT INTO note VALUES (2, 'a rocket')")
        deadline = time.monotonic() + 60
        while value(db, "SELECT embedding IS NULL FROM note WHERE id = 2"):
            assert time.monotonic() < deadline, "the worker does not come"
            time.sleep(0.05)
