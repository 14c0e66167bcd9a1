"""A distributed table of Citus, with the statements of docs/citus.md: where rows are embedded and searched, groups, failures,
and what is refused. The tests build on each other, in this order."""

from __future__ import annotations

import collections
import re
import threading
import time

import numpy as np
import psycopg

import support
from citus_servers import PORT, Citus
from servers import Server
from support import embed_one, raised_error, value, vector, vector_text

PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
RANDOM_ROWS = 4000
TEXTS = ("a sleepy cat", "a rocket", "a cup of coffee", "wall clock", "outer space")


def subject(title: str) -> str:
    return re.sub("-(mirrored|cropped)$", "", title)


def reset(citus: Citus) -> None:
    for server in citus.servers:
        with server.connect() as db:
            db.execute("SELECT clip_reset_stats()")


def check_embedded_by_workers(citus: Citus, count: int) -> None:
    coordinator, *workers = citus.images()
    assert coordinator == 0 and sum(workers) == count and sorted(workers)[-2] > 0, (coordinator, workers)


def refused(db: psycopg.Connection, query: str, *parts: str) -> None:
    state, text = raised_error(db, query)
    assert state == "0A000" and all(part in text for part in parts), (state, text)
    assert text.count("\n") >= 2, f"no DETAIL, or no HINT: {text}"


def test_the_extension_comes_to_the_workers(citus: Citus) -> None:
    for server in citus.workers:
        with server.connect() as there:
            names = {name for (name,) in there.execute("SELECT extname FROM pg_extension")}
            assert {"vector", "clip_search"} <= names
            assert value(there, "SELECT vector_dims(clip_embed_text('a cat'))") == 512


def groups_match(db: psycopg.Connection, table: str, collection: str) -> bool:
    """Whether each group's size is the number of its rows."""
    query = f"SELECT cluster_id, count(*) FROM {table} WHERE cluster_id IS NOT NULL GROUP BY cluster_id"
    clusters = db.execute("SELECT id, size FROM clip_search.cluster WHERE collection = %s", (collection,)).fetchall()
    return dict(db.execute(query).fetchall()) == dict(clusters)


def group(db: psycopg.Connection, table: str, collection: str) -> int:
    """Calls clip_group until nothing is left to do. Returns the number of rows that joined or left a group."""
    total = 0
    while count := value(db, "SELECT clip_group(%s)", table):
        total += count
    assert groups_match(db, table, collection)
    return total


def test_rows_are_embedded_by_the_worker_that_stores_them(citus: Citus, db: psycopg.Connection) -> None:
    citus.run("watch")
    reset(citus)
    with db.cursor().copy("COPY photo (title, data) FROM STDIN WITH (FORMAT binary)") as copy:
        copy.set_types(["text", "bytea"])
        for photo in PHOTOS[:10]:
            copy.write_row((photo.stem, photo.read_bytes()))
    for server, photos in zip(citus.servers[:2], (PHOTOS[10:20], PHOTOS[20:]), strict=True):
        with server.connect() as there:
            for photo in photos:
                there.execute("INSERT INTO photo (title, data) VALUES (%s, %b)", (photo.stem, photo.read_bytes()))
    check_embedded_by_workers(citus, len(PHOTOS))
    before = citus.images()
    for photo in PHOTOS[::10]:
        found = vector(value(db, "SELECT embedding::text FROM photo WHERE title = %s", photo.stem))
        assert support.same_embedding(found, embed_one(db, "image", photo.read_bytes()))
    # Another photo changes the embedding; another title doesn't.
    db.execute("UPDATE photo SET data = %b WHERE title = 'cat'", (PHOTOS[-1].read_bytes(),))
    db.execute("UPDATE photo SET title = 'was a cat' WHERE title = 'cat'")
    assert sum(citus.images()[1:]) == sum(before[1:]) + 1
    found = vector(value(db, "SELECT embedding::text FROM photo WHERE title = 'was a cat'"))
    assert support.same_embedding(found, embed_one(db, "image", PHOTOS[-1].read_bytes()))
    cat = next(photo for photo in PHOTOS if photo.stem == "cat").read_bytes()
    with citus.workers[1].connect() as there:
        there.execute("UPDATE photo SET title = 'cat', data = %b WHERE title = 'was a cat'", (cat,))


