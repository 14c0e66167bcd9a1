"""Logical replication: a subscriber receives embeddings and group ids unchanged, embeds nothing itself, and can be
searched."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from servers import Server
from support import embed_one, value

*PHOTOS, CHANGED, OTHER = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))[:8]
TABLE = "CREATE TABLE photo (id bigint PRIMARY KEY, title text, data bytea)"
WATCH = "SELECT clip_watch('photo', 'data', cluster => 'cluster_id', index => true)"


@pytest.fixture(scope="module")
def servers(bindir: pathlib.Path) -> Iterator[list[Server]]:
    made = [Server(bindir, {"wal_level": "logical"}) for _ in range(2)]
    try:
        for one in made:
            one.start()
            with one.connect() as db:
                db.execute("SET client_min_messages = warning; CREATE EXTENSION clip_search CASCADE")
                db.execute(TABLE)
                # The table is watched on both sides, as in a copied schema.
                db.execute(WATCH)
        yield made
    finally:
        for one in made:
            one.remove()


def wait(db: psycopg.Connection, query: str, wanted: object) -> None:
    deadline = time.monotonic() + 60
    while (found := value(db, query)) != wanted:
        assert time.monotonic() < deadline, f"{query}: {found}, not {wanted}"
        time.sleep(0.05)


def test_a_subscriber_gets_what_is_stored(servers: list[Server]) -> None:
    publisher, subscriber = servers
    with publisher.connect() as there, subscriber.connect() as db:
        for n, photo in enumerate(PHOTOS[:3]):
            there.execute(
                "INSERT INTO photo (id, title, data) VALUES (%s, %s, %b)", (n, photo.stem, photo.read_bytes())
            )
        there.execute("CREATE PUBLICATION photos FOR TABLE photo")
        db.execute("SELECT clip_reset_stats()")
        db.execute(
            f"CREATE SUBSCRIPTION photos CONNECTION 'host={publisher.folder} user=postgres dbname=postgres' PUBLICATION photos"
        )
        # The rows from before the subscription, then new ones.
        wait(db, "SELECT count(*) FROM photo", 3)
        for n, photo in enumerate(PHOTOS[3:], 3):
            there.execute(
                "INSERT INTO photo (id, title, data) VALUES (%s, %s, %b)", (n, photo.stem, photo.read_bytes())
            )
        wait(db, "SELECT count(*) FROM photo", len(PHOTOS))
        rows = "SELECT array_agg(md5(vector_send(embedding)) || cluster_id::text ORDER BY id) FROM photo"
        assert value(db, rows) == value(there, rows) and None not in value(db, rows)
        there.execute("UPDATE photo SET data = %b WHERE id = 0", (CHANGED.read_bytes(),))
        there.execute("DELETE FROM photo WHERE id = 1")
        wait(db, "SELECT count(*) FROM photo", len(PHOTOS) - 1)
        assert value(db, rows) == value(there, rows)
        # The subscriber embedded and grouped nothing itself.
        assert value(db, "SELECT coalesce(sum(images), 0) FROM clip_stats()") == 0
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0
        progress = "SELECT rows, embedded, pending, failed FROM clip_search.watch"
        assert db.execute(progress).fetchone() == there.execute(progress).fetchone()
        # The subscriber can be searched, with the same vectors.
        query = "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cup of coffee') LIMIT 3"
        assert db.execute(query).fetchall() == there.execute(query).fetchall()
        assert support.same_embedding(embed_one(db, "text", "a cat"), embed_one(there, "text", "a cat"))
        db.execute("DROP SUBSCRIPTION photos")


def test_after_it_is_cut_off_it_embeds_itself(servers: list[Server]) -> None:
    """As in an upgrade to a new major version by logical replication."""
    _, subscriber = servers
    with subscriber.connect() as db:
        # Sequence values are not replicated, so the next group id is computed from the rows.
        assert value(db, "SELECT count(*) FROM clip_recluster('photo')") > 0
        before = value(db, "SELECT count(*) FROM clip_search.cluster")
        db.execute("INSERT INTO photo (id, title, data) VALUES (100, 'again', %b)", (PHOTOS[2].read_bytes(),))
        assert value(db, "SELECT count(DISTINCT cluster_id) FROM photo WHERE id IN (2, 100)") == 1
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == before
        # A new group gets a number that no row has.
        taken = value(db, "SELECT array_agg(DISTINCT cluster_id) FROM photo")
        found = "INSERT INTO photo (id, title, data) VALUES (%s, 'new', %b) RETURNING cluster_id"
        for n in range(200, 200 + max(taken)):
            noise = support.vector_text(np.random.default_rng(n).standard_normal(512))
            assert value(db, "SELECT clip_assign_cluster(%s::vector, 'photo')", noise) not in taken
        near = value(db, "SELECT cluster_id FROM photo WHERE id = 0")
        assert db.execute(found, (300, OTHER.read_bytes())).fetchone()[0] == near
        members = "SELECT bool_and(c.size = m.n) FROM clip_search.cluster c JOIN (SELECT cluster_id, count(*) AS n FROM photo GROUP BY 1) m ON m.cluster_id = c.id"
        assert value(db, members) is True
