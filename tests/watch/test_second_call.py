"""A second call of clip_watch changes only what it names, and clip_unwatch drops only what it is told to drop."""

from __future__ import annotations

import psycopg
import pytest

from support import embed_one, raised_error, same_embedding, value, vector
from watched import PHOTOS, check, fill, notes

SETTING = """SELECT source, text_source, text_weight, embedding, cluster, model, collection, mode, on_error
             FROM clip_search.watch WHERE relation = 'note'::regclass"""
GROUPING = (
    "SELECT threshold, key::text, labels::text, image::text FROM clip_search.collection_setting WHERE name = 'note'"
)


def messages(db: psycopg.Connection) -> list[tuple[str, str, str]]:
    """Collects a connection's notices from now on: severity, message and hint."""
    found: list[tuple[str, str, str]] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: found.append((diag.severity, diag.message_primary, diag.message_hint or "")))
    return found


@pytest.fixture
def rich(db: psycopg.Connection) -> psycopg.Connection:
    """A watch with every argument set."""
    db.execute("CREATE TABLE note (id int PRIMARY KEY, name text UNIQUE, words text[], image bytea, body text)")
    db.execute(
        "SELECT clip_watch('note', 'image', cluster => 'cluster_id', on_error => 'skip', mode => 'queued', text_source => 'body', "
        "text_weight => 0.25, threshold => 0.7, key => 'name', labels => 'words', image => 'image')"
    )
    return db


def test_what_is_not_named_stays(rich):
    setting, grouping = rich.execute(SETTING).fetchone(), rich.execute(GROUPING).fetchone()
    assert setting == ("image", "body", 0.25, "embedding", "cluster_id", "photo-mini", "note", "queued", "skip")
    assert grouping == (0.7, "name", "words", "image")
    rich.execute("SELECT clip_watch('note')")
    assert (rich.execute(SETTING).fetchone(), rich.execute(GROUPING).fetchone()) == (setting, grouping)
    for argument, place, new in [("mode => 'immediate'", 7, "immediate"), ("on_error => 'raise'", 8, "raise")]:
        rich.execute(f"SELECT clip_watch('note', {argument})")
        setting = (*setting[:place], new, *setting[place + 1 :])
        assert rich.execute(SETTING).fetchone() == setting
    for argument, place, new in [("threshold => 0.9", 0, 0.9), ("key => 'id'", 1, "id")]:
        rich.execute(f"SELECT clip_watch('note', {argument})")
        grouping = (*grouping[:place], new, *grouping[place + 1 :])
        assert (rich.execute(SETTING).fetchone(), rich.execute(GROUPING).fetchone()) == (setting, grouping)


