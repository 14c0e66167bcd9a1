#!/usr/bin/env python3
"""One table over three servers by postgres_fdw, as docs/shards.md makes it, beside one server: search and insertion.

    eval "$(CLUSTER=test make -s env)"; target/venv/bin/python benches/server/shards.py --bindir "$(pg_config --bindir)"
        [--rows 60000] [--json FILE]

All servers run on this machine and share its cores, so this shows what distribution costs, not what it gains. Vectors are
photo-like (benches/clusters/assign.py); recall is against NumPy's exact ten nearest. Photos are the gallery's, inserted
one a transaction by as many sessions as are named.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign  # noqa: E402
from servers import Server, server  # noqa: E402
from support import in_parallel, value, vector_text  # noqa: E402
from test_shards import PHOTOS, Shards  # noqa: E402

QUERIES, INSERTS = 100, 120
NEAREST = "SELECT id FROM photo ORDER BY embedding <=> %s::vector LIMIT 10"


def fill(made: Server, first: int, step: int, rows: np.ndarray) -> None:
    with made.connect() as db:
        db.execute("ALTER TABLE photo DISABLE TRIGGER USER; DROP INDEX IF EXISTS photo_embedding_idx")
        with db.cursor().copy("COPY photo (id, embedding) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["int8", "bytea"])
            for n, row in enumerate(rows):
                copy.write_row((1_000_000 + first + n * step, assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes()))
        db.execute("ALTER TABLE photo ENABLE TRIGGER USER; SET maintenance_work_mem = '1GB'")
        db.execute("CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding vector_cosine_ops)")
        db.execute("VACUUM ANALYZE photo")


def search(db, statement: str, queries: np.ndarray, exact: np.ndarray) -> dict:
    ms, hits = [], 0
    for turn in range(2):
        for query, right in zip(queries, exact):
            start = time.perf_counter()
            found = [id for (id,) in db.execute(statement, (vector_text(query),))]
            if turn:
                ms.append((time.perf_counter() - start) * 1e3)
                hits += len(set(found) & set(right.tolist()))
    return {"ms": statistics.median(ms), "recall": hits / exact.size}


def inserts(made: Server, sessions: int) -> float:
    """Photos a second."""

    def work() -> None:
        with made.connect() as db:
            for n in range(INSERTS // sessions):
                db.execute("INSERT INTO photo (title, data) VALUES ('x', %b)", (PHOTOS[n % len(PHOTOS)].read_bytes(),))

    in_parallel([work] * sessions, 300)  # connections and models of the sessions
    start = time.perf_counter()
    in_parallel([work] * sessions, 300)
    return INSERTS / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bindir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = assign.vectors("photo-like", arguments.rows, seed=1)
    queries = assign.near(rows[:QUERIES], seed=9)
    exact = 1_000_000 + np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    found: dict[str, dict] = {"rows": {"count": arguments.rows}}
    shards = Shards(arguments.bindir)
    try:
        shards.start()
        shards.create("photo", watched=True)
        with shards.coordinator.connect() as db:
            # The rows where their ids belong, as the coordinator would place them.
            place = db.execute(
                "SELECT array_agg(id ORDER BY id) FROM generate_series(1000000, %s) AS id GROUP BY "
                "CASE WHEN satisfies_hash_partition('photo'::regclass, 3, 0, id) THEN 0 "
                "WHEN satisfies_hash_partition('photo'::regclass, 3, 1, id) THEN 1 ELSE 2 END ORDER BY min(CASE WHEN "
                "satisfies_hash_partition('photo'::regclass, 3, 0, id) THEN 0 "
                "WHEN satisfies_hash_partition('photo'::regclass, 3, 1, id) THEN 1 ELSE 2 END)",
                (1_000_000 + arguments.rows - 1,),
            ).fetchall()
            for shard, (ids,) in zip(shards.shards, place):
                with shard.connect() as there:
                    there.execute("ALTER TABLE photo DISABLE TRIGGER USER; DROP INDEX photo_embedding_idx")
                    with there.cursor().copy("COPY photo (id, embedding) FROM STDIN WITH (FORMAT binary)") as copy:
                        copy.set_types(["int8", "bytea"])
                        for id in ids:
                            row = rows[id - 1_000_000].astype(">f4").tobytes()
                            copy.write_row((id, assign.struct.pack(">hh", 512, 0) + row))
                    there.execute("ALTER TABLE photo ENABLE TRIGGER USER; SET maintenance_work_mem = '1GB'")
                    there.execute("CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding vector_cosine_ops)")
                    there.execute("VACUUM ANALYZE photo")
            found["three shards, ORDER BY"] = search(
                db, "SELECT id FROM photo ORDER BY embedding <=> (SELECT %s::vector) LIMIT 10", queries, exact
            )
            found["three shards, photo_nearest"] = search(db, "SELECT id FROM photo_nearest(%s::vector, 10)", queries, exact)
        for sessions in (1, 2, 4):
            found["three shards, photo_nearest"][f"inserts by {sessions}"] = inserts(shards.coordinator, sessions)
    finally:
        shards.remove()
    with server(arguments.bindir) as one:
        with one.connect() as db:
            db.execute("CREATE TABLE photo (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, title text, data bytea)")
            db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id')")
        fill(one, 0, 1, rows)
        with one.connect() as db:
            db.execute("SET hnsw.ef_search = 100")
            found["one server"] = search(db, NEAREST, queries, exact)
        for sessions in (1, 2, 4):
            found["one server"][f"inserts by {sessions}"] = inserts(one, sessions)
    print(f"{found.pop('rows')['count']:,} rows\n")
    columns = ["ms", "recall", "inserts by 1", "inserts by 2", "inserts by 4"]
    print("| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in columns) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"rows": arguments.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
