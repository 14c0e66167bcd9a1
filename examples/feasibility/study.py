#!/usr/bin/env python3
"""A feasibility study of CLIP search, twice in one run: in Python on a model's files, and by clip_search in SQL.

    study.py --out DIR [--stamps DIR] [--model NAME]      with PGHOST, PGPORT, PGUSER and PGDATABASE set, as superuser

Writes DIR/feasibility.md with its pictures; every number and every finding in it comes from this run. Exit 1 if the two
ways disagree: a cosine below 0.9999, another ranking, other groups. Packages: benches/requirements.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import psycopg
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "examples" / "gallery" / "photos"
SCHEMA = "feasibility"
THRESHOLD = 0.82
ROUNDS = 5
ALIKE = 0.9999  # the lowest accepted cosine between both ways' vectors

# (title, file, keywords). The last three are from tuxpaint-stamps-default and replace the notebook's own photos.
GALLERY = (
    ("Tabby Cat", "cat.jpg", ("cat", "feline", "pet", "animal")),
    ("Espresso", "espresso.jpg", ("espresso", "coffee", "drink")),
    ("Rocket", "rocket.jpg", ("rocket", "launch", "space")),
    ("Photographer", "photographer.jpg", ("photographer", "tripod", "person")),
    ("Pagoda", "pagoda.jpg", ("pagoda", "palace", "building")),
    ("Dahlia", "dahlia.jpg", ("dahlia", "flower", "plant")),
    ("Raccoon", "raccoon.jpg", ("raccoon", "wildlife", "animal")),
    ("Staircase", "staircase.jpg", ("staircase", "steel", "building")),
    ("Wall Clock", "clock.jpg", ("clock", "time")),
    ("Deep Space", "deep-field.jpg", ("galaxies", "astronomy", "space")),
    ("Strawberry", "food/fruit/Strawberry2.png", ("strawberry", "fruit", "food")),
    ("Dog", "animals/mammals/dogs/dog.png", ("dog", "animal")),
    ("Sports Car", "vehicles/auto/sportscar2.png", ("car", "sport")),
)
# The first four queries are the notebook's.
QUERIES = (
    ("fresh red fruit", "Strawberry"),
    ("sleepy striped house cat", "Tabby Cat"),
    ("golden retriever dog", "Dog"),
    ("red sports car", "Sports Car"),
    ("a cup of coffee", "Espresso"),
    ("rocket launch", "Rocket"),
    ("photographer with a tripod", "Photographer"),
    ("ancient pagoda by a lake", "Pagoda"),
    ("orange flower", "Dahlia"),
    ("wild animal in the forest", "Raccoon"),
    ("steel staircase", "Staircase"),
    ("wall clock", "Wall Clock"),
    ("outer space", "Deep Space"),
)


@dataclasses.dataclass
class Photo:
    title: str
    subject: str
    keywords: tuple[str, ...]
    data: bytes
    free: bool  # may be shown in the report


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def gallery(stamps: pathlib.Path | None) -> list[Photo]:
    photos = []
    for title, name, keywords in GALLERY:
        if "/" not in name:
            photos.append(Photo(title, title, keywords, (PHOTOS / name).read_bytes(), True))
        elif stamps is not None:
            # Cropped as tightly as possible, on a white square: the model sees only the middle square of a photo, and
            # the middle of a car three times as long as high is a door.
            cut = Image.open(stamps / name).convert("RGBA")
            white = Image.new("RGB", (max(cut.size), max(cut.size)), "white")
            white.paste(
                cut.convert("RGB"),
                ((white.width - cut.width) // 2, (white.height - cut.height) // 2),
                cut.getchannel("A"),
            )
            photos.append(Photo(title, title, keywords, png(white), False))
    return photos


def mirrored(photo: Photo) -> Photo:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(photo.data))).convert("RGB")
    return dataclasses.replace(photo, title=f"{photo.title} (mirrored)", data=png(ImageOps.mirror(image)))


def memory(status: str) -> dict[str, float]:
    """A process's memory in megabytes: its peak, and its private memory now."""
    found = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", status, re.MULTILINE))
    return {"peak": int(found["VmHWM"]) / 1024, "own": int(found["RssAnon"]) / 1024}