def test_defaults_are_those_of_a_first_call(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body')")
    assert db.execute(SETTING).fetchone() == (
        "body",
        None,
        None,
        "embedding",
        None,
        "photo-mini",
        None,
        "immediate",
        "raise",
    )


@pytest.mark.parametrize(
    ("argument", "state", "way_out"),
    [
        ("model => 'clip-mini'", "55000", "clip_reembed"),
        ("cluster => 'other'", "55000", "reset => '{cluster}'"),
        ("collection => 'other'", "55000", "reset => '{cluster}'"),
        ("reset => '{cluster_id}'", "22023", "text_source"),
        ("reset => '{mode}', mode => 'queued'", "22023", "both given and reset"),
        ("reset => '{NULL}'", "22004", "reset"),
        ("labels => 'body'", "42804", "text[]"),
        ("key => 'nothing'", "42703", "nothing"),
        ("image => 'words'", "42804", "bytea"),
        ("existing => 'perhaps'", "22023", "replace"),
    ],
)
def test_what_cannot_be_changed_is_refused_with_the_way_out(rich, argument, state, way_out):
    before = rich.execute(SETTING).fetchone(), rich.execute(GROUPING).fetchone()
    found, text = raised_error(rich, f"SELECT clip_watch('note', {argument})")
    assert found == state and way_out in text
    assert (rich.execute(SETTING).fetchone(), rich.execute(GROUPING).fetchone()) == before


def test_another_weight_or_source_makes_the_vectors_outdated(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, image bytea, body text)")
    db.execute("SELECT clip_watch('note', 'image', cluster => 'cluster_id', text_source => 'body')")
    for number, (name, photo) in enumerate(PHOTOS.items()):
        db.execute("INSERT INTO note VALUES (%s, %b, %s)", (number, photo, name))
    counts = "SELECT rows, embedded, pending, outdated FROM clip_search.watch"
    assert db.execute(counts).fetchone() == (3, 3, 0, 0)
    said = messages(db)
    db.execute("SELECT clip_watch('note', text_weight => 0.9)")
    assert db.execute(counts).fetchone() == (3, 3, 3, 3)
    assert any(
        "3 rows" in text and "count as pending" in text and "existing => 'keep'" in hint for _, text, hint in said
    ), said
    db.execute("CALL clip_backfill('note')")
    assert db.execute(counts).fetchone() == (3, 3, 0, 0)
    for number, (name, photo) in enumerate(PHOTOS.items()):
        mean = 0.1 * embed_one(db, "image", photo) + 0.9 * embed_one(db, "text", name)
        stored = vector(value(db, "SELECT embedding::text FROM note WHERE id = %s", number))
        assert same_embedding(stored, mean / (mean @ mean) ** 0.5)
    # The old vectors are no longer in their groups.
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'note'") == 3
    assert value(db, "SELECT count(*) FROM note n JOIN clip_search.cluster c ON c.id = n.cluster_id") == 3
    # The watch gets another text column.
    db.execute("ALTER TABLE note ADD COLUMN title text DEFAULT 'a title'")
    db.execute("SELECT clip_watch('note', text_source => 'title')")
    assert db.execute(SETTING).fetchone()[:3] == ("image", "title", 0.9)
    assert db.execute(counts).fetchone() == (3, 3, 3, 3)


def test_every_option_can_be_taken_back(rich):
    """Resetting an option gives the same watch as a first call without that option."""
    taken = {
        "text_source": ("text_source", None),
        "mode": ("mode", "immediate"),
        "on_error": ("on_error", "raise"),
        "threshold": ("threshold", None),
        "key": ("key", "id"),
        "labels": ("labels", None),
        "image": ("image", None),
        "cluster": ("cluster", None),
    }
    query = """SELECT w.text_source, w.mode, w.on_error, w.cluster, s.threshold, s.key, s.labels, s.image
               FROM clip_search.watch w LEFT JOIN clip_search.collection_setting s ON s.members = w.relation"""
    for option, (column, wanted) in taken.items():
        before = dict(
            zip((c.name for c in rich.execute(query).description), rich.execute(query).fetchone(), strict=True)
        )
        rich.execute(f"SELECT clip_watch('note', reset => '{{{option}}}')")
        after = dict(zip(before, rich.execute(query).fetchone(), strict=True))
        assert after == before | {column: wanted}, option
    # Rows are no longer grouped, and can be grouped again.
    groups = "SELECT coalesce(sum(size), 0)::int FROM clip_search.cluster"
    before = value(rich, groups)
    rich.execute("INSERT INTO note (id, image) VALUES (99, %b)", (PHOTOS["cat"],))
    assert value(rich, groups) == before
    assert value(rich, "SELECT cluster FROM clip_search.watch") is None


def test_an_index_that_is_not_wanted_is_told_of(db):
    said = messages(db)
    notes(db, ", index => false")
    assert any("each search reads the whole table" in text and "index => true" in hint for _, text, hint in said), said
    db.execute("SELECT clip_watch('note', index => true)")
    said.clear()
    db.execute("SELECT clip_watch('note', index => false)")
    assert ["drops none" in text and "DROP INDEX" in hint for _, text, hint in said] == [True]


def test_the_view_counts_the_models_of_vectors(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512))")
    db.execute(
        "INSERT INTO note SELECT n, 'thing ' || n, clip_embed_text('another ' || n) FROM generate_series(1, 3) n"
    )
    models = "SELECT models FROM clip_search.watch"
    db.execute("SELECT clip_watch('note', 'body')")
    assert value(db, models) == {"(unknown)": 3}
    db.execute("INSERT INTO note VALUES (4, 'thing 4')")
    assert value(db, models) == {"(unknown)": 3, "photo-mini": 1}
    db.execute("UPDATE note SET body = 'changed' WHERE id = 1")
    assert value(db, models)["photo-mini"] >= 1
    db.execute("CALL clip_backfill('note')")
    assert value(db, models) == {"photo-mini": 4}
    # The vectors are now of another source, but of the same model.
    db.execute("ALTER TABLE note ADD COLUMN title text DEFAULT 'a title'")
    db.execute("SELECT clip_watch('note', 'title')")
    assert db.execute("SELECT outdated, models FROM clip_search.watch").fetchone() == (4, {"photo-mini": 4})


