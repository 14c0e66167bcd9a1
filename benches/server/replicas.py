#!/usr/bin/env python3
"""Searches a second with 0, 1 and 2 streaming standbys, and by PgBouncer in transaction mode, for docs/scaling.md.

    eval "$(CLUSTER=test make -s env)"; target/venv/bin/python benches/server/replicas.py --bindir "$(pg_config --bindir)"
        [--rows 30000] [--json FILE]

A search embeds a text that was not asked before and takes the nearest ten of photo-like vectors by HNSW. All servers
share this machine's cores: more servers can't do more than the cores. The second part needs pgbouncer (the package of
that name) and is left out without; it also checks what a pool changes: settings, the memo of texts, memory.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import time

import psycopg

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign  # noqa: E402
from servers import Server, private_megabytes, server  # noqa: E402
from support import in_parallel, value  # noqa: E402
from test_standby import Standby  # noqa: E402

SECONDS, CLIENTS = 10.0, 4
SEARCH = "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text(%s) LIMIT 10"
numbers = itertools.count()


def searches(connect: list, clients: int, new: bool = True) -> float:
    """A second, by clients that take turns with the servers; `new`: texts that were not asked before."""
    counts, end = [0] * clients, 0.0

    def client(n: int) -> None:
        with connect[n % len(connect)]() as db:
            while time.perf_counter() < end:
                text = f"photograph number {next(numbers)}" if new else f"photograph number {counts[n] % 20}"
                assert len(db.execute(SEARCH, (text,)).fetchall()) == 10
                counts[n] += 1

    for make in connect:  # load and warm
        with make() as db:
            for _ in range(25):
                db.execute(SEARCH, (f"warm {next(numbers)}",))
    end = time.perf_counter() + SECONDS
    in_parallel([lambda n=n: client(n) for n in range(clients)], 60)
    return sum(counts) / SECONDS


@contextlib.contextmanager
def pgbouncer(made: Server, program: str, pool: int):
    folder = made.folder / "pool"
    made.run("mkdir", "-m", "700", str(folder))
    config = folder / "pgbouncer.ini"
    made.run(
        "tee",
        str(config),
        input=f"[databases]\npostgres = host={made.folder} user=postgres\n[pgbouncer]\nunix_socket_dir = {folder}\n"
        f"listen_port = 5432\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {pool}\n"
        f"max_client_conn = 200\nlogfile = {folder}/log\npidfile = {folder}/pid\n",
    )
    made.run("sh", "-c", f"{program} -d -q {config} >/dev/null 2>&1")
    try:
        for _ in range(100):
            if (folder / ".s.PGSQL.5432").exists():
                break
            time.sleep(0.05)
        # Statements that are prepared in one connection would be asked for in another.
        yield lambda: psycopg.connect(
            host=str(folder), user="postgres", dbname="postgres", autocommit=True, prepare_threshold=None
        )
    finally:
        made.run("sh", "-c", f"kill $(cat {folder}/pid)")


def check_pool(made: Server, connect) -> dict:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in range(20)]
        pids = {value(db, "SELECT pg_backend_pid()") for db in clients}
        with made.connect() as db:
            db.execute("SELECT clip_reset_stats()")
        for db in clients:
            db.execute("SELECT clip_embed_text('the same words')")
        # A transaction's setting holds for it, and for nobody else.
        first, second = clients[:2]
        with first.transaction():
            first.execute("SET LOCAL clip_search.truncate_text = off")
            assert value(first, "SHOW clip_search.truncate_text") == "off"
        assert {value(db, "SHOW clip_search.truncate_text") for db in clients} == {"on"}
        # A session's setting is left to whoever gets the connection next.
        first.execute("SET clip_search.truncate_text = off")
        seen = [value(db, "SHOW clip_search.truncate_text") for db in clients]
        first.execute("RESET clip_search.truncate_text")
        with made.connect() as db:
            hits, runs = db.execute("SELECT sum(memo_hits)::int, sum(runs)::int FROM clip_stats()").fetchone()
            db.execute("ALTER ROLE postgres SET clip_search.truncate_text = off")
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY (%s)", (list(pids),))
        # The pool opens new connections, which have it.
        with contextlib.suppress(psycopg.OperationalError):
            clients[2].execute("SELECT 1")
        with connect() as db:
            assert value(db, "SHOW clip_search.truncate_text") == "off"
        with made.connect() as db:
            db.execute("ALTER ROLE postgres RESET clip_search.truncate_text")
        memory = max(private_megabytes(db) for db in clients[3:])
        return {"server_connections": len(pids), "memo_hits": hits, "runs": runs, "leaked": "off" in seen, "private_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bindir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    found: dict = {"rows": arguments.rows, "cores": os.cpu_count()}
    with server(arguments.bindir, preload="photo-mini") as primary, contextlib.ExitStack() as stack:
        with primary.connect() as db:
            db.execute("CREATE TABLE photo (id bigint, embedding vector(512))")
            with db.cursor().copy("COPY photo FROM STDIN WITH (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea"])
                for n, row in enumerate(assign.vectors("photo-like", arguments.rows, seed=1)):
                    copy.write_row((n, assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes()))
            db.execute("SET maintenance_work_mem = '1GB'; CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)")
            db.execute("VACUUM ANALYZE photo")
        found["one client"] = searches([primary.connect], 1)
        found["0 standbys"] = searches([primary.connect], CLIENTS)
        servers = [primary.connect]
        for count in (1, 2):
            standby = Standby(primary, f"standby{count}")
            stack.callback(standby.stop)
            standby.start()
            with standby.connect() as db:
                standby.catch_up(db)
            servers.append(standby.connect)
            found[f"{count} standbys"] = searches(servers, CLIENTS)
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program:
            with pgbouncer(primary, program, pool=2) as connect:
                found["pool"] = check_pool(primary, connect)
                found["pool, 4 clients"] = searches([connect], 4)
                found["pool, 40 clients"] = searches([connect], 40)
                found["pool, 40 clients, 20 texts"] = searches([connect], 40, new=False)
        else:
            print("pgbouncer is not installed: left out", file=sys.stderr)
    for name, figure in found.items():
        print(f"{name}: {figure:.1f}" if isinstance(figure, float) else f"{name}: {figure}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
