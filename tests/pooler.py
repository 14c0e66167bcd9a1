"""PgBouncer in transaction mode in front of a server."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator

import psycopg

from servers import Server

Connect = Callable[[], psycopg.Connection]


def program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextlib.contextmanager
def pgbouncer(made: Server, pool: int) -> Iterator[Connect]:
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
    made.run("sh", "-c", f"{program()} -d -q {config} >/dev/null 2>&1")

    def connect() -> psycopg.Connection:
        # A statement prepared in one connection could be executed in another, which doesn't have it.
        return psycopg.connect(
            host=str(folder), user="postgres", dbname="postgres", autocommit=True, prepare_threshold=None
        )

    try:
        deadline = time.monotonic() + 60
        # The socket exists a moment before PgBouncer accepts connections.
        while True:
            try:
                connect().close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield connect
    finally:
        made.run("sh", "-c", f"kill $(cat {folder}/pid) && rm -r {folder}")