def varied(texts: list[str], number: int) -> list[str]:
    """The same texts made new: clip_search remembers a connection's texts, and both ways must read the same ones."""
    return [f"{text}{' ' * number} ." for text in texts]


def timed(what) -> tuple[float, object]:
    """Milliseconds, and the result."""
    start = time.perf_counter()
    result = what()
    return 1000 * (time.perf_counter() - start), result


# ---------------------------------------------------------------- the Python way


def python_way(directory: pathlib.Path, given: pathlib.Path, out: pathlib.Path) -> None:
    """Embeds the contents of `given` in a separate process, so that its memory is that of embedding and nothing
    else."""
    held = np.load(given, allow_pickle=False)
    files = [held[f"file{n}"].tobytes() for n in range(int(held["files"]))]
    texts, first = json.loads(str(held["texts"])), int(held["first"])
    before = memory(pathlib.Path("/proc/self/status").read_text())

    def load():
        sys.path.insert(0, str(ROOT / "tests"))
        from reference import Reference

        model = Reference(directory, 77)
        model.tower("vision"), model.tower("text")
        return model

    load_ms, model = timed(load)
    model.image(files[0]), model.text("something else")
    import reference

    def one_by_one() -> list[np.ndarray]:
        reference._resized.cache_clear()
        return [model.image(file) for file in files[:first]]

    def batch() -> np.ndarray:
        reference._resized.cache_clear()
        rows = [
            ((model.pixels(file).astype(np.float64) * model.rescale - model.mean) / model.deviation).transpose(2, 0, 1)
            for file in files[:first]
        ]
        return model.tower("vision").run(["image_embeds"], {"pixel_values": np.stack(rows).astype(np.float32)})[0]

    image_ms = min(timed(one_by_one)[0] for _ in range(ROUNDS)) / first
    batch_ms = min(timed(batch)[0] for _ in range(ROUNDS)) / first
    text_ms = min(timed(lambda r=r: [model.text(text) for text in varied(texts, r)])[0] for r in range(ROUNDS)) / len(
        texts
    )
    after = memory(pathlib.Path("/proc/self/status").read_text())
    np.savez(
        out,
        images=np.stack([model.image(file) for file in files]),
        texts=np.stack([model.text(text) for text in texts]),
        times=json.dumps({"load": load_ms, "image": image_ms, "batch": batch_ms, "text": text_ms}),
        memory=json.dumps({"before": before["peak"], "peak": after["peak"]}),
    )


# ---------------------------------------------------------------- the SQL way


def vector(text: str) -> np.ndarray:
    return np.array(text[1:-1].split(","), np.float32).astype(np.float64)


def create(db: psycopg.Connection, model: str) -> None:
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE EXTENSION IF NOT EXISTS clip_search CASCADE")
    db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    db.execute("SELECT clip_drop_collection(name) FROM clip_search.collection WHERE name = %s", (SCHEMA,))
    db.execute(f"CREATE SCHEMA {SCHEMA}")
    db.execute(
        "SELECT set_config('search_path', %s, false), set_config('clip_search.model', %s, false)",
        (f"{SCHEMA}, public", model),
    )
    dimensions = db.execute("SELECT dimensions FROM clip_models() WHERE name = %s", (model,)).fetchone()[0]
    db.execute(f"""CREATE TABLE photo (id bigint PRIMARY KEY, title text, subject text, keywords text[], data bytea,
                                embedding vector({int(dimensions)}), cluster_id bigint)""")
    db.execute(
        """SELECT clip_create_collection(%s, threshold => %s, members => 'photo', key => 'title', labels => 'keywords',
                                         image => 'data')""",
        (SCHEMA, THRESHOLD),
    )


def backend(db: psycopg.Connection) -> dict[str, float]:
    return memory(db.execute("SELECT pg_read_file('/proc/self/status', 0, 100000)").fetchone()[0])


