"""Grouping a whole collection again, through SQL.

crates/clip/tests/agglomerative.rs proves on many data sets that the partition equals scikit-learn's; these tests
check what reaches the members' table, what other sessions see meanwhile, and what is reported.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from support import raised_error, value, vector, vector_text

DIMENSIONS = 64


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection
        connection.execute('DROP TABLE IF EXISTS member; DROP SCHEMA IF EXISTS "Odd schema" CASCADE')
        connection.execute("SELECT clip_drop_collection(name) FROM clip_search.collection")


def blobs(groups: int, each: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random directions (cosine about 0.93 to them), shuffled, with the number of each vector's
    group."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((groups, DIMENSIONS)), each, axis=0)
    rows = centres + 0.4 * rng.standard_normal(centres.shape)
    order = rng.permutation(len(rows))
    rows = rows[order] / np.linalg.norm(rows[order], axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(groups), each)[order]


def fill(db: psycopg.Connection, rows: np.ndarray, assign: bool, threshold: float = 0.7) -> None:
    db.execute("""
        CREATE TABLE member (id int PRIMARY KEY, embedding vector(64), cluster_id bigint);
        SET client_min_messages = warning""")
    db.execute("SELECT clip_create_collection('c', %s, members => 'member')", (threshold,))
    with db.cursor().copy("COPY member (id, embedding) FROM STDIN") as copy:
        for id, row in enumerate(rows):
            copy.write_row((id, vector_text(row)))
    if assign:
        db.execute("UPDATE member SET cluster_id = clip_assign_cluster(embedding, 'c')")


def partition(db: psycopg.Connection, table: str = "member") -> dict[int, int]:
    return dict(db.execute(f"SELECT id, cluster_id FROM {table}").fetchall())


def same(a: dict[int, int], b) -> bool:
    """Whether two groupings are equal apart from the groups' ids."""
    pairs = {(a[id], b[id]) for id in a}
    return len(pairs) == len(set(a.values())) == len({b[id] for id in a})


def check_sums(db: psycopg.Connection) -> None:
    """Checks that the clusters are the sums of their members."""
    members = collections.defaultdict(list)
    for id, embedding in db.execute("SELECT cluster_id, embedding::text FROM member"):
        members[id].append(vector(embedding).astype(np.float64))
    found = db.execute("SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = 'c'").fetchall()
    assert {id for id, _, _ in found} == set(members)
    for id, size, centroid in found:
        mean = np.mean(members[id], axis=0)
        assert size == len(members[id])
        assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-5


def test_groups_and_ids_that_did_not_change_stay(db: psycopg.Connection) -> None:
    """A merged, a split and a moved group get the id that most of their members had; the others keep their ids and
    rows."""
    rows, truth = blobs(30, 8)
    fill(db, rows, assign=True)
    before = partition(db)
    assert same(before, truth)
    assert db.execute("SELECT * FROM clip_recluster('c')").fetchall() == []
    assert partition(db) == before

    groups = collections.defaultdict(list)
    for id, group in enumerate(truth):
        groups[group].append(id)
    wrong = {}
    for id in groups[0][:3]:  # group 0 in two clusters: they merge
        wrong[id] = 10**6
    for id in groups[2]:  # groups 1 and 2 in one: it splits
        wrong[id] = before[groups[1][0]]
    wrong[groups[3][0]] = before[groups[4][0]]  # one member is in the wrong group: it moves
    db.execute("SELECT setval('clip_search.cluster_id_seq', 999999)")
    stray = vector_text(rows[groups[0][0]])
    with db.transaction():
        for id, cluster in wrong.items():
            db.execute("UPDATE member SET cluster_id = %s WHERE id = %s", (cluster, id))
        db.execute(
            "INSERT INTO clip_search.cluster_sum (collection, cluster, size, sum) VALUES ('c', 1000000, 3, %s)",
            (stray,),
        )
    untouched = db.execute(
        "SELECT ctid, * FROM member WHERE id = ANY(%s)", ([id for g in range(5, 30) for id in groups[g]],)
    )
    untouched = set(untouched.fetchall())

    report = {
        change: (cluster, sources, size, moved)
        for cluster, change, sources, size, moved in db.execute("SELECT * FROM clip_recluster('c')")
        if change in ("merged", "moved") or cluster == before[groups[1][0]]
    }
    after = partition(db)
    assert same(after, truth)
    assert report["merged"] == (before[groups[0][0]], [before[groups[0][0]], 10**6], 8, 3)
    assert report["split"] == (before[groups[1][0]], [before[groups[1][0]]], 8, 0)
    assert report["moved"][0] == before[groups[3][0]] and report["moved"][3] == 1
    assert all(after[id] == before[id] for group in (0, 1, 3, 4, *range(5, 30)) for id in groups[group])
    assert untouched == set(
        db.execute("SELECT ctid, * FROM member WHERE id = ANY(%s)", ([id for g in range(5, 30) for id in groups[g]],))
    )
    check_sums(db)
    # Assignment finds the new groups by their new codes.
    for group in groups.values():
        assert (
            value(db, "SELECT clip_assign_cluster(embedding, 'c') FROM member WHERE id = %s", group[0])
            == after[group[0]]
        )


