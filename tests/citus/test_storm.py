"""Sessions at every server insert, copy, update, upsert and delete photos of a distributed table, while each worker is stopped
as by a crash, a shard moves, and a node leaves and comes back. At the end, rows, embeddings, groups and failures are exactly
those of the committed statements."""

from __future__ import annotations

import collections
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest

import support
from citus_servers import PORT, Citus
from servers import Server
from support import embed_one, in_parallel, until, value, vector

PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
FILES = [photo.read_bytes() for photo in PHOTOS]
BAD = b"no image"
SESSIONS, EACH = 8, 40
# The SQLSTATEs of a server that is down, or goes down during a query.
DOWN = {"08001", "08006", "57P01", "57P02", "57P03"}
# The errors that Citus reports when a worker goes down during a query, depending on what it was doing: libpq's
# messages, which have no SQLSTATE, or its own.
LOST = {
    ("XX000", "server closed the connection unexpectedly"),
    ("XX000", "failure on connection marked as essential"),
    ("XX000", "connection to the remote node"),
    ("58030", "failed to COPY to shard"),
    ("XX000", "could not find the intermediate result file"),
}
# Sessions (clip_group is one of them) that change the same rows in different orders, or a shard that has just moved.
AGAIN = {"40P01", "40001", "55P03"}


def is_lost(error: psycopg.Error) -> bool:
    # psycopg gives no SQLSTATE when the server that it is connected to goes down.
    return error.sqlstate in DOWN | AGAIN | {None} or any(
        error.sqlstate == state and words in str(error) for state, words in LOST
    )


def recover(citus: Citus, rounds: int = 50) -> None:
    """Waits until no worker has a transaction that waits for the coordinator's decision."""
    for _ in range(rounds):
        with citus.coordinator.connect() as db:
            db.execute("SELECT recover_prepared_transactions()")
        if not prepared(citus):
            return
        time.sleep(0.1)
    raise AssertionError("transactions are still prepared")


def prepared(citus: Citus) -> int:
    count = 0
    for worker in citus.workers:
        with worker.connect() as db:
            count += value(db, "SELECT count(*) FROM pg_prepared_xacts")
    return count


class Storm:
    """The state that the sessions share: when to give up, the servers in use, and the errors so far, by SQLSTATE."""

    def __init__(self, seconds: float, citus: Citus):
        self.servers = list(citus.servers)
        self.deadline = time.monotonic() + seconds
        self.errors: collections.Counter = collections.Counter()
        self.failed, self.done = threading.Event(), threading.Event()

    def check(self) -> None:
        assert time.monotonic() < self.deadline and not self.failed.is_set(), self.errors

    def job(self, run: Callable[[], None]) -> Callable[[], None]:
        """Wraps a job: when one job fails, nobody waits for the others."""

        def guarded() -> None:
            try:
                run()
            except BaseException:
                self.failed.set()
                raise

        return guarded

    def until_done(self, choose: Callable[[], Server], statement: Callable[[psycopg.Connection], object]) -> None:
        """Runs a statement until it succeeds. It may run again after a commit whose answer was lost, so it must be
        repeatable."""
        while True:
            self.check()
            server = choose()
            try:
                with server.connect() as db:
                    statement(db)
                    return
            except psycopg.Error as error:
                # A node that is removed from the cluster loses its tables.
                assert is_lost(error) or server not in self.servers, f"{error.sqlstate} {error}"
                self.errors[error.sqlstate] += 1
                time.sleep(0.1)


