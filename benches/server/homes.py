#!/usr/bin/env python3
"""Compares two ways to group over three shards: one home that every shard asks (docs/shards.md), and groups of each
shard's own that are merged by their centroids afterwards.

    eval "$(CLUSTER=test make -s env)"; target/venv/bin/python benches/server/homes.py --bindir "$(pg_config --bindir)"
        [--subjects 3000] [--json FILE]

Photo-like vectors (benches/clusters/assign.py): each subject has four, with cosines of 0.9 to 0.97 to it, and lies on
any shards. One session per shard inserts its rows, one per transaction, all at once; the servers share this machine's
cores. The merge groups the shards' centroids by clip_recluster on the coordinator, and writes the new ids to the
shards. A subject is whole if its photos are one group, and no other's are in it.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign

from servers import Server
from shard_servers import SHARDS, Shards
from support import in_parallel, value, vector_text

EACH = 4
OWN = """
    CREATE TABLE piece (id bigint PRIMARY KEY, embedding vector(512), cluster_id bigint);
    CREATE FUNCTION piece_group() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'piece');
        RETURN NEW;
    END $$;
    CREATE TRIGGER piece_group BEFORE INSERT ON piece FOR EACH ROW EXECUTE FUNCTION piece_group();
    CREATE VIEW piece_centroid AS SELECT id, centroid FROM clip_search.cluster WHERE collection = 'piece'
"""
# Runs on the coordinator for each shard; then all centroids are grouped like photos, and the groups written back.
SHARD = """
    CREATE FOREIGN TABLE piece_{n} (id bigint, cluster_id bigint) SERVER shard_{n} OPTIONS (table_name 'piece');
    CREATE FOREIGN TABLE piece_centroid_{n} (id bigint, centroid vector(512)) SERVER shard_{n} OPTIONS (table_name 'piece_centroid')
"""
MERGE = [
    "CREATE TABLE merged (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, shard int, cluster bigint, "
    "embedding vector(512), cluster_id bigint)",
    "SELECT clip_create_collection('merged', members => 'merged', key => 'id')",
    *(
        f"INSERT INTO merged (shard, cluster, embedding) SELECT {n}, id, centroid FROM piece_centroid_{n}"
        for n in range(SHARDS)
    ),
    "SELECT count(*) FROM clip_recluster('merged')",
]
WRITE = (
    "UPDATE piece_{n} AS p SET cluster_id = m.cluster_id FROM merged AS m WHERE m.shard = {n} AND m.cluster = p.cluster_id "
    "AND m.cluster_id <> p.cluster_id"
)


def load(servers: list[Server], table: str, parts: list[list[tuple[int, str]]]) -> float:
    def work(server: Server, part: list[tuple[int, str]]) -> None:
        with server.connect() as db:
            for row in part:
                db.execute(f"INSERT INTO {table} (id, embedding) VALUES (%s, %s)", row)

    start = time.perf_counter()
    in_parallel([lambda s=s, p=p: work(s, p) for s, p in zip(servers, parts)], 3600)
    return time.perf_counter() - start


def whole(servers: list[Server], table: str, local: bool) -> tuple[int, int]:
    """(whole subjects, groups); `local`: each shard has its own ids."""
    groups, members = collections.defaultdict(set), collections.defaultdict(set)
    for n, server in enumerate(servers):
        with server.connect() as db:
            for id, cluster in db.execute(f"SELECT id, cluster_id FROM {table}"):
                group = (n, cluster) if local else cluster
                groups[id // EACH].add(group)
                members[group].add(id // EACH)
    return sum(len(found) == 1 and len(members[next(iter(found))]) == 1 for found in groups.values()), len(members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bindir", type=pathlib.Path, required=True)
    parser.add_argument("--subjects", type=int, default=3000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    subjects = assign.vectors("photo-like", arguments.subjects, seed=1).repeat(EACH, 0)
    rng = np.random.default_rng(2)
    cosine = rng.uniform(0.9, 0.97, (len(subjects), 1)).astype(np.float32)
    noise = rng.standard_normal(subjects.shape, dtype=np.float32)
    noise = assign.unit(noise - (noise * subjects).sum(1, keepdims=True) * subjects)
    rows = assign.unit(cosine * subjects + np.sqrt(1 - cosine**2) * noise)
    parts: list[list[tuple[int, str]]] = [[] for _ in range(SHARDS)]
    for id in rng.permutation(len(rows)).tolist():
        parts[rng.integers(SHARDS)].append((id, vector_text(rows[id])))
    found: dict = {"rows": len(rows), "subjects": arguments.subjects}
    made = Shards(arguments.bindir)
    try:
        made.start()
        made.create("item", watched=False)
        for shard in made.shards:
            made.run(shard, OWN)
        with made.coordinator.connect() as db:
            seconds = load(made.shards, "item", parts)
            good, groups = whole(made.shards, "item", local=False)
            found["one home"] = {"ms a row": seconds / len(rows) * 1e3, "whole": good, "groups": groups}
            start = time.perf_counter()
            db.execute("SELECT count(*) FROM clip_recluster('item')")
            seconds = time.perf_counter() - start
            good, groups = whole(made.shards, "item", local=False)
            found["one home, clip_recluster"] = {"s": seconds, "whole": good, "groups": groups}
            seconds = load(made.shards, "piece", parts)
            good, groups = whole(made.shards, "piece", local=True)
            found["a shard's own"] = {"ms a row": seconds / len(rows) * 1e3, "whole": good, "groups": groups}
            start = time.perf_counter()
            db.execute("SET client_min_messages = warning")
            for n in range(SHARDS):
                db.execute(SHARD.format(n=n))
            for statement in MERGE:
                db.execute(statement)
            changed = sum(db.execute(WRITE.format(n=n)).rowcount for n in range(SHARDS))
            seconds = time.perf_counter() - start
            good, groups = whole(made.shards, "piece", local=False)
            found["merged"] = {
                "s": seconds,
                "centroids": value(db, "SELECT count(*) FROM merged"),
                "rows renamed": changed,
                "whole": good,
                "groups": groups,
            }
    finally:
        made.remove()
    for name, figure in found.items():
        print(f"{name}: {figure}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
