"""Groups of a distributed table while many sessions write, transactions are rolled back and servers are lost: with the
statements of docs/citus.md each row is counted once, in the one group of its subject."""

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

from citus_servers import Citus
from servers import Server
from support import in_parallel, sqlstate, until, value, vector, vector_text

# A server that is down, or goes down while it is asked.
DOWN = {"08001", "08006", "57P01", "57P02", "57P03"}
# What Citus makes of a worker that goes away while it is asked, according to what it was at: libpq's words, which carry no
# SQLSTATE, or words of its own.
LOST = {
    ("XX000", "server closed the connection unexpectedly"),
    ("XX000", "failure on connection marked as essential"),
    ("58030", "failed to COPY to shard"),
}


def is_lost(error: psycopg.Error) -> bool:
    # psycopg has no SQLSTATE where the coordinator goes away.
    return error.sqlstate in DOWN | {None} or any(
        error.sqlstate == state and words in str(error) for state, words in LOST
    )


def variants(subject: int, count: int, seed: int) -> np.ndarray:
    """Unit vectors with a cosine near 0.93 to their subject's direction."""
    direction = np.random.default_rng(subject).standard_normal(512)
    noise = np.random.default_rng(seed).standard_normal((count, 512)) * (0.4 / 512**0.5)
    rows = direction / np.linalg.norm(direction) + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def create(citus: Citus, table: str) -> None:
    """The table of the page under another name, with its functions and its collection."""
    for name in ("setup", "collection", "groups"):
        citus.run(name, table)


def recover(citus: Citus, rounds: int = 50) -> None:
    """Until no transaction waits on a worker for the coordinator's word."""
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


def check(citus: Citus, table: str, subject_of: dict[int, int]) -> None:
    """The table has these rows, each subject is one group, and the groups are what a recomputation makes of the rows."""
    with citus.coordinator.connect() as db:
        found = db.execute(f"SELECT id, cluster_id, embedding::text FROM {table}").fetchall()
        assert sorted(id for id, *_ in found) == sorted(subject_of)
        of, members = collections.defaultdict(set), collections.defaultdict(list)
        for id, cluster, text in found:
            of[subject_of[id]].add(cluster)
            members[cluster].append(vector(text).astype(np.float64))
        assert all(len(clusters) == 1 for clusters in of.values()) and None not in members, of
        assert len(members) == len(of)
        clusters = db.execute(
            "SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = %s", (table,)
        ).fetchall()
    sizes = {id: size for id, size, _ in clusters}
    assert sizes == {id: len(rows) for id, rows in members.items()}, {
        id: (sizes.get(id), len(members.get(id, ())))
        for id in sizes.keys() | members.keys()
        if sizes.get(id) != len(members.get(id, ()))
    }
    for id, _, centroid in clusters:
        mean = np.mean(members[id], axis=0)
        assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-5


class Storm:
    """What the sessions share: the servers, when to give up, and the errors that were met, by SQLSTATE."""

    def __init__(self, citus: Citus, seconds: float):
        self.coordinator, self.deadline = citus.coordinator, time.monotonic() + seconds
        self.errors: collections.Counter = collections.Counter()
        self.failed = threading.Event()

    def check(self) -> None:
        assert time.monotonic() < self.deadline and not self.failed.is_set(), self.errors

    def job(self, run: Callable[[], None]) -> Callable[[], None]:
        """Nobody waits for the others of one that has failed."""

        def guarded() -> None:
            try:
                run()
            except BaseException:
                self.failed.set()
                raise

        return guarded


