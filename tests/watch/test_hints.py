"""Arguments that make no sense are refused with a hint to the right call, and a call names what it leaves behind."""

from __future__ import annotations

import psycopg
import pytest

import support
from support import raised_error, value
from watched import PHOTOS, fill, notes


def messages(db: psycopg.Connection) -> list[str]:
    found: list[str] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: found.append(f"{diag.message_primary} {diag.message_hint or ''}"))
    return found


def columns(db: psycopg.Connection) -> set[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0 AND NOT attisdropped"
    return {name for (name,) in db.execute(query)}


@pytest.mark.parametrize("state", ["", "2", "220", "22p02", "22-23", "ééé", "ab", "220233"])
def test_what_is_no_sqlstate_is_refused(db: psycopg.Connection, state: str) -> None:
    notes(db)
    found, text = raised_error(db, "SELECT clip_retry('note', sqlstate => %s)", state)
    assert found == "22023" and "clip_search.failure" in text


@pytest.mark.parametrize("state", ["22", "22023", "0A", "XX000", "P0001"])
def test_a_valid_sqlstate_or_class_is_accepted(db: psycopg.Connection, state: str) -> None:
    notes(db)
    assert value(db, "SELECT clip_retry('note', sqlstate => %s)", state) == 0


@pytest.mark.parametrize(
    ("arguments", "state", "part"),
    [
        ("cut => 2", "22023", "cut is out of range: 2"),
        ("cut => -0.1", "22023", "cut is out of range"),
        ("cut => 'NaN'", "22023", "cut is out of range: NaN"),
        ("after_relevance => 1.5, after_id => '1'", "22023", "after_relevance is out of range"),
        ("after_relevance => 0.7", "22004", "after_relevance is given without after_id"),
        ("after_id => '7'", "22004", "after_id is given without after_relevance"),
    ],
)
def test_pages_and_cuts(db: psycopg.Connection, arguments: str, state: str, part: str) -> None:
    notes(db)
    found, text = raised_error(db, f"SELECT * FROM clip_find('note', 'a cat', {arguments})")
    assert found == state and part in text
    if "given" in part:
        assert "last row of the page before" in text


def test_settings_of_the_collection_may_be_reset_with_the_grouping(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE note (id int PRIMARY KEY, name text UNIQUE, words text[], body text)")
    db.execute(
        "SELECT clip_watch('note', 'body', cluster => 'cluster_id', threshold => 0.7, labels => 'words', key => 'name')"
    )
    db.execute("SELECT clip_watch('note', reset => '{labels, threshold, cluster, key}')")
    assert value(db, "SELECT cluster FROM clip_search.watch") is None
    query = "SELECT threshold, labels::text, key::text FROM clip_search.collection_setting WHERE name = 'note'"
    assert db.execute(query).fetchone() == (None, None, "id")
    # Without groups there is nothing to reset.
    state, text = raised_error(db, "SELECT clip_watch('note', reset => '{labels}')")
    assert state == "22023" and "cluster => " in text


def test_a_collection_that_no_watch_keeps_is_named(db: psycopg.Connection) -> None:
    notes(db)
    fill(db)
    said = messages(db)
    db.execute("SELECT clip_watch('note', reset => '{cluster}')")
    assert any(
        "not grouped any more" in text and "clip_drop_collection('note')" in text and "DROP COLUMN cluster_id" in text
        for text in said
    ), said
    # Another column needs another collection, or the old collection's name after that has been dropped.
    state, text = raised_error(db, "SELECT clip_watch('note', cluster => 'other')")
    assert state == "42710" and "collection => " in text and "clip_drop_collection('note')" in text
    db.execute("SELECT clip_watch('note', cluster => 'other', collection => 'others')")
    db.execute("CALL clip_backfill('note')")
    said.clear()
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    assert any('collection "others" is dropped' in text for text in said), said
    assert any('collection "note"' in text and "clip_drop_collection('note')" in text for text in said), said
    db.execute("SELECT clip_drop_collection('note')")
    assert value(db, "SELECT count(*) FROM clip_search.collection") == 0
    assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0


def test_the_way_out_is_one(db: psycopg.Connection) -> None:
    """The statement in the hint works unchanged."""
    notes(db)
    fill(db)
    db.execute("SELECT clip_watch('note', reset => '{cluster}')")
    db.execute("SELECT clip_drop_collection('note'); ALTER TABLE note DROP COLUMN cluster_id")
    db.execute("SELECT clip_watch('note', cluster => 'other')")
    db.execute("CALL clip_backfill('note')")
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'note'") == 10
    assert columns(db) == {"id", "body", "title", "embedding", "other"}


def test_unwatch_drops_only_a_collection_that_it_created(db: psycopg.Connection) -> None:
    """A collection that somebody made doesn't belong to the watch just because an earlier one did."""
    notes(db)
    db.execute("SELECT clip_watch('note', reset => '{cluster}')")
    db.execute("SELECT clip_create_collection('mine')")
    db.execute("SELECT clip_watch('note', cluster => 'other', collection => 'mine')")
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    assert {name for (name,) in db.execute("SELECT name FROM clip_search.collection")} >= {"mine"}
    assert columns(db) == {"id", "body", "title"}


def test_a_changed_mind_mixes_nothing(db: psycopg.Connection) -> None:
    """Five changes of source, text and weight: the view always shows how many vectors each definition of the watch has
    made, and at the end every vector matches the last one."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, data bytea, body text, title text)")
    for number, (name, photo) in enumerate(PHOTOS.items(), 1):
        db.execute("INSERT INTO note VALUES (%s, %b, %s, %s)", (number, photo, name, f"a picture of a {name}"))
    db.execute("SELECT clip_watch('note', 'data', text_source => 'body')")
    db.execute("CALL clip_backfill('note')")
    both = "l2_normalize(clip_embed_image(data) * {0} + clip_embed_text({2}) * {1})"
    vectors = lambda weight: f"array_fill(({weight})::real, ARRAY[512])::vector"
    counts = "SELECT rows::int, embedded::int, pending::int, outdated::int, models FROM clip_search.watch"
    changes = [
        ("text_weight => 0.9", both.format(vectors(0.1), vectors(0.9), "body")),
        ("text_source => 'title'", both.format(vectors(0.1), vectors(0.9), "title")),
        ("reset => '{text_source}'", "clip_embed_image(data)"),
        ("source => 'title'", "clip_embed_text(title)"),
        (
            "source => 'data', text_source => 'body', text_weight => 0.3",
            both.format(vectors(0.7), vectors(0.3), "body"),
        ),
    ]
    for number, (change, wanted) in enumerate(changes):
        db.execute(f"SELECT clip_watch('note', {change})")
        rows, embedded, pending, outdated, models = db.execute(counts).fetchone()
        assert (rows, embedded, pending, outdated) == (3, 3, 3, 3) and sum(models.values()) == 3, change
        if number % 2 == 0:
            # A row written now uses the new definition; the others still count as outdated.
            db.execute(
                "UPDATE note SET data = data || '\\x00'::bytea WHERE id = 1; UPDATE note SET title = title || '.', body = body || '.' WHERE id = 1"
            )
            assert value(db, f"SELECT embedding <=> {wanted} FROM note WHERE id = 1") < 1e-5
            assert value(db, "SELECT pending FROM clip_search.watch") >= 2
        # The third change gets no backfill: the next change comes first.
        if number != 2:
            db.execute("CALL clip_backfill('note')")
            assert db.execute(counts).fetchone()[1:4] == (3, 0, 0)
            assert value(db, f"SELECT max(embedding <=> {wanted}) FROM note") < 1e-5, change


def test_a_weight_needs_both_sources(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, body text)")
    for source in ("data", "body"):
        state, text = raised_error(db, f"SELECT clip_watch('photo', '{source}', text_weight => 0.3)")
        assert state == "22023" and "share of a text beside an image" in text
    db.execute("SELECT clip_watch('photo', 'data', text_source => 'body', text_weight => 0.3)")
    db.execute("SELECT clip_watch('photo', text_weight => 0.4)")


def test_refusals_name_the_way_out(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:
    notes(db)
    fill(db, 3)
    db.execute("CREATE VIEW seen AS SELECT * FROM note")
    with database.connect(plain_role) as other:
        for call in (
            "SELECT clip_retry('note')",
            "CALL clip_backfill('note')",
            "SELECT clip_create_collection('x', members => 'note')",
        ):
            state, text = raised_error(other, call)
            assert (
                state == "42501" and "must be owner of table public.note" in text and "It belongs to postgres" in text
            ), text
        db.execute(f"SELECT clip_grant_collection('note', '{plain_role}', 'select')")
        state, text = raised_error(other, "SELECT * FROM clip_clusters('note')")
        assert (
            state == "42501" and f"GRANT SELECT (embedding, cluster_id, id) ON public.note TO {plain_role}." in text
        ), text
        db.execute(f"GRANT SELECT ON note TO {plain_role}")
        db.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY")
        state, text = raised_error(other, "SELECT * FROM clip_clusters('note')")
        assert f"public.note decides row by row what {plain_role} sees" in text
    state, text = raised_error(db, "SELECT * FROM clip_clusters('note', members => 'seen')")
    assert state == "22023" and "members => 'public.note', or leave the argument out" in text, text
    state, text = raised_error(db, "SELECT clip_watch('note', text_source => 'title', text_weight => 0)")
    assert state == "22023" and "leave text_source out" in text
    state, text = raised_error(db, "CALL clip_reembed('note', 'photo-mini')")
    way_out = text.split("this one: ")[1]
    assert state == "22023" and "existing => 'replace'" in way_out, text
    for statement in way_out.rstrip(";").split("; "):
        db.execute(statement)
    assert value(db, "SELECT outdated FROM clip_search.watch") == 0


def test_an_error_that_no_statement_can_raise_is_told_of(db: psycopg.Connection) -> None:
    said: list[str] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: said.append(f"{diag.message_primary}\n{diag.message_hint}"))
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', mode => 'queued', on_error => 'raise')")
    told = [text for text in said if "on_error => 'raise' has no effect" in text]
    assert len(told) == 1 and "mode => 'immediate'" in told[0], said
    del said[:]
    db.execute("SELECT clip_watch('note', mode => 'immediate', on_error => 'raise')")
    assert not any("on_error" in text for text in said), said
