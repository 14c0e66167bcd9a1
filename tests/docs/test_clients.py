"""docs/clients.md: its Python example does what it says."""

from __future__ import annotations

import re

import support
from pages import DOCS

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


def test_the_python_example(database: support.Database) -> None:
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"<!-- run: python -->\n```python\n(.*?)```", page, re.DOTALL)
    example: dict = {}
    exec(compile(source, "docs/clients.md", "exec"), example)
    with database.connect() as db:
        db.execute("CREATE TABLE photo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, data bytea)")
        db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', index => true)")
        for name in ("cat", "rocket", "dahlia"):
            assert example["add"](db, name, (PHOTOS / f"{name}.jpg").read_bytes()) is None
        assert example["add"](db, "notes", b"not an image").startswith("not an image. Supported are JPEG")
        assert "not supported" in example["add"](db, "drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
        found = example["search"](db, "a rocket on its way to space", 2)
        assert len(found) == 2 and found[0][1] == "rocket" and found[0][2] > 0.2 > found[1][2]
        assert example["similar"](db, (PHOTOS / "cat-mirrored.jpg").read_bytes(), 1)[0][1] == "cat"
        assert support.value(db, "SELECT count(*) FROM photo") == 3
