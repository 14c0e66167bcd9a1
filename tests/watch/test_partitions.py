"""A partitioned table's groups match its rows, whatever happens to a single partition."""

from __future__ import annotations

import psycopg
import pytest

import support
from support import raised_error, value
from watched import WORDS, check


@pytest.fixture
def parts(db: psycopg.Connection) -> psycopg.Connection:
    """Two partitions, one of them with two partitions of its own, with ten rows each, and rows that failed."""
    # Drop the partitions that the previous test detached.
    for (name,) in db.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    ):
        db.execute(f"DROP TABLE IF EXISTS {name} CASCADE")
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, title text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF note FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE high PARTITION OF note FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE high_1 PARTITION OF high FOR VALUES FROM (100) TO (200)")
    db.execute("CREATE TABLE high_2 PARTITION OF high FOR VALUES FROM (200) TO (300)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip')")
    for first in (1, 101, 201):
        fill(db, "note", first)
    return db


def fill(db: psycopg.Connection, table: str, first: int) -> None:
    db.execute(
        f"INSERT INTO {table} (id, body) SELECT %s + n, (%s::text[])[1 + n %% 5] FROM generate_series(0, 9) n",
        (first, list(WORDS)),
    )
    db.execute(f"INSERT INTO {table} (id, body) VALUES (%s, '')", (first + 50,))


def triggers(db: psycopg.Connection) -> list[str]:
    query = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'zz\\_clip\\_partition\\_%' ORDER BY 1"
    return [name for (name,) in db.execute(query)]


def failures(db: psycopg.Connection) -> list[str]:
    return [key[0] for (key,) in db.execute("SELECT key FROM clip_search.failure ORDER BY key")]


@pytest.mark.parametrize(
    ("command", "left", "failed"),
    [
        ("TRUNCATE low", 20, ["151", "251"]),
        ("TRUNCATE high_1", 20, ["251", "51"]),
        ("TRUNCATE high", 10, ["51"]),
        ("TRUNCATE high_2, low", 10, ["151"]),
        ("TRUNCATE note", 0, []),
        ("TRUNCATE low, note", 0, []),
        ("ALTER TABLE note DETACH PARTITION low", 20, ["151", "251"]),
        ("ALTER TABLE note DETACH PARTITION high", 10, ["51"]),
        ("ALTER TABLE high DETACH PARTITION high_2", 20, ["151", "51"]),
        ("ALTER TABLE note DETACH PARTITION low CONCURRENTLY", 20, ["151", "251"]),
    ],
)
def test_rows_leave_their_groups(parts, command, left, failed):
    parts.execute(command)
    assert check(parts, "note WHERE body <> ''", collection="note") == left
    assert failures(parts) == failed
    there = "SELECT relid::regclass::text FROM pg_partition_tree('note') WHERE isleaf ORDER BY 1"
    assert triggers(parts) == [name for (name,) in parts.execute(there)]
    parts.execute("DROP TABLE IF EXISTS low, high CASCADE")


def test_rolled_back_truncate_and_detach(parts):
    for command in ("TRUNCATE low", "TRUNCATE note", "ALTER TABLE note DETACH PARTITION low"):
        with pytest.raises(ZeroDivisionError), parts.transaction():
            parts.execute(command)
            raise ZeroDivisionError
        assert check(parts, "note WHERE body <> ''", collection="note") == 30
    # Two truncations in one transaction; the second is of one partition only.
    with parts.transaction():
        parts.execute("TRUNCATE note")
        fill(parts, "note", 1)
        fill(parts, "note", 101)
        parts.execute("TRUNCATE low")
    assert check(parts, "note WHERE body <> ''", collection="note") == 10


def test_a_detached_partition_is_a_table_like_any_other(parts):
    parts.execute("ALTER TABLE note DETACH PARTITION low")
    parts.execute("DELETE FROM low WHERE id < 5")
    parts.execute("TRUNCATE low")
    fill(parts, "low", 1)
    assert value(parts, "SELECT count(embedding) FROM low") == 0
    assert check(parts, "note WHERE body <> ''", collection="note") == 20
    parts.execute("DROP TABLE low")


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_a_partition_that_comes_back_is_counted_once(parts, mode):
    parts.execute("ALTER TABLE note DETACH PARTITION low")
    parts.execute(f"SELECT clip_watch('note', mode => '{mode}')")
    said: list[str] = []
    parts.execute("SET client_min_messages = notice")
    parts.add_notice_handler(lambda diag: said.append(diag.message_primary))
    parts.execute("ALTER TABLE note ATTACH PARTITION low FOR VALUES FROM (0) TO (100)")
    assert "10 rows of public.low had a cluster that did not count them" in said, said
    assert value(parts, "SELECT pending FROM clip_search.watch") == 11
    assert check(parts, "note WHERE body <> '' AND id > 99", collection="note") == 20
    parts.execute("CALL clip_backfill('note')")
    assert check(parts, "note WHERE body <> ''", collection="note") == 30
    parts.execute("TRUNCATE low")
    assert check(parts, "note WHERE body <> ''", collection="note") == 20


