"""Models loaded by the postmaster: what connections gain, and that nothing unsafe is preloaded."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import psycopg
import pytest

import support
from servers import Server, private_megabytes, server, threads
from support import embed_one, in_parallel, value

PHOTO = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
# Measured: 4 MB after a text, 8 MB after a photo; without preloading 165 MB.
PRIVATE_MB = 30


@pytest.fixture(scope="module")
def preloaded(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir, preload="photo-mini") as made:
        yield made


def test_a_connection_has_the_model_at_once(preloaded: Server) -> None:
    assert "clip_search: preloaded photo-mini in" in preloaded.messages()
    assert threads(preloaded.postmaster) == 1
    with preloaded.connect() as db:
        loaded = "SELECT image_loaded AND text_loaded FROM clip_models() WHERE name = 'photo-mini'"
        assert value(db, loaded) is True
        embed_one(db, "text", "a cat")
        embed_one(db, "image", PHOTO)
        private = private_megabytes(db)
        assert private < PRIVATE_MB, f"{private:.1f} MB are the connection's own"
        # Inference has no thread pool. The second thread checks for interrupts.
        assert threads(value(db, "SELECT pg_backend_pid()")) == 2


def test_it_gives_the_vectors_of_a_model_loaded_by_the_connection(
    preloaded: Server, database: support.Database
) -> None:
    with preloaded.connect() as one, database.connect() as other:
        for what, item in (("text", "a sleepy cat"), ("image", PHOTO)):
            assert float(embed_one(one, what, item) @ embed_one(other, what, item)) > 0.999999


def test_many_connections_at_once(preloaded: Server) -> None:
    def embed() -> float:
        with preloaded.connect() as db:
            embed_one(db, "image", PHOTO)
            return private_megabytes(db)

    assert max(in_parallel([embed] * 40)) < PRIVATE_MB


def test_parallel_workers_share_it(preloaded: Server) -> None:
    with preloaded.connect() as db:
        db.execute("CREATE TABLE words AS SELECT 'thing number ' || i AS word FROM generate_series(1, 300) AS i")
        for name in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
            db.execute(f"SET {name} = 0")
        db.execute("SET parallel_leader_participation = off")
        # Returns the process that embeds and its private memory at that moment.
        db.execute("""
            CREATE FUNCTION whose(vector) RETURNS int[] LANGUAGE plpgsql PARALLEL SAFE COST 10000 AS $$
            BEGIN
                RETURN ARRAY[pg_backend_pid(),
                    (regexp_match(pg_read_file('/proc/self/smaps_rollup'), 'Private_Dirty: +([0-9]+) kB'))[1]::int];
            END $$""")
        found = [whose for (whose,) in db.execute("SELECT whose(clip_embed_text(word)) FROM words")]
        assert len(found) == 300 and db.info.backend_pid not in {pid for pid, _ in found}
        assert max(kilobytes for _, kilobytes in found) < PRIVATE_MB * 1024
        db.execute("DROP FUNCTION whose; DROP TABLE words")


def test_it_survives_a_killed_backend(preloaded: Server) -> None:
    """SIGKILL makes the postmaster restart all of its children; the models belong to the postmaster and stay."""
    with preloaded.connect() as db:
        embed_one(db, "text", "a cat")
        before = preloaded.postmaster
        os.kill(value(db, "SELECT pg_backend_pid()"), signal.SIGKILL)
    deadline = time.monotonic() + 120
    while True:
        try:
            with preloaded.connect() as db:
                embed_one(db, "text", "a cat")
                assert value(db, "SELECT image_loaded FROM clip_models() WHERE name = 'photo-mini'") is True
            break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "the server did not come back"
            time.sleep(0.1)
    assert preloaded.postmaster == before
    assert threads(before) == 1


def test_reload_and_terminate(preloaded: Server) -> None:
    with preloaded.connect() as db, preloaded.connect() as other:
        assert value(db, "SELECT pg_reload_conf()") is True
        embed_one(other, "text", "a cat")
        assert value(db, "SELECT pg_terminate_backend(%s, 10000)", value(other, "SELECT pg_backend_pid()")) is True
        embed_one(db, "text", "a dog")


def test_it_stops_and_starts(preloaded: Server) -> None:
    for mode in ("fast", "immediate"):
        with preloaded.connect() as db:
            embed_one(db, "text", "a cat")
            preloaded.stop(mode)
        preloaded.start()
    with preloaded.connect() as db:
        embed_one(db, "text", "a cat")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"preload": "photo-mini, nope"}, 'model "nope" does not exist'),
        ({"preload": "photo-mini", "onnxruntime": "/nowhere/libonnxruntime.so"}, "ONNX Runtime not found"),
    ],
    ids=["unknown model", "no library"],
)
def test_what_fails_is_not_preloaded(bindir: pathlib.Path, settings: dict[str, str], reason: str) -> None:
    """The server starts, the log gives the reason, and each connection loads for itself what it can."""
    with server(bindir, **settings) as made:
        log = made.messages()
        assert "nothing is preloaded" in log and reason in log
        with made.connect() as db:
            db.execute("RESET clip_search.onnxruntime")
            db.execute("SET clip_search.onnxruntime = '$libdir/clip_search/libonnxruntime.so'")
            embed_one(db, "text", "a cat")


THREADED = """
#include <pthread.h>
#include <unistd.h>
static void *idle(void *unused) { for (;;) pause(); return unused; }
__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    pthread_create(&thread, 0, idle, 0);
}
"""


def test_a_library_that_starts_a_thread_is_not_preloaded(
    bindir: pathlib.Path, server_folder: support.ServerFolder
) -> None:
    """ONNX Runtime 1.30 and 1.32 do that. Here, a copy of the runtime is linked to another library that does it."""
    folder = server_folder.path / "threaded"
    folder.mkdir(exist_ok=True)
    config = os.environ.get("PG_CONFIG") or "pg_config"
    libraries = subprocess.run([config, "--pkglibdir"], capture_output=True, text=True, check=True).stdout.strip()
    runtime = pathlib.Path(libraries) / "clip_search" / "libonnxruntime.so"
    (folder / "threaded.c").write_text(THREADED)
    (folder / "libonnxruntime.so.1").symlink_to(runtime)  # its soname
    wrapper = folder / "threaded.so"
    # The link resolves every symbol from the real library, which it depends on.
    link = ["-Wl,--no-as-needed", str(runtime), f"-Wl,-rpath,{folder}"]
    source = str(folder / "threaded.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(wrapper), source, "-pthread", *link], check=True)
    for path in (folder, wrapper):
        path.chmod(0o755)
    with server(bindir, preload="photo-mini", onnxruntime=str(wrapper)) as made:
        log = made.messages()
        assert "nothing is preloaded" in log and "the process has 2 threads" in log, log
        assert threads(made.postmaster) == 1
        with made.connect() as db:
            embed_one(db, "text", "a cat")
