"""Watched tables and the checks for them, shared by the tests of watches and of their background worker."""

from __future__ import annotations

import collections

import numpy as np
import psycopg

import support
from support import embed_one, same_embedding, value, vector

PHOTOS = {
    name: (support.ROOT / "examples" / "gallery" / "photos" / f"{name}.jpg").read_bytes()
    for name in ("cat", "rocket", "pagoda")
}
# Each text is a cluster of its own (cosines below 0.75).
WORDS = ("a sleepy cat", "a steam locomotive", "chocolate cake with cherries", "the ocean at night", "an old guitar")


def check(
    db: psycopg.Connection,
    table: str,
    columns: str = "body, embedding::text, cluster_id",
    collection: str | None = None,
) -> int:
    """Checks that every row has the embedding of its text, or none if it has no text, and that the clusters are the
    sums of their members. Returns the number of rows."""
    members = collections.defaultdict(list)
    known: dict[str, np.ndarray] = {}
    rows = db.execute(f"SELECT {columns} FROM {table}").fetchall()
    for body, embedding, cluster in rows:
        if body is None:
            assert embedding is None and cluster is None
            continue
        if body not in known:
            known[body] = embed_one(db, "text", body)
        assert embedding is not None and same_embedding(vector(embedding), known[body]), body
        members[cluster].append(known[body].astype(np.float64))
    name = collection or table
    found = db.execute(
        "SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = %s", (name,)
    ).fetchall()
    assert {id: size for id, size, _ in found} == {id: len(rows) for id, rows in members.items()}
    for id, _, centroid in found:
        mean = np.mean(members[id], axis=0)
        assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-5
    return len(rows)


def notes(db: psycopg.Connection, watch: str = "", key: str = "id int PRIMARY KEY", rest: str = "") -> None:
    db.execute(f"CREATE TABLE note ({key}, body text, title text) {rest}")
    db.execute(f"SELECT clip_watch('note', 'body', cluster => 'cluster_id'{watch})")


def fill(db: psycopg.Connection, count: int = 10) -> None:
    db.execute(
        "INSERT INTO note (id, body) SELECT n, (%s::text[])[1 + n %% 5] FROM generate_series(1, %s) n",
        (list(WORDS), count),
    )


def drained(db: psycopg.Connection) -> bool:
    return value(db, "SELECT count(*) FROM clip_search.watch_queue") == 0


def workers(db: psycopg.Connection, database: str = "postgres") -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'clip_search worker' AND datname = %s"
    return [pid for (pid,) in db.execute(query, (database,))]
