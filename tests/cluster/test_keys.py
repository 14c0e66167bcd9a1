"""Results name rows by clip_key, which compares with a table's key of any usual type, without a cast and by its index."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

import support
from support import value

# A key column's type, and the value that its row n has.
KINDS = {
    "smallint": "n::smallint",
    "integer": "n::integer",
    "bigint": "n * 5000000000",
    "numeric": "n + 0.25",
    "uuid": "md5(n::text)::uuid",
    "text": "'Ümläut ' || n",
    "varchar(20)": "n::varchar(20)",
    "char(5)": "n::char(5)",
}
DIRECTIONS = 40


@pytest.fixture(scope="module")
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    """One connection, which embeds the words of clip_find once."""
    with database.connect() as connection:
        yield connection


@pytest.fixture(scope="module", params=KINDS)
def keyed(request, db) -> Iterator[psycopg.Connection]:
    """800 rows in 40 directions: of each, all but one row are copies."""
    db.execute(f"CREATE TABLE member (id {request.param} PRIMARY KEY, n int, embedding vector(512), cluster_id bigint)")
    db.execute(
        f"""
        INSERT INTO member
        SELECT {KINDS[request.param]}, n,
               array(SELECT (i % {DIRECTIONS} = n % {DIRECTIONS})::int FROM generate_series(1, 512) AS i)::vector
        FROM generate_series(1, 800) AS n
        """
    )
    db.execute("UPDATE member SET cluster_id = clip_assign_cluster(embedding, 'member')")
    db.execute("SELECT clip_create_collection('member', members => 'member')")
    db.execute("ANALYZE member")
    yield db
    db.execute("SELECT clip_drop_collection('member')")
    db.execute("DROP TABLE member")


def test_representatives_join(keyed) -> None:
    joined = keyed.execute("SELECT n FROM clip_clusters('member') AS g JOIN member AS m ON m.id = g.representative")
    assert len({n % DIRECTIONS for (n,) in joined}) == DIRECTIONS
    joined = keyed.execute("SELECT n FROM clip_clusters('member') AS g JOIN member AS m ON g.representative = m.id")
    assert len(joined.fetchall()) == DIRECTIONS


def test_duplicates_are_deleted(keyed) -> None:
    with keyed.transaction(force_rollback=True):
        keyed.execute("DELETE FROM member WHERE id IN (SELECT duplicate FROM clip_duplicates('member'))")
        assert value(keyed, "SELECT count(DISTINCT n % 40) FROM member") == DIRECTIONS
        assert value(keyed, "SELECT count(*) FROM member") == DIRECTIONS
    with keyed.transaction(force_rollback=True):
        keyed.execute("DELETE FROM member AS m USING clip_duplicates('member') AS d WHERE m.id = d.duplicate")
        assert value(keyed, "SELECT count(*) FROM member") == DIRECTIONS


def test_matches_join(keyed) -> None:
    call = "clip_find('member', 'a cat', cut => 0, k => 7)"
    rows = keyed.execute(f"SELECT f.id, m.id::text FROM {call} AS f JOIN member AS m ON m.id = f.id").fetchall()
    assert len(rows) == 7 and all(key == text for key, text in rows)
    # The next page begins after a key as it was returned.
    query = f"SELECT f.id, next.id FROM {call} AS f, clip_find('member', 'a cat', 1, 0, f.relevance, f.id) AS next"
    assert len(keyed.execute(query).fetchall()) == 7


def test_a_key_is_looked_up_in_the_index(keyed) -> None:
    with keyed.transaction(force_rollback=True):
        keyed.execute("SET LOCAL enable_hashjoin = off")
        keyed.execute("SET LOCAL enable_mergejoin = off")
        query = "SELECT m.n FROM clip_clusters('member') AS g JOIN member AS m ON m.id = g.representative"
        plan = "\n".join(line for (line,) in keyed.execute(f"EXPLAIN {query}"))
    # char(n) compares as text, and its index does not.
    kind = value(keyed, "SELECT pg_typeof(id)::text FROM member LIMIT 1")
    assert ("member_pkey" in plan) == (kind != "character"), plan


def test_a_key_is_a_text(keyed) -> None:
    """It groups, sorts, and goes into functions of texts, as it did when the column was a text."""
    row = keyed.execute(
        """
        SELECT count(DISTINCT representative), max(representative) = max(representative::text),
               string_agg(representative, ',' ORDER BY representative) = string_agg(representative::text, ',' ORDER BY representative::text),
               bool_and(representative = representative::text), bool_or(representative LIKE '%1%'), bool_and(length(representative) > 0),
               (array_agg(to_jsonb(representative)))[1] IS NOT NULL
        FROM clip_clusters('member')
        """
    ).fetchone()
    assert row == (DIRECTIONS, True, True, True, True, True, True)


@pytest.mark.parametrize("kind", ["integer", "numeric"])
def test_keys_are_chosen_in_their_own_order(db, kind: str) -> None:
    """Of equal members, 2 comes before 10."""
    with db.transaction(force_rollback=True):
        db.execute(f"CREATE TABLE tie (id {kind} PRIMARY KEY, data bytea, embedding vector(3), cluster_id bigint)")
        db.execute("INSERT INTO tie (id, embedding) SELECT i, '[1,2,3]' FROM unnest(ARRAY[10, 9, 100, 2]) AS i")
        db.execute("UPDATE tie SET cluster_id = clip_assign_cluster(embedding, 'tie')")
        db.execute("SELECT clip_create_collection('tie', members => 'tie')")
        assert value(db, "SELECT representative FROM clip_clusters('tie')") == "2"
        group = value(db, "SELECT clip_cluster_groups('tie') -> 0")
        assert group["representative"] == "2"
        assert [asset["id"] for asset in group["assets"]] == ["2", "9", "10", "100"]
        pairs = db.execute("SELECT original, duplicate FROM clip_duplicates('tie')").fetchall()
        assert pairs == [("2", "9"), ("2", "10"), ("2", "100")]
