"""The gallery demo runs, shows what its README promises, and fails if a result is wrong."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import support

GALLERY = support.ROOT / "examples" / "gallery"
FIRST = re.compile(r"^\s*([✓✗]) (.*?)\s+1\s+(\S.*?)\s+(-?\d\.\d+)", re.MULTILINE)


def run(
    database: support.Database, folder: pathlib.Path = GALLERY, *arguments: str, **environment: str
) -> subprocess.CompletedProcess:
    """Runs run.sh in that database, as `make demo` does, from another directory."""
    return subprocess.run(
        [str(folder / "run.sh"), *arguments],
        cwd="/",
        env=os.environ | {"PGDATABASE": database.name, "LC_ALL": "C"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture(scope="module")
def gallery():
    """A database without the extension: the demo creates it."""
    made = support.Database(extension=False)
    try:
        yield made
    finally:
        made.drop()


def test_the_demo_finds_every_photo_and_groups_every_subject(gallery: support.Database) -> None:
    done = run(gallery)
    assert done.returncode == 0, done.stdout + done.stderr
    titles = ["PHOTOS IN", "SEARCH BY WORDS", "GROUPS", "LATENCY", "THE PLAN", "RIGHT", "NEXT"]
    places = [done.stdout.find(f"\n{title}") for title in titles]
    assert -1 not in places and places == sorted(places), dict(zip(titles, places, strict=True))

    first = {words: (mark, title, float(cosine)) for mark, words, title, cosine in FIRST.findall(done.stdout)}
    assert len(first) == 12, done.stdout
    # Checked again here, so that the test doesn't rely on the demo's own checks alone.
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
            "SELECT split_part(title, ' (', 1), array_agg(DISTINCT cluster_id), count(*) FROM gallery.photo GROUP BY 1"
        ).fetchall()
        assert len(rows) == 12 and all(len(ids) == 1 and count == 3 + (title == "Hammer") for title, ids, count in rows)
        assert len({ids[0] for _, ids, _ in rows}) == 12
        sizes = db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'gallery' ORDER BY size").fetchall()
        assert sizes == [(3,)] * 11 + [(4,)]


def test_the_demo_can_be_run_again(gallery: support.Database) -> None:
    done = run(gallery)
    assert done.returncode == 0, done.stdout + done.stderr
    with gallery.connect() as db:
        assert support.value(db, "SELECT count(*) FROM gallery.photo") == 37
        assert support.value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'gallery'") == 12


class Tags(HTMLParser):
    """Collects every tag with its attributes, and the tags left open."""

    VOID = {"img", "meta", "line", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"


def test_the_demo_writes_a_page_that_needs_nothing_else(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    """tests/browser opens the page in a browser."""
    page = tmp_path / "a folder" / "gallery.html"
    done = run(gallery, GALLERY, str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(f"file://{page}") and list(page.parent.iterdir()) == [page]
    found = Tags(page.read_text(encoding="utf-8"))
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#main").removeprefix("#") in ids
        assert tag != "img" or attributes.get("alt") is not None
    # 9 in the head, 3 for each query, each photo in its group, each group's photo on the map and with its labels; and 4
    # irrelevant ones where clip_search has relevance.
    nothing = 4 * ("nothing" in ids)
    assert sum(tag == "img" for tag, _ in found.tags) == 9 + 36 + 37 + 12 + 12 + nothing


def test_the_map_is_of_principal_components(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    """The components equal those of numpy's singular value decomposition, except for their signs."""
    assert run(gallery, GALLERY, str(tmp_path / "gallery.html")).returncode == 0
    with gallery.connect() as db:
        db.execute("SET search_path = gallery, public")
        rows = db.execute("SELECT id, x, y, explained FROM map() ORDER BY id").fetchall()
        stored = db.execute("SELECT embedding::text FROM photo ORDER BY id").fetchall()
    embeddings = np.stack([support.vector(row[0]) for row in stored]).astype(np.float64)
    left, strength, _ = np.linalg.svd(embeddings - embeddings.mean(axis=0), full_matrices=False)
    for axis in (0, 1):
        ours, true = np.array([row[1 + axis] for row in rows]), left[:, axis] * strength[axis]
        assert min(np.abs(ours - true).max(), np.abs(ours + true).max()) < 0.005
    explained = (strength[:2] ** 2).sum() / (strength**2).sum()
    assert all(abs(row[3] - explained) < 0.001 for row in rows)


def test_the_demo_fails_if_a_query_finds_another_photo(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    """The test expects the rocket from words about coffee."""
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


def test_the_demo_fails_if_no_groups_are_listed(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "gallery"
    shutil.copytree(GALLERY, copy)
    script = (copy / "gallery.sql").read_text(encoding="utf-8")
    right = "JOIN membership m ON m.cluster_id = c.id;"
    assert script.count(right) == 1
    (copy / "gallery.sql").write_text(script.replace(right, right[:-1] + " WHERE false;"), encoding="utf-8")
    done = run(gallery, copy)
    assert done.returncode != 0, done.stdout
    assert "0 groups are listed, not 12" in done.stderr and "\nRIGHT" not in done.stdout


def test_the_demo_fails_if_groups_are_wrong(gallery: support.Database) -> None:
    """A threshold of 1 leaves every copy alone; one of -0.99 puts all photos into one group."""
    for threshold, words in (("1", "is split over clusters"), ("-0.99", "mixes subjects")):
        done = run(gallery, PGOPTIONS=f"-c clip_search.cluster_threshold={threshold}")
        assert done.returncode != 0, done.stdout
        assert words in done.stderr and "\nRIGHT" not in done.stdout


def test_the_demo_says_what_is_missing(gallery: support.Database, tmp_path: pathlib.Path) -> None:
    """The demo prints one line and fails if there is no server, or if somebody else's schema has the demo's name."""
    done = run(gallery, PGHOST=str(tmp_path))
    assert done.returncode != 0 and done.stderr.startswith("gallery: no connection") and done.stderr.count("\n") == 1
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
