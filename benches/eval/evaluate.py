#!/usr/bin/env python3
"""Measure how well a model finds labelled photographs, through SQL.

    evaluate.py --stamps DIR [--gcompris DIR] [--model NAME or DIRECTORY] [--out DIR]

The photographs are those of Debian's package tuxpaint-stamps-default (GPL-2; read from the unpacked package,
whose usr/share/tuxpaint/stamps DIR is, and copied nowhere but into a table of a database of its own). The label
of a picture is the first line of its .txt; drawings, symbols, flags, mirrored copies and tiny pictures are left
out, which leaves 310 of version 2022.06.04. They are cut out, and many show rare species: figures are for
comparing models, and are lower than on ordinary photos. With --gcompris, relevance is also measured on the 248
photographs of gcompris-qt-data, whose usr/share/gcompris-qt/rcc DIR is.

PostgreSQL computes all figures; Python only reads files and draws. `make eval` runs the script, in the server
given by PGHOST, PGPORT and PGUSER.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
import time

import gcompris
import plot
import psycopg
import relevance
from PIL import Image
from psycopg import sql

LEFT_OUT = ("cartoon", "mirror", "roadsigns", "flags")
SMALLEST_SIDE, LEAST_OPAQUE = 80, 500  # pixels
THRESHOLDS = [round(0.70 + step / 100, 2) for step in range(30)]
SHOWN = (0.70, 0.75, 0.80, 0.82, 0.85, 0.90, 0.95, 0.99)
TEMPLATES = {
    '"a photo of a {}"': ["a photo of a {}"],
    '"{}"': ["{}"],
    "seven templates": [  # CLIP's authors found these to be enough for ImageNet
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ],
}

TABLE = """
CREATE TABLE stamp (
    id         integer PRIMARY KEY,
    name       text NOT NULL,          -- path below the stamps
    label      text NOT NULL,          -- 'A great blue heron.'
    folder     text NOT NULL,          -- 'animals/birds'
    category   text NOT NULL,          -- 'animals'
    data       bytea NOT NULL,
    embedding  vector({dimensions}),
    caption    vector({dimensions}),
    cluster_id bigint
)"""

# The rank of each picture among all by nearness to its own label; 0 is the first.
RANKS = """
SELECT (SELECT count(*) FROM stamp AS other WHERE other.embedding <=> one.caption < one.embedding <=> one.caption)
FROM stamp AS one ORDER BY id"""

# Whether the nearest other picture is in the same folder, for pictures whose folder has another one.
NEIGHBOURS = """
SELECT count(*) FILTER (WHERE near.{column} = one.{column}), count(*)
FROM stamp AS one, LATERAL (SELECT {column} FROM stamp AS other WHERE other.id <> one.id
                            ORDER BY other.embedding <=> one.embedding, other.id LIMIT 1) AS near
WHERE (SELECT count(*) FROM stamp AS alike WHERE alike.{column} = one.{column}) > 1"""

# The last part of a folder's path tells its subject.
ZERO_SHOT = """
WITH named AS (SELECT embedding, replace(regexp_replace({column}, '^.*/', ''), '_', ' ') AS name FROM stamp),
     known AS (SELECT array_agg(DISTINCT name ORDER BY name) AS names FROM named)
SELECT count(*) FILTER (WHERE best.label = named.name), count(*), max(cardinality(names))
FROM named, known, LATERAL (SELECT label FROM clip_classify(embedding, names, %s::text[])
                            ORDER BY probability DESC LIMIT 1) AS best"""

# Groups of at least two: their number, the number of their pictures, and the number of pairs in them from one folder.
GROUPS = """
WITH grouped AS (SELECT cluster_id, count(*) AS size FROM stamp GROUP BY cluster_id HAVING count(*) > 1)
SELECT (SELECT count(*) FROM grouped), (SELECT coalesce(sum(size), 0)::int FROM grouped),
       count(*) FILTER (WHERE a.folder = b.folder), count(*)
