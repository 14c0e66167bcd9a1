"""A coordinator and three shards, set up with the statements of docs/shards.md."""

from __future__ import annotations

import pathlib
import re

import support
from servers import Server

PAGE = support.ROOT / "docs" / "shards.md"
PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
SHARDS = 3
BLOCKS = re.compile(r"<!-- run: (.*?) -->\n```sql\n(.*?)```", re.DOTALL)


def blocks(*marks: str) -> list[tuple[str, str]]:
    """(mark, statements) of the page's blocks with these marks, in page order."""
    return [(mark, text) for mark, text in BLOCKS.findall(PAGE.read_text(encoding="utf-8")) if mark in marks]


def shown(words: str) -> str:
    """The one statement of the page that contains these words."""
    (found,) = [
        text for _, text in BLOCKS.findall(PAGE.read_text(encoding="utf-8")) if words in text and "CREATE" not in text
    ]
    return found


class Shards:
    """A coordinator and three shards."""

    def __init__(self, bindir: pathlib.Path):
        self.coordinator, *self.shards = self.servers = [
            Server(bindir, {"max_connections": "60"}) for _ in range(SHARDS + 1)
        ]

    def start(self) -> None:
        for made in self.servers:
            made.start()

    def remove(self) -> None:
        for made in self.servers:
            made.remove()

    def run(self, server: Server, text: str) -> None:
        """Runs the page's statements with this test's sockets in place of the page's hosts."""
        folders = {f"shard-{n}.example": shard.folder for n, shard in enumerate(self.shards)}
        for host, folder in (folders | {"coordinator.example": self.coordinator.folder}).items():
            text = text.replace(host, str(folder))
        text = text.replace("dbname 'photos'", "dbname 'postgres'").replace(", password 'secret'", "")
        with server.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute(text)

    def create(self, table: str, watched: bool) -> None:
        """Creates the page's table, or one like it without photos."""

        def named(text: str) -> str:
            return text if table == "photo" else re.sub(r"photo(?!s)", table, text)

        more = [] if watched else ["not for items"]
        wanted = [
            f"{who}{suffix}" for who in ("shard", "coordinator") for suffix in ("", ", not for items", ", each shard")
        ]
        for mark, text in blocks(*wanted):
            if (more and "not for items" in mark) or not re.search("CREATE|clip_watch", text):
                continue
            text = named(text)
            if not watched:
                text = re.sub(r"CREATE (SERVER|USER MAPPING)", r"CREATE \1 IF NOT EXISTS", text)
            if mark.startswith("shard"):
                for shard in self.shards:
                    self.run(shard, text)
            elif "each shard" in mark:
                for n in range(SHARDS):
                    numbered = text.replace("shard_0", f"shard_{n}").replace(f"{table}_0", f"{table}_{n}")
                    numbered = numbered.replace("REMAINDER 0", f"REMAINDER {n}").replace("shard-0", f"shard-{n}")
                    self.run(self.coordinator, numbered)
            else:
                self.run(self.coordinator, text)
