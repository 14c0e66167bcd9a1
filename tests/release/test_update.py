"""ALTER EXTENSION UPDATE from every version of the CHANGELOG; and DROP EXTENSION leaves nothing.

sql/clip_search--A--B.sql, which the build installs unchanged, updates version A to B. With each release, its
installed SQL is added to tests/fixtures/releases, and its commit to the list there, from which scripts/releases.sh
builds it.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from installation import Copy, config
from servers import Server
from support import embed_one, value, vector

RELEASES = support.FIXTURES / "releases"
CURRENT = re.search(r'^version = "(.*)"', (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def released(changelog: str) -> list[str]:
    """The versions that users may have: CHANGELOG headings without "unreleased"."""
    headings = re.findall(r"^## \[?([^\s\]]+)\]?(.*)$", changelog, re.MULTILINE)
    return [version for version, rest in headings if "unreleased" not in rest]


def without_update(versions: list[str], paths: dict[str, str | None]) -> list[str]:
    return [version for version in versions if version != CURRENT and not paths.get(version)]


def test_a_version_without_an_update_is_found() -> None:
    changelog = (
        f"## [{CURRENT}] - unreleased\n\n### Added\n\n- ## no heading\n\n## [0.0.3] - 2026-03-01\n\n## [0.0.2]\n"
    )
    assert released(changelog) == ["0.0.3", "0.0.2"]
    assert without_update(["0.0.3", "0.0.2"], {"0.0.3": f"0.0.3--{CURRENT}", "0.0.2": None}) == ["0.0.2"]
    assert without_update(["0.0.3", CURRENT], {}) == ["0.0.3"]


def test_every_released_version_can_be_updated(database: support.Database) -> None:
    changelog = (support.ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[?([^\s\]]+)", changelog, re.MULTILINE)[1] == CURRENT, (
        "CHANGELOG.md begins with the version of Cargo.toml"
    )
    with database.connect() as db:
        assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == CURRENT
        assert value(db, "SELECT default_version FROM pg_available_extensions WHERE name = 'clip_search'") == CURRENT
        query = "SELECT source, path FROM pg_extension_update_paths('clip_search') WHERE target = %s"
        paths = dict(db.execute(query, (CURRENT,)).fetchall())
    assert without_update(released(changelog), paths) == [], "each needs a script sql/clip_search--….sql"
    for version in released(changelog):
        assert version == CURRENT or (RELEASES / f"clip_search--{version}.sql").exists(), "its SQL is the test below's"


# ---------------------------------------------------------------- updates, run


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    # Programs may look for libpq relative to their own place.
    monkeypatch.setenv("LD_LIBRARY_PATH", str(config("libdir")))
    folder = pathlib.Path(os.environ["PGHOST"]) / f"copy-{os.getpid()}"
    try:
        yield Copy(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# All objects of the extension, each with its definition, rights and comment, but without oids.
MEMBERS = """
    WITH member AS (
        SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
        WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'clip_search'
    )
    SELECT pg_describe_object(d.classid, d.objid, 0),
           CASE d.classid WHEN 'pg_proc'::regclass THEN CASE (SELECT prokind FROM pg_proc WHERE oid = d.objid) WHEN 'a' THEN ''
                ELSE pg_get_functiondef(d.objid) END
                WHEN 'pg_class'::regclass THEN (SELECT string_agg(format('%s %s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod),
                    a.attnotnull, pg_get_expr(f.adbin, f.adrelid), col_description(a.attrelid, a.attnum)), E'\\n' ORDER BY a.attname)
                    FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
                    WHERE a.attrelid = d.objid AND a.attnum > 0 AND NOT a.attisdropped) END,
           (SELECT proacl::text FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid),
           (SELECT format('%s %s %s', relacl, reloptions, CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END)
            FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid),
           obj_description(d.objid, (SELECT relname FROM pg_class WHERE oid = d.classid)) FROM member d
    UNION ALL
    SELECT 'constraint ' || conname, pg_get_constraintdef(oid), '', '', obj_description(oid, 'pg_constraint') FROM pg_constraint
    WHERE conrelid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
    UNION ALL
    SELECT 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid), '', '', obj_description(indexrelid, 'pg_class') FROM pg_index
    WHERE indrelid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
    UNION ALL
    SELECT 'dumped ' || t.relation::regclass, t.condition, '', '', '' FROM pg_extension,
        unnest(extconfig, extcondition) AS t (relation, condition) WHERE extname = 'clip_search'
    ORDER BY 1"""


def members(db: psycopg.Connection) -> dict[str, tuple]:
    return {name: rest for name, *rest in db.execute(MEMBERS)}


def check_members(found: dict[str, tuple], created: dict[str, tuple]) -> None:
    assert found.keys() == created.keys()
    assert {name: found[name] for name in found if found[name] != created[name]} == {
        name: created[name] for name in found if found[name] != created[name]
    }


STORED = ("clip_search.collection", "clip_search.cluster", "clip_search.failure", "note", "photo")


def stored(db: psycopg.Connection) -> list[list[tuple]]:
    # Collections have had owners since 0.3.0.
    return [db.execute(f"SELECT to_jsonb(t) - 'owner' FROM {table} t ORDER BY 1").fetchall() for table in STORED]


def settings(db: psycopg.Connection) -> list[tuple]:
    return db.execute(
        "SELECT to_jsonb(w) - 'rows' - 'embedded' - 'pending' - 'failed' - 'outdated' - 'models' - 'tags' FROM clip_search.watch w ORDER BY 1"
    ).fetchall()


CAT, ROCKET = (
    (support.ROOT / "examples" / "gallery" / "photos" / f"{name}.jpg").read_bytes() for name in ("cat", "rocket")
)


def fill(db: psycopg.Connection) -> None:
    """The data of an installation: groups, watched tables in both modes, a failed row and a postponed row."""
    db.execute("CREATE TABLE note (id bigint PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    db.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a steam locomotive'), (3, NULL)")
    db.execute("CREATE TABLE photo (id bigint PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'group', on_error => 'skip', threshold => 0.9)")
    db.execute("INSERT INTO photo VALUES (1, %b), (2, %b), (3, 'no image')", (CAT, ROCKET))
    db.execute("SELECT clip_create_collection('own', 0.5, model => 'photo-mini')")
    db.execute("SELECT clip_assign_cluster(embedding, 'own') FROM note")
    # One collection was created by its first assignment; the other is the default collection.
    db.execute("SELECT clip_assign_cluster(embedding, 'loose'), clip_assign_cluster(embedding) FROM note")


def check_works(db: psycopg.Connection, number: int) -> None:
    """Runs everything that reads and writes stored data. `number` is an id that no row has."""
    db.execute("INSERT INTO note VALUES (%s, 'a cat')", (number,))
    db.execute("INSERT INTO photo VALUES (%s, %b)", (number, CAT))
    for table, kind, source in (("note", "text", "body"), ("photo", "image", "data")):
        for content, embedding in db.execute(f"SELECT {source}, embedding::text FROM {table}").fetchall():
            assert (embedding is None) == (content is None or content == b"no image")
            assert embedding is None or support.same_embedding(vector(embedding), embed_one(db, kind, content)), content
    assert value(db, "SELECT count(DISTINCT cluster_id) FROM note WHERE body = 'a cat'") == 1
    assert value(db, 'SELECT count(DISTINCT "group") FROM photo WHERE data = %b', CAT) == 1
    own = value(db, "SELECT clip_assign_cluster(embedding, 'own') FROM note WHERE id = 1")
    assert value(db, "SELECT clip_leave_cluster(%s, embedding) FROM note WHERE id = 1", own)
    for table, column in (("note", "cluster_id"), ("photo", '"group"')):
        counted = db.execute(
            f"SELECT {column}, count(*) FROM {table} WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert (
            db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = %s ORDER BY 1", (table,)).fetchall()
            == counted
        )
    db.execute("DELETE FROM note WHERE id = %s", (number,))
    db.execute("DELETE FROM photo WHERE id = %s", (number,))
    assert (
        value(db, "SELECT failed FROM clip_search.watch WHERE relation = 'photo'::regclass AND embedding = 'embedding'")
        == 1
    )
    assert value(db, "SELECT key[1] FROM clip_search.failure") == "3"
    db.execute("CALL clip_backfill('note')")
    assert value(db, "SELECT sum(moved) FROM clip_recluster('note')") is None


# With more than 432 clusters, codes are stored and searched.
MANY = 700


def fill_many(db: psycopg.Connection) -> list[int]:
    """Creates many clusters of one member each; returns their ids."""
    rows = np.random.default_rng(3).standard_normal((MANY, 512))
    db.execute("CREATE TABLE many (n int PRIMARY KEY, embedding vector(512))")
    with db.cursor().copy("COPY many FROM STDIN") as copy:
        for n, row in enumerate(rows):
            copy.write_row((n, support.vector_text(row)))
    ids = [value(db, "SELECT clip_assign_cluster(embedding, 'many') FROM many WHERE n = %s", n) for n in range(MANY)]
    assert len(set(ids)) == MANY
    assert value(db, "SELECT sum(length(entries) / 36) FROM clip_search.cluster_code WHERE collection = 'many'") > 400
    return ids


def check_many(db: psycopg.Connection, ids: list[int]) -> None:
    """Checks that each vector finds its cluster by the stored code."""
    with db.transaction(force_rollback=True):
        found = [
            value(db, "SELECT clip_assign_cluster(embedding, 'many') FROM many WHERE n = %s", n) for n in range(MANY)
        ]
    assert found == ids


def until_true(db: psycopg.Connection, query: str) -> None:
    support.until(lambda: value(db, query), query)


def updated(db: psycopg.Connection) -> None:
    """Checks that collections have owners after the update and are still open to everyone, as a NOTICE says."""
    told: list[str] = []
    db.add_notice_handler(lambda notice: told.append(f"{notice.message_primary} {notice.message_hint}"))
    role = f"clip_role_{os.getpid()}"
    db.execute(f"CREATE ROLE {role} LOGIN; ALTER TABLE note OWNER TO {role}; SET client_min_messages = notice")
    db.execute("ALTER EXTENSION clip_search UPDATE")
    db.execute("SET client_min_messages = warning")
    told = [text for text in told if "can still see" in text]
    assert (
        len(told) == 1
        and {"loose", "note", "own", "photo"} <= set(re.findall(r"\w+", told[0].split("collections: ")[1]))
        and "clip_revoke_collection(name, 'PUBLIC')" in told[0]
    )
    owner = value(db, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
    found = dict(db.execute("SELECT name, owner::text FROM clip_search.collection WHERE name <> 'many'").fetchall())
    assert found == {"note": role, "photo": owner, "own": owner, "loose": owner, "default": owner}
    db.execute(f"GRANT USAGE ON SCHEMA {value(db, 'SELECT quote_ident(current_schema())')} TO {role}")
    with psycopg.connect(db.info.dsn, user=role, password="", autocommit=True) as other:
        other.execute(f"SET search_path = {value(db, 'SHOW search_path')}")
        assert {name for (name,) in other.execute("SELECT name FROM clip_search.collection")} - {"many"} == found.keys()
        with other.transaction(force_rollback=True):
            for name in ("own", "loose"):
                cluster = value(other, "SELECT clip_assign_cluster(embedding, %s) FROM note WHERE id = 1", name)
                assert value(other, "SELECT clip_leave_cluster(%s, embedding) FROM note WHERE id = 1", cluster)
        db.execute("SELECT clip_revoke_collection('own', 'PUBLIC')")
        assert (
            support.raised_error(other, "SELECT clip_assign_cluster(embedding, 'own') FROM note WHERE id = 1")[0]
            == "42501"
        )
    db.execute("SELECT clip_grant_collection('own', 'PUBLIC')")
    db.execute(f"ALTER TABLE note OWNER TO {owner}; DROP OWNED BY {role}; DROP ROLE {role}")
    # One call repairs what a dropped or changed owner leaves.
    db.execute("SELECT clip_alter_collection('note', owner => %s)", (owner,))
    assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == CURRENT


@pytest.mark.parametrize("version", released((support.ROOT / "CHANGELOG.md").read_text()))
@pytest.mark.parametrize("schema", ["public", "Ours"])
def test_update_gives_what_create_does(copy: Copy, version: str, schema: str) -> None:
    """Uses each version's installed SQL, in a schema where objects lay in wait for the extension."""
    shutil.copy(RELEASES / f"clip_search--{version}.sql", copy.extension)
    made = Server(copy.bindir, {})
    try:
        made.start()
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION vector")
            db.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"; SET search_path = "{schema}", public')
            db.execute(f'CREATE EXTENSION clip_search SCHEMA "{schema}"')
            created = members(db)
            assert len(created) > 90
            db.execute("DROP EXTENSION clip_search")
            if schema != "public":
                # 0.1.0 uses this function; later versions must not be affected by it.
                db.execute(
                    f'CREATE FUNCTION "{schema}".vector_norm(public.vector) RETURNS float8 LANGUAGE sql AS $$ SELECT 0.5::float8 $$'
                )
            db.execute(f"CREATE EXTENSION clip_search SCHEMA \"{schema}\" VERSION '{version}'")
            assert members(db) != created
            fill(db)
            before = stored(db), settings(db)
        # A session of the old version, whose plans are from before the update, and a new session.
        with made.connect() as db:
            db.execute(f'SET client_min_messages = warning; SET search_path = "{schema}", public')
            if schema == "public":
                check_works(db, 10)
                before = stored(db), settings(db)
            updated(db)
            if schema != "public":
                db.execute(f'DROP FUNCTION "{schema}".vector_norm')
                before = stored(db), settings(db)
            check_members(members(db), created)
            assert (stored(db), settings(db)) == before
            check_works(db, 20)
        with made.connect() as db:
            db.execute(f'SET search_path = "{schema}", public')
            assert CURRENT in value(db, "SELECT clip_version()::text")
            check_works(db, 30)
    finally:
        made.remove()


