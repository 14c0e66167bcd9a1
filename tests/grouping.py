"""Members of clusters, and sessions that assign them at the same time."""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import threading

import numpy as np
import psycopg

import support
from support import in_parallel, value, vector, vector_text

SESSIONS = 16
DIMENSIONS = 512
ASSIGN = "SELECT clip_assign_cluster(%s::vector, %s)"
LEAVE = "SELECT clip_leave_cluster(%s, %s::vector)"
LEVELS = [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def direction(seed: int) -> np.ndarray:
    """A random direction; two in 512 dimensions have a cosine near 0 (standard deviation 0.04)."""
    return unit(np.random.default_rng(seed).standard_normal(DIMENSIONS))


def variants(subject: int, count: int, seed: int) -> np.ndarray:
    """Unit float4 vectors with a cosine near 0.93 to their subject's direction, 0.86 to each other."""
    noise = np.random.default_rng(seed).standard_normal((count, DIMENSIONS)) * (0.4 / DIMENSIONS**0.5)
    rows = direction(subject) + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(db: psycopg.Connection, collection: str) -> dict[int, tuple[int, np.ndarray, float]]:
    """id -> (size, centroid, resultant)"""
    rows = db.execute(
        "SELECT id, size, centroid::text, resultant FROM clip_search.cluster WHERE collection = %s",
        (collection,),
    )
    return {id: (size, vector(centroid), resultant) for id, size, centroid, resultant in rows}


@dataclasses.dataclass
class Member:
    """A committed member of a cluster."""

    subject: int
    vector: np.ndarray
    cluster: int


def storm(
    database: support.Database,
    collection: str,
    subjects: int,
    each: int,
    seed: int,
    leave: bool,
    kill: bool,
    level: psycopg.IsolationLevel = psycopg.IsolationLevel.READ_COMMITTED,
) -> tuple[list[Member], int]:
    """Sixteen sessions together assign `each` variants of every subject, in random order.

    A transaction has one row or several, in one statement per row or one for all; a quarter of the transactions is
    rolled back and retried. With `leave`, some sessions remove members again that they have committed. With `kill`,
    backends are terminated at random, and their sessions reconnect. Any other error fails the test. Returns the
    committed members, and the number of backends that were killed.
    """
    rng = random.Random(seed)
    rows = [(s, v) for s in range(subjects) for v in variants(1000 * seed + s, each, seed=100 * seed + s)]
    rng.shuffle(rows)
    start, end = threading.Barrier(SESSIONS + 1, timeout=60), threading.Event()
    backends: dict[int, int] = {}

    def session(number: int) -> list[Member]:
        rng, queue = random.Random(1000 * seed + number), rows[number::SESSIONS]
        committed: list[Member] = []
        start.wait()
        while queue:
            try:
                with database.connect(autocommit=False) as mine:
                    backends[number] = mine.info.backend_pid
                    mine.isolation_level = level
                    while queue:
                        batch = queue[: rng.choice((1, 1, 2, 5, 20))]
                        if rng.random() < 0.5:
                            ids = [value(mine, ASSIGN, vector_text(row), collection) for _, row in batch]
                        else:
                            found = mine.execute(
                                "SELECT clip_assign_cluster(v::vector, %s) FROM unnest(%s::text[]) v",
                                (collection, [vector_text(row) for _, row in batch]),
                            )
                            ids = [id for (id,) in found]
                        gone = None
                        if leave and committed and rng.random() < 0.3:
                            gone = rng.randrange(len(committed))
                            value(mine, LEAVE, committed[gone].cluster, vector_text(committed[gone].vector))
                        if rng.random() < 0.25:
                            mine.rollback()
                            continue
                        mine.commit()
                        if gone is not None:
                            committed.pop(gone)
                        committed += [Member(subject, row, id) for (subject, row), id in zip(batch, ids, strict=True)]
                        queue = queue[len(batch) :]
            except psycopg.OperationalError as error:
                # 57P01, or a lost connection. killer() never interrupts a COMMIT.
                assert kill and (error.sqlstate in ("57P01", None)), error
        return committed

    def killer() -> int:
        rng, count = random.Random(seed), 0
        start.wait()
        with database.connect() as db:
            while kill and not end.wait(0.05):
                # Spare a backend that is committing: nobody could know whether the commit succeeded.
                count += value(
                    db,
                    """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE pid = %s AND state = 'active' AND query LIKE 'SELECT clip%%'""",
                    rng.choice(list(backends.values()) or [0]),
                )
        return count

    def sessions() -> list[Member]:
        try:
            return sum(in_parallel([functools.partial(session, n) for n in range(SESSIONS)], 300), [])
        finally:
            end.set()

    committed, killed = in_parallel([sessions, killer], 320)
    return committed, killed


def check_clusters(db: psycopg.Connection, collection: str, committed: list[Member]) -> None:
    """Checks for one cluster per subject, as after a sequential run, with the size and the mean of its members."""
    found = clusters(db, collection)
    by_subject = collections.defaultdict(list)
    for member in committed:
        by_subject[member.subject].append(member)
    extra = {id: size for id, (size, _, _) in found.items() if id not in {member.cluster for member in committed}}
    assert not extra, "clusters that nobody has been told of, or that all have left"
    assert len(found) == len(by_subject)
    for subject, members in by_subject.items():
        ids = {member.cluster for member in members}
        assert len(ids) == 1, f"subject {subject} is in clusters {ids}"
        size, centroid, resultant = found[ids.pop()]
        assert size == len(members)
        mean = np.mean([member.vector.astype(np.float64) for member in members], axis=0)
        assert np.abs(centroid - unit(mean)).max() < 1e-5
        assert abs(resultant - np.linalg.norm(mean)) < 1e-5
