#!/usr/bin/env python3
"""Measures the times that users wait for in SQL, as ratios to a comparison in the same run.

    eval "$(make -s env)"; target/venv-bench/bin/python benches/server/measure.py --model DIRECTORY [--json FILE] [PART …]

Parts: connection (first call in a new one, and its memory), calls (a query, again; search; insert), sessions (two
sessions, two parallel workers), growth (images in one connection, connections, rows). Each starts a server of its own
beside the running one; DIRECTORY is a model written by models/make_clip.py.

"Loaded by each process" stands for extensions that load a model in every connection (Lantern, pg_gembed and PostgresML
do): onnxruntime in a fresh Python process, from the model's file, with the reference tokenizer and texts padded to 77.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

import psycopg

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches" / "clusters")]
import assign

import support
from servers import Server, private_megabytes, server
from support import value

ROUNDS = 5
PHOTOS = sorted((ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))

FRESH_PROCESS = """
import json, sys, time
import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from PIL import Image
model, what, photo = sys.argv[1:]
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024
before, start = private(), time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
tower = "vision" if what == "image" else "text"
session = onnxruntime.InferenceSession(f"{model}/onnx/{tower}_model.onnx", options, providers=["CPUExecutionProvider"])
if what == "image":
    image = Image.open(photo).convert("RGB")
    image = image.resize((224, 224), Image.Resampling.BICUBIC)
    inputs = {"pixel_values": (np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255 - 0.45) / 0.27}
    inputs["pixel_values"] = inputs["pixel_values"].astype(np.float32)
else:
    ids = Tokenizer.from_file(f"{model}/tokenizer.json").encode("a photo of a cat").ids
    ids = (ids + 77 * ids[-1:])[:77]
    inputs = {port.name: np.array([ids if "ids" in port.name else [1] * 77]) for port in session.get_inputs()}
