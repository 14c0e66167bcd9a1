"""The Python package: the extension's vectors bit for bit, its errors, and its behaviour with threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import pickle
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile

import clip_search
import numpy as np
import psycopg
import pytest
from clip_search import Clip, ClipError, ClipWarning

import support
from clip_embed_runs import PHOTOS
from support import embed_one

FILES = sorted(PHOTOS.glob("*.jpg"))
TEXTS = ["a photo of a cat", "größe, 猫", "x" * 40, "a dog"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip("photo-mini")


@pytest.mark.parametrize("threads", [1, 2])
def test_vectors_are_the_extensions(database: support.Database, threads: int) -> None:
    clip = Clip("photo-mini", threads=threads)
    images, texts = clip.images(FILES), clip.texts(TEXTS)
    assert images.dtype == texts.dtype == np.float32 and images.shape == (len(FILES), 512)
    with database.connect() as db:
        db.execute("LOAD 'clip_search'")
        db.execute(f"SET clip_search.threads = {threads}; SET clip_search.cache_path = ''")
        for file, vector in zip(FILES, images, strict=True):
            assert np.array_equal(embed_one(db, "image", file.read_bytes()), vector), file.name
        for text, vector in zip(TEXTS, texts, strict=True):
            assert np.array_equal(embed_one(db, "text", text), vector), text


def test_every_form_of_an_image_is_the_same(clip: Clip) -> None:
    path = FILES[0]
    content = path.read_bytes()
    found = clip.images([path, str(path), content, bytearray(content), memoryview(content)])
    assert all(np.array_equal(found[0], vector) for vector in found)
    assert clip.images(iter([path])).shape == (1, 512)
    assert Clip("photo-mini").images([]).shape == clip.texts([]).shape == (0, 512) and clip.try_images([]) == []
    for wrong in (str(path), content, path):
        with pytest.raises(TypeError, match="give a list"):
            clip.images(wrong)
    with pytest.raises(TypeError, match="give a list"):
        clip.texts("a cat")
    with pytest.raises(TypeError):
        clip.images([1])


def test_a_check_says_what_clip_check_model_says(database: support.Database, clip: Clip) -> None:
    with database.connect() as db:
        expected = dict(db.execute("SELECT item, value FROM clip_check_model('photo-mini')").fetchall())
    found = dict(clip.check())
    # The other values are measurements.
    assert found.keys() == expected.keys() and found["verdict"] == expected["verdict"]


def words(error: ClipError | psycopg.Error) -> list[str]:
    """Message, detail and hint, without the parts that only one side has: the prefix of settings, the index in a
    list."""
    if isinstance(error, psycopg.Error):
        texts = (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    else:
        texts = (error.message, error.detail, error.hint)
    return [(text or "").replace("clip_search.", "") for text in texts]


def test_errors_have_the_extensions_words(database: support.Database, clip: Clip) -> None:
    whole = FILES[0].read_bytes()
    wrong = {
        "no image": b"no image",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "vectors": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "raw": b"II*\0\x10\0\0\0CR\x02\0" + bytes(100),
        "too many pixels": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
        + struct.pack(">II", 60000, 60000)
        + b"\x08\2\0\0\0"
        + bytes(40),
    }
    with database.connect() as db:
        for name, content in wrong.items():
            with pytest.raises(ClipError) as caught:
                clip.images([FILES[0], content])
            with pytest.raises(psycopg.Error) as expected, db.transaction():
                db.execute("SELECT clip_embed_image(%b)", [content])
            assert words(caught.value) == words(expected.value), name
            assert caught.value.element == 1, name
        with pytest.raises(ClipError) as caught:
            Clip("nope").texts(["a cat"])
        with pytest.raises(psycopg.Error) as expected, db.transaction():
            db.execute("SELECT clip_embed_text('a cat', 'nope')")
        assert words(caught.value)[0] == words(expected.value)[0]


def test_errors_as_exceptions(clip: Clip, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ClipError) as caught:
        clip.images([FILES[0], b"no image"])
    error = caught.value
    assert (error.kind, error.element) == ("invalid input", 1)
    assert str(error).startswith(f"element 1: {error.message}") and error.hint in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.message, copy.detail, copy.hint, copy.element) == (error.message, error.detail, error.hint, 1)
    gone = tmp_path / "gone.jpg"
    results = clip.try_images([FILES[0], b"no image", gone, FILES[1]])
    assert [isinstance(result, ClipError) for result in results] == [False, True, True, False]
    assert str(gone) in results[2].message and "No such file" in results[2].detail
    assert np.array_equal(np.stack([results[0], results[3]]), clip.images(FILES[:2]))
    small = Clip("photo-mini", max_image_pixels=1000, max_image_bytes=100_000)
    with pytest.raises(ClipError, match="too many pixels") as caught:
        small.images([FILES[0]])
    assert caught.value.kind == "limit exceeded" and "max_image_pixels" in caught.value.hint
    with pytest.raises(ClipError, match="too large") as caught:
        small.images([b"x" * 100_001])
    assert "max_image_bytes" in caught.value.hint
    with pytest.raises(ClipError, match='model "nope" does not exist') as caught:
        Clip("nope")
    assert caught.value.kind == "unknown model"
    # A process has one ONNX Runtime, and this process has already loaded it.
    with pytest.raises(ClipError, match="already loaded") as caught:
        Clip("photo-mini", onnxruntime="/nowhere.so").images([FILES[0]])
    assert caught.value.kind == "unsupported" and "/nowhere.so" in caught.value.detail
    # An error of the model concerns no single element, so every call raises it.
    for call in ("texts(['a cat'])", "images([b'x'])", "try_images([b'x'])"):
        program = f"from clip_search import Clip; Clip('photo-mini', onnxruntime='/nowhere.so').{call}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert 'ClipError: ONNX Runtime not found at "/nowhere.so"' in done.stderr, call
        assert "or set onnxruntime to its path" in done.stderr


def test_a_text_that_is_cut(clip: Clip) -> None:
    long = "word " * 200
    with pytest.warns(ClipWarning, match="element 1") as caught:
        cut = clip.texts(["a cat", long])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(clip.texts(["a cat"])[0], cut[0])
    with pytest.raises(ClipError) as caught:
        Clip("photo-mini", truncate=False).texts([long])
    assert "truncate" in caught.value.hint and caught.value.element == 0


def test_other_threads_run_meanwhile(clip: Clip) -> None:
    clip.images(FILES[:1])
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(clip.images(FILES * 5)))
    thread.start()
    rounds = 0
    while thread.is_alive():
        rounds += 1
        time.sleep(0.001)
    # If the call held the lock, there would be at most one round, before the call begins.
    assert rounds > 20 and found[0].shape == (5 * len(FILES), 512)


def test_threads_share_a_clip(clip: Clip) -> None:
    expected = clip.images(FILES)
    halves = support.in_parallel([lambda: clip.images(FILES), lambda: clip.images(FILES[::-1])])
    assert np.array_equal(halves[0], expected) and np.array_equal(halves[1], expected[::-1])


def test_an_interrupt_ends_a_call(clip: Clip) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        clip.images(FILES * 2000)
    assert time.monotonic() - start < 30
    assert clip.images(FILES[:1]).shape == (1, 512)


def in_child(clip: Clip, sender) -> None:
    try:
        sender.send(clip.images(FILES[:2]))
    except ClipError as error:
        sender.send(error)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_other_processes(clip: Clip, method: str) -> None:
    expected = clip.images(FILES[:2])
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(clip, sender))
    child.start()
    assert receiver.poll(60), "the child hangs"
    answer = receiver.recv()
    child.join(30)
    if method == "spawn":
        assert np.array_equal(answer, expected)
    else:
        assert isinstance(answer, ClipError) and "was forked" in answer.message


def test_the_wheel() -> None:
    wheels = list((support.ROOT / "target" / "wheel").glob("*.whl"))
    assert len(wheels) == 1 and "-cp310-abi3-manylinux" in wheels[0].name
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = set(wheel.namelist())
    assert {"clip_search/py.typed", "clip_search/_clip_search.pyi", "clip_search/_clip_search.abi3.so"} <= names


def test_it_has_the_extensions_libraries() -> None:
    """The package's own lock file selects the same versions: another decoder could give other pixels."""

    def versions(folder: pathlib.Path) -> set[tuple[str, str]]:
        text = (folder / "Cargo.lock").read_text(encoding="utf-8")
        return set(re.findall(r'^name = "(.+)"\nversion = "(.+)"', text, re.MULTILINE))

    extension, package = versions(support.ROOT), versions(support.ROOT / "crates" / "clip-python")
    # The package has the extension's version.
    assert {version for name, version in extension if name == "clip_search"} == {clip_search.__version__}
    names = {name for name, _ in extension}
    assert {"image", "ort", "tokenizers", "turbojpeg-sys"} <= {name for name, _ in package}
    assert {(name, version) for name, version in package if name in names} <= extension
