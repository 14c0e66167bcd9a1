"""docs/how-to/many-machines.md: runs its Dask program on a local cluster, unchanged."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from clip_search import Clip

import support
from clip_embed_runs import PHOTOS
from support import value

PAGE = (support.ROOT / "docs" / "how-to" / "many-machines.md").read_text(encoding="utf-8")


def test_the_program_for_dask(database: support.Database, tmp_path: pathlib.Path) -> None:
    (program,) = re.findall(r"<!-- run: dask -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "embed.py").write_text(program, encoding="utf-8")
    photos = tmp_path / "photos"
    shutil.copytree(PHOTOS, photos)
    (photos / "broken.jpg").write_bytes(b"no image")

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "embed.py", f"dbname={database.name}", str(photos)],
            capture_output=True,
            text=True,
            timeout=250,
            cwd=tmp_path,
            env=os.environ
            | {"DASK_DISTRIBUTED__DASHBOARD__LINK": "", "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    said = run()
    assert "broken.jpg: element " in said and "not an image" in said
    names = sorted(str(path) for path in photos.rglob("*.jpg") if path.name != "broken.jpg")
    expected = Clip("photo-mini").images(names)
    with database.connect() as db:
        found = {
            path: support.vector(text) for path, text in db.execute("SELECT path, embedding::text FROM photo_vector")
        }
        assert sorted(found) == names
        assert all(np.array_equal(found[name], vector) for name, vector in zip(names, expected, strict=True))
        # Lost parts are embedded again, and no file twice.
        db.execute("DELETE FROM photo_vector WHERE path = ANY (%s)", [names[:3]])
        before = value(db, "SELECT max(xmin::text::bigint) FROM photo_vector")
        run()
        assert value(db, "SELECT count(*) FROM photo_vector") == len(names)
        assert value(db, "SELECT count(*) FROM photo_vector WHERE xmin::text::bigint > %s", before) == 3
