#!/usr/bin/env python3
"""Measures the time of an assignment, and how often it finds the nearest cluster, from 10 to 1,000,000 clusters.

    eval "$(make -s env)"; target/venv/bin/python benches/clusters/assign.py [--most 1000000] [--json FILE]

Fills a collection with clusters of one member each, in a database of its own, and assigns to it in one session, one
call after another, timed in the server: variants of members with cosines of 0.82 to 0.95 to them, and strangers, which
create clusters. Each call is rolled back before the next. The reference is NumPy's exact product with all members.

Two kinds of vectors: `random` directions, and `photo-like` ones, which share a mean direction and belong to one of a
thousand topics: cosines of 0.42 +- 0.04 across topics, and of 0.70 +- 0.03 within one, so that a million clusters have
a thousand neighbours each, not far below the threshold.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import struct
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fixtures")]
from codes import BLOCK, codes

import support

DIMENSIONS = 512
CALLS = 1000
TOPICS = 1000
THRESHOLD = 0.82


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(kind: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "random":
        return unit(rng.standard_normal((count, DIMENSIONS), dtype=np.float32))
    # Each vector is the sum of a direction common to all, one of its topic and one of its own, whose energy is spread
    # unevenly over the axes.
    fixed = np.random.default_rng(0)
    spectrum = (1 / np.sqrt(1 + np.arange(DIMENSIONS) / 20)).astype(np.float32)
    basis = np.linalg.qr(fixed.standard_normal((DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)
    mean = unit(fixed.standard_normal(DIMENSIONS))
    topics = unit(fixed.standard_normal((TOPICS, DIMENSIONS), dtype=np.float32) * spectrum)
    of = topics[rng.integers(0, TOPICS, count)]
    own = unit(rng.standard_normal((count, DIMENSIONS), dtype=np.float32) * spectrum)
    return unit(np.sqrt(0.42) * mean + (np.sqrt(0.28) * of + np.sqrt(0.30) * own) @ basis)


def near(rows: np.ndarray, seed: int) -> np.ndarray:
    """A variant of each row, at a cosine between 0.82 and 0.95."""
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(0.82, 0.95, (len(rows), 1)).astype(np.float32)
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    noise = unit(noise - (noise * rows).sum(1, keepdims=True) * rows)
    return unit(cosine * rows + np.sqrt(1 - cosine**2) * noise)


def field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def fill(db, rows: np.ndarray) -> None:
    """Writes the collection's rows in COPY's binary format: a million text vectors would take many minutes."""
    name, start = field(b"c"), b"PGCOPY\n\xff\r\n\0" + bytes(8)
    dimensions = struct.pack(">hh", DIMENSIONS, 0)
    for first in range(0, len(rows), 50_000):
        part = rows[first : first + 50_000]
        coded = codes(part)
        with db.cursor().copy(
            "COPY clip_search.cluster_sum (collection, cluster, size, sum, code) FROM STDIN (FORMAT binary)"
        ) as copy:
            copy.write(start)
            for n, (row, code) in enumerate(zip(part.astype(">f4"), coded), first + 1):
                values = (struct.pack(">q", n), struct.pack(">q", 1), dimensions + row.tobytes(), code.tobytes())
                copy.write(struct.pack(">h", 5) + name + b"".join(map(field, values)))
            copy.write(struct.pack(">h", -1))
        with db.cursor().copy(
            "COPY clip_search.cluster_code (collection, first, mark, entries) FROM STDIN (FORMAT binary)"
        ) as copy:
            copy.write(start)
            for block in range(0, len(part), BLOCK):
                some = coded[block : block + BLOCK]
                entries = np.arange(len(some), dtype="<u4").tobytes() + some.tobytes()
                id = first + block + 1
                values = (struct.pack(">q", id), struct.pack(">q", id + len(some) - 1), entries)
                copy.write(struct.pack(">h", 4) + name + b"".join(map(field, values)))
            copy.write(struct.pack(">h", -1))
    db.execute("SELECT setval('clip_search.cluster_id_seq', %s)", (len(rows),))


def assign(db, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(milliseconds, cluster ids) of one call after another, each rolled back."""
    db.execute("CREATE TEMPORARY TABLE query (n int, v vector(512)); TRUNCATE query")
    with db.cursor().copy("COPY query FROM STDIN") as copy:
        for n, row in enumerate(queries):
            copy.write_row((n, support.vector_text(row)))
    db.execute("""
        CREATE TEMPORARY TABLE timing (n int, ms float8, id bigint);
        DO $$
        DECLARE q record; t timestamptz; ms float8; found bigint;
        BEGIN
            FOR q IN SELECT * FROM query ORDER BY n LOOP
                BEGIN
                    t := clock_timestamp();
                    found := clip_assign_cluster(q.v, 'c');
                    ms := 1000 * extract(epoch FROM clock_timestamp() - t);
                    RAISE EXCEPTION 'undo';
                EXCEPTION WHEN raise_exception THEN
                END;
                INSERT INTO timing VALUES (q.n, ms, found);
            END LOOP;
        END $$""")
    found = db.execute("SELECT ms, id FROM timing ORDER BY n").fetchall()
    db.rollback()
    return np.array([ms for ms, _ in found]), np.array([id for _, id in found])


def measure(kind: str, count: int) -> dict:
    database = support.Database()
    try:
        with database.connect() as db:
            rows = vectors(kind, count, seed=1)
            started = time.monotonic()
            fill(db, rows)
            db.execute("VACUUM ANALYZE")
            loaded = time.monotonic() - started
        chosen = np.random.default_rng(2).integers(0, count, CALLS)
        variants = near(rows[chosen], seed=3)
        product = (
            variants @ rows.T if count <= 100_000 else np.concatenate([v @ rows.T for v in np.split(variants, 20)])
        )
        truth, best = product.argmax(axis=1) + 1, product.max(axis=1)
        del product
        result = {"vectors": kind, "clusters": count}
        with database.connect(autocommit=False) as db:
            for _ in range(2):  # the first round warms the caches
                ms, ids = assign(db, variants)
            # Without queries whose nearest member is at the threshold up to rounding: both answers would be right.
            clear = best > THRESHOLD + 1e-6
            result["join_ms"] = float(np.median(ms))
            result["join_ms_95"] = float(np.percentile(ms, 95))
            result["recall"] = float((ids == truth)[clear].mean())
            # Strangers: variants of no member.
            strangers = vectors(kind, CALLS, seed=4)
            ms, _ = assign(db, strangers)
            result["found_ms"] = float(np.median(ms))
        with database.connect() as db:
            result["codes_mb"] = support.value(db, "SELECT pg_table_size('clip_search.cluster_code') / 1e6::float8")
            result["sums_mb"] = support.value(db, "SELECT pg_table_size('clip_search.cluster_sum') / 1e6::float8")
        print(f"  {kind} {count}: {loaded:.0f} s to load", file=sys.stderr)
        return result
    finally:
        database.drop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    results = []
    print("| vectors | clusters | join, ms | 95 % | found, ms | recall | codes, MB | sums, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("random", "photo-like"):
        for count in (10, 100, 1_000, 10_000, 100_000, 1_000_000):
            if count > options.most:
                continue
            r = measure(kind, count)
            results.append(r)
            print(
                f"| {kind} | {count:,} | {r['join_ms']:.2f} | {r['join_ms_95']:.2f} | {r['found_ms']:.2f} "
                f"| {r['recall']:.4f} | {r['codes_mb']:.1f} | {r['sums_mb']:.0f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
