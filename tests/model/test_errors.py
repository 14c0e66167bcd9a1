"""Missing files, broken files and files of another kind: the right SQLSTATE, and the connection stays usable.

Every test has a connection of its own, since a process loads ONNX Runtime only once. With a missing or too old
library, other users of the same loader hung forever (pykeio/ort#560), so each call has a time limit.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import psycopg
import pytest

import support
from support import FIXTURES, embed_one, raised_error, value

PHOTO = (FIXTURES / "images" / "cat.png").read_bytes()
CONFIG_FILE_ERROR = "F0000"
UNDEFINED_FILE = "58P01"
UNDEFINED_OBJECT = "42704"


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    """A new connection; a call that hangs ends with 57014."""
    with database.connect() as connection:
        connection.execute("SELECT clip_version()")
        connection.execute("SET statement_timeout = '60s'")
        yield connection


# ---------------------------------------------------------------- ONNX Runtime


@pytest.fixture(scope="module")
def libraries(server_folder: support.ServerFolder) -> dict[str, str]:
    """Files that clip_search.onnxruntime must refuse."""
    folder = server_folder.path / "libraries"
    server_folder.open(folder)
    (folder / "text.so").write_text("this is no library\n")
    (folder / "empty.so").write_bytes(b"")
    source = folder / "old.c"
    # The first symbol that a program looks up in ONNX Runtime, and the two functions behind it: onnxruntime_c_api.h.
    source.write_text(
        "typedef struct { const void *(*api)(unsigned); const char *(*version)(void); } Base;\n"
        "static const void *api(unsigned version) { (void)version; return 0; }\n"
        'static const char *version(void) { return "1.10.0"; }\n'
        "static const Base base = {api, version};\n"
        "const Base *OrtGetApiBase(void) { return &base; }\n"
    )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler on PATH: the build of clip_search needs one too; install gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "old.so", source], check=True)
    for file in folder.iterdir():
        file.chmod(0o755)
    return {
        "missing": "/nonexistent.so",
        "directory": str(folder),
        "text": str(folder / "text.so"),
        "empty": str(folder / "empty.so"),
        "another library": "$libdir/vector.so",  # a working library, but not this one
        "too old": str(folder / "old.so"),
    }


@pytest.mark.parametrize(
    ("which", "state", "word"),
    [
        ("missing", UNDEFINED_FILE, "not found"),
        ("directory", UNDEFINED_FILE, "not found"),
        ("text", CONFIG_FILE_ERROR, "cannot be loaded"),
        ("empty", CONFIG_FILE_ERROR, "cannot be loaded"),
        ("another library", CONFIG_FILE_ERROR, "not an ONNX Runtime library"),
        ("too old", CONFIG_FILE_ERROR, "1.10.0 is too old"),
    ],
)
def test_a_wrong_runtime_library_is_named_and_can_be_put_right(
    db: psycopg.Connection, libraries: dict[str, str], which: str, state: str, word: str
) -> None:
    """Twice the same error, then the right path in the same connection: the failure leaves nothing behind."""
    db.execute(f"SET clip_search.onnxruntime = '{libraries[which]}'")
    for query, argument in (
        ("SELECT clip_embed_text(%s)", "a cat"),
        ("SELECT clip_embed_image(%s)", PHOTO),
    ) * 2:
        found, text = raised_error(db, query, argument)
        assert (found, word in text) == (state, True), (found, text)
        assert libraries[which].removeprefix("$libdir/") in text and "clip_search.onnxruntime" in text
    assert value(db, "SELECT clip_version()").endswith("(ONNX Runtime not loaded yet)")
    db.execute("RESET clip_search.onnxruntime")
    assert embed_one(db, "text", "a cat").shape == (512,)
    assert embed_one(db, "image", PHOTO).shape == (512,)
    assert "ONNX Runtime 1." in value(db, "SELECT clip_version()")


def test_the_extension_is_created_without_the_library(empty_database: support.Database) -> None:
    """A missing runtime must not make CREATE EXTENSION fail (lanterndata/lantern_extras#14)."""
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("SET clip_search.onnxruntime = '/nonexistent.so'")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        assert value(db, "SELECT clip_assign_cluster('[1,2]')") == 1
        assert value(db, "SELECT count(*) FROM clip_models() WHERE name = 'photo-mini'") == 1


# ---------------------------------------------------------------- model directories


def cut(file: str, share: float) -> Callable[[pathlib.Path], None]:
    def damage(model: pathlib.Path) -> None:
        whole = (model / file).read_bytes()
        (model / file).write_bytes(whole[: int(len(whole) * share)])

    return damage


def write(file: str, content: str | bytes) -> Callable[[pathlib.Path], None]:
    return lambda model: (model / file).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(file: str) -> Callable[[pathlib.Path], None]:
    return lambda model: (model / file).unlink()


def pipe(file: str) -> Callable[[pathlib.Path], None]:
    """Opening a pipe waits until another process writes to it."""

    def damage(model: pathlib.Path) -> None:
        (model / file).unlink()
        os.mkfifo(model / file)
        (model / file).chmod(0o644)

    return damage


def swap_towers(model: pathlib.Path) -> None:
    vision, text = model / "onnx" / "vision_model.onnx", model / "onnx" / "text_model.onnx"
    content = vision.read_bytes(), text.read_bytes()
    vision.write_bytes(content[1])
    text.write_bytes(content[0])


def preprocessor(**changes: object) -> Callable[[pathlib.Path], None]:
    def damage(model: pathlib.Path) -> None:
        file = model / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


VISION, TEXT = "onnx/vision_model.onnx", "onnx/text_model.onnx"
IMAGE_QUERY, TEXT_QUERY = "SELECT clip_embed_image(%s, %s)", "SELECT clip_embed_text(%s, %s)"
DAMAGES = {
    "vision graph cut in half": (cut(VISION, 0.5), IMAGE_QUERY, CONFIG_FILE_ERROR, "vision_model.onnx"),
    "text graph cut in half": (cut(TEXT, 0.5), TEXT_QUERY, CONFIG_FILE_ERROR, "text_model.onnx"),
    "graph cut by a byte": (cut(VISION, 0.999999), IMAGE_QUERY, CONFIG_FILE_ERROR, "vision_model.onnx"),
    "graph empty": (write(VISION, b""), IMAGE_QUERY, CONFIG_FILE_ERROR, "vision_model.onnx"),
    "graph a web page": (write(TEXT, "<!DOCTYPE html>"), TEXT_QUERY, CONFIG_FILE_ERROR, "text_model.onnx"),
    "graph a Git LFS pointer": (
        write(VISION, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        IMAGE_QUERY,
        CONFIG_FILE_ERROR,
        "vision_model.onnx",
    ),
    "vision graph missing": (remove(VISION), IMAGE_QUERY, UNDEFINED_FILE, "no image tower"),
    "text graph missing": (remove(TEXT), TEXT_QUERY, UNDEFINED_FILE, "no text tower"),
    "towers swapped, image": (swap_towers, IMAGE_QUERY, CONFIG_FILE_ERROR, "no image input"),
    "towers swapped, text": (swap_towers, TEXT_QUERY, CONFIG_FILE_ERROR, "no text input"),
    "preprocessing not JSON": (
        write("preprocessor_config.json", "{"),
        IMAGE_QUERY,
        CONFIG_FILE_ERROR,
        "preprocessor_config.json",
    ),
    "preprocessing a list": (
        write("preprocessor_config.json", "[]"),
        IMAGE_QUERY,
        CONFIG_FILE_ERROR,
        "preprocessor_config.json",
    ),
    "preprocessing of another size": (
        preprocessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        IMAGE_QUERY,
        CONFIG_FILE_ERROR,
        "336",
    ),
    "preprocessing divides by zero": (
        preprocessor(image_std=[0, 0, 0]),
        IMAGE_QUERY,
        CONFIG_FILE_ERROR,
        "preprocessor_config.json",
    ),
    "tokenizer missing": (remove("tokenizer.json"), TEXT_QUERY, UNDEFINED_FILE, "tokenizer.json"),
    "tokenizer cut in half": (cut("tokenizer.json", 0.5), TEXT_QUERY, CONFIG_FILE_ERROR, "tokenizer.json"),
    "tokenizer a pipe": (pipe("tokenizer.json"), TEXT_QUERY, UNDEFINED_FILE, "no tokenizer.json"),
    "graph a pipe": (pipe(VISION), IMAGE_QUERY, UNDEFINED_FILE, "no image tower"),
    "tokenizer not one": (write("tokenizer.json", "{}"), TEXT_QUERY, CONFIG_FILE_ERROR, "tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_model_is_named_and_can_be_put_right(
    db: psycopg.Connection, clip_mini, server_folder: support.ServerFolder, damage: str
) -> None:
    """Twice the same error; another model works; and once the files are corrected, so does this one."""
    break_it, query, state, word = DAMAGES[damage]
    item = PHOTO if query is IMAGE_QUERY else "a cat"
    what = "image" if query is IMAGE_QUERY else "text"
    model = server_folder.add(FIXTURES / "clip-mini", name="broken", copy=True)
    try:
        break_it(model)
        db.execute(f"SET clip_search.model_path = '{server_folder.path}'")
        for _ in range(2):
            found, text = raised_error(db, query, item, "broken")
            assert (found, word in text) == (state, True), (found, text)
        expected = embed_one(db, what, item, "clip-mini")
        shutil.rmtree(model)
        server_folder.add(FIXTURES / "clip-mini", name="broken", copy=True)
        assert support.same_embedding(embed_one(db, what, item, "broken"), expected)
    finally:
        shutil.rmtree(model, ignore_errors=True)


def test_a_pipe_in_place_of_a_configuration_holds_nobody_up(
    db: psycopg.Connection, clip_mini, server_folder: support.ServerFolder
) -> None:
    """Opening it waits for a writer, in which no cancel was seen. Text towers need no configuration, so they work."""
    model = server_folder.add(FIXTURES / "clip-mini", name="piped", copy=True)
    try:
        for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "modules.json"):
            (model / file).unlink(missing_ok=True)
            os.mkfifo(model / file)
            (model / file).chmod(0o644)
        db.execute(f"SET clip_search.model_path = '{server_folder.path}'")
        assert support.same_embedding(
            embed_one(db, "text", "a cat", "piped"), embed_one(db, "text", "a cat", "clip-mini")
        )
        findings = db.execute("SELECT finding FROM clip_check_model('piped') finding").fetchall()
        assert any("a guess" in str(finding) for finding in findings), findings
    finally:
        shutil.rmtree(model, ignore_errors=True)


def test_a_model_of_the_same_name_in_another_path_is_another(
    db: psycopg.Connection, server_folder: support.ServerFolder
) -> None:
    """A connection that has loaded one of them loads the other."""
    other = support.make_clip("clip-mini-other", "--miniature", "--seed", "7")
    paths = [
        server_folder.add(source, f"{place}/same") for place, source in (("a", FIXTURES / "clip-mini"), ("b", other))
    ]
    for path in paths:
        server_folder.open(path.parent)
    found = []
    for path in (paths[0], paths[1], paths[0]):
        db.execute(f"SET clip_search.model_path = '$system:{path.parent}'")
        found.append(embed_one(db, "text", "a cat", "same"))
    assert support.same_embedding(found[0], found[2]) and not support.same_embedding(found[0], found[1])


def test_an_empty_directory_is_no_model(db: psycopg.Connection, clip_mini, server_folder: support.ServerFolder) -> None:
    server_folder.open(server_folder.path / "nothing")
    db.execute(f"SET clip_search.model_path = '{server_folder.path}'")
    state, text = raised_error(db, "SELECT clip_embed_text('a cat', 'nothing')")
    assert state == UNDEFINED_FILE and "no ONNX file" in text and str(server_folder.path) in text
    assert value(db, "SELECT count(*) FROM clip_models() WHERE name = 'nothing'") == 0
    assert embed_one(db, "text", "a cat", "clip-mini").shape == (512,)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../photo-mini",
        "a/b",
        "/etc",
        "clip-mini/",
        "clip-mini/../photo-mini",
        ":",
        "clip-mini:",
        "",
    ],
)
def test_a_name_stays_inside_the_model_path(
    db: psycopg.Connection, clip_mini, server_folder: support.ServerFolder, name: str
) -> None:
    """Any user can choose a model's name; a path would let that user read files as the server."""
    db.execute(f"SET clip_search.model_path = '{server_folder.path}'")
    state, text = raised_error(db, "SELECT clip_embed_text('a cat', %s)", name)
    assert state == UNDEFINED_OBJECT and "is not a model name" in text, (state, text)
    db.execute("SELECT set_config('clip_search.model', %s, false)", (name,))
    assert raised_error(db, "SELECT clip_embed_image(%s)", PHOTO)[0] == UNDEFINED_OBJECT
    assert embed_one(db, "text", "a cat", "clip-mini").shape == (512,)


