"""Columns, tables and triggers that a watch supports, and those that clip_watch itself refuses: an INSERT never fails
later for them."""

from __future__ import annotations

import collections

import numpy as np
import psycopg
import pytest

import support
from support import raised_error, value, vector
from watched import PHOTOS, check, fill, notes

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
    found, text = raised_error(db, f"SELECT clip_watch('note', 'body'{', ' + arguments if arguments else ''})")
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
    # A second call may not turn it into a watch that fails later.
    assert raised_error(db, "SELECT clip_watch('note', mode => 'queued')")[0] == "55000"
    assert raised_error(db, "SELECT clip_watch('note', on_error => 'skip')")[0] == "55000"


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_sources_may_be_domains(db, mode):
    """Domains over an image, over a text, and over another domain."""
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


def check_half(db: psycopg.Connection, model: str) -> int:
    """Checks that every row has its text's embedding, rounded to 16 bits, and that the clusters are the sums of the
    stored vectors."""
    members = collections.defaultdict(list)
    rows = db.execute(
        "SELECT embedding::text, clip_embed_text(body, %s)::text, cluster_id, pg_column_size(embedding) FROM note",
        (model,),
    ).fetchall()
    for embedding, expected, cluster, size in rows:
        assert size == 8 + 2 * 512
        stored, exact = vector(embedding), vector(expected)
        # Rounded to the nearest number that 16 bits can hold: the error is at most 2**-11. The 1e-6 allows for graphs
        # that round differently with another batch size.
        assert np.allclose(stored, exact, rtol=2**-11, atol=1e-6)
        members[cluster].append(stored / np.linalg.norm(stored.astype(np.float64)))
    found = db.execute("SELECT id, size, centroid::text FROM clip_search.cluster WHERE collection = 'note'").fetchall()
    assert {id: size for id, size, _ in found} == {id: len(rows) for id, rows in members.items()}
    for id, _, centroid in found:
        mean = np.mean(members[id], axis=0)
        assert np.abs(vector(centroid) - mean / np.linalg.norm(mean)).max() < 1e-6
    return len(rows)


def test_a_column_of_halfvec(database: support.Database, db: psycopg.Connection, clip_mini) -> None:
    """A halfvec column takes half the space: written by the trigger and by clip_backfill, grouped by the stored values,
    indexed, and re-embedded by another model."""
    db.execute(f"SET clip_search.model_path = '$system:{clip_mini.parent}'")
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding halfvec(512))")
    db.execute("INSERT INTO note VALUES (901, 'a sleepy cat'), (902, 'a very sleepy cat')")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', index => true)")
    shape = value(db, "SELECT pg_get_indexdef('note_embedding_idx'::regclass)")
    assert "halfvec_cosine_ops" in shape
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', index => true)")
    assert value(db, "SELECT count(*) FROM pg_index WHERE indrelid = 'note'::regclass") == 2
    fill(db, 20)
    db.execute("CALL clip_backfill('note')")
    assert check_half(db, "photo-mini") == 22
    db.execute("UPDATE note SET body = 'an old guitar' WHERE id < 6")
    db.execute("UPDATE note SET body = 'the oceans' WHERE id = 7")
    db.execute("DELETE FROM note WHERE id > 15 AND id < 800")
    assert check_half(db, "photo-mini") == 17
    assert not db.execute("SELECT * FROM clip_recluster('note')").fetchall(), "the groups are as they should be"
    pairs = {frozenset(pair) for pair in db.execute("SELECT original, duplicate FROM clip_duplicates('note', 0.999)")}
    assert frozenset(("1", "2")) in pairs and not any("901" in pair and "1" in pair for pair in pairs)
    sizes = db.execute("SELECT size, lowest FROM clip_clusters('note')").fetchall()
    assert sizes and all(0.8 < lowest <= 1.000001 for _, lowest in sizes)
    assert value(db, "SELECT jsonb_array_length(clip_cluster_groups('note'))") == len(sizes)

    db.execute("CALL clip_reembed('note', 'clip-mini')")
    assert value(
        db,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attname = 'embedding'",
    ) == ("halfvec(512)")
    assert value(db, "SELECT pg_get_indexdef('note_embedding_idx'::regclass)") == shape
    assert check_half(db, "clip-mini") == 17
    db.execute("INSERT INTO note (id, body) VALUES (2000, 'a new one')")
    assert check_half(db, "clip-mini") == 18


@pytest.mark.parametrize(
    ("column", "kind", "wanted"),
    [
        ("body", "bytea USING convert_to(body, 'UTF8')", "bytea, not text"),
        ("embedding", "real[] USING embedding::real[]", "real[], not vector or halfvec"),
        ("cluster_id", "text", "text, not bigint"),
        ("cluster_id", "int", "integer, not bigint"),
    ],
)
def test_a_column_that_has_become_another_type_is_not_misread(
    db: psycopg.Connection, column: str, kind: str, wanted: str
) -> None:
    """Values are read and written as raw bytes, so their type is checked."""
    notes(db)
    fill(db, 5)
    before = db.execute("SELECT id, body::text, embedding::text, cluster_id::text FROM note ORDER BY id").fetchall()
    original = value(
        db,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attname = %s",
        column,
    )
    db.execute(f"ALTER TABLE note ALTER {column} TYPE {kind}")
    for statement in (
        "INSERT INTO note (id, body) VALUES (6, 'a tree')",
        "UPDATE note SET body = 'a tree' WHERE id = 1",
        "DELETE FROM note WHERE id = 1",
        "TRUNCATE note",
    ):
        state, text = raised_error(db, statement)
        assert state == "42804" and f'column "{column}" of watched table public.note is of type {wanted}' in text, text
        assert text.count("\n") == 2, "a DETAIL and a HINT"
    back = {"body": "convert_from(body, 'UTF8')", "embedding": "embedding::vector", "cluster_id": "cluster_id::bigint"}[
        column
    ]
    db.execute(f"ALTER TABLE note ALTER {column} TYPE {original} USING {back}")
    assert (
        db.execute("SELECT id, body::text, embedding::text, cluster_id::text FROM note ORDER BY id").fetchall()
        == before
    )
    db.execute("INSERT INTO note (id, body) VALUES (6, 'a tree')")
    assert check(db, "note") == 6


def test_a_column_that_has_become_too_short(db: psycopg.Connection) -> None:
    notes(db, watch=", on_error => 'skip'")
    fill(db, 5)
    db.execute("ALTER TABLE note ALTER embedding TYPE vector(3) USING NULL")
    state, text = raised_error(db, "INSERT INTO note (id, body) VALUES (6, 'a tree')")
    assert state == "22000" and "different vector dimensions 3 and 512" in text and "CALL clip_backfill" in text, text
    db.execute("ALTER TABLE note ALTER embedding TYPE vector(512) USING NULL")
    db.execute("UPDATE note SET cluster_id = NULL")
    db.execute("SELECT clip_recluster('note')")
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 5
