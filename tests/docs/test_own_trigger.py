"""docs/how-to/own-trigger.md: its triggers count every row once, whichever statement writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

import support
from pages import DOCS

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"
SUBJECTS = ("cat", "rocket", "dahlia", "pagoda")


def photo(name: str) -> bytes:
    return (PHOTOS / f"{name}.jpg").read_bytes()


def statements() -> list[str]:
    """The page's blocks before the one that inserts photos, which only psql can run."""
    blocks = re.findall(
        r"```sql\n(.*?)```", (DOCS / "how-to" / "own-trigger.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 5 and blocks[-1].startswith("\\set")
    return blocks[:-1]


@pytest.fixture(params=[False, True], ids=["plain", "partitioned"])
def db(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    made = support.Database()
    try:
        with made.connect() as db:
            for block in statements():
                if request.param and "CREATE TABLE" in block:
                    block, count = re.subn(
                        r"(CREATE TABLE photo .*)\);", r"\1) PARTITION BY RANGE (id);", block, count=1
                    )
                    assert count == 1
                    block = block.replace(
                        "SELECT clip",
                        "CREATE TABLE photo_low PARTITION OF photo FOR VALUES FROM (0) TO (100);\n"
                        "CREATE TABLE photo_high PARTITION OF photo FOR VALUES FROM (100) TO (1000);\nSELECT clip",
                    )
                db.execute(block)
            yield db
    finally:
        made.drop()


def check(db: psycopg.Connection, rows: int) -> None:
    """Checks that the groups and their sizes match the rows, and that every embedding is its photo's."""
    counted = db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = 'photo' ORDER BY id").fetchall()
    stored = db.execute("SELECT cluster_id, count(*) FROM photo GROUP BY cluster_id ORDER BY cluster_id").fetchall()
    assert counted == stored
    assert support.value(db, "SELECT count(*) FROM photo") == rows
    wrong = "SELECT count(*) FROM photo WHERE embedding <=> clip_embed_image(data) > 1e-6 OR embedding IS NULL OR data IS NULL"
    assert support.value(db, wrong) == 0


def insert(db: psycopg.Connection, key: int, name: str, more: str = "") -> None:
    db.execute(f"INSERT INTO photo (id, title, data) VALUES (%s, %s, %s) {more}", (key, f"{name} {key}", photo(name)))


def test_every_row_is_counted_once(db: psycopg.Connection) -> None:
    for key, name in enumerate(SUBJECTS, 1):
        insert(db, key, name)
    check(db, 4)
    with db.cursor().copy("COPY photo (id, title, data) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["bigint", "text", "bytea"])
        for key in (11, 12):
            copy.write_row((key, f"copied {key}", photo("cat-mirrored")))
    check(db, 6)
    assert (
        support.value(db, "SELECT count(*) FROM photo WHERE cluster_id = (SELECT cluster_id FROM photo WHERE id = 1)")
        == 3
    )

    upsert = "ON CONFLICT (id) DO UPDATE SET title = EXCLUDED.title, data = EXCLUDED.data"
    insert(db, 1, "rocket", upsert)
    insert(db, 1, "rocket", upsert)
    insert(db, 5, "dahlia", upsert)
    insert(db, 2, "cat", "ON CONFLICT DO NOTHING")
    check(db, 7)
    assert support.value(db, "SELECT count(DISTINCT cluster_id) FROM photo WHERE id IN (1, 2)") == 1

    merge = """
        MERGE INTO photo USING (VALUES (3, %(file)s::bytea), (6, %(file)s)) AS given (id, data) ON photo.id = given.id
        WHEN MATCHED THEN UPDATE SET data = given.data
        WHEN NOT MATCHED THEN INSERT (id, title, data) VALUES (given.id, 'merged', given.data)"""
    db.execute(merge, {"file": photo("pagoda")})
    db.execute(merge, {"file": photo("pagoda")})
    check(db, 8)
    assert support.value(db, "SELECT count(DISTINCT cluster_id) FROM photo WHERE id IN (3, 4, 6)") == 1

    db.execute("UPDATE photo SET title = title || '!'")
    db.execute("UPDATE photo SET data = data WHERE id < 4")
    db.execute("UPDATE photo SET id = id + 100 WHERE id < 5")
    db.execute("UPDATE photo SET id = id - 100, data = %s WHERE id = 102", (photo("dahlia"),))
    db.execute("DELETE FROM photo WHERE id IN (5, 101)")
    check(db, 6)


def test_what_is_rolled_back_is_not_counted(db: psycopg.Connection) -> None:
    insert(db, 1, "cat")
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(db, 1, "cat")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("UPDATE photo SET data = 'not an image'")
    with db.transaction():
        insert(db, 2, "cat-mirrored")
        with pytest.raises(ZeroDivisionError), db.transaction():
            insert(db, 3, "cat-cropped")
            db.execute("DELETE FROM photo WHERE id = 1")
            raise ZeroDivisionError
        insert(db, 4, "rocket")
    check(db, 3)
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("UPDATE photo SET data = %s", (photo("rocket"),))
        raise ZeroDivisionError
    check(db, 3)


def test_a_role_without_privileges_on_the_collection_writes(db: psycopg.Connection) -> None:
    role = f"clip_test_writer_{support.value(db, 'SELECT pg_backend_pid()')}"
    db.execute(f"CREATE ROLE {role}")
    try:
        db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON photo TO {role}")
        db.execute(f"SET ROLE {role}")
        insert(db, 1, "cat")
        insert(db, 2, "rocket")
        db.execute("UPDATE photo SET data = %s WHERE id = 2", (photo("cat"),))
        db.execute("DELETE FROM photo WHERE id = 1")
        db.execute("RESET ROLE")
        check(db, 1)
        db.execute(f"SET ROLE {role}")
        db.execute("TRUNCATE photo")
        db.execute("RESET ROLE")
        check(db, 0)
    finally:
        db.execute("RESET ROLE")
        db.execute(f"DROP OWNED BY {role} CASCADE")
        db.execute(f"DROP ROLE {role}")


def test_truncate_empties_the_groups(db: psycopg.Connection) -> None:
    for key, name in enumerate(SUBJECTS, 1):
        insert(db, key, name)
    db.execute("TRUNCATE photo")
    check(db, 0)
    insert(db, 1, "cat")
    check(db, 1)


def test_a_group_in_a_before_trigger_miscounts(db: psycopg.Connection) -> None:
    """Shows why the page warns against it."""
    db.execute("""
        CREATE OR REPLACE FUNCTION photo_embed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.embedding := clip_embed_image(NEW.data);
            NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'photo');
            RETURN NEW;
        END $$""")
    db.execute("DROP TRIGGER photo_group ON photo")
    insert(db, 1, "cat")
    insert(db, 1, "cat", "ON CONFLICT DO NOTHING")
    assert support.value(db, "SELECT size FROM clip_search.cluster WHERE collection = 'photo'") == 2
