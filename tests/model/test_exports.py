"""Exports written by the libraries' own code: each gets a verdict, and gives the vectors of the library's own pipeline.

tests/fixtures/exporters makes them, with towers of one layer and random weights that react to their input.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support

EXPORTS = support.FIXTURES / "exports"
# With random weights, colours have no meaning.
PATCHES = "quantized-patches"
COLOURS = (
    "it does not tell red, green and blue squares apart; a correctly exported CLIP does: "
    "compare the preprocessing above with the library's, or export it again"
)


def cases() -> dict[str, dict]:
    """Name of each model for users -> its expected results."""
    found = {}
    for file in sorted(EXPORTS.glob("*/expected*.json")):
        name, content = file.parent.name, json.loads(file.read_text(encoding="utf-8"))
        if "variant" in content:
            name = f"{name}:{content['variant']}"
        elif "pair" in content:
            name = f"{name}+{content['pair']}"
        elif "pair_of" in content:
            name = f"{content['pair_of']}+{name}"
        found[name] = content
    return found


CASES = cases()
ACCEPTED = [name for name, content in CASES.items() if "dimensions" in content]


@pytest.fixture(scope="module")
def folder(server_folder: support.ServerFolder) -> pathlib.Path:
    """A folder of the models that the server can read; one model consists of links to blobs, as in the hub's cache."""
    for source in sorted(path for path in EXPORTS.iterdir() if path.is_dir()):
        target = server_folder.add(source, f"exports/{source.name}")
        content = source / "expected.json"
        if not content.exists() or not json.loads(content.read_text(encoding="utf-8")).get("links"):
            continue
        blobs = target.parent / f"{source.name}.blobs"
        shutil.rmtree(blobs, ignore_errors=True)
        blobs.mkdir()
        blobs.chmod(0o755)
        for number, file in enumerate(sorted(path for path in target.rglob("*") if path.is_file())):
            blob = file.rename(blobs / f"{number:040x}")
            file.symlink_to(blob)
    return server_folder.path / "exports"


@pytest.fixture(scope="module")
def db(database: support.Database, folder: pathlib.Path) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        connection.execute("SELECT clip_version()")
        connection.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(folder),))
        connection.execute("SET client_min_messages = error")
        # The towers take 32 pixels: every photo would be decoded at a fraction of its size.
        connection.execute("SET clip_search.exact_jpeg = on")
        yield connection


def cosines(found: list[np.ndarray], wanted: list[dict], label: str) -> dict[str, float]:
    pairs = zip(found, wanted, strict=True)
    return {entry[label]: float(vector @ np.array(entry["embedding"], np.float32)) for vector, entry in pairs}


def test_no_export_is_missing() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_each_gets_a_verdict(db: psycopg.Connection, folder: pathlib.Path, name: str) -> None:
    expected = CASES[name]
    rows = db.execute("SELECT item, value FROM clip_check_model(%s)", (name,)).fetchall()
    found, verdict = dict(rows), rows[-1][1]
    assert rows[-1][0] == "verdict" and len(found) == len(rows)
    for words in expected.get("verdict", []):
        assert words in verdict
    if name not in ACCEPTED:
        assert "speed here" not in found
        return
    assert int(found["dimensions"]) == expected["dimensions"]
    assert "image tower:" not in verdict and "text tower:" not in verdict
    if "texts" not in expected or "images" not in expected:
        return
    # Only known problems are reported; a scale of 100 is never assumed silently.
    if "scale" in expected:
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", found["probabilities"])]
        wanted = [expected["scale"]] if expected["bias"] is None else [expected["scale"], -expected["bias"]]
        assert numbers[: len(wanted)] == pytest.approx(wanted, rel=2e-3)
        assert ", by " in found["probabilities"]
    else:
        assert "does not say its logit scale" in verdict and "assumed" in found["probabilities"]
    if "verdict" not in expected and "scale" in expected:
        assert verdict in ("good", COLOURS)


def test_a_graph_that_is_wrong_on_two_threads_runs_on_one(db: psycopg.Connection) -> None:
    """In ONNX Runtime's ConvInteger on two threads, 4 of this tower's 6,272 numbers are wrong; the lowest cosine is
    0.998."""
    files = [(support.FIXTURES / "images" / entry["image"]).read_bytes() for entry in CASES[PATCHES]["images"]]
    one, two = [], []
    try:
        for threads, vectors in ((1, one), (2, two)):
            db.execute(f"SET clip_search.threads = {threads}")
            vectors.extend(support.embed_one(db, "image", file, PATCHES) for file in files)
        assert np.array_equal(one, two)
        found = dict(db.execute("SELECT item, value FROM clip_check_model(%s)", (PATCHES,)).fetchall())
        assert "one in place of 2" in found["image threads"] and "ConvInteger" in found["image threads"]
    finally:
        db.execute("RESET clip_search.threads")


def test_the_speed_says_how_many_threads_ran(db: psycopg.Connection) -> None:
    speed = {}
    try:
        for threads in (1, 2):
            db.execute(f"SET clip_search.threads = {threads}")
            for name in ("xenova-clip", "xenova-clip:quantized"):
                rows = db.execute("SELECT item, value FROM clip_check_model(%s)", (name,)).fetchall()
                speed[name, threads] = re.sub(r"[\d.]+ ms", "N ms", dict(rows)["speed here"])
    finally:
        db.execute("RESET clip_search.threads")
    assert speed == {
        ("xenova-clip", 1): "image N ms, text N ms, on one thread",
        ("xenova-clip:quantized", 1): "image N ms, text N ms, on one thread",
        ("xenova-clip", 2): "image N ms, text N ms, on 2 threads",
        # The image tower uses ConvInteger, the text tower doesn't.
        ("xenova-clip:quantized", 2): "image N ms on one thread, text N ms on 2 threads",
    }


@pytest.mark.parametrize("name", ACCEPTED)
def test_vectors_are_the_librarys(db: psycopg.Connection, name: str) -> None:
    expected = CASES[name]
    if images := expected.get("images"):
        files = [(support.FIXTURES / "images" / entry["image"]).read_bytes() for entry in images]
        low = cosines(support.embed_many(db, "images", files, name), images, "image")
        assert {key: value for key, value in low.items() if value < expected["cosine"]} == {}
    if texts := expected.get("texts"):
        found = support.embed_many(db, "texts", [entry["text"] for entry in texts], name)
        low = cosines(found, texts, "text")
        assert {key: value for key, value in low.items() if value < expected["cosine"]} == {}
