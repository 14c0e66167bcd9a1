"""The extension within a server: cancelling, roles, schemas, dump and restore."""

from __future__ import annotations

import subprocess
import threading
import time

import psycopg
import pytest
from psycopg import sql

import support
from support import embed_one, raised_error, value, vector_text

PHOTO = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
INSUFFICIENT_PRIVILEGE = "42501"
QUERY_CANCELED = "57014"
# CPU seconds that a backend may spend before it notices a cancel: ample where interrupts are checked between two items
# (photo-mini takes 20 ms for an image), and far less than the query, which takes minutes on any machine.
SOON = 3.0


def axis(*components: float) -> str:
    """A vector of 512 dimensions with these components first."""
    return vector_text([*components, *[0.0] * (512 - len(components))])


@pytest.fixture
def db(database: support.Database):
    with database.connect() as connection:
        yield connection


# ---------------------------------------------------------------- cancelling

LONG_QUERIES = {
    # The planner would compute array_fill while it processes the message Bind; a cancel that arrives then is forgotten
    # before the message Execute is read.
    "one array of images": "SELECT clip_embed_images(array_agg(%(photo)s::bytea)) FROM generate_series(1, 10000)",
    "many calls": (
        # Each image is a different file: an image that was seen before isn't computed again.
        "SELECT count(clip_embed_image(%(photo)s::bytea || int4send(n))) FROM generate_series(1, 100000) n"
    ),
    "one array of texts": ("SELECT clip_embed_texts(array_agg('cat number ' || n)) FROM generate_series(1, 120000) n"),
}


@pytest.mark.parametrize("query", LONG_QUERIES.values(), ids=LONG_QUERIES)
def test_a_timeout_ends_a_long_query_and_the_connection_goes_on(db: psycopg.Connection, query: str) -> None:
    before_image, before_text = embed_one(db, "image", PHOTO), embed_one(db, "text", "a cat")  # loads the model
    db.execute("SET statement_timeout = '200ms'")
    pid = db.info.backend_pid
    start, computed = time.monotonic(), support.cpu_seconds(pid)
    with pytest.raises(psycopg.Error) as caught:
        db.execute(query, {"photo": PHOTO})
    assert caught.value.sqlstate == QUERY_CANCELED
    assert caught.value.diag.message_detail is None, "the way through the code is no detail for a user"
    assert time.monotonic() - start > 0.15
    assert support.cpu_seconds(pid) - computed < SOON
    db.execute("RESET statement_timeout")
    assert support.same_embedding(embed_one(db, "image", PHOTO), before_image)
    assert support.same_embedding(embed_one(db, "text", "a cat"), before_text)
    # This session remembers nothing for it yet, so the embedding is computed.
    assert embed_one(db, "text", "not asked for before").shape == (512,)


def test_another_session_can_cancel(database: support.Database, db: psycopg.Connection) -> None:
    with database.connect() as busy:
        embed_one(busy, "image", PHOTO)
        found: list = []
        query = LONG_QUERIES["one array of images"].replace("%(photo)s", "%s")
        thread = threading.Thread(target=lambda: found.append(raised_error(busy, query, PHOTO)), daemon=True)
        thread.start()
        # A cancel doesn't reach a backend that is still idle, and on a busy machine the photo takes a while to arrive.
        pid = busy.info.backend_pid
        support.until(lambda: support.is_running(db, pid), "the query's beginning")
        time.sleep(0.3)
        computed = support.cpu_seconds(pid)
        assert value(db, "SELECT pg_cancel_backend(%s)", pid)
        thread.join(support.PATIENCE)
        assert not thread.is_alive() and found[0][0] == QUERY_CANCELED
        assert support.cpu_seconds(pid) - computed < SOON
        assert embed_one(busy, "image", PHOTO).shape == (512,)


# ---------------------------------------------------------------- roles


