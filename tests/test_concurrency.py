"""Grouping with many sessions at once, and what transactions promise about it.

Two sessions that insert the same photo at the same time must end in one cluster (concurrent grouping made
one maintainer switch concurrency off, immich PR#8228), and what is rolled back must leave no trace.
"""

from __future__ import annotations

import functools
import random
import threading
import time
import uuid
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from support import in_parallel, sqlstate, value, vector, vector_text

SESSIONS = 16
DIMENSIONS = 512
ASSIGN = "SELECT clip_assign_cluster(%s::vector, %s)"
SERIALIZATION_FAILURE = "40001"
PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


@pytest.fixture
def collection() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


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


def waiting(db: psycopg.Connection, pid: int, timeout: float = 10) -> None:
    """Returns once that backend waits for another's lock."""
    end = time.monotonic() + timeout
    while not value(db, "SELECT cardinality(pg_blocking_pids(%s)) > 0", pid):
        assert time.monotonic() < end, f"backend {pid} has not come to wait for a lock within {timeout} s"
        time.sleep(0.01)


class Background:
    """A call in a thread of its own; `result` waits for it."""

    def __init__(self, call) -> None:
        self.outcome: list = []

        def run() -> None:
            try:
                self.outcome.append((call(), None))
            except BaseException as error:  # noqa: BLE001 - raised by result()
                self.outcome.append((None, error))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def result(self, timeout: float = 20):
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still running after {timeout} s"
        done, error = self.outcome[0]
        if error is not None:
            raise error
        return done


# ---------------------------------------------------------------- many sessions at once


def test_one_photo_inserted_by_all_is_one_cluster(database: support.Database, db: psycopg.Connection) -> None:
    """The plain case, through the trigger of examples/gallery: embed, then group, in every session.

    Each holds its transaction open for 30 ms: embedding takes turns on few cores, and sessions that never
    overlap would find each other's cluster without any care being taken.
    """
    db.execute("""
        CREATE TABLE photo (id bigint GENERATED ALWAYS AS IDENTITY, round int, data bytea,
                            embedding vector(512) NOT NULL, cluster_id bigint NOT NULL);
        CREATE FUNCTION embed_photo() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.embedding := clip_embed_image(NEW.data);
            NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'photo');
            RETURN NEW;
        END $$;
        CREATE TRIGGER embed_photo BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION embed_photo();
        """)
    photos = [(PHOTOS / name).read_bytes() for name in ("cat.jpg", "rocket.jpg", "pagoda.jpg")]
    start = threading.Barrier(SESSIONS, timeout=60)

    def session() -> None:
        with database.connect() as mine:
            mine.execute("SELECT clip_embed_image(%s)", (photos[0],))  # so that all are ready to race
            for number, photo in enumerate(photos):
                start.wait()
                with mine.transaction():
                    mine.execute("INSERT INTO photo (round, data) VALUES (%s, %s)", (number, photo))
                    time.sleep(0.03)

    in_parallel([session] * SESSIONS)
    rows = db.execute(
        "SELECT round, count(*), count(DISTINCT cluster_id), min(cluster_id) FROM photo GROUP BY round"
    )
    found = {round: (inserted, distinct, id) for round, inserted, distinct, id in rows}
    assert {round: counts[:2] for round, counts in found.items()} == {n: (SESSIONS, 1) for n in range(3)}
    sizes = {id: size for id, (size, _, _) in clusters(db, "photo").items()}
    assert sizes == {id: SESSIONS for _, _, id in found.values()}


