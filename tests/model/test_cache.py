"""Rewritten graphs in the data directory: connections share their weights without preloading."""

from __future__ import annotations

import pathlib
import pwd
import re
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import psycopg
import pytest

import support
from servers import Server, private_megabytes, server
from support import embed_one, value

PHOTO = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
# Measured: 20 MB for both towers of photo-mini if mapped; 170 MB if not, and 60 MB when laid out.
MAPPED_MB = 45


@pytest.fixture(scope="module")
def own(bindir: pathlib.Path) -> Iterator[Server]:
    with server(bindir) as made:
        yield made


@pytest.fixture
def cache(own: Server) -> pathlib.Path:
    return own.data / "pgsql_tmp.clip_search"


def embed(own: Server, times: int = 1) -> tuple[np.ndarray, np.ndarray, float]:
    """A text's and a photo's vector from a new connection, and its private memory in megabytes."""
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
        # Continue past the run at which the weights are laid out, from a file that is now deleted.
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


class Message(NamedTuple):
    severity_nonlocalized: str | None
    sqlstate: str | None
    message_primary: str | None
    message_detail: str | None
    message_hint: str | None


def told(db: psycopg.Connection) -> list[Message]:
    """Collects the messages that the connection gets from now on. A diagnostic is readable only inside its handler."""
    found: list[Message] = []
    db.add_notice_handler(lambda said: found.append(Message(*(getattr(said, name) for name in Message._fields))))
    return found


@pytest.mark.parametrize("mode", ["777", "770"])
def test_a_directory_that_others_can_write_to_is_not_used(own: Server, mode: str) -> None:
    folder = own.folder / f"open-{mode}"
    own.run("mkdir", str(folder))
    own.run("chmod", mode, str(folder))
    with own.connect() as db:
        messages = told(db)
        db.execute(f"LOAD 'clip_search'; SET clip_search.cache_path = '{folder}'")
        for text in ("a cat", "a dog"):
            assert len(embed_one(db, "text", text)) == 512
        assert len(embed_one(db, "image", PHOTO)) == 512
    assert [message.severity_nonlocalized for message in messages] == ["WARNING"], "once a connection"
    warning = messages[0]
    assert (warning.sqlstate, warning.message_primary) == ("F0000", f'cache directory "{folder}" is not used')
    assert f"mode is 0{mode}" in warning.message_detail and "clip_search.cache_path" in warning.message_hint
    assert list(folder.iterdir()) == []


def test_a_planted_graph_is_not_used(own: Server) -> None:
    """A graph that another user, root, has planted under the right name in a directory like /tmp."""
    folder, text = own.folder / "sticky", "a cat"
    own.run("mkdir", "-m", "1777", str(folder))
    own.run("chmod", "1777", str(folder))
    settings = f"LOAD 'clip_search'; SET clip_search.cache_path = '{folder}'"
    with own.connect() as db:
        db.execute(settings)
        expected = embed_one(db, "text", text)
    (entry,) = folder.iterdir()
    if subprocess.run(["chown", "-R", "nobody", str(entry)], capture_output=True).returncode:
        pytest.skip("giving files to another user needs root")
    (entry / "graph.onnx").write_text("planted")
    with own.connect() as db:
        messages = told(db)
        db.execute(settings)
        assert float(embed_one(db, "text", text) @ expected) > 0.999999
        assert messages == []
    assert (entry / "graph.onnx").read_text() == "planted"


@pytest.fixture
def full(own: Server) -> Iterator[pathlib.Path]:
    """A file system of one megabyte."""
    folder = own.folder / "full"
    own.run("mkdir", "-m", "700", str(folder))
    options = f"size=1m,mode=0700,uid={pwd.getpwnam(own.user).pw_uid}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_no_broken_model(own: Server, full: pathlib.Path) -> None:
    for _ in range(2):
        with own.connect() as db:
            messages = told(db)
            db.execute(f"LOAD 'clip_search'; SET clip_search.cache_path = '{full}'; SET clip_search.precision = int8")
            with pytest.raises(psycopg.errors.DiskFull) as raised:
                embed_one(db, "text", "a cat")
            said = raised.value.diag
            assert f'cache directory "{full}" has no room' in said.message_primary
            assert re.match(
                r"Up to \d{8,} bytes are needed while it is made; \d+ bytes are free\.", said.message_detail
            )
            assert "Free disk space" in said.message_hint and "clip_search.cache_path" in said.message_hint
            assert messages == [], "nothing announces what can't be made"
            db.execute("SET clip_search.precision = float32")
            assert len(embed_one(db, "text", "a cat")) == 512