def test_a_plain_role_embeds_and_groups_through_a_trigger(
    database: support.Database, db: psycopg.Connection, plain_role: str
) -> None:
    """Every role may use the functions, but only the functions may change the tables behind them."""
    with database.connect(user=plain_role) as mine:
        mine.execute(sql.SQL("SET search_path = {}, public").format(sql.Identifier(plain_role)))
        mine.execute("""
            CREATE TABLE photo (id int, data bytea, embedding vector(512), cluster_id bigint);
            CREATE FUNCTION embed_photo() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.embedding := clip_embed_image(NEW.data);
                NEW.cluster_id := clip_assign_cluster(NEW.embedding, 'plain');
                RETURN NEW;
            END $$;
            CREATE TRIGGER embed_photo BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION embed_photo();
            """)
        mine.execute("INSERT INTO photo (id, data) SELECT n, %s FROM generate_series(1, 3) n", (PHOTO,))
        assert value(mine, "SELECT count(DISTINCT cluster_id) FROM photo") == 1
        assert value(mine, "SELECT size FROM clip_search.cluster WHERE collection = 'plain'") == 3
        assert embed_one(mine, "text", "a cat").shape == (512,)
        assert value(mine, "SELECT count(*) FROM clip_models() WHERE loaded") == 1
        for query in (
            "INSERT INTO clip_search.cluster_sum (collection, cluster, size, sum) VALUES ('plain', 1, 1, '[1]')",
            "UPDATE clip_search.cluster_sum SET size = 1",
            "DELETE FROM clip_search.cluster_change",
            "TRUNCATE clip_search.cluster_sum",
            "INSERT INTO clip_search.collection_setting (name, dimensions) VALUES ('x', 1)",
            "UPDATE clip_search.collection_setting SET dimensions = 1",
            "DELETE FROM clip_search.cluster_code",
            "SELECT nextval('clip_search.cluster_id_seq')",
            "CREATE TABLE clip_search.mine ()",
        ):
            state, text = raised_error(mine, query)
            assert state == INSUFFICIENT_PRIVILEGE, (query, state, text)
    assert value(db, "SELECT size FROM clip_search.cluster WHERE collection = 'plain'") == 3


PROTECTED = ("model_path", "onnxruntime", "max_image_pixels", "max_image_bytes", "max_image_memory", "max_threads")


def test_a_plain_role_cannot_point_the_server_at_files(database: support.Database, plain_role: str) -> None:
    """A library path would run code as the server's user; a model path would read files as that user."""
    with database.connect(user=plain_role) as mine:
        mine.execute("SELECT clip_version()")
        for name in PROTECTED:
            for query in (
                f"SET clip_search.{name} = '1'",
                f"SELECT set_config('clip_search.{name}', '1', false)",
            ):
                state, text = raised_error(mine, query)
                assert state == INSUFFICIENT_PRIVILEGE, (query, state, text)
            state, _ = raised_error(mine, f"ALTER ROLE CURRENT_USER SET clip_search.{name} = '1'")
            assert state == INSUFFICIENT_PRIVILEGE
        for name, other in (
            ("model", "x"),
            ("threads", "2"),
            ("cluster_threshold", "0.9"),
            ("truncate_text", "off"),
        ):
            mine.execute(f"SET clip_search.{name} = '{other}'")


def test_a_setting_made_before_the_library_is_loaded_has_no_more_rights(
    database: support.Database, plain_role: str
) -> None:
    """Until the library is loaded, PostgreSQL accepts any value for a setting that it doesn't know; loading has to
    check it."""
    with database.connect(user=plain_role) as mine:
        for name in PROTECTED:
            mine.execute(f"SET clip_search.{name} = '1'")
        assert embed_one(mine, "image", PHOTO).shape == (512,)
        assert embed_one(mine, "text", "a cat").shape == (512,)


def test_other_objects_of_the_same_name_are_not_used(
    database: support.Database, db: psycopg.Connection, plain_role: str
) -> None:
    """clip_assign_cluster runs as its owner, so it must not call any function or operator of the caller."""
    role = sql.Identifier(plain_role)
    with database.connect(user=plain_role) as mine:
        mine.execute(sql.SQL("SET search_path = {}, pg_catalog, public").format(role))
        mine.execute(
            sql.SQL("""
                CREATE FUNCTION trap(text, text) RETURNS boolean LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
                CREATE FUNCTION trap(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
                CREATE FUNCTION trap(public.vector, public.vector) RETURNS float8 LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
                CREATE FUNCTION now() RETURNS timestamptz LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
                CREATE OPERATOR = (FUNCTION = trap, LEFTARG = text, RIGHTARG = text);
                CREATE OPERATOR = (FUNCTION = trap, LEFTARG = bigint, RIGHTARG = bigint);
                CREATE OPERATOR <=> (FUNCTION = trap, LEFTARG = public.vector, RIGHTARG = public.vector);
                CREATE TEMPORARY TABLE collection (name text, dimensions int);
                CREATE TEMPORARY TABLE cluster (id bigint);
                """)
        )
        assert raised_error(mine, "SELECT 'a'::text = 'a'::text")[1].startswith("trapped")  # the traps do work
        ids = [value(mine, "SELECT clip_assign_cluster(%s, 'trap')", axis(1.0)) for _ in range(3)]
        assert len(set(ids)) == 1
        assert embed_one(mine, "text", "a cat").shape == (512,)
    assert value(db, "SELECT size FROM clip_search.cluster WHERE id = %s", ids[0]) == 3


