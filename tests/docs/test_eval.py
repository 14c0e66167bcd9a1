"""`make eval` counts what numpy counts, on the gallery's photos laid out as its package lays out pictures."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import uuid
import xml.dom.minidom

import numpy as np
import pytest
from PIL import Image
from psycopg import sql

import support
from support import value, vector

# Of these names the eval would take the mirrored ones for mirrored stamps.
PHOTOS = [
    path
    for path in sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
    if "mirror" not in path.name
]
EVALUATE = support.ROOT / "benches" / "eval" / "evaluate.py"


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Each photo as a PNG of its own and, a little cropped, once more, with a label, in folders of two levels."""
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


def average_linkage(similarity: np.ndarray, threshold: float) -> list[list[int]]:
    """The two groups with the greatest mean cosine are merged as long as that is at least the threshold."""
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


def test_figures_are_those_of_numpy(stamps: pathlib.Path, tmp_path: pathlib.Path) -> None:
    database = f"clip_test_{uuid.uuid4().hex[:12]}"
    command = [sys.executable, EVALUATE, "--stamps", stamps, "--out", tmp_path, "--database", database]
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
    finally:
        with support.connect("postgres") as db:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
    result = json.loads((tmp_path / "photo-mini.json").read_text())
    assert result["pictures"] == len(rows) == 2 * len(PHOTOS)
    assert not [
        row[0]
        for row in rows
        if row[0].startswith("symbols") or pathlib.Path(row[0]).stem in ("mirror", "tiny", "clear")
    ]

    images, texts = (np.stack([vector(row[n]) for row in rows]).astype(np.float64) for n in (3, 4))
    folders = [row[1] for row in rows]
    scores = texts @ images.T
    # A label that two pictures share can't put both first, and equal vectors tie: by a hair, as in SQL.
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
