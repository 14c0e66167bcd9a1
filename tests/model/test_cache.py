"""Rewritten graphs in the data directory: connections share their weights without preloading."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import support
from servers import Server, private_megabytes, server
from support import embed_one, value

PHOTO = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
# Measured: 20 MB for both towers of photo-mini, mapped; 170 MB without, and laid out 60.
MAPPED_MB = 45


@pytest.fixture(scope="module")
def own(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir) as made:
        yield made


@pytest.fixture
def cache(own: Server) -> pathlib.Path:
    return own.data / "pgsql_tmp.clip_search"


def embed(own: Server, times: int = 1) -> tuple[np.ndarray, np.ndarray, float]:
    """A text's and a photo's vector in a new connection, and its private memory in megabytes."""
    with own.connect() as db:
        for _ in range(times):
            found = embed_one(db, "text", "a cat"), embed_one(db, "image", PHOTO)
        return *found, private_megabytes(db)


def test_connections_share_the_weights(own: Server, cache: pathlib.Path) -> None:
    with own.connect() as db:
        db.execute("LOAD 'clip_search'; SET clip_search.cache_path = ''")
        expected = embed_one(db, "text", "a cat"), embed_one(db, "image", PHOTO)
        assert private_megabytes(db) > 100
    assert not cache.exists(), "switched off"
    for _ in range(3):
        text, image, private = embed(own)
        assert float(text @ expected[0]) > 0.999999 and float(image @ expected[1]) > 0.999999
    assert private < MAPPED_MB
    assert len(list(cache.iterdir())) == 2, "a graph for each tower"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_base_backup_leaves_them_out(own: Server, cache: pathlib.Path) -> None:
    embed(own)
    assert cache.exists()
    copy = own.folder / "copy"
    own.run(str(own.bindir / "pg_basebackup"), "-h", str(own.folder), "-U", "postgres", "-D", str(copy), "-c", "fast")
    assert (copy / "PG_VERSION").exists() and not (copy / cache.name).exists()


def test_what_is_removed_or_damaged_in_use_does_no_harm(own: Server, cache: pathlib.Path) -> None:
    embed(own)
    with own.connect() as db:
        text, image = embed_one(db, "text", "a cat"), embed_one(db, "image", PHOTO)
        own.run("rm", "-rf", str(cache))
        # On past the run at which the weights are laid out, from a file that is gone now.
        for number in range(30):
            embed_one(db, "text", f"cat number {number}")
            assert float(embed_one(db, "image", PHOTO) @ image) > 0.999999
    found = embed(own)
    assert float(found[0] @ text) > 0.999999
    for entry in cache.iterdir():
        own.run("sh", "-c", f"echo damaged > {entry}/graph.onnx")
    assert float(embed(own)[1] @ image) > 0.999999
    assert all((entry / "graph.onnx").stat().st_size > 1000 for entry in cache.iterdir()), "written again"


def test_a_place_that_can_not_be_written_is_logged(own: Server) -> None:
    with own.connect() as db:
        db.execute("LOAD 'clip_search'; SET clip_search.cache_path = '/proc/clip_search'")
        assert len(embed_one(db, "text", "a cat")) == 512
    assert own.messages().count('could not be kept: "/proc/clip_search"') == 1


def test_nothing_is_loaded_before_it_is_asked_for(own: Server) -> None:
    with own.connect() as db:
        assert value(db, "SELECT clip_version()").endswith("(ONNX Runtime not loaded yet)")
        loaded = "SELECT image_loaded, text_loaded FROM clip_models() WHERE name = 'photo-mini'"
        assert db.execute(loaded).fetchone() == (False, False)
        embed_one(db, "text", "a cat")
        assert db.execute(loaded).fetchone() == (False, True)


def test_only_a_superuser_says_where(own: Server) -> None:
    with own.connect() as db:
        db.execute("CREATE ROLE plain; SET ROLE plain")
        with pytest.raises(support.psycopg.errors.InsufficientPrivilege):
            db.execute("SET clip_search.cache_path = '/tmp'")
        with pytest.raises(support.psycopg.errors.InsufficientPrivilege):
            value(db, "SHOW clip_search.cache_path")