def test_an_unknown_name_lists_the_models(
    db: psycopg.Connection, clip_mini, server_folder: support.ServerFolder
) -> None:
    db.execute(f"SET clip_search.model_path = '$system:/nonexistent:{server_folder.path}'")
    state, text = raised_error(db, "SELECT clip_embed_text('a cat', 'clip')")
    assert state == UNDEFINED_OBJECT and "clip-mini" in text and "photo-mini" in text


# ---------------------------------------------------------------- one bad item among many


def test_a_bad_element_is_named_by_its_place(db: psycopg.Connection) -> None:
    """NULL elements count, so the position is that in the caller's array."""
    state, text = raised_error(db, "SELECT clip_embed_images(ARRAY[%s, NULL, 'no image'::bytea, %s])", PHOTO, PHOTO)
    assert state == "22023" and "element 3 of the array" in text, (state, text)
    state, text = raised_error(db, "SELECT clip_embed_texts(ARRAY['a', NULL, 'b', ''])")
    assert state == "22023" and "element 4 of the array" in text, (state, text)
    assert embed_one(db, "text", "b").shape == (512,)


# ---------------------------------------------------------------- NULL for each argument


def test_messages_do_not_repeat_megabytes(db: psycopg.Connection) -> None:
    long = "m" * 1_000_000
    for query in (
        "SELECT clip_thumbnail('x', 10, %s)",
        "SELECT clip_cluster_groups(%s)",
        "SELECT clip_grant_collection('default', %s)",
        "SELECT clip_find('pg_class', 'a cat', key => %s)",
        "SELECT clip_create_collection('long', model => %s)",
    ):
        state, text = raised_error(db, query, long)
        assert state[:2] in ("22", "42") and len(text) < 5000, (query, state, len(text))


