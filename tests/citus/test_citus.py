"""A distributed table of Citus, with the statements of docs/citus.md: where rows are embedded and searched, groups, and what is
refused. The tests build on each other, in this order."""

from __future__ import annotations

import collections
import re
import time

import numpy as np
import psycopg

import support
from citus_servers import PORT, Citus
from servers import Server
from support import embed_one, sqlstate, value, vector, vector_text

PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
RANDOM_ROWS = 4000
TEXTS = ("a sleepy cat", "a rocket", "a cup of coffee", "wall clock", "outer space")


def subject(title: str) -> str:
    return re.sub("-(mirrored|cropped)$", "", title)


def add_photos(db: psycopg.Connection, table: str) -> None:
    for photo in PHOTOS:
        db.execute(f"INSERT INTO {table} (title, data) VALUES (%s, %b)", (photo.stem, photo.read_bytes()))


def reset(citus: Citus) -> None:
    for server in citus.servers:
        with server.connect() as db:
            db.execute("SELECT clip_reset_stats()")


def check_embedded_by_workers(citus: Citus, count: int) -> None:
    coordinator, *workers = citus.images()
    assert coordinator == 0 and sum(workers) == count and min(workers) > 0, (coordinator, workers)


def refused(db: psycopg.Connection, query: str, *parts: str) -> None:
    state, text = sqlstate(db, query)
    assert state == "0A000" and all(part in text for part in parts), (state, text)
    assert text.count("\n") >= 2, f"no DETAIL, or no HINT: {text}"


def test_the_extension_comes_to_the_workers(citus: Citus) -> None:
    for server in citus.workers:
        with server.connect() as there:
            names = {name for (name,) in there.execute("SELECT extname FROM pg_extension")}
            assert {"vector", "clip_search"} <= names
            assert value(there, "SELECT vector_dims(clip_embed_text('a cat'))") == 512


def test_insert_select_embeds_on_the_workers(citus: Citus, db: psycopg.Connection) -> None:
    citus.run("incoming")
    add_photos(db, "incoming")
    reset(citus)
    citus.run("insert")
    check_embedded_by_workers(citus, len(PHOTOS))
    for photo in PHOTOS[:3]:
        found = vector(value(db, "SELECT embedding::text FROM photo WHERE title = %s", photo.stem))
        assert support.close(found, embed_one(db, "image", photo.read_bytes()))


def test_an_update_embeds_on_the_workers(citus: Citus, db: psycopg.Connection) -> None:
    db.execute("UPDATE photo SET embedding = NULL")
    reset(citus)
    citus.run("backfill")
    check_embedded_by_workers(citus, len(PHOTOS))
    assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NULL") == 0
    # Without the model's name it is not for Citus.
    state, text = sqlstate(db, "UPDATE photo SET embedding = clip_embed_image(data) WHERE embedding IS NULL")
    assert state == "0A000" and "STABLE" in text, (state, text)


def test_a_trigger_embeds_on_the_workers(citus: Citus, db: psycopg.Connection) -> None:
    db.execute("TRUNCATE photo")
    citus.run("trigger")
    reset(citus)
    with db.cursor().copy("COPY photo (title, data) FROM STDIN WITH (FORMAT binary)") as copy:
        copy.set_types(["text", "bytea"])
        for photo in PHOTOS[:20]:
            copy.write_row((photo.stem, photo.read_bytes()))
    for photo in PHOTOS[20:]:
        db.execute("INSERT INTO photo (title, data) VALUES (%s, %b)", (photo.stem, photo.read_bytes()))
    check_embedded_by_workers(citus, len(PHOTOS))
    assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NOT NULL") == len(PHOTOS)
    # Another photo, another embedding; another title, none.
    db.execute("UPDATE photo SET data = %b WHERE title = 'cat'", (PHOTOS[-1].read_bytes(),))
    db.execute("UPDATE photo SET title = 'was a cat' WHERE title = 'cat'")
    check_embedded_by_workers(citus, len(PHOTOS) + 1)
    found = vector(value(db, "SELECT embedding::text FROM photo WHERE title = 'was a cat'"))
    assert support.close(found, embed_one(db, "image", PHOTOS[-1].read_bytes()))
    cat = next(photo for photo in PHOTOS if photo.stem == "cat").read_bytes()
    db.execute("UPDATE photo SET title = 'cat', data = %b WHERE title = 'was a cat'", (cat,))


