"""docs/managed.md: its statements work in a database without clip_search, for a role that isn't a superuser."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

import support
from pages import DOCS
from support import value

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"
PROGRAM = support.ROOT / "target" / "release" / "clip-embed"
PAGE = (DOCS / "managed.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)


class Psql:
    """psql in one database as one role, started in a folder where \\copy finds its files."""

    def __init__(self, program: str, database: str, role: str, folder: pathlib.Path):
        self.command = [program, "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-U", role]
        self.folder = folder

    def run(self, *arguments: str, script: str | None = None) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            input=script,
            cwd=self.folder,
            env=os.environ | {"PGOPTIONS": "-c client_min_messages=warning"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def managed(empty_database: support.Database) -> Iterator[tuple[support.Database, str]]:
    """A database with only pgvector, and an ordinary role."""
    role = f"clip_test_{uuid.uuid4().hex[:12]}"
    with empty_database.connect() as db:
        db.execute("CREATE EXTENSION vector")
        db.execute(f"CREATE ROLE {role} LOGIN")
        db.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        yield empty_database, role
    finally:
        with empty_database.connect() as db:
            db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_the_page(
    managed: tuple[support.Database, str], database: support.Database, pg_program, tmp_path: pathlib.Path
) -> None:
    assert [where for where, _ in BLOCKS] == ["managed", "python", "managed", "embedder", "managed"]
    table, python, similar, group, back = (block for _, block in BLOCKS)
    assert len(re.findall("```sql|```python", PAGE)) == len(BLOCKS)
    own, role = managed
    away = Psql(pg_program("psql"), own.name, role, tmp_path)
    embedder = Psql(pg_program("psql"), database.name, "postgres", tmp_path)
    away.run(script=table)

    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("cat", "cat-mirrored", "rocket", "dahlia"):
        shutil.copy(PHOTOS / f"{name}.jpg", photos)
    (photos / "notes.jpg").write_text("not an image")
    done = subprocess.run([str(PROGRAM), "-q", str(photos), "-o", "vectors.csv"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 3 and "notes.jpg" in (tmp_path / "vectors.csv.failures.csv").read_text(), done.stderr
    assert '"photo-mini"' in (tmp_path / "vectors.csv.json").read_text()
    (copy,) = re.findall(r'"(\\copy photo .*?)"$', PAGE, re.MULTILINE)
    away.run("-c", copy)

    page: dict = {}
    exec(compile(python, "docs/managed.md", "exec"), page)
    with own.connect(role) as there, database.connect() as here:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            there.execute("CREATE EXTENSION clip_search")
        assert value(there, "SELECT count(*) FROM photo") == 4
        found = page["by_words"](there, here, "a rocket on its way to space", 4)
        assert found[0][0] == "rocket.jpg" and found[0][1] > 0.2 > found[1][1]
        cat = (PHOTOS / "cat-cropped.jpg").read_bytes()
        found = page["by_photo"](there, here, cat, 2)
        assert {path for path, _ in found} == {"cat.jpg", "cat-mirrored.jpg"} and found[0][1] > 0.9
        # The extension itself gives the same ranking and weights.
        here.execute("CREATE TEMPORARY TABLE photo (path text, embedding vector(512))")
        for file in sorted(photos.glob("[!n]*.jpg")):
            here.execute("INSERT INTO photo VALUES (%s, clip_embed_image(%b))", (file.name, file.read_bytes()))
        query = "ORDER BY embedding <=> clip_query('{a cat, a flower}', '{1, -1}')"
        wanted = here.execute(f"SELECT path FROM photo {query}").fetchall()
        assert [row[:1] for row in page["without"](there, here, "a cat", "a flower", 4)] == wanted
        here.execute("DROP TABLE photo")

    assert sorted(away.run(script=similar).split()[:2]) == ["cat-mirrored.jpg", "cat.jpg"]
    (out,) = re.findall(r'"(\\copy \(SELECT path, embedding.*?)"$', PAGE, re.MULTILINE)
    away.run("-c", out)
    # Twice, as if photos were added later.
    for _ in range(2):
        embedder.run(script=group)
        away.run(script=back)
    assert away.run("-c", "SELECT count(DISTINCT cluster_id), count(cluster_id) FROM photo") == "3|4\n"
    pairs = 'SELECT array_agg(path ORDER BY path COLLATE "C") FROM photo GROUP BY cluster_id HAVING count(*) > 1'
    assert away.run("-c", pairs) == "{cat-mirrored.jpg,cat.jpg}\n"
