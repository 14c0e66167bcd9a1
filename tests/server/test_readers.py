"""Readers of rows, counts and clusters of others' tables: policies, views, partitions and locked tables."""

from __future__ import annotations

import support
from support import raised_error, value


def test_policies_are_not_run_without_consent(database: support.Database, eve: str, plain_role: str) -> None:
    """A policy that applies to a reader runs only if the reader names the table, which counts as consent."""
    with database.connect(user=eve) as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"SELECT clip_create_collection('eve', 0.9, members => '{eve}.t', labels => 'tags')")
        db.execute("SELECT * FROM clip_recluster('eve')")
        db.execute(f"""
            ALTER TABLE {eve}.t ENABLE ROW LEVEL SECURITY;
            CREATE POLICY p ON {eve}.t FOR SELECT USING (id < 4 AND {eve}.evil(id, 'policy') > 0);
            GRANT USAGE ON SCHEMA {eve} TO PUBLIC; GRANT SELECT ON {eve}.t TO PUBLIC; GRANT INSERT ON {eve}.ran TO PUBLIC;
            SELECT clip_grant_collection('eve', 'PUBLIC');
            SELECT clip_watch('{eve}.t', 'body', embedding => 'other')""")
    reading = (
        "SELECT * FROM clip_clusters('eve', 1{})",
        "SELECT clip_cluster_groups('eve', 1{})",
        "SELECT * FROM clip_duplicates('eve', 0.99{})",
    )
    with database.connect(user=plain_role) as db:
        for call in reading:
            state, text = raised_error(db, call.format(""))
            assert state == "42501" and "row by row" in text and "members =>" in text, call
        assert db.execute("SELECT rows, pending FROM clip_search.watch").fetchone() == (None, None)
        assert raised_error(db, "SELECT * FROM clip_clusters('eve', 1, members => 'pg_class')")[0] == "22023"
        members = f", members => '{eve}.t'"
        shown = {r for (r,) in db.execute("SELECT representative FROM clip_clusters('eve', 1" + members + ")")}
        assert shown <= {"1", "2", "3"} and len(shown) == 2
        assets = value(
            db,
            "SELECT array_agg(a ->> 'id') FROM jsonb_array_elements(clip_cluster_groups('eve', 1"
            + members
            + ")) g, jsonb_array_elements(g -> 'assets') a",
        )
        assert sorted(assets) == ["1", "2", "3"]
        assert db.execute("SELECT * FROM clip_duplicates('eve', 0.99" + members + ")").fetchall() == [("1", "3", 1.0)]
    with database.connect(user=eve) as db:
        # The table's policies don't apply to the owner, who sees all rows.
        assert len(db.execute("SELECT * FROM clip_duplicates('eve')").fetchall()) == 4
        assert value(db, "SELECT rows FROM clip_search.watch") == 6
        assert {role for (role,) in db.execute(f"SELECT role FROM {eve}.ran WHERE inside = 'policy'")} == {plain_role}
    with database.connect() as admin:
        admin.execute(f"ALTER ROLE {plain_role} BYPASSRLS")
    with database.connect(user=plain_role) as db:
        assert len(db.execute("SELECT * FROM clip_duplicates('eve')").fetchall()) == 4
        assert value(db, "SELECT rows FROM clip_search.watch") == 6
    # With FORCE, even the owner doesn't see all rows, so clip_search regroups and counts nothing.
    with database.connect(user=eve) as db:
        db.execute(f"ALTER TABLE {eve}.t FORCE ROW LEVEL SECURITY")
        assert value(db, "SELECT rows FROM clip_search.watch") is None
    with database.connect() as admin, database.connect(user=eve) as db:
        for connection in (admin, db):
            state, text = raised_error(connection, "SELECT * FROM clip_recluster('eve')")
            assert state == "42501" and "row-level security" in text
        assert raised_error(db, "SELECT * FROM clip_duplicates('eve')")[0] == "42501"
        assert db.execute(f"SELECT * FROM clip_duplicates('eve', members => '{eve}.t')").fetchall() == [("1", "3", 1.0)]


