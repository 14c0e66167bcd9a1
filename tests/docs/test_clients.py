"""docs/clients.md: each example, copied unchanged, does what the page says.

CLIENTS names the clients to test here, separated by spaces: scripts/lib/clients.sh installs what they need.
tests/docs/clients has a program for each, which calls the example's functions and prints what they return.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

import support
from pages import DOCS
from pooler import pgbouncer, program
from servers import Server, server

PHOTOS = support.ROOT / "examples" / "gallery" / "photos"
PROGRAMS = support.ROOT / "tests" / "docs" / "clients"
TARGET = support.ROOT / "target" / "clients"
PAGE = (DOCS / "clients.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
CLIENTS = os.environ.get("CLIENTS", "").split()
# Each photo is sent once, except the cat, which is sent twice.
SENT = sum((PHOTOS / f"{name}.jpg").stat().st_size for name in ("cat", "cat", "cat-cropped", "rocket", "dahlia"))


class Counter:
    """Forwards TCP connections to the server's socket, and counts what the client sends."""

    def __init__(self) -> None:
        self.sent = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ['PGPORT']}")
                for source, to in ((client, server), (server, client)):
                    threading.Thread(target=self.forward, args=(source, to, source is client), daemon=True).start()

    def forward(self, source: socket.socket, to: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if count:
                    self.sent += len(data)
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    try:
        yield made
    finally:
        made.listener.close()


def watched_photos(db: psycopg.Connection) -> None:
    """The README's table, with a CHECK that refuses one title."""
    db.execute(
        "CREATE TABLE photo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea, "
        "title text CHECK (title <> 'forbidden'))"
    )
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', index => true)")


@pytest.fixture
def photos() -> Iterator[support.Database]:
    made = support.Database()
    try:
        with made.connect() as db:
            watched_photos(db)
        yield made
    finally:
        made.drop()


def compiled(*command: str | pathlib.Path, cwd: pathlib.Path, **environment: str) -> None:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def command(client: str, folder: pathlib.Path) -> list[str]:
    """Puts the page's example and the program that calls it into `folder`. Returns the command that runs them,
    without the folder of photos."""
    page, text = folder / "page", EXAMPLES[client]
    match client:
        case "python" | "sqlalchemy" | "django":
            page.write_text(text, encoding="utf-8")
            script = {"python": "psycopg3", "sqlalchemy": "sqlalchemy2", "django": "django5"}[client]
            python = support.ROOT / "target" / "venv-clients" / "bin" / "python"
            return [str(python), "-B", str(PROGRAMS / "python" / f"{script}.py"), "PHOTOS", str(page)]
        case "node" | "drizzle":
            for name in ("program.mjs", f"{client}.mjs"):
                shutil.copy(PROGRAMS / "node" / name, folder)
            (folder / "page.mjs").write_text(text, encoding="utf-8")
            return ["node", str(folder / f"{client}.mjs"), "PHOTOS"]
        case "ruby" | "php":
            page = page.with_suffix(".rb" if client == "ruby" else ".php")
            page.write_text(text, encoding="utf-8")
            script = PROGRAMS / client / f"program{page.suffix}"
            return [client, str(script), "PHOTOS", str(page)]
        case "go":
            shutil.copy(PROGRAMS / "go" / "program.go", folder)
            (folder / "page.go").write_text(text, encoding="utf-8")
            cache = str(TARGET / "go")
            # Debian's packages are sources below this path, where Go looked for them before it had modules.
            go = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": cache, "CGO_ENABLED": "0"}
            compiled("go", "build", "-o", folder / "program", "program.go", "page.go", cwd=folder, **go)
            return [str(folder / "program"), "PHOTOS"]
        case "java":
            driver = "/usr/share/java/postgresql.jar"
            shutil.copy(PROGRAMS / "java" / "Program.java", folder)
            (folder / "Photos.java").write_text(text, encoding="utf-8")
            compiled("javac", "-d", folder, folder / "Program.java", folder / "Photos.java", cwd=folder)
            return ["java", "-cp", f"{folder}:{driver}", "Program", "PHOTOS"]
        case "rust":
            # In a permanent place, since cargo compiles a file again if the file that it includes has another path.
            page = TARGET / "page.rs"
            if not page.exists() or page.read_text(encoding="utf-8") != text:
                page.write_text(text, encoding="utf-8")
            built = {"CARGO_TARGET_DIR": str(TARGET / "rust"), "PAGE": str(page)}
            compiled("cargo", "build", "--locked", "--quiet", cwd=PROGRAMS / "rust", **built)
            return [str(TARGET / "rust" / "debug" / "clients"), "PHOTOS"]
    raise AssertionError(f"nothing here runs {client}")


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """Below target/clients/node, so that Node.js finds the packages there."""
    made = TARGET / "node" / f"run-{os.getpid()}"
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def test_every_example_has_a_program() -> None:
    assert PAGE.count("<!-- run:") == len(EXAMPLES) == PAGE.count("\n```") // 2
    assert set(EXAMPLES) >= set(CLIENTS) and CLIENTS, "scripts/lib/clients.sh says which"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.timeout(900)  # compiling takes all but a few seconds of it
def test_it_does_what_the_page_says(
    client: str, photos: support.Database, counter: Counter, folder: pathlib.Path
) -> None:
    connection = {"PGHOST": "127.0.0.1", "PGPORT": str(counter.port), "PGUSER": "postgres", "PGDATABASE": photos.name}
    start = [str(PHOTOS) if part == "PHOTOS" else part for part in command(client, folder)]
    done = subprocess.run(start, env=os.environ | connection, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [tuple(line.split("\t")) for line in done.stdout.splitlines()]
    assert printed[:4] == [("added", "")] * 4
    (bad, reason), (unsupported, why), *others = printed[4:]
    assert bad == "bad" and "not an image" in reason and "Supported are JPEG" in reason
    assert unsupported == "unsupported" and "not supported" in why
    assert others == [("other", "23514"), *others[1:]]
    assert others[1] == ("found", "rocket") and others[2][0] == "found"
    assert others[3] == ("similar", "cat") or others[3] == ("similar", "cat-cropped")
    assert others[4:] in ([("group", "2", "cat")], [("group", "2", "cat-cropped")])
    with photos.connect() as db:
        stored = dict(db.execute("SELECT title, data FROM photo").fetchall())
        assert stored == {name: (PHOTOS / f"{name}.jpg").read_bytes() for name in stored} and len(stored) == 4
    # The query's photo, and the clock, which COPY sends; the Python example loads it twice.
    sent = SENT + (PHOTOS / "cat-mirrored.jpg").stat().st_size
    if client == "python":
        sent += 2 * (PHOTOS / "clock.jpg").stat().st_size
    assert sent < counter.sent < 1.1 * sent, f"{client} sends {counter.sent} bytes for {sent}"


def test_django_sends_hexadecimal_unless_told_otherwise(
    photos: support.Database, counter: Counter, folder: pathlib.Path
) -> None:
    connection = {"PGHOST": "127.0.0.1", "PGPORT": str(counter.port), "PGUSER": "postgres", "PGDATABASE": photos.name}
    start = [str(PHOTOS) if part == "PHOTOS" else part for part in command("django", folder)]
    done = subprocess.run(start, env=os.environ | connection | {"HEXADECIMAL": "1"}, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 1.9 * SENT < counter.sent


# ---------------------------------------------------------------- pools and prepared statements


def plan(db: psycopg.Connection, execute: str) -> str:
    return "\n".join(line for (line,) in db.execute(f"EXPLAIN {execute}"))


def test_what_a_prepared_search_takes(photos: support.Database) -> None:
    with photos.connect() as db:
        for title in [*["common"] * 950, *["rare"] * 50]:
            db.execute("INSERT INTO photo (title) VALUES (%s)", (title,))
        db.execute("ANALYZE photo")
        cat = (PHOTOS / "cat.jpg").read_bytes()
        db.execute(
            "PREPARE by_photo (bytea, bigint) AS "
            "SELECT id FROM photo ORDER BY embedding <=> (SELECT clip_embed_image($1)) LIMIT $2"
        )
        for _ in range(8):
            db.execute(sql.SQL("EXECUTE by_photo ({}, 10)").format(sql.Literal(cat)))
        memory = "SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE ident LIKE 'PREPARE by_photo%'"
        assert 0 < support.value(db, memory) <= 24 * 1024, "no photo is part of it"
        db.execute("SET plan_cache_mode = force_custom_plan")
        assert "rows=10 " in plan(db, "EXECUTE by_photo ('', 10)")
        db.execute("PREPARE filtered (text) AS SELECT id FROM photo WHERE title = $1")
        assert "rows=50 " in plan(db, "EXECUTE filtered ('rare')")
        db.execute("SET plan_cache_mode = force_generic_plan")
        assert "rows=100 " in plan(db, "EXECUTE by_photo ('', 10)"), "a tenth of the table"
        assert "rows=500 " in plan(db, "EXECUTE filtered ('rare')"), "each title equally frequent"


def test_a_pool_keeps_what_set_sets(bindir: pathlib.Path) -> None:
    if program() is None:
        pytest.skip("no pgbouncer: apt-get install pgbouncer")
    page: dict = {}
    exec(compile(EXAMPLES["python"].replace(REGISTER, ""), "clients.md", "exec"), page)
    with server(bindir) as own, pgbouncer(own, 1) as connect:
        setup(own)
        with connect() as first:
            assert page["add"](first, "cat", (PHOTOS / "cat.jpg").read_bytes()) is None
            assert page["add"](first, "notes", b"not an image").startswith("not an image")
            with first.transaction():
                first.execute("SET LOCAL clip_search.cluster_threshold = 0.7")
            with connect() as second:
                assert support.value(second, "SHOW clip_search.cluster_threshold") == "0.82"
                assert [row[1] for row in page["similar"](second, (PHOTOS / "cat.jpg").read_bytes())] == ["cat"]
            first.execute("SET clip_search.cluster_threshold = 0.7")
        with connect() as second:
            assert support.value(second, "SHOW clip_search.cluster_threshold") == "0.7"


# The tests' own Python environment lacks the pgvector package, and this test reads no vector.
REGISTER = "from pgvector.psycopg import register_vector\n"


def setup(own: Server) -> None:
    with own.connect() as db:
        watched_photos(db)
