"""An extension in a directory of its own, like an image volume of CloudNativePG: models and ONNX Runtime are found
beside the library. Before PostgreSQL 18, which introduced extension_control_path, the control file and the SQL are in
the server's directories.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

import support
from installation import Copy, config
from servers import Server
from support import raised_error, value

CAT = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()


def readable(folder: pathlib.Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Copy, pathlib.Path]]:
    """A server without any file of clip_search in its own directories, and the volume that holds the extension."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(config("libdir")))
    folder = pathlib.Path(os.environ["PGHOST"]) / f"volume-{os.getpid()}"
    try:
        copy = Copy(folder / "server")
        place = folder / "extensions" / "clip_search"
        (place / "share" / "extension").mkdir(parents=True)
        (place / "lib" / "clip_search").mkdir(parents=True)
        shutil.copy(config("pkglibdir") / "clip_search.so", place / "lib")
        shutil.copy(config("pkglibdir") / "clip_search" / "libonnxruntime.so", place / "lib" / "clip_search")
        shutil.move(copy.extension.parent / "clip_search", place / "share" / "clip_search")
        for path in copy.extension.glob("clip_search*"):
            shutil.copy(path, place / "share" / "extension")
        for name in ("clip_search.so", "clip_search"):
            (copy.libraries / name).unlink()
        readable(folder / "extensions")
        yield copy, place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("preload", ["", "photo-mini"])
def test_models_and_runtime_are_found_beside_the_library(volume: tuple[Copy, pathlib.Path], preload: str) -> None:
    copy, place = volume
    settings = {"dynamic_library_path": f"{place}/lib:$libdir", "clip_search.preload": preload}
    with support.connect("postgres") as db:
        major = db.info.server_version // 10000
    if major >= 18:
        settings["extension_control_path"] = f"{place}/share:$system"
        for path in copy.extension.glob("clip_search*"):
            path.unlink()
    made = Server(copy.bindir, settings)
    try:
        made.start()
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
            assert value(db, "SELECT vector_dims(clip_embed_image(%b))", CAT) == 512
            assert value(db, "SELECT path FROM clip_models()") == str(
                place / "share" / "clip_search" / "models" / "photo-mini"
            )
            # A path that names other directories is used unchanged.
            db.execute("SET clip_search.model_path = '/nowhere'")
            state, text = raised_error(db, "SELECT clip_embed_text('a cat')")
            assert state == "42704" and str(place) not in text
    finally:
        made.remove()