def test_a_view_of_members_is_read_by_consent_only(database: support.Database, eve: str, plain_role: str) -> None:
    """A view may show each reader other rows, by current_user, as policies do."""
    with database.connect(user=eve) as db:
        db.execute(f"""
            CREATE VIEW {eve}.v AS SELECT id, embedding, cluster_id FROM {eve}.t WHERE current_user = '{eve}' OR id < 3;
            GRANT USAGE ON SCHEMA {eve} TO PUBLIC; GRANT SELECT ON {eve}.v TO PUBLIC;
            SELECT clip_create_collection('eve', members => '{eve}.v', key => 'id');
            SELECT clip_grant_collection('eve', 'PUBLIC')""")
    with database.connect(user=plain_role) as db:
        state, text = raised_error(db, "SELECT * FROM clip_duplicates('eve', 0.1)")
        assert state == "42501" and "members =>" in text
        assert len(db.execute(f"SELECT * FROM clip_duplicates('eve', 0.1, members => '{eve}.v')").fetchall()) == 1


def test_a_partition_of_another_owner_is_refused(database: support.Database, eve: str, plain_role: str) -> None:
    with database.connect() as admin:
        admin.execute(f"""
            CREATE TABLE {eve}.parts (id int PRIMARY KEY, embedding vector(3), cluster_id bigint) PARTITION BY RANGE (id);
            CREATE TABLE {eve}.part PARTITION OF {eve}.parts FOR VALUES FROM (0) TO (10);
            INSERT INTO {eve}.parts VALUES (1, '[1,0,0]'), (2, '[1,0,0]');
            ALTER TABLE {eve}.parts OWNER TO {eve}; ALTER TABLE {eve}.part OWNER TO {plain_role}""")
        assert raised_error(admin, f"SELECT clip_create_collection('eve', members => '{eve}.parts')")[0] == "42501"
        admin.execute(
            f"ALTER TABLE {eve}.part OWNER TO {eve}; SELECT clip_create_collection('eve', members => '{eve}.parts')"
        )
        admin.execute("SET client_min_messages = warning")
        assert len(admin.execute("SELECT * FROM clip_recluster('eve')").fetchall()) == 1
        admin.execute(f"ALTER TABLE {eve}.part OWNER TO {plain_role}")
        for call in ("SELECT * FROM clip_recluster('eve')", "SELECT * FROM clip_duplicates('eve')"):
            state, text = raised_error(admin, call)
            assert state == "42501" and "another role" in text
        admin.execute(f"ALTER TABLE {eve}.part OWNER TO {eve}")


def test_counts_are_for_those_who_may_read(database: support.Database, eve: str, plain_role: str) -> None:
    with database.connect(user=eve) as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"SELECT clip_watch('{eve}.t', 'body', embedding => 'other')")
    with database.connect(user=plain_role) as db, database.connect(user=eve) as owner:
        table = value(owner, f"SELECT '{eve}.t'::regclass::oid")
        count = f"SELECT * FROM clip_search.count_rows({table}, ARRAY['body'], 'other', NULL, NULL)"
        assert db.execute(count).fetchone() == (None, None, None)
        owner.execute(f"GRANT SELECT ON {eve}.t TO PUBLIC")
        assert db.execute(count).fetchone() == (None, None, None)  # no right to the schema
        owner.execute(f"GRANT USAGE ON SCHEMA {eve} TO PUBLIC")
        assert db.execute(count).fetchone() == (6, 0, 6)
        assert (
            db.execute(
                "SELECT * FROM clip_search.count_rows('pg_class', ARRAY['relname'], 'oid', NULL, NULL)"
            ).fetchone()[0]
            > 0
        )
        assert db.execute(
            "SELECT * FROM clip_search.count_rows('pg_authid', ARRAY['rolname'], 'oid', NULL, NULL)"
        ).fetchone() == (None, None, None)
        # Counting doesn't run the owner's code.
        owner.execute(f"""CREATE FUNCTION {eve}.fails() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN IF current_query() LIKE '%watch%' THEN RAISE EXCEPTION 'no'; END IF; RETURN 1; END $$""")
        owner.execute(f"CREATE INDEX ON {eve}.t ((id + {eve}.fails()))")
        assert db.execute("SELECT rows FROM clip_search.watch").fetchall() == [(6,)]


