"""Queued watches, shards and schemas that move, and tables that Citus takes over: rows, embeddings, groups and
failures stay the same."""

from __future__ import annotations

import pathlib

import psycopg
import pytest

import support
from citus_servers import PORT, Citus
from support import raised_error, until, value

PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))


def insert(db: psycopg.Connection, table: str, photos: list[pathlib.Path], first: int) -> None:
    for id, photo in enumerate(photos, start=first):
        db.execute(f"INSERT INTO {table} (id, title, data) VALUES (%s, %s, %b)", (id, photo.stem, photo.read_bytes()))


def counts(db: psycopg.Connection, table: str, collection: str) -> tuple[int, int, int, int]:
    """Numbers of rows, of embeddings, of rows with a group, and of members that the groups count."""
    rows = db.execute(f"SELECT count(*), count(embedding), count(cluster_id) FROM {table}").fetchone()
    query = "SELECT coalesce(sum(size), 0) FROM clip_search.cluster WHERE collection = %s"
    return (*rows, int(value(db, query, collection)))


def sizes_match(db: psycopg.Connection, table: str, collection: str) -> bool:
    query = f"SELECT cluster_id, count(*) FROM {table} WHERE cluster_id IS NOT NULL GROUP BY cluster_id"
    clusters = db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = %s", (collection,)).fetchall()
    return dict(db.execute(query).fetchall()) == dict(clusters)


def move(db: psycopg.Connection, citus: Citus, shard: int) -> None:
    source = value(db, "SELECT nodename FROM citus_shards WHERE shardid = %s", shard)
    target = next(str(worker.folder) for worker in citus.workers if str(worker.folder) != source)
    query = "SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, 'force_logical')"
    db.execute(query, (shard, source, PORT, target, PORT))
    assert value(db, "SELECT nodename FROM citus_shards WHERE shardid = %s", shard) == target


def test_each_workers_background_worker_embeds_and_the_coordinators_groups(
    citus: Citus, db: psycopg.Connection
) -> None:
    db.execute("CREATE TABLE waiting (id bigint PRIMARY KEY, title text, data bytea)")
    db.execute("SELECT create_distributed_table('waiting', 'id', shard_count => 4)")
    insert(db, "waiting", PHOTOS[:5], 1)  # before the watch
    before = citus.images()
    db.execute("SELECT clip_watch('waiting', 'data', model => 'photo-mini', mode => 'queued', cluster => 'cluster_id')")
    with citus.workers[0].connect() as there:
        insert(there, "waiting", PHOTOS[5:], 6)
    db.execute("INSERT INTO waiting (id, data) VALUES (100, 'no image')")
    everything = (31, 30, 30, 30)
    until(lambda: counts(db, "waiting", "waiting") == everything, "rows were not embedded and grouped", 60)
    embedded = [after - count for after, count in zip(citus.images(), before, strict=True)]
    # When it was called, clip_watch asked the model on the coordinator for its dimensions.
    assert embedded[0] <= 2 and sum(embedded[1:]) == 30 and sorted(embedded[1:])[-2] > 0, embedded
    assert sizes_match(db, "waiting", "waiting")
    query = "SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE relation = 'waiting'::regclass"
    until(lambda: db.execute(query).fetchone() == (31, 30, 0, 1), "the failure is not listed", 30)
    assert db.execute("SELECT key, sqlstate FROM clip_search.failure").fetchall() == [(["100"], "22023")]
    assert value(db, "SELECT count(*) FROM clip_search.pending") == 0


def test_a_shard_that_moves_takes_all_along(citus: Citus, db: psycopg.Connection) -> None:
    """A shard moves with a broken file and a recorded departure, while a row waits that can't be embedded yet."""
    shard = value(db, "SELECT get_shard_id_for_distribution_column('waiting', 100)")
    db.execute("SELECT clip_watch('waiting', mode => 'immediate', on_error => 'skip')")
    ids = [id for (id,) in db.execute("SELECT id FROM waiting WHERE id < 100 ORDER BY id")]
    beside = [i for i in ids if value(db, "SELECT get_shard_id_for_distribution_column('waiting', %s)", i) == shard]
    assert len(beside) > 1
    db.execute("DELETE FROM waiting WHERE id = %s", (beside[0],))
    before = citus.images()
    move(db, citus, shard)
    until(
        lambda: db.execute("SELECT key FROM clip_search.failure").fetchall() == [(["100"],)],
        "the failure is not listed where the shard is now",
        30,
    )
    assert citus.images() == before, "rows were embedded again"
    assert value(db, "SELECT clip_group('waiting')") == 1
    assert counts(db, "waiting", "waiting") == (30, 29, 29, 29) and sizes_match(db, "waiting", "waiting")
    # The moved shard has its triggers: a change is embedded and recorded.
    db.execute("UPDATE waiting SET data = %b WHERE id = %s", (PHOTOS[0].read_bytes(), beside[1]))
    assert value(db, "SELECT clip_group('waiting')") == 2
    assert counts(db, "waiting", "waiting") == (30, 29, 29, 29) and sizes_match(db, "waiting", "waiting")
    db.execute("SELECT clip_unwatch('waiting'); DROP TABLE waiting")