class Writer:
    """A session with ids of its own. `photos` maps each of its rows to its final photo: the number of a file, or
    None."""

    def __init__(self, storm: Storm, number: int):
        self.storm, self.rng = storm, random.Random(number)
        self.ids = range(number * 1000, number * 1000 + EACH)
        self.photos: dict[int, int | None] = {}
        self.steps = 0

    def run(self) -> None:
        for _ in range(2):
            for id in self.ids:
                self.step(id)
                self.steps += 1

    def step(self, id: int) -> None:
        photo = self.rng.randrange(len(FILES)) if self.rng.random() > 0.05 else None
        data = BAD if photo is None else FILES[photo]
        if id not in self.photos:
            way = self.rng.choice((self.insert, self.copy, self.upsert))
        else:
            way = self.rng.choice((self.update, self.upsert, self.delete, self.rename))
        self.storm.until_done(lambda: self.rng.choice(self.storm.servers), lambda db: way(db, id, data))
        if way == self.delete:
            del self.photos[id]
        elif way != self.rename:
            self.photos[id] = photo

    def insert(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        # The row may already exist, if the answer to its commit was lost.
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            db.execute("INSERT INTO item (id, data) VALUES (%s, %b)", (id, data))

    def copy(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            with db.cursor().copy("COPY item (id, data) FROM STDIN WITH (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea"])
                copy.write_row((id, data))

    def upsert(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        query = "INSERT INTO item (id, data) VALUES (%s, %b) ON CONFLICT (id) DO UPDATE SET data = excluded.data"
        db.execute(query, (id, data))

    def update(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        # Sometimes rolled back.
        if self.rng.random() < 0.2:
            with db.transaction(force_rollback=True):
                db.execute("UPDATE item SET data = %b WHERE id = %s", (FILES[0], id))
        db.execute("UPDATE item SET data = %b WHERE id = %s", (data, id))

    def rename(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        db.execute("UPDATE item SET title = 'renamed' WHERE id = %s", (id,))

    def delete(self, db: psycopg.Connection, id: int, data: bytes) -> None:
        db.execute("DELETE FROM item WHERE id = %s", (id,))


def move_a_shard(citus: Citus, number: int) -> None:
    with citus.coordinator.connect() as db:
        query = "SELECT shardid, nodename FROM citus_shards WHERE table_name = 'item'::regclass ORDER BY shardid OFFSET %s LIMIT 1"
        shard, source = db.execute(query, (number,)).fetchone()
        target = next(str(worker.folder) for worker in citus.workers if str(worker.folder) != source)
        db.execute("SELECT citus_move_shard_placement(%s, %s, %s, %s, %s)", (shard, source, PORT, target, PORT))


def remove_a_node(citus: Citus, storm: Storm) -> None:
    """The last worker leaves, with all its shards moved off it."""
    last = citus.workers[-1]
    storm.servers.remove(last)
    with citus.coordinator.connect() as db:
        db.execute("SELECT citus_drain_node(%s, %s)", (str(last.folder), PORT))
        db.execute("SELECT citus_remove_node(%s, %s)", (str(last.folder), PORT))
        assert str(last.folder) not in nodes_of(db, "item")


def add_a_node(citus: Citus, storm: Storm) -> None:
    """It comes back empty, and Citus moves shards to it."""
    last = citus.workers[-1]
    with citus.coordinator.connect() as db:
        db.execute("SELECT citus_add_node(%s, %s)", (str(last.folder), PORT))
        storm.servers.append(last)
        db.execute("SELECT rebalance_table_shards('item', threshold => 0)")
        assert str(last.folder) in nodes_of(db, "item")


def nodes_of(db: psycopg.Connection, table: str) -> set[str]:
    query = "SELECT nodename FROM citus_shards WHERE table_name = %s::regclass"
    return {node for (node,) in db.execute(query, (table,))}


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_everything_is_exact_after_a_storm(citus: Citus, mode: str) -> None:
    with citus.coordinator.connect() as db:
        db.execute("CREATE TABLE item (id bigint PRIMARY KEY, title text, data bytea)")
        db.execute("SELECT create_distributed_table('item', 'id', shard_count => 4)")
        db.execute(
            "SELECT clip_watch('item', 'data', model => 'photo-mini', cluster => 'cluster_id', on_error => 'skip', mode => %s)",
            (mode,),
        )
        right = [embed_one(db, "image", data) for data in FILES]
    storm = Storm(300, citus)
    writers = [Writer(storm, number) for number in range(1, SESSIONS + 1)]
    lost: list[set] = []

    def steps(share: float) -> None:
        while sum(writer.steps for writer in writers) < share * SESSIONS * EACH * 2:
            storm.check()
            time.sleep(0.02)

    def events() -> None:
        after = (lambda: move_a_shard(citus, 0), lambda: remove_a_node(citus, storm), lambda: add_a_node(citus, storm))
        for share, worker, change in zip((0.1, 0.4, 0.7), reversed(citus.workers), after, strict=True):
            steps(share)
            storm.errors.clear()
            worker.stop("immediate")
            until(lambda: storm.errors, "an error of the server that is down")
            worker.start()
            lost.append(set(storm.errors))
            steps(share + 0.12)
            recover(citus)
            change()

    def group() -> None:
        while not storm.done.is_set():
            storm.until_done(lambda: citus.coordinator, lambda db: db.execute("SELECT clip_group('item')"))
            time.sleep(0.05)

    def write() -> None:
        try:
            in_parallel([storm.job(writer.run) for writer in writers], 300)
        finally:
            storm.done.set()

    in_parallel([storm.job(write), storm.job(events), storm.job(group)], 340)
    assert len(lost) == len(citus.workers)
    recover(citus)
    expected = {id: photo for writer in writers for id, photo in writer.photos.items()}
    bad = sorted(str(id) for id, photo in expected.items() if photo is None)
    assert len(expected) > 100 and bad
    with citus.coordinator.connect() as db:
        query = "SELECT count(*) FROM item WHERE embedding IS NULL"
        until(lambda: value(db, query) == len(bad), "rows were not embedded", 60)
        listed = "SELECT key[1] FROM clip_search.failure WHERE relation = 'item'::regclass ORDER BY 1"
        until(lambda: [key for (key,) in db.execute(listed)] == bad, "other failures are listed than there are", 60)
        while value(db, "SELECT clip_group('item')"):
            pass
        found = db.execute("SELECT id, embedding::text, cluster_id FROM item").fetchall()
        assert sorted(id for id, *_ in found) == sorted(expected)
        groups, members = collections.defaultdict(set), collections.defaultdict(list)
        for id, text, cluster in found:
            photo = expected[id]
            assert (photo is None) == (text is None) == (cluster is None), (id, photo, cluster)
            if photo is not None:
                assert support.same_embedding(vector(text), right[photo]), (id, photo)
                groups[PHOTOS[photo].stem.split("-")[0]].add(cluster)
                members[cluster].append(right[photo].astype(np.float64))
        # Only the three photos of a subject are alike.
        assert all(len(clusters) == 1 for clusters in groups.values()), groups
        assert len(members) == len(groups)
        clusters = db.execute(
            "SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = 'item'"
        ).fetchall()
        assert {id: size for id, size, _ in clusters} == {id: len(rows) for id, rows in members.items()}
        for id, _, centroid in clusters:
            mean = np.mean(members[id], axis=0)
            assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-5
        db.execute("SELECT clip_unwatch('item'); DROP TABLE item")
        db.execute("CALL citus_cleanup_orphaned_resources()")


# ---------------------------------------------------------------- one transaction, lost between its two phases


@pytest.fixture
def lost(citus: Citus) -> Iterator[psycopg.Connection]:
    """A table of six photos of two subjects, four of them grouped; Citus recovers transactions only when told to."""
    with citus.coordinator.connect() as db:
        db.execute("CREATE TABLE lost (id bigint PRIMARY KEY, data bytea)")
        db.execute("SELECT create_distributed_table('lost', 'id', shard_count => 4)")
        db.execute("SELECT clip_watch('lost', 'data', model => 'photo-mini', cluster => 'cluster_id')")
        for id in range(6):
            db.execute("INSERT INTO lost (id, data) VALUES (%s, %b)", (id, FILES[id]))
            if id == 3:
                assert value(db, "SELECT clip_group('lost')") == 4
        set_up(citus.coordinator, "citus.recover_2pc_interval = -1")
    yield
    set_up(citus.coordinator, "citus.recover_2pc_interval = '5s'")
    with citus.coordinator.connect() as db:
        db.execute("SELECT clip_unwatch('lost'); DROP TABLE lost")


def set_up(server: Server, setting: str) -> None:
    with server.connect() as db:
        db.execute(f"ALTER SYSTEM SET {setting}")
        db.execute("SELECT pg_reload_conf()")


def in_syncrep(server: Server) -> object:
    with server.connect() as db:
        return value(
            db,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND (query ~ 'clip_group' OR query ~ '^PREPARE')",
        )


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
def test_a_coordinator_lost_between_the_phases(citus: Citus, lost: None, committed: bool) -> None:
    """The coordinator is lost after the workers have prepared clip_group and before they learn its outcome. The next
    call waits for that."""
    with citus.coordinator.connect() as db:
        db.execute("DELETE FROM lost WHERE id = 0")
        nodes = nodes_of(db, "lost")
    # A server that waits for a standby that doesn't exist stops within its commit: the coordinator after its own
    # commit, or a worker after PREPARE, so that the coordinator gets no answer.
    stuck = citus.coordinator if committed else next(worker for worker in citus.workers if str(worker.folder) in nodes)
    set_up(stuck, "synchronous_standby_names = 'nobody'")

    def commit() -> None:
        with contextlib.suppress(psycopg.Error), citus.coordinator.connect() as db:
            db.execute("SELECT clip_group('lost')")

    first = threading.Thread(target=commit, daemon=True)
    first.start()
    try:
        until(lambda: in_syncrep(stuck), "nobody waits for the standby")
        citus.coordinator.stop("immediate")
        first.join(30)
    finally:
        citus.coordinator.run(
            "sed", "-i", "/synchronous_standby_names/d", str(citus.coordinator.data / "postgresql.auto.conf")
        )
        if not committed:
            set_up(stuck, "synchronous_standby_names = ''")
        citus.coordinator.start()
    assert prepared(citus) >= len(nodes)
    after: list[object] = []

    def again() -> None:
        with citus.coordinator.connect() as db:
            after.append(value(db, "SELECT clip_group('lost')"))

    second = threading.Thread(target=again, daemon=True)
    second.start()
    time.sleep(1.5)
    assert not after and second.is_alive(), "it went on although nobody knows what became of the first"
    recover(citus)
    second.join(30)
    # One photo left, and two were new.
    assert after == [0 if committed else 3]
    with citus.coordinator.connect() as db:
        assert value(db, "SELECT count(cluster_id) FROM lost") == 5
        query = "SELECT cluster_id, count(*) FROM lost GROUP BY cluster_id"
        clusters = db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = 'lost'").fetchall()
        assert dict(db.execute(query).fetchall()) == dict(clusters)


def test_every_statement_of_the_page_was_run(citus: Citus) -> None:
    """This must be the last test of the folder."""
    assert citus.done == set(citus.blocks)
