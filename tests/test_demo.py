"""The gallery demo runs, shows what its README promises, and would notice if it were wrong."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

import support

GALLERY = support.ROOT / "examples" / "gallery"
FIRST = re.compile(r"^\s*([✓✗]) (.*?)\s+1\s+(\S.*?)\s+(-?\d\.\d+)", re.MULTILINE)


def run(
    database: support.Database, folder: pathlib.Path = GALLERY, **environment: str
) -> subprocess.CompletedProcess:
    """run.sh in that database, as `make demo` starts it, from a directory of no importance."""
    return subprocess.run(
        [str(folder / "run.sh")],
        cwd="/",
        env=os.environ | {"PGDATABASE": database.name, "LC_ALL": "C"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.fixture(scope="module")
def gallery():
    """A database that knows nothing of the extension: the demo creates it."""
    made = support.Database(extension=False)
    try:
        yield made
    finally:
        made.drop()


def test_the_demo_finds_every_photo_and_groups_every_subject(gallery: support.Database) -> None:
    done = run(gallery)
    assert done.returncode == 0, done.stdout + done.stderr
    titles = ["PHOTOS IN", "SEARCH BY WORDS", "GROUPS", "LATENCY", "THE PLAN", "RIGHT", "GO ON"]
    places = [done.stdout.find(f"\n{title}") for title in titles]
    assert -1 not in places and places == sorted(places), dict(zip(titles, places))

    first = {words: (mark, title, float(cosine)) for mark, words, title, cosine in FIRST.findall(done.stdout)}
    assert len(first) == 10, done.stdout
    # Asked here again, so that it doesn't rest on the demo's own judgement alone.
    for words, subject in (
        ("a cup of coffee", "Espresso"),
        ("rocket launch", "Rocket"),
        ("ancient pagoda by a lake", "Pagoda"),
        ("wall clock", "Wall Clock"),
        ("outer space", "Deep Space"),
    ):
        assert first[words][1].startswith(subject), first[words]
    assert {mark for mark, _, _ in first.values()} == {"✓"}
    assert all(0.1 < cosine < 1 for _, _, cosine in first.values())

    with gallery.connect() as db:
        rows = db.execute(
            "SELECT split_part(title, ' (', 1), array_agg(DISTINCT cluster_id), count(*) "
            "FROM gallery.photo GROUP BY 1"
        ).fetchall()
        assert len(rows) == 10 and all(len(ids) == 1 and count == 3 for _, ids, count in rows)
        assert len({ids[0] for _, ids, _ in rows}) == 10
        sizes = db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'gallery'").fetchall()
        assert sizes == [(3,)] * 10


def test_the_demo_can_be_run_again(gallery: support.Database) -> None:
    done = run(gallery)
    assert done.returncode == 0, done.stdout + done.stderr
    with gallery.connect() as db:
        assert support.value(db, "SELECT count(*) FROM gallery.photo") == 30
        assert (
            support.value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'gallery'") == 10
        )


def test_the_demo_fails_if_a_query_finds_another_photo(
    gallery: support.Database, tmp_path: pathlib.Path
) -> None:
    """Here by expecting the rocket from words about coffee."""
    copy = tmp_path / "gallery"
    shutil.copytree(GALLERY, copy)
    script = (copy / "gallery.sql").read_text(encoding="utf-8")
    right, wrong = "('a cup of coffee', 'Espresso')", "('a cup of coffee', 'Rocket')"
    assert script.count(right) == 1
    (copy / "gallery.sql").write_text(script.replace(right, wrong), encoding="utf-8")
    done = run(gallery, copy)
    assert done.returncode != 0
    assert "the gallery is not right: 1 of its checks failed" in done.stderr
    assert re.search(r'"a cup of coffee" found Espresso.* first, not Rocket', done.stderr), done.stderr
    assert "✗ a cup of coffee" in done.stdout and "\nRIGHT" not in done.stdout


def test_the_demo_fails_if_groups_are_wrong(gallery: support.Database) -> None:
    """A threshold of 1 leaves every copy alone, one of -0.99 throws all together."""
    for threshold, words in (("1", "is split over clusters"), ("-0.99", "mixes subjects")):
        done = run(gallery, PGOPTIONS=f"-c clip_search.cluster_threshold={threshold}")
        assert done.returncode != 0, done.stdout
        assert words in done.stderr and "\nRIGHT" not in done.stdout


def test_the_demo_says_what_is_missing(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    """One line and a failure: without a server, and with a foreign schema of the demo's name."""
    done = run(gallery, PGHOST=str(tmp_path))
    assert (
        done.returncode != 0
        and done.stderr.startswith("gallery: no connection")
        and done.stderr.count("\n") == 1
    )
    foreign = support.Database(extension=False)
    try:
        with foreign.connect() as db:
            db.execute("CREATE SCHEMA gallery CREATE TABLE photo (precious text)")
        done = run(foreign)
        assert done.returncode != 0 and "not this demo's" in done.stderr
        with foreign.connect() as db:
            assert support.value(db, "SELECT count(*) FROM gallery.photo") == 0
    finally:
        foreign.drop()
