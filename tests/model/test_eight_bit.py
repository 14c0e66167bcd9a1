"""Eight-bit forms made by the extension itself, of a model with some channels a hundred times as strong as the
others."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import psycopg
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import support
from support import embed_one, value

PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))[:12]
TEXTS = ("a cat", "two boats on a lake at sunset", "an invoice", "a child's drawing of a house with a red roof")
STRONG = 100


def make_uneven(directory: pathlib.Path) -> None:
    """As in trained towers, two channels of each layer norm are a hundred times as strong, and the weights that read
    them weaker."""
    for path in (directory / "onnx").glob("*_model.onnx"):
        model = onnx.load(path)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        random = np.random.default_rng(3)
        for name in [name for name in weights if ".layer_norm" in name and name.endswith(".weight")]:
            channels = random.choice(numpy_helper.to_array(weights[name]).shape[0], 2, replace=False)
            layer, norm = name.rsplit(".layer_norm", 1)
            readers = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] if norm[0] == "1" else ["mlp.fc1"]
            for changed, factor in [(name, STRONG), *((f"{layer}.{reader}.weight", 3 / STRONG) for reader in readers)]:
                values = numpy_helper.to_array(weights[changed]).copy()
                values[channels] *= factor
                weights[changed].CopyFrom(numpy_helper.from_array(values, changed))
        onnx.save(model, path)


@pytest.fixture(scope="module")
def uneven() -> Iterator[pathlib.Path]:
    folder = support.ServerFolder()
    make_uneven(folder.add(support.make_clip("two-layers", "--layers", "2"), "uneven", copy=True))
    yield folder.path / "uneven"
    folder.remove()


@pytest.fixture
def db(uneven: pathlib.Path) -> Iterator[psycopg.Connection]:
    database = support.Database()
    try:
        with database.connect() as connection:
            connection.execute("LOAD 'clip_search'")
            connection.execute(f"SET clip_search.model_path = '$system:{uneven.parent}'")
            connection.execute("SET clip_search.model = 'uneven'")
            yield connection
    finally:
        database.drop()


def vectors(db: psycopg.Connection) -> list[np.ndarray]:
    return [embed_one(db, "image", photo.read_bytes()) for photo in PHOTOS] + [
        embed_one(db, "text", text) for text in TEXTS
    ]


def cosines(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return np.array([float(x @ y) for x, y in zip(a, b, strict=True)])


def test_vectors_are_near_float32(db: psycopg.Connection) -> None:
    exact = vectors(db)
    db.execute("SET clip_search.precision = int8")
    found = cosines(vectors(db), exact)
    assert found.min() >= 0.9995 and found.mean() >= 0.9998, found
    assert found.min() < 0.9999999, "it is float32 after all"


def test_the_strong_channels_matter(uneven: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Without balancing, these channels would ruin the vectors: this shows that the test above is hard."""
    source = uneven / "onnx" / "vision_model.onnx"
    plain = tmp_path / "plain.onnx"
    quantize_dynamic(source, plain, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    found = []
    for path in (source, plain):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        row = session.run(None, {"pixel_values": pixels})[0][0]
        found.append(row / np.linalg.norm(row))
    assert float(found[0] @ found[1]) < 0.99


def test_it_is_a_variant_that_can_be_named(db: psycopg.Connection) -> None:
    rows = dict(db.execute("SELECT * FROM clip_check_model('uneven:auto-int8')").fetchall())
    assert "matrix products int8" in rows["image precision"] and "cosine to float32" in rows["text precision"]
    assert rows["images run"].startswith("singly")
    named = embed_one(db, "text", TEXTS[0], "uneven:auto-int8")
    db.execute("SET clip_search.precision = int8")
    assert np.array_equal(named, embed_one(db, "text", TEXTS[0]))
    assert np.array_equal(
        embed_one(db, "text", TEXTS[0], "uneven"),
        embed_one(db, "text", TEXTS[0], "uneven"),
    ), "a model that is named keeps its precision"
    assert not np.array_equal(named, embed_one(db, "text", TEXTS[0], "uneven"))


def test_it_is_made_once(db: psycopg.Connection) -> None:
    db.execute("SET clip_search.precision = int8; SET client_min_messages = notice")
    first = embed_one(db, "text", TEXTS[1])
    directory = value(db, "SELECT current_setting('data_directory') || '/pgsql_tmp.clip_search'")
    recipes = (
        "SELECT count(*) FROM pg_ls_dir(%s) AS d WHERE d ~ '^[0-9a-f]+(-[0-9a-f]+){2}$'"
        " AND (pg_stat_file(%s || '/' || d || '/recipe', true)).size IS NOT NULL"
    )
    before = value(db, recipes, directory, directory)
    with support.connect(db.info.dbname) as other:
        other.execute("LOAD 'clip_search'")
        other.execute(f"SET clip_search.model_path = '{value(db, 'SHOW clip_search.model_path')}'")
        assert np.array_equal(first, embed_one(other, "text", TEXTS[1], "uneven:auto-int8"))
    assert value(db, recipes, directory, directory) == before >= 1


def test_a_notice_comes_before_it_is_made(db: psycopg.Connection, uneven: pathlib.Path) -> None:
    shutil.copytree(uneven, uneven.parent / "announced")
    said: list[list[str]] = []
    for _ in range(2):
        with support.connect(db.info.dbname) as other:
            other.execute("LOAD 'clip_search'")
            other.execute(f"SET clip_search.model_path = '{value(db, 'SHOW clip_search.model_path')}'")
            found: list[str] = []
            other.add_notice_handler(
                lambda notice, found=found: found.append(f"{notice.message_primary} {notice.message_detail}")
            )
            embed_one(other, "text", TEXTS[0], "announced:auto-int8")
            said.append(found)
    assert len(said[0]) == 1 and said[1] == [], said
    assert "text_model.onnx" in said[0][0] and "done once" in said[0][0] and "clip_search.cache_path" in said[0][0]


def test_a_watch_records_the_precision(db: psycopg.Connection) -> None:
    db.execute("SET clip_search.precision = int8")
    db.execute("CREATE TABLE note (id bigint PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', index => false)")
    assert value(db, "SELECT model FROM clip_search.watch") == "uneven:auto-int8"
    db.execute("SET clip_search.precision = float32")
    db.execute("INSERT INTO note VALUES (1, %s)", [TEXTS[2]])
    stored = support.vector(value(db, "SELECT embedding::text FROM note"))
    assert np.allclose(stored, embed_one(db, "text", TEXTS[2], "uneven:auto-int8"), atol=1e-6)


def test_a_tower_without_an_eight_bit_form_runs_in_float32(db: psycopg.Connection) -> None:
    """photo-mini's image tower consists of convolutions; a message says so once per connection."""
    notices: list[tuple[str, str | None]] = []
    db.add_notice_handler(lambda notice: notices.append((notice.message_primary, notice.message_detail)))
    exact = embed_one(db, "image", PHOTOS[0].read_bytes(), "photo-mini")
    for _ in range(2):
        found = embed_one(db, "image", PHOTOS[0].read_bytes(), "photo-mini:auto-int8")
        assert np.allclose(found, exact, atol=1e-6)
    told = [message for message, _ in notices if not message.startswith("making the eight-bit form")]
    assert len(told) == 1 and told[0].endswith("has no eight-bit form and runs in float32"), notices


def test_without_a_cache_it_runs_in_float32(db: psycopg.Connection) -> None:
    hints: list[str | None] = []
    db.add_notice_handler(lambda notice: hints.append(notice.message_hint))
    db.execute("SET clip_search.cache_path = ''")
    embed_one(db, "text", TEXTS[3], "uneven:auto-int8")
    assert "Set clip_search.cache_path to a directory." in hints
