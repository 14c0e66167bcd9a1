"""A backend whose address space is nearly used up, as `ulimit -v` and vm.overcommit_memory = 2 leave it: every function
fails with an error and leaves the connection usable. An abort would take the whole server down.

tests/embed/test_image_limits.py does the same for image formats that this test's libraries write, and
tests/embed/test_texts.py for long texts."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Iterator

import image_files as files
import psycopg
import pytest

import support
from support import value

# Errors that PostgreSQL, the extension and ONNX Runtime raise. XX000 is not among them: it would be a bug in the
# extension.
EXPECTED = {"53200", "54000", "58P01", "58030", "55000"}
# Megabytes beyond what the process has when the call begins.
ROOMS = (0, 1, 3, 8, 20)
STORED = sorted(
    path
    for folder in ("heic", "avif", "jxl", "tiff")
    for path in (support.ROOT / "tests" / "fixtures" / folder).iterdir()
    if path.suffix == f".{folder}"
    and path.stem in {"plain", "lossless", "alpha", "bits10", "lossy", "groups", "zstd", "old_jpeg"}
)
LABELS = "(SELECT array_agg('a thing with number ' || n) FROM generate_series(1, 300) n)"
CALLS = {
    "clip_embed_texts": f"SELECT clip_embed_texts({LABELS})",
    "clip_classify": f"SELECT clip_classify(v, {LABELS}) FROM one",
    "clip_classify_or_none": f"SELECT clip_classify_or_none(v, {LABELS}) FROM one",
    "clip_tags": "SELECT clip_tags(v) FROM one",
    "clip_tags of own": f"SELECT clip_tags(v, {LABELS}) FROM one",
    "clip_relevance": "SELECT clip_relevance(v, 'a cat') FROM one",
    "clip_explain": "SELECT clip_explain(v, 'a cat') FROM one",
    "clip_find": "SELECT * FROM clip_find('member', 'a cat', embedding => 'embedding')",
    "clip_query": "SELECT clip_query(ARRAY['a cat', 'a dog'], vectors => ARRAY[v]) FROM one",
    "clip_diversify": "SELECT clip_diversify((SELECT v FROM one), array_agg(id), array_agg(embedding)) FROM member",
    "clip_recluster": "SELECT * FROM clip_recluster('short')",
    "clip_clusters": "SELECT * FROM clip_clusters('short', 1)",
    "clip_cluster_groups": "SELECT clip_cluster_groups('short', 1)",
    "clip_duplicates": "SELECT * FROM clip_duplicates('short', 0.5)",
    "clip_assign_cluster": "SELECT count(clip_assign_cluster(embedding, 'others')) FROM member WHERE id <= 150",
    "clip_check_model": "SELECT * FROM clip_check_model('photo-mini')",
    "clip_benchmark": "SELECT * FROM clip_benchmark()",
    "precision int8": "SELECT clip_embed_text('a cat')",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Database]:
    made = support.Database()
    # Only 1,000 words: embedding all of them takes half a minute.
    words = tmp_path_factory.mktemp("words") / "few.txt"
    everyday = (support.ROOT / "models" / "words" / "everyday.txt").read_text(encoding="utf-8").splitlines()
    words.write_text("\n".join(everyday[:1000]) + "\n")
    for folder in words.parents[:3]:
        folder.chmod(0o755)
    with made.connect() as db:
        db.execute(f"ALTER DATABASE \"{made.name}\" SET clip_search.words = '{words}'")
    with made.connect() as db:
        db.execute("SET client_min_messages = error")
        db.execute("CREATE TABLE one AS SELECT clip_embed_text('a cat') AS v")
        db.execute("CREATE TABLE member (id int PRIMARY KEY, embedding vector(512), cluster_id bigint)")
        db.execute("""
            INSERT INTO member SELECT n, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 512) WHERE n > 0)::vector
            FROM generate_series(1, 1500) n""")
        db.execute("SELECT clip_create_collection('short', 0.3, members => 'member')")
        # From now on the cache holds the words of clip_tags.
        db.execute("SELECT clip_tags(v) FROM one")
    yield made
    made.drop()


def limit(db: psycopg.Connection, room: int) -> None:
    """Runs as the server's user: changing another user's process needs a capability that containers lack."""
    pid = db.info.backend_pid
    status = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in status if line.startswith("VmSize:"))
    owner = pathlib.Path(f"/proc/{pid}").stat()
    command = ["prlimit", f"--pid={pid}", f"--as={(size + room * 1024) * 1024}:"]
    subprocess.run(command, check=True, user=owner.st_uid, group=owner.st_gid, extra_groups=[])


def call_with_little_memory(db: psycopg.Connection, call: str, room: int, *parameters: object) -> str | None:
    limit(db, room)
    try:
        db.execute(call, parameters)
    except psycopg.Error as error:
        assert error.sqlstate in EXPECTED, f"{call} with {room} MB: {error.sqlstate} {error}"
        return error.sqlstate
    finally:
        assert value(db, "SELECT 1") == 1
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_function_without_memory_fails_and_lives(filled: support.Database, name: str) -> None:
    for room in ROOMS:
        with filled.connect() as db:
            db.execute("SET client_min_messages = error; SET jit = off")
            db.execute("SELECT clip_embed_text('load the model')")
            if name == "precision int8":
                # A new cache folder each time, so that the eight-bit form is made again.
                folder = f"{value(db, 'SHOW data_directory')}/memory-{db.info.backend_pid}"
                db.execute(f"SET clip_search.cache_path = '{folder}'; SET clip_search.precision = 'int8'")
            call_with_little_memory(db, CALLS[name], room)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_a_stored_file_without_memory_fails_and_lives(filled: support.Database, path: pathlib.Path) -> None:
    for call in ("clip_embed_image(%b)", "clip_thumbnail(%b, 2000, 'png')", "clip_image_info(%b)"):
        for room in (0, 1, 3, 8):
            with filled.connect() as db:
                db.execute("SET client_min_messages = error; SET jit = off")
                db.execute("SELECT clip_embed_image(%b)", (files.png(64, 64),))
                call_with_little_memory(db, f"SELECT {call}", room, path.read_bytes())
