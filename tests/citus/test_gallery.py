"""The demo on Citus: examples/gallery/citus.sql on the coordinator, as its first lines say."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

import support
from citus_servers import Citus
from support import value

GALLERY = support.ROOT / "examples" / "gallery"


def run(citus: Citus, file: pathlib.Path = GALLERY / "citus.sql") -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(citus.coordinator.bindir / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-f", str(file)],
        cwd=GALLERY,
        env={**os.environ, "PGHOST": str(citus.coordinator.folder), "PGPORT": "5432", "PGUSER": "postgres",
             "PGDATABASE": "postgres", "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def gallery(citus: Citus) -> Iterator[subprocess.CompletedProcess]:
    with citus.coordinator.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("DROP SCHEMA IF EXISTS gallery CASCADE")
    before = citus.images()
    done = run(citus)
    assert done.returncode == 0, done.stdout + done.stderr
    done.embedded = [after - count for after, count in zip(citus.images(), before, strict=True)]
    yield done
    with citus.coordinator.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("DROP SCHEMA gallery CASCADE")


def test_the_gallery_is_right(citus: Citus, gallery: subprocess.CompletedProcess) -> None:
    assert gallery.stderr == ""
    # The shards lie where those of the tables before do, some of which were moved.
    assert re.search("30 photos in 4 shards on [23] workers", gallery.stdout)
    assert "10 of 10 queries found their photo first; 30 photos form 10 groups" in gallery.stdout
    assert gallery.stdout.count("✓") == 10 and "✗" not in gallery.stdout
    coordinator, *workers = gallery.embedded
    # clip_watch embeds a picture to learn the model's dimensions.
    assert coordinator <= 2 and sum(workers) == 30 and sorted(workers)[-2] > 0, gallery.embedded
    with citus.coordinator.connect() as db:
        titles = [title for (title,) in db.execute("SELECT title FROM gallery.search('something hot to drink', 1)")]
    assert len(titles) == 1 and titles[0].startswith("Espresso")
    if path := os.environ.get("CITUS_DEMO"):
        pathlib.Path(path).write_text(gallery.stdout, encoding="utf-8")


def test_it_can_be_run_again(citus: Citus, gallery: subprocess.CompletedProcess) -> None:
    done = run(citus)
    assert done.returncode == 0, done.stdout + done.stderr
    with citus.coordinator.connect() as db:
        assert value(db, "SELECT count(*) FROM gallery.photo") == 30
        assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'gallery'") == 10


def test_a_photo_that_is_not_found_fails_the_demo(
    citus: Citus, gallery: subprocess.CompletedProcess, tmp_path: pathlib.Path
) -> None:
    wrong = (GALLERY / "citus.sql").read_text(encoding="utf-8")
    wrong = re.sub(r"\('rocket launch', 'Rocket'\)", "('rocket launch', 'Raccoon')", wrong)
    wrong = wrong.replace("\\ir photos.sql", "\\i photos.sql")
    (tmp_path / "wrong.sql").write_text(wrong, encoding="utf-8")
    done = run(citus, tmp_path / "wrong.sql")
    assert done.returncode == 3
    assert re.search(r'"rocket launch" found Rocket.* first, not Raccoon', done.stderr), done.stderr