def test_a_bad_file_is_listed_on_the_coordinator_and_undoes_nothing(citus: Citus, db: psycopg.Connection) -> None:
    for id in (9001, 9002):
        db.execute("INSERT INTO photo (id, title, data) VALUES (%s, 'bad', 'no image')", (id,))
    for id, photo in ((9003, PHOTOS[0]), (9004, PHOTOS[1])):
        db.execute("INSERT INTO photo (id, title, data) VALUES (%s, 'lost', %b)", (id, photo.read_bytes()))
    db.execute("UPDATE photo SET embedding = NULL WHERE title = 'lost'")
    assert value(db, "SELECT pending FROM clip_search.watch WHERE relation = 'photo'::regclass") == 2
    citus.run("backfill")
    assert value(db, "SELECT count(*) FROM photo WHERE embedding IS NULL") == 2
    failures = db.execute("SELECT key, sqlstate FROM clip_search.failure ORDER BY key").fetchall()
    assert failures == [(["9001"], "22023"), (["9002"], "22023")]
    rows = len(PHOTOS) + 4
    progress = "SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE relation = 'photo'::regclass"
    assert db.execute(progress).fetchone() == (rows, rows - 2, 0, 2)
    # A repaired file leaves the list at its next attempt or change.
    db.execute("UPDATE photo SET data = %b WHERE id = 9001", (PHOTOS[2].read_bytes(),))
    assert citus.run("progress") == [(0,)]
    assert db.execute("SELECT key FROM clip_search.failure").fetchall() == [(["9002"],)]
    db.execute("DELETE FROM photo WHERE id BETWEEN 9001 AND 9999")
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0


def test_another_role_owns_its_tables(citus: Citus, db: psycopg.Connection) -> None:
    """The owner's rights suffice, even if a superuser groups; another role sees neither keys nor groups."""
    db.execute("SET client_min_messages = warning")
    db.execute("CREATE ROLE anna LOGIN; CREATE ROLE bert LOGIN; CREATE SCHEMA hers; GRANT ALL ON SCHEMA hers TO anna")
    with citus.coordinator.connect() as hers:
        hers.execute("SET SESSION AUTHORIZATION anna")
        hers.execute("CREATE TABLE hers.photo (id bigint PRIMARY KEY, data bytea)")
        hers.execute("SELECT create_distributed_table('hers.photo', 'id', shard_count => 4)")
        hers.execute(
            "SELECT clip_watch('hers.photo', 'data', model => 'photo-mini', cluster => 'c', collection => 'hers', on_error => 'skip')"
        )
        for id, photo in enumerate(PHOTOS[:6]):
            hers.execute("INSERT INTO hers.photo VALUES (%s, %b)", (id, photo.read_bytes()))
        hers.execute("INSERT INTO hers.photo VALUES (9, 'bad')")
        assert value(hers, "SELECT count(*) FROM clip_search.failure") == 1
        assert value(hers, "SELECT clip_group('hers.photo')") == 6
        hers.execute("DELETE FROM hers.photo WHERE id = 1")
    assert value(db, "SELECT clip_group('hers.photo')") == 1
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'hers'") == 5
    with citus.coordinator.connect() as his:
        his.execute("SET SESSION AUTHORIZATION bert")
        assert value(his, "SELECT count(*) FROM clip_search.failure") == 0
        state, text = raised_error(his, "SELECT clip_group('hers.photo')")
        assert state == "42501", (state, text)
    # A trigger with settings is refused on another role's table.
    db.execute("GRANT USAGE ON SCHEMA hers TO bert; GRANT TRIGGER ON hers.photo TO bert")
    node, shard = db.execute(
        "SELECT nodename, 'hers.photo_' || shardid FROM citus_shards WHERE table_name = 'hers.photo'::regclass LIMIT 1"
    ).fetchone()
    with next(worker for worker in citus.workers if str(worker.folder) == node).connect() as there:
        there.execute("SET ROLE bert")
        query = f"CREATE TRIGGER t BEFORE INSERT ON {shard} FOR EACH ROW EXECUTE FUNCTION clip_watch_row('1', '{{}}')"
        state, text = raised_error(there, query)
        assert state == "42501" and "must be owner" in text, (state, text)
    db.execute("DROP SCHEMA hers CASCADE; DROP ROLE anna; DROP ROLE bert")


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
        db.execute("UPDATE photo SET data = data || '\\x00' WHERE id = %s", (id,))
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
    # The plan uses the index even though there are few rows.
    db.execute("SET citus.explain_all_tasks = on; SET citus.propagate_set_commands = 'local'")
    with db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")
        text = explain(db, citus.blocks["search"])
    shards = value(db, "SELECT count(*) FROM citus_shards WHERE table_name = 'photo'::regclass")
    assert shards == 4
    # The query that is sent contains the vector, not the call.
    sent = re.findall(r"Query: (.*)", text)
    assert len(sent) == shards and all("LIMIT '3'::bigint" in query and "'[…]'" in query for query in sent), text
    assert "clip_embed_text" not in text, text
    assert len(re.findall(r"Index Scan using photo_embedding_\d+", text)) == shards, text
    # The page warns of a call without the model's name.
    assert "clip_embed_text" in explain(
        db, "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 3"
    )


