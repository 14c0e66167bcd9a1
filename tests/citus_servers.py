"""A Citus coordinator and three workers, set up with the statements of docs/citus.md."""

from __future__ import annotations

import pathlib
import re

import support
from servers import Server
from support import value

WORKERS = 3
PAGE = support.ROOT / "docs" / "citus.md"
BLOCKS = re.compile(r"<!-- run: (.*?) -->\n```sql\n(.*?)```", re.DOTALL)
PORT = 5432


def statements(text: str) -> list[str]:
    """Splits the text after each line that ends a statement, but not inside a function's body."""
    found = [""]
    for line in text.splitlines(keepends=True):
        found[-1] += line
        if line.rstrip().endswith(";") and found[-1].count("$$") % 2 == 0:
            found.append("")
    return [statement for statement in found if statement.strip()]


class Citus:
    """The servers, and the page's statements by name."""

    def __init__(self, bindir: pathlib.Path):
        self.blocks = dict(BLOCKS.findall(PAGE.read_text(encoding="utf-8")))
        self.done: set[str] = set()
        self.coordinator, *self.workers = self.servers = [
            Server(
                bindir,
                {
                    "shared_preload_libraries": "citus, clip_search",
                    "clip_search.preload": "photo-mini",
                    "wal_level": "logical",
                    "max_prepared_transactions": "100",
                    "citus.recover_2pc_interval": "5s",
                },
            )
            for _ in range(WORKERS + 1)
        ]

    def start(self) -> None:
        for server in self.servers:
            # By default, a Citus server connects to itself at localhost, where these servers don't listen.
            line = f"citus.local_hostname = '{server.folder}'\n"
            server.run("tee", "-a", str(server.data / "postgresql.conf"), input=line)
            server.start()
            with server.connect() as db:
                db.execute("CREATE EXTENSION citus")
        with self.coordinator.connect() as db:
            db.execute("SELECT citus_set_coordinator_host(%s, %s)", (str(self.coordinator.folder), PORT))
            for worker in self.workers:
                db.execute("SELECT citus_add_node(%s, %s)", (str(worker.folder), PORT))

    def run(self, name: str, table: str = "photo") -> list[tuple]:
        """Runs a named block of the page on the coordinator, optionally for another table. Returns the rows of its last
        statement."""
        text = self.blocks[name]
        if table == "photo":
            self.done.add(name)
        else:
            text = re.sub(r"photo(?!-mini|s\b)", table, text).replace(
                "CREATE EXTENSION", "CREATE EXTENSION IF NOT EXISTS"
            )
        with self.coordinator.connect() as db:
            db.execute("SET client_min_messages = warning")
            rows: list[tuple] = []
            # One statement at a time, as psql sends them: Citus forwards a CREATE EXTENSION with everything else in the
            # same message.
            for statement in statements(text):
                cursor = db.execute(statement)
                if cursor.description:
                    rows = cursor.fetchall()
            return rows

    def images(self) -> list[int]:
        """How many images each server has embedded, the coordinator first."""
        counts = []
        for server in self.servers:
            with server.connect() as db:
                counts.append(int(value(db, "SELECT coalesce(sum(images), 0) FROM clip_stats()")))
        return counts

    def remove(self) -> None:
        for server in self.servers:
            server.remove()
