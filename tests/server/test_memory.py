"""One connection's memory over many calls, successful and failing.

This is a short run; `make soak` makes a hundred thousand calls.
"""

from __future__ import annotations

import os
import pathlib

import psycopg

import support
from support import value

PHOTOS = [path.read_bytes() for path in sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))]
CALLS = 100_000 if os.environ.get("SOAK") else 3_000
# Bytes that a call may leave behind, on average over the second half: a page now and then, but no image, text or vector
# (2 kB).
LEAK = 100 if os.environ.get("SOAK") else 300


def anonymous_megabytes(db: psycopg.Connection) -> float:
    pid = value(db, "SELECT pg_backend_pid()")
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def test_memory_does_not_grow_with_calls(database: support.Database) -> None:
    """Whole and broken images, new and remembered texts, arrays, labels, thumbnails, clusters joined and left."""
    with database.connect() as db:

        def call(number: int) -> None:
            photo, kind = PHOTOS[number % len(PHOTOS)], number % 10
            if kind == 0:
                db.execute("SELECT clip_embed_image(%b)", (photo,))
            elif kind == 1:
                try:
                    db.execute("SELECT clip_embed_image(%b)", (photo[: len(photo) // 2],))
                except psycopg.errors.InvalidParameterValue:
                    return
                raise AssertionError("a broken photo was embedded")
            elif kind == 2 and number % 100 == 2:
                db.execute("SELECT clip_embed_images(%b)", ([photo, None, photo],))
            elif kind == 3 and number % 50 == 3:
                db.execute("SELECT octet_length(clip_thumbnail(%b, 64)), clip_image_info(%b)", (photo, photo))
            elif kind == 4:
                try:
                    db.execute("SELECT clip_embed_text(%s, %s)", ("a text", f"no-such-model-{number}"))
                except psycopg.errors.UndefinedObject:
                    return
                raise AssertionError("a model that is not there was used")
            elif kind == 5:
                db.execute(
                    """WITH v AS (SELECT clip_embed_text('one of ' || %s) AS v)
                       SELECT clip_leave_cluster(clip_assign_cluster(v, 'memory'), v) FROM v""",
                    (number % 300,),
                )
            elif kind == 6:
                labels = [f"label {number % 7}", "cat", "dog"]
                db.execute("SELECT * FROM clip_classify(clip_embed_text('a cat'), %s::text[])", (labels,))
            else:
                db.execute("SELECT clip_embed_text(%s)", (f"text number {number % 5000}",))

        # By then the memos are full, the towers laid out and the plans made.
        settled = CALLS // 2
        for number in range(settled):
            call(number)
        before = anonymous_megabytes(db)
        for number in range(settled, CALLS):
            call(number)
        after = anonymous_megabytes(db)
        print(f"{before:.1f} MB after {settled} calls, {after:.1f} MB after {CALLS}")
        a_call = (after - before) * 2**20 / (CALLS - settled)
        assert a_call < LEAK, (
            f"{before:.1f} MB after {settled} calls, {after:.1f} MB after {CALLS}: {a_call:.0f} bytes a call"
        )