def test_a_storm_of_sessions_keeps_one_exact_cluster_a_subject(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """Sixteen sessions, twelve subjects, random order, transactions of one or several rows, a quarter undone.

    Afterwards: one cluster a subject; its size the number of committed members; its centroid their mean. No
    deadlock or other error on the way.
    """
    subjects, each = 12, 4
    members = {
        (session, subject): variants(subject, each, seed=1000 * session + subject)
        for session in range(SESSIONS)
        for subject in range(subjects)
    }
    start = threading.Barrier(SESSIONS, timeout=60)

    def session(number: int) -> list[tuple[int, np.ndarray, int]]:
        """What it committed: (subject, member, cluster id)."""
        rng = random.Random(number)
        queue = [(subject, row) for subject in range(subjects) for row in members[number, subject]]
        rng.shuffle(queue)
        committed = []
        with database.connect(autocommit=False) as mine:
            mine.execute("SELECT clip_version()")
            mine.commit()
            start.wait()
            while queue:
                batch, queue = queue[: (size := rng.choice((1, 1, 2, 5)))], queue[size:]
                if rng.random() < 0.5:  # a statement a row
                    ids = [value(mine, ASSIGN, vector_text(row), collection) for _, row in batch]
                else:  # all in one statement
                    rows = mine.execute(
                        "SELECT clip_assign_cluster(v::vector, %s) FROM unnest(%s::text[]) v",
                        (collection, [vector_text(row) for _, row in batch]),
                    )
                    ids = [id for (id,) in rows]
                if rng.random() < 0.25:
                    mine.rollback()
                else:
                    mine.commit()
                    committed += [(subject, row, id) for (subject, row), id in zip(batch, ids)]
        return committed

    committed = sum(in_parallel([functools.partial(session, n) for n in range(SESSIONS)]), [])
    assert 0.5 < len(committed) / (SESSIONS * subjects * each) < 0.95  # both sorts of transaction took place
    found = clusters(db, collection)
    assert len(found) == subjects
    assert value(db, "SELECT clusters FROM clip_search.collection WHERE name = %s", collection) == subjects
    for subject in range(subjects):
        mine = [(row, id) for s, row, id in committed if s == subject]
        ids = {id for _, id in mine}
        assert len(ids) == 1, f"subject {subject} is in clusters {ids}"
        size, centroid, resultant = found[ids.pop()]
        assert size == len(mine)
        mean = np.mean([row.astype(np.float64) for row, _ in mine], axis=0)
        assert np.abs(centroid - unit(mean)).max() < 1e-5
        assert abs(resultant - np.linalg.norm(mean)) < 1e-5


def test_sessions_in_different_collections_do_not_wait_for_each_other(
    database: support.Database, collection: str
) -> None:
    """A long load into one collection must not stop the others."""
    row = vector_text(direction(1))
    with database.connect(autocommit=False) as one, database.connect() as other:
        value(one, ASSIGN, row, collection)
        other.execute("SET lock_timeout = '2s'")
        assert value(other, ASSIGN, row, collection + "-other")
        one.rollback()


# ---------------------------------------------------------------- ends of transactions


def test_a_killed_session_leaves_nothing(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """Its founding and its joining are both gone, and who waited for it goes on as if it had never been."""
    old, new = direction(2), direction(3)
    kept = value(db, ASSIGN, vector_text(old), collection)
    before = clusters(db, collection)
    doomed, other = database.connect(autocommit=False), database.connect()
    try:
        value(doomed, ASSIGN, vector_text(unit(old + 0.01 * new)), collection)
        lost = value(doomed, ASSIGN, vector_text(new), collection)
        call = Background(lambda: value(other, ASSIGN, vector_text(new), collection))
        waiting(db, other.info.backend_pid)
        assert value(db, "SELECT pg_terminate_backend(%s)", doomed.info.backend_pid)
        founded = call.result()
    finally:
        doomed.close()
        other.close()
    found = clusters(db, collection)
    assert founded != lost and set(found) == {kept, founded}
    assert found[kept][0] == 1 and np.array_equal(found[kept][1], before[kept][1])
    assert found[founded][0] == 1
    assert value(db, ASSIGN, vector_text(new), collection) == founded


def test_rollback_to_a_savepoint_leaves_nothing(db: psycopg.Connection, collection: str) -> None:
    """Neither the collection, nor a founding, nor a joining, nor a changed centroid."""
    old, new = direction(4), direction(5)
    with db.transaction():
        with db.transaction(force_rollback=True):
            value(db, ASSIGN, vector_text(new), collection)
    assert not clusters(db, collection)
    assert value(db, "SELECT count(*) FROM clip_search.collection WHERE name = %s", collection) == 0

    kept = value(db, ASSIGN, vector_text(old), collection)
    with db.transaction():
        assert value(db, ASSIGN, vector_text(old), collection) == kept
        outside = clusters(db, collection)
        with db.transaction(force_rollback=True):
            assert value(db, ASSIGN, vector_text(unit(old + 0.02 * new)), collection) == kept
            assert value(db, ASSIGN, vector_text(new), collection) != kept
            assert {size for size, _, _ in clusters(db, collection).values()} == {3, 1}
    found = clusters(db, collection)
    assert list(found) == [kept] and found[kept][0] == 2
    assert np.array_equal(found[kept][1], outside[kept][1]) and found[kept][2] == outside[kept][2]
    assert value(db, "SELECT clusters FROM clip_search.collection WHERE name = %s", collection) == 1


# ---------------------------------------------------------------- isolation levels

LEVELS = [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def strict(request, database: support.Database) -> Iterator[psycopg.Connection]:
    """A session of that isolation level."""
    with database.connect(autocommit=False) as connection:
        connection.execute("SELECT clip_version()")
        connection.commit()
        connection.isolation_level = request.param
        yield connection
        connection.rollback()


def take_snapshot(strict: psycopg.Connection) -> None:
    strict.execute("SELECT count(*) FROM clip_search.cluster")


@pytest.mark.parametrize("existing", [False, True], ids=["new-collection", "old-collection"])
def test_an_old_snapshot_fails_rather_than_founds_a_second_cluster(
    strict: psycopg.Connection, db: psycopg.Connection, collection: str, existing: bool
) -> None:
    """A session that can't see another's founding must be told to retry (40001), and the retry joins it."""
    subject = vector_text(direction(6))
    if existing:
        value(db, ASSIGN, vector_text(direction(7)), collection)
    take_snapshot(strict)
    founded = value(db, ASSIGN, subject, collection)
    state, text = sqlstate(strict, ASSIGN, subject, collection)
    assert state == SERIALIZATION_FAILURE, text
    strict.rollback()
    assert value(strict, ASSIGN, subject, collection) == founded
    strict.commit()
    assert clusters(db, collection)[founded][0] == 2
    assert len(clusters(db, collection)) == 1 + existing


def test_an_old_snapshot_does_not_undo_anothers_joining(
    strict: psycopg.Connection, db: psycopg.Connection, collection: str
) -> None:
    """The centroid that it would write was computed without the other's member."""
    subject, other = direction(8), direction(9)
    kept = value(db, ASSIGN, vector_text(subject), collection)
    take_snapshot(strict)
    assert value(db, ASSIGN, vector_text(unit(subject + 0.1 * other)), collection) == kept
    state, text = sqlstate(strict, ASSIGN, vector_text(subject), collection)
    assert state == SERIALIZATION_FAILURE, text
    strict.rollback()
    assert value(strict, ASSIGN, vector_text(subject), collection) == kept
    strict.commit()
    size, centroid, _ = clusters(db, collection)[kept]
    assert size == 3
    mean = unit(2 * subject + unit(subject + 0.1 * other))
    assert np.abs(centroid - mean).max() < 1e-5


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls-back"])
def test_waiting_for_another_ends_as_that_one_does(
    strict: psycopg.Connection,
    database: support.Database,
    db: psycopg.Connection,
    collection: str,
    commits: bool,
) -> None:
    """It waits for a founding that is under way: 40001 if that commits, its own cluster if not."""
    value(db, ASSIGN, vector_text(direction(10)), collection)
    subject = vector_text(direction(11))
    with database.connect(autocommit=False) as first:
        theirs = value(first, ASSIGN, subject, collection)
        take_snapshot(strict)
        call = Background(lambda: value(strict, ASSIGN, subject, collection))
        waiting(db, strict.info.backend_pid)
        first.commit() if commits else first.rollback()
        if commits:
            with pytest.raises(psycopg.Error) as caught:
                call.result()
            assert caught.value.sqlstate == SERIALIZATION_FAILURE
        else:
            assert call.result() != theirs
            strict.commit()
    assert sorted(size for size, _, _ in clusters(db, collection).values()) == [1, 1]


def test_read_committed_joins_what_it_waited_for(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """In the usual isolation level nobody has to retry, even inside a transaction that began before."""
    subject = vector_text(direction(12))
    with database.connect(autocommit=False) as first, database.connect(autocommit=False) as second:
        take_snapshot(second)
        theirs = value(first, ASSIGN, subject, collection)
        call = Background(lambda: value(second, ASSIGN, subject, collection))
        waiting(db, second.info.backend_pid)
        first.commit()
        assert call.result() == theirs
        second.commit()
    assert [size for size, _, _ in clusters(db, collection).values()] == [2]