def test_a_moved_shard_keeps_its_trigger(citus: Citus, db: psycopg.Connection) -> None:
    def of(shard: int) -> list[int]:
        ids = [id for (id,) in db.execute("SELECT id FROM photo")]
        shards = db.execute(
            "SELECT i, get_shard_id_for_distribution_column('photo', i) FROM unnest(%s::bigint[]) AS i", (ids,)
        )
        return [id for id, where in shards if where == shard]

    shards = db.execute("SELECT shardid, nodename FROM citus_shards WHERE table_name = 'photo'::regclass").fetchall()
    shard, source = max(shards, key=lambda shard: len(of(shard[0])))
    size = len(of(shard))
    target = next(str(worker.folder) for worker in citus.workers if str(worker.folder) != source)
    db.execute(
        "SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, 'block_writes')", (shard, source, PORT, target, PORT)
    )
    moved = of(shard)
    assert len(moved) == size > 0
    assert value(db, "SELECT nodename FROM citus_shards WHERE shardid = %s", shard) == target
    before = citus.images()
    for id in moved:
        db.execute("UPDATE photo SET data = data WHERE id = %s", (id,))
    after = citus.images()
    where = 1 + [str(worker.folder) for worker in citus.workers].index(target)
    assert [a - b for a, b in zip(after, before, strict=True)] == [
        size if n == where else 0 for n in range(len(before))
    ]


def explain(db: psycopg.Connection, query: str) -> str:
    text = "\n".join(line for (line,) in db.execute(f"EXPLAIN (VERBOSE, COSTS off) {query}"))
    return re.sub(r"'\[[-0-9.,e]{99,}\]'", "'[…]'", text)


def test_the_limit_goes_to_every_shards_index(citus: Citus, db: psycopg.Connection) -> None:
    assert [subject(title) for (title,) in citus.run("search")] == ["cat"] * 3
    # A plan by index even though there are few rows.
    db.execute("SET citus.explain_all_tasks = on; SET citus.propagate_set_commands = 'local'")
    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")
        text = explain(db, citus.blocks["search"])
    shards = value(db, "SELECT count(*) FROM citus_shards WHERE table_name = 'photo'::regclass")
    assert shards == 4
    # The vector is in the query that is sent, and not the call.
    sent = re.findall(r"Query: (.*)", text)
    assert len(sent) == shards and all("LIMIT '3'::bigint" in query and "'[…]'" in query for query in sent), text
    assert "clip_embed_text" not in text, text
    assert len(re.findall(r"Index Scan using photo_embedding_\d+", text)) == shards, text
    # What the page says of a call without the model's name.
    assert "clip_embed_text" in explain(
        db, "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 3"
    )


def test_a_text_is_embedded_once(citus: Citus, db: psycopg.Connection) -> None:
    reset(citus)
    db.execute(
        "PREPARE search (text) AS SELECT id FROM photo ORDER BY embedding <=> clip_embed_text($1, 'photo-mini') LIMIT 3"
    )
    for _ in range(8):  # beyond the fifth, from which on plans may be generic
        assert len(db.execute("EXECUTE search ('a text that nobody has looked for')").fetchall()) == 3
    counts = []
    for server in citus.servers:
        with server.connect() as there:
            counts.append(int(value(there, "SELECT coalesce(sum(texts), 0) FROM clip_stats()")))
    assert counts[0] >= 1 and counts[1:] == [0] * len(citus.workers), counts