# Only the last release; `make matrix` tries all of them. Building one takes a minute or two.
EARLIER = released((support.ROOT / "CHANGELOG.md").read_text())
if os.environ.get("RELEASES") != "all":
    EARLIER = EARLIER[:1]


@pytest.mark.parametrize("version", EARLIER)
def test_an_earlier_build_is_updated(copy: Copy, version: str) -> None:
    """The version's own library and its worker write data; then a package installs the new library, at first without
    the update."""
    sharedir, libraries = config("sharedir"), config("pkglibdir")
    major = re.search(
        r"\d+", subprocess.run([os.environ["PG_CONFIG"], "--version"], capture_output=True, text=True).stdout
    )[0]
    built = support.ROOT / "target" / "releases" / version / f"pg{major}"
    library = built / libraries.relative_to("/") / "clip_search.so"
    if not library.exists():
        pytest.skip(f"{version} is not built: its commit is not in the history here (scripts/releases.sh)")
    for path in copy.extension.glob("clip_search*"):
        path.unlink()
    copy.put(built / sharedir.relative_to("/"), library)
    names = {path.name for path in copy.extension.glob("clip_search*")}
    assert {"clip_search.control", f"clip_search--{version}.sql"} <= names
    assert not any(name.endswith(f"{CURRENT}.sql") for name in names), "nothing of this version is there yet"
    made = Server(copy.bindir, {"clip_search.preload": "photo-mini", "clip_search.worker_retry_delay": "3600000"})
    try:
        made.start()
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
            assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == version
            assert f" {version}" in value(db, "SELECT clip_version()::text")
            assert (copy.extension / f"clip_search--{version}.sql").read_text().count("CREATE VIEW") == (
                RELEASES / f"clip_search--{version}.sql"
            ).read_text().count("CREATE VIEW")
            fill(db)
            db.execute("CREATE TABLE later (id bigint PRIMARY KEY, data bytea)")
            db.execute("SELECT clip_watch('later', 'data', mode => 'queued', on_error => 'skip')")
            db.execute("INSERT INTO later VALUES (1, %b), (2, 'no image')", (CAT,))
            embedded = "SELECT count(*) = {} FROM later WHERE embedding IS NOT NULL"
            until_true(db, embedded.format(1))
            until_true(db, "SELECT max(attempts) = 1 FROM clip_search.pending")
            check_works(db, 10)
            ids = fill_many(db)
            before = stored(db), settings(db)
        made.stop()
        copy.put(sharedir, libraries / "clip_search.so")
        made.start()
        with made.connect() as db:
            assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == version
            assert (stored(db), settings(db)) == before
            check_works(db, 20)
            db.execute("INSERT INTO later VALUES (3, %b)", (ROCKET,))
            until_true(db, embedded.format(2))
            before = stored(db), settings(db)
            updated(db)
            assert (stored(db), settings(db)) == before
            check_many(db, ids)
            found = members(db)
            check_works(db, 30)
            # The postponed row is still there, and gets corrected.
            assert [key for (key,) in db.execute("SELECT key[1] FROM clip_search.pending")] == ["2"]
            db.execute("UPDATE later SET data = %b WHERE id = 2", (CAT,))
            until_true(db, embedded.format(3))
            assert value(db, "SELECT count(*) FROM clip_search.pending") == 0
            db.execute("CREATE DATABASE fresh TEMPLATE template0")
        with psycopg.connect(host=str(made.folder), user="postgres", dbname="fresh", autocommit=True) as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
            check_members(found, members(db))
    finally:
        made.remove()