FROM stamp AS a JOIN stamp AS b ON a.cluster_id = b.cluster_id AND a.id < b.id"""

# The ten nearest pictures of each caption and each picture.
NEAREST = """
CREATE TABLE {name} AS
SELECT query.n, near.id
FROM (SELECT id AS n, caption AS vector FROM stamp UNION ALL SELECT -1 - id, embedding FROM stamp) AS query,
     LATERAL (SELECT id FROM stamp ORDER BY stamp.embedding <=> query.vector LIMIT 10) AS near"""


def pictures(directory: pathlib.Path) -> list[tuple[str, str, bytes]]:
    """(name, label, file) of every labelled photograph, in the order of their names."""
    found = []
    for path in sorted(directory.rglob("*.png")):
        name, label_file = path.relative_to(directory).as_posix(), path.with_suffix(".txt")
        if name.startswith("symbols") or any(word in name for word in LEFT_OUT) or not label_file.exists():
            continue
        label = label_file.read_text(errors="ignore").split("\n")[0].strip()
        if not label or label.startswith("<"):
            continue
        data = path.read_bytes()
        alpha = Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A")
        if min(alpha.size) >= SMALLEST_SIDE and sum(alpha.histogram()[129:]) >= LEAST_OPAQUE:
            found.append((name, label, data))
    return found


def connect(database: str, model: str) -> psycopg.Connection:
    """The model is a name, or a directory that the server can read."""
    db = psycopg.connect(dbname=database, autocommit=True)
    db.execute("SET client_min_messages = error")
    if database != "postgres":
        db.execute("CREATE EXTENSION IF NOT EXISTS clip_search CASCADE")
        db.execute("SELECT clip_version()")
        path = pathlib.Path(model)
        if "/" in model:
            db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(path.resolve().parent),))
        db.execute("SELECT set_config('clip_search.model', %s, false)", (path.name,))
    return db


def one(db: psycopg.Connection, query: str, *arguments: object) -> tuple:
    row = db.execute(query, arguments or None).fetchone()
    assert row is not None
    return row


def load(db: psycopg.Connection, rows: list[tuple[str, str, bytes]]) -> dict:
    dimensions = one(db, "SELECT vector_dims(clip_embed_text('a photo'))")[0]
    db.execute(TABLE.format(dimensions=dimensions))
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO stamp (id, name, label, folder, category, data) VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (number, name, label, name.rpartition("/")[0], name.split("/")[0], data)
                for number, (name, label, data) in enumerate(rows)
            ],
        )
    began = time.perf_counter()
    db.execute("UPDATE stamp SET embedding = clip_embed_image(data)")
    embedded = time.perf_counter()
    db.execute("UPDATE stamp SET caption = clip_embed_text(label)")
    done = time.perf_counter()
    db.execute("VACUUM (FULL, ANALYZE) stamp")
    per = 1000 / len(rows)
    return {"dimensions": dimensions, "image_ms": (embedded - began) * per, "text_ms": (done - embedded) * per}


def retrieval(db: psycopg.Connection) -> dict:
    ranks = [row[0] for row in db.execute(RANKS)]
    share = {f"recall_at_{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return share | {"mean_reciprocal_rank": sum(1 / (rank + 1) for rank in ranks) / len(ranks)}


def neighbours(db: psycopg.Connection) -> dict:
    found = {}
    for column in ("folder", "category"):
        right, all_of_them = one(db, NEIGHBOURS.format(column=column))
        found[column] = {"right": right, "of": all_of_them}
    return found


def zero_shot(db: psycopg.Connection) -> list[dict]:
    found = []
    for column in ("folder", "category"):
        for about, templates in TEMPLATES.items():
            right, of, labels = one(db, ZERO_SHOT.format(column=column), templates)
            found.append({"names": column, "labels": labels, "templates": about, "right": right, "of": of})
    return found


def groups(db: psycopg.Connection) -> list[dict]:
    found = []
    for threshold in THRESHOLDS:
        collection = f"at {threshold:.2f}"
        db.execute(
            "SELECT clip_create_collection(%s, threshold => %s, members => 'stamp', key => 'name')",
            (collection, threshold),
        )
        db.execute("SELECT count(*) FROM clip_recluster(%s)", (collection,))
        number, grouped, right, pairs = one(db, GROUPS)
        found.append({"threshold": threshold, "groups": number, "pictures": grouped, "right": right, "pairs": pairs})
        db.execute("UPDATE stamp SET cluster_id = NULL")
        db.execute("SELECT clip_drop_collection(%s)", (collection,))
    return found


def hnsw(db: psycopg.Connection) -> list[dict]:
    """The share of the ten exact nearest that the index finds, for each hnsw.ef_search."""
    db.execute(NEAREST.format(name="exact"))
    db.execute("CREATE INDEX ON stamp USING hnsw (embedding vector_cosine_ops)")
    db.execute("SET enable_seqscan = off")
    found = []
    for ef in (10, 40, 100):
        db.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(ef),))
        plan = "\n".join(row[0] for row in db.execute("EXPLAIN " + NEAREST.format(name="approximate")))
        assert "stamp_embedding_idx" in plan, plan
        db.execute(NEAREST.format(name="approximate"))
        query = "SELECT count(approximate.id), count(*) FROM exact LEFT JOIN approximate USING (n, id)"
        right, of = one(db, query)
        found.append({"ef_search": ef, "right": right, "of": of})
        db.execute("DROP TABLE approximate")
    db.execute("RESET enable_seqscan")
    return found


def table(result: dict) -> str:
    """The results as a table for readers."""
    found, rows = result["retrieval"], []
    rows.append(("text to picture", ", ".join(f"R@{k} {found[f'recall_at_{k}']:.3f}" for k in (1, 5, 10))))
    rows.append(("", f"mean reciprocal rank {found['mean_reciprocal_rank']:.3f}"))
    share = lambda entry: f"{entry['right'] / entry['of']:.3f} ({entry['right']} of {entry['of']})"
    for column, entry in result["neighbours"].items():
        about = {"folder": "of the same folder", "category": "of the same top folder"}[column]
        rows.append((f"nearest picture {about}", share(entry)))
    for entry in result["zero_shot"]:
        rows.append((f"zero-shot, {entry['labels']} labels, {entry['templates']}", share(entry)))
    for entry in result["groups"]:
        if entry["threshold"] in SHOWN:
            of_pairs = (
                f"{entry['right'] / entry['pairs']:.3f} of {entry['pairs']} pairs right" if entry["pairs"] else "none"
            )
            about = f"{entry['groups']} groups of {entry['pictures']} pictures, {of_pairs}"
            rows.append((f"groups at {entry['threshold']:.2f}", about))
    for entry in result["hnsw"]:
        rows.append((f"HNSW recall@10, ef_search {entry['ef_search']}", f"{entry['right'] / entry['of']:.4f}"))
    rows += relevance.table(result["relevance"])
    rows.append(("time in this run", f"image {result['image_ms']:.0f} ms, text {result['text_ms']:.1f} ms"))
    width = max(len(name) for name, _ in rows)
    title = f"{result['model']}: {result['pictures']} pictures, {result['dimensions']} dimensions"
    return "\n".join([title, "-" * len(title), *(f"{name:{width}}  {value}" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--gcompris", type=pathlib.Path, metavar="DIR", help="for relevance on a second collection")
    parser.add_argument("--model", default="photo-mini", help="a name, or a directory that the server can read")
    parser.add_argument("--database", default="clip_search_eval", help="an existing one is dropped first")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/eval"), metavar="DIR")
    arguments = parser.parse_args()
    rows = pictures(arguments.stamps)
    if not rows:
        sys.exit(
            f"evaluate.py: no labelled stamps in {arguments.stamps}: give usr/share/tuxpaint/stamps of the package"
        )
    fresh = gcompris.photos(arguments.gcompris) if arguments.gcompris else []
    with connect("postgres", arguments.model) as db:
        database = sql.Identifier(arguments.database)
        db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
        db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(database))
    with connect(arguments.database, arguments.model) as db:
        name = one(db, "SELECT current_setting('clip_search.model')")[0]
        result = {"model": name, "pictures": len(rows)} | load(db, rows)
        result |= {"retrieval": retrieval(db), "neighbours": neighbours(db), "zero_shot": zero_shot(db)}
        result |= {"groups": groups(db), "hnsw": hnsw(db), "relevance": relevance.measure(db, rows, fresh)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / name.replace(":", "_")
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_name(stem.name + ".svg").write_text(plot.draw(result), encoding="utf-8")
    drawn = relevance.draw(result["relevance"], f"{name}: relevance by cut")
    stem.with_name(stem.name + "-relevance.svg").write_text(drawn, encoding="utf-8")
    print(table(result))
    print(
        f"\n{stem}.svg and {stem}-relevance.svg have the plots, {stem}.json the figures; the table is in database {arguments.database}."
    )


if __name__ == "__main__":
    try:
        main()
    except (psycopg.Error, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
