"""When a watched table is dropped, by whichever command, everything that the extension stores about it is deleted."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from support import value

KEPT = """
    SELECT (SELECT count(*) FROM clip_search.watch_setting), (SELECT count(*) FROM clip_search.watch_queue),
           (SELECT count(*) FROM clip_search.watch_failure), (SELECT count(*) FROM clip_search.collection_setting),
           (SELECT count(*) FROM clip_search.cluster)"""


@pytest.fixture
def owner(database, db) -> str:
    """A role with a schema whose watched table has groups, a queued row and a failed row."""
    name = f"clip_test_{uuid.uuid4().hex[:12]}"
    db.execute(f"CREATE ROLE {name} LOGIN")
    db.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
    with database.connect(name) as own:
        own.execute("SET client_min_messages = error")
        own.execute(f"CREATE TABLE {name}.photo (id int PRIMARY KEY, image bytea, body text)")
        own.execute(f"SELECT clip_watch('{name}.photo', 'image', cluster => 'cluster_id', on_error => 'skip')")
        own.execute(
            f"SELECT clip_watch('{name}.photo', 'body', embedding => 'of_body', cluster => 'body_cluster', "
            "collection => 'bodies')"
        )
        own.execute(f"INSERT INTO {name}.photo VALUES (1, 'not an image', 'a cat'), (2, NULL, 'a dog')")
        own.execute(f"SELECT clip_watch('{name}.photo', 'body', embedding => 'later', mode => 'queued')")
    yield name
    db.execute(f"DROP OWNED BY {name} CASCADE")
    db.execute(f"DROP ROLE IF EXISTS {name}")


def kept(db: psycopg.Connection) -> tuple:
    return db.execute(KEPT).fetchone()


@pytest.mark.parametrize(
    "command",
    ["DROP TABLE {0}.photo", "DROP SCHEMA {0} CASCADE", "DROP OWNED BY {0}", "DROP TABLE {0}.photo CASCADE"],
)
def test_nothing_is_left(db, owner, command):
    before = kept(db)
    assert before[0] == 3 and before[1] == 2 and before[2] == 1 and before[3] == 2 and before[4] >= 1, before
    with db.transaction(force_rollback=True):
        db.execute(command.format(owner))
        assert kept(db) == (0, 0, 0, 0, 0)
    assert kept(db) == before, "a drop that is undone has dropped nothing"
    db.execute(command.format(owner))
    assert kept(db) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_nothing_is_left_in_any_isolation_level(database, db, owner, level):
    with database.connect(owner, autocommit=False) as own:
        own.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        own.execute("SELECT 1")
        # This row was queued after the snapshot was taken.
        db.execute(f"INSERT INTO {owner}.photo VALUES (3, 'not an image either', 'a car')")
        own.execute(f"DROP TABLE {owner}.photo")
    assert kept(db) == (0, 0, 0, 0, 0)


def test_a_table_that_is_not_watched_is_none_of_its_business(db, owner):
    before = kept(db)
    db.execute(f"CREATE TABLE {owner}.other (id int)")
    db.execute(f"ALTER TABLE {owner}.photo ADD COLUMN extra int")
    db.execute(f"ALTER TABLE {owner}.photo DROP COLUMN extra")
    db.execute(f"DROP TABLE {owner}.other")
    assert kept(db) == before


def test_a_collection_that_somebody_else_has_in_hand_is_not_waited_for(database, db, owner):
    with database.connect(autocommit=False) as other:
        other.execute("SELECT clip_assign_cluster(clip_embed_text('a cat'), 'bodies')")
        with database.connect(owner) as own:
            own.execute("SET statement_timeout = '60s'")
            own.execute(f"DROP TABLE {owner}.photo")
        assert value(db, "SELECT count(*) FROM clip_search.watch") == 0
        assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
        other.rollback()
    # The next clip_watch removes it.
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body')")
    assert value(db, "SELECT array_agg(relation::text) FROM clip_search.watch_setting") == ["note"]
    assert value(db, "SELECT count(*) FROM clip_search.collection_setting") == 0


def test_the_extension_can_be_dropped(empty_database):
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        db.execute("SELECT clip_watch('note', 'body')")
        db.execute("DROP EXTENSION clip_search CASCADE")
        assert value(db, "SELECT count(*) FROM pg_event_trigger") == 0
        db.execute("DROP TABLE note")