def test_a_text_is_embedded_once(citus: Citus, db: psycopg.Connection) -> None:
    reset(citus)
    db.execute(
        "PREPARE search (text) AS SELECT id FROM photo ORDER BY embedding <=> clip_embed_text($1, 'photo-mini') LIMIT 3"
    )
    for _ in range(8):  # the sixth is the first for which PostgreSQL may use a generic plan
        assert len(db.execute("EXECUTE search ('a text that nobody has looked for')").fetchall()) == 3
    counts = []
    for server in citus.servers:
        with server.connect() as there:
            counts.append(int(value(there, "SELECT coalesce(sum(texts), 0) FROM clip_stats()")))
    assert counts[0] >= 1 and counts[1:] == [0] * len(citus.workers), counts


def test_groups_are_made_on_the_coordinator(citus: Citus, db: psycopg.Connection) -> None:
    citus.run("group")
    sizes = collections.Counter(subject(photo.stem) for photo in PHOTOS)
    titles = dict(db.execute("SELECT id::text, title FROM photo").fetchall())
    groups = citus.run("clusters")
    assert {subject(titles[representative]): size for _, size, representative in groups} == sizes
    assert value(db, "SELECT count(*) FROM photo WHERE cluster_id IS NULL") == 0
    for worker in citus.workers:
        with worker.connect() as there:
            assert value(there, "SELECT count(*) FROM clip_search.cluster") == 0
    shown = value(db, "SELECT clip_cluster_groups('photo')")
    assert sorted(len(one["assets"]) for one in shown) == sorted(sizes.values())
    assert len(db.execute("SELECT * FROM clip_duplicates('photo', 0.9)").fetchall()) >= len(sizes)


def test_groups_follow_plain_statements_at_any_server(citus: Citus, db: psycopg.Connection) -> None:
    """Each statement that changes the groups' counts records that next to the row; after a call, drift is 0."""
    rocket = next(photo for photo in PHOTOS if photo.stem == "rocket").read_bytes()
    cat, home = db.execute("SELECT id, cluster_id FROM photo WHERE title = 'cat-cropped'").fetchone()
    with citus.workers[0].connect() as there:
        there.execute("UPDATE photo SET data = %b WHERE id = %s", (rocket, cat))
        there.execute("DELETE FROM photo WHERE title = 'clock-mirrored' OR title LIKE 'pagoda%'")
        there.execute("INSERT INTO photo (id, data) VALUES (9001, %b), (9002, %b)", (rocket, rocket))
    with citus.workers[1].connect() as there:
        for photo in PHOTOS[:2]:
            query = "INSERT INTO photo (id, data) VALUES (9001, %b) ON CONFLICT (id) DO UPDATE SET data = excluded.data"
            there.execute(query, (photo.read_bytes(),))
    assert not groups_match(db, "photo", "photo")
    assert group(db, "photo", "photo") > 0
    other = value(db, "SELECT cluster_id FROM photo WHERE id = %s", cat)
    assert other == value(db, "SELECT cluster_id FROM photo WHERE title = 'rocket'") != home
    # In the middle of a transaction, then rolled back.
    with db.transaction(force_rollback=True):
        db.execute("DELETE FROM photo WHERE id = %s", (cat,))
        assert value(db, "SELECT clip_group('photo')") == 1
    assert groups_match(db, "photo", "photo")
    # One embedding is written by hand, another is removed.
    db.execute("UPDATE photo SET embedding = clip_embed_text('a rocket', 'photo-mini') WHERE id = 9001")
    db.execute("UPDATE photo SET embedding = NULL WHERE id = 9002")
    assert group(db, "photo", "photo") == 3
    assert value(db, "SELECT cluster_id FROM photo WHERE id = 9002") is None
    db.execute("DELETE FROM photo WHERE id BETWEEN 9001 AND 9999")
    assert group(db, "photo", "photo") == 1


