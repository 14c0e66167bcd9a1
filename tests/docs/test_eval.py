"""`make eval` computes the same figures as numpy, on the gallery's photos arranged like its package's pictures."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
import struct
import subprocess
import sys
import uuid
import xml.dom.minidom
import zlib

import numpy as np
import psycopg
import pytest
from PIL import Image
from psycopg import sql

import support
from support import value, vector

# With these names, the eval would take the mirrored photos for mirrored stamps.
PHOTOS = [
    path
    for path in sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
    if "mirror" not in path.name
]
EVALUATE = support.ROOT / "benches" / "eval" / "evaluate.py"


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Each photo as a PNG, and once more slightly cropped, with a label, in folders of two levels."""
    root = tmp_path_factory.mktemp("stamps")
    for number, photo in enumerate(PHOTOS):
        folder = root / ("odd" if number % 2 else "even") / f"kind_{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.open(photo).convert("RGB")
        image.thumbnail((240, 240))
        for name, picture in ((photo.stem, image), (f"{photo.stem}2", image.crop((8, 8, *image.size)))):
            picture.save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"A {photo.stem.replace('_', ' ')}.\nfr.utf8=…\n")
    for name, size in (("symbols/x.png", (100, 100)), ("odd/mirror.png", (100, 100)), ("odd/tiny.png", (79, 100))):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(root / name)
        (root / name).with_suffix(".txt").write_text("A label.\n")
    Image.new("RGBA", (100, 100), (0, 0, 0, 0)).save(root / "odd" / "clear.png")
    (root / "odd" / "clear.txt").write_text("A label.\n")
    Image.new("RGB", (100, 100)).save(root / "odd" / "unlabelled.png")
    return root


def resource(files: dict[str, bytes]) -> bytes:
    """A compiled Qt resource file, version 2: every other file is compressed."""
    root: dict = {}
    for path, data in files.items():
        *folders, name = path.split("/")
        within = root
        for folder in folders:
            within = within.setdefault(folder, {})
        within[name] = data
    nodes, names, contents = [("", root)], b"", b""
    tree = b""
    for number, (name, item) in enumerate(nodes):  # the loop extends the list
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(item, dict):
            tree += struct.pack(">IHIIQ", at, 2, len(item), len(nodes), 0)
            nodes += item.items()
        else:
            packed = struct.pack(">I", len(item)) + zlib.compress(item) if number % 2 else item
            tree += struct.pack(">IHHHIQ", at, number % 2, 0, 0, len(contents), 0)
            contents += struct.pack(">I", len(packed)) + packed
    header = 20
    places = header, header + len(tree), header + len(tree) + len(contents)
    return b"qres" + struct.pack(">4I", 2, *places) + tree + contents + names


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The gallery's photos, under names that the queries of queries-fresh.csv match."""
    root = tmp_path_factory.mktemp("rcc")
    renamed = {
        "categorization/resource/images/tools": {"hammer1": "more/hammer-1", "hammer2": "more/hammer-2"},
        "categorization/resource/images/renewable": {"solar5": "more/solar-panels-1"},
        "categorization/resource/images/others": {"buffetset": "espresso"},
        "explore_farm_animals/resource/animals": {"cat": "cat"},
        "explore_monuments/resource/india": {"tajMahal": "pagoda"},
    }
    made: dict[str, dict[str, bytes]] = {
        name: {}
        for name in ("categorization", "explore_monuments", "explore_farm_animals", "explore_world_animals", "erase")
    }
    for folder, photos in renamed.items():
        for name, photo in photos.items():
            out = io.BytesIO()
            Image.open(PHOTOS[0].parent / f"{photo}.jpg").convert("RGB").save(out, "WEBP")
            made[folder.split("/")[0]][f"gcompris/src/activities/{folder}/{name}.webp"] = out.getvalue()
    made["categorization"]["gcompris/src/activities/categorization/other.webp"] = b"a file of another folder"
    for name, files in made.items():
        (root / f"{name}.rcc").write_bytes(resource(files))
    return root


def average_linkage(similarity: np.ndarray, threshold: float) -> list[list[int]]:
    """Merges the two groups with the greatest mean cosine as long as it is at least the threshold."""
    groups = [[index] for index in range(len(similarity))]
    while len(groups) > 1:
        means = {
            (a, b): similarity[np.ix_(groups[a], groups[b])].mean()
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        }
        a, b = max(means, key=means.get)
        if means[a, b] < threshold:
            break
        groups[a] += groups.pop(b)
    return groups


