"""clip_classify against transformers' formulas, on embeddings that Python computes from the same files:
softmax(logit_scale · cosine) for CLIP, sigmoid(logit_scale · cosine + logit_bias) for SigLIP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from reference import Reference, unit
from support import FIXTURES, value

PHOTO_MINI = support.ROOT / "models" / "photo-mini"
LABELS = ["cat", "dog", "cup of coffee", "rocket", "house", "Zürich"]
TEMPLATES = ["a photo of a {}", "a bad photo of the {}.", "{}", "art of a {}, by a {}"]
LAYOUTS = FIXTURES / "layouts"


@pytest.fixture(scope="module")
def python() -> Reference:
    return Reference(PHOTO_MINI, 128)


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


def image(name: str) -> bytes:
    return (FIXTURES / "images" / name).read_bytes()


def rows(db: psycopg.Connection, subject: object, labels: list[str], *more: object, model: str | None = None) -> dict:
    """label -> probability; checks that the probabilities are in descending order."""
    kind = {bytes: "bytea", str: "vector"}[type(subject)]
    casts = "".join(", %s::text[]" if isinstance(argument, list) else ", %s::text" for argument in more)
    named = ", model => %s" if model else ""
    query = f"SELECT * FROM clip_classify(%s::{kind}, %s::text[]{casts}{named})"
    found = db.execute(query, (subject, labels, *more, *([model] if model else []))).fetchall()
    probabilities = [probability for _, probability in found]
    assert probabilities == sorted(probabilities, reverse=True)
    return dict(found)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def close(found: dict, labels: list[str], wanted: np.ndarray, tolerance: float) -> None:
    assert list(found) != [] and set(found) == set(labels)
    for label, probability in zip(labels, wanted, strict=True):
        assert math.isclose(found[label], probability, abs_tol=tolerance), f"{label}: {found[label]}, not {probability}"


@pytest.mark.parametrize("name", ["cat.png", "coffee.png"])
@pytest.mark.parametrize("templates", [["a photo of a {}"], TEMPLATES], ids=["one", "several"])
def test_softmax_of_scaled_cosines(db, python, name: str, templates: list[str]) -> None:
    picture = python.image(image(name))
    classes = []
    for label in LABELS:
        # CLIP's notebook of prompt ensembles does this: normalise, average, normalise.
        prompts = [unit(python.text(template.replace("{}", label))) for template in templates]
        classes.append(unit(np.mean(prompts, axis=0)))
    scale = math.exp(json.loads((PHOTO_MINI / "config.json").read_text())["logit_scale"])
    wanted = softmax(scale * np.stack(classes) @ unit(picture))
    # Two versions of onnxruntime have other int8 kernels, and the decoders differ: embeddings agree to 0.99999.
    argument = templates[0] if len(templates) == 1 else templates
    close(rows(db, image(name), LABELS, argument), LABELS, wanted, 2e-3)
    # From the stored vector, the result is equal to the digits of float4.
    vector = value(db, "SELECT clip_embed_image(%s)::text", image(name))
    stored = rows(db, vector, LABELS, argument)
    close(stored, LABELS, np.array([rows(db, image(name), LABELS, argument)[label] for label in LABELS]), 1e-6)


def test_the_default_template_is_a_photo_of_a(db) -> None:
    assert rows(db, image("cat.png"), LABELS) == rows(db, image("cat.png"), LABELS, "a photo of a {}")


@pytest.fixture
def layouts(db, server_folder: support.ServerFolder) -> psycopg.Connection:
    db.execute("SELECT clip_version()")
    db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(server_folder.path),))
    return db


@pytest.mark.parametrize("name", ["siglip-whole", "optimum-combined"])
def test_scale_and_bias_of_the_graph(layouts, server_folder, name: str) -> None:
    """Compares with the graph's own logits, through the softmax or the sigmoid in Python
    (tests/fixtures/layouts.py)."""
    server_folder.add(LAYOUTS / name, f"classify-{name}")
    expected = json.loads((LAYOUTS / name / "expected.json").read_text())
    texts = [entry["text"] for entry in expected["texts"]]
    for entry, wanted in zip(expected["images"], expected["probabilities"], strict=True):
        data = (FIXTURES / entry["image"]).read_bytes()
        close(rows(layouts, data, texts, "{}", model=f"classify-{name}"), texts, np.array(wanted), 2e-5)
        sum_of_all = sum(wanted)
        assert (abs(sum_of_all - 1) < 1e-5) == (name != "siglip-whole"), "a sigmoid's need not add up"


@pytest.mark.parametrize("bias", [None, -3.5])
def test_scale_and_bias_of_the_configuration(layouts, server_folder, bias: float | None) -> None:
    """Computes cosines with pgvector; 30 is e to the power of 3.4012."""
    name = f"stated-{'softmax' if bias is None else 'sigmoid'}"
    target = server_folder.add(LAYOUTS / "xenova-split", name, copy=True)
    settings = json.loads((target / "config.json").read_text())
    stated = {"logit_scale": math.log(30)} | ({} if bias is None else {"logit_bias": bias})
    (target / "config.json").write_text(json.dumps(settings | stated))
    vector = value(layouts, "SELECT clip_embed_image(%s, %s)::text", image("cat.png"), name)
    query = "SELECT array_agg(1 - (%s::vector <=> clip_embed_text(t, %s)) ORDER BY n) FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n)"
    cosines = np.array(value(layouts, query, vector, name, LABELS))
    wanted = softmax(30 * cosines) if bias is None else 1 / (1 + np.exp(-(30 * cosines + bias)))
    close(rows(layouts, vector, LABELS, "{}", model=name), LABELS, wanted, 1e-6)
    checked = dict(layouts.execute("SELECT item, value FROM clip_check_model(%s)", (name,)).fetchall())
    assert checked["probabilities"].startswith(
        "softmax of 30.0000" if bias is None else "sigmoid of 30.0000 × cosine - 3.5"
    )


def test_clip_has_a_scale_of_100_and_siglip_a_warning(layouts, server_folder) -> None:
    for name in ("xenova-split", "siglip"):
        server_folder.add(LAYOUTS / name, f"silent-{name}")
    notices: list[str] = []
    layouts.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary or ""))
    for name, warns in (("silent-xenova-split", 0), ("silent-siglip", 1)):
        notices.clear()
        vector = value(layouts, "SELECT clip_embed_image(%s, %s)::text", image("cat.png"), name)
        query = "SELECT array_agg(1 - (%s::vector <=> clip_embed_text(t, %s)) ORDER BY n) FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n)"
        cosines = np.array(value(layouts, query, vector, name, LABELS))
        close(rows(layouts, vector, LABELS, "{}", model=name), LABELS, softmax(100 * cosines), 1e-5)
        rows(layouts, vector, LABELS, "{}", model=name)
        assert len([text for text in notices if "logit scale" in text]) == warns, notices


def test_vectors_of_another_model_are_refused(layouts, server_folder) -> None:
    """The other model's vectors have the same length and were embedded in this session."""
    for name in ("one", "other"):
        server_folder.add(LAYOUTS / "xenova-split", f"mixed-{name}")
    query = "SELECT count(*) FROM clip_classify(clip_embed_image(%s, 'mixed-one'), '{cat}', model => 'mixed-other')"
    state, text = support.raised_error(layouts, query, image("cat.png"))
    assert state == "22000" and "mixed-one" in text and "mixed-other" in text
    assert value(layouts, query.replace("mixed-other", "mixed-one"), image("cat.png")) == 1


