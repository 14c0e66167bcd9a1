"""pg_upgrade from the server of OLD_PG_CONFIG to that of PG_CONFIG; both have the extension. Run by `make matrix`."""

from __future__ import annotations

import os
import pathlib
import subprocess

import psycopg
import pytest

import support
from servers import Server
from support import embed_one, value, vector

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"
# Views of one subject, which form one group, and photos that stay alone.
NAMES = ("cat.jpg", "cat.jpg", "espresso.jpg", "rocket.jpg")

SCHEMA = """
CREATE SCHEMA pgv;
CREATE EXTENSION vector SCHEMA pgv;
CREATE EXTENSION clip_search;
CREATE TABLE photo (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL, data bytea, embedding pgv.vector(512), cluster_id bigint,
    described pgv.vector(512) GENERATED ALWAYS AS (public.clip_embed_text(title, 'photo-mini')) STORED
);
CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding pgv.vector_cosine_ops);
CREATE FUNCTION photo_embed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.embedding := public.clip_embed_image(NEW.data);
    NEW.cluster_id := public.clip_assign_cluster(NEW.embedding, 'photo');
    RETURN NEW;
END $$;
CREATE TRIGGER photo_embed BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION photo_embed();
SELECT clip_create_collection('photo', threshold => 0.9, members => 'photo', key => 'title');
CREATE TABLE note (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => 'queued', index => true);
CREATE TABLE scan (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea);
SELECT clip_watch('scan', 'data', on_error => 'skip');
"""
# Everything that the extension and its users have stored; a row that was not rewritten keeps its place and transaction
# in the old files.
STORED = (
    "SELECT t::text FROM clip_search.collection t ORDER BY 1",
    "SELECT t::text FROM clip_search.cluster t ORDER BY 1",
    "SELECT t::text FROM clip_search.cluster_sum t ORDER BY 1",
    "SELECT t::text FROM clip_search.cluster_change t ORDER BY 1",
    "SELECT t::text FROM clip_search.cluster_code t ORDER BY 1",
    "SELECT last_value::text FROM clip_search.cluster_id_seq",
    "SELECT xmin::text || ctid::text || t::text FROM photo t ORDER BY t.id",
    "SELECT xmin::text || ctid::text || t::text FROM note t ORDER BY t.id",
    "SELECT t::text FROM clip_search.watch t ORDER BY 1",
    "SELECT t::text FROM clip_search.pending t ORDER BY 1",
    "SELECT t::text FROM clip_search.failure t ORDER BY 1",
    "SELECT p.oid::regprocedure::text || p.proacl::text FROM pg_proc p WHERE p.proacl IS NOT NULL AND p.proname LIKE 'clip%' ORDER BY 1",
)


def bindir(variable: str) -> pathlib.Path:
    config = os.environ.get(variable)
    assert config, f"{variable} is not set: run make matrix"
    return pathlib.Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())


def nearest(db: psycopg.Connection, text: str) -> list[tuple[str, float]]:
    """Searches with the HNSW index, which the plan must use."""
    query = (
        "SELECT title, 1 - (embedding OPERATOR(pgv.<=>) clip_embed_text(%s)) FROM photo "
        "ORDER BY embedding OPERATOR(pgv.<=>) clip_embed_text(%s) LIMIT 3"
    )
    db.execute("SET enable_seqscan = off")
    plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {query}", (text, text)))
    assert "photo_embedding_idx" in plan, plan
    return db.execute(query, (text, text)).fetchall()


def insert(db: psycopg.Connection, name: str) -> None:
    db.execute("INSERT INTO photo (title, data) VALUES (%s, %s)", (name, (PHOTOS / name).read_bytes()))


@pytest.fixture
def upgraded(request: pytest.FixtureRequest):
    """The old server with photos in it, and the new server to be upgraded; both are stopped at the end."""
    # Checksums are on by default since 18, and both servers must agree.
    # The worker is off, so that the queued row waits until both servers have been compared.
    settings = {"clip_search.worker": "off"}
    servers = [Server(bindir(variable), settings, "--data-checksums") for variable in ("OLD_PG_CONFIG", "PG_CONFIG")]
    yield servers
    for server in servers:
        server.remove()