class Writer:
    """A session that inserts its rows, has rows grouped, and deletes some of its own, until all of it is committed."""

    def __init__(self, storm: Storm, number: int, rows: list[tuple[int, np.ndarray]]):
        self.storm, self.rng = storm, random.Random(number)
        self.todo, self.doomed, self.written, self.gone = rows, [], 0, set()

    def run(self) -> None:
        unsure = False
        while self.todo or self.doomed or unsure:
            self.storm.check()
            try:
                with self.storm.coordinator.connect() as db:
                    if unsure:
                        self.look(db)
                    unsure = True
                    while self.todo or self.doomed:
                        self.transaction(db)
                    unsure = False
            except psycopg.errors.UniqueViolation:
                # The coordinator had committed although its answer was lost, and a worker has it from Citus' recovery only
                # after this session looked.
                self.storm.errors["there already"] += 1
            except psycopg.Rollback:
                self.storm.errors[None] += 1  # the coordinator went down in the middle of one
            except psycopg.Error as error:
                assert is_lost(error), f"{error.sqlstate} {error}"
                self.storm.errors[error.sqlstate] += 1
                time.sleep(0.1)

    def look(self, db: psycopg.Connection) -> None:
        """What became of a transaction whose end was not heard of. Rows to be deleted are deleted again."""
        there = {id for (id,) in db.execute("SELECT id FROM item WHERE id = ANY (%s)", ([id for id, _ in self.todo],))}
        for id, _ in self.todo:
            if id in there:
                self.committed(id)
        self.todo = [row for row in self.todo if row[0] not in there]

    def committed(self, id: int) -> None:
        self.written += 1
        if self.rng.random() < 0.15:
            self.doomed.append(id)

    def transaction(self, db: psycopg.Connection) -> None:
        batch, gone = [], None
        with db.transaction() as transaction:
            if self.doomed and (not self.todo or self.rng.random() < 0.3):
                gone = self.doomed[0]
                db.execute("SELECT item_delete(%s)", (gone,))
            else:
                batch = self.todo[: self.rng.choice((1, 1, 2, 5))]
                for id, row in batch:
                    db.execute("INSERT INTO item (id, embedding) VALUES (%s, %s)", (id, vector_text(row)))
            if self.rng.random() < 0.5:
                db.execute("SELECT item_group(20)")
            if self.rng.random() < 0.25:
                raise psycopg.Rollback(transaction)
        if transaction.status is psycopg.Transaction.Status.ROLLED_BACK_EXPLICITLY:
            return
        if gone is not None:
            self.gone.add(gone)
            self.doomed.remove(gone)
        for id, _ in batch:
            self.committed(id)
        self.todo = self.todo[len(batch) :]


def test_one_subject_is_one_group_whoever_is_lost(citus: Citus) -> None:
    """Sixteen sessions write by way of the coordinator, while each server is stopped as by a crash and started again."""
    subjects, each, sessions = 60, 24, 16
    create(citus, "item")
    rng = random.Random(5)
    rows = [(s, v) for s in range(subjects) for v in variants(7000 + s, each, seed=s)]
    rng.shuffle(rows)
    numbered = [(id, row) for id, (_, row) in enumerate(rows, start=1)]
    storm = Storm(citus, seconds=150)
    writers = [Writer(storm, n, numbered[n::sessions]) for n in range(sessions)]
    lost: list[set] = []

    def crashes() -> None:
        for share, server in zip(
            (0.2, 0.45, 0.7), (citus.workers[1], citus.coordinator, citus.workers[0]), strict=True
        ):
            while sum(writer.written for writer in writers) < share * len(rows):
                storm.check()
                time.sleep(0.02)
            storm.errors.clear()
            server.stop("immediate")
            until(lambda: storm.errors, "an error of the server that is down")
            server.start()
            time.sleep(0.5)
            lost.append(set(storm.errors))

    in_parallel([storm.job(run) for run in (*(writer.run for writer in writers), crashes)], 180)
    assert len(lost) == 3 and all(states - {"there already"} for states in lost), (
        f"sessions wrote while a server was down: {lost}"
    )
    recover(citus)
    with citus.coordinator.connect() as db:
        while value(db, "SELECT item_group()"):
            pass
    gone = set().union(*(writer.gone for writer in writers))
    assert len(gone) > 50
    check(citus, "item", {id: subject for id, (subject, _) in enumerate(rows, start=1) if id not in gone})


# ---------------------------------------------------------------- one transaction, lost between its two phases


@pytest.fixture
def lost(citus: Citus) -> Iterator[dict[int, int]]:
    """A table of six rows of three subjects, the first four grouped, and no recovery but when it is asked for."""
    create(citus, "lost")
    rows = [(id, id % 3) for id in range(6)]
    with citus.coordinator.connect() as db:
        for id, subject in rows:
            db.execute(
                "INSERT INTO lost (id, embedding) VALUES (%s, %s)",
                (id, vector_text(variants(9000 + subject, 1, id)[0])),
            )
        assert value(db, "SELECT lost_group(4)") == 4
        set_up(citus.coordinator, "citus.recover_2pc_interval = -1")
    yield dict(rows)
    set_up(citus.coordinator, "citus.recover_2pc_interval = '5s'")
    with citus.coordinator.connect() as db:
        db.execute("DROP TABLE lost, lost_lock; DROP SEQUENCE lost_id; SELECT clip_drop_collection('lost')")
        for function in ("lost_group", "lost_delete", "lost_replace"):
            db.execute(f"DROP FUNCTION {function}")