# ---------------------------------------------------------------- DROP EXTENSION


def catalogue(db: psycopg.Connection) -> dict[str, int]:
    """The number of rows in each system table: all rows of this database's own, and those of shared ones that
    concern it."""
    tables = db.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared "
        "AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data', 'pg_largeobject')"
    ).fetchall()
    counts = {name: value(db, f"SELECT count(*) FROM pg_catalog.{name}") for (name,) in tables}
    for name, column in (("pg_shdepend", "dbid"), ("pg_db_role_setting", "setdatabase")):
        counts[name] = value(
            db,
            f"SELECT count(*) FROM {name} WHERE {column} = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
    return counts


def test_drop_extension_leaves_no_trace(empty_database: support.Database) -> None:
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION vector")
        db.execute("CREATE TABLE note (id bigint PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
        before = catalogue(db)
        db.execute("CREATE EXTENSION clip_search")
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', on_error => 'skip')")
        db.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a steam locomotive')")
        db.execute("SELECT clip_create_collection('other', threshold => 0.5, members => 'note')")
        db.execute("SELECT clip_assign_cluster(embedding, 'other') FROM note")
        assert {name for name, count in catalogue(db).items() if count > before[name]} >= {
            "pg_class",
            "pg_proc",
            "pg_trigger",
            "pg_depend",
            "pg_type",
        }
        state, text = support.raised_error(db, "DROP EXTENSION clip_search")
        assert state == "2BP01" and "note" in text
        db.execute("DROP EXTENSION clip_search CASCADE")
        assert catalogue(db) == before
        # The user's own rows stay.
        assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 2
    with empty_database.connect() as db:
        assert value(db, "SELECT count(*) FROM pg_settings WHERE name LIKE 'clip_search.%'") == 0
        db.execute("INSERT INTO note VALUES (3, 'a cat')")
        db.execute("CREATE EXTENSION clip_search")
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0
