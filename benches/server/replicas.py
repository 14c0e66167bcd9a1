#!/usr/bin/env python3
"""Measures searches a second with 0, 1 and 2 streaming standbys, and through PgBouncer in transaction mode, for
docs/scaling.md.

    eval "$(CLUSTER=test make -s env)"; target/venv/bin/python benches/server/replicas.py --bindir "$(pg_config --bindir)"
        [--rows 30000] [--json FILE]

A search embeds a text that was not searched before and returns the nearest ten of photo-like vectors by HNSW. All
servers share this machine's cores: more servers can't do more than the cores. The second part needs pgbouncer (the
package of that name) and is skipped without it; tests/server/test_pool.py tests the other effects of a pool.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign

from pooler import pgbouncer, program
from servers import Standby, server
from support import in_parallel

SECONDS, CLIENTS = 10.0, 4
SEARCH = "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text(%s) LIMIT 10"
numbers = itertools.count()


def searches(connect: list, clients: int, new: bool = True) -> float:
    """Searches a second by clients that alternate between the servers; `new`: with texts that were not searched
    before."""
    counts, end = [0] * clients, 0.0

    def client(n: int) -> None:
        with connect[n % len(connect)]() as db:
            while time.perf_counter() < end:
                text = f"photograph number {next(numbers)}" if new else f"photograph number {counts[n] % 20}"
                assert len(db.execute(SEARCH, (text,)).fetchall()) == 10
                counts[n] += 1

    for make in connect:  # load and warm
        with make() as db:
            for _ in range(25):
                db.execute(SEARCH, (f"warm {next(numbers)}",))
    end = time.perf_counter() + SECONDS
    in_parallel([lambda n=n: client(n) for n in range(clients)], 60)
    return sum(counts) / SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bindir", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    found: dict = {"rows": arguments.rows, "cores": os.cpu_count()}
    with server(arguments.bindir, preload="photo-mini") as primary, contextlib.ExitStack() as stack:
        with primary.connect() as db:
            db.execute("CREATE TABLE photo (id bigint, embedding vector(512))")
            with db.cursor().copy("COPY photo FROM STDIN WITH (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea"])
                for n, row in enumerate(assign.vectors("photo-like", arguments.rows, seed=1)):
                    copy.write_row((n, assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes()))
            db.execute(
                "SET maintenance_work_mem = '1GB'; CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)"
            )
            db.execute("VACUUM ANALYZE photo")
        found["one client"] = searches([primary.connect], 1)
        found["0 standbys"] = searches([primary.connect], CLIENTS)
        servers = [primary.connect]
        for count in (1, 2):
            standby = Standby(primary, f"standby{count}")
            stack.callback(standby.stop)
            standby.start()
            with standby.connect() as db:
                standby.catch_up(db)
            servers.append(standby.connect)
            found[f"{count} standbys"] = searches(servers, CLIENTS)
        if program():
            with pgbouncer(primary, pool=2) as connect:
                found["pool, 4 clients"] = searches([connect], 4)
                found["pool, 40 clients"] = searches([connect], 40)
                found["pool, 40 clients, 20 texts"] = searches([connect], 40, new=False)
        else:
            print("pgbouncer is not installed: left out", file=sys.stderr)
    for name, figure in found.items():
        print(f"{name}: {figure:.1f}" if isinstance(figure, float) else f"{name}: {figure}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
