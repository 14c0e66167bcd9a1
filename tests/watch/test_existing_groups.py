"""What a table or a collection already has when a watch is made: groups, members, column names."""

from __future__ import annotations

import time

import psycopg
import pytest

from servers import Server, server
from support import raised_error, until, value
from watched import WORDS, check, fill, notes


def notices(db: psycopg.Connection) -> list[str]:
    """Collects a connection's notices from now on: message, detail and hint."""
    found: list[str] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(
        lambda diag: found.append(
            "\n".join(part for part in (diag.message_primary, diag.message_detail, diag.message_hint) if part)
        )
    )
    return found


def watch_again(db: psycopg.Connection, rest: str = "") -> None:
    db.execute(f"SELECT clip_watch('note', 'body', cluster => 'cluster_id', existing => 'keep'{rest})")


# ---------------------------------------------------------------- groups that rows refer to


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_groups_of_a_former_extension_are_not_trusted(empty_database, mode):
    with empty_database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        notes(db)
        fill(db, 10)
        db.execute("DROP EXTENSION clip_search CASCADE")
        db.execute("CREATE EXTENSION clip_search CASCADE")
        said = notices(db)
        watch_again(db, f", mode => '{mode}'")
        assert any("10 rows of public.note name clusters that collection" in text for text in said), said
        assert value(db, "SELECT pending FROM clip_search.watch") == 10
        db.execute("INSERT INTO note (id, body) VALUES (11, 'a violin on a chair')")
        group = value(db, "SELECT cluster_id FROM note WHERE id = 11")
        assert value(db, "SELECT count(*) FROM note WHERE cluster_id = %s", group) == (mode == "immediate")
        db.execute("CALL clip_backfill('note')")
        assert check(db, "note") == 11


def test_groups_that_are_the_collections_stay(db):
    notes(db)
    fill(db, 5)
    db.execute("SELECT clip_unwatch('note')")
    before = db.execute("SELECT id, cluster_id FROM note ORDER BY 1").fetchall()
    said = notices(db)
    watch_again(db)
    assert db.execute("SELECT id, cluster_id FROM note ORDER BY 1").fetchall() == before
    assert said == []


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_a_watch_that_begins_to_group_later_trusts_no_ids_either(db, mode):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, cluster_id bigint)")
    db.execute(f"SELECT clip_watch('note', 'body', mode => '{mode}')")
    fill(db, 5)
    db.execute("CALL clip_backfill('note')")
    db.execute("UPDATE note SET cluster_id = 70 + id % 2")
    said = notices(db)
    db.execute("SELECT clip_watch('note', cluster => 'cluster_id')")
    assert any("5 rows of public.note name clusters that collection" in text for text in said), said
    assert value(db, "SELECT count(*) FROM clip_search.cluster") == 0
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 5


