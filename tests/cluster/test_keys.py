"""Results identify rows by clip_key, which compares with a table's key of any usual type, without a cast and using
its index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from support import raised_error, value, vector_text

# A key column's type, and the key of its row n.
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
    """One connection, so that the words of clip_find are embedded once."""
    with database.connect() as connection:
        yield connection


@pytest.fixture(scope="module", params=KINDS)
def keyed(request, db) -> Iterator[psycopg.Connection]:
    """800 rows in 40 directions: in each direction, all rows but one are copies."""
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
    # The next page begins after a key, passed as it was returned.
    query = f"SELECT f.id, next.id FROM {call} AS f, clip_find('member', 'a cat', 1, 0, f.relevance, f.id) AS next"
    assert len(keyed.execute(query).fetchall()) == 7


def test_a_key_is_looked_up_in_the_index(keyed) -> None:
    with keyed.transaction(force_rollback=True):
        keyed.execute("SET LOCAL enable_hashjoin = off")
        keyed.execute("SET LOCAL enable_mergejoin = off")
        query = "SELECT m.n FROM clip_clusters('member') AS g JOIN member AS m ON m.id = g.representative"
        plan = "\n".join(line for (line,) in keyed.execute(f"EXPLAIN {query}"))
    assert "member_pkey" in plan, plan


def test_a_key_is_a_text(keyed) -> None:
    """It groups, sorts, and can be passed to functions of texts, as when the column was a text."""
    row = keyed.execute(
        """
        SELECT count(DISTINCT representative), max(representative) = max(representative::text),
               string_agg(representative, ',' ORDER BY representative)
                   = string_agg(representative::text, ',' ORDER BY representative::text COLLATE "C"),
               bool_and(representative = representative::text), bool_or(representative LIKE '%1%'), bool_and(length(representative) > 0),
               (array_agg(to_jsonb(representative)))[1] IS NOT NULL
        FROM clip_clusters('member')
        """
    ).fetchone()
    assert row == (DIRECTIONS, True, True, True, True, True, True)


def test_keys_are_stored_in_a_column_of_the_tables_type(keyed) -> None:
    with keyed.transaction(force_rollback=True):
        keyed.execute("CREATE TABLE copy AS SELECT id FROM member LIMIT 0")
        keyed.execute("INSERT INTO copy SELECT representative FROM clip_clusters('member')")
        keyed.execute(
            "UPDATE copy SET id = representative FROM clip_clusters('member') AS g WHERE copy.id = g.representative"
        )
        assert value(keyed, "SELECT count(*) FROM copy JOIN member USING (id)") == DIRECTIONS


@pytest.mark.parametrize("kind", ["text", "varchar(20)", "char(5)"])
def test_keys_and_character_columns_merge(db, kind: str) -> None:
    with db.transaction(force_rollback=True):
        db.execute(f"CREATE TABLE word (id {kind}); INSERT INTO word VALUES ('a'), ('b')")
        db.execute("CREATE TABLE key AS SELECT word::text::clip_key AS id FROM unnest('{b,c}'::text[]) AS word")
        assert value(db, "SELECT count(*) FROM word JOIN key USING (id)") == 1
        assert value(db, "SELECT count(*) FROM (SELECT id FROM word UNION SELECT id FROM key) AS merged") == 3
        assert value(db, "SELECT min(coalesce(word.id, key.id)) FROM word, key").strip() == "a"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", ["1", "2", "3"]),
        ("numeric", ["1.5", "2.5", "3.5"]),
        ("uuid", [f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1{n}" for n in range(3)]),
        ("text", ["a", "b", "c"]),
        ("varchar(9)", ["a", "b", "c"]),
    ],
)
def test_a_foreign_key_holds(db, kind: str, values: list[str]) -> None:
    first, second, third = values
    with db.transaction(force_rollback=True):
        db.execute(f"CREATE TABLE parent (id {kind} PRIMARY KEY)")
        create = "CREATE TABLE child (id {} REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE)"
        if db.info.server_version >= 180000 and kind in ("text", "varchar(9)"):
            # There, both columns must have a collation, or neither. A column of the table's own type accepts the keys.
            with db.transaction(force_rollback=True):
                state, said = raised_error(db, create.format("clip_key"))
            assert state == "XX000" and "not both collatable" in said
            db.execute(create.format(kind))
        else:
            db.execute(create.format("clip_key"))
        db.execute("INSERT INTO parent VALUES (%s), (%s)", (first, second))
        db.execute("INSERT INTO child SELECT id::text FROM parent")
        db.execute("DELETE FROM parent WHERE id::text = %s", (first,))
        db.execute("UPDATE parent SET id = %s", (third,))
        assert db.execute("SELECT id::text FROM child").fetchall() == [(third,)]
        assert raised_error(db, f"UPDATE child SET id = '{first}'")[0] == "23503"


@pytest.mark.parametrize("kind", ["integer", "numeric"])
def test_keys_are_chosen_in_their_own_order(db, kind: str) -> None:
    """Of equal members, key 2 comes before key 10."""
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


def test_two_members_are_equally_near(db) -> None:
    """The mean of two unit vectors is as near to one as to the other, but for rounding, which differs between processors."""
    rng = np.random.default_rng(3)
    with db.transaction(force_rollback=True):
        db.execute("CREATE TABLE tie (id int PRIMARY KEY, data bytea, embedding vector(512), cluster_id bigint)")
        for pair in range(200):
            rows = rng.standard_normal(512) + 0.3 * rng.standard_normal((2, 512))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            for id, row in zip((2 * pair + 2, 2 * pair + 1), rows, strict=True):
                db.execute("INSERT INTO tie (id, embedding) VALUES (%s, %s::vector)", (id, vector_text(row)))
        db.execute("UPDATE tie SET cluster_id = clip_assign_cluster(embedding, 'tie')")
        db.execute("SELECT clip_create_collection('tie', members => 'tie')")
        found = db.execute("SELECT representative::int, size FROM clip_clusters('tie') ORDER BY 1").fetchall()
        assert found == [(2 * pair + 1, 2) for pair in range(200)]
