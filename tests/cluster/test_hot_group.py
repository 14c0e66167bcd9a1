"""Many joins to one cluster in one transaction: the last ones cost no more than the first."""

from __future__ import annotations

import os
import pathlib

import numpy as np

import support
from support import value, vector_text

DIMENSIONS = 512
JOINS = 10_000
STEP = 1_000


def seconds(pid: int) -> float:
    """CPU time of a process: unlike elapsed time, it doesn't depend on the machine's other processes."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ten_thousand_joins_in_one_transaction(database: support.Database) -> None:
    rng = np.random.default_rng(1)
    centre = rng.standard_normal(DIMENSIONS)
    rows = [centre + 0.3 * rng.standard_normal(DIMENSIONS) for _ in range(50)]
    with database.connect() as db:
        db.execute(f"CREATE TABLE hot (n int PRIMARY KEY, v vector({DIMENSIONS}))")
        for n, row in enumerate(rows):
            db.execute("INSERT INTO hot VALUES (%s, %s)", (n, vector_text(row)))
        pid = db.info.backend_pid
        spent = []
        with db.transaction():
            for _ in range(JOINS // STEP):
                before = seconds(pid)
                joined = f"SELECT count(DISTINCT clip_assign_cluster(v, 'hot')) FROM hot, generate_series(1, {STEP // len(rows)})"
                assert value(db, joined) == 1
                spent.append(seconds(pid) - before)
            assert value(db, "SELECT size FROM clip_search.cluster WHERE collection = 'hot'") == JOINS
            # A rolled-back savepoint undoes its joins, and rows merged since then count once.
            with undone(db):
                db.execute("SELECT clip_assign_cluster(v, 'hot') FROM hot, generate_series(1, 4)")
            assert value(db, "SELECT size FROM clip_search.cluster WHERE collection = 'hot'") == JOINS
            db.execute("SELECT clip_assign_cluster(v, 'hot') FROM hot")
        size, resultant = db.execute(
            "SELECT size, resultant FROM clip_search.cluster WHERE collection = 'hot'"
        ).fetchone()
        assert size == JOINS + len(rows)
        unit = np.array([row / np.linalg.norm(row) for row in rows])
        assert abs(resultant - np.linalg.norm(unit.mean(axis=0))) < 1e-6
    assert max(spent[1:]) <= 1.5 * max(spent[0], 0.1), [f"{each:.2f}" for each in spent]


class undone:
    """A savepoint that is rolled back."""

    def __init__(self, db):
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("SAVEPOINT undone")

    def __exit__(self, *_: object) -> None:
        self.db.execute("ROLLBACK TO undone")