TRAPS = """
CREATE SCHEMA pgv;
CREATE EXTENSION vector SCHEMA pgv;
CREATE SCHEMA ext;
CREATE FUNCTION ext.trap(pgv.vector) RETURNS pgv.vector LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE FUNCTION ext.trap(pgv.vector, pgv.vector) RETURNS pgv.vector LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE FUNCTION ext.l2_normalize(pgv.vector) RETURNS pgv.vector LANGUAGE sql AS $$ SELECT ext.trap($1) $$;
CREATE FUNCTION ext.vector_norm(pgv.vector) RETURNS float8 LANGUAGE sql AS $$ SELECT 1 FROM ext.trap($1) $$;
CREATE FUNCTION ext.vector_dims(pgv.vector) RETURNS int LANGUAGE sql AS $$ SELECT 1 FROM ext.trap($1) $$;
CREATE AGGREGATE ext.sum(pgv.vector) (SFUNC = ext.trap, STYPE = pgv.vector);
-- A closer match than pg_catalog's.
CREATE FUNCTION ext.trap(numeric, int) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE OPERATOR ext.> (FUNCTION = ext.trap, LEFTARG = numeric, RIGHTARG = int);
"""


def test_what_is_in_its_schema_does_not_get_into_its_views(empty_database: support.Database) -> None:
    """A role that may create objects in that schema can wait for a superuser to create the extension, and for others to
    read."""
    with empty_database.connect() as db:
        db.execute(TRAPS)
        db.execute("CREATE EXTENSION clip_search SCHEMA ext")
        assert value(db, "SELECT ext.clip_assign_cluster(%s, 'axes')", "[3,4]") == 1
        assert value(db, "SELECT centroid::text FROM clip_search.cluster") == "[0.6,0.8]"
        assert value(db, "SELECT resultant FROM clip_search.cluster") == 1
        assert value(db, "SELECT dimensions FROM clip_search.collection") == 2


def test_a_type_that_hides_pgvectors_is_refused(empty_database: support.Database) -> None:
    with empty_database.connect() as db:
        db.execute("CREATE SCHEMA pgv; CREATE EXTENSION vector SCHEMA pgv; CREATE SCHEMA ext")
        db.execute("CREATE DOMAIN ext.vector AS bytea")
        state, text = raised_error(db, "CREATE EXTENSION clip_search SCHEMA ext")
        assert state == "42710" and "type ext.vector hides pgvector's type pgv.vector" in text, (state, text)


# ---------------------------------------------------------------- schemas


def test_it_works_in_another_schema_with_an_empty_search_path(empty_database: support.Database) -> None:
    """A restricted session, a generated column under pg_restore, or a SECURITY DEFINER function has an empty
    search_path."""
    with empty_database.connect() as db:
        db.execute('CREATE SCHEMA "its Own"')
        db.execute('CREATE EXTENSION vector SCHEMA "its Own"')
        db.execute("CREATE SCHEMA ext")
        db.execute("CREATE EXTENSION clip_search SCHEMA ext")
    with empty_database.connect() as db:
        db.execute("SET search_path = ''")
        assert len(value(db, "SELECT ext.clip_embed_text('a cat')::text").split(",")) == 512
        assert len(value(db, "SELECT ext.clip_embed_image(%s)::text", PHOTO).split(",")) == 512
        assert value(db, "SELECT pg_catalog.cardinality(ext.clip_embed_texts('{a,NULL}'))") == 2
        assert value(db, "SELECT pg_catalog.cardinality(ext.clip_embed_images(ARRAY[%s::bytea]))", PHOTO) == 1
        assign = "SELECT ext.clip_assign_cluster(%s::\"its Own\".vector, 'c')"
        first = value(db, assign, axis(1.0))
        assert value(db, assign, axis(1.0, 0.1)) == first
        assert value(db, assign, axis(0.0, 1.0)) != first
        assert value(db, "SELECT ext.clip_assign_cluster(ext.clip_embed_text('a cat'))") not in (None, first)
        db.execute("""
            CREATE TABLE ext.t (x text, e "its Own".vector(512)
                                GENERATED ALWAYS AS (ext.clip_embed_text(x, 'photo-mini')) STORED);
            INSERT INTO ext.t VALUES ('a cat');
            """)
        assert value(db, "SELECT e::text FROM ext.t") == value(db, "SELECT ext.clip_embed_text('a cat')::text")


