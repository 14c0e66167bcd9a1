"""Access to a collection: its owner, roles with grants, and nobody else."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

import support
from support import raised_error, value


class Roles:
    """Ordinary roles in one database that each own a schema."""

    def __init__(self, database: support.Database):
        self.database = database
        self.made: list[str] = []

    def new(self, member_of: str | None = None, options: str = "") -> str:
        name = f"clip_role_{uuid.uuid4().hex[:10]}"
        with self.database.connect() as db:
            db.execute(sql.SQL("CREATE ROLE {} LOGIN " + options).format(sql.Identifier(name)))
            db.execute(sql.SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(sql.Identifier(name)))
            if member_of:
                db.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(member_of), sql.Identifier(name)))
        self.made.append(name)
        return name

    def drop(self, name: str) -> None:
        with self.database.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        self.made.remove(name)


@pytest.fixture
def roles(database: support.Database) -> Iterator[Roles]:
    made = Roles(database)
    yield made
    # Unwatch tables first: a watched table keeps its collection.
    for name in reversed(list(made.made)):
        made.drop(name)
    with database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("SELECT clip_drop_collection(name) FROM clip_search.collection")
        db.execute("DELETE FROM clip_search.collection_grant")


def as_role(database: support.Database, role: str, autocommit: bool = True) -> psycopg.Connection:
    return database.connect(user=role, autocommit=autocommit)


def fill(db: psycopg.Connection, schema: str, collection: str) -> None:
    """A table with two groups, and its collection."""
    db.execute(f"CREATE TABLE {schema}.pets (id int PRIMARY KEY, embedding vector(3), cluster_id bigint, tags text[])")
    db.execute(
        "SELECT clip_create_collection(%s, 0.9, members => %s, labels => 'tags')", (collection, f"{schema}.pets")
    )
    db.execute(f"""INSERT INTO {schema}.pets (id, embedding, tags) VALUES
        (1, '[1,0,0]', '{{cat}}'), (2, '[1,0.1,0]', '{{cat}}'), (3, '[0,1,0]', '{{dog}}'), (4, '[0.1,1,0]', '{{dog}}')""")
    db.execute(f"UPDATE {schema}.pets SET cluster_id = clip_assign_cluster(embedding, %s)", (collection,))


def names(db: psycopg.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM clip_search.collection")}


def test_a_stranger_sees_and_changes_nothing(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db:
        fill(db, bob, "pets")
        cluster = value(db, f"SELECT cluster_id FROM {bob}.pets WHERE id = 1")
        before = db.execute("SELECT id, size FROM clip_search.cluster ORDER BY 1").fetchall()
        assert [size for _, size in before] == [2, 2]
        assert value(db, "SELECT owner::text FROM clip_search.collection WHERE name = 'pets'") == bob
    with as_role(database, eve) as db:
        assert names(db) == set()
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0
        assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE id = %s", cluster) == 0
        for call in (
            "SELECT clip_assign_cluster('[1,0,0]', 'pets')",
            "SELECT * FROM clip_recluster('pets')",
            "SELECT * FROM clip_clusters('pets')",
            "SELECT clip_cluster_groups('pets')",
            "SELECT * FROM clip_duplicates('pets')",
            "SELECT * FROM clip_clusters('pets', 1)",
        ):
            state, text = raised_error(db, call)
            assert state == "42501" and 'permission denied for collection "pets"' in text, call
        # Ids can be guessed, so another owner's cluster looks the same as a missing one.
        for number in (cluster, 1 << 40):
            assert value(db, "SELECT clip_leave_cluster(%s, '[1,0,0]')", number) is False
        for call in (
            "SELECT clip_drop_collection('pets')",
            "SELECT clip_alter_collection('pets', threshold => 0.1)",
            f"SELECT clip_grant_collection('pets', '{eve}')",
            "SELECT clip_revoke_collection('pets', 'PUBLIC')",
            "SELECT clip_create_collection('pets')",
        ):
            state, text = raised_error(db, call)
            assert state == "42501" and "must be owner" in text, call
        for table in (
            "collection_setting",
            "collection_grant",
            "cluster_sum",
            "cluster_change",
            "cluster_code",
            "collection_owner",
            "collection_visible",
        ):
            assert raised_error(db, f"SELECT * FROM clip_search.{table}")[0] == "42501"
        assert (
            raised_error(db, "SELECT clip_create_collection('mine', members => %s)", "pg_catalog.pg_am")[0] == "42501"
        )
    with as_role(database, bob) as db:
        assert db.execute("SELECT id, size FROM clip_search.cluster ORDER BY 1").fetchall() == before


def test_a_stranger_s_open_transaction_holds_up_nobody(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db, as_role(database, eve, autocommit=False) as stranger:
        db.execute(f"CREATE TABLE {bob}.diary (id int PRIMARY KEY, body text)")
        db.execute(f"SELECT clip_watch('{bob}.diary', 'body', cluster => 'cluster_id')")
        db.execute(f"INSERT INTO {bob}.diary VALUES (1, 'a cat'), (2, 'a cat'), (3, 'my bank account')")
        cluster = value(db, f"SELECT cluster_id FROM {bob}.diary WHERE id = 3")
        for call in (
            "SELECT clip_assign_cluster(clip_embed_text('a cat'), 'diary')",
            "SELECT * FROM clip_recluster('diary')",
            "SELECT clip_drop_collection('diary')",
        ):
            stranger.execute("SAVEPOINT before")
            assert raised_error(stranger, call)[0] == "42501"
            stranger.execute("ROLLBACK TO before")
        assert value(stranger, "SELECT clip_leave_cluster(%s, clip_embed_text('my bank account'))", cluster) is False
        assert stranger.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        # A name of the stranger's own that has the same 32-bit FNV-1a hash as "diary".
        stranger.execute("SELECT clip_assign_cluster('[1,2,3]', 'naayyra')")
        db.execute("SET lock_timeout = '20s'")
        db.execute("SET statement_timeout = '60s'; SET client_min_messages = warning")
        db.execute("SELECT * FROM clip_recluster('diary')")
        db.execute(f"TRUNCATE {bob}.diary")
        db.execute(f"SELECT clip_unwatch('{bob}.diary')")


def test_each_privilege_is_granted_and_revoked_by_itself(database: support.Database, roles: Roles) -> None:
    bob, app = roles.new(), roles.new()
    member = roles.new(member_of=app)
    calls = {
        "select": "SELECT * FROM clip_search.cluster WHERE collection = 'pets' AND (SELECT count(*) FROM clip_clusters('pets', 1)) > 0",
        "assign": "SELECT clip_assign_cluster('[1,0,0]', 'pets')",
        "recluster": "SELECT * FROM clip_recluster('pets')",
    }
    with as_role(database, bob) as owner, as_role(database, member) as db:
        fill(owner, bob, "pets")
        owner.execute(f"GRANT USAGE ON SCHEMA {bob} TO {app}; GRANT SELECT ON {bob}.pets TO {app}")
        db.execute("SET client_min_messages = warning")

        def works() -> set[str]:
            found = set()
            for name, call in calls.items():
                try:
                    db.execute(call)
                    found.add(name)
                except psycopg.errors.InsufficientPrivilege:
                    pass
            assert {
                name for name in calls if value(db, "SELECT clip_has_collection_privilege('pets', %s)", name)
            } == found
            assert (names(db) == {"pets"}) == ("select" in found)
            return found

        assert works() == set()
        for name in calls:
            # The grant goes to the role of which it is a member.
            owner.execute("SELECT clip_grant_collection('pets', %s, %s)", (app, name))
            assert works() == {name}
            owner.execute("SELECT clip_grant_collection('pets', %s, %s)", (app, name))
            owner.execute("SELECT clip_revoke_collection('pets', %s, %s)", (app, name))
            assert works() == set()
            owner.execute("SELECT clip_grant_collection('pets', 'public', %s)", (name,))
            assert works() == {name}
            owner.execute("SELECT clip_revoke_collection('pets', 'PUBLIC', %s)", (name,))
        owner.execute("SELECT clip_grant_collection('pets', %s)", (app,))
        assert works() == set(calls)
        assert not value(db, "SELECT clip_has_collection_privilege('pets', 'owner')")
        assert value(owner, "SELECT clip_has_collection_privilege('pets', 'owner')")
        owner.execute("SELECT clip_revoke_collection('pets', %s)", (app,))
        assert works() == set()
        # A grant on the collection gives no right to read its members.
        owner.execute("SELECT clip_grant_collection('pets', %s, 'select')", (app,))
        owner.execute(f"REVOKE SELECT ON {bob}.pets FROM {app}")
        state, text = raised_error(db, "SELECT * FROM clip_clusters('pets')")
        assert state == "42501" and "permission denied for table" in text
        owner.execute(f"GRANT SELECT (id, embedding, cluster_id, tags) ON {bob}.pets TO {app}")
        assert len(db.execute("SELECT * FROM clip_clusters('pets')").fetchall()) == 2
        for call, state in (
            ("SELECT clip_grant_collection('pets', 'nobody at all')", "42704"),
            ("SELECT clip_grant_collection('pets', 'public', 'update')", "22023"),
            ("SELECT clip_grant_collection('none', 'public')", "42704"),
            ("SELECT clip_grant_collection('pets', NULL)", "22004"),
            ("SELECT clip_has_collection_privilege('none', 'select')", "42704"),
        ):
            assert raised_error(owner, call)[0] == state, call


def test_default_is_open_until_it_is_closed(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with database.connect() as admin, as_role(database, bob) as db, as_role(database, eve) as other:
        cluster = value(db, "SELECT clip_assign_cluster('[1,0,0]')")
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]')") == cluster
        assert value(other, "SELECT size FROM clip_search.cluster WHERE id = %s", cluster) == 2
        assert value(other, "SELECT owner FROM clip_search.collection WHERE name = 'default'") == value(
            admin, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        )
        for call in (
            "SELECT clip_revoke_collection('default', 'PUBLIC')",
            "SELECT clip_create_collection('default')",
            "SELECT clip_drop_collection('default')",
        ):
            assert raised_error(other, call)[0] == "42501"
        # A grant to one role doesn't close the collection to others.
        admin.execute("SELECT clip_grant_collection('default', %s)", (bob,))
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]')") == cluster
        admin.execute("SELECT clip_revoke_collection('default', 'PUBLIC')")
        assert raised_error(other, "SELECT clip_assign_cluster('[1,0,0]')")[0] == "42501"
        assert names(other) == set()
        assert value(db, "SELECT clip_assign_cluster('[1,0,0]')") == cluster
        # It stays closed after it was dropped with its clusters.
        admin.execute("SELECT clip_drop_collection('default')")
        assert raised_error(other, "SELECT clip_assign_cluster('[1,0,0]')")[0] == "42501"
        admin.execute("SELECT clip_grant_collection('default', 'PUBLIC')")
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]')") > 0


def test_default_keeps_open_when_it_gets_settings(database: support.Database, roles: Roles) -> None:
    eve = roles.new()
    with database.connect() as admin, as_role(database, eve) as db:
        admin.execute("SELECT clip_create_collection('default', 0.99)")
        assert value(db, "SELECT clip_assign_cluster('[1,0,0]')") > 0
        admin.execute("SELECT clip_alter_collection('default', threshold => 0.5)")
        assert value(db, "SELECT threshold FROM clip_search.collection WHERE name = 'default'") == 0.5


def test_a_collection_belongs_to_the_role_that_assigns_first(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db, as_role(database, eve) as other:
        cluster = value(db, "SELECT clip_assign_cluster('[1,0,0]', 'loose')")
        assert value(db, "SELECT owner FROM clip_search.collection WHERE name = 'loose'") == bob
        assert raised_error(other, "SELECT clip_assign_cluster('[1,0,0]', 'loose')")[0] == "42501"
        assert raised_error(other, "SELECT clip_create_collection('loose')")[0] == "42501"
        db.execute("SELECT clip_grant_collection('loose', %s, 'assign')", (eve,))
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]', 'loose')") == cluster
        # Giving a collection settings keeps its owner and its grants.
        db.execute("SELECT clip_create_collection('loose', 0.5)")
        assert value(db, "SELECT owner FROM clip_search.collection WHERE name = 'loose'") == bob
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]', 'loose')") == cluster
        db.execute("SELECT clip_drop_collection('loose')")
        assert value(other, "SELECT clip_assign_cluster('[1,0,0]', 'loose')") != cluster
        assert raised_error(db, "SELECT clip_assign_cluster('[1,0,0]', 'loose')")[0] == "42501"


def test_nobody_waits_for_a_collection_that_is_being_made(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with (
        as_role(database, bob, autocommit=False) as first,
        as_role(database, bob, autocommit=False) as second,
        as_role(database, eve) as other,
    ):
        for db in (first, second, other):
            db.execute("SET statement_timeout = '60s'")
        other.commit()
        cluster = value(first, "SELECT clip_assign_cluster('[1,0,0]', 'new')")
        assert value(second, "SELECT clip_assign_cluster('[1,0,0]', 'new')") == cluster
        # Another role's assignment would create a second owner.
        state, text = raised_error(other, "SELECT clip_assign_cluster('[1,0,0]', 'new')")
        assert state == "42501" and "just now making it" in text
        # The second session wrote a row of its own: if the first rolls back, the collection still has an owner.
        first.rollback()
        second.commit()
        assert raised_error(other, "SELECT clip_assign_cluster('[1,0,0]', 'new')")[0] == "42501"
        assert value(first, "SELECT owner FROM clip_search.collection WHERE name = 'new'") == bob
        assert value(first, "SELECT clip_assign_cluster('[1,0,0]', 'new')") == cluster


def test_alter_changes_what_it_names(database: support.Database, roles: Roles) -> None:
    team = roles.new()
    bob = roles.new(member_of=team)
    with database.connect() as admin, as_role(database, bob) as db:
        fill(db, bob, "pets")
        shown = "SELECT to_jsonb(c) - 'created_at' FROM clip_search.collection c WHERE name = 'pets'"
        before = value(db, shown)
        db.execute("SELECT clip_alter_collection('pets')")
        assert value(db, shown) == before
        db.execute("SELECT clip_alter_collection('pets', threshold => 0.75, model => 'photo-mini')")
        assert value(db, shown) == before | {"threshold": 0.75, "model": "photo-mini"}
        assert raised_error(db, "SELECT clip_alter_collection('pets', labels => 'id')")[0] == "42804"
        assert raised_error(db, "SELECT clip_alter_collection('pets', threshold => 1.5)")[0] == "22023"
        assert raised_error(db, "SELECT clip_alter_collection('none', threshold => 0.5)")[0] == "42704"
        assert raised_error(db, "SELECT clip_alter_collection('pets', owner => 'postgres')")[0] == "42501"
        # The collection belongs to the owner of the members' table.
        assert raised_error(db, "SELECT clip_alter_collection('pets', owner => %s)", team)[0] == "55000"
        admin.execute(f"GRANT USAGE, CREATE ON SCHEMA {bob} TO {team}")
        db.execute(f"ALTER TABLE {bob}.pets OWNER TO {team}")
        assert value(db, "SELECT owner::text FROM clip_search.collection WHERE name = 'pets'") == team
        db.execute("SELECT clip_alter_collection('pets', owner => %s)", (team,))
        db.execute("SET client_min_messages = warning")
        assert len(db.execute("SELECT * FROM clip_clusters('pets')").fetchall()) == 2
        db.execute("SELECT * FROM clip_recluster('pets')")
        assert raised_error(db, "SELECT clip_alter_collection('loose', key => 'id')")[0] == "42704"
        db.execute("SELECT clip_assign_cluster('[1,0,0]', 'loose')")
        db.execute("SELECT clip_alter_collection('loose', threshold => 0.3)")
        assert db.execute("SELECT threshold, owner FROM clip_search.collection WHERE name = 'loose'").fetchone() == (
            0.3,
            bob,
        )
        assert raised_error(db, "SELECT clip_alter_collection('loose', key => 'id')")[0] == "55000"


def test_a_dropped_role_s_collections_are_the_database_owner_s(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db:
        db.execute("SELECT clip_create_collection('left', 0.5)")
        db.execute("SELECT clip_assign_cluster('[1,0,0]', 'left'), clip_assign_cluster('[1,0,0]', 'loose')")
        db.execute("SELECT clip_grant_collection('left', %s)", (eve,))
    roles.drop(bob)
    with database.connect() as admin, as_role(database, eve) as db:
        owner = value(admin, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
        assert dict(admin.execute("SELECT name, owner::text FROM clip_search.collection").fetchall()) == {
            "left": owner,
            "loose": owner,
        }
        assert names(db) == {"left"}
        assert raised_error(db, "SELECT clip_assign_cluster('[1,0,0]', 'loose')")[0] == "42501"
        admin.execute("SELECT clip_alter_collection('left', owner => %s)", (eve,))
        db.execute("SELECT clip_drop_collection('left')")


def test_a_collection_follows_its_table(database: support.Database, roles: Roles) -> None:
    """ALTER TABLE … OWNER TO and REASSIGN OWNED also change the collection's owner; the former owner loses all
    rights."""
    bob, eve, alice = roles.new(), roles.new(), roles.new()
    owner = "SELECT owner::text FROM clip_search.collection WHERE name = 'pets'"
    with database.connect() as admin, as_role(database, bob) as db, as_role(database, alice) as new:
        fill(db, bob, "pets")
        db.execute("SELECT clip_grant_collection('pets', %s, 'select')", (eve,))
        for change in (f"ALTER TABLE {bob}.pets OWNER TO {alice}", f"REASSIGN OWNED BY {alice} TO {eve}"):
            admin.execute(change)
            now = change.split()[-1]
            assert value(admin, owner) == now
            assert raised_error(db, "SELECT clip_drop_collection('pets')")[0] == "42501"
            assert raised_error(db, "SELECT * FROM clip_recluster('pets')")[0] == "42501"
            assert raised_error(db, "SELECT clip_assign_cluster('[1,0,0]', 'pets')")[0] == "42501"
            assert names(db) == set()
        admin.execute(f"REASSIGN OWNED BY {eve} TO {alice}; GRANT USAGE ON SCHEMA {bob} TO {alice}")
        new.execute("SET client_min_messages = warning")
        new.execute("SELECT * FROM clip_recluster('pets')")
        assert len(new.execute("SELECT * FROM clip_clusters('pets')").fetchall()) == 2
        # Grants by an owner stay, like the privileges of a table.
        assert names(new) == {"pets"}
    with as_role(database, eve) as db:
        assert names(db) == {"pets"}


def test_grants_of_another_owner_end_with_clip_watch(database: support.Database, roles: Roles) -> None:
    """When an administrator groups a table's rows in another role's collection, the collection changes its owner,
    and that role's grants end."""
    bob, eve, alice = roles.new(), roles.new(), roles.new()
    with database.connect() as admin, as_role(database, bob) as db:
        db.execute("SELECT clip_create_collection('pets', 0.8)")
        db.execute(
            "SELECT clip_grant_collection('pets', %s), clip_grant_collection('pets', 'PUBLIC', 'select')", (eve,)
        )
        admin.execute(
            f"CREATE TABLE {alice}.note (id int PRIMARY KEY, body text); ALTER TABLE {alice}.note OWNER TO {alice}"
        )
        admin.execute("SET client_min_messages = warning")
        admin.execute(f"SELECT clip_watch('{alice}.note', 'body', cluster => 'cluster_id', collection => 'pets')")
        assert value(admin, "SELECT owner::text FROM clip_search.collection WHERE name = 'pets'") == alice
        assert value(admin, "SELECT count(*) FROM clip_search.collection_grant WHERE collection = 'pets'") == 0
        for role in (bob, eve):
            with as_role(database, role) as other:
                assert names(other) == set()
        admin.execute(f"DROP TABLE {alice}.note")


