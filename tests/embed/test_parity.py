"""SQL returns what Python computes from the same model files.

Python's side is `reference.py`: Pillow, the package tokenizers and onnxruntime. The models are a CLIP ViT-B/32 of
the true architecture with random weights (so that wrong pixels or ids show, see models/make_clip.py), its
miniatures, and the installed photo-mini.
"""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import psycopg
import pytest
from PIL import Image

import support
from reference import Reference, cosine
from support import FIXTURES, embed_many, embed_one, value

FULL = "clip-vit-base-patch32"
MASKED = "clip-mini-masked"
CLIP_CONTEXT = 77
PHOTO_MINI_CONTEXT = 128  # models/photo-mini/README.md

LOSSLESS = 0.99999
# Pillow has the same decoder, so JPEG pixels are equal bit for bit (tests/fixtures/README.md).
JPEG = LOSSLESS

INDEX = json.loads((FIXTURES / "pixels" / "index.json").read_text())
EXPECTED = json.loads((FIXTURES / "clip-mini" / "expected.json").read_text(encoding="utf-8"))
PHOTOS = support.ROOT / "examples" / "gallery" / "photos"

LONG = "a long description of a harbour with boats, " * 20
TEXTS = [
    "a cat",
    "x",
    "a photo of a red sports car in front of a house",
    LONG,
    "一只猫坐在窗边",
    "生活的真谛是",
    "a happy dog 🐶🎉 on the beach 🏖️",
    "👩‍👩‍👧‍👦",
    "it's 3.5% -- they'll say: \"no, don't!\" (42?)",
    "You should've done this",
    "  several   spaces\tand\nlines  ",
    "Crème brûlée, naïve façade",
    "Кошка на окне",
    "<|endoftext|> in the middle of a text",
    " ".join(["word"] * 74),
    " ".join(["word"] * 75),
    " ".join(["word"] * 76),
]


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def reencoded(photo: str, form: str, **options: object) -> bytes:
    """A gallery photo, converted to another file format without loss."""
    file = io.BytesIO()
    Image.open(PHOTOS / photo).convert("RGB").save(file, form, **options)
    return file.getvalue()


def images() -> dict[str, tuple[bytes, float]]:
    """Name -> (file, lowest accepted cosine): the fixtures, and photos of ordinary size in several formats."""
    found = {entry["input"]: (fixture(entry["input"]), LOSSLESS if entry["lossless"] else JPEG) for entry in INDEX}
    found["cat as PNG"] = (reencoded("cat.jpg", "PNG"), LOSSLESS)
    found["rocket as WebP"] = (reencoded("rocket.jpg", "WEBP", lossless=True), LOSSLESS)
    found["clock as BMP"] = (reencoded("clock.jpg", "BMP"), LOSSLESS)
    found["pagoda as TIFF"] = (reencoded("pagoda.jpg", "TIFF", compression="tiff_lzw"), LOSSLESS)
    for name in ("raccoon.jpg", "dahlia.jpg"):
        found[name] = ((PHOTOS / name).read_bytes(), JPEG)
    return found


IMAGES = images()
SOME_IMAGES = [IMAGES[name][0] for name in ("images/cat.png", "images/coffee.png", "cat as PNG", "clock as BMP")]


@pytest.fixture(scope="module")
def full(server_folder: support.ServerFolder) -> pathlib.Path:
    """ViT-B/32, 12 layers, 607 MB: made once, then linked or copied to a folder that the server can read."""
    return server_folder.add(support.make_clip(FULL))


@pytest.fixture(scope="module")
def masked(server_folder: support.ServerFolder) -> pathlib.Path:
    """A miniature whose text tower also asks for attention_mask, with integer sizes in its configuration."""
    return server_folder.add(
        support.make_clip(MASKED, "--miniature", "--seed", "6", "--attention-mask", "--integer-sizes")
    )


@pytest.fixture(scope="module")
def db(database: support.Database, full, masked, clip_mini, server_folder):
    """One connection that finds all of the models, so that each is loaded once."""
    with database.connect() as connection:
        connection.execute("SELECT clip_version()")
        connection.execute(f"SET clip_search.model_path = '$system:{server_folder.path}'")
        yield connection


@pytest.fixture(scope="module")
def references(db: psycopg.Connection, full, masked, clip_mini) -> dict[str, Reference]:
    photo_mini = pathlib.Path(value(db, "SELECT path FROM clip_models() WHERE name = 'photo-mini'"))
    return {
        FULL: Reference(full, CLIP_CONTEXT),
        MASKED: Reference(masked, CLIP_CONTEXT),
        "clip-mini": Reference(clip_mini, CLIP_CONTEXT),
        "photo-mini": Reference(photo_mini, PHOTO_MINI_CONTEXT),
    }