def fresh_figures(db: psycopg.Connection) -> dict:
    """Figures of the second collection's photos: F1 of the queries that have answers among them, and the share of
    the other queries without a result."""
    with (EVALUATE.parent / "queries-fresh.csv").open(encoding="utf-8", newline="") as file:
        asked = [(row["query"], row["truth"]) for row in csv.DictReader(file)]
    names = [name for (name,) in db.execute("SELECT name FROM picture WHERE kind = 'gcompris' ORDER BY id")]
    assert len(names) == 6
    query = "SELECT array_agg(clip_relevance(embedding, %s) >= 0.5 ORDER BY id) FROM picture WHERE kind = 'gcompris'"
    scores, empty = [], []
    for text, truth in asked:
        shown = np.array(value(db, query, text))
        answers = np.array([bool(truth and re.search(truth, name)) for name in names])
        if answers.any():
            scores.append(2 * (shown & answers).sum() / (shown.sum() + answers.sum()))
        elif not truth:
            empty.append(not shown.any())
    return {"queries": len(scores), "f1": np.mean(scores), "without": len(empty), "empty": np.mean(empty)}


def test_figures_are_those_of_numpy(stamps: pathlib.Path, photographs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    database = f"clip_test_{uuid.uuid4().hex[:12]}"
    command = [sys.executable, EVALUATE, "--stamps", stamps, "--gcompris", photographs]
    command += ["--out", tmp_path, "--database", database]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with support.connect(database) as db:
            query = "SELECT name, folder, category, embedding::text, caption::text FROM stamp ORDER BY id"
            rows = db.execute(query).fetchall()
            names = sorted({row[1].rpartition("/")[2].replace("_", " ") for row in rows})
            templates = [f"a photo of a {name}" for name in names]
            labels = np.stack([support.embed_one(db, "text", text) for text in templates])
            assert value(db, "SELECT count(*) FROM clip_search.collection") == 0
            fresh = fresh_figures(db)
    finally:
        with support.connect("postgres") as db:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
    result = json.loads((tmp_path / "photo-mini.json").read_text())
    assert result["pictures"] == len(rows) == 2 * len(PHOTOS)
    assert result["relevance"]["fresh"]["at_cut"] == pytest.approx(fresh)
    assert fresh["f1"] > 0 and fresh["empty"] > 0
    assert "relevance from 0.5 on, gcompris" in done.stdout and "curve: relevance from 0.3 on, mean" in done.stdout
    assert not [
        row[0]
        for row in rows
        if row[0].startswith("symbols") or pathlib.Path(row[0]).stem in ("mirror", "tiny", "clear")
    ]

    images, texts = (np.stack([vector(row[n]) for row in rows]).astype(np.float64) for n in (3, 4))
    folders = [row[1] for row in rows]
    scores = texts @ images.T
    # Two pictures with the same label can't both be first, and equal vectors tie: so a rank needs a small margin, as in
    # SQL.
    ranks = (scores > scores.diagonal()[:, None] + 1e-7).sum(1)
    for k in (1, 5, 10):
        assert abs(result["retrieval"][f"recall_at_{k}"] - (ranks < k).mean()) <= 1.01 / len(rows)

    likeness = images @ images.T
    others = likeness - 2 * np.eye(len(rows))
    right = sum(folders[i] == folders[j] for i, j in enumerate(others.argmax(1)))
    assert abs(result["neighbours"]["folder"]["right"] - right) <= 1
    assert result["neighbours"]["folder"]["of"] == len(rows)

    best = [names[index] for index in (images @ labels.T).argmax(1)]
    right = sum(name == folder.rpartition("/")[2].replace("_", " ") for name, folder in zip(best, folders, strict=True))
    entry = next(e for e in result["zero_shot"] if e["names"] == "folder" and e["templates"] == '"a photo of a {}"')
    assert (entry["right"], entry["of"], entry["labels"]) == (right, len(rows), len(names))

    for entry in result["groups"]:
        if entry["threshold"] in (0.70, 0.82, 0.95):
            groups = [group for group in average_linkage(likeness, entry["threshold"]) if len(group) > 1]
            pairs = [(a, b) for group in groups for a in group for b in group if a < b]
            right = sum(folders[a] == folders[b] for a, b in pairs)
            found = (entry["groups"], entry["pictures"], entry["right"], entry["pairs"])
            assert found == (len(groups), sum(map(len, groups)), right, len(pairs)), entry

    for entry in result["hnsw"]:
        assert entry["of"] == 20 * len(rows) and entry["right"] > 0.9 * entry["of"]
    assert "text to picture" in done.stdout and "HNSW recall@10, ef_search 40" in done.stdout
    plot = xml.dom.minidom.parse(str(tmp_path / "photo-mini.svg")).documentElement
    assert plot.tagName == "svg" and len(plot.getElementsByTagName("rect")) == 8
