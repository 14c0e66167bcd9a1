"""Helpers for all tests: connections, throw-away databases, and model directories that the server can read."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import psycopg
from psycopg import sql

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
MODELS = ROOT / "target" / "pytest-models"
MAKE_CLIP = ROOT / "models" / "make_clip.py"


# ---------------------------------------------------------------- databases


def connect(database: str, user: str | None = None, autocommit: bool = True) -> psycopg.Connection:
    """A new connection to a database of the server given by PGHOST and PGPORT."""
    return psycopg.connect(dbname=database, user=user, autocommit=autocommit, connect_timeout=20)


class Database:
    """A throw-away database. drop() also ends the connections that are still open."""

    def __init__(self, extension: bool = True, template: str = "template0"):
        self.name = f"clip_test_{uuid.uuid4().hex[:12]}"
        with connect("postgres") as db:
            names = sql.Identifier(self.name), sql.Identifier(template)
            db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        if extension:
            with self.connect() as db:
                db.execute("SET client_min_messages = warning")
                db.execute("CREATE EXTENSION clip_search CASCADE")

    def connect(self, user: str | None = None, autocommit: bool = True) -> psycopg.Connection:
        return connect(self.name, user, autocommit)

    def drop(self) -> None:
        with connect("postgres") as db:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))


def value(db: psycopg.Connection, query: str, *arguments: object) -> object:
    """The single value that a query returns."""
    row = db.execute(query, arguments or None).fetchone()
    assert row is not None and len(row) == 1, f"{query} returned {row}"
    return row[0]


def vector_text(vector: Iterable[float]) -> str:
    """pgvector's input form, with nine digits: enough to restore every float4 exactly."""
    return "[" + ",".join(f"{float(v):.9g}" for v in vector) + "]"


def vector(text: str | None) -> np.ndarray | None:
    """The float4 components of pgvector's output form."""
    if text is None:
        return None
    assert isinstance(text, str) and text[0] == "[" and text[-1] == "]", f"not a vector: {text!r}"
    return np.array(text[1:-1].split(","), dtype=np.float32)


def embed_one(db: psycopg.Connection, what: str, item: bytes | str, *model: str) -> np.ndarray:
    """Calls `clip_embed_image` or `clip_embed_text`, with a model if one is given."""
    second = ", %s" if model else ""
    return vector(value(db, f"SELECT clip_embed_{what}(%s{second})::text", item, *model))


def embed_many(db: psycopg.Connection, what: str, items: Sequence, *model: str) -> list[np.ndarray | None]:
    """`clip_embed_images` or `clip_embed_texts`: one array in, one array out."""
    kind = {"images": "bytea[]", "texts": "text[]"}[what]
    second = ", %s" if model else ""
    call = f"clip_embed_{what}(%s::{kind}{second})"
    query = f"SELECT v::text FROM unnest({call}) WITH ORDINALITY AS u (v, n) ORDER BY n"
    rows = db.execute(query, (list(items), *model))
    return [vector(row[0]) for row in rows]


def raised_error(db: psycopg.Connection, query: str, *arguments: object) -> tuple[str | None, str]:
    """The SQLSTATE and the full text of the error that a query must raise."""
    try:
        rows = db.execute(query, arguments or None)
    except psycopg.Error as error:
        diag = error.diag
        parts = (diag.message_primary or str(error), diag.message_detail, diag.message_hint)
        return error.sqlstate, "\n".join(part for part in parts if part)
    returned = str(rows.fetchall()) if rows.description else "nothing"
    raise AssertionError(f"{query} raised no error but returned {returned[:200]}")


@contextlib.contextmanager
def system_settings(db: psycopg.Connection, **settings: str) -> Iterator[None]:
    """Changes settings of the whole server for a while, by ALTER SYSTEM; clip_search's are named without prefix."""
    try:
        for name, setting in settings.items():
            db.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.SQL(f"clip_search.{name}"), sql.Literal(setting)))
        db.execute("SELECT pg_reload_conf()")
        yield
    finally:
        # On a connection of its own: the test's may be broken.
        info = db.info
        with psycopg.connect(
            host=info.host, port=info.port, user=info.user, dbname=info.dbname, autocommit=True
        ) as other:
            for name in settings:
                other.execute(f"ALTER SYSTEM RESET clip_search.{name}")
            other.execute("SELECT pg_reload_conf()")


