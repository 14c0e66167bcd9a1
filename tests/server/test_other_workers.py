"""A superuser's job in another kind of background worker: a logical replication worker, which like pg_cron's runs
others' statements.

A table owner's code that runs in it must not reach the job's cursors and connections, and clip_search.worker_timeout
must not apply to it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from servers import Server
from support import until, value

JOB = """
    CREATE TABLE job (id int PRIMARY KEY);
    CREATE FUNCTION nightly() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE c refcursor := 'jobs';
    BEGIN
        PERFORM public.dblink_connect('open', {connection});
        OPEN c FOR SELECT 'a secret of the superuser'::text;
        PERFORM public.clip_recluster('eves');
        PERFORM public.dblink_disconnect('open');
        RETURN NEW;
    END $$;
    CREATE TRIGGER nightly AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION nightly();
    ALTER TABLE job ENABLE ALWAYS TRIGGER nightly;"""
EVE = """
    CREATE ROLE eve LOGIN;
    CREATE SCHEMA eve AUTHORIZATION eve;
    SET ROLE eve;
    CREATE TABLE eve.seen (what text);
    CREATE TABLE eve.note (id int PRIMARY KEY, body text);
    SELECT clip_watch('eve.note', 'body', cluster => 'cluster', collection => 'eves');
    INSERT INTO eve.note SELECT n, 'a ' || word FROM unnest(ARRAY['cat', 'train', 'mountain', 'pizza']) WITH ORDINALITY AS w (word, n);
    -- The next regrouping writes every row.
    SELECT clip_alter_collection('eves', threshold => 0.01);
    CREATE FUNCTION eve.reach() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        r text;
        c refcursor := 'jobs';
    BEGIN
        PERFORM pg_sleep(0.8);
        BEGIN
            PERFORM public.dblink_exec('open', 'ALTER ROLE eve SUPERUSER');
        EXCEPTION WHEN OTHERS THEN INSERT INTO eve.seen VALUES ('dblink: ' || SQLSTATE);
        END;
        BEGIN
            FETCH c INTO r;
            INSERT INTO eve.seen VALUES (r);
        EXCEPTION WHEN OTHERS THEN INSERT INTO eve.seen VALUES ('cursor: ' || SQLSTATE);
        END;
        RETURN NEW;
    END $$;
    CREATE TRIGGER a BEFORE UPDATE ON eve.note FOR EACH ROW EXECUTE FUNCTION eve.reach();
    ALTER TABLE eve.note ENABLE ALWAYS TRIGGER a;
    RESET ROLE;"""


@pytest.fixture
def made(bindir: pathlib.Path) -> Iterator[Server]:
    settings = {"clip_search.model": "photo-mini", "clip_search.worker_timeout": "2s", "wal_level": "logical"}
    made = Server(bindir, settings)
    try:
        made.start()
        yield made
    finally:
        made.remove()


def test_a_job_of_logical_replication(made: Server) -> None:
    with made.connect() as db:
        if not value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'dblink'"):
            pytest.skip("the server has no dblink")
        db.execute("SET client_min_messages = error")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute("CREATE EXTENSION dblink")
        db.execute("CREATE DATABASE source")
        db.execute(EVE)
        db.execute(JOB.format(connection=f"'host={made.folder} dbname=postgres user=postgres'"))
        with made.connect("source") as source:
            source.execute("CREATE TABLE job (id int PRIMARY KEY)")
            source.execute("CREATE PUBLICATION jobs FOR TABLE job")
            source.execute("SELECT pg_create_logical_replication_slot('jobs', 'pgoutput')")
            db.execute(
                f"CREATE SUBSCRIPTION jobs CONNECTION 'host={made.folder} dbname=source user=postgres' PUBLICATION jobs"
                " WITH (slot_name = 'jobs', create_slot = false, copy_data = false)"
            )
            source.execute("INSERT INTO job VALUES (1)")
            # Three rows change their group and take 0.8 s each: together longer than worker_timeout.
            until(lambda: value(db, "SELECT count(*) FROM job") == 1, "the job's end", patience=90)
        seen = {what for (what,) in db.execute("SELECT what FROM eve.seen")}
        assert seen == {"dblink: 42501", "cursor: 55000"}
        assert value(db, "SELECT count(DISTINCT cluster) FROM eve.note") == 1
        assert value(db, "SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'") is False