def sql_way(model: str, photos: list[Photo], first: int, texts: list[str]) -> dict:
    """Embeds in a separate connection, then groups and searches."""
    with psycopg.connect(autocommit=True) as db:
        create(db, model)

    with psycopg.connect(autocommit=True) as db:
        db.execute(
            "SELECT set_config('search_path', %s, false), set_config('clip_search.model', %s, false)",
            (f"{SCHEMA}, public", model),
        )
        db.execute("SELECT clip_version()")  # loads the library, not yet a model
        before = backend(db)
        files = [photo.data for photo in photos]

        def image(file: bytes) -> None:
            db.execute("SELECT clip_embed_image(%s)", (file,))

        def text(words: str) -> None:
            db.execute("SELECT clip_embed_text(%s)", (words,))

        cold = timed(lambda: (image(files[0]), text("something")))[0]
        warm = timed(lambda: (image(files[0]), text("something else")))[0]
        image_ms = min(timed(lambda: [image(f) for f in files[:first]])[0] for _ in range(ROUNDS)) / first
        batch_ms = (
            min(timed(lambda: db.execute("SELECT clip_embed_images(%s)", (files[:first],)))[0] for _ in range(ROUNDS))
            / first
        )
        text_ms = min(timed(lambda r=r: [text(words) for words in varied(texts, r)])[0] for r in range(ROUNDS)) / len(
            texts
        )
        again_ms = min(timed(lambda: [text(words) for words in varied(texts, 0)])[0] for _ in range(ROUNDS)) / len(
            texts
        )
        after = backend(db)

        def insert() -> None:
            for number, photo in enumerate(photos):
                db.execute(
                    """INSERT INTO photo SELECT %s, %s, %s, %s, %s, e, clip_assign_cluster(e, %s)
                       FROM clip_embed_image(%s) AS e""",
                    (number, photo.title, photo.subject, list(photo.keywords), photo.data, SCHEMA, photo.data),
                )

        insert_ms = timed(insert)[0] / len(photos)
        stored = db.execute("SELECT embedding::text, cluster_id FROM photo ORDER BY id").fetchall()
        assigned = [row[1] for row in stored]
        embedded = db.execute(
            "SELECT clip_embed_text(t)::text FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n", (texts,)
        ).fetchall()
        found = [
            db.execute(
                """SELECT title, 1 - (embedding <=> clip_embed_text(%s)) FROM photo WHERE id < %s
                   ORDER BY embedding <=> clip_embed_text(%s), id""",
                (words, first, words),
            ).fetchall()
            for words in texts
        ]
        changed = db.execute("SELECT count(*) FROM clip_recluster(%s)", (SCHEMA,)).fetchone()[0]
        grouped = [row[0] for row in db.execute("SELECT cluster_id FROM photo ORDER BY id")]
        centroids = {
            row[0]: vector(row[1])
            for row in db.execute("SELECT id, centroid::text FROM clip_search.cluster WHERE collection = %s", (SCHEMA,))
        }
        groups = db.execute("SELECT clip_cluster_groups(%s)", (SCHEMA,)).fetchone()[0]
        sizes = db.execute(
            "SELECT title, format, width, height FROM photo, clip_image_info(data) WHERE id < %s ORDER BY id", (first,)
        ).fetchall()
        small = {
            row[0]: Image.open(io.BytesIO(row[1]))
            for row in db.execute("SELECT title, clip_thumbnail(data, 200, 'png') FROM photo")
        }
        version = db.execute("SELECT clip_version()").fetchone()[0]
        server = db.execute("SHOW server_version").fetchone()[0].split()[0]
        db.execute("CREATE INDEX photo_embedding_idx ON photo USING hnsw (embedding vector_cosine_ops)")
        db.execute("ANALYZE photo")
        plan = [
            row[0]
            for row in db.execute("""EXPLAIN (COSTS off)
                   SELECT title FROM photo ORDER BY embedding <=> clip_embed_text('red sports car') LIMIT 3""")
        ]
        # Dropping the members' table drops the collection.
        db.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    return {
        "images": np.stack([vector(row[0]) for row in stored]),
        "texts": np.stack([vector(row[0]) for row in embedded]),
        "times": {"load": max(0.0, cold - warm), "image": image_ms, "batch": batch_ms, "text": text_ms,
                  "again": again_ms, "insert": insert_ms},
        "memory": {"before": before["peak"], "peak": after["peak"]},
        "assigned": assigned, "grouped": grouped, "centroids": centroids, "changed": changed, "groups": groups,
        "found": found, "sizes": sizes, "small": small, "version": version, "server": server, "plan": plan,
    }  # fmt: skip