def test_groups_are_made_on_the_coordinator(citus: Citus, db: psycopg.Connection) -> None:
    citus.run("collection")
    citus.run("groups")
    groups = citus.run("grouping")
    sizes = collections.Counter(subject(photo.stem) for photo in PHOTOS)
    assert {subject(title): size for _, size, title in groups} == sizes
    assert value(db, "SELECT count(*) FROM photo WHERE cluster_id IS NULL") == 0
    for worker in citus.workers:
        with worker.connect() as there:
            assert value(there, "SELECT count(*) FROM clip_search.cluster") == 0
    # They follow a photo that goes, and one that becomes another.
    size = "SELECT size FROM clip_search.cluster WHERE id = %s"
    cat, home = db.execute("SELECT id, cluster_id FROM photo WHERE title = 'cat-cropped'").fetchone()
    data = value(db, "SELECT data FROM photo WHERE id = %s", cat)
    rocket = next(photo for photo in PHOTOS if photo.stem == "rocket").read_bytes()
    db.execute("SELECT photo_replace(%s, %b)", (cat, rocket))
    assert value(db, size, home) == sizes["cat"] - 1
    assert value(db, "SELECT photo_group()") == 1
    other = value(db, "SELECT cluster_id FROM photo WHERE id = %s", cat)
    assert other == value(db, "SELECT cluster_id FROM photo WHERE title = 'rocket'")
    db.execute("SELECT photo_delete(%s)", (cat,))
    assert value(db, size, other) == sizes["rocket"]
    # All or nothing, on all servers.
    db.execute("INSERT INTO photo (title, data) VALUES ('cat-cropped', %b)", (data,))
    with db.transaction(force_rollback=True):
        assert value(db, "SELECT photo_group()") == 1
    assert value(db, size, home) == sizes["cat"] - 1
    assert value(db, "SELECT photo_group()") == 1 and value(db, size, home) == sizes["cat"]