def test_a_trigger_that_keeps_rows_from_being_updated_is_named(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
    db.execute("INSERT INTO note VALUES (1, 'a cat', clip_embed_text('a cat'), 77)")
    db.execute(
        "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER keep BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    state, text = raised_error(db, "SELECT clip_watch('note', 'body', cluster => 'cluster_id', existing => 'keep')")
    assert state == "27000" and "trigger" in text


@pytest.mark.parametrize("change", ["DELETE FROM note WHERE id = 1", "UPDATE note SET cluster_id = NULL WHERE id = 1"])
def test_changes_while_the_table_was_not_watched_are_told(db, change):
    notes(db)
    fill(db, 5)
    db.execute("SELECT clip_unwatch('note')")
    db.execute(change)
    said = notices(db)
    watch_again(db)
    text = (
        'clusters of collection "note" may count rows that changed while the table was not watched\n'
        "SELECT * FROM clip_recluster('note');"
    )
    assert text in said, said
    db.execute("CALL clip_backfill('note')")
    db.execute("SELECT * FROM clip_recluster('note')")
    check(db, "note")


@pytest.mark.parametrize("old", ["cluster_id", "embedding"])
def test_a_renamed_column_keeps_its_collection(db, old):
    notes(db)
    fill(db, 5)
    db.execute("SELECT clip_unwatch('note')")
    db.execute(f"ALTER TABLE note RENAME {old} TO renamed")
    names = {"cluster_id": "cluster_id", "embedding": "embedding", old: "renamed"}
    said = notices(db)
    db.execute(
        "SELECT clip_watch('note', 'body', existing => 'keep', embedding => %s, cluster => %s)",
        (names["embedding"], names["cluster_id"]),
    )
    assert said == []
    assert db.execute(
        "SELECT embedding::text, cluster::text FROM clip_search.collection_setting WHERE name = 'note'"
    ).fetchone() == (names["embedding"], names["cluster_id"])
    db.execute("INSERT INTO note (id, body) SELECT id + 10, body FROM note")
    assert check(db, "note", f"body, {names['embedding']}::text, {names['cluster_id']}") == 10
    assert value(db, "SELECT count(*) FROM clip_clusters('note')") == 5


# ---------------------------------------------------------------- collections whose table is dropped

LEFT = """SELECT (SELECT count(*) FROM clip_search.collection_setting) + (SELECT count(*) FROM clip_search.cluster_sum)
               + (SELECT count(*) FROM clip_search.collection_grant)"""


def test_a_collection_goes_with_its_members_table_after_clip_unwatch(db):
    notes(db, ", threshold => 0.99")
    fill(db, 5)
    db.execute("SELECT clip_grant_collection('note', 'public', 'select')")
    db.execute("SELECT clip_unwatch('note')")
    assert value(db, LEFT) > 5
    db.execute("DROP TABLE note")
    assert value(db, LEFT) == 0
    # A new table of that name inherits nothing.
    notes(db)
    assert value(db, "SELECT threshold FROM clip_search.collection_setting") is None


@pytest.mark.parametrize("command", ["DROP TABLE kept.shot", "DROP SCHEMA kept CASCADE"])
def test_a_collection_that_was_created_goes_with_its_members_table(db, command):
    db.execute("CREATE SCHEMA IF NOT EXISTS kept")
    db.execute("CREATE TABLE kept.shot (id int PRIMARY KEY, embedding vector(512), cluster_id bigint)")
    db.execute("SELECT clip_create_collection('shots', members => 'kept.shot')")
    db.execute("INSERT INTO kept.shot SELECT 1, v, clip_assign_cluster(v, 'shots') FROM clip_embed_text('a cat') v")
    assert value(db, LEFT) == 2
    db.execute(command)
    assert value(db, LEFT) == 0
    db.execute("DROP SCHEMA IF EXISTS kept CASCADE")


def test_a_dangling_collection_is_not_dumped(db):
    db.execute("SELECT clip_create_collection('bare')")
    db.execute("UPDATE clip_search.collection_setting SET members = 4000000000")
    condition = value(
        db,
        "SELECT extcondition[array_position(extconfig, 'clip_search.collection_setting'::regclass::oid)] "
        "FROM pg_extension WHERE extname = 'clip_search'",
    )
    assert value(db, f"SELECT count(*) FROM (SELECT FROM clip_search.collection_setting {condition}) s") == 0
    # The next clip_watch removes what is left.
    notes(db)
    assert value(db, "SELECT array_agg(name) FROM clip_search.collection_setting") == ["note"]


def test_a_collection_that_a_watch_uses_is_not_dropped(db):
    notes(db)
    fill(db, 5)
    state, text = raised_error(db, "SELECT clip_drop_collection('note')")
    assert state == "2BP01"
    assert text.startswith('collection "note" is used by the watch of public.note') and "clip_unwatch" in text
    assert check(db, "note") == 5
    db.execute("SELECT clip_unwatch('note')")
    db.execute("SELECT clip_drop_collection('note')")
    assert value(db, LEFT) == 0


# ---------------------------------------------------------------- notices and errors


def test_unwatch_says_that_it_drops_nothing(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
    db.execute("SELECT clip_create_collection('mine')")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', collection => 'mine')")
    said = notices(db)
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    assert said == [
        'clip_search: nothing of public.note is dropped: clip_watch found columns "embedding", "cluster_id" '
        "and did not create them\nALTER TABLE public.note DROP COLUMN embedding, DROP COLUMN cluster_id; drops them.",
        'collection "mine" of public.note stays, but will not follow the rows any more\n'
        "SELECT clip_drop_collection('mine') drops it; clip_watch with the same columns takes it up again.",
    ]


def test_a_generated_embedding_is_refused_with_the_way_out(db):
    db.execute("CREATE FUNCTION made(text) RETURNS vector IMMUTABLE LANGUAGE sql RETURN '[1]'::vector")
    db.execute(
        "CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector GENERATED ALWAYS AS (made(body)) STORED)"
    )
    state, text = raised_error(db, "SELECT clip_watch('note', 'body')")
    assert state == "42804"
    assert "ALTER TABLE public.note ALTER COLUMN embedding DROP EXPRESSION" in text and "existing => 'keep'" in text
    db.execute("ALTER TABLE note ALTER COLUMN embedding DROP EXPRESSION")
    db.execute("SELECT clip_watch('note', 'body', existing => 'keep')")
    db.execute("DROP TABLE note")
    db.execute("DROP FUNCTION made")


@pytest.mark.parametrize("argument", ["text_source", "key", "labels", "image"])
def test_an_empty_name_is_refused_with_the_way_out(db, argument):
    notes(db)
    state, text = raised_error(db, f"SELECT clip_watch('note', {argument} => '')")
    assert state == "42703"
    assert f"To watch the table without {argument}, call clip_watch(…, reset => '{{{argument}}}')." in text


def test_a_table_that_is_not_watched_needs_a_source(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    state, text = raised_error(db, "SELECT clip_watch('note')")
    assert state == "22004"
    assert text.startswith("table public.note is not watched yet") and "source => " in text
    db.execute("SELECT clip_watch('note', 'body')")
    state, text = raised_error(db, "SELECT clip_watch('note', embedding => 'other')")
    assert state == "22004" and text.startswith('column "other" of public.note is not watched yet')


def test_rows_that_are_listed_as_failed_are_not_called_missing(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, image bytea)")
    db.execute("SELECT clip_watch('note', 'image', on_error => 'skip')")
    db.execute("INSERT INTO note VALUES (1, 'not an image'), (2, 'nor this')")
    said = notices(db)
    db.execute("SELECT clip_watch('note')")
    assert said == []
    db.execute("ALTER TABLE note DISABLE TRIGGER USER")
    db.execute("INSERT INTO note VALUES (3, 'neither')")
    db.execute("ALTER TABLE note ENABLE TRIGGER USER")
    db.execute("SELECT clip_watch('note')")
    assert said == ["existing rows of public.note have no embedding yet: CALL clip_backfill('public.note');"]


def test_members_equally_near_are_told_by_their_keys(db):
    db.execute("CREATE TABLE note (id text PRIMARY KEY, body text, embedding vector(3), cluster_id bigint)")
    db.execute("SELECT clip_create_collection('near', threshold => 0.5, members => 'note')")
    # Their cosines to the centroid differ by at most 2e-8; the last key's is the highest.
    db.execute(
        "INSERT INTO note (id, embedding, cluster_id) SELECT id, v::vector, clip_assign_cluster(v::vector, 'near') "
        "FROM (VALUES ('c', '[1,0.0003,0]'), ('a', '[1,-0.00031,0]'), ('b', '[1,0,0]')) n (id, v)"
    )
    assert value(db, "SELECT representative FROM clip_clusters('near')") == "a"
    group = value(db, "SELECT clip_cluster_groups('near')")[0]
    assert group["representative"] == "a" and [asset["id"] for asset in group["assets"]] == ["a", "b", "c"]


def test_errors_carry_no_backtrace(bindir, monkeypatch):
    """PostgreSQL raises this error inside a function: pgrx would add the backtrace of where it passed the error on."""
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    monkeypatch.delenv("RUST_LIB_BACKTRACE", raising=False)
    with server(bindir) as made, made.connect() as db:
        db.execute("SET default_transaction_read_only = on")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            db.execute("SELECT clip_create_collection('x')")
        assert caught.value.diag.message_detail is None


def test_a_server_without_the_extension_has_no_errors_in_its_log(bindir):
    made = Server(bindir, {})
    try:
        made.start()
        with made.connect() as db:
            ended = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clip_search worker'"
            time.sleep(3)
            until(lambda: value(db, ended) == 0, "the worker's end")
        assert "after an error" not in made.messages(), made.messages()
    finally:
        made.remove()


def test_unwatch_names_the_collection_that_stays_every_time(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    said = notices(db)
    stays = 'collection "note" of public.note stays, but will not follow the rows any more'
    for _ in range(2):
        db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
        del said[:]
        db.execute("SELECT clip_unwatch('note')")
        assert len(said) == 1 and said[0].startswith(stays), said


def test_a_renamed_column_is_not_made_a_second_time(db):
    """The watch continues with the column under its new name, and with the groups."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'g')")
    db.execute("INSERT INTO note SELECT n, (%s::text[])[1 + n %% 3] FROM generate_series(1, 6) n", (list(WORDS),))
    groups = "SELECT id, size FROM clip_search.cluster WHERE collection = 'note' ORDER BY 1"
    before = db.execute(groups).fetchall()
    db.execute("ALTER TABLE note RENAME embedding TO e")
    for call in ("clip_clusters", "clip_cluster_groups", "clip_duplicates", "clip_recluster"):
        state, text = raised_error(db, f"SELECT * FROM {call}('note')")
        assert state == "42703" and 'collection "note"' in text and '"embedding"' in text, text
        assert "RENAME COLUMN" in text and "existing => 'keep'" in text, text
    for column, now in (("embedding", "e"), ("g", "h")):
        if column == "g":
            db.execute("ALTER TABLE note RENAME g TO h")
        state, text = raised_error(db, "SELECT clip_watch('note', 'body'%s)" % (", 'e'" if column == "g" else ""))
        assert state == "42703" and f'no column "{column}"' in text and f'"{now}" is of its type' in text, text
        way_out = text.split("\n")[-1].split(" goes on")[0]
        assert value(db, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'note'::regclass AND attnum > 0") == 4
        for statement in way_out.rstrip(";").split("; "):
            db.execute(statement)
        assert db.execute(groups).fetchall() == before
        assert db.execute("SELECT pending, outdated FROM clip_search.watch").fetchone() == (0, 0)
    db.execute("INSERT INTO note VALUES (7, %s)", (WORDS[1],))
    assert check(db, "note", "body, e::text, h") == 7
