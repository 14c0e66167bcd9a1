"""One table over three servers by postgres_fdw, with the statements of docs/shards.md: what goes to the shards, what
comes back, and groups that stay whole whichever shard a photo goes to."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import random
import re
import threading
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from shard_servers import PHOTOS, SHARDS, Shards, blocks, shown
from support import embed_one, in_parallel, raised_error, until, value, vector, vector_text

RANDOM_ROWS = 3000
# The SQLSTATEs of a shard that is down, or goes down during a query.
DOWN = {"08001", "08006", "57P01", "57P02", "57P03"}


@pytest.fixture(scope="module")
def shards(bindir: pathlib.Path, sharedir: pathlib.Path) -> Iterator[Shards]:
    if not (sharedir / "extension" / "postgres_fdw.control").exists():
        pytest.skip("this server has no postgres_fdw (contrib)")
    made = Shards(bindir)
    try:
        made.start()
        made.create("photo", watched=True)
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def filled(shards: Shards) -> Iterator[psycopg.Connection]:
    """Inserts the gallery's photos through the coordinator, and random vectors as well, so that the planner uses
    indexes."""
    for shard in shards.shards:
        with shard.connect() as there:
            there.execute("SELECT clip_reset_stats()")  # clip_watch has asked the model for its dimension
    with shards.coordinator.connect() as db:
        for photo in PHOTOS:
            db.execute("INSERT INTO photo (title, data) VALUES (%s, %b)", (photo.stem, photo.read_bytes()))
        rows = np.random.default_rng(1).standard_normal((RANDOM_ROWS, 512)).astype(np.float32)
        # These rows have no group and no photo, so the shards' owners write them.
        db.execute("CREATE TABLE loaded (LIKE photo)")
        with db.cursor().copy("COPY loaded (id, embedding) FROM STDIN") as copy:
            for n, row in enumerate(rows):
                copy.write_row((1_000_000 + n, vector_text(row)))
        for shard in shards.shards:
            with shard.connect() as there:
                there.execute("ALTER TABLE photo DISABLE TRIGGER USER")
        db.execute("INSERT INTO photo SELECT * FROM loaded; DROP TABLE loaded")
        for shard in shards.shards:
            with shard.connect() as there:
                there.execute("ALTER TABLE photo ENABLE TRIGGER USER; ANALYZE photo")
        yield db


def plan(db: psycopg.Connection, query: str, *arguments: object) -> str:
    lines = (line for (line,) in db.execute(f"EXPLAIN (VERBOSE, COSTS off) {query}", arguments))
    return re.sub(r"\[[-0-9.,e]{99,}\]", "[…]", "\n".join(lines))


def test_rows_are_embedded_where_they_are_stored(shards: Shards, filled: psycopg.Connection) -> None:
    by_shard = filled.execute(
        "SELECT tableoid::regclass::text, count(*) FROM photo WHERE title IS NOT NULL GROUP BY 1"
    ).fetchall()
    assert len(by_shard) == SHARDS and sum(count for _, count in by_shard) == len(PHOTOS)
    # The coordinator has embedded no photo; each shard has embedded its own.
    assert value(filled, "SELECT coalesce(sum(images), 0) FROM clip_stats()") == 0
    for n, shard in enumerate(shards.shards):
        with shard.connect() as there:
            assert value(there, "SELECT sum(images) FROM clip_stats()") == dict(by_shard)[f"photo_{n}"]
    for photo in PHOTOS[:3]:
        found = vector(value(filled, "SELECT embedding::text FROM photo WHERE title = %s", photo.stem))
        assert support.same_embedding(found, embed_one(filled, "image", photo.read_bytes()))


def test_ordering_and_limits_go_to_the_shards(shards: Shards, filled: psycopg.Connection) -> None:
    ((_, search),) = blocks("explain")
    text = "\n".join(line for (line,) in filled.execute(search))
    remote = [line for line in text.splitlines() if "Remote SQL:" in line]
    assert len(remote) == SHARDS and all("ORDER BY (embedding OPERATOR(public.<=>) $1" in line for line in remote), text
    assert "InitPlan 1" in text and "Merge Append" in text
    named = plan(filled, "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat', 'photo-mini') LIMIT 10")
    assert named.count("ORDER BY (embedding OPERATOR(public.<=>) '[…]'") == SHARDS, named
    # The page warns of this plan.
    bare = plan(filled, "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 10")
    assert "ORDER BY" not in bare, bare
    # The plan inside the function: a limit for each shard, and all shards queried at once.
    filled.execute(
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on"
    )
    filled.execute("SET auto_explain.log_verbose = on; SET client_min_messages = log")
    notices: list[str] = []
    handler = lambda notice: notices.append(str(notice.message_primary))
    filled.add_notice_handler(handler)
    try:
        filled.execute("SELECT * FROM photo_nearest(clip_embed_text('a cat'), 5)")
    finally:
        filled.remove_notice_handler(handler)
        filled.execute("SET auto_explain.log_min_duration = -1; RESET client_min_messages")
    told = next(text for text in notices if "CTE Scan on candidate" in text)
    assert told.count("Async Foreign Scan") == SHARDS and len(re.findall(r"Remote SQL: .* LIMIT ", told)) == SHARDS, (
        told
    )
    assert value(filled, "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'shard_0'").count(
        "cursor_tuple_fraction=0.001"
    )
    # The shard's plan for the query that it receives uses its index.
    with shards.shards[0].connect() as there:
        there.execute("LOAD 'clip_search'")
        query = (
            "SELECT id, title, embedding FROM public.photo ORDER BY (embedding OPERATOR(public.<=>) %s::public.vector)"
        )
        row = vector_text(embed_one(there, "text", "a cat"))
        for sent in (query + " LIMIT 5", "DECLARE c CURSOR FOR " + query):
            there.execute("SET cursor_tuple_fraction = 0.001")  # as the page has it in the server's options
            text = "\n".join(line for (line,) in there.execute(f"EXPLAIN {sent}", (row,)))
            assert "Index Scan using photo_embedding" in text, text


def test_the_nearest_are_those_of_one_table(filled: psycopg.Connection) -> None:
    everything = filled.execute("SELECT id, embedding::text FROM photo WHERE embedding IS NOT NULL").fetchall()
    ids = np.array([id for id, _ in everything])
    rows = np.array([vector(text) for _, text in everything], np.float64)
    assert len(ids) == len(PHOTOS) + RANDOM_ROWS
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    texts = ("a sleepy cat", "a rocket", "a cup of coffee", "wall clock", "outer space")
    queries = [embed_one(filled, "text", text) for text in texts]
    queries += [embed_one(filled, "image", photo.read_bytes()) for photo in PHOTOS[::3]]
    found = {"photo_nearest": 0, "photo_nearest_reachable": 0, "ORDER BY": 0}
    for query in queries:
        exact = set(ids[np.argsort(-(rows @ query), kind="stable")[:10]].tolist())
        for name in found:
            statement = f"SELECT id FROM {name}(%s::vector, 10)"
            if name == "ORDER BY":
                statement = "SELECT id FROM photo ORDER BY embedding <=> (SELECT %s::vector) LIMIT 10"
            answer = [id for (id,) in filled.execute(statement, (vector_text(query),))]
            assert len(answer) == 10
            found[name] += len(exact & set(answer))
    assert filled.execute(shown("FROM photo_nearest(")).fetchone()[0].startswith("cat")
    assert min(found.values()) >= 0.99 * 10 * len(queries), found


def test_groups_span_the_shards(filled: psycopg.Connection) -> None:
    groups = filled.execute(
        "SELECT size, members FROM (SELECT c.id, c.size, (SELECT array_agg(DISTINCT tableoid) FROM photo "
        "WHERE cluster_id = c.id) AS members FROM clip_clusters('photo') AS c) AS found"
    ).fetchall()
    subjects = {re.sub("-(mirrored|cropped)$", "", photo.stem) for photo in PHOTOS}
    assert len(groups) == len(subjects) and sum(size for size, _ in groups) == len(PHOTOS)
    assert any(len(tables) > 1 for _, tables in groups), "subjects lie on several shards"
    # The sizes follow when a photo is deleted, restored or replaced.
    size = "SELECT size FROM clip_search.cluster WHERE id = (SELECT cluster_id FROM photo WHERE title = 'cat')"
    before = value(filled, size)
    gone = filled.execute("DELETE FROM photo WHERE title = 'cat-cropped' RETURNING data").fetchone()[0]
    assert value(filled, size) == before - 1
    with pytest.raises(ZeroDivisionError), filled.transaction():
        filled.execute("INSERT INTO photo (title, data) VALUES ('cat-cropped', %b)", (gone,))
        raise ZeroDivisionError
    assert value(filled, size) == before - 1
    filled.execute("INSERT INTO photo (title, data) VALUES ('cat-cropped', %b)", (gone,))
    assert value(filled, size) == before
    rocket = next(photo for photo in PHOTOS if photo.stem == "rocket").read_bytes()
    filled.execute("UPDATE photo SET data = %b WHERE title = 'cat-cropped'", (rocket,))
    assert value(filled, size) == before - 1
    filled.execute("UPDATE photo SET data = %b WHERE title = 'cat-cropped'", (gone,))
    assert value(filled, size) == before


# ---------------------------------------------------------------- grouping by many sessions, and a shard that is restarted


@dataclasses.dataclass
class Item:
    id: int
    subject: int


def variants(subject: int, count: int, seed: int) -> np.ndarray:
    """Unit vectors with a cosine near 0.93 to their subject's direction."""
    direction = np.random.default_rng(subject).standard_normal(512)
    noise = np.random.default_rng(seed).standard_normal((count, 512)) * (0.4 / 512**0.5)
    rows = direction / np.linalg.norm(direction) + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_one_subject_is_one_group_over_all_shards(shards: Shards, filled: psycopg.Connection) -> None:
    """Sixteen sessions insert through the coordinator and roll a quarter of the transactions back. Meanwhile a shard,
    the coordinator with the groups, and another shard are stopped one after the other, as by a crash, and started
    again."""
    subjects, each, sessions = 100, 16, 16
    shards.create("item", watched=False)
    rng = random.Random(5)
    rows = [(s, v) for s in range(subjects) for v in variants(7000 + s, each, seed=s)]
    rng.shuffle(rows)
    rows = [(n, *row) for n, row in enumerate(rows)]
    done, errors = threading.Event(), collections.Counter()
    crashes = (shards.shards[1], shards.coordinator, shards.shards[2])
    # Set as soon as that server is down. Otherwise, the sessions could finish first on a fast machine.
    gone = [threading.Event() for _ in crashes]
    written = [0] * sessions

    def session(number: int) -> None:
        mine, rng = rows[number::sessions], random.Random(number)
        deadline, unsure = time.monotonic() + 140, False
        while mine:
            assert time.monotonic() < deadline, errors
            try:
                with shards.coordinator.connect() as db:
                    if unsure:
                        ids = [id for id, *_ in mine]
                        there = {id for (id,) in db.execute("SELECT id FROM item WHERE id = ANY (%s)", (ids,))}
                        mine, unsure = [row for row in mine if row[0] not in there], False
                    while mine:
                        batch = mine[: rng.choice((1, 1, 2, 5))]
                        for n, event in enumerate(gone):
                            if written[number] * (len(crashes) + 1) > (n + 1.4) * each * subjects / sessions:
                                assert event.wait(60), f"server {n} is not stopped"
                        with db.transaction() as transaction:
                            for id, _, row in batch:
                                db.execute("INSERT INTO item (id, embedding) VALUES (%s, %s)", (id, vector_text(row)))
                            if rng.random() < 0.25:
                                raise psycopg.Rollback(transaction)
                            done_with = batch
                        if transaction.status is not psycopg.Transaction.Status.ROLLED_BACK_EXPLICITLY:
                            mine = mine[len(done_with) :]
                            written[number] += len(done_with)
            except psycopg.errors.UniqueViolation:
                # A shard has committed although another shard or the answer was lost: postgres_fdw has no two-phase
                # commit.
                errors["there already"] += 1
                unsure = True
            except psycopg.Rollback:
                errors[None] += 1  # the server went down in the middle of one
            except psycopg.Error as error:
                assert error.sqlstate in DOWN | {None}, f"{error.sqlstate} {error}"
                errors[error.sqlstate] += 1
                time.sleep(0.1)

    def crash() -> None:
        for n, server in enumerate(crashes):
            until(lambda n=n: sum(written) >= len(rows) * (n + 1) // (len(crashes) + 1), "their share", patience=140)
            failed = errors.total()
            server.stop("immediate")
            gone[n].set()
            until(lambda failed=failed: errors.total() > failed, f"an error of server {n}'s, which is down")
            server.start()
        done.set()

    in_parallel([*(functools.partial(session, n) for n in range(sessions)), crash], 180)
    assert done.is_set() and set(errors) & DOWN, errors

    with shards.coordinator.connect() as db:
        found = db.execute("SELECT id, cluster_id, embedding::text FROM item").fetchall()
        assert sorted(id for id, *_ in found) == list(range(len(rows)))
        of = collections.defaultdict(set)
        for id, cluster, _ in found:
            of[rows[id][1]].add(cluster)
        assert all(len(clusters) == 1 for clusters in of.values()), of
        assert len(set.union(*of.values())) == subjects
        # Only the rows in flight when a server went down may be miscounted.
        stored = collections.Counter(cluster for _, cluster, _ in found)
        counted = dict(db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = 'item'").fetchall())
        assert sum(abs(counted.get(id, 0) - stored[id]) for id in counted.keys() | stored.keys()) <= 5 * sessions * len(
            crashes
        )
        # The page's statement repairs that.
        assert db.execute(shown("FROM clip_recluster").replace("photo", "item")).fetchall() == []
        # clip_recluster writes its changes to the shards.
        before = db.execute("SELECT id, cluster_id FROM item ORDER BY id").fetchall()
        db.execute("UPDATE item SET cluster_id = NULL WHERE id % 7 = 0")
        changed = db.execute("SELECT sum(moved) FROM clip_recluster('item')").fetchone()[0]
        assert (
            changed == len(range(0, len(rows), 7))
            and db.execute("SELECT id, cluster_id FROM item ORDER BY id").fetchall() == before
        )
        members = collections.defaultdict(list)
        for _, cluster, text in db.execute("SELECT id, cluster_id, embedding::text FROM item").fetchall():
            members[cluster].append(vector(text))
        clusters = db.execute(
            "SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = 'item'"
        ).fetchall()
        assert {id: size for id, size, _ in clusters} == {id: len(rows) for id, rows in members.items()}
        for id, _, centroid in clusters:
            mean = np.mean([row.astype(np.float64) for row in members[id]], axis=0)
            assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-5


def test_a_shard_that_is_down(shards: Shards, filled: psycopg.Connection) -> None:
    shards.shards[2].stop("immediate")
    try:
        with shards.coordinator.connect() as db:
            for query in ("SELECT * FROM photo_nearest(clip_embed_text('a cat'), 3)", "SELECT count(*) FROM photo"):
                state, text = raised_error(db, query)
                assert state in DOWN and "shard_2" in text, (state, text)
            warned: list[str] = []
            db.add_notice_handler(lambda notice: warned.append(str(notice.message_primary)))
            rows = db.execute("SELECT id FROM photo_nearest_reachable(clip_embed_text('a cat'), 10)").fetchall()
            assert len(rows) == 10 and warned == ["photo_2 does not answer: its photos are left out"]
            there = {id for (id,) in db.execute("SELECT id FROM photo_0 UNION ALL SELECT id FROM photo_1")}
            assert {id for (id,) in rows} <= there
            # Rows on the other shards are still writable.
            near = value(db, "SELECT id FROM photo_0 LIMIT 1")
            db.execute("UPDATE photo SET title = title WHERE id = %s", (near,))
    finally:
        shards.shards[2].start()
    with shards.coordinator.connect() as db:
        assert len(db.execute("SELECT * FROM photo_nearest(clip_embed_text('a cat'), 10)").fetchall()) == 10
