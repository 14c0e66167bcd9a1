"""docs/scaling.md: the statements with halfvec and bits run unchanged, use their indexes and find the same photos."""

from __future__ import annotations

import base64
import re

import psycopg

import support
from support import embed_one, value, vector

PAGE = support.ROOT / "docs" / "scaling.md"
PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))


def statements(mark: str) -> list[str]:
    text = re.search(rf"<!-- run: {mark} -->\n```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [statement for statement in re.split(r";\n| \\gexec\n", text) if statement.strip()]


def plan(db: psycopg.Connection, query: str) -> str:
    return "\n".join(line for (line,) in db.execute(f"EXPLAIN {query}"))


def test_halfvec_and_bits(database: support.Database) -> None:
    with database.connect() as db:
        table, index, insert, search, assign = statements("halfvec")
        db.execute(table)
        db.execute(index)
        for photo in PHOTOS:
            db.execute(insert.replace(":'file'", f"'{base64.b64encode(photo.read_bytes()).decode()}'"))
        # Half precision keeps eleven bits of each number, and each number is at most 1.
        stored = vector(value(db, "SELECT embedding::vector::text FROM photo WHERE id = 1"))
        exact = embed_one(db, "image", PHOTOS[0].read_bytes())
        assert 0 < abs(stored - exact).max() < 2**-12
        order = "SELECT id FROM photo ORDER BY embedding::vector <=> clip_embed_text('a cat') LIMIT 10"
        right = [id for (id,) in db.execute(order)]
        db.execute("SET enable_seqscan = off; SET enable_sort = off")
        assert "Index Scan using photo_embedding_idx" in plan(db, search)
        assert len(set(right) & {id for (id,) in db.execute(search)}) >= 9
        db.execute("RESET enable_seqscan; RESET enable_sort")
        ids = [id for (id,) in db.execute(assign)]
        assert len(set(ids)) == len({re.sub("-(mirrored|cropped)$", "", photo.stem) for photo in PHOTOS})

        centre, create, effort, search = statements("bits")
        db.execute(value(db, centre))
        db.execute(create)
        db.execute(effort)
        found = [id for (id,) in db.execute(search)]
        # All 33 photos are candidates, so the order is the vectors' own.
        assert found[:3] == right[:3] and len(set(right) & set(found)) >= 9
        db.execute("SET enable_seqscan = off; SET enable_sort = off")
        assert "Index Scan using photo_binary_quantize_idx" in plan(db, search)
