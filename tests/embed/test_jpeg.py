"""A large JPEG is decoded at a half, a quarter or an eighth of its size, unless clip_search.exact_jpeg is on;
clip-embed does the same.

Both are compared with Pillow, which has the same decoder: the whole picture where decoding is exact, otherwise the
result of Image.draft.
"""

from __future__ import annotations

import csv
import io
import pathlib
import subprocess

import numpy as np
import psycopg
import pytest
from PIL import Image

import support
from reference import Reference, cosine, unit
from support import embed_one, vector

PROGRAM = support.ROOT / "target" / "release" / "clip-embed"
# The smallest size that is decoded at a half: the shorter side is eight times the 224 pixels that the model takes.
WIDTH, HEIGHT, SHRINK = 2048, 1792, 2
# The least cosine, for lossless inputs and for JPEGs: their pixels equal Pillow's bit for bit.
SAME = 0.99999
# Graphs round differently with another batch size, and with mapped weights.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def photo() -> bytes:
    """A photo with the noise of a dark night, so that the results of the decodings differ."""
    small = Image.open(support.ROOT / "examples" / "gallery" / "photos" / "raccoon.jpg").convert("RGB")
    pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)).astype(np.int16)
    noise = np.random.default_rng(1).normal(0, 80, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, subsampling=2)
    return file.getvalue()


@pytest.fixture(scope="module")
def expected(photo: bytes) -> dict[str, np.ndarray]:
    """The embedding for each way to decode, by Pillow and onnxruntime."""
    reference = Reference(support.FIXTURES / "clip-mini", 77)
    draft = Image.open(io.BytesIO(photo))
    draft.draft(None, (WIDTH // SHRINK, HEIGHT // SHRINK))
    assert draft.size == (WIDTH // SHRINK, HEIGHT // SHRINK)
    lossless = io.BytesIO()
    draft.convert("RGB").save(lossless, "PNG")
    found = {"on": reference.image(photo), "off": reference.image(lossless.getvalue())}
    # Otherwise, the test couldn't tell one from the other.
    assert cosine(found["on"], found["off"]) < 0.9999
    return found


@pytest.fixture(scope="module")
def db(database: support.Database, clip_mini: pathlib.Path):
    with database.connect() as connection:
        connection.execute("SELECT clip_version()")
        connection.execute(f"SET clip_search.model_path = '$system:{clip_mini.parent}'")
        yield connection


@pytest.mark.parametrize("setting", ["on", "off"])
def test_sql_decodes_as_it_is_told(
    db: psycopg.Connection, photo: bytes, expected: dict[str, np.ndarray], setting: str
) -> None:
    db.execute(f"SET clip_search.exact_jpeg = {setting}")
    try:
        assert cosine(embed_one(db, "image", photo, "clip-mini"), expected[setting]) > SAME
        (many,) = support.embed_many(db, "images", [photo], "clip-mini")
        assert cosine(many, expected[setting]) > SAME
    finally:
        db.execute("RESET clip_search.exact_jpeg")


def test_it_is_off_unless_set(db: psycopg.Connection, photo: bytes, expected: dict[str, np.ndarray]) -> None:
    assert cosine(embed_one(db, "image", photo, "clip-mini"), expected["off"]) > SAME


@pytest.mark.parametrize("setting", ["on", "off"])
def test_clip_embed_decodes_as_it_is_told(
    db: psycopg.Connection,
    photo: bytes,
    expected: dict[str, np.ndarray],
    setting: str,
    clip_mini: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_bytes(photo)
    command = [
        PROGRAM,
        tmp_path / "photos",
        "-o",
        tmp_path / "out.csv",
        "-m",
        "clip-mini",
        "--model-path",
        clip_mini.parent,
    ]
    command += ["--exact-jpeg"] if setting == "on" else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    found = vector(row["embedding"])
    assert cosine(found, expected[setting]) > SAME
    db.execute(f"SET clip_search.exact_jpeg = {setting}")
    assert np.abs(unit(found) - embed_one(db, "image", photo, "clip-mini")).max() < ROUNDING
    db.execute("RESET clip_search.exact_jpeg")