def test_a_row_that_changes_meanwhile_is_not_counted(citus: Citus, db: psycopg.Connection) -> None:
    """clip_group waits for a transaction that has changed the row to be assigned, and then skips the row."""
    db.execute("INSERT INTO photo (id, data) VALUES (9001, %b)", (PHOTOS[0].read_bytes(),))
    done: list[int] = []

    def call() -> None:
        with citus.coordinator.connect() as other:
            done.append(value(other, "SELECT clip_group('photo')"))

    with citus.workers[0].connect() as there, there.transaction():
        there.execute("UPDATE photo SET data = %b WHERE id = 9001", (PHOTOS[-1].read_bytes(),))
        session = threading.Thread(target=call, daemon=True)
        session.start()
        time.sleep(1)
        assert session.is_alive(), "it did not wait for the row"
    session.join(30)
    assert done == [0] and groups_match(db, "photo", "photo")
    assert group(db, "photo", "photo") == 1
    db.execute("DELETE FROM photo WHERE id = 9001")
    assert group(db, "photo", "photo") == 1


def test_recluster_writes_members_by_key(citus: Citus, db: psycopg.Connection) -> None:
    """With a threshold that no pair reaches, each photo is a group; with the usual threshold, each subject is."""
    rows = value(db, "SELECT count(*) FROM photo")
    sizes = db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'photo' ORDER BY size").fetchall()
    db.execute("SELECT clip_alter_collection('photo', threshold => 1)")
    with citus.workers[0].connect() as there:
        gone = value(there, "DELETE FROM photo WHERE id = (SELECT min(id) FROM photo) RETURNING data")
    state, text = raised_error(db, "SELECT * FROM clip_recluster('photo')")
    assert state == "55000" and "clip_group" in text, (state, text)
    assert value(db, "SELECT clip_group('photo')") == 1
    changes = db.execute("SELECT * FROM clip_recluster('photo')").fetchall()
    assert changes and groups_match(db, "photo", "photo")
    assert value(db, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'photo'") > len(sizes)
    db.execute("INSERT INTO photo (title, data) VALUES ('cat-cropped', %b)", (gone,))
    db.execute("SELECT clip_alter_collection('photo', threshold => 0.82)")
    db.execute("SELECT * FROM clip_recluster('photo')")
    assert groups_match(db, "photo", "photo") and value(db, "SELECT count(cluster_id) FROM photo") == rows
    after = db.execute("SELECT size FROM clip_search.cluster WHERE collection = 'photo' ORDER BY size").fetchall()
    assert after == sizes
    db.execute("UPDATE photo SET title = title")
    assert value(db, "SELECT clip_group('photo')") == 0


def test_truncate_at_a_worker_empties_the_groups(citus: Citus, db: psycopg.Connection) -> None:
    photos = db.execute("SELECT title, data FROM photo").fetchall()
    db.execute("INSERT INTO photo (id, data) VALUES (9001, 'bad')")
    with citus.workers[1].connect() as there:
        there.execute("TRUNCATE photo")
    assert value(db, "SELECT count(*) FROM clip_search.failure") == 0
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO photo (title, data) VALUES (%s, %b)", photos)
    group(db, "photo", "photo")
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == len(photos)


def test_what_does_not_work_says_so(citus: Citus, db: psycopg.Connection) -> None:
    refused(db, "CALL clip_reembed('photo', 'photo-mini')", "public.photo is a distributed table", "embedding =>")
    with citus.workers[0].connect() as there:
        for call in ("SELECT clip_watch('photo', 'data')", "SELECT clip_group('photo')", "SELECT clip_unwatch('photo')",
                     "CALL clip_backfill('photo')", "SELECT clip_retry('photo')"):  # fmt: skip
            refused(there, call, "this is a worker", "on the coordinator")
        for call in ("SELECT * FROM clip_clusters('photo')", "SELECT clip_create_collection('here')"):
            refused(there, call, "on a worker of Citus")
    refused(
        db,
        "SELECT clip_create_collection('m', members => 'photo')",
        "public.photo is a table of Citus",
        "clip_watch",
    )
    for query in (
        "SELECT clip_assign_cluster(embedding, 'photo') FROM photo",
        "SELECT clip_assign_cluster(embedding) FROM photo WHERE id = (SELECT min(id) FROM photo)",
        "INSERT INTO photo (title, cluster_id) SELECT title, clip_assign_cluster(embedding, 'photo') FROM photo",
        "SELECT clip_leave_cluster(cluster_id, embedding) FROM photo",
    ):
        refused(db, query, "was called on a worker of Citus", "coordinator")
    state, text = raised_error(db, "UPDATE photo SET cluster_id = clip_assign_cluster(embedding, 'photo')")
    assert state == "0A000" and "VOLATILE" in text
    # Tables that Citus doesn't know work as before; reference tables don't.
    db.execute("CREATE TABLE here (id bigint PRIMARY KEY, data bytea)")
    db.execute("SELECT clip_watch('here', 'data', cluster => 'cluster_id')")
    db.execute("INSERT INTO here (id, data) VALUES (1, %b)", (PHOTOS[0].read_bytes(),))
    assert value(db, "SELECT count(*) FROM here WHERE embedding IS NOT NULL AND cluster_id IS NOT NULL") == 1
    state, text = raised_error(db, "SELECT create_distributed_table('here', 'id')")
    assert "has triggers" in text
    # If triggers are allowed, Citus inserts the rows into the shards.
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL citus.enable_unsafe_triggers = on")
        _, text = raised_error(db, "SELECT create_distributed_table('here', 'id')")
    assert "a trigger of clip_watch is on a table that is not watched" in text
    db.execute("SELECT clip_unwatch('here'); SELECT create_distributed_table('here', 'id'); DROP TABLE here")
    db.execute(
        "CREATE TABLE everywhere (id bigint PRIMARY KEY, data bytea); SELECT create_reference_table('everywhere')"
    )
    refused(db, "SELECT clip_watch('everywhere', 'data')", "public.everywhere is a reference table of Citus")


def measure(server: Server, name: str, table: list[tuple[str, ...]]) -> None:
    """Fills `photo` with the gallery and random vectors, and measures searches."""
    with server.connect() as db:
        db.execute("TRUNCATE photo")
        start = time.monotonic()
        with db.cursor().copy("COPY photo (title, data) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["text", "bytea"])
            for photo in PHOTOS * 4:
                copy.write_row((photo.stem, photo.read_bytes()))
        photos = len(PHOTOS) * 4 / (time.monotonic() - start)
        rows = np.random.default_rng(1).standard_normal((RANDOM_ROWS, 512)).astype(np.float32)
        # These rows have vectors but no images: the trigger would remove the vectors.
        db.execute("SET citus.enable_unsafe_triggers = on")
        trigger = value(
            db,
            "SELECT min(tgname::text) FROM pg_trigger WHERE tgrelid = 'photo'::regclass AND tgname ~ '^zz_clip_watch_[0-9]+$'",
        )
        db.execute(f"ALTER TABLE photo DISABLE TRIGGER {trigger}")
        start = time.monotonic()
        with db.cursor().copy("COPY photo (embedding) FROM STDIN") as copy:
            for row in rows:
                copy.write_row((vector_text(row),))
        inserted = RANDOM_ROWS / (time.monotonic() - start)
        db.execute(f"ALTER TABLE photo ENABLE TRIGGER {trigger}")
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
            # The gallery was inserted four times: any equally near copy is right.
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
        statements = citus.blocks["setup"] + citus.blocks["watch"] + citus.blocks["settings"]
        statements = re.sub(r"SELECT create_distributed_table.*?;|SET LOCAL citus.*?;", "", statements)
        there.execute("SET client_min_messages = warning")
        there.execute(statements.replace("CREATE EXTENSION clip_search", "CREATE EXTENSION IF NOT EXISTS clip_search"))
    measure(single, "one", table)
    measure(citus.coordinator, f"coordinator and {len(citus.workers)} workers", table)


def test_a_worker_that_is_down(citus: Citus) -> None:
    citus.workers[1].stop("immediate")
    try:
        with citus.coordinator.connect() as db:
            state, text = raised_error(db, citus.blocks["search"])
            assert state in {"08006", "08001", "57P01", "57P03"} and str(citus.workers[1].folder) in text, (state, text)
    finally:
        citus.workers[1].start()
    assert len(citus.run("search")) == 3


def test_unwatch_leaves_nothing(citus: Citus, db: psycopg.Connection) -> None:
    citus.run("unwatch")
    db.execute("CALL citus_cleanup_orphaned_resources()")  # where a shard was before it moved
    for server in citus.servers:
        with server.connect() as there:
            there.execute("SET citus.override_table_visibility = off")
            query = (
                "SELECT relation::text, home FROM clip_search.watch_setting WHERE relation::text ~ '^photo(_\\d+)?$'"
            )
            assert there.execute(query).fetchall() == []
            assert (
                value(
                    there,
                    "SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text ~ '^photo' AND tgname ~ 'clip_watch' AND tgtype & 1 = 1",
                )
                == 0
            )
    assert value(db, "SELECT count(*) FROM pg_class WHERE relname ~ 'departed'") == 0
    db.execute("INSERT INTO photo (id, data) VALUES (9009, 'anything')")
    db.execute("TRUNCATE photo")