def test_a_partitioned_table_with_odd_names(db: psycopg.Connection) -> None:
    rows, truth = blobs(6, 5, seed=3)
    db.execute("""
        CREATE SCHEMA "Odd schema";
        CREATE TABLE "Odd schema"."the ""odd"" ones" ("Key" int, "vec tor" vector(64), "Group" bigint, PRIMARY KEY ("Key"))
            PARTITION BY HASH ("Key");
        CREATE TABLE "Odd schema".p0 PARTITION OF "Odd schema"."the ""odd"" ones" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE "Odd schema".p1 PARTITION OF "Odd schema"."the ""odd"" ones" FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        SET client_min_messages = warning;
        SELECT clip_create_collection('o''dd', 0.7, members => '"Odd schema"."the ""odd"" ones"', embedding => 'vec tor', cluster => 'Group')
        """)
    for id, row in enumerate(rows):
        db.execute('INSERT INTO "Odd schema"."the ""odd"" ones" VALUES (%s, %s)', (id, vector_text(row)))
    changes = db.execute("SELECT change FROM clip_recluster('o''dd')").fetchall()
    assert changes == [("new",)] * 6
    found = dict(db.execute('SELECT "Key", "Group" FROM "Odd schema"."the ""odd"" ones"').fetchall())
    assert same(found, truth)
    assert value(db, "SELECT count(*) FROM clip_clusters('o''dd')") == 6
    assert value(db, "SELECT count(*) FROM clip_duplicates('o''dd', 0.5)") > 0


def test_readers_see_the_old_or_the_new_and_writers_meanwhile_are_seen_to(
    database: support.Database, db: psycopg.Connection
) -> None:
    """Rows that arrive during the computation are grouped too; an open transaction is waited for, but not blocked."""
    rows, truth = blobs(40, 25, seed=5)
    fill(db, rows[:-100], assign=False)
    open_since = database.connect(autocommit=False)
    insert = "INSERT INTO member VALUES (%s, %s::vector, clip_assign_cluster(%s::vector, 'c'))"
    late = vector_text(rows[-1])
    open_since.execute(insert, (len(rows) - 1, late, late))
    seen: list[set] = []
    finished = threading.Event()

    def regroup() -> None:
        with database.connect() as mine:
            mine.execute("SET client_min_messages = warning")
            mine.execute("SELECT count(*) FROM clip_recluster('c')")
        finished.set()

    thread = threading.Thread(target=regroup, daemon=True)
    thread.start()
    writer = database.connect()
    writer.execute("SET lock_timeout = '60s'")
    for n in range(len(rows) - 100, len(rows) - 1):
        row = vector_text(rows[n])
        writer.execute(insert, (n, row, row))
        seen.append({id is None for (id,) in db.execute("SELECT cluster_id FROM member WHERE id < 900")})
    assert not finished.is_set()
    open_since.commit()
    thread.join(120)
    assert finished.is_set()
    seen.append({id is None for (id,) in db.execute("SELECT cluster_id FROM member WHERE id < 900")})
    assert all(len(nulls) == 1 for nulls in seen) and seen[0] == {True} and seen[-1] == {False}
    assert same(partition(db), truth)
    check_sums(db)
    writer.close()
    open_since.close()