def test_a_tenants_schema(citus: Citus, db: psycopg.Connection) -> None:
    """A table in one shard: if clip_group didn't ask for two-phase commit, Citus would commit on the worker first."""
    citus.run("tenant")
    with citus.workers[1].connect() as there:
        insert(there, "tenant.photo", PHOTOS[:20], 1)
    notices: list[str] = []
    with citus.coordinator.connect() as there:
        there.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        there.execute("SET citus.log_remote_commands = on")
        assert value(there, "SELECT clip_group('tenant.photo')") == 20
    assert any("PREPARE TRANSACTION" in line for line in notices), notices
    assert counts(db, "tenant.photo", "tenant") == (20, 20, 20, 20)
    with citus.workers[0].connect() as there:
        there.execute("DELETE FROM tenant.photo WHERE id <= 3")
    node = value(db, "SELECT nodename FROM citus_shards WHERE table_name = 'tenant.photo'::regclass")
    target = next(str(worker.folder) for worker in citus.workers if str(worker.folder) != node)
    db.execute("SELECT citus_schema_move('tenant', %s, %s, 'force_logical')", (target, PORT))
    with citus.workers[0].connect() as there:
        insert(there, "tenant.photo", PHOTOS[20:], 21)
    assert value(db, "SELECT clip_group('tenant.photo')") == 3 + len(PHOTOS[20:])
    assert counts(db, "tenant.photo", "tenant") == (27, 27, 27, 27) and sizes_match(db, "tenant.photo", "tenant")
    db.execute("SET client_min_messages = warning; DROP SCHEMA tenant CASCADE")


def test_a_table_that_citus_takes_over_stays_watched(citus: Citus, db: psycopg.Connection) -> None:
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE TABLE kept (id bigint PRIMARY KEY, title text, data bytea)")
    db.execute("SELECT clip_watch('kept', 'data', model => 'photo-mini', cluster => 'cluster_id', on_error => 'skip')")
    insert(db, "kept", PHOTOS[:6], 1)
    db.execute("SELECT citus_add_local_table_to_metadata('kept')")
    insert(db, "kept", PHOTOS[6:12], 7)
    with citus.workers[0].connect() as there:
        insert(there, "kept", PHOTOS[12:18], 13)
        there.execute("DELETE FROM kept WHERE id = 1")
    db.execute("UPDATE kept SET data = %b WHERE id = 2", (PHOTOS[-1].read_bytes(),))
    db.execute("INSERT INTO kept (id, data) VALUES (100, 'bad')")
    assert counts(db, "kept", "kept") == (18, 17, 17, 17) and sizes_match(db, "kept", "kept")
    shown = "SELECT rows, embedded, failed FROM clip_search.watch WHERE relation = 'kept'::regclass"
    assert db.execute(shown).fetchone() == (18, 17, 1)
    assert db.execute("SELECT relation::text, key FROM clip_search.failure").fetchall() == [("kept", ["100"])]
    db.execute("UPDATE kept SET embedding = NULL WHERE id = 3")
    db.execute("CALL clip_backfill('kept')")
    assert counts(db, "kept", "kept") == (18, 17, 17, 17) and sizes_match(db, "kept", "kept")
    assert value(db, "SELECT clip_retry('kept')") == 0
    assert len(db.execute("SELECT * FROM clip_clusters('kept', 1)").fetchall()) > 3
    state, text = raised_error(db, "SELECT clip_watch('kept', 'data', mode => 'queued')")
    assert state == "0A000" and "undistribute_table" in text, (state, text)
    db.execute("TRUNCATE kept")
    assert counts(db, "kept", "kept") == (0, 0, 0, 0)
    db.execute("SELECT clip_unwatch('kept')")
    db.execute("INSERT INTO kept (id, data) VALUES (1, 'anything')")
    db.execute("DROP TABLE kept")


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_a_foreign_key_to_a_reference_table_takes_it_over(citus: Citus, db: psycopg.Connection, mode: str) -> None:
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE TABLE author (id bigint PRIMARY KEY); INSERT INTO author VALUES (1)")
    db.execute("SELECT create_reference_table('author')")
    db.execute("CREATE TABLE work (id bigint PRIMARY KEY, title text, data bytea, author bigint DEFAULT 1)")
    db.execute("SELECT clip_watch('work', 'data', model => 'photo-mini', cluster => 'cluster_id', mode => %s)", (mode,))
    db.execute("ALTER TABLE work ADD FOREIGN KEY (author) REFERENCES author")
    insert(db, "work", PHOTOS[:6], 1)
    until(lambda: counts(db, "work", "work") == (6, 6, 6, 6), "rows were not embedded", 30)
    db.execute("DROP TABLE work, author")