def test_labels_are_embedded_once(db) -> None:
    """More labels than the memo of texts holds, by three templates, over several rows."""
    labels = [f"thing number {n}" for n in range(300)]
    embedded = "SELECT texts FROM clip_models() WHERE name = 'photo-mini'"
    templates = ["a {}", "the {}", "{}"]
    value(db, "SELECT clip_embed_text('kept')")
    before = value(db, embedded)
    rows(db, image("cat.png"), labels, templates)
    first = value(db, embedded)
    assert first - before == 900
    vector = value(db, "SELECT clip_embed_image(%s)::text", image("coffee.png"))
    query = "SELECT count(*) FROM generate_series(1, 50), clip_classify(%s::vector, %s::text[], %s::text[])"
    assert value(db, query, vector, labels, templates) == 50 * 300
    value(db, "SELECT clip_embed_text('kept')")
    assert value(db, embedded) == first, "a row embedded labels again, or they pushed a query out of the memo"


def test_a_label_that_is_cut_warns_each_time(db) -> None:
    notices: list[str] = []
    db.add_notice_handler(lambda d: notices.append(f"{d.message_primary} {d.message_detail}"))
    labels = ["cat", "word " * 200]
    for _ in range(2):
        notices.clear()
        rows(db, image("cat.png"), labels, ["{}", "a {}"])
        cut = [text for text in notices if "longer than the model's context" in text]
        assert len(cut) == 2 and all("element 2" in text for text in cut), notices