def test_a_new_partition_is_watched(parts):
    parts.execute("CREATE TABLE more PARTITION OF note FOR VALUES FROM (300) TO (400)")
    parts.execute("CREATE TABLE most (LIKE note)")
    parts.execute("ALTER TABLE note ATTACH PARTITION most FOR VALUES FROM (400) TO (500)")
    fill(parts, "note", 301)
    fill(parts, "note", 401)
    assert check(parts, "note WHERE body <> ''", collection="note") == 50
    parts.execute("TRUNCATE more, most")
    assert check(parts, "note WHERE body <> ''", collection="note") == 30


def test_a_dropped_partition_is_told_of(parts):
    said: list[tuple[str, str]] = []
    parts.execute("SET client_min_messages = warning")
    parts.add_notice_handler(lambda diag: said.append((diag.message_primary, diag.message_hint or "")))
    parts.execute("DROP TABLE high")
    assert (
        len(said) == 1
        and "still count the rows of a partition" in said[0][0]
        and "clip_recluster('note')" in said[0][1]
    )
    parts.execute("SELECT FROM clip_recluster('note')")
    assert value(parts, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'note'") == 10
    said.clear()
    parts.execute("DROP TABLE note")
    assert said == [] and value(parts, "SELECT count(*) FROM clip_search.watch_partition") == 0


def test_nothing_is_left_when_the_watch_ends(parts):
    parts.execute("SELECT clip_unwatch('note')")
    assert triggers(parts) == []
    parts.execute("TRUNCATE low")
    parts.execute("ALTER TABLE note DETACH PARTITION low")
    assert value(parts, "SELECT count(*) FROM clip_search.watch_partition") == 0
    parts.execute("DROP TABLE low")


def test_somebody_elses_table_takes_nothing_out(parts, database: support.Database, plain_role: str):
    """A trigger that looks like the extension's, on a table that was never a partition."""
    watch = value(parts, "SELECT id FROM clip_search.watch_setting")
    with database.connect(plain_role) as other:
        other.execute("SET client_min_messages = warning")
        other.execute("CREATE TABLE fake (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
        function = f"FOR EACH STATEMENT EXECUTE FUNCTION clip_watch_row('{watch}')"
        other.execute(f"CREATE TRIGGER zz_clip_partition_{watch} BEFORE TRUNCATE ON fake {function}")
        other.execute(
            "INSERT INTO fake SELECT c, 'x', clip_embed_text(%s), c FROM generate_series(1, 9) c", (WORDS[0],)
        )
        other.execute("ALTER TABLE fake ADD more int")
        assert raised_error(other, "TRUNCATE fake")[0] == "55000"
        assert raised_error(other, "SELECT clip_search.settle_partitions('{1}')")[0] == "42501"
        other.execute("DROP TABLE fake")
    assert check(parts, "note WHERE body <> ''", collection="note") == 30


DDL = "CREATE TABLE bystander (i int); ALTER TABLE bystander ADD j int; CREATE TEMP TABLE passing (i int); DROP TABLE bystander, passing"


def test_other_roles_ddl_does_not_wait(parts, database: support.Database, plain_role: str):
    """The event trigger fires for every table of the database, but locks only the tables of its own command."""
    with database.connect(autocommit=False) as busy, database.connect(plain_role) as other:
        other.execute("SET lock_timeout = '60s'; SET client_min_messages = warning")
        for command in ("TRUNCATE low", "LOCK TABLE note"):
            busy.execute(command)
            other.execute(DDL)
            busy.rollback()
    assert check(parts, "note WHERE body <> ''", collection="note") == 30


def test_partitions_are_altered_side_by_side(parts, database: support.Database):
    """pg_restore --jobs does that: ALTER TABLE of one partition locks no other."""
    with database.connect(autocommit=False) as one, database.connect(autocommit=False) as another:
        for db, table in ((one, "low"), (another, "high")):
            db.execute("SET lock_timeout = '2s'")
            db.execute(f"ALTER TABLE {table} ALTER body SET STORAGE EXTERNAL")
        for db in (one, another):
            db.commit()
    assert check(parts, "note WHERE body <> ''", collection="note") == 30


def test_ddl_works_on_an_old_snapshot(parts, database: support.Database):
    with database.connect(autocommit=False) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # This takes the snapshot, but no lock on a table.
        other.execute("SELECT 1")
        parts.execute("ALTER TABLE note DETACH PARTITION low")
        other.execute(DDL)
        other.rollback()
    parts.execute("DROP TABLE low")


def test_an_owners_code_does_not_run_in_other_roles_ddl(db, database: support.Database, plain_role: str):
    """The watch is not live while its owner attaches a partition, so the partition stays unsettled, with a trigger that
    fails."""
    with database.connect(plain_role) as owner:
        owner.execute("SET client_min_messages = warning")
        owner.execute("CREATE TABLE mine (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
        owner.execute("CREATE TABLE mine_1 PARTITION OF mine FOR VALUES FROM (0) TO (100)")
        owner.execute("SELECT clip_watch('mine', 'body', cluster => 'cluster_id')")
        definitions = owner.execute(
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'mine'::regclass AND NOT tgisinternal"
        ).fetchall()
        for name, _ in definitions:
            owner.execute(f"DROP TRIGGER {name} ON mine")
        owner.execute("CREATE TABLE mine_2 (LIKE mine INCLUDING ALL)")
        owner.execute("INSERT INTO mine_2 (id, cluster_id) VALUES (200, 1), (201, 2)")
        owner.execute(
            "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no DDL for you'; END $$"
        )
        owner.execute("CREATE TRIGGER harm BEFORE UPDATE ON mine_2 FOR EACH ROW EXECUTE FUNCTION harm()")
        owner.execute("ALTER TABLE mine ATTACH PARTITION mine_2 FOR VALUES FROM (200) TO (300)")
        for _, definition in definitions:
            owner.execute(definition)
        db.execute(DDL)
        # The owner's next command settles the partition, including the rows that the owner wrote.
        assert raised_error(owner, "CREATE TABLE mine_3 PARTITION OF mine FOR VALUES FROM (300) TO (400)")[0] == "P0001"
        owner.execute("DROP TRIGGER harm ON mine_2")
        owner.execute("CREATE TABLE mine_3 PARTITION OF mine FOR VALUES FROM (300) TO (400)")
        assert value(owner, "SELECT count(*) FROM mine_2 WHERE cluster_id IS NULL") == 2
        owner.execute("DROP TABLE mine; DROP FUNCTION harm()")


def test_an_unlogged_table_is_told_of(db):
    said: list[tuple[str, str]] = []
    db.add_notice_handler(lambda diag: said.append((diag.message_primary, diag.message_hint or "")))
    db.execute("CREATE UNLOGGED TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    assert [("is unlogged" in text, "clip_recluster('note')" in hint) for text, hint in said] == [(True, True)]


def test_vectors_of_an_attached_partition_are_told_of(parts):
    said: list[tuple[str, str]] = []
    parts.execute("SET client_min_messages = notice")
    parts.execute("ALTER TABLE note DETACH PARTITION low")
    parts.execute("UPDATE low SET body = 'another text' WHERE id = (SELECT min(id) FROM low)")
    parts.add_notice_handler(lambda diag: said.append((diag.message_primary, diag.message_hint or "")))
    parts.execute("ALTER TABLE note ATTACH PARTITION low FOR VALUES FROM (0) TO (100)")
    kept = [(text, hint) for text, hint in said if "from before, which are kept" in text]
    assert len(kept) == 1 and "low" in kept[0][0]
    parts.execute(kept[0][1].partition(": ")[2].partition(";")[0])
    parts.execute("CALL clip_backfill('note')")
    assert check(parts, "note WHERE body <> ''", collection="note") == 30


def pending(db: psycopg.Connection) -> int:
    return value(db, "SELECT count(*) FROM clip_search.pending")


def test_a_failed_row_that_moves_stays_listed(parts: psycopg.Connection) -> None:
    """The row has the same source, so embedding it again would fail again."""
    before = parts.execute("SELECT sqlstate, message, attempts FROM clip_search.failure WHERE key = '{51}'").fetchall()
    for to in (152, 252, 52):
        parts.execute("UPDATE note SET id = %s WHERE body = '' AND id NOT IN (151, 251)", (to,))
        assert sorted(failures(parts)) == sorted(["151", "251", str(to)]) and pending(parts) == 0
    after = parts.execute("SELECT sqlstate, message, attempts FROM clip_search.failure WHERE key = '{52}'").fetchall()
    assert before == after and len(before) == 1
    # One statement moves two rows; another row gets a valid source while it moves; the last move is rolled back.
    parts.execute("UPDATE note SET id = 305 - id WHERE id IN (52, 251)")
    assert failures(parts) == ["151", "253", "54"] and pending(parts) == 0
    parts.execute("UPDATE note SET id = 152, body = %s WHERE id = 54", (WORDS[0],))
    assert failures(parts) == ["151", "253"] and pending(parts) == 0
    assert value(parts, "SELECT embedding IS NOT NULL FROM note WHERE id = 152")
    with parts.transaction(force_rollback=True):
        parts.execute("UPDATE note SET id = 53 WHERE id = 151")
        assert failures(parts) == ["253", "53"]
    assert failures(parts) == ["151", "253"]