session.run(None, inputs)
print(json.dumps({"ms": 1e3 * (time.perf_counter() - start), "mb": private() - before}))
"""


def clocked(work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


class Bench:
    def __init__(self, model: pathlib.Path, most_rows: int):
        self.model, self.name, self.most_rows = model, model.name, most_rows
        config = os.environ.get("PG_CONFIG") or "pg_config"
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        self.bindir = pathlib.Path(done.stdout.strip())
        self.photo = PHOTOS[0].read_bytes()
        # The server's user must be able to read the model.
        self.folder = support.ServerFolder()
        self.folder.add(model)

    def server(self, preload: bool) -> contextlib.AbstractContextManager[Server]:
        settings = {"model_path": f"{self.folder.path}:$system", "model": self.name}
        return server(self.bindir, **settings, **({"preload": f"{self.name}, photo-mini"} if preload else {}))

    def embed(self, db: psycopg.Connection, what: str, item: object = None) -> None:
        item = item if item is not None else self.photo if what == "image" else "a photo of a cat"
        db.execute(f"SELECT clip_embed_{what}(%b)" if what == "image" else "SELECT clip_embed_text(%s)", (item,))

    def connection(self) -> dict:
        """The first call in a new connection, and the private memory after it."""
        found: dict[str, dict[str, list]] = {}

        def fresh(what: str) -> tuple[float, float]:
            command = [sys.executable, "-c", FRESH_PROCESS, str(self.model), what, str(PHOTOS[0])]
            answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            return answer["ms"], answer["mb"]

        def ours(made: Server, what: str, cached: bool = True) -> tuple[float, float]:
            with made.connect() as db:
                db.execute("LOAD 'clip_search'")
                if not cached:
                    db.execute("SET clip_search.cache_path = ''")
                ms = clocked(lambda: self.embed(db, what))
                return ms, private_megabytes(db)

        with self.server(True) as shared, self.server(False) as lone:
            for what in ("image", "text"):
                ours(lone, what)  # writes the graphs
                ways = {
                    "preloaded": lambda: ours(shared, what),
                    "mapped from the cache": lambda: ours(lone, what),
                    "without the cache": lambda: ours(lone, what, cached=False),
                    "loaded by each process": lambda: fresh(what),
                }
                found[what] = {name: [] for name in ways}
                for _ in range(ROUNDS):
                    for name, way in ways.items():
                        found[what][name].append(way())
        rows = []
        for what, ways in found.items():
            theirs = ways["loaded by each process"]
            for name, figures in ways.items():
                ms, mb = (statistics.median(column) for column in zip(*figures))
                faster = statistics.median(b[0] / a[0] for a, b in zip(figures, theirs))
                rows.append([what, name, f"{ms:.0f}", f"{faster:.1f}×", f"{mb:.0f}"])
        print(f"**First call in a new connection, {self.name}**\n")
        table(["", "", "ms", "faster than a load by each process", "private MB"], rows)
        return found

    def calls(self) -> dict:
        """A query, and the same query again; search over 100,000 rows; an insert's trigger with 100,000 clusters."""
        count = 100_000
        with self.server(True) as made, made.connect() as db:
            for _ in range(3):
                self.embed(db, "text", "warm")
            # Times within the server, without the round trip.
            db.execute("""
                CREATE FUNCTION bench(statement text, times int) RETURNS SETOF float8 LANGUAGE plpgsql AS $$
                DECLARE start timestamptz;
                BEGIN
                    FOR n IN 1..times LOOP
                        start := clock_timestamp();
                        EXECUTE statement USING n;
                        RETURN NEXT 1000 * extract(epoch FROM clock_timestamp() - start);
                    END LOOP;
                END $$""")

            def bench(statement: str, times: int) -> list[float]:
                return [ms for (ms,) in db.execute("SELECT bench(%s, %s)", (statement, times))]

            again = bench("SELECT clip_embed_text('a cat')", 200)[1:]
            db.execute("CREATE TABLE photo (id bigint, embedding vector(512))")
            vectors = assign.vectors("photo-like", count, seed=1)
            with db.cursor().copy("COPY photo FROM STDIN WITH (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea"])
                for n, row in enumerate(vectors):
                    copy.write_row((n, assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes()))
            db.execute("SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 1")
            built = clocked(lambda: db.execute("CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)"))
            db.execute("VACUUM ANALYZE photo")
            query = "SELECT clip_embed_text('photograph of the thing with number ' || $1 || {})"
            search = (
                "SELECT id FROM photo ORDER BY embedding <=> "
                "clip_embed_text('photograph of the thing with number ' || $1 || {}) LIMIT 10"
            )
            texts, searches = [], []
            bench(search.format("'warm'"), 20)
            for turn in range(ROUNDS):
                texts += bench(query.format(f"'a{turn}'"), 20)
                searches += bench(search.format(f"'b{turn}'"), 20)
            rows = [
                ["the same text again", f"{statistics.median(again):.3f} ms", ""],
                ["a text of eight tokens", f"{statistics.median(texts):.1f} ms", "1"],
                [
                    f"text → top 10 of {count:,} rows by HNSW",
                    f"{statistics.median(searches):.1f} ms",
                    f"{statistics.median(searches) / statistics.median(texts):.2f}×",
                ],
            ]
            # The insert: a trigger embeds and assigns; compared with the same insert without the trigger, and with
            # embedding alone.
            assign.fill(db, vectors)
            db.execute("VACUUM ANALYZE clip_search.cluster_sum, clip_search.cluster_code")
            db.execute("""
                CREATE TABLE file (id serial, data bytea);
                CREATE TABLE stored (data bytea, embedding vector(512), cluster_id bigint);
                CREATE FUNCTION embed() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    NEW.embedding := clip_embed_image(NEW.data);
                    NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'c');
                    RETURN NEW;
                END $$;
                CREATE TRIGGER embed BEFORE INSERT ON stored FOR EACH ROW EXECUTE FUNCTION embed()""")
            for photo in PHOTOS[:10]:
                db.execute("INSERT INTO file (data) VALUES (%b)", (photo.read_bytes(),))
            alone, inserts = [], []
            for _ in range(ROUNDS):
                alone += bench("SELECT clip_embed_image(data) FROM file WHERE id = $1", 10)
                inserts += bench("INSERT INTO stored SELECT data FROM file WHERE id = $1", 10)
            ratio = statistics.median(b / a for a, b in zip(alone, inserts))
            rows.append(["a photo's embedding", f"{statistics.median(alone):.1f} ms", "1"])
            rows.append(
                [
                    f"insert with embedding and one of {count:,} clusters",
                    f"{statistics.median(inserts):.1f} ms",
                    f"{ratio:.2f}×",
                ]
            )
        print(f"**Calls in a warm connection, {self.name}**\n")
        table(["", "median", "times"], rows)
        print(f"The index took {built / 1e3:.0f} s to build.\n")
        return {
            "again": again,
            "texts": texts,
            "searches": searches,
            "alone": alone,
            "inserts": inserts,
            "index_ms": built,
        }

    def sessions(self) -> dict:
        """Images a second by one session and by two, and by one query without workers, with one worker, and with
        two."""
        images = 60
        with self.server(True) as made, contextlib.ExitStack() as stack:
            connections = [stack.enter_context(made.connect()) for _ in range(2)]
            for db in connections:
                self.embed(db, "image")

            def work(db: psycopg.Connection, count: int) -> None:
                for n in range(count):
                    self.embed(db, "image", PHOTOS[n % len(PHOTOS)].read_bytes())

            def together(count: int) -> float:
                threads = [threading.Thread(target=work, args=(db, images // count)) for db in connections[:count]]
                start = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return images / (time.perf_counter() - start)

            db = connections[0]
            # Parallel workers divide a table by its pages, and one page holds a hundred photos stored out of line: here
            # there are two pages.
            db.execute("CREATE TABLE file (about text, data bytea) WITH (parallel_workers = 2, fillfactor = 10)")
            for n in range(images):
                about, photo = str(n) * 200, PHOTOS[n % len(PHOTOS)].read_bytes()
                db.execute("INSERT INTO file VALUES (%s, %b)", (about, photo))
            db.execute("ANALYZE file")

            def workers(count: int) -> float:
                db.execute(f"SET max_parallel_workers_per_gather = {count}")
                db.execute(f"SET parallel_leader_participation = {'off' if count == 2 else 'on'}")
                plan = str(value(db, "EXPLAIN (FORMAT JSON) SELECT clip_embed_image(data) FROM file"))
                assert ("Gather" in plan) == (count > 0), plan
                ms = clocked(lambda: db.execute("CREATE TABLE t AS SELECT clip_embed_image(data) FROM file"))
                db.execute("DROP TABLE t")
                return images / ms * 1e3

            found = {"one session": [], "two sessions": [], "a query": [], "with a worker": [], "by two workers": []}
            for _ in range(ROUNDS):
                for figures, way in zip(
                    found.values(),
                    [
                        lambda: together(1),
                        lambda: together(2),
                        lambda: workers(0),
                        lambda: workers(1),
                        lambda: workers(2),
                    ],
                ):
                    figures.append(way())
        rows = []
        for name, figures in found.items():
            base = found["one session" if "session" in name else "a query"]
            times = statistics.median(a / b for a, b in zip(figures, base))
            rows.append([name, f"{statistics.median(figures):.1f}", f"{times:.2f}×"])
        print(f"**Images a second, {self.name}, preloaded, {os.cpu_count()} cores**\n")
        table(["", "images/s", "times one"], rows)
        return found

    def growth(self) -> dict:
        """How time and memory grow with the number of images, connections and rows, with photo-mini."""
        found: dict[str, list] = {"images": [], "connections": [], "rows": []}
        with self.server(True) as made:
            with made.connect() as db:
                db.execute("LOAD 'clip_search'; SET clip_search.model = 'photo-mini'")
                done, start = 0, time.perf_counter()
                for count in (1, 10, 100, 1000, 10_000):
                    while done < count:
                        self.embed(db, "image", PHOTOS[done % len(PHOTOS)].read_bytes())
                        done += 1
                    each = (time.perf_counter() - start) * 1e3 / count
                    found["images"].append({"images": count, "ms_each": each, "private_mb": private_megabytes(db)})
            for count in (1, 2, 5, 10, 20, 50, 90):
                with contextlib.ExitStack() as stack:
                    connections = [stack.enter_context(made.connect()) for _ in range(count)]
                    first = []
                    for db in connections:
                        db.execute("LOAD 'clip_search'; SET clip_search.model = 'photo-mini'")
                        first.append(clocked(lambda: (self.embed(db, "image"), self.embed(db, "text"))))
                    private = [private_megabytes(db) for db in connections]
                found["connections"].append(
                    {"connections": count, "first_ms": statistics.median(first), "private_mb": sum(private)}
                )
            with made.connect() as db:
                db.execute("SET maintenance_work_mem = '4GB'; SET max_parallel_maintenance_workers = 1")
                count = 1000
                while count <= self.most_rows:
                    db.execute("DROP TABLE IF EXISTS photo; CREATE TABLE photo (embedding vector(512))")
                    for seed, first in enumerate(range(0, count, 50_000)):
                        with db.cursor().copy("COPY photo FROM STDIN WITH (FORMAT binary)") as copy:
                            copy.set_types(["bytea"])
                            for row in assign.vectors("photo-like", min(50_000, count - first), seed=seed):
                                copy.write_row((assign.struct.pack(">hh", 512, 0) + row.astype(">f4").tobytes(),))
                    db.execute("ANALYZE photo")
                    queries = assign.near(assign.vectors("photo-like", 50, seed=0), seed=9)
                    search = "SELECT ctid FROM photo ORDER BY embedding <=> %s::vector LIMIT 10"
                    texts = [support.vector_text(row) for row in queries]
                    exact, exact_ms = [], []
                    for text in texts[:10]:
                        exact_ms.append(clocked(lambda: exact.append(db.execute(search, (text,)).fetchall())))
                    built = clocked(
                        lambda: db.execute("CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)")
                    )
                    db.execute("ANALYZE photo; SET enable_seqscan = off")
                    ms, hits = [], 0
                    for _ in range(2):
                        approximate = []
                        ms = [clocked(lambda: approximate.append(db.execute(search, (t,)).fetchall())) for t in texts]
                    hits = sum(len(set(a) & set(b)) for a, b in zip(exact, approximate))
                    db.execute("RESET enable_seqscan")
                    found["rows"].append(
                        {
                            "rows": count,
                            "exact_ms": statistics.median(exact_ms),
                            "hnsw_ms": statistics.median(ms),
                            "recall": hits / (10 * len(exact)),
                            "build_s": built / 1e3,
                            "index_mb": float(value(db, "SELECT pg_relation_size('photo_embedding_idx') / 1e6")),
                        }
                    )
                    count *= 10
        for name, rows in found.items():
            print(f"**Growth with {name}, photo-mini**\n")
            if rows:
                table(
                    list(rows[0]),
                    [[f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in row.values()] for row in rows],
                )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=100_000, help="the most rows of the growth curve (100000)")
    arguments = parser.parse_args()
    bench = Bench(arguments.model.resolve(), arguments.rows)
    found = {}
    try:
        for part in arguments.parts or ("connection", "calls", "sessions", "growth"):
            found[part] = getattr(bench, part)()
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        bench.folder.remove()


if __name__ == "__main__":
    main()