def test_unwatch_keeps_all_that_it_is_not_told_to_drop(db):
    notes(db, ", index => true")
    fill(db, 5)
    said = messages(db)
    db.execute("SELECT clip_unwatch('note')")
    stays = 'collection "note" of public.note stays, but will not follow the rows any more'
    assert [message for _, message, _ in said] == [stays]
    assert value(db, "SELECT count(embedding) + count(cluster_id) FROM note") == 10
    assert value(db, "SELECT count(*) FROM pg_indexes WHERE tablename = 'note'") == 2
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'note'") == 5
    assert value(db, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'note'::regclass AND NOT tgisinternal") == 0
    # Watch the column again; existing => 'keep' vouches for its vectors.
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', existing => 'keep')")
    assert db.execute("SELECT embedded, pending, outdated FROM clip_search.watch").fetchone() == (5, 0, 0)
    fill_more = "INSERT INTO note (id, body) SELECT id + 10, body FROM note"
    db.execute(fill_more)
    assert check(db, "note") == 10


def test_unwatch_says_what_it_drops(db):
    notes(db, ", index => true")
    said = messages(db)
    db.execute("SELECT clip_unwatch('note', drop_columns => true)")
    text = "\n".join(message for _, message, _ in said)
    assert all(what in text for what in ('column "embedding"', 'column "cluster_id"', "index", 'collection "note"')), (
        said
    )
    assert value(db, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'note'") == 3
    assert value(db, "SELECT count(*) FROM clip_search.collection") == 0


@pytest.mark.parametrize(("keep", "columns"), [("true", 5), ("false", 3)])
def test_a_deprecated_argument_goes_on_working_with_a_notice(db, keep, columns):
    notes(db)
    said = messages(db)
    db.execute(f"SELECT clip_unwatch('note', keep_columns => {keep})")
    assert any("deprecated" in message for _, message, _ in said)
    assert value(db, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'note'") == columns


# ---------------------------------------------------------------- vectors from before the watch


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_vectors_from_before_are_pending_and_replaced(db, mode):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
    db.execute(
        "INSERT INTO note SELECT i, 'thing ' || i, clip_embed_text('something else ' || i) FROM generate_series(1, 5) i"
    )
    db.execute("INSERT INTO note VALUES (6, NULL, clip_embed_text('of nothing'))")
    said = messages(db)
    db.execute(f"SELECT clip_watch('note', 'body', cluster => 'cluster_id', mode => '{mode}')")
    assert db.execute("SELECT rows, embedded, outdated FROM clip_search.watch").fetchone() == (6, 6, 6)
    assert value(db, "SELECT pending >= outdated FROM clip_search.watch")
    assert any("6 rows" in message for _, message, _ in said)
    db.execute("CALL clip_backfill('note')")
    assert db.execute("SELECT rows, embedded, pending, outdated FROM clip_search.watch").fetchone() == (6, 5, 0, 0)
    assert check(db, "note") == 6


def test_vectors_from_before_are_taken_over_on_the_callers_word(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512), cluster_id bigint)")
    db.execute("INSERT INTO note SELECT i, 'thing ' || i, clip_embed_text('thing ' || i) FROM generate_series(1, 5) i")
    before = db.execute("SELECT id, embedding::text FROM note ORDER BY 1").fetchall()
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id', existing => 'keep')")
    assert value(db, "SELECT outdated FROM clip_search.watch") == 0
    texts = value(db, "SELECT sum(texts) FROM clip_models()")
    db.execute("CALL clip_backfill('note')")
    # These vectors are grouped, not embedded again.
    assert value(db, "SELECT sum(texts) FROM clip_models()") == texts
    assert db.execute("SELECT id, embedding::text FROM note ORDER BY 1").fetchall() == before
    assert check(db, "note") == 5


def test_existing_keep_in_a_second_call(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text, embedding vector(512))")
    db.execute("INSERT INTO note SELECT i, 'thing ' || i, clip_embed_text('thing ' || i) FROM generate_series(1, 5) i")
    db.execute("SELECT clip_watch('note', 'body')")
    assert value(db, "SELECT outdated FROM clip_search.watch") == 5
    db.execute("SELECT clip_watch('note', existing => 'keep')")
    assert db.execute("SELECT embedded, pending, outdated FROM clip_search.watch").fetchone() == (5, 0, 0)
    db.execute("SELECT clip_watch('note', existing => 'replace')")
    assert db.execute("SELECT embedded, pending, outdated FROM clip_search.watch").fetchone() == (5, 5, 5)


def test_a_source_that_cannot_be_read_leaves_no_vector_from_before(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, image bytea, embedding vector(512), cluster_id bigint)")
    db.execute("INSERT INTO note VALUES (1, 'not an image', clip_embed_text('a cat'))")
    db.execute("SELECT clip_watch('note', 'image', cluster => 'cluster_id', on_error => 'skip')")
    db.execute("CALL clip_backfill('note')")
    assert db.execute("SELECT embedded, pending, failed, outdated FROM clip_search.watch").fetchone() == (0, 0, 1, 0)


def test_rows_that_change_groups_are_counted_once(db):
    """First vectors of another source, in groups; then the watch's own vectors."""
    notes(db)
    fill(db, 20)
    db.execute("SELECT clip_unwatch('note')")
    db.execute("UPDATE note SET body = (SELECT body FROM note WHERE id = 1)")
    db.execute("SELECT clip_watch('note', 'body', cluster => 'cluster_id')")
    db.execute("CALL clip_backfill('note', 7)")
    assert check(db, "note") == 20


def test_rows_that_are_yet_to_be_grouped_are_told_of(db):
    db.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
    db.execute("SELECT clip_watch('note', 'body')")
    fill(db, 3)
    said = messages(db)
    db.execute("SELECT clip_watch('note', cluster => 'cluster_id')")
    assert [text for _, text, _ in said] == [
        "existing rows of public.note have no cluster yet: CALL clip_backfill('public.note');"
    ]
    db.execute("CALL clip_backfill('note')")
    assert check(db, "note") == 3


def test_immediate_mode_says_that_nobody_embeds_outdated_rows(db):
    """In queued mode the background worker replaces them."""
    notes(db, ", mode => 'queued'")
    db.execute("INSERT INTO note VALUES (1, 'a cat', 'a dog'), (2, 'a ship', 'a boat')")
    db.execute("CALL clip_backfill('note')")
    said = messages(db)
    with db.transaction():
        db.execute("SELECT clip_watch('note', 'title')")
        del said[:]
        db.execute("SELECT clip_watch('note', mode => 'immediate')")
    assert db.execute("SELECT pending, outdated FROM clip_search.watch").fetchone() == (2, 2)
    assert len(said) == 1 and said[0][0] == "NOTICE" and said[0][1].startswith("2 rows of public.note have vectors")
    assert "CALL clip_backfill('public.note')" in said[0][2]
    db.execute("CALL clip_backfill('note')")
    del said[:]
    db.execute("SELECT clip_watch('note', mode => 'immediate')")
    assert said == []
