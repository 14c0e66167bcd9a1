"""clip_check_model never fails: every layout that the libraries export, and every broken one, gets rows and a
verdict; clip-embed check prints the same.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

import support

LAYOUTS = support.FIXTURES / "layouts"
NAMES = sorted(path.name for path in LAYOUTS.iterdir() if path.is_dir())
PROGRAM = support.ROOT / "target" / "release" / "clip-embed"
# Rows whose values are measurements.
MEASURED = ("speed here", "red, green, blue: texts by images")


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


def check(db: psycopg.Connection, model: object) -> dict[str, str]:
    rows = db.execute("SELECT item, value FROM clip_check_model(%s)", (str(model),)).fetchall()
    assert rows[-1][0] == "verdict" and all(item and value for item, value in rows), rows
    assert len({item for item, _ in rows}) == len(rows), "an item a row"
    return dict(rows)


def altered(server_folder: support.ServerFolder, layout: str, name: str, **files: object) -> pathlib.Path:
    """A copy of a layout with changed files: a dictionary is merged into the JSON file, None removes the file."""
    target = server_folder.add(LAYOUTS / layout, name, copy=True)
    for file, content in files.items():
        path = target / file.replace("__", "/").replace("_json", ".json")
        if content is None:
            path.unlink()
        else:
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | content))
            path.chmod(0o644)
    return target


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_gets_a_verdict(db, server_folder, pg_program, name: str) -> None:
    place = server_folder.add(LAYOUTS / name, f"check-{name}")
    found = check(db, place)
    expected = place / "expected.json"
    broken = expected.exists() and "error" in json.loads(expected.read_text())
    if broken:
        assert found["verdict"] != "good"
        for word in json.loads(expected.read_text())["error"]["contains"]:
            assert word in found["verdict"]
    else:
        assert "tower:" not in found["verdict"] or "alone" in found["verdict"], found["verdict"]
        assert int(found["dimensions"]) == 12
    done = subprocess.run(
        [PROGRAM, "check", place, "--pg-config", pg_program("pg_config")], capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if found["verdict"] == "good" else 3), done.stderr
    printed = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    printed = {item.strip(): value.strip() for item, value in printed.items()}
    assert set(printed) == set(found)
    assert {k: v for k, v in printed.items() if k not in MEASURED} == {
        k: v for k, v in found.items() if k not in MEASURED
    }


def test_what_is_guessed_is_said(db, server_folder) -> None:
    stated = {"vision_config": {"image_size": 32}}
    guess = altered(server_folder, "siglip", "check-guess", preprocessor_config_json=None, config_json=stated)
    found = check(db, guess)
    assert found["preprocessing"].startswith("squashed to 32×32, bicubic, mean [0.5, 0.5, 0.5]")
    assert found["preprocessing"].endswith(", a guess")
    assert "SigLIP's preprocessing is used" in found["verdict"] and "logit scale and bias" in found["verdict"]
    # No guess is made where it would be wrong for the model family.
    chinese = altered(
        server_folder,
        "xenova-split",
        "check-chinese",
        preprocessor_config_json=None,
        config_json={"model_type": "chinese_clip"},
    )
    assert 'Models of type "chinese_clip" are not prepared as CLIP\'s are' in check(db, chinese)["verdict"]
    context = altered(
        server_folder,
        "xenova-split",
        "check-context",
        tokenizer_config_json=None,
        config_json={"model_type": "something"},
    )
    found = check(db, context)
    assert found["tokens"].startswith("at most 77 a guess") and "does not say its context length" in found["verdict"]


def test_a_guess_is_one_warning_a_connection(db, server_folder) -> None:
    altered(server_folder, "flat-int64", "check-warned", preprocessor_config_json=None)
    db.execute("SELECT clip_version()")
    db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(server_folder.path),))
    notices: list[str] = []
    db.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary or ""))
    image = (support.FIXTURES / "images" / "cat.png").read_bytes()
    for _ in range(3):
        support.embed_one(db, "image", image, "check-warned")
    assert [text for text in notices if "preprocessor_config.json" in text] == [
        'model "check-warned" has no preprocessor_config.json'
    ]


def test_what_is_missing_is_said_with_the_way_out(db, server_folder) -> None:
    assert "does not exist" in check(db, "no-such-model")["verdict"]
    odd = server_folder.add(LAYOUTS / "xenova-split", "check-odd", copy=True)
    for tower in ("vision", "text"):
        for path in (odd / "onnx").glob(f"{tower}_model*.onnx"):
            path.rename(path.with_name(path.name.replace(f"{tower}_model", f"my_{tower}")))
    verdict = check(db, odd)["verdict"]
    assert "onnx/my_text.onnx, onnx/my_text_fp16.onnx" in verdict and "Rename the image tower" in verdict
    shutil.rmtree(odd)
    pieces = server_folder.add(LAYOUTS / "siglip", "check-pieces", copy=True)
    (pieces / "tokenizer.json").rename(pieces / "sentencepiece.bpe.model")
    verdict = check(db, pieces)["verdict"]
    assert "has no tokenizer.json" in verdict and "AutoTokenizer.from_pretrained" in verdict


def test_clips_own_two_files_are_a_tokenizer(db, server_folder, clip_mini) -> None:
    """The ids equal those of the tokenizer.json that transformers makes of the two files."""
    two = server_folder.add(support.FIXTURES / "clip-mini", "check-two-files", copy=True)
    content = json.loads((two / "tokenizer.json").read_text())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (two / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (two / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for name in ("vocab.json", "merges.txt"):
        (two / name).chmod(0o644)
    (two / "tokenizer.json").unlink()
    db.execute("SELECT clip_version()")
    db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(server_folder.path),))
    for text in ("a photo of a cat", "Ünder  the SEA, 2 dogs' don't", "猫 😀", "a <|endoftext|> b"):
        whole, parts = (support.embed_one(db, "text", text, name) for name in ("clip-mini", "check-two-files"))
        assert (whole == parts).all(), text


def test_a_quantized_image_does_not_depend_on_its_neighbours(db, server_folder) -> None:
    server_folder.add(LAYOUTS / "xenova-split", "check-alone")
    db.execute("SELECT clip_version()")
    db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(server_folder.path),))
    files = [(support.FIXTURES / "images" / name).read_bytes() for name in ("cat.png", "coffee.png")]
    model = "check-alone:quantized"
    together = support.embed_many(db, "images", files * 4, model)
    for file, vector in zip(files * 4, together, strict=True):
        assert (support.embed_one(db, "image", file, model) == vector).all()
    texts = ["a cat", "a dog", "the sea", "red car"]
    db.execute("SET clip_search.memo_texts = 0")
    for text, vector in zip(texts, support.embed_many(db, "texts", texts, model), strict=True):
        assert (support.embed_one(db, "text", text, model) == vector).all()
    assert "singly" in check(db, server_folder.path / "check-alone:quantized")["images run"]
