"""Roles that own distributed tables, and roles that attack them: whose code runs, what a name or a number may refer
to, and names that are hard to quote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import psycopg
import pytest

from citus_servers import Citus
from servers import Server
from support import raised_error, value


def as_role(server: Server, role: str) -> psycopg.Connection:
    return psycopg.connect(host=str(server.folder), user=role, dbname="postgres", autocommit=True)


@pytest.fixture(scope="module", autouse=True)
def roles(citus: Citus) -> None:
    with citus.coordinator.connect() as db:
        db.execute("CREATE ROLE olga LOGIN; CREATE ROLE mallory LOGIN; CREATE SCHEMA common")
        db.execute("GRANT ALL ON SCHEMA common TO olga, mallory")


@pytest.fixture
def olga(citus: Citus) -> Iterator[psycopg.Connection]:
    with as_role(citus.coordinator, "olga") as connection:
        yield connection


@contextlib.contextmanager
def distributed(
    db: psycopg.Connection, name: str, shards: int = 2, columns: str = "id bigint PRIMARY KEY, title text"
) -> Iterator[None]:
    """A distributed table of texts."""
    db.execute(f"CREATE TABLE {name} ({columns})")
    key = columns.split()[0].strip('"')
    query = "SELECT create_distributed_table(%s, %s, shard_count => %s, colocate_with => 'none')"
    db.execute(query, (name, key, shards))
    try:
        yield
    finally:
        db.execute("SELECT clip_unwatch(relation) FROM clip_search.watch WHERE relation = %s::regclass", (name,))
        db.execute(f"DROP TABLE {name}")


def watch(db: psycopg.Connection, name: str, **arguments: str) -> None:
    given = {"source": "title", "model": "photo-mini", "on_error": "skip", **arguments}
    named = ", ".join(f"{argument} => %s" for argument in given)
    db.execute(f"SELECT clip_watch(%s, {named})", (name, *given.values()))


def progress(db: psycopg.Connection, name: str) -> tuple:
    query = "SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE relation = %s::regclass"
    return db.execute(query, (name,)).fetchone()


def sizes(db: psycopg.Connection, collection: str) -> int:
    query = "SELECT coalesce(sum(size), 0) FROM clip_search.cluster WHERE collection = %s"
    return int(value(db, query, collection))


def test_the_question_to_the_servers_names_no_function_of_another_role(
    citus: Citus, db: psycopg.Connection, olga: psycopg.Connection
) -> None:
    """PostgreSQL prefers an aggregate for exactly the rows' type to its own one, if the search_path includes its
    schema."""
    db.execute("GRANT CREATE ON SCHEMA public TO mallory")
    with distributed(olga, "common.asked"):
        watch(olga, "common.asked")
        olga.execute("INSERT INTO common.asked VALUES (1, 'a cat'), (2, E'\\t')")
        for server in citus.servers:
            with as_role(server, "mallory") as hers:
                hers.execute("SET citus.enable_ddl_propagation = off; SET citus.enable_metadata_sync = off")
                hers.execute("""
                    CREATE FUNCTION public.finish(text) RETURNS json LANGUAGE plpgsql AS
                        $$ BEGIN RAISE 'this is code of mallory, run by %', current_user; END $$
                """)
                for kind in ("shard_failure", "shard_queue"):
                    hers.execute(f"""
                        CREATE FUNCTION public.step(text, clip_search.{kind}) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
                        CREATE AGGREGATE public.json_agg(clip_search.{kind}) (sfunc = public.step, stype = text,
                            initcond = '', finalfunc = public.finish)
                    """)
        try:
            query = "SELECT key FROM clip_search.{} WHERE relation = 'common.asked'::regclass"
            assert db.execute(query.format("failure")).fetchall() == [(["2"],)]
            assert db.execute(query.format("pending")).fetchall() == []
            assert progress(db, "common.asked") == (2, 1, 0, 1)
        finally:
            for server in citus.servers:
                with server.connect() as there:
                    there.execute("SET client_min_messages = warning; SET citus.enable_ddl_propagation = off")
                    there.execute("DROP FUNCTION public.finish(text) CASCADE")
                    there.execute("DROP FUNCTION public.step(text, clip_search.shard_failure)")
                    there.execute("DROP FUNCTION public.step(text, clip_search.shard_queue)")
    db.execute("REVOKE CREATE ON SCHEMA public FROM mallory")


def test_a_table_whose_name_ends_like_a_shards_is_none(
    citus: Citus, db: psycopg.Connection, olga: psycopg.Connection
) -> None:
    olga.execute("CREATE TABLE common.kept (id bigint PRIMARY KEY, title text)")
    watch(olga, "common.kept", cluster="cluster_id", collection="kept")
    olga.execute("INSERT INTO common.kept SELECT i, 'a cat ' || i FROM generate_series(1, 5) AS i")
    olga.execute("INSERT INTO common.kept VALUES (9, E'\\t')")
    db.execute("SELECT citus_add_local_table_to_metadata('common.kept')")
    # The collection's members are now in a shard, which Citus hides from its owner.
    assert sizes(olga, "kept") == 5
    query = "SELECT owner::text FROM clip_search.collection WHERE name = 'kept'"
    assert value(olga, query) == value(db, query) == "olga"
    id = value(db, "SELECT id FROM clip_search.watch_setting WHERE collection = 'kept'")
    shard = value(db, "SELECT shardid FROM pg_dist_shard WHERE logicalrelid = 'common.kept'::regclass")
    with as_role(citus.coordinator, "mallory") as hers:
        hers.execute("SET citus.enable_metadata_sync = off")
        columns = "id bigint PRIMARY KEY, title text, embedding vector(512), cluster_id bigint"
        hers.execute(f"CREATE TABLE common.mine_{shard} ({columns})")
        for when in ("BEFORE", "AFTER"):
            hers.execute(
                f"CREATE TRIGGER {when} {when} TRUNCATE ON common.mine_{shard} EXECUTE FUNCTION clip_watch_row('{id}')"
            )
        state, text = raised_error(hers, f"TRUNCATE common.mine_{shard}")
        assert state == "55000" and "not watched" in text, (state, text)
        hers.execute(f"DROP TABLE common.mine_{shard}")
    assert sizes(db, "kept") == 5 and progress(olga, "common.kept") == (6, 5, 0, 1)
    olga.execute("TRUNCATE common.kept")
    assert sizes(db, "kept") == 0 and progress(olga, "common.kept") == (0, 0, 0, 0)
    olga.execute("DROP TABLE common.kept")


def test_the_number_of_anothers_watch_is_not_enough(
    citus: Citus, db: psycopg.Connection, olga: psycopg.Connection
) -> None:
    with distributed(olga, "common.counted"), as_role(citus.coordinator, "mallory") as hers:
        watch(olga, "common.counted")
        olga.execute("INSERT INTO common.counted VALUES (1, 'a cat'), (2, E'\\t')")
        id = value(db, "SELECT id FROM clip_search.watch_setting WHERE relation = 'common.counted'::regclass")
        columns = "id bigint PRIMARY KEY, title text, embedding vector(512)"
        with distributed(hers, "common.forged", columns=columns):
            hers.execute("GRANT SELECT ON common.forged TO PUBLIC")
            hers.execute("INSERT INTO common.forged VALUES (1, 'a dog')")
            settings = {
                "id": id, "text": "title", "text_weight": 0.5, "embedding": "embedding", "model": "photo-mini",
                "queued": False, "skip": True, "key": ["id"],
            }  # fmt: skip
            hers.execute("SET citus.enable_unsafe_triggers = on")
            hers.execute(
                "CREATE TRIGGER t BEFORE INSERT ON common.forged FOR EACH ROW "
                f"EXECUTE FUNCTION clip_watch_row('{id}', '{json.dumps(settings)}')"
            )
            hers.execute("INSERT INTO common.forged VALUES (2, E'\\t')")
            for reader in (olga, db):
                assert progress(reader, "common.counted") == (2, 1, 0, 1)
                query = "SELECT key FROM clip_search.failure WHERE relation = 'common.counted'::regclass"
                assert reader.execute(query).fetchall() == [(["2"],)]
            db.execute("SET client_min_messages = error")
            db.execute("CALL clip_backfill('common.counted')")
            assert value(db, "SELECT clip_retry('common.counted')") == 0
            assert value(db, "SELECT count(embedding) FROM common.forged") == 0


def test_default_privileges_are_not_for_departures(
    citus: Citus, db: psycopg.Connection, olga: psycopg.Connection
) -> None:
    """The departures contain embeddings of rows that other roles may not see, and writing to them changes groups."""
    db.execute("CREATE ROLE app LOGIN; CREATE SCHEMA granted AUTHORIZATION olga; GRANT USAGE ON SCHEMA granted TO app")
    for grantee in ("app", "PUBLIC"):
        olga.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA granted GRANT ALL ON TABLES TO {grantee}")
    with distributed(olga, "granted.photo"):
        watch(olga, "granted.photo", cluster="cluster_id", collection="granted")
        olga.execute("INSERT INTO granted.photo VALUES (1, 'a cat'), (2, 'a dog')")
        assert value(olga, "SELECT clip_group('granted.photo')") == 2
        table = value(db, "SELECT oid::regclass::text FROM pg_class WHERE relname LIKE 'photo_departed_%' AND relkind = 'r' "
                          "AND relnamespace = 'granted'::regnamespace")  # fmt: skip
        with as_role(citus.coordinator, "app") as app:
            app.execute("DELETE FROM granted.photo WHERE id = 1")
            for query in (f"SELECT * FROM {table}", f"DELETE FROM {table}", f"TRUNCATE {table}",
                          f"INSERT INTO {table} (id, departed_id) VALUES (1, gen_random_uuid())"):  # fmt: skip
                assert raised_error(app, query)[0] == "42501"
        assert value(olga, "SELECT clip_group('granted.photo')") == 1 and sizes(olga, "granted") == 1


@pytest.mark.parametrize(
    ("table", "embedding", "cluster"),
    [
        ("plain", "text", "id2"),
        ("plain", "hash", "t"),
        ("plain", "t", "a"),
        ('"' + "日" * 20 + '"', "embedding", "größe"),
        ('"%s{} \'\\"', '"a"b\\"', "c%I"),
    ],
)
def test_names(olga: psycopg.Connection, table: str, embedding: str, cluster: str) -> None:
    name = f"common.{table}"
    olga.execute(f'CREATE TABLE {name} ("Id {{}}" bigint PRIMARY KEY, title text)')
    olga.execute("SELECT create_distributed_table(%s, 'Id {}', shard_count => 2, colocate_with => 'none')", (name,))
    watch(olga, name, embedding=embedding, cluster=cluster, collection="names")
    olga.execute(f"INSERT INTO {name} SELECT i, 'a cat ' || i FROM generate_series(1, 9) AS i")
    assert value(olga, "SELECT clip_group(%s)", name) == 9 and sizes(olga, "names") == 9
    olga.execute(f'DELETE FROM {name} WHERE "Id {{}}" < 4')
    assert value(olga, "SELECT clip_group(%s)", name) == 3 and sizes(olga, "names") == 6
    olga.execute("SET client_min_messages = warning")
    olga.execute("SELECT clip_alter_collection('names', threshold => 0.99999)")
    olga.execute("SELECT clip_recluster('names')")
    assert value(olga, "SELECT count(*) FROM clip_search.cluster WHERE collection = 'names'") == 6
    olga.execute(f"TRUNCATE {name}")
    assert value(olga, "SELECT clip_group(%s)", name) > 0 and sizes(olga, "names") == 0
    olga.execute("SELECT clip_unwatch(%s)", (name,))
    query = "SELECT count(*) FROM pg_class WHERE relnamespace = 'common'::regnamespace AND relkind = 'r'"
    assert value(olga, query) == 1, "the table of departures stayed"
    olga.execute(f"DROP TABLE {name}")


def test_a_vector_that_no_group_can_have_holds_up_nothing(olga: psycopg.Connection) -> None:
    """A shard accepts any vector that is written by hand, since the groups are on another server."""
    with distributed(olga, "common.zero"):
        watch(olga, "common.zero", cluster="cluster_id", collection="zero")
        olga.execute("INSERT INTO common.zero VALUES (1, 'a cat'), (2, 'a dog'), (3, 'a car')")
        olga.execute("UPDATE common.zero SET embedding = array_fill(0, ARRAY[512])::vector WHERE id = 2")
        told: list[str] = []
        olga.add_notice_handler(lambda notice: told.append(f"{notice.severity} {notice.message_primary}"))
        assert value(olga, "SELECT clip_group('common.zero')") == 2 and sizes(olga, "zero") == 2
        assert told == ["WARNING 1 row of common.zero can't be grouped"]
        olga.execute("UPDATE common.zero SET embedding = NULL WHERE id = 2")
        olga.execute("CALL clip_backfill('common.zero')")
        told.clear()
        assert value(olga, "SELECT clip_group('common.zero')") == 1 and sizes(olga, "zero") == 3
        assert told == []


def test_a_backfill_tells_rows_that_it_embeds_again(olga: psycopg.Connection) -> None:
    columns = "id bigint PRIMARY KEY, title text, embedding vector(512)"
    with distributed(olga, "common.again", columns=columns):
        vectors = "INSERT INTO common.again VALUES (%s, 'a cat', clip_embed_text('a dog', 'photo-mini'))"
        for id in range(5):
            olga.execute(vectors, (id,))
        watch(olga, "common.again")
        told: list[str] = []
        olga.add_notice_handler(lambda notice: told.append(notice.message_primary))
        olga.execute("CALL clip_backfill('common.again')")
        assert any(text.startswith("clip_search: 5 rows embedded in ") for text in told), told
        query = "SELECT count(*) FROM common.again WHERE embedding <=> clip_embed_text('a cat', 'photo-mini') < 1e-6"
        assert value(olga, query) == 5


def test_a_transaction_uses_shards_as_one_role(db: psycopg.Connection, olga: psycopg.Connection) -> None:
    """Citus refuses to use two roles in one transaction, since they could wait for each other; so the error tells
    the caller to become the owner."""
    columns = "id bigint PRIMARY KEY, title text, embedding vector(512), cluster_id bigint"
    with distributed(olga, "common.owned", columns=columns):
        olga.execute("INSERT INTO common.owned VALUES (1, 'a cat', clip_embed_text('a cat', 'photo-mini'), 5)")
        call = "SELECT clip_watch('common.owned', 'title', model => 'photo-mini', cluster => 'cluster_id', collection => 'owned')"
        state, text = raised_error(db, call)
        assert state == "0A000" and "belongs to olga" in text and "SET ROLE olga" in text, (state, text)
        db.execute("SET client_min_messages = warning")
        db.execute("SET ROLE olga")
        db.execute(call)
        db.execute("RESET ROLE")
        assert value(db, "SELECT clip_group('common.owned')") == 1
        state, text = raised_error(db, "TRUNCATE common.owned")
        assert state == "0A000" and "belongs to olga" in text and "SET ROLE olga" in text, (state, text)
        db.execute("DELETE FROM common.owned")
        assert value(db, "SELECT clip_group('common.owned')") == 1 and sizes(db, "owned") == 0
        olga.execute("INSERT INTO common.owned VALUES (1, 'a cat')")
        assert value(olga, "SELECT clip_group('common.owned')") == 1
        db.execute("SET ROLE olga")
        db.execute("TRUNCATE common.owned")
        db.execute("RESET ROLE")
        assert value(db, "SELECT clip_group('common.owned')") == 1 and sizes(db, "owned") == 0


def test_a_shard_is_not_watched_by_itself(citus: Citus, olga: psycopg.Connection) -> None:
    with distributed(olga, "common.whole"):
        watch(olga, "common.whole", cluster="cluster_id", collection="whole")
        query = "SELECT nodename, shardid FROM citus_shards WHERE table_name = 'common.whole'::regclass LIMIT 1"
        with citus.coordinator.connect() as db:
            node, shard = db.execute(query).fetchone()
        with as_role(next(worker for worker in citus.workers if str(worker.folder) == node), "olga") as there:
            for call in ("clip_watch({}, 'title')", "clip_unwatch({})"):
                state, text = raised_error(there, "SELECT " + call.format(f"'common.whole_{shard}'"))
                assert state == "0A000" and "is a shard of common.whole" in text, (state, text)
        olga.execute("INSERT INTO common.whole VALUES (1, 'a cat'), (2, 'a dog'), (3, 'a car')")
        assert value(olga, "SELECT clip_group('common.whole')") == 3
