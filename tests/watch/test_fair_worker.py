"""One owner's tables neither block nor starve the worker for other owners, and leave nothing behind in it.

These tests start a server of their own that preloads the extension.
"""

from __future__ import annotations

import time

import psycopg
import pytest

from servers import Server
from support import until, value
from watched import workers

SERVER = {"worker_retry_delay": "100ms", "worker_timeout": "6s"}


@pytest.fixture(scope="module", autouse=True)
def owners(preloaded: Server) -> None:
    with preloaded.connect() as made:
        for name in ("eve", "bob"):
            made.execute(f"CREATE ROLE {name} LOGIN")
            made.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")


def as_role(preloaded: Server, role: str) -> psycopg.Connection:
    connection = psycopg.connect(host=str(preloaded.folder), user=role, dbname="postgres", autocommit=True)
    connection.execute("SET client_min_messages = error")
    return connection


def watched(preloaded: Server, table: str, trigger: str | None = None) -> psycopg.Connection:
    """A table that its owner watches in queued mode; `trigger` is the code of a trigger that fires when an embedding is
    written."""
    role = table.split(".")[0]
    owner = as_role(preloaded, role)
    owner.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
    owner.execute(f"SELECT clip_watch('{table}', 'body', mode => 'queued')")
    if trigger is not None:
        owner.execute(f"""
            CREATE OR REPLACE FUNCTION {role}.act() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.embedding IS NOT NULL THEN
                    {trigger}
                END IF;
                RETURN NEW;
            END $$""")
        owner.execute(f"CREATE TRIGGER act BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {role}.act()")
    return owner


def embedded(db: psycopg.Connection, table: str) -> int:
    return value(db, f"SELECT count(embedding) FROM {table}")


def test_a_table_whose_trigger_is_slow_holds_others_up_by_one_row(preloaded, db):
    # A sequence advances at once, whether or not the batch commits.
    db.execute("CREATE SEQUENCE eve.begun; GRANT ALL ON SEQUENCE eve.begun TO eve")
    begun = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM eve.begun"
    slow = "PERFORM nextval('eve.begun'); PERFORM pg_sleep(1);"
    with watched(preloaded, "eve.slow", slow) as eve, watched(preloaded, "bob.quick") as bob:
        eve.execute("INSERT INTO eve.slow SELECT g, 'a cat' FROM generate_series(1, 64) g")
        until(lambda: value(db, begun) > 0, "eve's first row")
        between = []
        for row in range(3):
            before = value(db, begun)
            bob.execute("INSERT INTO bob.quick VALUES (%s, 'a dog')", (row,))
            until(lambda row=row: embedded(db, "bob.quick") == row + 1, "bob's row")
            between.append(value(db, begun) - before)
        # The row in hand has already begun; the next may begin before the test sees bob's.
        assert max(between) <= 2, between
        # When a batch is cut short, its finished rows are kept, and no attempt counts against the others.
        assert embedded(db, "eve.slow") >= 1
        pending = "SELECT max(attempts), count(*) FILTER (WHERE attempts > 0) FROM clip_search.pending WHERE relation = 'eve.slow'::regclass"
        most, tried = db.execute(pending).fetchone()
        # At most two rows are in hand, since a batch has as many rows as take two seconds; only the first batch had
        # sixteen.
        assert most <= 1 and tried <= 4, (most, tried)
        assert value(db, "SELECT count(*) FROM clip_search.failure WHERE relation = 'eve.slow'::regclass") == 0


def test_time_is_shared_by_owner_not_by_table(preloaded, db):
    # Four tables of eve's take no more of the worker's time than one of bob's.
    trigger = "PERFORM pg_sleep(0.3);"
    tables = [f"eve.t{i}" for i in range(4)]
    connections = [watched(preloaded, table, trigger) for table in [*tables, "bob.quick"]]
    try:
        db.execute("ALTER SYSTEM SET clip_search.worker = off")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: not workers(db), "the worker's end")
        for connection, table in zip(connections, [*tables, "bob.quick"], strict=True):
            connection.execute(f"INSERT INTO {table} SELECT g, 'a cat' FROM generate_series(1, 60) g")
        db.execute("ALTER SYSTEM SET clip_search.worker = on")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: embedded(db, "bob.quick") >= 15, "bob's rows")
        of_eve, of_bob = sum(embedded(db, table) for table in tables), embedded(db, "bob.quick")
        assert of_eve < 2 * of_bob + 8, (of_eve, of_bob)
    finally:
        for table in tables:
            db.execute(f"DROP TABLE {table} CASCADE")
        for connection in connections:
            connection.close()


