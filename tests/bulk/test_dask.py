"""docs/how-to/many-machines.md: its program for Dask, on a local cluster, as it stands there."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np

import support
from clip_embed_runs import PHOTOS, PROGRAM, rows, run
from support import value

PAGE = (support.ROOT / "docs" / "how-to" / "many-machines.md").read_text(encoding="utf-8")


def test_the_program_for_dask(database: support.Database, tmp_path: pathlib.Path) -> None:
    (program,) = re.findall(r"<!-- run: dask -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "embed.py").write_text(program, encoding="utf-8")
    photos = tmp_path / "photos"
    shutil.copytree(PHOTOS, photos)
    (photos / "broken.jpg").write_bytes(b"no image")
    run(photos, "-o", tmp_path / "expected.csv", code=3)
    expected = rows(tmp_path / "expected.csv")

    def start(shards: int) -> str:
        done = subprocess.run(
            [sys.executable, "embed.py", f"dbname={database.name}", str(photos), str(shards)],
            capture_output=True,
            text=True,
            timeout=250,
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert '"broken.jpg" failed: not an image' in start(5)
    with database.connect() as db:
        stored = db.execute("SELECT path, embedding::text FROM photo_vector").fetchall()
        found = {path: support.vector(text) for path, text in stored}
        assert len(stored) == len(found) and found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        # Once more with other shards: what is lost is stored again, and nothing else changes.
        db.execute("DELETE FROM photo_vector WHERE path IN (SELECT path FROM photo_vector LIMIT 3)")
        last = value(db, "SELECT pg_current_xact_id()::text::bigint")
        start(3)
        assert value(db, "SELECT count(*) FROM photo_vector") == len(expected)
        assert value(db, "SELECT count(*) FROM photo_vector WHERE xmin::text::bigint > %s", last) == 3
