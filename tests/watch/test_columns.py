"""Columns, tables and triggers that a watch works with, or refuses when it is made: never at somebody's INSERT."""

from __future__ import annotations

import pytest

from support import sqlstate, value
from watched import PHOTOS

REFUSED = {
    "queued, NOT NULL": (
        "CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL, embedding vector(512) NOT NULL)",
        "mode => 'queued'",
        "55000",
    ),
    "skip, NOT NULL": (
        "CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL, embedding vector(512) NOT NULL)",
        "on_error => 'skip'",
        "55000",
    ),
    "NOT NULL of a source that may be NULL": (
        "CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512) NOT NULL)",
        "",
        "55000",
    ),
    "group, NOT NULL": (
        "CREATE TABLE note (id int PRIMARY KEY, body text, cluster_id bigint NOT NULL)",
        "cluster => 'cluster_id'",
        "55000",
    ),
    "identity": (
        "CREATE TABLE note (id int PRIMARY KEY, body text, cluster_id bigint GENERATED ALWAYS AS IDENTITY)",
        "cluster => 'cluster_id'",
        "42804",
    ),
    "generated": (
        "CREATE TABLE note (id int PRIMARY KEY, raw text, body text GENERATED ALWAYS AS (upper(raw)) STORED)",
        "",
        "0A000",
    ),
    "domain over vector": (
        "CREATE DOMAIN caption AS vector(512); CREATE TABLE note (id int PRIMARY KEY, body text, embedding caption)",
        "",
        "42804",
    ),
    "domain over bigint": (
        "CREATE DOMAIN caption AS bigint; CREATE TABLE note (id int PRIMARY KEY, body text, cluster_id caption)",
        "cluster => 'cluster_id'",
        "42804",
    ),
    "domain over another type": (
        "CREATE DOMAIN caption AS int; CREATE TABLE note (id int PRIMARY KEY, body caption)",
        "",
        "42804",
    ),
    "materialized view": ("CREATE MATERIALIZED VIEW note AS SELECT 1 AS id, 'a'::text AS body", "", "42809"),
    "view with INSTEAD OF": (
        "CREATE TABLE base (id int PRIMARY KEY, body text); CREATE VIEW note AS SELECT * FROM base; "
        "CREATE TRIGGER own INSTEAD OF INSERT ON note FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "",
        "42809",
    ),
    "view": ("CREATE TABLE base (id int PRIMARY KEY, body text); CREATE VIEW note AS SELECT * FROM base", "", "42809"),
    "foreign table": (
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing; "
        "CREATE FOREIGN TABLE note (id int, body text) SERVER nowhere",
        "",
        "42809",
    ),
}


@pytest.fixture(autouse=True)
def clean(db):
    yield
    for what in ("VIEW note", "MATERIALIZED VIEW note", "FOREIGN TABLE note"):
        if (
            value(db, "SELECT count(*) FROM pg_class WHERE oid = to_regclass('note') AND relkind = %s", what[0].lower())
            == 1
        ):
            db.execute(f"DROP {what} CASCADE")
    db.execute(
        "DROP TABLE IF EXISTS note, base, child CASCADE; DROP FOREIGN DATA WRAPPER IF EXISTS nothing CASCADE; DROP DOMAIN IF EXISTS caption CASCADE"
    )


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_the_watch_is_made(db, case):
    create, arguments, state = REFUSED[case]
    for statement in create.split("; "):
        db.execute(statement)
    found, text = sqlstate(db, f"SELECT clip_watch('note', 'body'{', ' + arguments if arguments else ''})")
    assert found == state, text
    assert value(db, "SELECT count(*) FROM clip_search.watch_setting") == 0


