"""A rehearsal of docs/upgrade.md: an earlier version of the extension and of ONNX Runtime, on a primary with a
standby, is upgraded in the page's order while clients write to the primary and search on the standby.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

import support
from installation import Copy, config
from pages import DOCS
from servers import Server, Standby
from support import raised_error, until, value

PAGE = (DOCS / "upgrade.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run: (\w+) -->\n *```sql\n(.*?)```", PAGE, re.DOTALL)
CURRENT = re.search(r'^version = "(.*)"', (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
# The last release; scripts/releases.sh has built its library and SQL.
OLD = "0.2.0"
OLD_RUNTIME = support.ROOT / "target" / "releases" / "onnxruntime-1.23.2" / "libonnxruntime.so"
RUNTIME = "1.24.4"
CAT, ROCKET = (
    (support.ROOT / "examples" / "gallery" / "photos" / f"{name}.jpg").read_bytes() for name in ("cat", "rocket")
)
SEARCH = "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 1"


class Traffic:
    """A client that repeats the same work, and reconnects when its server goes down."""

    def __init__(self, server: Server | Standby, work: Callable[[psycopg.Connection], object]):
        self.server, self.work = server, work
        self.done, self.cut, self.wrong = 0, 0, []
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        up = True
        while not self.ending.is_set():
            try:
                with self.server.connect() as db:
                    up = True
                    while not self.ending.wait(0.05):
                        self.work(db)
                        self.done += 1
            except (psycopg.OperationalError, psycopg.errors.AdminShutdown):
                # Counts as one outage, however many attempts fail during it.
                self.cut += up
                up = False
                time.sleep(0.1)
            except Exception as error:
                self.wrong.append(error)
                return

    def goes_on(self) -> None:
        """Waits until the client has done a few more rounds, on connections opened from now on."""
        wanted = self.done + 5
        until(lambda: self.done >= wanted or self.wrong, f"five rounds ({self.wrong})")
        assert not self.wrong

    def end(self) -> None:
        self.ending.set()
        self.thread.join(30)


def built() -> tuple[pathlib.Path, pathlib.Path]:
    """The scripts' folder and the library of the old version."""
    version = subprocess.run([os.environ["PG_CONFIG"], "--version"], capture_output=True, text=True, check=True).stdout
    place = support.ROOT / "target" / "releases" / OLD / f"pg{re.search(r'[0-9]+', version)[0]}"
    return place / config("sharedir").relative_to("/"), place / config("pkglibdir").relative_to("/") / "clip_search.so"