def test_a_rollback_or_a_cancel_leaves_all_as_it_was(database: support.Database, db: psycopg.Connection) -> None:
    rows, _ = blobs(10, 6, seed=7)
    fill(db, rows, assign=True)
    before, sums = partition(db), db.execute("SELECT * FROM clip_search.cluster ORDER BY id").fetchall()
    db.execute("UPDATE member SET cluster_id = (SELECT cluster_id FROM member WHERE id = 0) WHERE id < 30")
    wrong = partition(db)
    with db.transaction(force_rollback=True):
        db.execute("SELECT * FROM clip_recluster('c')")
        assert partition(db) != wrong
    assert partition(db) == wrong
    assert db.execute("SELECT * FROM clip_search.cluster ORDER BY id").fetchall() == sums
    assert partition(db) != before

    # Comparing all pairs of these rows takes tens of seconds.
    db.execute("""
        INSERT INTO member SELECT 1000 + n, (SELECT array_agg(random()) FROM generate_series(1, 64) WHERE n IS NOT NULL)::vector(64)
        FROM generate_series(1, 60000) n""")
    pid = db.info.backend_pid
    computed: list[float] = []

    def cancel() -> None:
        with database.connect() as other:
            support.until(lambda: support.is_running(other, pid), "the call's beginning")
            # Reading them takes a second; a cancel during the reading or the comparison leaves nothing behind.
            time.sleep(1.5)
            computed.append(support.cpu_seconds(pid))
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))

    thread = threading.Thread(target=cancel)
    thread.start()
    state, _ = raised_error(db, "SELECT * FROM clip_recluster('c')")
    computed.append(support.cpu_seconds(pid))
    thread.join()
    assert state == "57014"
    # Each thread notices the cancel after at most half a second.
    assert computed[1] - computed[0] < 3, "the call went on"
    assert value(db, "SELECT clip_assign_cluster(embedding, 'c') FROM member WHERE id = 59") is not None


def test_rights_are_the_collection_s_and_the_table_owner_s(
    database: support.Database, db: psycopg.Connection, plain_role: str
) -> None:
    """A role with the grant regroups as the owner of the members' table; rows that a policy hides are an error, not
    deleted rows."""
    rows, _ = blobs(3, 4, seed=9)
    fill(db, rows, assign=True)
    with database.connect(user=plain_role) as mine:
        assert raised_error(mine, "SELECT * FROM clip_recluster('c')")[0] == "42501"
        assert raised_error(mine, "SELECT * FROM clip_duplicates('c')")[0] == "42501"
        # Rights to the table give no right to the collection.
        db.execute(f"GRANT SELECT, UPDATE ON member TO {plain_role}")
        assert raised_error(mine, "SELECT * FROM clip_recluster('c')")[0] == "42501"
        db.execute(
            f"REVOKE ALL ON member FROM {plain_role}; SELECT clip_grant_collection('c', '{plain_role}', 'recluster')"
        )
        mine.execute("SET client_min_messages = warning")
        db.execute("UPDATE member SET cluster_id = NULL WHERE id = 0")
        assert mine.execute("SELECT * FROM clip_recluster('c')").fetchall() != []
        assert value(db, "SELECT count(cluster_id) FROM member") == len(rows)
        assert value(mine, "SELECT current_user") == plain_role
        # The owner sees every row whatever the policies say, unless row-level security is forced. (It never is on a
        # superuser.)
        db.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {plain_role}; ALTER TABLE member OWNER TO {plain_role}")
        db.execute("SELECT clip_alter_collection('c', owner => %s)", (plain_role,))
        db.execute("ALTER TABLE member ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON member USING (id < 5)")
        assert mine.execute("SELECT * FROM clip_recluster('c')").fetchall() == []
        db.execute("ALTER TABLE member FORCE ROW LEVEL SECURITY")
        state, text = raised_error(mine, "SELECT * FROM clip_recluster('c')")
        assert state == "42501" and "row-level security" in text
        assert value(mine, "SHOW row_security") == "on"
        db.execute("ALTER TABLE member OWNER TO CURRENT_USER")
    check_sums(db)


def test_a_writer_that_truncates_is_no_deadlock(database: support.Database, db: psycopg.Connection) -> None:
    """The writer's lock keeps clip_recluster from its own, and its TRUNCATE waits for what clip_recluster has read."""
    db.execute("CREATE TABLE member (id int PRIMARY KEY, embedding vector(3), cluster_id bigint)")
    db.execute("INSERT INTO member SELECT n, ARRAY[1, n, 0]::vector FROM generate_series(1, 9) n")
    db.execute("SELECT clip_create_collection('member', members => 'member')")
    found: list[tuple[str | None, str]] = []
    with database.connect() as other, database.connect() as writer:
        other.execute("SET client_min_messages = warning")
        call = threading.Thread(
            target=lambda: found.append(raised_error(other, "SELECT count(*) FROM clip_recluster('member')"))
        )
        with writer.transaction():
            writer.execute("UPDATE member SET embedding = '[0,0,1]' WHERE id = 1")
            call.start()
            time.sleep(1)
            writer.execute("TRUNCATE member")
        call.join(30)
    assert found[0][0] == "55P03" and "waits for this transaction" in found[0][1], found
    assert value(db, "SELECT count(*) FROM member") == 0
    assert db.execute("SELECT * FROM clip_recluster('member')").fetchall() == []
