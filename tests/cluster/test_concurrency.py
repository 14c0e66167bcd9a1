"""Grouping with many sessions at once, and the guarantees of transactions for it.

Two sessions that insert the same photo at the same time must end in one cluster (concurrent grouping made one
maintainer switch concurrency off, immich PR#8228), and a rollback must leave no trace.
"""

from __future__ import annotations

import collections
import functools
import os
import random
import threading
import time

import numpy as np
import psycopg
import pytest
from grouping import (
    ASSIGN,
    DIMENSIONS,
    LEAVE,
    SESSIONS,
    Member,
    check_clusters,
    clusters,
    direction,
    storm,
    unit,
    variants,
)

import support
from support import in_parallel, raised_error, value, vector_text

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


# ---------------------------------------------------------------- many sessions at once


def test_one_photo_inserted_by_all_is_one_cluster(database: support.Database, db: psycopg.Connection) -> None:
    """The plain case, through the trigger of examples/gallery: embed, then group, in every session.

    Each session holds its transaction open for 30 ms: embedding takes turns on few cores, and sessions that never
    overlap would find each other's cluster without any special care.
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
    rows = db.execute("SELECT round, count(*), count(DISTINCT cluster_id), min(cluster_id) FROM photo GROUP BY round")
    found = {round: (inserted, distinct, id) for round, inserted, distinct, id in rows}
    assert {round: counts[:2] for round, counts in found.items()} == dict.fromkeys(range(3), (SESSIONS, 1))
    sizes = {id: size for id, (size, _, _) in clusters(db, "photo").items()}
    assert sizes == {id: SESSIONS for _, _, id in found.values()}


@pytest.mark.parametrize(
    ("subjects", "each", "leave", "kill"),
    [(200, 20, False, True), (12, 100, True, True), (500, 2, True, False)],
    ids=["many-subjects", "hot-clusters", "mostly-founding"],
)
def test_a_storm_of_sessions_keeps_one_exact_cluster_a_subject(
    database: support.Database,
    db: psycopg.Connection,
    collection: str,
    subjects: int,
    each: int,
    leave: bool,
    kill: bool,
) -> None:
    """Random order, transactions of one to twenty rows, a quarter rolled back, killed backends: no deadlock, no
    duplicate.

    `make soak` runs it longer, with other seeds.
    """
    seeds = int(os.environ.get("SOAK") or "1")
    for seed in range(1, seeds + 1):
        committed, killed = storm(database, f"{collection}-{seed}", subjects, each, seed, leave, kill)
        assert len(committed) == subjects * each or leave
        assert killed > 0 or not kill
        check_clusters(db, f"{collection}-{seed}", committed)


def test_a_sequential_run_gives_the_same_groups(db: psycopg.Connection, collection: str) -> None:
    """The reference for the storms: subjects this far apart get separate groups when they are assigned one by one."""
    members = [
        Member(s, row, value(db, ASSIGN, vector_text(row), collection))
        for s in range(40)
        for row in variants(1000 + s, 5, seed=100 + s)
    ]
    check_clusters(db, collection, members)


def test_an_open_transaction_blocks_nobody(database: support.Database, db: psycopg.Connection, collection: str) -> None:
    """Other sessions create and join the same clusters meanwhile, and wait neither for its new cluster nor for its
    joining one."""
    old, new = direction(20), direction(21)
    kept = value(db, ASSIGN, vector_text(old), collection)
    with database.connect(autocommit=False) as idle:
        theirs = value(idle, ASSIGN, vector_text(new), collection)
        for _ in range(40):  # sums up what it can, and keeps those rows locked
            assert value(idle, ASSIGN, vector_text(old), collection) == kept
        db.execute("SET lock_timeout = '60s'")
        for n in range(60):
            assert value(db, ASSIGN, vector_text(unit(old + 0.01 * direction(30 + n))), collection) == kept
            assert value(db, ASSIGN, vector_text(unit(new + 0.01 * direction(30 + n))), collection) == theirs
        assert sum(size for size, _, _ in clusters(db, collection).values()) == 121
        idle.rollback()
    assert {id: size for id, (size, _, _) in clusters(db, collection).items()} == {kept: 61, theirs: 60}
    # The next transaction sums up the rows that it had locked.
    for _ in range(40):
        value(db, ASSIGN, vector_text(old), collection)
    assert value(db, "SELECT count(*) FROM clip_search.cluster_change WHERE cluster = %s", kept) <= 16


def test_a_prepared_transaction_is_one_under_way(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """Other sessions join its new cluster before it is committed or rolled back, and both outcomes are right."""
    if value(db, "SHOW max_prepared_transactions") == "0":
        pytest.fail("the cluster of `make test-cluster` sets max_prepared_transactions")
    for subject, ends in ((22, "COMMIT"), (23, "ROLLBACK")):
        row = vector_text(direction(subject))
        with database.connect(autocommit=False) as other:
            theirs = value(other, ASSIGN, row, collection)
            other.execute(f"PREPARE TRANSACTION '{collection}-{ends}'")
        assert value(db, ASSIGN, row, collection) == theirs
        db.execute(f"{ends} PREPARED '{collection}-{ends}'")
        assert clusters(db, collection)[theirs][0] == (2 if ends == "COMMIT" else 1)
        assert value(db, ASSIGN, row, collection) == theirs


def test_where_nothing_may_be_written_it_says_so(db: psycopg.Connection, collection: str) -> None:
    """A read-only transaction raises 25006, and a parallel worker never runs the call."""
    with db.transaction():
        db.execute("SET TRANSACTION READ ONLY")
        with db.transaction():
            state, text = "", ""
            try:
                with db.transaction():
                    db.execute(ASSIGN, (vector_text(direction(24)), collection))
            except psycopg.Error as error:
                state, text = error.sqlstate, str(error)
            assert state == "25006" and "clip_assign_cluster" in text
    assert not clusters(db, collection)
    assert value(db, "SELECT proparallel FROM pg_proc WHERE proname = 'clip_assign_cluster' LIMIT 1") == "u"


def test_members_leave_and_the_last_takes_the_cluster_along(db: psycopg.Connection, collection: str) -> None:
    rows = variants(25, 50, seed=25)
    ids = {value(db, ASSIGN, vector_text(row), collection) for row in rows}
    assert len(ids) == 1
    (id,) = ids
    for gone, row in enumerate(rows[:-1], start=1):
        value(db, LEAVE, id, vector_text(row))
        size, centroid, _ = clusters(db, collection)[id]
        assert size == 50 - gone
        assert np.abs(centroid - unit(np.mean(rows[gone:].astype(np.float64), axis=0))).max() < 1e-5
    state, text = raised_error(db, LEAVE, id, vector_text(direction(26)))
    assert state == "22023" and f"not a member of cluster {id}" in text
    value(db, LEAVE, id, vector_text(rows[-1]))
    assert not clusters(db, collection)
    for table in ("cluster_sum", "cluster_change"):
        assert value(db, f"SELECT count(*) FROM clip_search.{table} WHERE collection = %s", collection) == 0
    assert value(db, LEAVE, id, vector_text(rows[-1])) is False
    assert value(db, ASSIGN, vector_text(rows[0]), collection) != id


def test_a_cluster_is_found_where_it_is_after_its_first_member_left(db: psycopg.Connection, collection: str) -> None:
    """Three vectors at steps of 31 degrees: the third is near only the second, whose cluster began with the first."""
    start, other = direction(27), direction(28)
    other = unit(other - (other @ start) * start)
    steps = [np.cos(angle) * start + np.sin(angle) * other for angle in np.radians([0, 31, 62])]
    first, second, third = (vector_text(step) for step in steps)
    id = value(db, ASSIGN, first, collection)
    assert value(db, ASSIGN, second, collection) == id
    value(db, LEAVE, id, first)
    assert np.abs(clusters(db, collection)[id][1] - steps[1]).max() < 1e-5
    assert value(db, ASSIGN, third, collection) == id


def test_a_last_member_that_leaves_and_one_that_comes_at_once(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """Whichever transaction commits or rolls back, the new member is in a cluster that is found again."""
    for subject, (leaves, comes) in enumerate([(True, True), (True, False), (False, True), (False, False)]):
        row = vector_text(direction(40 + subject))
        id = value(db, ASSIGN, row, collection)
        with database.connect(autocommit=False) as one, database.connect(autocommit=False) as other:
            value(one, LEAVE, id, row)
            joined = value(other, ASSIGN, row, collection)
            one.commit() if leaves else one.rollback()
            other.commit() if comes else other.rollback()
        left = (not leaves) + comes
        found = clusters(db, collection)
        assert (found[joined][0] if joined in found else 0) + (
            found[id][0] if id in found and id != joined else 0
        ) == left
        if left:
            assert value(db, ASSIGN, row, collection) in (id, joined)


def test_a_last_member_leaves_while_another_session_has_the_rows(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """A cluster that can't be deleted whole stays whole: if its sum lacked the leaving, it would count a member that
    doesn't exist."""
    row = vector_text(direction(70))
    id = value(db, ASSIGN, row, collection)
    with database.connect(autocommit=False) as other:
        locked = other.execute("SELECT FROM clip_search.cluster_sum WHERE cluster = %s FOR UPDATE", (id,))
        assert len(locked.fetchall()) == 1
        assert value(db, LEAVE, id, row)
        other.rollback()
    assert clusters(db, collection) == {}
    assert value(db, ASSIGN, row, collection) is not None
    assert [size for size, _, _ in clusters(db, collection).values()] == [1]