@pytest.fixture
def installations(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Copy, Copy]]:
    """Two installations of the old version: the primary's and the standby's."""
    share, library = built()
    if not library.exists() or not OLD_RUNTIME.exists():
        pytest.skip(f"{OLD} is not built: its commit is not in the history here (scripts/releases.sh)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(config("libdir")))
    folders = [pathlib.Path(os.environ["PGHOST"]) / f"upgrade-{name}-{os.getpid()}" for name in ("primary", "standby")]
    try:
        made = [Copy(folder) for folder in folders]
        for copy in made:
            for path in copy.extension.glob("clip_search*"):
                path.unlink()
            copy.put(share, library)
            copy.put_onnxruntime(OLD_RUNTIME)
        yield made[0], made[1]
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def upgrade(copy: Copy) -> None:
    copy.put(config("sharedir"), config("pkglibdir") / "clip_search.so")


def write(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO photo (data) VALUES (%b)", (CAT,))
    db.execute("INSERT INTO queued (data) VALUES (%b)", (ROCKET,))


def search(db: psycopg.Connection) -> None:
    found = db.execute(SEARCH).fetchall()
    assert len(found) == 1


def run(where: str, block: str, db: psycopg.Connection) -> list:
    """Runs a block of the page, and returns the rows of its last statement."""
    assert where in dict(BLOCKS) and block
    rows: list = []
    for statement in filter(str.strip, re.sub(r"^ +", "", block, flags=re.MULTILINE).split(";\n")):
        done = db.execute(statement)
        rows = done.fetchall() if done.description else []
    return rows


def fill(db: psycopg.Connection) -> None:
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE EXTENSION clip_search CASCADE")
    for name, mode in (("photo", "immediate"), ("queued", "queued")):
        db.execute(f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea)")
        db.execute(f"SELECT clip_watch('{name}', 'data', cluster => 'cluster_id', index => true, mode => '{mode}')")
    db.execute("INSERT INTO photo (data) VALUES (%b)", (CAT,))


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "not preloaded"])
def test_the_page(installations: tuple[Copy, Copy], preload: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    of_primary, of_standby = installations
    # The launcher only runs if the postmaster loads the library; without it, the worker's table comes last.
    settings = {"clip_search.preload": "photo-mini"} if preload else {"shared_preload_libraries": ""}
    primary = Server(of_primary.bindir, {**settings, "wal_retrieve_retry_interval": "100ms"})
    traffic: list[Traffic] = []
    standby = None
    blocks = [block for _, block in BLOCKS]
    assert [where for where, _ in BLOCKS] == ["standby", "standby", "primary", "primary", "try", "switch"]
    try:
        primary.start()
        with primary.connect() as db:
            fill(db)
            assert OLD in value(db, "SELECT clip_version()") and "1.23.2" in value(db, "SELECT clip_version()")
        standby = Standby(primary, bindir=of_standby.bindir)
        standby.start()
        with standby.connect() as db:
            standby.catch_up(db)
        traffic = [Traffic(primary, write), Traffic(standby, search)]
        for client in traffic:
            client.goes_on()

        # Step 2: the standby.
        upgrade(of_standby)
        for client in traffic:
            client.goes_on()
        if preload:
            standby.stop()
            standby.start()
        else:
            with standby.connect() as db:
                run("standby", blocks[0], db)
        with standby.connect() as db:
            ((version,),) = run("standby", blocks[1], db)
            assert CURRENT in version
        for client in traffic:
            client.goes_on()

        # Step 3: the primary, with the old SQL.
        upgrade(of_primary)
        traffic[0].goes_on()
        if preload:
            primary.stop()
            primary.start()
        else:
            with primary.connect() as db:
                run("standby", blocks[0], db)
        for client in traffic:
            client.goes_on()

        # Steps 4 and 5.
        with primary.connect() as db:
            db.execute("SET client_min_messages = warning")
            run("primary", blocks[2], db)
        for client in traffic:
            client.goes_on()
        with primary.connect() as db:
            ((installed, version),) = db.execute(blocks[3].split(";")[0]).fetchall()
            assert installed == CURRENT and CURRENT in version
            assert all(active for _, active, *_ in run("primary", blocks[3], db))
        with standby.connect() as db:
            standby.catch_up(db)
            # This needs the new SQL and the new library.
            assert value(db, "SELECT vector_dims(clip_embed_text_for('photo', 'a cat'))") == 512

        # Another ONNX Runtime: installed beside the old one, tried in one connection, then used by all.
        beside = primary.folder / f"libonnxruntime.so.{RUNTIME}"
        primary.run("cp", str(config("pkglibdir") / "clip_search" / "libonnxruntime.so"), str(beside))
        path = re.search(r"'(/usr/lib/onnxruntime/[^']*)'", blocks[4])[1]
        assert path.endswith(RUNTIME) and path in blocks[5]
        attempt, switch = (block.replace(path, str(beside)) for _, block in BLOCKS[4:6])
        if not preload:
            with primary.connect() as db:
                assert run("try", attempt, db)[0][0] > 0.9999
                assert RUNTIME in value(db, "SELECT clip_version()")
        with primary.connect() as db:
            run("switch", switch, db)
        if preload:
            primary.stop()
            primary.start()
        else:
            with primary.connect() as db:
                until(lambda: value(db, "SHOW clip_search.onnxruntime") == str(beside))
        for client in traffic:
            client.goes_on()
        with primary.connect() as db:
            value(db, "SELECT vector_dims(clip_embed_text('a dog'))")
            assert RUNTIME in value(db, "SELECT clip_version()")

        for client in traffic:
            client.end()
            assert not client.wrong and (client.cut <= 20)
        with primary.connect() as db:
            if not preload:
                db.execute("CALL clip_backfill('queued')")
            until(lambda: value(db, "SELECT count(*) FROM clip_search.pending") == 0, "the worker's work")
            for table, file in (("photo", CAT), ("queued", ROCKET)):
                query = f"SELECT count(*), count(embedding), min(1 - (embedding <=> clip_embed_image(%b))), count(DISTINCT cluster_id) FROM {table}"
                rows, embedded, lowest, clusters = db.execute(query, (file,)).fetchone()
                assert rows == embedded > 20 and lowest > 0.9999 and clusters == 1
        with primary.connect() as there, standby.connect() as here:
            standby.catch_up(here)
            rows = "SELECT id, embedding::text, cluster_id FROM photo ORDER BY id"
            assert here.execute(rows).fetchall() == there.execute(rows).fetchall()
    finally:
        for client in traffic:
            client.end()
        if standby is not None:
            standby.stop()
        primary.remove()


def test_in_the_wrong_order(installations: tuple[Copy, Copy]) -> None:
    """If the database is updated before the standby's library, searches still work there, but new functions are not
    found."""
    of_primary, of_standby = installations
    primary = Server(of_primary.bindir, {"clip_search.preload": "photo-mini"})
    standby = None
    try:
        primary.start()
        with primary.connect() as db:
            fill(db)
        standby = Standby(primary, bindir=of_standby.bindir)
        standby.start()
        upgrade(of_primary)
        primary.stop()
        primary.start()
        with primary.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("ALTER EXTENSION clip_search UPDATE")
        with standby.connect() as db:
            standby.catch_up(db)
            search(db)
            state, text = raised_error(db, "SELECT clip_embed_text_for('photo', 'a cat')")
            assert state == "42883" and "could not find function" in text
    finally:
        if standby is not None:
            standby.stop()
        primary.remove()
