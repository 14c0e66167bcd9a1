"""ALTER EXTENSION UPDATE from every version of the CHANGELOG, and what DROP EXTENSION leaves: nothing.

sql/clip_search--A--B.sql, which the build installs as it is, updates version A to B. With a release, the SQL that it
installed goes into tests/fixtures/releases, from where test_update_gives_what_create_does takes it.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

import support
from servers import Server
from support import embed_one, value, vector

RELEASES = support.FIXTURES / "releases"
CURRENT = re.search(r'^version = "(.*)"', (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def released(changelog: str) -> list[str]:
    """The versions that somebody may have: headings with a date, or with nothing."""
    headings = re.findall(r"^## (\S+)(.*)$", changelog, re.MULTILINE)
    return [version for version, rest in headings if "unreleased" not in rest]


def without_update(versions: list[str], paths: dict[str, str | None]) -> list[str]:
    return [version for version in versions if version != CURRENT and not paths.get(version)]


def test_a_version_without_an_update_is_found() -> None:
    changelog = f"## {CURRENT} (unreleased)\n\n- ### no heading\n\n## 0.0.3 (2026-03-01)\n\n## 0.0.2\n"
    assert released(changelog) == ["0.0.3", "0.0.2"]
    assert without_update(["0.0.3", "0.0.2"], {"0.0.3": f"0.0.3--{CURRENT}", "0.0.2": None}) == ["0.0.2"]
    assert without_update(["0.0.3", CURRENT], {}) == ["0.0.3"]


def test_every_released_version_can_be_updated(database: support.Database) -> None:
    changelog = (support.ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == CURRENT, "CHANGELOG.md begins with the version of Cargo.toml"
    with database.connect() as db:
        assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == CURRENT
        assert value(db, "SELECT default_version FROM pg_available_extensions WHERE name = 'clip_search'") == CURRENT
        query = "SELECT source, path FROM pg_extension_update_paths('clip_search') WHERE target = %s"
        paths = dict(db.execute(query, (CURRENT,)).fetchall())
    assert without_update(released(changelog), paths) == [], "each needs a script sql/clip_search--….sql"
    for version in released(changelog):
        assert version == CURRENT or (RELEASES / f"clip_search--{version}.sql").exists(), "its SQL is the test below's"


# ---------------------------------------------------------------- updates, tried


def config(what: str) -> pathlib.Path:
    done = subprocess.run([os.environ["PG_CONFIG"], f"--{what}"], capture_output=True, text=True, check=True)
    return pathlib.Path(done.stdout.strip())


class Copy:
    """The server's programs and scripts in another place, where versions can be added. PostgreSQL finds its directories
    relative to its program; the libraries are the installed ones."""

    def __init__(self, folder: pathlib.Path):
        binaries, scripts, libraries = config("bindir"), config("sharedir"), config("pkglibdir")
        root = pathlib.Path(os.path.commonpath([binaries, scripts, libraries]))
        self.folder, self.bindir = folder, folder / binaries.relative_to(root)
        self.extension = folder / scripts.relative_to(root) / "extension"
        self.bindir.mkdir(parents=True)
        for name in ("postgres", "initdb", "pg_ctl", "pg_config"):
            shutil.copy2((binaries / name).resolve(), self.bindir / name)
        shutil.copytree(scripts, folder / scripts.relative_to(root), symlinks=False)
        linked = folder / libraries.relative_to(root)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(libraries)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent == self.bindir else 0o644)


@pytest.fixture(scope="module")
def copy() -> Iterator[Copy]:
    folder = pathlib.Path(os.environ["PGHOST"]) / f"copy-{os.getpid()}"
    try:
        yield Copy(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# An earlier version is made of this one's script, less what its update adds; released ones are files.
EARLIER = "0.0.0"
ADDED = "clip_version"


def halves(script: str) -> tuple[str, str]:
    """The script without the function, and what creates it."""
    create = re.search(rf'^CREATE +FUNCTION "?{ADDED}"?\(.*?;\n', script, re.MULTILINE | re.DOTALL)
    comment = re.search(rf"^COMMENT ON FUNCTION {ADDED}\(.*?;\n", script, re.MULTILINE | re.DOTALL)
    assert create and comment
    return script.replace(create[0], "").replace(comment[0], ""), create[0] + comment[0]


# What belongs to the extension, each with its definition, rights and comment, and no oid.
MEMBERS = """
    SELECT pg_describe_object(d.classid, d.objid, 0),
           CASE d.classid WHEN 'pg_proc'::regclass THEN CASE (SELECT prokind FROM pg_proc WHERE oid = d.objid) WHEN 'a' THEN ''
                ELSE pg_get_functiondef(d.objid) END
                WHEN 'pg_class'::regclass THEN (SELECT string_agg(format('%s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod),
                    a.attnotnull, pg_get_expr(f.adbin, f.adrelid)), E'\\n' ORDER BY a.attname) FROM pg_attribute a
                    LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
                    WHERE a.attrelid = d.objid AND a.attnum > 0 AND NOT a.attisdropped) END,
           (SELECT proacl::text FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid),
           (SELECT relacl::text FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid),
           obj_description(d.objid, (SELECT relname FROM pg_class WHERE oid = d.classid))
    FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'clip_search' ORDER BY 1"""

STORED = ("clip_search.watch", "clip_search.collection", "clip_search.cluster", "note")


def test_update_gives_what_create_does(copy: Copy) -> None:
    """By the scripts of an installation: settings, groups and watched tables are as they were, and the objects those of
    CREATE EXTENSION."""
    script = (copy.extension / f"clip_search--{CURRENT}.sql").read_text()
    before, update = halves(script)
    (copy.extension / f"clip_search--{EARLIER}.sql").write_text(before)
    (copy.extension / f"clip_search--{EARLIER}--{CURRENT}.sql").write_text(
        "SELECT pg_catalog.set_config('search_path', '@extschema@', true);\n" + update
    )
    versions = [EARLIER, *released((support.ROOT / "CHANGELOG.md").read_text())]
    for version in versions:
        if (RELEASES / f"clip_search--{version}.sql").exists():
            shutil.copy(RELEASES / f"clip_search--{version}.sql", copy.extension)
    made = Server(copy.bindir, {})
    try:
        made.start()
        for version in versions:
            with made.connect() as db:
                db.execute("SET client_min_messages = warning")
                db.execute("CREATE EXTENSION vector")
                db.execute("CREATE EXTENSION clip_search")
                created = db.execute(MEMBERS).fetchall()
                assert len(created) > 50
                db.execute("DROP EXTENSION clip_search")
                db.execute(f"CREATE EXTENSION clip_search VERSION '{version}'")
                if version == EARLIER:
                    assert value(db, "SELECT to_regproc(%s)", ADDED) is None
                    assert len(db.execute(MEMBERS).fetchall()) == len(created) - 1
                db.execute("CREATE TABLE note (id bigint PRIMARY KEY, body text)")
                db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
                db.execute("INSERT INTO note VALUES (1, 'a cat'), (2, 'a steam locomotive'), (3, NULL)")
                stored = [db.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall() for table in STORED]
            # A session of the old version's, whose plans are of before, and one that comes later.
            with made.connect() as db:
                db.execute("SET client_min_messages = warning")
                db.execute("UPDATE note SET body = body")
                db.execute("ALTER EXTENSION clip_search UPDATE")
                assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == CURRENT
                assert db.execute(MEMBERS).fetchall() == created
                assert [db.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall() for table in STORED] == stored
                db.execute("INSERT INTO note VALUES (4, 'an old guitar')")
            with made.connect() as db:
                assert CURRENT in value(db, "SELECT clip_version()::text")
                db.execute("INSERT INTO note VALUES (5, 'a cat')")
                rows = db.execute("SELECT body, embedding::text, cluster_id FROM note ORDER BY id").fetchall()
                for body, embedding, _ in rows:
                    assert (embedding is None) == (body is None)
                    assert body is None or support.close(vector(embedding), embed_one(db, "text", body)), body
                assert rows[0][2] == rows[4][2] and rows[3][2] not in (rows[0][2], rows[1][2])
                db.execute("SET client_min_messages = warning")
                db.execute("DROP EXTENSION clip_search CASCADE")
                db.execute("DROP EXTENSION vector CASCADE")
                db.execute("DROP TABLE note")
    finally:
        made.remove()


# ---------------------------------------------------------------- the end


def catalogue(db: psycopg.Connection) -> dict[str, int]:
    """How many rows each system table has that is this database's alone, and the shared ones for it."""
    tables = db.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared "
        "AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data', 'pg_largeobject')"
    ).fetchall()
    counts = {name: value(db, f"SELECT count(*) FROM pg_catalog.{name}") for (name,) in tables}
    for name, column in (("pg_shdepend", "dbid"), ("pg_db_role_setting", "setdatabase")):
        counts[name] = value(db, f"SELECT count(*) FROM {name} WHERE {column} = (SELECT oid FROM pg_database WHERE datname = current_database())")
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
        assert {name for name, count in catalogue(db).items() if count > before[name]} >= {"pg_class", "pg_proc", "pg_trigger", "pg_depend", "pg_type"}
        state, text = support.sqlstate(db, "DROP EXTENSION clip_search")
        assert state == "2BP01" and "note" in text
        db.execute("DROP EXTENSION clip_search CASCADE")
        assert catalogue(db) == before
        # The user's rows are the user's.
        assert value(db, "SELECT count(*) FROM note WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 2
    with empty_database.connect() as db:
        assert value(db, "SELECT count(*) FROM pg_settings WHERE name LIKE 'clip_search.%'") == 0
        db.execute("INSERT INTO note VALUES (3, 'a cat')")
        db.execute("CREATE EXTENSION clip_search")
        assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0