def test_shares_are_of_time_and_not_of_batches(preloaded, db):
    """One of eve's rows takes 4 s, one of bob's batches half a second."""
    with watched(preloaded, "eve.slow", "PERFORM pg_sleep(4);") as eve:
        with watched(preloaded, "bob.quick", "PERFORM pg_sleep(0.1);") as bob:
            eve.execute("INSERT INTO eve.slow SELECT g, 'a cat' FROM generate_series(1, 60) g")
            bob.execute("INSERT INTO bob.quick SELECT g, 'a cat' FROM generate_series(1, 80) g")
            until(lambda: embedded(db, "bob.quick") > 0, "bob's first rows")
            began, before = time.monotonic(), embedded(db, "eve.slow")
            until(lambda: embedded(db, "bob.quick") == 80, "bob's rows", patience=120)
            of_eve, whole = 4 * (embedded(db, "eve.slow") - before), time.monotonic() - began
    # Eve gets half of the time, give or take a row; if batches took turns, she would get eight ninths.
    assert of_eve <= 0.6 * whole + 4, (of_eve, whole)
    db.execute("DROP TABLE eve.slow")


def test_a_trigger_that_swallows_the_cancel_ends_the_process_and_others_go_on(preloaded, db):
    db.execute("ALTER SYSTEM SET clip_search.worker_timeout = '1s'")
    db.execute("ALTER SYSTEM SET clip_search.worker_attempts = 2")
    db.execute("SELECT pg_reload_conf()")
    never = "LOOP BEGIN PERFORM pg_sleep(100); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;"
    with watched(preloaded, "eve.slow", never) as eve, watched(preloaded, "bob.quick") as bob:
        eve.execute("INSERT INTO eve.slow VALUES (1, 'a cat')")
        until(lambda: workers(db), "a worker")
        first = workers(db)[0]
        time.sleep(0.5)
        bob.execute("INSERT INTO bob.quick SELECT g, 'a dog' FROM generate_series(1, 5) g")
        until(lambda: embedded(db, "bob.quick") == 5, "bob's rows")
        until(lambda: workers(db) not in ([], [first]), "another worker")
        # Two attempts with a minute's rest in between, then the attempts are used up.
        query = "SELECT attempts, due > now() + interval '30 seconds' FROM clip_search.pending WHERE relation = 'eve.slow'::regclass"
        until(lambda: db.execute(query).fetchone() == (2, True), "the second attempt")
        until(lambda: "took longer than clip_search.worker_timeout and ignored the cancel" in preloaded.messages())
        assert "PANIC" not in preloaded.messages() and "was terminated by signal" not in preloaded.messages()
        bob.execute("INSERT INTO bob.quick SELECT g, 'a dog' FROM generate_series(6, 9) g")
        until(lambda: embedded(db, "bob.quick") == 9, "bob's rows")
        until(lambda: workers(db), "a worker")
        db.execute("UPDATE clip_search.watch_queue SET due = now()")
        listed = "SELECT sqlstate FROM clip_search.failure WHERE relation = 'eve.slow'::regclass"
        until(lambda: db.execute(listed).fetchall() == [("57P02",)], "the failure")
        # Nothing blocks a rename or DROP of the database.
        assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