def test_a_locked_table_holds_up_no_reader(database: support.Database, eve: str, plain_role: str) -> None:
    with database.connect(user=eve) as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"SELECT clip_watch('{eve}.t', 'body', embedding => 'other')")
        db.execute(f"GRANT USAGE ON SCHEMA {eve} TO PUBLIC; GRANT SELECT ON {eve}.t TO PUBLIC")
    with database.connect(user=eve, autocommit=False) as locker, database.connect(user=plain_role) as db:
        db.execute("SET statement_timeout = '60s'")
        locker.execute(f"LOCK TABLE {eve}.t IN ACCESS EXCLUSIVE MODE")
        assert db.execute("SELECT rows, embedded, pending FROM clip_search.watch").fetchall() == [(None, None, None)]
        locker.rollback()
        assert db.execute("SELECT rows, embedded, pending FROM clip_search.watch").fetchall() == [(6, 0, 6)]


def test_partitions_are_counted(database: support.Database, eve: str) -> None:
    """A partition's columns may have other numbers than the partitioned table's."""
    with database.connect(user=eve) as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"""
            CREATE TABLE {eve}.parts (id int PRIMARY KEY, body text, other vector(512)) PARTITION BY RANGE (id);
            CREATE TABLE {eve}.one PARTITION OF {eve}.parts FOR VALUES FROM (0) TO (10);
            CREATE TABLE {eve}.two (gone int, other vector(512), body text, id int PRIMARY KEY);
            ALTER TABLE {eve}.two DROP COLUMN gone;
            ALTER TABLE {eve}.parts ATTACH PARTITION {eve}.two FOR VALUES FROM (10) TO (20)""")
        db.execute(f"SELECT clip_watch('{eve}.parts', 'body', embedding => 'other', mode => 'queued')")
        db.execute(f"INSERT INTO {eve}.parts (id, body) VALUES (1, 'a'), (11, 'b'), (12, NULL), (13, 'c')")
        assert db.execute("SELECT rows, embedded, pending FROM clip_search.watch").fetchone() == (4, 0, 3)
        with db.transaction():
            db.execute(f"ALTER TABLE {eve}.parts DETACH PARTITION {eve}.one")
            assert value(db, "SELECT rows FROM clip_search.watch") == 3


def test_views_are_security_barriers(database: support.Database, eve: str) -> None:
    """A cheap function in a reader's WHERE never sees a row that the view hides."""
    with database.connect() as db:
        db.execute("CREATE TABLE kept (id text PRIMARY KEY, data bytea)")
        db.execute("SET client_min_messages = warning")
        try:
            db.execute("SELECT clip_watch('kept', 'data', on_error => 'skip')")
            db.execute("INSERT INTO kept VALUES ('top secret', 'no image')")
            assert value(db, "SELECT count(*) FROM clip_search.failure") == 1
            with database.connect(user=eve) as mine:
                mine.execute(f"""
                    CREATE FUNCTION {eve}.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
                        $$ BEGIN PERFORM {eve}.note('saw ' || $1); RETURN true; END $$""")
                for view, column in (
                    ("failure", "key::text || message"),
                    ("pending", "key::text"),
                    ("watch", "relation::text"),
                ):
                    assert value(mine, f"SELECT count(*) FROM clip_search.{view} WHERE {eve}.leak({column})") == 0
                assert value(mine, f"SELECT count(*) FROM {eve}.ran WHERE inside LIKE 'saw%'") == 0
        finally:
            db.execute("DROP TABLE kept")