ALL = [FULL, MASKED, "clip-mini", "photo-mini"]


# ---------------------------------------------------------------- Python against SQL


def test_the_reference_makes_the_fixtures_pixels(references: dict[str, Reference]) -> None:
    """Without this check, the comparisons below would rely on a second implementation of CLIP's preprocessing."""
    for entry in INDEX:
        expected = np.asarray(Image.open(FIXTURES / entry["reference"]))
        assert np.array_equal(references[FULL].pixels(fixture(entry["input"])), expected), entry["input"]


@pytest.mark.parametrize("model", ALL)
def test_images_equal_python(db: psycopg.Connection, references: dict[str, Reference], model: str) -> None:
    """fastembed's CLIP vectors differed from Hugging Face's (qdrant/fastembed#357); these must not."""
    low, rows = {}, []
    for name, (file, limit) in IMAGES.items():
        row = embed_one(db, "image", file, model)
        rows.append(row)
        found = cosine(row, references[model].image(file))
        if found < limit:
            low[name] = f"{found:.7f} < {limit}"
    assert not low, low
    # If the model gave all images similar vectors, wrong pixels would pass too.
    first = [cosine(rows[0], row) for row in rows[5:]]
    assert min(first) < 0.9, first


@pytest.mark.parametrize("model", ALL)
def test_texts_equal_python(db: psycopg.Connection, references: dict[str, Reference], model: str) -> None:
    low, rows = {}, []
    for text in TEXTS:
        row = embed_one(db, "text", text, model)
        rows.append(row)
        found = cosine(row, references[model].text(text))
        if found < LOSSLESS:
            low[text] = f"{found:.7f}"
    assert not low, low
    assert min(cosine(rows[0], row) for row in rows[1:]) < 0.9


def test_the_miniature_returns_what_the_fixtures_expect(db: psycopg.Connection) -> None:
    """expected.json comes from other code than reference.py, with ids confirmed by OpenAI's tokenizer."""
    for item in EXPECTED["texts"]:
        assert cosine(embed_one(db, "text", item["text"], "clip-mini"), item["embedding"]) >= LOSSLESS, item["text"]
    for item in EXPECTED["images"]:
        limit = LOSSLESS if item["image"].endswith(".png") else JPEG
        found = cosine(embed_one(db, "image", fixture(item["image"]), "clip-mini"), item["embedding"])
        assert found >= limit, (item["image"], found)


def test_a_long_text_is_cut_with_its_end_token_kept(db: psycopg.Connection, references: dict[str, Reference]) -> None:
    """open_clip lost the end token on truncation and pooled the start token (mlfoundations/open_clip#1154).

    Words beyond the limit don't affect the vector, the last word before it does, and a warning reports the cut.
    """
    reference = references[FULL]
    assert reference.ids(LONG)[-1] == 49407 and len(reference.ids(LONG)) == CLIP_CONTEXT
    notices: list[str] = []
    handler = lambda diag: notices.append(diag.message_primary)
    db.add_notice_handler(handler)
    try:
        fits, over, other_end, other_tail = (
            embed_one(db, "text", text, FULL)
            for text in (
                " ".join(["word"] * 75),
                " ".join(["word"] * 75 + ["unread"] * 9),
                " ".join(["word"] * 74 + ["cat"] * 9),
                " ".join(["word"] * 75 + ["cat"] * 9),
            )
        )
    finally:
        db.remove_notice_handler(handler)
    assert notices == ["text is longer than the model's context of 77 tokens"] * 3
    assert np.abs(fits - over).max() < 1e-6 and np.abs(over - other_tail).max() < 1e-6
    assert cosine(fits, other_end) < 0.9999
    start_only = reference.tower("text").run(None, {"input_ids": np.array([[49406]], np.int64)})[0][0]
    assert cosine(over, start_only) < 0.9


# ---------------------------------------------------------------- forms of a call


@pytest.mark.parametrize("model", ALL)
def test_vectors_have_length_one(db: psycopg.Connection, model: str) -> None:
    """The graphs of CLIP exports don't normalise; cosine, inner product and L2 distance only agree if the extension
    does."""
    rows = [embed_one(db, "image", file, model) for file in SOME_IMAGES]
    rows += [embed_one(db, "text", text, model) for text in TEXTS]
    for row in rows:
        assert row.shape == (512,)
        assert abs(np.linalg.norm(row.astype(np.float64)) - 1) < 1e-6


