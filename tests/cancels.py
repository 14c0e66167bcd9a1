"""The worst known inputs of each function, and how long a cancel takes to end a call with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import image_files as files
import numpy as np
import psycopg

from support import cpu_seconds, is_running, until, value

CANCELLED = "57014"

IMAGES: dict[str, Callable[[], bytes]] = {
    "progressive JPEG of 9000 × 9000, 24 passes": lambda: files.progressive(9000, 9000, 24),
    "PNG of 9500 × 9500": lambda: files.png(9500, 9500),
    "PNG of 9500 × 9500, 16-bit RGBA": lambda: files.png(9500, 9500, colour=6, depth=16),
    "PNG of 1 × 50,000,000": lambda: files.png(1, 50_000_000, colour=0),
    "TIFF of 9500 × 9500, 32-bit float RGBA": lambda: files.tiff(9500, 9500, samples=4, bits=32, floats=True),
    "TIFF of 50,000,000 × 1": lambda: files.tiff(50_000_000, 1, samples=1),
    "TIFF of 1 × 50,000,000": lambda: files.tiff(1, 50_000_000, samples=1, rows=1_000_000),
}
OF_IMAGES = ("clip_embed_image(data)", "clip_thumbnail(data)", "clip_image_info(data)")
OTHERS = {
    "clip_thumbnail(data, 4096), PNG of 4096 × 4096": (
        "SELECT clip_thumbnail(data, 4096, 'jpeg') FROM cancel_file WHERE name = 'square'"
    ),
    "clip_embed_text, 100 MB": "SELECT clip_embed_text(repeat('a sleepy cat ', 8000000))",
    "clip_embed_text, 100 MB in one word": "SELECT clip_embed_text(repeat('x', 100000000))",
    "clip_embed_texts, 20,000": "SELECT clip_embed_texts(array_agg('cat ' || n)) FROM generate_series(1, 20000) n",
    "clip_classify, 20,000 labels": (
        "SELECT clip_classify(data, (SELECT array_agg('cat ' || n) FROM generate_series(1, 20000) n)) "
        "FROM cancel_file WHERE name = 'small'"
    ),
    "clip_recluster, 6,000 members": "SELECT * FROM clip_recluster('cancel')",
    "clip_duplicates, 6,000 members": "SELECT * FROM clip_duplicates('cancel', 0.1)",
}


def prepare(db: psycopg.Connection, images: dict[str, bytes]) -> None:
    """The inputs are in tables, so that their way to the server is no part of a measurement."""
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE TABLE cancel_file (name text PRIMARY KEY, data bytea)")
    db.execute("ALTER TABLE cancel_file ALTER data SET STORAGE EXTERNAL")
    # An image whose JPEG takes longest to encode: noise.
    noise = np.random.default_rng(1).integers(0, 255, (4096, 4096, 3), dtype=np.uint8)
    small = {"square": png_of(noise), "small": files.png(64, 64)}
    for name, data in {**images, **small}.items():
        db.execute("INSERT INTO cancel_file VALUES (%s, %b)", (name, data))
    db.execute("CREATE TABLE cancel_member (id int PRIMARY KEY, embedding vector(128), cluster_id bigint)")
    db.execute("""
        INSERT INTO cancel_member SELECT n, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 128) WHERE n > 0)::vector
        FROM generate_series(1, 6000) n""")
    db.execute("SELECT clip_create_collection('cancel', 0.3, members => 'cancel_member')")


def png_of(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=0)
    return file.getvalue()


def cases(images: dict[str, bytes]) -> dict[str, str]:
    """A query for each call."""
    found = {
        f"{call.split('(')[0]}, {name}": f"SELECT {call} FROM cancel_file WHERE name = '{name}'"
        for name in images
        for call in OF_IMAGES
    }
    return found | OTHERS


class Cancelled(NamedTuple):
    """From pg_cancel_backend to the error: the time that passed, and what the backend computed in it."""

    seconds: float
    computed: float


def cancel_after(connect: Callable[[], psycopg.Connection], query: str, delay: float) -> Cancelled | None:
    """Cancels a call so many seconds after its beginning; None if it ended before."""
    with connect() as db, connect() as other:
        db.execute("SELECT clip_embed_text('load the model')")
        pid = db.info.backend_pid
        ended: list[tuple[float, str | None]] = []

        def run() -> None:
            try:
                db.execute(query)
                ended.append((time.monotonic(), None))
            except psycopg.Error as error:
                ended.append((time.monotonic(), error.sqlstate))

        thread = threading.Thread(target=run)
        thread.start()
        # A cancel that comes before the call is forgotten.
        until(lambda: ended or is_running(other, pid), "the call's beginning")
        time.sleep(delay)
        asked, computed = time.monotonic(), cpu_seconds(pid)
        value(other, "SELECT pg_cancel_backend(%s)", pid)
        thread.join()
        at, state = ended[0]
        return Cancelled(at - asked, cpu_seconds(pid) - computed) if state == CANCELLED and at >= asked else None
