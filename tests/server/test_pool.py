"""PgBouncer in transaction mode in front of the server: settings, the memo of texts and preloaded models, with more
clients than connections. Skipped where pgbouncer (the package of that name) isn't installed."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator

import psycopg
import pytest

from pooler import Connect, pgbouncer, program
from servers import Server, private_megabytes, server
from support import embed_one, in_parallel, same_embedding, value, vector

CLIENTS, CONNECTIONS = 20, 2


@pytest.fixture(scope="module")
def made(bindir: pathlib.Path) -> Iterator[Server]:
    if not program():
        pytest.skip("no pgbouncer")
    with server(bindir, preload="photo-mini") as made:
        yield made


@pytest.fixture
def connect(made: Server) -> Iterator[Connect]:
    with pgbouncer(made, pool=CONNECTIONS) as connect:
        yield connect


@pytest.fixture
def clients(connect: Connect) -> Iterator[list[psycopg.Connection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(CLIENTS)]


def test_clients_share_connections_texts_and_the_model(made: Server, clients: list[psycopg.Connection]) -> None:
    with made.connect() as db:
        db.execute("SELECT clip_reset_stats()")
        expected = embed_one(db, "text", "the same words")

    def ask(db: psycopg.Connection, times: int = 5) -> set[int]:
        pids = set()
        for _ in range(times):
            pid, found = db.execute("SELECT pg_backend_pid(), clip_embed_text('the same words')::text").fetchone()
            assert same_embedding(vector(found), expected)
            pids.add(pid)
        return pids

    # Concurrent transactions each have a connection; one after another, short ones might all get the first.
    pids = set()
    with contextlib.ExitStack() as stack:
        for db in clients[:CONNECTIONS]:
            stack.enter_context(db.transaction())
            pids |= ask(db, 1)
    assert len(pids) == CONNECTIONS
    assert set.union(*in_parallel([lambda db=db: ask(db) for db in clients])) <= pids
    with made.connect() as db:
        hits, runs, loads = db.execute(
            "SELECT sum(memo_hits)::int, sum(runs)::int, sum(loads)::int FROM clip_stats()"
        ).fetchone()
    # Each connection embeds it once, and this session once more.
    assert (hits, runs) == (5 * CLIENTS, CONNECTIONS + 1), "each connection remembers what any client asked"
    assert loads == 0, "the model is the server's"
    assert max(private_megabytes(db) for db in clients) < 60


def test_settings_are_a_transactions_a_roles_or_everybodys(made: Server, clients: list[psycopg.Connection]) -> None:
    show = "SHOW clip_search.truncate_text"
    first, *others = clients
    with first.transaction():
        first.execute("SET LOCAL clip_search.truncate_text = off")
        assert value(first, show) == "off" and {value(db, show) for db in others} == {"on"}
    assert {value(db, show) for db in clients} == {"on"}
    # A session's setting stays for the next client that gets the connection, as all PostgreSQL settings do.
    first.execute("SET clip_search.truncate_text = off")
    assert "off" in [value(db, show) for db in clients]
    for db in clients:
        with db.transaction():
            db.execute("RESET clip_search.truncate_text")
    # A role's setting applies to new connections, which the pool makes after the old ones have ended.
    with made.connect() as db:
        try:
            db.execute("ALTER ROLE postgres SET clip_search.truncate_text = off")
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            deadline = time.monotonic() + 60
            seen: set[object] = set()
            while seen != {"off"}:
                assert time.monotonic() < deadline, seen
                with contextlib.suppress(psycopg.OperationalError):
                    seen = {value(db, show) for db in others if not db.broken}
        finally:
            db.execute("ALTER ROLE postgres RESET clip_search.truncate_text")