def test_dropping_and_creating_again_in_one_connection(empty_database: support.Database) -> None:
    """After that, the type vector has another oid; a remembered one would be a crash or a wrong type."""
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        for _ in range(3):
            db.execute("CREATE EXTENSION clip_search CASCADE")
            assert embed_one(db, "text", "a cat").shape == (512,)
            assert value(db, "SELECT clip_assign_cluster(clip_embed_text('a cat'))") == 1
            db.execute("DROP EXTENSION vector CASCADE")
        assert value(db, "SELECT count(*) FROM pg_namespace WHERE nspname = 'clip_search'") == 0


# ---------------------------------------------------------------- dump and restore


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_a_dump_keeps_clusters_and_the_id_sequence(
    empty_database: support.Database, pg_program, tmp_path, form: str
) -> None:
    """After a restore, the photos keep their groups, nothing is embedded or counted again, and new ids follow the old
    ones."""
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        db.execute("""
            CREATE TABLE photo (id int PRIMARY KEY, data bytea, embedding vector(512), cluster_id bigint);
            CREATE FUNCTION embed_photo() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.embedding := public.clip_embed_image(NEW.data);
                NEW.cluster_id := public.clip_assign_cluster(NEW.embedding, 'photo');
                RETURN NEW;
            END $$;
            CREATE TRIGGER embed_photo BEFORE INSERT ON photo FOR EACH ROW EXECUTE FUNCTION embed_photo();
            CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops);
            """)
        db.execute("INSERT INTO photo SELECT n, %s FROM generate_series(1, 3) n", (PHOTO,))
        for n in range(4):  # ids 2 to 5; 6 leaves no row
            value(db, "SELECT clip_assign_cluster(%s, 'axes')", axis(*[0.0] * n, 1.0))
        db.execute("SELECT clip_create_collection('photo', 0.9, members => 'photo')")
        value(db, "SELECT clip_assign_cluster(%s, 'gone')", axis(1.0))
        db.execute("SELECT clip_drop_collection('gone')")
        tables = {
            table: db.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall()
            for table in ("clip_search.collection", "clip_search.cluster", "photo")
        }
        last = value(db, "SELECT max(id) FROM clip_search.cluster") + 1

    dump = tmp_path / "dump"
    command = [pg_program("pg_dump"), f"--format={form}", f"--file={dump}", empty_database.name]
    subprocess.run(command, check=True, capture_output=True, text=True)
    restored = support.Database(extension=False)
    try:
        if form == "plain":
            command = [
                pg_program("psql"),
                "-Xq",
                "-v",
                "ON_ERROR_STOP=1",
                "-f",
                str(dump),
                "-d",
                restored.name,
            ]
        else:
            command = [pg_program("pg_restore"), "--exit-on-error", "-d", restored.name, str(dump)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with restored.connect() as db:
            for table, rows in tables.items():
                assert rows, table
                assert db.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall() == rows, table
            group = value(db, "SELECT DISTINCT cluster_id FROM photo")
            db.execute("INSERT INTO photo VALUES (4, %s)", (PHOTO,))
            assert value(db, "SELECT cluster_id FROM photo WHERE id = 4") == group
            assert value(db, "SELECT size FROM clip_search.cluster WHERE id = %s", group) == 4
            assert value(db, "SELECT clip_assign_cluster(%s, 'new')", axis(1.0)) == last + 1
    finally:
        restored.drop()