def test_a_not_null_column_works_where_every_row_has_an_embedding(db):
    db.execute(
        "CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL, embedding vector(512) NOT NULL, cluster_id bigint NOT NULL)"
    )
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    db.execute("INSERT INTO note (id, body) VALUES (1, 'a cat')")
    db.execute("UPDATE note SET body = 'a dog'")
    assert value(db, "SELECT count(embedding) FROM note") == 1
    # A second call may not make it one that fails later.
    assert sqlstate(db, "SELECT clip_watch('note', mode => 'queued')")[0] == "55000"
    assert sqlstate(db, "SELECT clip_watch('note', on_error => 'skip')")[0] == "55000"


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_sources_may_be_domains(db, mode):
    """Of an image, of a text, and of a domain."""
    photo = PHOTOS["cat"]
    db.execute("CREATE DOMAIN caption AS text CHECK (value <> 'no')")
    db.execute("CREATE DOMAIN short_caption AS caption")
    db.execute("CREATE DOMAIN file AS bytea CHECK (length(value) > 9)")
    try:
        db.execute("CREATE TABLE note (id int PRIMARY KEY, data file, body short_caption)")
        db.execute(
            f"SELECT clip_watch('note', 'data', text_source => 'body', cluster => 'cluster_id', mode => '{mode}')"
        )
        db.execute("INSERT INTO note VALUES (1, %b, 'a cat'), (2, NULL, 'a dog'), (3, %b, NULL)", (photo, photo))
        db.execute("CALL clip_backfill('note')")
        both = (
            "l2_normalize((clip_embed_image(data) + clip_embed_text(body)) * array_fill(0.5::real, ARRAY[512])::vector)"
        )
        wanted = f"CASE id WHEN 1 THEN {both} WHEN 2 THEN clip_embed_text(body) ELSE clip_embed_image(data) END"
        assert value(db, f"SELECT max(embedding <=> {wanted}) FROM note") < 1e-5
        assert value(db, "SELECT count(cluster_id) FROM note") == 3
    finally:
        db.execute("DROP TABLE IF EXISTS note; DROP DOMAIN caption, short_caption, file")


def test_children_are_named_in_a_warning(db):
    said = []
    db.add_notice_handler(lambda diag: said.append(diag.message_primary))
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (note)")
    db.execute("SELECT clip_watch('note', 'body')")
    assert any("inherit" in message for message in said)
    db.execute("INSERT INTO note VALUES (1, 'a cat')")
    db.execute("INSERT INTO child VALUES (2, 'a cat')")
    assert db.execute("SELECT id, embedding IS NOT NULL FROM note ORDER BY 1").fetchall() == [(1, True), (2, False)]
    db.execute("SELECT clip_watch('child', 'body')")
    db.execute("UPDATE child SET body = 'a dog'")
    assert value(db, "SELECT count(embedding) FROM child") == 1


OTHERS = {
    "NEW.embedding := clip_embed_text(NEW.body);": 'writes column "embedding"',
    'NEW . "embedding" = NULL;': 'writes column "embedding"',
    "NEW.cluster_id := 1;": 'writes column "cluster_id"',
    "PERFORM clip_assign_cluster(NEW.embedding, 'note');": "calls clip_assign_cluster()",
    "PERFORM public.clip_leave_cluster(OLD.cluster_id, OLD.embedding);": "calls clip_leave_cluster()",
    "NEW.embedding_date := now();": None,
    "IF NEW.embedding IS NOT NULL THEN NEW.body := NEW.body; END IF;": None,
}


@pytest.mark.parametrize("source", OTHERS)
def test_another_trigger_that_does_the_same_is_named(db, source):
    said = []
    db.add_notice_handler(lambda diag: said.append(diag.message_primary))
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding_date timestamptz)")
    db.execute(
        f"CREATE OR REPLACE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {source} RETURN NEW; END $$"
    )
    db.execute('CREATE TRIGGER "An other" BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION other()')
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    named = [message for message in said if '"An other"' in message or '""An other""' in message]
    if OTHERS[source] is None:
        assert named == []
    else:
        assert len(named) == 1 and OTHERS[source] in named[0], said