def make_list(own: Server, name: str, count: int) -> pathlib.Path:
    path = own.folder / f"{name}.txt"
    own.run("tee", str(path), input="".join(f"{name} {number}\n" for number in range(count)))
    return path


def prepare(own: Server, path: pathlib.Path, timeout: int = 0) -> list[str]:
    """Prepares the words of a list in a new connection; returns its messages up to the embedding of words."""
    with own.connect() as db:
        messages = told(db)
        db.execute(f"LOAD 'clip_search'; SET clip_search.words = '{path}'")
        if timeout:
            embed_one(db, "text", "a cat")
            db.execute(f"SET statement_timeout = {timeout}")
        try:
            value(db, "SELECT clip_prepare_words()")
        except psycopg.errors.QueryCanceled:
            assert timeout
        texts = [message.message_primary or "" for message in messages]
        return [text for text in texts if text.startswith("embedding ")]


def test_lists_of_words_do_not_evict_each_other(own: Server) -> None:
    lists = [make_list(own, name, 500) for name in ("chat", "hund")]
    said = [prepare(own, path) for path in lists * 2]
    assert [len(messages) for messages in said] == [1, 1, 0, 0], said


def test_a_cancelled_embedding_of_words_is_continued(own: Server) -> None:
    path, remaining = make_list(own, "voiture", 3000), [3000]
    for _ in range(30):
        (message,) = prepare(own, path, 3000) or [""]
        if not message:
            break
        found = re.match(r"embedding the last (\d+) of 3000 words|embedding 3000 words", message)
        assert found, message
        remaining.append(int(found[1] or 3000))
        if len(remaining) == 4:
            prepare(own, path)
            break
    assert remaining[1] == 3000 and all(b < a for a, b in zip(remaining[1:], remaining[2:], strict=False)), remaining
    assert len(remaining) > 2, "nothing was cancelled"
    assert prepare(own, path) == []


def test_tags_by_a_list_of_the_connections_own_are_announced(own: Server) -> None:
    common, other = (make_list(own, name, 500) for name in ("poisson", "vogel"))
    with own.connect() as db:
        db.execute(f"LOAD 'clip_search'; ALTER DATABASE postgres SET clip_search.words = '{common}'")
    notice = "this connection's own setting of clip_search.words determines the tags"
    with own.connect() as db:
        messages = told(db)
        db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
        db.execute("SELECT clip_watch('photo', 'data', tags => 'tags')")
        db.execute("INSERT INTO photo VALUES (1, %s)", [PHOTO])
        assert notice not in [message.message_primary for message in messages]
        db.execute(f"SET clip_search.words = '{other}'")
        for key in (2, 3):
            db.execute("INSERT INTO photo VALUES (%s, %s)", [key, PHOTO])
        said = [message for message in messages if message.message_primary == notice]
        assert len(said) == 1 and "ALTER DATABASE" in said[0].message_hint
        db.execute("CREATE ROLE tagging; GRANT SELECT, INSERT ON photo TO tagging")
    with own.connect() as db:
        # This role can neither see nor change the setting.
        db.execute("SET ROLE tagging")
        db.execute("INSERT INTO photo SELECT 4, data FROM photo WHERE id = 1")
        assert db.execute("SELECT count(DISTINCT tags) FROM photo WHERE id IN (1, 4)").fetchone() == (1,)
    with own.connect() as db:
        db.execute("DROP TABLE photo; ALTER DATABASE postgres RESET clip_search.words")