def command(old: Server, new: Server, mode: str) -> str:
    return (
        f"cd {new.folder} && {new.bindir}/pg_upgrade {mode} -U postgres -s {new.folder} "
        f"-b {old.bindir} -B {new.bindir} -d {old.data} -D {new.data}"
    )


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips if these two servers can't upgrade any database. 15.20 stores the option pg_attver with every column,
    which older servers don't know: 18.6 fails at the first table, with or without an extension."""
    old, new = (
        Server(bindir(variable), {"shared_preload_libraries": ""}, "--data-checksums")
        for variable in ("OLD_PG_CONFIG", "PG_CONFIG")
    )
    try:
        old.start()
        with old.connect() as db:
            db.execute("CREATE TABLE plain (id int)")
        old.stop()
        try:
            new.run("sh", "-c", command(old, new, "--copy"))
        except AssertionError:
            logs = sorted((new.data / "pg_upgrade_output.d").glob("*/log/pg_upgrade_dump_*.log"))
            errors = [line for log in logs for line in log.read_text().splitlines() if "unrecognized parameter" in line]
            if not errors:
                raise
            pytest.skip(f"a table without the extension can't be upgraded either: {errors[0]}")
    finally:
        old.remove()
        new.remove()


@pytest.mark.usefixtures("possible")
@pytest.mark.parametrize("mode", ["--copy", "--link"])
def test_pg_upgrade_keeps_vectors_and_clusters(upgraded: list[Server], mode: str) -> None:
    old, new = upgraded
    old.start()
    with old.connect() as db:
        db.execute(SCHEMA)
        for name in NAMES:
            insert(db, name)
        db.execute("DELETE FROM photo WHERE title = 'rocket.jpg'")  # a gap, and a group without a member's row
        group = value(db, "SELECT DISTINCT cluster_id FROM photo WHERE title = 'cat.jpg'")
        db.execute("INSERT INTO note (body) VALUES ('a steam locomotive'), ('an old guitar')")
        db.execute("CALL clip_backfill('note')")
        db.execute("INSERT INTO note (body) VALUES ('the ocean at night')")  # not embedded yet
        db.execute("INSERT INTO scan (data) VALUES ('no image'), (%s)", ((PHOTOS / "cat.jpg").read_bytes(),))
        stored = [db.execute(query).fetchall() for query in STORED]
        assert all(
            rows
            for query, rows in zip(STORED, stored, strict=True)
            if "cluster_change" not in query and "cluster_code" not in query
        )
        found, text = nearest(db, "a sleepy cat"), embed_one(db, "text", "a sleepy cat")
        assert found[0][0] == "cat.jpg"
    old.stop()

    new.run("sh", "-c", f"{command(old, new, mode)} --check")
    new.run("sh", "-c", command(old, new, mode))

    new.start()
    with new.connect() as db:
        assert [db.execute(query).fetchall() for query in STORED] == stored
        # New calls give the same vectors, and the index the same ranking.
        assert (embed_one(db, "text", "a sleepy cat") == text).all()
        assert nearest(db, "a sleepy cat") == found
        # A look-alike joins the existing group; another photo gets a group with a new number.
        last = value(db, "SELECT last_value FROM clip_search.cluster_id_seq")
        size = value(db, "SELECT size FROM clip_search.cluster WHERE id = %s", group)
        insert(db, "cat.jpg")
        insert(db, "clock.jpg")
        assert value(db, "SELECT cluster_id FROM photo ORDER BY id DESC OFFSET 1 LIMIT 1") == group
        assert value(db, "SELECT size FROM clip_search.cluster WHERE id = %s", group) == size + 1
        assert value(db, "SELECT cluster_id FROM photo ORDER BY id DESC LIMIT 1") > last
        assert value(db, "SELECT max(size) FROM clip_clusters('photo')") == 3
        db.execute("SELECT * FROM clip_recluster('photo')")
        rows = db.execute("SELECT title, embedding::text, clip_embed_image(data)::text FROM photo").fetchall()
        assert len(rows) == 5
        for title, kept, computed in rows:
            assert (vector(kept) == vector(computed)).all(), title
        # The watches still work: on the queued row, a new one, and a failed one that is corrected.
        db.execute("INSERT INTO note (body) VALUES ('chocolate cake with cherries')")
        db.execute("CALL clip_backfill('note')")
        for body, embedding in db.execute("SELECT body, embedding::text FROM note").fetchall():
            assert support.same_embedding(vector(embedding), embed_one(db, "text", body)), body
        db.execute("UPDATE scan SET data = %s WHERE embedding IS NULL", ((PHOTOS / "clock.jpg").read_bytes(),))
        watched = "SELECT relation::text, rows, embedded, pending, failed, active FROM clip_search.watch ORDER BY 1"
        assert db.execute(watched).fetchall() == [("note", 4, 4, 0, 0, True), ("scan", 2, 2, 0, 0, True)]
        # pgvector and this extension can still be updated.
        db.execute("ALTER EXTENSION vector UPDATE")
        db.execute("ALTER EXTENSION clip_search UPDATE")
        assert nearest(db, "a sleepy cat")[0][0] == "cat.jpg"
        db.execute("DROP EXTENSION clip_search CASCADE")
        assert value(db, "SELECT count(*) FROM pg_namespace WHERE nspname = 'clip_search'") == 0