# ---------------------------------------------------------------- comparing


def partition(labels: list[int]) -> set[frozenset[int]]:
    groups: dict[int, set[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, set()).add(index)
    return {frozenset(group) for group in groups.values()}


def same_order(ours: list[str], scores: dict[str, float]) -> bool:
    """Whether our order is that of the other way's scores, ignoring photos whose scores are equal within rounding."""
    values = [scores[title] for title in ours]
    return all(a >= b - 2e-6 for a, b in zip(values, values[1:]))


def sheet(rows: list[list[Image.Image]], path: pathlib.Path, edge: int = 150, gap: int = 12) -> None:
    """Pictures cropped to squares, in rows, on a white page."""
    page = Image.new("RGB", (max(map(len, rows)) * (edge + gap) + gap, len(rows) * (edge + gap) + gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(
                ImageOps.fit(image.convert("RGB"), (edge, edge)), (gap + x * (edge + gap), gap + y * (edge + gap))
            )
    page.save(path, quality=80, method=6)


def processor() -> str:
    names = re.findall(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.machine()


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def near(cosine: float) -> str:
    """A cosine, or its difference to 1 if it is too close to 1 to tell."""
    return f"{cosine:.6f}" if cosine < 1 - 1e-6 else f"1 − {max(0.0, 1 - cosine):.0e}"


def short(n: float) -> str:
    return f"{n:.1f}" if n < 100 else f"{n:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--stamps", type=pathlib.Path)
    parser.add_argument("--model", default="photo-mini")
    parser.add_argument("--python-way", nargs=3, type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.python_way:
        python_way(*options.python_way)
        return 0
    out = options.out
    out.mkdir(parents=True, exist_ok=True)

    with psycopg.connect(autocommit=True) as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION IF NOT EXISTS clip_search CASCADE")
        row = db.execute("SELECT path FROM clip_models() WHERE name = %s", (options.model,)).fetchone()
        if row is None:
            sys.exit(f"study.py: model {options.model} is not among clip_models(): set --model to one that is")
        directory = pathlib.Path(row[0])

    originals = gallery(options.stamps)
    titles = [photo.title for photo in originals]
    copies = [mirrored(photo) for photo in originals]
    photos, first = originals + copies, len(originals)
    queries = [(words, subject) for words, subject in QUERIES if subject in titles]
    texts = [words for words, _ in queries]

    given, embedded = out / "given.npz", out / "embedded.npz"
    held = {f"file{n}": np.frombuffer(photo.data, np.uint8) for n, photo in enumerate(photos)}
    np.savez(given, files=len(photos), first=first, texts=json.dumps(texts), **held)
    subprocess.run(
        [sys.executable, __file__, "--out", str(out), "--python-way", str(directory), str(given), str(embedded)],
        check=True,
    )
    python = dict(np.load(embedded, allow_pickle=False))
    python |= {key: json.loads(str(python[key])) for key in ("times", "memory")}
    given.unlink(), embedded.unlink()
    sql = sql_way(options.model, photos, first, texts)

    import sklearn
    from sklearn.cluster import AgglomerativeClustering

    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - THRESHOLD, metric="cosine", linkage="average"
    )
    labels = list(clustering.fit_predict(python["images"]))

    # The inputs of the report and the findings.
    # In double precision and scaled to exact unit length: single precision alone is 6e-8 off.
    sql["images"], sql["texts"] = (sql[k] / np.linalg.norm(sql[k], axis=1, keepdims=True) for k in ("images", "texts"))
    image_cosines = (python["images"] * sql["images"]).sum(axis=1)
    text_cosines = (python["texts"] * sql["texts"]).sum(axis=1)
    scores = python["texts"] @ python["images"][:first].T
    right = sum(found[0][0] == subject for found, (_, subject) in zip(sql["found"], queries))
    python_right = sum(titles[int(row.argmax())] == subject for row, (_, subject) in zip(scores, queries))
    orders = [
        same_order([title for title, _ in found], dict(zip(titles, row))) for found, row in zip(sql["found"], scores)
    ]
    apart = max(
        abs(cosine - dict(zip(titles, row))[title])
        for found, row in zip(sql["found"], scores)
        for title, cosine in found
    )
    theirs, ours, on_insert = partition(labels), partition(sql["grouped"]), partition(sql["assigned"])
    together = sum(sql["assigned"][n] == sql["assigned"][n + first] for n in range(first))
    centroid_cosines = []
    for members in ours:
        mean = python["images"][sorted(members)].mean(axis=0)
        centroid = sql["centroids"][sql["grouped"][min(members)]]
        centroid_cosines.append(float(mean @ centroid / np.linalg.norm(mean)))
    norms = [float(np.linalg.norm(centroid)) for centroid in sql["centroids"].values()]
    indexed = any("Index Scan" in line for line in sql["plan"])
    agree = (
        min(image_cosines.min(), text_cosines.min()) >= ALIKE
        and all(orders)
        and theirs == ours
        and min(centroid_cosines) >= ALIKE
    )

    # Pictures: only photos whose licence allows them to be shown anywhere.
    shown = [photo.title for photo in originals if photo.free]
    sheet([[sql["small"][title] for title in shown[n : n + 5]] for n in range(0, len(shown), 5)], out / "gallery.webp")
    rows = []
    for members in sorted(on_insert, key=min):
        row = [sql["small"][photos[n].title] for n in sorted(members) if photos[n].free]
        if row:
            rows.append(row)
    half = (len(rows) + 1) // 2
    wide = max(map(len, rows))
    blank = Image.new("RGB", (8, 8), "white")
    pairs = [
        left + [blank] * (wide + 1 - len(left)) + (rows[half + n] if half + n < len(rows) else [])
        for n, left in enumerate(rows[:half])
    ]
    sheet(pairs, out / "groups.webp", edge=110)

    report = write_report({
        "model": options.model, "python": python, "sql": sql, "originals": originals, "photos": photos,
        "titles": titles,
        "queries": queries, "first": first, "image_cosines": image_cosines, "text_cosines": text_cosines,
        "scores": scores, "right": right, "python_right": python_right, "orders": orders, "apart": apart,
        "theirs": theirs, "ours": ours, "on_insert": on_insert, "together": together, "norms": norms,
        "centroid_cosines": centroid_cosines, "indexed": indexed, "sklearn": sklearn.__version__,
    })  # fmt: skip
    (out / "feasibility.md").write_text(report, encoding="utf-8")
    print(report[report.index("## Findings") :].split("\n## ")[0])
    print(f"The whole study: {out / 'feasibility.md'}")
    if not agree:
        print("study.py: the two ways disagree, see above", file=sys.stderr)
    return 0 if agree else 1


# ---------------------------------------------------------------- the report


def write_findings(v: dict) -> list[str]:
    """The findings; each sentence that depends on the numbers is chosen by them."""
    sql, queries, first, total = v["sql"], v["queries"], v["first"], len(v["photos"])
    st, pt, ours, theirs = sql["times"], v["python"]["times"], sql["memory"], v["python"]["memory"]
    findings = []

    missed = [
        f"“{words}” found {found[0][0]} before {subject}"
        for (words, subject), found in zip(queries, sql["found"])
        if found[0][0] != subject
    ]
    works = "works" if not missed else "works for most queries" if len(missed) * 2 < len(queries) else "does not work"
    findings.append(
        f"**Zero-shot search {works}.** {v['right']} of {len(queries)} queries find their photo first among {first}, "
        f"without tags or training ({v['python_right']} in Python). SQL and Python rank all {first} photos alike for "
        f"{sum(v['orders'])} of {len(queries)} queries; no cosine differs by more than {v['apart']:.1g}."
        + (f" Missed: {'; '.join(missed)}." if missed else "")
    )

    images, texts = v["image_cosines"].min(), v["text_cosines"].min()
    same = "The vectors are the same." if min(images, texts) >= ALIKE else "The vectors differ."
    findings.append(
        f"**{same}** The lowest cosine between the two is {near(images)} for {total} photos and {near(texts)} for "
        f"{len(queries)} queries."
    )

    slowest = max(st["image"], st["text"])
    takes = "milliseconds" if slowest < 10 else "tens of milliseconds" if slowest < 100 else "over a tenth of a second"
    cold = "dominates the cold start" if st["load"] > 3 * slowest else "costs little beside it"
    findings.append(
        f"**An item takes {takes}; loading the model {cold}.** SQL takes {short(st['image'])} ms per photo, "
        f"{short(st['text'])} ms per query and {short(st['load'])} ms to load once per connection; a repeated query takes "
        f"{st['again']:.2f} ms. Python takes {short(pt['image'])} ms per photo, {pt['image'] / st['image']:.2f} times as "
        f"much, and {short(pt['text'])} ms per query, {pt['text'] / st['text']:.2f} times as much."
    )

    findings.append(
        f"**Memory** peaks at {ours['peak']:.0f} MB in the database's process and at {theirs['peak']:.0f} MB in "
        f"Python's; before the model was loaded they took {ours['before']:.0f} and {theirs['before']:.0f} MB. A server that "
        "preloads the model shares it among all connections."
    )

    share = v["together"] / first
    find = "find" if share == 1 else "mostly find" if share > 0.5 else "do not find"
    findings.append(
        f"**Mirrored photos {find} their originals at a cosine of {THRESHOLD}.** {v['together']} of {first} pairs are "
        f"in one group as soon as they are inserted, in {len(v['on_insert'])} groups. `clip_recluster` makes "
        f"{len(v['ours'])} groups of them, {'exactly' if v['ours'] == v['theirs'] else 'other than'} the "
        f"{len(v['theirs'])} of scikit-learn."
    )

    off = max(abs(norm - 1) for norm in v["norms"])
    search = "; the search by words runs as an index scan" if v["indexed"] else ""
    findings.append(
        f"**Centroids can be stored and searched.** Their lengths are 1 within {off:.0e}, "
        f"their cosines to Python's normalised means at least {near(min(v['centroid_cosines']))}. Embedding a photo, "
        f"finding its group among the centroids and storing it takes {short(st['insert'])} ms{search}."
    )
    return findings


def write_report(v: dict) -> str:
    python, sql, queries, photos, first = v["python"], v["sql"], v["queries"], v["photos"], v["first"]
    pt, st, ours, theirs = python["times"], sql["times"], sql["memory"], python["memory"]
    import onnxruntime
    import PIL

    runtime, version = (re.search(rf"{name} ([\d.]+)", sql["version"])[1] for name in ("ONNX Runtime", "clip_search"))
    setup = table(["", ""], [
        ["model", v["model"] + (" (a stand-in, not CLIP)" if v["model"] == "photo-mini" else "")],
        ["machine", f"{processor()}, {os.cpu_count()} cores; one thread each way"],
        ["SQL", f"PostgreSQL {sql['server']}, clip_search {version}, ONNX Runtime {runtime}, "
                f"psycopg {psycopg.__version__}"],
        ["Python", f"{platform.python_version()}, onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}, "
                   f"scikit-learn {v['sklearn']}"],
    ])  # fmt: skip

    hidden = ", ".join(photo.title for photo in v["originals"] if not photo.free)
    note = (
        f"{hidden} take part and are not shown: they are from Debian's tuxpaint-stamps-default, under the GPL.\n"
        if hidden
        else ""
    )
    files = table(["title", "format", "size", "keywords"], [
        [title, form, f"{width} × {height}", ", ".join(photo.keywords)]
        for (title, form, width, height), photo in zip(sql["sizes"], photos)
    ])  # fmt: skip
    vectors = table(["", "least", "mean"], [
        [f"{len(photos)} photos", near(v["image_cosines"].min()), near(v["image_cosines"].mean())],
        [f"{len(queries)} queries", near(v["text_cosines"].min()), near(v["text_cosines"].mean())],
    ])  # fmt: skip

    def answers(found: list[tuple[str, float]], subject: str) -> str:
        named = ((f"**{title}**" if title == subject else title, cosine) for title, cosine in found[:3])
        return ", ".join(f"{title} {cosine:.3f}" for title, cosine in named)

    search = table(["query", "SQL", "Python", "same order"], [
        [words, answers(found, subject), answers(sorted(zip(v["titles"], row), key=lambda pair: -pair[1]), subject),
         "yes" if same else "**no**"]
        for (words, subject), found, row, same in zip(queries, sql["found"], v["scores"], v["orders"])
    ])  # fmt: skip
    groups = table(["group", "scikit-learn", "on insert"], [
        [", ".join(photos[n].title for n in sorted(members)),
         "the same" if members in v["theirs"] else "**another**",
         "the same" if members in v["on_insert"] else "another"]
        for members in sorted(v["ours"], key=min)
    ])  # fmt: skip
    payload = sql["groups"][0]
    payload = payload | {
        "representative_thumbnail": payload["representative_thumbnail"][:12] + "…",
        "cohesion": round(payload["cohesion"], 4), "lowest": round(payload["lowest"], 4),
        "assets": [asset | {"cosine": round(asset["cosine"], 4)} for asset in payload["assets"]],
    }  # fmt: skip
    latency = table(["", "SQL", "Python"], [
        ["model load, both towers", f"{short(st['load'])} ms", f"{short(pt['load'])} ms"],
        ["photo, single", f"{short(st['image'])} ms", f"{short(pt['image'])} ms"],
        [f"photo, in a batch of {first}", f"{short(st['batch'])} ms", f"{short(pt['batch'])} ms"],
        ["query", f"{short(st['text'])} ms", f"{short(pt['text'])} ms"],
        ["query, repeated", f"{st['again']:.2f} ms", f"{short(pt['text'])} ms"],
        ["photo, embedded, grouped and stored", f"{short(st['insert'])} ms", ""],
        ["memory before", f"{ours['before']:.0f} MB", f"{theirs['before']:.0f} MB"],
        ["memory at the peak", f"{ours['peak']:.0f} MB", f"{theirs['peak']:.0f} MB"],
    ])  # fmt: skip
    findings = "\n".join(f"- {finding}" for finding in write_findings(v))
    plan = "\n".join(sql["plan"])

    return f"""# CLIP in PostgreSQL: a feasibility study

Are CLIP embeddings on the CPU good enough for a media search? This study does everything twice: in Python on the model's
files, as a notebook would, and with clip_search in SQL. `make feasibility` wrote it ({time.strftime("%-d %B %Y")}); every
number and finding comes from that run.

{setup}

## Findings

{findings}

## The photos

{first} subjects, each also mirrored: {len(photos)} photos.

![The photos](gallery.webp)

{note}Authors and licences of the others: [LICENSES.md](../gallery/photos/LICENSES.md).

```sql
SELECT title, format, width, height FROM photo, clip_image_info(data);
```

{files}

## Embedding

```sql
INSERT INTO photo (id, title, subject, keywords, data, embedding, cluster_id)
SELECT $1, $2, $3, $4, $5, e, clip_assign_cluster(e, 'feasibility') FROM clip_embed_image($5) AS e;
```

Python uses Pillow's bicubic filter, the package tokenizers, and onnxruntime on the same files (`tests/reference.py`). The
cosines of the two sets of vectors are:

{vectors}

## Search by words

```sql
SELECT title, 1 - (embedding <=> clip_embed_text('red sports car')) AS cosine
FROM photo ORDER BY embedding <=> clip_embed_text('red sports car') LIMIT 3;
```

The right photo is bold. The last column says whether all {first} photos have the same order.

{search}

The plan, with an index on the embeddings:

```
{plan}
```

## Groups

`clip_recluster` and scikit-learn's `AgglomerativeClustering` group all photos at once, with average linkage at a cosine of
{THRESHOLD}. The last column shows the groups of `clip_assign_cluster`, which were made photo by photo.

![Groups, as inserted](groups.webp)

{groups}

A group for a user interface, from `clip_cluster_groups` (the thumbnail is shortened here):

```json
{json.dumps(payload, indent=2, ensure_ascii=False)}
```

## Latency and memory

The fastest of {ROUNDS} rounds, measured by the client, so the times of SQL include sending the file to the server. The load
time of Python includes its imports.

{latency}
"""


if __name__ == "__main__":
    sys.exit(main())