def test_values_are_named_as_they_were_given(db: psycopg.Connection) -> None:
    assert "edge -5 is not from 1" in raised_error(db, "SELECT clip_thumbnail(%s, -5)", PHOTO)[1]
    for model in ("../x", "a b", ""):
        assert raised_error(db, "SELECT clip_create_collection('named', model => %s)", model)[0] == UNDEFINED_OBJECT
    for call in ("clip_tags('[1]', k => -3)", "clip_explain('[1]', 'a cat', k => -3)"):
        state, text = raised_error(db, f"SELECT {call}")
        assert state == "22023" and "k is out of range: -3" in text, text
    for query in ("'[0,0]', ARRAY[1], ARRAY['[1,0]']", "'[1,0]', ARRAY[1, 2], ARRAY['[1,0]', '[0,0]']"):
        state, text = raised_error(db, f"SELECT clip_diversify({query}::vector[])")
        assert state == "22023" and "zero vector" in text, text


def test_no_argument_that_is_null_is_an_internal_error(db: psycopg.Connection) -> None:
    """For functions that are called on NULL: each argument in turn is NULL, the others have their default or a valid
    value."""
    functions = db.execute(
        "SELECT p.oid::regprocedure::text, quote_ident(n.nspname) || '.' || quote_ident(p.proname), p.prokind, p.proargnames, p.pronargs, "
        "p.pronargs - p.pronargdefaults, ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t) "
        "FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'clip_search' "
        "JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE NOT p.proisstrict AND p.pronargs > 0 AND n.nspname <> 'clip_search'"
    ).fetchall()
    names = {name.split("(")[0] for name, *_ in functions}
    assert {"clip_watch", "clip_unwatch", "clip_backfill", "clip_create_collection", "clip_query"} <= names, names
    db.execute("CREATE TABLE nulls (id int PRIMARY KEY, body text, embedding vector, cluster_id bigint)")
    values = {"regclass": "'nulls'", "text": "'body'", "vector": "'[1,2]'", "bytea": "'\\x00'"}
    refused = 0
    for shown, name, kind, arguments, count, required, types in functions:
        for null in range(count):
            given = [
                f"{arguments[n]} => {'NULL' if n == null else values.get(types[n], 'NULL')}::{types[n]}"
                for n in range(count)
                if n < required or n == null
            ]
            call = f"{name}({', '.join(given)})"
            statement = f"CALL {call}" if kind == "p" else f"SELECT * FROM {call}"
            # Procedures end transactions, which fails here: the test covers the code before that.
            with db.transaction(force_rollback=True):
                try:
                    db.execute(statement)
                except psycopg.Error as error:
                    assert error.sqlstate and not error.sqlstate.startswith("XX"), (shown, statement, error)
                    refused += error.sqlstate == "22004"
    assert refused > 10
    assert raised_error(db, "SELECT clip_watch('nulls', 'body', embedding => NULL)")[1].startswith(
        'argument "embedding" is NULL'
    )
    assert raised_error(db, "SELECT clip_watch('nulls')")[1].startswith("table public.nulls is not watched yet")