def test_a_leaky_condition_sees_no_hidden_row(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db:
        fill(db, bob, "pets")
    with as_role(database, eve) as db:
        seen: list[str] = []
        db.add_notice_handler(lambda notice: seen.append(notice.message_primary))
        db.execute("SELECT clip_assign_cluster('[0,0,1]', 'mine')")
        db.execute(f"""
            CREATE FUNCTION {eve}.leak(anyelement) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS
            $$ BEGIN RAISE NOTICE 'leaked %', $1::text; RETURN true; END $$""")
        for view, column in (
            ("cluster", "collection"),
            ("cluster", "centroid"),
            ("cluster", "id"),
            ("cluster", "size"),
            ("collection", "name"),
            ("collection", "members"),
            ("collection", "threshold"),
        ):
            rows = db.execute(f"SELECT * FROM clip_search.{view} WHERE {eve}.leak({column})").fetchall()
            assert len(rows) == 1
        assert len(seen) == 7 and not any("pets" in text for text in seen), seen


def test_every_writer_of_a_watched_table_joins(database: support.Database, roles: Roles) -> None:
    bob, writer = roles.new(), roles.new()
    with as_role(database, bob) as db, as_role(database, writer) as other:
        db.execute(f"CREATE TABLE {bob}.note (id int PRIMARY KEY, body text)")
        db.execute(f"SELECT clip_watch('{bob}.note', 'body', cluster => 'cluster_id')")
        db.execute(
            f"GRANT USAGE ON SCHEMA {bob} TO {writer}; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {bob}.note TO {writer}"
        )
        other.execute(f"INSERT INTO {bob}.note VALUES (1, 'a cat'), (2, 'a cat'), (3, 'a train')")
        other.execute(f"UPDATE {bob}.note SET body = 'a cat' WHERE id = 3")
        other.execute(f"DELETE FROM {bob}.note WHERE id = 1")
        assert names(other) == set()
        assert db.execute("SELECT size FROM clip_search.cluster").fetchall() == [(2,)]
        assert raised_error(other, "SELECT clip_assign_cluster(clip_embed_text('a cat'), 'note')")[0] == "42501"
        other.execute(f"TRUNCATE {bob}.note")
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0


def test_a_name_that_others_have_is_refused_at_once(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db, as_role(database, eve, autocommit=False) as stranger:
        db.execute(f"CREATE TABLE {bob}.pictures (id int PRIMARY KEY, body text)")
        watch = f"SELECT clip_watch('{bob}.pictures', 'body', cluster => 'cluster_id')"
        db.execute("SET statement_timeout = '60s'")
        for call in ("clip_create_collection('pictures')", "clip_assign_cluster('[1,2,3]', 'pictures')"):
            stranger.execute(f"SELECT {call}")
            state, text = raised_error(db, watch)
            assert state == "42501" and "just now making it" in text, call
            stranger.rollback()
        # The error doesn't reveal what the other owner's collection holds.
        stranger.execute("SELECT clip_assign_cluster('[1,2,3]', 'pictures')")
        stranger.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
            db.execute(watch)
        assert "collection =>" in (error.value.diag.message_hint or "")
        db.execute(f"SELECT clip_watch('{bob}.pictures', 'body', cluster => 'cluster_id', collection => 'others')")


def test_watch_takes_no_collection_of_others(database: support.Database, roles: Roles) -> None:
    bob, eve = roles.new(), roles.new()
    with as_role(database, bob) as db, as_role(database, eve) as other:
        db.execute("SELECT clip_assign_cluster(clip_embed_text('a cat'), 'loose')")
        db.execute("SELECT clip_create_collection('settled')")
        other.execute(f"CREATE TABLE {eve}.note (id int PRIMARY KEY, body text)")
        for name in ("loose", "settled", "default"):
            call = f"SELECT clip_watch('{eve}.note', 'body', cluster => 'cluster_id', collection => '{name}')"
            assert raised_error(other, call)[0] == "42501", name
        assert value(db, "SELECT count(*) FROM clip_search.collection WHERE owner::text = %s", bob) == 2


def test_a_dump_keeps_owners_and_grants(
    database: support.Database, roles: Roles, pg_program, empty_database: support.Database
) -> None:
    bob, eve, gone = roles.new(), roles.new(), roles.new()
    with as_role(database, gone) as db:
        db.execute("SELECT clip_create_collection('orphan', 0.7)")
    with as_role(database, bob) as db:
        fill(db, bob, "pets")
        db.execute("SELECT clip_assign_cluster('[1,0,0]', 'loose')")
        db.execute("SELECT clip_grant_collection('pets', %s, 'select')", (eve,))
        db.execute(
            "SELECT clip_grant_collection('loose', 'PUBLIC', 'assign'), clip_grant_collection('loose', %s)", (gone,)
        )
    with database.connect() as db:
        db.execute(f"CREATE TABLE gone_role AS SELECT oid FROM pg_roles WHERE rolname = '{gone}'")
    roles.drop(gone)
    stored = "SELECT collection, grantee::text, privilege FROM clip_search.collection_grant WHERE grantee = 0 OR grantee IN (SELECT oid FROM pg_roles) ORDER BY 1, 2, 3"
    shown = "SELECT to_jsonb(c) FROM clip_search.collection c ORDER BY name"
    with database.connect() as db:
        before = db.execute(stored).fetchall(), db.execute(shown).fetchall()
        number = str(value(db, "SELECT oid FROM gone_role"))
        db.execute("DROP TABLE gone_role")
    dump = subprocess.run([pg_program("pg_dump"), database.name], capture_output=True, text=True, check=True).stdout
    # In the server that the dump is restored to, another role might have that number.
    assert "orphan" in dump and number not in [field for line in dump.splitlines() for field in line.split("\t")]
    subprocess.run(
        [pg_program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", empty_database.name],
        input=dump,
        text=True,
        check=True,
        capture_output=True,
    )
    with empty_database.connect() as db:
        assert (db.execute(stored).fetchall(), db.execute(shown).fetchall()) == before
    with empty_database.connect(user=bob) as db:
        assert len(db.execute("SELECT * FROM clip_clusters('pets')").fetchall()) == 2
        assert names(db) == {"pets", "loose"}
    with empty_database.connect(user=eve) as db:
        assert names(db) == {"pets"}
        db.execute("SELECT clip_assign_cluster('[1,0,0]', 'loose')")
    with empty_database.connect() as db:
        db.execute("DROP OWNED BY " + bob + " CASCADE")