def set_up(server: Server, setting: str) -> None:
    with server.connect() as db:
        db.execute(f"ALTER SYSTEM SET {setting}")
        db.execute("SELECT pg_reload_conf()")


def wait_for(what: str, is_there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_there():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def in_syncrep(server: Server) -> object:
    with server.connect() as db:
        return value(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


@pytest.mark.parametrize("statement", ["SELECT lost_group()", "SELECT lost_delete(0)"])
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
def test_a_coordinator_lost_between_the_phases(
    citus: Citus, lost: dict[int, int], statement: str, committed: bool
) -> None:
    """One is lost when the workers have prepared a transaction and don't know how it ends. Who comes next waits for that."""
    # A server that waits for a standby which isn't there stops within its commit: the coordinator after its own, or a
    # worker after it has prepared, so that the coordinator has no word of it.
    stuck = citus.coordinator if committed else citus.workers[1]
    set_up(stuck, "synchronous_standby_names = 'nobody'")

    def commit() -> None:
        with citus.coordinator.connect() as db, contextlib.suppress(psycopg.Error):
            db.execute(statement)

    first = threading.Thread(target=commit, daemon=True)
    first.start()
    try:
        wait_for("nobody waits for the standby", lambda: in_syncrep(stuck))
        citus.coordinator.stop("immediate")
        first.join(30)
    finally:
        citus.coordinator.run(
            "sed", "-i", "/synchronous_standby_names/d", str(citus.coordinator.data / "postgresql.auto.conf")
        )
        if not committed:
            set_up(stuck, "synchronous_standby_names = ''")
        citus.coordinator.start()
    assert prepared(citus) >= len(citus.workers)
    after: list[object] = []

    def again() -> None:
        with citus.coordinator.connect() as db:
            db.execute("SELECT lost_delete(0)")
            after.append(value(db, "SELECT lost_group()"))

    second = threading.Thread(target=again, daemon=True)
    second.start()
    time.sleep(1.5)
    assert not after and second.is_alive(), "it went on although nobody knows what became of the first"
    recover(citus)
    second.join(30)
    grouped_before = committed and "group" in statement
    assert after == [0 if grouped_before else 2]
    check(citus, "lost", {id: subject for id, subject in lost.items() if id != 0})


def test_rows_that_another_transaction_has_are_not_counted_twice(citus: Citus, lost: dict[int, int]) -> None:
    """Of the connections to a worker that was lost, one may have committed and released the lock, and another not yet."""
    with citus.coordinator.connect() as db:
        (home,) = db.execute("SELECT cluster_id FROM lost WHERE id = 1").fetchone()
        name, shard = db.execute(
            "SELECT nodename, shardid FROM citus_shards "
            "WHERE shardid = get_shard_id_for_distribution_column('lost', 4) AND table_name = 'lost'::regclass"
        ).fetchone()
    worker = next(worker for worker in citus.workers if str(worker.folder) == name)
    with worker.connect() as there:
        there.execute(f"BEGIN; UPDATE lost_{shard} SET cluster_id = {home} WHERE id = 4; PREPARE TRANSACTION 'other'")
    result: list[tuple] = []

    def group() -> None:
        with citus.coordinator.connect() as db:
            result.append(sqlstate(db, "SELECT lost_group()"))

    session = threading.Thread(target=group, daemon=True)
    session.start()
    time.sleep(1)
    assert session.is_alive()
    with worker.connect() as there:
        there.execute("COMMIT PREPARED 'other'")
    session.join(30)
    ((state, text),) = result
    assert state == "40001" and "1 photos" in text, (state, text)
    with citus.coordinator.connect() as db:
        assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'lost'") == 4
        # As it was, but for the row that was changed by hand.
        db.execute("UPDATE lost SET cluster_id = NULL WHERE id = 4")
        assert value(db, "SELECT lost_group()") == 2
    check(citus, "lost", lost)