def test_what_does_not_work_says_so(db: psycopg.Connection) -> None:
    for call in (
        "SELECT clip_watch('photo', 'data')",
        "CALL clip_backfill('photo')",
        "CALL clip_reembed('photo', 'photo-mini')",
    ):
        refused(db, call, "public.photo is a table of Citus, so it can't be watched", "clip_embed_image")
    refused(
        db,
        "SELECT clip_create_collection('m', members => 'photo')",
        "public.photo is a table of Citus",
        "without members",
    )
    for query in (
        "SELECT clip_assign_cluster(embedding, 'photo') FROM photo",
        "SELECT clip_assign_cluster(embedding) FROM photo WHERE id = (SELECT min(id) FROM photo)",
        "INSERT INTO photo (title, cluster_id) SELECT title, clip_assign_cluster(embedding, 'photo') FROM photo",
        "SELECT clip_leave_cluster(cluster_id, embedding) FROM photo",
    ):
        refused(db, query, "was called on a worker of Citus", "coordinator")
    state, text = sqlstate(db, "UPDATE photo SET cluster_id = clip_assign_cluster(embedding, 'photo')")
    assert state == "0A000" and "VOLATILE" in text
    # Tables that have nothing to do with Citus are what they were, and reference tables are not.
    db.execute("CREATE TABLE here (id bigint PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('here', 'data', cluster => 'cluster_id')")
    db.execute("INSERT INTO here (id, data) VALUES (1, %b)", (PHOTOS[0].read_bytes(),))
    assert value(db, "SELECT count(*) FROM here WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 1
    state, text = sqlstate(db, "SELECT create_distributed_table('here', 'id')")
    assert "has triggers" in text
    # Told that triggers are wanted, Citus has the rows inserted into the shards.
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL citus.enable_unsafe_triggers = on")
        _, text = sqlstate(db, "SELECT create_distributed_table('here', 'id')")
    assert "a trigger of clip_watch is on a table that is not watched" in text
    db.execute("SELECT clip_unwatch('here'); SELECT create_distributed_table('here', 'id'); DROP TABLE here")
    db.execute(
        "CREATE TABLE everywhere (id bigint PRIMARY KEY, data bytea); SELECT create_reference_table('everywhere')"
    )
    refused(db, "SELECT clip_watch('everywhere', 'data')", "public.everywhere is a table of Citus")


def measure(server: Server, name: str, table: list[tuple[str, ...]]) -> None:
    """Fills `photo` with the gallery and random vectors, and searches it."""
    with server.connect() as db:
        db.execute("TRUNCATE photo")
        start = time.monotonic()
        with db.cursor().copy("COPY photo (title, data) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["text", "bytea"])
            for photo in PHOTOS * 4:
                copy.write_row((photo.stem, photo.read_bytes()))
        photos = len(PHOTOS) * 4 / (time.monotonic() - start)
        rows = np.random.default_rng(1).standard_normal((RANDOM_ROWS, 512)).astype(np.float32)
        # They have vectors and no images, which the trigger would undo.
        db.execute("SET citus.enable_unsafe_triggers = on")
        db.execute("ALTER TABLE photo DISABLE TRIGGER photo_embed")
        start = time.monotonic()
        with db.cursor().copy("COPY photo (embedding) FROM STDIN") as copy:
            for row in rows:
                copy.write_row((vector_text(row),))
        inserted = RANDOM_ROWS / (time.monotonic() - start)
        db.execute("ALTER TABLE photo ENABLE TRIGGER photo_embed")
        db.execute("ANALYZE photo")
        everything = db.execute("SELECT id, embedding::text FROM photo").fetchall()
        assert len(everything) == RANDOM_ROWS + len(PHOTOS) * 4
    with server.connect() as db:
        ids = np.array([id for id, _ in everything])
        stored = np.array([vector(text) for _, text in everything], np.float64)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        queries = [embed_one(db, "text", text) for text in TEXTS]
        queries += [embed_one(db, "image", photo.read_bytes()) for photo in PHOTOS[::3]]
        found = 0
        for query in queries:
            similar = stored @ query
            # The gallery is there four times: any of those that are as near will do.
            least = np.sort(similar)[-10] - 1e-6
            good = set(ids[similar >= least].tolist())
            search = "SELECT id FROM photo ORDER BY embedding <=> %s::vector LIMIT 10"
            answer = [id for (id,) in db.execute(search, (vector_text(query),))]
            assert len(set(answer)) == 10
            if not found:
                assert "Index Scan using photo_embedding" in explain(
                    db, search.replace("%s", f"'{vector_text(query)}'")
                )
            found += len(good & set(answer))
        recall = found / (10 * len(queries))
        count, start = 0, time.monotonic()
        while time.monotonic() - start < 5:
            text = TEXTS[count % len(TEXTS)]
            search = "SELECT title FROM photo ORDER BY embedding <=> clip_embed_text(%s, 'photo-mini') LIMIT 10"
            assert len(db.execute(search, (text,)).fetchall()) == 10
            count += 1
        searched = count / (time.monotonic() - start)
    table.append((name, str(len(everything)), f"{photos:.1f}", f"{inserted:.0f}", f"{searched:.0f}", f"{recall:.3f}"))
    assert recall >= 0.99, f"{name}: recall@10 {recall}"


def test_search_beside_a_single_server(
    citus: Citus, single: Server, db: psycopg.Connection, table: list[tuple[str, ...]]
) -> None:
    table.append(("servers", "rows", "photos embedded/s", "rows inserted/s", "queries/s", "recall@10"))
    citus.run("settings")
    for worker in citus.workers:
        with worker.connect() as there:
            assert value(there, "SHOW hnsw.ef_search") == "100"
    with single.connect() as there:
        statements = citus.blocks["setup"] + citus.blocks["trigger"] + citus.blocks["settings"]
        statements = re.sub(r"SELECT create_distributed_table.*?;|SET LOCAL citus.*?;", "", statements)
        there.execute("SET client_min_messages = warning")
        there.execute(statements.replace("CREATE EXTENSION clip_search", "CREATE EXTENSION IF NOT EXISTS clip_search"))
    measure(single, "one", table)
    measure(citus.coordinator, f"coordinator and {len(citus.workers)} workers", table)


def test_a_worker_that_is_down(citus: Citus) -> None:
    citus.workers[1].stop("immediate")
    try:
        with citus.coordinator.connect() as db:
            state, text = sqlstate(db, citus.blocks["search"])
            assert state in {"08006", "08001", "57P01", "57P03"} and str(citus.workers[1].folder) in text, (state, text)
    finally:
        citus.workers[1].start()
    assert len(citus.run("search")) == 3


def test_every_statement_of_the_page_was_run(citus: Citus) -> None:
    assert citus.done == set(citus.blocks)