# ---------------------------------------------------------------- threads


def in_parallel(jobs: Sequence[Callable[[], object]], timeout: float = 90) -> list:
    """Runs the jobs at once, each in a thread; returns their results, or raises the first error."""
    results: list = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"a session still waits after {timeout} s"
    return results


# Longer than any condition of these tests takes, even on a busy machine.
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str = "it", patience: float = PATIENCE) -> None:
    """Polls until the condition holds; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come about within {patience} s"
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far. Time limits count it because it doesn't grow while the process waits for a busy
    machine."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_running(db: psycopg.Connection, pid: int) -> bool:
    """Whether a backend has begun a statement, so that a cancel takes effect."""
    db.execute("SELECT pg_stat_clear_snapshot()")
    return bool(value(db, "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s", pid))


# ---------------------------------------------------------------- models


def stamp() -> str:
    """A hash of everything that decides what make_clip.py writes."""
    files = (MAKE_CLIP, MAKE_CLIP.with_name("packages.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def make_clip(name: str, *options: str) -> pathlib.Path:
    """A model directory written by models/make_clip.py, kept in target/ until the script changes."""
    directory, wanted = MODELS / name, f"{stamp()} {' '.join(options)}\n"
    mark = directory / "made-by"
    MODELS.mkdir(parents=True, exist_ok=True)
    # Two runs of pytest may do this at the same time.
    with (MODELS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists() or mark.read_text() != wanted:
            shutil.rmtree(directory, ignore_errors=True)
            done = subprocess.run(
                [sys.executable, str(MAKE_CLIP), "--out", str(directory), *options],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"make_clip.py failed: {done.stderr.strip()}"
            mark.write_text(wanted)
    return directory


class ServerFolder:
    """A folder whose files the server's user can read while the tests run.

    The server may run as another user than the tests, and that user may have no access to the checkout (say, below a
    home directory of mode 0700). The files then go into the folder of the server's socket.
    """

    def __init__(self) -> None:
        self.path: pathlib.Path | None = None
        name = f"test-{uuid.uuid4().hex[:12]}"
        candidates = [MODELS / name, pathlib.Path(os.environ["PGHOST"]) / name]
        with connect("postgres") as db:
            for path in candidates:
                path.mkdir(parents=True)
                path.chmod(0o755)
                probe = path / "probe"
                probe.write_text("x")
                probe.chmod(0o644)
                if self._readable(db, probe):
                    self.path = path
                    return
                shutil.rmtree(path)
        raise AssertionError(f"the server can read neither of {', '.join(str(c.parent) for c in candidates)}")

    @staticmethod
    def _readable(db: psycopg.Connection, path: pathlib.Path) -> bool:
        try:
            return value(db, "SELECT pg_read_file(%s, 0, 1)", str(path)) == "x"
        except psycopg.Error:
            return False

    def add(self, source: pathlib.Path, name: str | None = None, copy: bool = False) -> pathlib.Path:
        """Adds a directory's files under another name: as hard links where that works, unless `copy`.

        Only files in target/ are linked: writing through a link to another file would change the checkout. For the same
        reason, a file that already exists here is removed first, never overwritten.
        """
        target = self.path / (name or source.name)
        linked = not copy and ROOT / "target" in source.resolve().parents
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            try:
                if not linked or not file.stat().st_mode & 0o004:
                    raise OSError("a link would not do")
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)
                place.chmod(0o644)
        self.open(target)
        return target

    def open(self, target: pathlib.Path) -> None:
        """Gives the server access to the directories made here, whatever the umask."""
        target.mkdir(parents=True, exist_ok=True)
        for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
            directory.chmod(0o755)

    def remove(self) -> None:
        shutil.rmtree(self.path)


def same_embedding(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two embeddings are of the same item and model. Graphs round differently with another batch size or
    another layout of their weights."""
    return a.shape == b.shape and bool(np.allclose(a, b, atol=1e-6))
