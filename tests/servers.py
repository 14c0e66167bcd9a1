"""A test's own servers, run by the user who owns the running server's socket directory."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator

import psycopg

from support import value


class Server:
    """A PostgreSQL cluster below the running server's socket directory, where that server's user may write."""

    def __init__(self, pg_bindir: pathlib.Path, settings: dict[str, str], *initdb: str):
        base = pathlib.Path(os.environ["PGHOST"])
        self.bindir, self.user = pg_bindir, base.owner()
        self.folder = base / f"preload-{uuid.uuid4().hex[:8]}"
        self.data, self.log = self.folder / "data", self.folder / "log"
        self.run("mkdir", "-m", "700", str(self.folder))
        self.run(str(pg_bindir / "initdb"), "-D", str(self.data), "-A", "trust", "-U", "postgres", "-N", *initdb)
        lines = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "shared_preload_libraries": "clip_search",
            "fsync": "off",
            **settings,
        }
        text = "".join(f"{name} = '{setting}'\n" for name, setting in lines.items())
        self.run("tee", "-a", str(self.data / "postgresql.conf"), input=text)

    def run(self, *command: str, input: str | None = None) -> None:
        as_owner = [] if pwd.getpwuid(os.getuid()).pw_name == self.user else ["runuser", "-u", self.user, "--"]
        done = subprocess.run([*as_owner, *command], cwd="/", input=input, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        pg_ctl = str(self.bindir / "pg_ctl")
        # Output isn't captured: the server would keep the pipe open.
        self.run("sh", "-c", f"{pg_ctl} -w -t 60 -D {self.data} -l {self.log} start >/dev/null 2>&1")

    def stop(self, mode: str = "fast") -> None:
        self.run(str(self.bindir / "pg_ctl"), "-w", "-D", str(self.data), "-m", mode, "stop")

    def remove(self) -> None:
        """Stops the server if it runs, and deletes it."""
        with contextlib.suppress(AssertionError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=dbname, autocommit=True)

    def reconnect(self, patience: float = 120) -> psycopg.Connection:
        """Connects as soon as the server is up again."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self.connect()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server did not come back"
                time.sleep(0.05)

    @property
    def postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def messages(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def server(bindir: pathlib.Path, **settings: str) -> Iterator[Server]:
    made = Server(bindir, {f"clip_search.{name}": setting for name, setting in settings.items()})
    try:
        made.start()
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
        yield made
    finally:
        made.remove()


class Standby:
    """A standby that is a base backup of a server and streams from it, with a socket of its own."""

    def __init__(self, primary: Server, name: str = "standby", bindir: pathlib.Path | None = None):
        self.primary, self.folder = primary, primary.folder / name
        self.bindir = bindir or primary.bindir
        self.data = self.folder / "data"
        primary.run("mkdir", "-m", "700", str(self.folder))
        program, socket = str(primary.bindir / "pg_basebackup"), str(primary.folder)
        primary.run(program, "-h", socket, "-U", "postgres", "-D", str(self.data), "-R", "-c", "fast")
        self.cache = self.data / "pgsql_tmp.clip_search"
        assert not self.cache.exists(), "base backups leave it out"

    def start(self) -> None:
        options = f"-c unix_socket_directories={self.folder}"
        command = f"{self.bindir}/pg_ctl -w -t 60 -D {self.data} -l {self.folder}/log -o '{options}' start"
        self.primary.run("sh", "-c", f"{command} >/dev/null 2>&1")

    def stop(self) -> None:
        self.primary.run(str(self.primary.bindir / "pg_ctl"), "-w", "-D", str(self.data), "-m", "immediate", "stop")

    def promote(self) -> None:
        self.primary.run(str(self.primary.bindir / "pg_ctl"), "-w", "-D", str(self.data), "promote")

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def catch_up(self, db: psycopg.Connection) -> None:
        """Waits until the standby shows what the primary has committed."""
        with self.primary.connect() as primary:
            wanted = value(primary, "SELECT pg_current_wal_flush_lsn()::text")
        deadline = time.monotonic() + 60
        while not value(db, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", wanted):
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.05)


def private_megabytes(db: psycopg.Connection) -> float:
    """The memory that a backend doesn't share with the postmaster."""
    pid = value(db, "SELECT pg_backend_pid()")
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