@pytest.mark.parametrize("model", ALL)
def test_image_batches_equal_single_calls(db: psycopg.Connection, model: str) -> None:
    """Eleven images are more than one batch of 8; NULL stays NULL in its place (minimaxir/imgbeddings#3)."""
    files = [*SOME_IMAGES, None, *(file for file, _ in list(IMAGES.values())[3:9]), None, SOME_IMAGES[0]]
    batch = embed_many(db, "images", files, model)
    assert len(batch) == len(files)
    for file, row in zip(files, batch, strict=True):
        if file is None:
            assert row is None
        else:
            assert np.abs(row - embed_one(db, "image", file, model)).max() < 1e-4


@pytest.mark.parametrize("model", ALL)
def test_text_batches_equal_single_calls(database: support.Database, db, server_folder, model: str) -> None:
    """In another project, texts of unequal lengths got another text's vector in a batch (ml-explore/mlx-examples#787).

    The single calls use a new connection, which remembers no text of the batch.
    """
    texts = [TEXTS[0], None, *reversed(TEXTS), None, *(f"{n} cats" for n in range(40)), TEXTS[0]]
    with database.connect() as fresh:
        fresh.execute("SELECT clip_version()")
        fresh.execute(f"SET clip_search.model_path = '$system:{server_folder.path}'")
        batch = embed_many(fresh, "texts", texts, model)
    assert len(batch) == len(texts)
    for text, row in zip(texts, batch, strict=True):
        if text is None:
            assert row is None
        else:
            assert np.abs(row - embed_one(db, "text", text, model)).max() < 1e-4, text


def test_empty_and_null_arrays(db: psycopg.Connection) -> None:
    for what, kind in (("images", "bytea[]"), ("texts", "text[]")):
        assert value(db, f"SELECT cardinality(clip_embed_{what}('{{}}'::{kind}))") == 0
        assert value(db, f"SELECT clip_embed_{what}(NULL::{kind}) IS NULL")
        assert (
            value(db, f"SELECT array_to_string(clip_embed_{what}('{{NULL,NULL}}'::{kind}), ',', 'none')") == "none,none"
        )
    for call in ("clip_embed_image(NULL::bytea)", "clip_embed_text(NULL)", "clip_embed_text('a cat', NULL)"):
        assert value(db, f"SELECT {call} IS NULL"), call


@pytest.mark.parametrize("model", ALL)
def test_the_model_named_equals_the_model_set(database: support.Database, db, server_folder, model: str) -> None:
    """clip_embed_*(x, model) and clip_embed_*(x) under SET clip_search.model are equal, for all four functions.

    The session of the one-argument forms has computed nothing else, so a vector remembered under the wrong model
    would show.
    """
    other = next(name for name in ALL if name != model and name != FULL)
    texts, files = TEXTS[:3], SOME_IMAGES[:2]
    with database.connect() as fresh:
        fresh.execute("SELECT clip_version()")
        fresh.execute(f"SET clip_search.model_path = '$system:{server_folder.path}'")
        fresh.execute(f"SET clip_search.model = '{other}'")
        elsewhere = embed_one(fresh, "text", texts[0])
        fresh.execute(f"SET clip_search.model = '{model}'")
        pairs = [
            (embed_one(fresh, "text", texts[0]), embed_one(db, "text", texts[0], model)),
            (embed_one(fresh, "image", files[0]), embed_one(db, "image", files[0], model)),
            *zip(embed_many(fresh, "texts", texts), embed_many(db, "texts", texts, model), strict=True),
            *zip(embed_many(fresh, "images", files), embed_many(db, "images", files, model), strict=True),
        ]
    for set_, named in pairs:
        assert np.abs(set_ - named).max() < 1e-6
    assert cosine(pairs[0][0], elsewhere) < 0.9


def test_models_are_listed_with_what_was_done(db: psycopg.Connection, references: dict[str, Reference]) -> None:
    rows = db.execute("SELECT name, path, dimensions FROM clip_models()").fetchall()
    found = {name: (path, dimensions) for name, path, dimensions in rows}
    assert set(ALL) <= set(found)
    for model in ALL:
        assert found[model] == (str(references[model].directory), 512)


RELEASED = sorted((FIXTURES / "releases").glob("vectors-*.json"))


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_vectors_of_a_release_stay_as_they_are(database: support.Database, server_folder, file: pathlib.Path) -> None:
    """Users' tables store them. One case: pictures whose directions Pillow 13 resizes in another order."""
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["models"]
    with database.connect() as db:
        db.execute("SELECT clip_version()")
        for model, expected in content["models"].items():
            place = server_folder.add(FIXTURES / model)
            db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(place.parent),))
            for name, vector in expected["images"].items():
                found = embed_one(db, "image", fixture(name), place.name)
                assert np.abs(found - np.array(vector)).max() < 1e-5, (model, name)
            for text, vector in expected["texts"].items():
                found = embed_one(db, "text", text, place.name)
                assert np.abs(found - np.array(vector)).max() < 1e-5, (model, text)