def test_code_that_cannot_be_interrupted_holds_up_its_owner_only(preloaded, db):
    """strpos doesn't check for interrupts, so no timeout and no SIGTERM ends it: this call takes some 40 s."""
    db.execute("ALTER SYSTEM SET clip_search.worker_timeout = '1s'")
    db.execute("SELECT pg_reload_conf()")
    never = "PERFORM strpos(repeat('a', 400000), 'b' || repeat('a', 100000));"
    with watched(preloaded, "eve.slow", never) as eve, watched(preloaded, "bob.quick") as bob:
        eve.execute("INSERT INTO eve.slow VALUES (1, 'a cat')")
        until(lambda: workers(db), "a worker")
        (stuck,) = workers(db)
        time.sleep(1)
        began = time.monotonic()
        bob.execute("INSERT INTO bob.quick SELECT g, 'a dog' FROM generate_series(1, 5) g")
        until(lambda: embedded(db, "bob.quick") == 5, "bob's rows")
        waited = time.monotonic() - began
        # The limit, 2 s to clean up, 1 s of patience, 5 s between two checks of the launcher, and a process's start.
        assert waited < 1 + 2 + 1 + 5 + 6, waited
        assert stuck in workers(db) and len(workers(db)) == 2
        assert "can't be ended" in preloaded.messages()
        # Eve's other queued rows wait; otherwise they could block the next worker as well.
        eve.execute("CREATE TABLE eve.other (id int PRIMARY KEY, body text)")
        eve.execute("SELECT clip_watch('eve.other', 'body', mode => 'queued')")
        eve.execute("INSERT INTO eve.other VALUES (1, 'a cat')")
        for row in range(6, 9):
            began = time.monotonic()
            bob.execute("INSERT INTO bob.quick VALUES (%s, 'a dog')", (row,))
            until(lambda row=row: embedded(db, "bob.quick") == row, "bob's row")
            assert time.monotonic() - began < 5
        assert stuck in workers(db), "the code ended too soon for the test to show anything"
        assert embedded(db, "eve.other") == 0
        # When the code returns, the process ends, and no owner is skipped any more.
        until(lambda: stuck not in workers(db), "the end of the first worker", 300)
        until(lambda: embedded(db, "eve.other") == 1, "her other row", 60)
        assert embedded(db, "eve.slow") == 0
        assert "was terminated by signal" not in preloaded.messages()
        eve.execute("DROP TABLE eve.other")


def test_nothing_of_an_owners_code_stays_in_the_worker(preloaded, db):
    leave = """
        PERFORM pg_advisory_xact_lock(4711);
        PERFORM set_config('eve.left', 'behind', false);
        PERFORM set_config('search_path', 'eve', false);
    """
    see = "NEW.body := coalesce(nullif(current_setting('eve.left', true), ''), 'nothing') || ', ' || current_setting('search_path');"
    with watched(preloaded, "eve.slow", leave) as eve:
        eve.execute("INSERT INTO eve.slow SELECT g, 'a cat' FROM generate_series(1, 3) g")
        until(lambda: embedded(db, "eve.slow") == 3, "eve's rows")
        process = workers(db)
        assert process, "the worker is still the one that has run eve's trigger"
        until(lambda: value(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0, "the locks' release")
        with as_role(preloaded, "bob") as bob:
            bob.execute("CREATE TABLE bob.quick (id int PRIMARY KEY, body text, seen text)")
            bob.execute("SELECT clip_watch('bob.quick', 'body', mode => 'queued')")
            bob.execute(f"""
                CREATE OR REPLACE FUNCTION bob.see() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    {see.replace("NEW.body", "NEW.seen")}
                    RETURN NEW;
                END $$""")
            bob.execute("CREATE TRIGGER see BEFORE UPDATE ON bob.quick FOR EACH ROW EXECUTE FUNCTION bob.see()")
            bob.execute("INSERT INTO bob.quick VALUES (1, 'a dog')")
            until(lambda: embedded(db, "bob.quick") == 1, "bob's row")
        assert workers(db) == process
        assert value(db, "SELECT seen FROM bob.quick") == "nothing, pg_catalog, pg_temp"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(4711)",
        "CREATE TEMP TABLE left_behind (i int)",
        "LISTEN left_behind",
        "PREPARE left_behind AS SELECT 1",
        "SET SESSION AUTHORIZATION bob",
    ],
)
def test_what_would_stay_is_refused(preloaded, db, statement):
    with watched(preloaded, "eve.slow", f"EXECUTE '{statement}';") as eve:
        eve.execute("INSERT INTO eve.slow VALUES (1, 'a cat')")
        query = "SELECT max(message) FROM clip_search.watch_queue"
        until(lambda: value(db, query) is not None, "the error")
        assert "security-restricted operation" in value(db, query) or "permission denied" in value(db, query)
