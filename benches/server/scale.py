#!/usr/bin/env python3
"""Measures how the time of a search grows with rows: vector, halfvec and bits with re-ranking, for docs/scaling.md.

    eval "$(make -s env)"; target/venv/bin/python benches/server/scale.py \
        --bindir "$(pg_config --bindir)" [--rows 10000,100000] [--json FILE]

Starts a server of its own beside the running one, loads photo-like vectors (benches/clusters/assign.py) of 512
dimensions, builds each index with one process, asks it for the ten nearest and compares with NumPy's exact product,
then inserts into it. Queries are variants of rows (cosine 0.82 to 0.95 to one of them), as in a more-like-this search,
and strangers: new photos of the same kind, which are harder, since they are nearly equally far from many rows. Times
are CPU seconds of the server's process, so that they are valid on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign

import support
from servers import server
from support import value

QUERIES = 100
INSERTS = 200
ROUNDS = 3
BLOCK = 50_000

# Re-ranking returns 10 rows; the index returns {n} candidates.
PLAIN = "SELECT id FROM photo ORDER BY embedding <=> %(q)s::vector LIMIT 10"
HALF = "SELECT id FROM photo ORDER BY embedding::halfvec(512) <=> %(q)s::vector::halfvec(512) LIMIT 10"
BITS = """
    SELECT id FROM (SELECT id, embedding FROM photo
                    ORDER BY binary_quantize(embedding)::bit(512) <~> binary_quantize(%(q)s::vector) LIMIT {n}) AS candidate
    ORDER BY embedding <=> %(q)s::vector LIMIT 10"""
CENTRED = """
    SELECT id FROM (SELECT id, embedding FROM photo
                    ORDER BY binary_quantize(embedding - centre())::bit(512) <~> binary_quantize(%(q)s::vector - centre())
                    LIMIT {n}) AS candidate
    ORDER BY embedding <=> %(q)s::vector LIMIT 10"""
INDEXES = {
    "vector": ("embedding vector_cosine_ops", PLAIN, (40, 100, 200)),
    "halfvec": ("(embedding::halfvec(512)) halfvec_cosine_ops", HALF, (40, 100, 200)),
    "bits": ("(binary_quantize(embedding)::bit(512)) bit_hamming_ops", BITS, (100, 400, 1000)),
    "bits, centred": ("(binary_quantize(embedding - centre())::bit(512)) bit_hamming_ops", CENTRED, (100, 400, 1000)),
}


def cpu(db) -> float:
    """CPU seconds of the connection's server process, which other work on the machine doesn't change."""
    fields = pathlib.Path(f"/proc/{db.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(db, table: str, first: int, rows: np.ndarray) -> None:
    with db.cursor().copy(f"COPY {table} FROM STDIN WITH (FORMAT binary)") as copy:
        copy.set_types(["int8", "bytea"])
        for n, row in enumerate(rows):
            copy.write_row((first + n, assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes()))


def measure(db, count: int, kinds: list[str]) -> list[dict]:
    db.execute("DROP TABLE IF EXISTS photo CASCADE; CREATE TABLE photo (id bigint, embedding vector(512))")
    queries = {
        "variant": assign.near(assign.vectors("photo-like", BLOCK, seed=0)[:QUERIES], seed=9),
        "stranger": assign.vectors("photo-like", QUERIES, seed=10_000_019),
    }
    # The ten best of all blocks so far, for each query.
    best = {name: (np.full((QUERIES, 10), -2.0), np.zeros((QUERIES, 10), int)) for name in queries}
    copied, mean = 0.0, np.zeros(512)
    for seed, first in enumerate(range(0, count, BLOCK)):
        rows = assign.vectors("photo-like", BLOCK, seed=seed)[: min(BLOCK, count - first)]
        mean += rows.sum(0, dtype=np.float64)
        start = cpu(db)
        load(db, "photo", first, rows)
        copied += cpu(db) - start
        for name, wanted in queries.items():
            cosines = np.concatenate([best[name][0], wanted @ rows.T], axis=1)
            ids = np.concatenate([best[name][1], np.tile(np.arange(first, first + len(rows)), (QUERIES, 1))], axis=1)
            order = np.argsort(-cosines, axis=1)[:, :10]
            best[name] = np.take_along_axis(cosines, order, 1), np.take_along_axis(ids, order, 1)
    db.execute("VACUUM ANALYZE photo")
    centre = support.vector_text(mean / count)
    db.execute(f"CREATE OR REPLACE FUNCTION centre() RETURNS vector IMMUTABLE PARALLEL SAFE RETURN '{centre}'::vector")
    found = []

    def ask(query: str, wanted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        hits, start = 0, cpu(db)
        for row, right in list(zip(wanted, truth)) * ROUNDS:
            ids = {n for (n,) in db.execute(query, {"q": support.vector_text(row)})}
            hits += len(ids & set(right.tolist()))
        count = ROUNDS * len(wanted)
        return hits / (10 * count), (cpu(db) - start) * 1e3 / count

    recall, ms = ask(PLAIN, queries["stranger"][:10], best["stranger"][1][:10])
    heap = value(db, "SELECT pg_table_size('photo') / 1e6")
    found.append(
        {"rows": count, "index": "none (exact)", "copy_s": copied, "size_mb": float(heap), "stranger": recall, "ms": ms}
    )
    spare = assign.vectors("photo-like", INSERTS, seed=77)
    for kind in kinds:
        columns, query, efforts = INDEXES[kind]
        start = cpu(db)
        db.execute(f"CREATE INDEX photo_nearest ON photo USING hnsw ({columns})")
        built = cpu(db) - start
        size = float(value(db, "SELECT pg_relation_size('photo_nearest') / 1e6"))
        for effort in efforts:
            db.execute(f"SET hnsw.ef_search = {effort}; SET enable_seqscan = off")
            statement = query.format(n=effort)
            plan = "\n".join(r[0] for r in db.execute("EXPLAIN " + statement, {"q": support.vector_text(spare[0])}))
            assert "Index Scan using photo_nearest" in plan, plan
            ask(statement, queries["variant"][:20], best["variant"][1])  # to warm up
            row = {"rows": count, "index": kind, "build_s": built, "size_mb": size, "ef_search": effort}
            for name in queries:
                row[name], row["ms"] = ask(statement, queries[name], best[name][1])
            found.append(row)
        start = cpu(db)
        for n, vector in enumerate(spare):
            db.execute("INSERT INTO photo VALUES (%s, %s)", (-1 - n, support.vector_text(vector)))
        inserted = (cpu(db) - start) * 1e3 / INSERTS
        for row in found[-len(efforts) :]:
            row["insert_ms"] = inserted
        db.execute("DELETE FROM photo WHERE id < 0; DROP INDEX photo_nearest; RESET enable_seqscan")
        db.execute("VACUUM photo")
        for row in found[-len(efforts) :]:
            print(row, file=sys.stderr, flush=True)
    db.execute("CREATE TABLE half AS SELECT id, embedding::halfvec(512) AS embedding FROM photo")
    size = float(value(db, "SELECT pg_table_size('half') / 1e6"))
    found[0]["halfvec_table_mb"] = size
    db.execute("DROP TABLE half")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000", help="row counts (10000,100000)")
    parser.add_argument("--kinds", default=";".join(INDEXES), help="indexes, separated by semicolons (all)")
    parser.add_argument("--bindir", type=pathlib.Path, required=True, help="what pg_config --bindir prints")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    found = []
    with server(arguments.bindir) as made, made.connect() as db:
        db.execute("SET maintenance_work_mem = '4GB'; SET max_parallel_maintenance_workers = 0; SET jit = off")
        for count in arguments.rows.split(","):
            found += measure(db, int(count), arguments.kinds.split(";"))
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    columns = ["rows", "index", "build_s", "size_mb", "insert_ms", "ef_search", "variant", "stranger", "ms"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in found:
        cells = [row.get(column, "") for column in columns]
        print("| " + " | ".join(f"{c:.4g}" if isinstance(c, float) else f"{c}" for c in cells) + " |")


if __name__ == "__main__":
    main()
