"""The worst known inputs of each function, and how long a cancel takes to end a call with them."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable

import image_files as files
import numpy as np
import psycopg

from support import is_running, until, value

CANCELLED = "57014"

IMAGES: dict[str, Callable[[], bytes]] = {
    "progressive JPEG of 9000 × 9000, 24 passes": lambda: files.progressive(9000, 9000, 24),
    "PNG of 9500 × 9500": lambda: files.png(9500, 9500),
    "PNG of 9500 × 9500, 16-bit RGBA": lambda: files.png(9500, 9500, colour=6, depth=16),
    "PNG of 1 × 50,000,000": lambda: files.png(1, 50_000_000, colour=0),
    "TIFF of 9500 × 9500, 32-bit float RGBA": lambda: files.tiff(9500, 9500, samples=4, bits=32, floats=True),
    "TIFF of 50,000,000 × 1": lambda: files.tiff(50_000_000, 1, samples=1),
    "TIFF of 1 × 50,000,000": lambda: files.tiff(1, 50_000_000, samples=1, rows=1_000_000),
    "lossy WebP of 5000 × 5000": lambda: written("webp", 5000, quality=80, method=0),
    "lossless WebP of 5000 × 5000": lambda: written("webp", 5000, lossless=True, quality=0, method=0),
    "AVIF of 5000 × 5000": lambda: written("avif", 5000, speed=10),
    "GIF of 9000 × 9000": lambda: written("gif"),
    "BMP of 9000 × 9000": lambda: written("bmp"),
    "JPEG of 9000 × 9000": lambda: written("jpeg"),
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
    "clip_tags, the words embedded": "SELECT clip_tags(embedding) FROM cancel_vector",
    "clip_relevance, the words embedded": "SELECT clip_relevance(embedding, 'a cat') FROM cancel_vector",
    "precision int8 made": "SELECT clip_embed_text('a cat')",
    "clip_benchmark": "SELECT * FROM clip_benchmark()",
    "clip_check_model": "SELECT * FROM clip_check_model(current_setting('clip_search.model'))",
    "clip_assign_cluster, 6,000 vectors": (
        "SELECT count(clip_assign_cluster(embedding, 'cancelled')) FROM cancel_member"
    ),
    "clip_recluster, 6,000 members": "SELECT * FROM clip_recluster('cancel')",
    "clip_recluster, 2 threads": "SELECT * FROM clip_recluster('cancel')",
    "clip_duplicates, 6,000 members": "SELECT * FROM clip_duplicates('cancel', 0.1)",
}

# Without a cache, each connection embeds the words and makes the eight-bit form itself.
SETTINGS = {
    "clip_tags, the words embedded": "SET clip_search.cache_path = ''",
    "clip_relevance, the words embedded": "SET clip_search.cache_path = ''",
    "precision int8 made": "SET clip_search.cache_path = '{folder}'; SET clip_search.precision = 'int8'",
    "clip_recluster, 2 threads": "SET clip_search.max_threads = 2; SET clip_search.threads = 2",
}


def written(form: str, side: int = 9000, **options: object) -> bytes:
    """A large picture with some detail everywhere, encoded by Pillow."""
    import io

    from PIL import Image

    tile = np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(tile).resize((900, 900), Image.Resampling.BICUBIC)
    large = Image.fromarray(np.tile(np.asarray(picture), (10, 10, 1))[:side, :side])
    file = io.BytesIO()
    large.save(file, form, **options)
    return file.getvalue()


def prepare(db: psycopg.Connection, images: dict[str, bytes]) -> None:
    """Puts the inputs into tables, so that no measurement includes their way to the server."""
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE TABLE cancel_file (name text PRIMARY KEY, data bytea)")
    db.execute("ALTER TABLE cancel_file ALTER data SET STORAGE EXTERNAL")
    # Noise: the image whose JPEG takes longest to encode.
    noise = np.random.default_rng(1).integers(0, 255, (4096, 4096, 3), dtype=np.uint8)
    small = {"square": png_of(noise), "small": files.png(64, 64)}
    for name, data in {**images, **small}.items():
        db.execute("INSERT INTO cancel_file VALUES (%s, %b)", (name, data))
    db.execute("CREATE TABLE cancel_vector AS SELECT clip_embed_text('a cat') AS embedding")
    db.execute("CREATE TABLE cancel_member (id int PRIMARY KEY, embedding vector(128), cluster_id bigint)")
    db.execute("""
        INSERT INTO cancel_member SELECT n, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 128) WHERE n > 0)::vector
        FROM generate_series(1, 6000) n""")
    db.execute("SELECT clip_create_collection('cancel', 0.3, members => 'cancel_member')")
    db.execute("SELECT clip_create_collection('cancelled', 0.99)")


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


@dataclasses.dataclass
class Cancelled:
    """The seconds a backend takes from pg_cancel_backend to the error."""

    wall: float
    # CPU time of its main thread, which checks for interrupts. Other processes on the same processor add nothing.
    cpu: float


def main_thread_seconds(pid: int) -> float:
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def cancel_after(
    connect: Callable[[], psycopg.Connection], query: str, delay: float, settings: str = ""
) -> Cancelled | None:
    """Cancels a query after a delay. Returns None if the query ended first."""
    with connect() as db, connect() as other:
        db.execute("SET client_min_messages = error")
        db.execute("SELECT clip_embed_text('load the model')")
        if settings:
            # The server makes this directory: no directory of that name exists yet.
            db.execute(settings.format(folder=f"{value(db, 'SHOW data_directory')}/cancel-{db.info.backend_pid}"))
        ended: list[tuple[float, float, str | None]] = []
        pid = db.info.backend_pid

        def run() -> None:
            state = None
            try:
                db.execute(query)
            except psycopg.Error as error:
                state = error.sqlstate
            ended.append((time.monotonic(), main_thread_seconds(pid), state))

        thread = threading.Thread(target=run)
        thread.start()
        # The backend forgets a cancel that arrives before the call.
        until(lambda: ended or is_running(other, pid), "the call's beginning")
        time.sleep(delay)
        asked, used = time.monotonic(), main_thread_seconds(pid)
        value(other, "SELECT pg_cancel_backend(%s)", pid)
        thread.join()
        at, used_by_then, state = ended[0]
        return Cancelled(at - asked, used_by_then - used) if state == CANCELLED and at >= asked else None