def test_a_group_that_comes_and_goes_is_read_whole(database: support.Database, collection: str) -> None:
    """Fifteen of its seventeen members leave at once, again and again, while others join it, leave it, and merge its
    rows.

    A group is stored in two tables, and a merge moves rows from one to the other. Read at two moments, a leaving was
    counted twice: a member was no longer found (22023), the rest cancelled out, or a second group was created.
    """
    rng = np.random.default_rng(7)
    center = direction(60)

    def members(count: int, rng: np.random.Generator) -> list[str]:
        return [
            vector_text(unit(center + 0.4 / DIMENSIONS**0.5 * rng.standard_normal(DIMENSIONS))) for _ in range(count)
        ]

    end = time.monotonic() + 8
    with database.connect() as db:
        ids = {value(db, ASSIGN, row, collection) for row in members(2, rng)}
    (id,) = ids

    def tide() -> int:
        rng, rounds = np.random.default_rng(8), 0
        with database.connect(autocommit=False) as mine:
            while time.monotonic() < end or rounds < 5:
                for rows in (members(15, rng), members(1, rng)):
                    for row in rows:
                        assert value(mine, ASSIGN, row, collection) == id
                    mine.commit()
                    for row in rows:
                        assert value(mine, LEAVE, id, row)
                    mine.commit()
                rounds += 1
        return rounds

    def passer_by(seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = members(30, rng)
        with database.connect(autocommit=False) as mine:
            while time.monotonic() < end:
                for row in rows:
                    assert value(mine, ASSIGN, row, collection) == id
                    if rng.random() < 0.7:
                        assert value(mine, LEAVE, id, row)
                        mine.commit()
                    else:
                        mine.rollback()

    in_parallel([tide, *(functools.partial(passer_by, seed) for seed in range(4))], 200)
    with database.connect() as db:
        assert {id: size for id, (size, _, _) in clusters(db, collection).items()} == {id: 2}


def test_a_threshold_of_one_joins_what_rounding_has_moved(db: psycopg.Connection, collection: str) -> None:
    """Scaled to length 1, the same direction at another length has a cosine of 1 - 1.3e-15."""
    db.execute("SELECT clip_create_collection(%s, threshold => 1)", (collection,))
    id = value(db, ASSIGN, "[0.3,0.5,0.7]", collection)
    assert value(db, ASSIGN, "[2.1,3.5,4.9]", collection) == id
    # A cosine of 1 - 2e-9: not equal.
    assert value(db, ASSIGN, "[0.3,0.5,0.7001]", collection) != id


def test_what_others_are_adding_counts(database: support.Database, db: psycopg.Connection, collection: str) -> None:
    """A vector at 40 degrees to the only committed member, and at 25 to the mean of that member and one that another
    session is just adding. If that session rolls back, its member no longer counts."""
    first, across = direction(61), direction(62)
    across = unit(across - (across @ first) * first)

    def at(degrees: float) -> str:
        return vector_text(np.cos(np.radians(degrees)) * first + np.sin(np.radians(degrees)) * across)

    id = value(db, ASSIGN, at(0), collection)
    with database.connect(autocommit=False) as other, database.connect(autocommit=False) as mine:
        assert value(other, ASSIGN, at(30), collection) == id
        assert value(mine, ASSIGN, at(40), collection) == id
        mine.rollback()
        assert value(other, LEAVE, id, at(30))
        assert value(mine, ASSIGN, at(40), collection) != id
        mine.rollback()
        other.rollback()
        assert value(mine, ASSIGN, at(40), collection) != id
        mine.rollback()


def test_sessions_in_different_collections_do_not_wait_for_each_other(
    database: support.Database, collection: str
) -> None:
    """A long load into one collection must not block the others."""
    row = vector_text(direction(1))
    with database.connect(autocommit=False) as one, database.connect() as other:
        value(one, ASSIGN, row, collection)
        other.execute("SET lock_timeout = '60s'")
        assert value(other, ASSIGN, row, collection + "-other")
        one.rollback()


def test_codes_of_clusters_that_are_gone_go_too(
    database: support.Database, db: psycopg.Connection, collection: str
) -> None:
    """Eight sessions create clusters that are all emptied again, while they keep joining the clusters that stay.

    Codes are stored in blocks as clusters are created, and a block is dissolved when most of it is unused: the
    clusters that stay must be found all the time, and the data that searches read must not grow with the number of
    past clusters.
    """
    staying, rounds, each = 20, 4, 150
    sessions = 8
    expected = collections.Counter()
    lock = threading.Lock()

    def session(number: int) -> None:
        rng = random.Random(number)
        with database.connect(autocommit=False) as mine:
            for round in range(rounds):
                left = []
                for n in range(each):
                    seed = 1_000_000 + (number * rounds + round) * each + n
                    own = vector_text(direction(seed))
                    left.append((value(mine, ASSIGN, own, collection), own))
                    if n % 10 == 0:
                        subject = rng.randrange(staying)
                        (row,) = variants(subject, 1, seed)
                        value(mine, ASSIGN, vector_text(row), collection)
                        with lock:
                            expected[subject] += 1
                    if rng.random() < 0.3:
                        mine.commit()
                mine.commit()
                for id, own in left:
                    assert value(mine, LEAVE, id, own) is True
                mine.commit()

    in_parallel([functools.partial(session, n) for n in range(sessions)], 300)
    found = clusters(db, collection)
    assert sorted(size for size, _, _ in found.values()) == sorted(expected.values()), "one cluster a subject"
    # Once more, in a single session: enough new clusters to check every block.
    with db.transaction():
        for n in range(1500):
            value(db, ASSIGN, vector_text(direction(9_000_000 + n)), collection)
    kept = value(db, "SELECT sum(length(entries) / 36) FROM clip_search.cluster_code WHERE collection = %s", collection)
    assert kept < 2 * (staying + 1500), f"{kept} codes are kept, of {rounds * sessions * each} that were made"
    for subject in range(staying):
        (row,) = variants(subject, 1, 77_000 + subject)
        assert value(db, ASSIGN, vector_text(row), collection) in found


# ---------------------------------------------------------------- ends of transactions


def test_a_killed_session_leaves_nothing(database: support.Database, db: psycopg.Connection, collection: str) -> None:
    """The cluster it created and its membership are both gone; a session that joined that cluster keeps it."""
    old, new, lonely = direction(2), direction(3), direction(13)
    kept = value(db, ASSIGN, vector_text(old), collection)
    before = clusters(db, collection)
    doomed, other = database.connect(autocommit=False), database.connect()
    try:
        value(doomed, ASSIGN, vector_text(unit(old + 0.01 * new)), collection)
        shared = value(doomed, ASSIGN, vector_text(new), collection)
        lost = value(doomed, ASSIGN, vector_text(lonely), collection)
        near = unit(new + 0.1 * old).astype(np.float32)
        assert value(other, ASSIGN, vector_text(near), collection) == shared
        assert value(db, "SELECT pg_terminate_backend(%s, 5000)", doomed.info.backend_pid)
    finally:
        doomed.close()
        other.close()
    found = clusters(db, collection)
    assert set(found) == {kept, shared}
    assert found[kept][0] == 1 and np.array_equal(found[kept][1], before[kept][1])
    assert found[shared][0] == 1 and np.abs(found[shared][1] - near).max() < 1e-6
    assert value(db, ASSIGN, vector_text(new), collection) == shared
    assert value(db, ASSIGN, vector_text(lonely), collection) != lost


def test_rollback_to_a_savepoint_leaves_nothing(db: psycopg.Connection, collection: str) -> None:
    """The rollback leaves no collection, no new cluster, no membership and no changed centroid."""
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


def test_parallel_workers_embed_arrays(database: support.Database) -> None:
    """A worker can't assign a transaction id, which looking up pgvector's type once required."""
    with database.connect() as db:
        rows = "SELECT ARRAY['thing number ' || i] AS words FROM generate_series(1, 2000) AS i"
        db.execute(f"CREATE TABLE words AS {rows}")
        for name in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
            db.execute(f"SET {name} = 0")
        db.execute("SET parallel_leader_participation = off")
        query = "SELECT cardinality(clip_embed_texts(words)) FROM words LIMIT 5"
        plan = str(db.execute(f"EXPLAIN (VERBOSE) {query}").fetchall())
        assert "clip_embed_texts" in plan.partition("Parallel Seq Scan")[2], plan
        assert db.execute(query).fetchall() == [(1,)] * 5
