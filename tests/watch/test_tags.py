"""clip_watch(…, tags => 'tags'): the column always has the tags of its row's embedding, however the row is written."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

import support
from support import raised_error, value
from watched import PHOTOS

MOST = 10
# The expected tags, by functions that know nothing of watches.
WANTED = f"ARRAY(SELECT tag FROM clip_tags(embedding, {MOST}, %s) WHERE relevance >= 0.5)"
COUNTS = "SELECT rows, embedded, pending, failed FROM clip_search.watch WHERE relation = 'photo'::regclass"


def photos(db: psycopg.Connection, watch: str = "", rest: str = "") -> None:
    db.execute(f"CREATE TABLE photo (id int, data bytea, caption text, PRIMARY KEY (id)) {rest}")
    db.execute(f"SELECT clip_watch('photo', 'data', tags => 'tags'{watch})")


def put(db: psycopg.Connection, *names: str, first: int = 1) -> None:
    for number, name in enumerate(names, first):
        db.execute("INSERT INTO photo (id, data) VALUES (%s, %b)", (number, PHOTOS[name]))


def check(db: psycopg.Connection, rows: int, model: str = "photo-mini") -> None:
    """Checks that each row with an embedding has its tags, and any other row none."""
    query = f"SELECT count(*), count(embedding), count(tags), count(*) FILTER (WHERE embedding IS NOT NULL AND tags = {WANTED}) FROM photo"
    counts = db.execute(query, (model,)).fetchone()
    assert counts[0] == rows and counts[1] == counts[2] == counts[3], counts


def messages(db: psycopg.Connection) -> list[str]:
    said: list[str] = []
    db.execute("SET client_min_messages = notice")
    db.add_notice_handler(lambda diag: said.append(f"{diag.severity} {diag.message_primary} {diag.message_hint or ''}"))
    return said


@pytest.fixture(autouse=True)
def words(db: psycopg.Connection) -> None:
    db.execute("SELECT clip_prepare_words()")


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_whatever_writes_a_row(db: psycopg.Connection, mode: str) -> None:
    photos(db, f", mode => '{mode}', cluster => 'cluster_id'")

    def done() -> None:
        if mode == "queued":
            db.execute("CALL clip_backfill('photo')")

    put(db, "cat", "rocket", "pagoda")
    done()
    check(db, 3)
    # Independently of the extension's functions: a cat's tags are a cat's, and a rocket's are not.
    tags = dict(db.execute("SELECT id, tags FROM photo").fetchall())
    assert any("cat" in tag.split() for tag in tags[1]) and not any("cat" in tag.split() for tag in tags[2])
    assert any("missile" in tag for tag in tags[2])
    db.execute("UPDATE photo SET data = %b WHERE id = 2", (PHOTOS["cat"],))
    done()
    check(db, 3)
    assert value(db, "SELECT tags FROM photo WHERE id = 2") == tags[1]
    db.execute(
        "INSERT INTO photo (id, data) VALUES (1, %b) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        (PHOTOS["rocket"],),
    )
    done()
    assert value(db, "SELECT tags FROM photo WHERE id = 1") == tags[2]
    # Without a photo there are no tags; an unrelated change leaves the tags as they are.
    db.execute("UPDATE photo SET data = NULL WHERE id = 2")
    db.execute("UPDATE photo SET caption = 'x' WHERE id = 3")
    done()
    assert [row[0] is None for row in db.execute("SELECT tags FROM photo ORDER BY id")] == [False, True, False]
    check(db, 3)
    assert db.execute(COUNTS).fetchone() == (3, 2, 0, 0)
    assert value(db, "SELECT tags FROM clip_search.watch") == "tags"
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == 2


def test_what_is_written_by_hand(db: psycopg.Connection) -> None:
    photos(db)
    put(db, "cat", "rocket")
    # The tags follow the embedding.
    db.execute("UPDATE photo SET embedding = (SELECT embedding FROM photo WHERE id = 2) WHERE id = 1")
    check(db, 2)
    # Tags written by hand stay until the photo changes; emptying them brings the watch's tags back.
    db.execute("UPDATE photo SET tags = '{mine}' WHERE id = 1")
    db.execute("UPDATE photo SET caption = 'x' WHERE id = 1")
    assert value(db, "SELECT tags FROM photo WHERE id = 1") == ["mine"]
    db.execute("UPDATE photo SET data = %b WHERE id = 1", (PHOTOS["pagoda"],))
    check(db, 2)
    db.execute("UPDATE photo SET tags = NULL")
    assert db.execute(COUNTS).fetchone() == (2, 2, 2, 0)
    runs = "SELECT sum(images)::int FROM clip_stats()"
    before = value(db, runs)
    db.execute("CALL clip_backfill('photo')")
    assert value(db, runs) == before, "tags are made of the embeddings, not of the photos"
    check(db, 2)
    assert db.execute(COUNTS).fetchone() == (2, 2, 0, 0)
    db.execute("UPDATE photo SET embedding = NULL WHERE id = 1")
    assert value(db, "SELECT tags FROM photo WHERE id = 1") is None


@pytest.mark.parametrize("mode", ["immediate", "queued"])
def test_rows_from_before_get_tags_without_being_embedded_again(db: psycopg.Connection, mode: str) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    db.execute(f"SELECT clip_watch('photo', 'data', cluster => 'cluster_id', mode => '{mode}')")
    put(db, "cat", "rocket", "pagoda")
    db.execute("CALL clip_backfill('photo')")
    before = db.execute("SELECT id, embedding::text, cluster_id FROM photo ORDER BY id").fetchall()
    said = messages(db)
    db.execute("SELECT clip_watch('photo', tags => 'tags')")
    if mode == "immediate":
        assert any("have no tags yet: CALL clip_backfill" in text for text in said), said
    assert db.execute(COUNTS).fetchone() == (3, 3, 3, 0)
    db.execute("CALL clip_backfill('photo')")
    check(db, 3)
    assert db.execute("SELECT id, embedding::text, cluster_id FROM photo ORDER BY id").fetchall() == before
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == 3


def test_files_that_cannot_be_read(db: psycopg.Connection) -> None:
    photos(db, ", on_error => 'skip'")
    db.execute("INSERT INTO photo VALUES (1, 'no photo')")
    check(db, 1)
    assert db.execute(COUNTS).fetchone() == (1, 0, 0, 1)
    db.execute("UPDATE photo SET data = %b", (PHOTOS["cat"],))
    check(db, 1)
    # A retry sets the tags, too.
    db.execute("INSERT INTO photo VALUES (2, %b)", (PHOTOS["cat"][:2000],))
    assert db.execute(COUNTS).fetchone() == (2, 1, 0, 1)
    with support.system_settings(db, allow_truncated_images="on"):
        support.until(lambda: value(db, "SHOW clip_search.allow_truncated_images") == "on")
        assert value(db, "SELECT clip_retry('photo')") == 1
    check(db, 2)
    assert value(db, "SELECT count(tags) FROM photo") == 2


def test_another_model_has_other_tags(db: psycopg.Connection, with_clip) -> None:
    photos(db, ", cluster => 'cluster_id'")
    put(db, "cat", "rocket", "pagoda")
    db.execute("CREATE INDEX photo_tags ON photo USING gin (tags)")
    before = db.execute("SELECT tags FROM photo ORDER BY id").fetchall()
    db.execute("CALL clip_reembed('photo', 'clip-mini')")
    check(db, 3, "clip-mini")
    assert db.execute("SELECT tags FROM photo ORDER BY id").fetchall() != before
    assert value(db, "SELECT tags FROM clip_search.watch") == "tags"
    assert "USING gin (tags)" in value(db, "SELECT indexdef FROM pg_indexes WHERE indexname = 'photo_tags'")
    columns = value(
        db,
        "SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = 'photo'::regclass AND attnum > 0 AND NOT attisdropped",
    )
    assert set(columns) == {"id", "data", "caption", "embedding", "cluster_id", "tags"}
    put(db, "cat", first=4)
    check(db, 4, "clip-mini")


def test_partitions(db: psycopg.Connection) -> None:
    photos(db, ", cluster => 'cluster_id'", "PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE photo_1 PARTITION OF photo FOR VALUES FROM (0) TO (10)")
    # A partition whose columns have other numbers.
    db.execute(
        "CREATE TABLE photo_2 (tags text[], extra int, data bytea, caption text, id int NOT NULL, cluster_id bigint, embedding vector(512))"
    )
    db.execute("ALTER TABLE photo_2 DROP extra")
    db.execute("INSERT INTO photo_2 (id, data) VALUES (19, %b)", (PHOTOS["cat"],))
    db.execute("ALTER TABLE photo ATTACH PARTITION photo_2 FOR VALUES FROM (10) TO (20)")
    put(db, "cat")
    put(db, "rocket", first=11)
    db.execute("CALL clip_backfill('photo')")
    check(db, 3)
    db.execute("UPDATE photo SET id = 12 WHERE id = 1")
    check(db, 3)
    assert value(db, "SELECT sum(size) FROM clip_search.cluster WHERE collection = 'photo'") == 3


def test_an_image_and_a_text(db: psycopg.Connection) -> None:
    """Tags are those of the stored vector, also in half precision."""
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, caption text, embedding halfvec(512))")
    db.execute("SELECT clip_watch('photo', 'data', text_source => 'caption', text_weight => 0.4, tags => 'tags')")
    db.execute(
        "INSERT INTO photo (id, data, caption) VALUES (1, %b, 'a rocket'), (2, NULL, 'a rocket')", (PHOTOS["cat"],)
    )
    query = WANTED.replace("embedding", "embedding::vector")
    assert value(db, f"SELECT bool_and(tags = {query}) FROM photo", "photo-mini")
    state, text = raised_error(db, "SELECT clip_watch('photo', 'caption', embedding => 'other', tags => 'other_tags')")
    assert state == "0A000" and "texts alone" in text


REFUSED = {
    "another type": ("words text", "tags => 'words'", "42804", "text[]"),
    "generated": ("words text[] GENERATED ALWAYS AS (ARRAY[caption]) STORED", "tags => 'words'", "42804", "plain"),
    "NOT NULL": ("words text[] NOT NULL DEFAULT '{}'", "tags => 'words'", "55000", "NOT NULL"),
    "the source": ("words text[]", "tags => 'data'", "22023", "data"),
    "the clusters'": ("words text[]", "cluster => 'words', tags => 'words'", "22023", "words"),
    "empty": ("words text[]", "tags => ''", "42703", "reset => '{tags}'"),
    "too long": ("words text[]", f"tags => '{'t' * 70}'", "42622", "63"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_the_watch_is_made(db: psycopg.Connection, case: str) -> None:
    column, arguments, state, part = REFUSED[case]
    db.execute(f"CREATE TABLE photo (id int PRIMARY KEY, data bytea, caption text, {column})")
    found, text = raised_error(db, f"SELECT clip_watch('photo', 'data', {arguments})")
    assert found == state and part in text, text
    assert value(db, "SELECT count(*) FROM clip_search.watch_setting") == 0


def test_nobodys_keywords_are_overwritten_in_silence(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, words text[])")
    db.execute("INSERT INTO photo VALUES (1, %b, '{mine}')", (PHOTOS["cat"],))
    state, text = raised_error(db, "SELECT clip_watch('photo', 'data', tags => 'words')")
    assert state == "55000" and "contains values already" in text and "existing => 'keep'" in text
    db.execute("SELECT clip_watch('photo', 'data', tags => 'words', existing => 'keep')")
    assert value(db, "SELECT words FROM photo") == ["mine"]
    # Two watches can't share a tags column.
    state, text = raised_error(
        db, "SELECT clip_watch('photo', 'data', embedding => 'other', tags => 'words', existing => 'keep')"
    )
    assert state == "22023" and '"embedding"' in text


def test_a_second_call_reset_and_unwatch(db: psycopg.Connection) -> None:
    photos(db, ", cluster => 'cluster_id'")
    put(db, "cat")
    db.execute("SELECT clip_watch('photo', on_error => 'skip')")
    assert value(db, "SELECT tags FROM clip_search.watch") == "tags"
    state, text = raised_error(db, "SELECT clip_watch('photo', tags => 'others')")
    assert state == "55000" and "reset => '{tags}'" in text
    said = messages(db)
    db.execute("SELECT clip_watch('photo', reset => '{tags}')")
    assert any("get no tags any more" in text and "DROP COLUMN tags" in text for text in said), said
    assert value(db, "SELECT tags FROM clip_search.watch") is None
    put(db, "rocket", first=2)
    assert [row[0] is None for row in db.execute("SELECT tags FROM photo ORDER BY id")] == [False, True]
    db.execute("SELECT clip_watch('photo', tags => 'tags', existing => 'keep')")
    db.execute("CALL clip_backfill('photo')")
    check(db, 2)
    # clip_unwatch keeps the tags.
    db.execute("SELECT clip_unwatch('photo')")
    check(db, 2)
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', tags => 'tags', existing => 'keep')")
    said.clear()
    db.execute("SELECT clip_unwatch('photo', drop_columns => true)")
    db.execute("DROP TABLE photo")
    photos(db, ", cluster => 'cluster_id'")
    said.clear()
    db.execute("SELECT clip_unwatch('photo', drop_columns => true)")
    assert any('column "tags"' in text and "is dropped" in text for text in said), said
    columns = "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'photo'::regclass AND attnum > 0 AND NOT attisdropped"
    assert value(db, columns) == ["id", "data", "caption"]


def test_groups_are_described_by_tags_where_they_have_no_keywords(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea, keywords text[])")
    db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', tags => 'tags')")
    for number, name in enumerate(("cat", "cat", "rocket", "rocket"), 1):
        db.execute("INSERT INTO photo (id, data) VALUES (%s, %b)", (number, PHOTOS[name]))
    labels = "SELECT labels FROM clip_clusters('photo') ORDER BY representative::int"
    of_cat, of_rocket = (set(value(db, "SELECT tags FROM photo WHERE id = %s", number)) for number in (1, 3))
    found = [set(row[0]) for row in db.execute(labels)]
    assert found[0] <= of_cat and found[1] <= of_rocket and all(found)
    groups = value(db, "SELECT clip_cluster_groups('photo')")
    assert all(set(asset["keywords"]) in (of_cat, of_rocket) for group in groups for asset in group["assets"])
    # Keywords come first, for each member.
    db.execute("SELECT clip_watch('photo', labels => 'keywords')")
    db.execute("UPDATE photo SET keywords = CASE WHEN id < 3 THEN '{pet}'::text[] ELSE '{}' END")
    found = [set(row[0]) for row in db.execute(labels)]
    assert found[0] == {"pet"} and found[1] <= of_rocket


def test_rights_are_the_owners(database: support.Database, db: psycopg.Connection, plain_role: str) -> None:
    """A role that may only INSERT has its rows tagged by the owner's watch, but can't watch the table."""
    photos(db)
    db.execute(f"GRANT INSERT ON photo TO {plain_role}")
    try:
        with database.connect(user=plain_role) as other:
            other.execute("INSERT INTO photo (id, data) VALUES (1, %b)", (PHOTOS["cat"],))
            assert raised_error(other, "SELECT clip_watch('photo', tags => 'others')")[0] == "42501"
        check(db, 1)
    finally:
        db.execute(f"REVOKE ALL ON photo FROM {plain_role}")


def test_a_dump_has_the_tags_and_the_watch(
    database: support.Database, empty_database: support.Database, pg_program
) -> None:
    with database.connect() as db:
        db.execute("SET client_min_messages = warning")
        photos(db, ", mode => 'queued'")
        put(db, "cat", "rocket")
        db.execute("CALL clip_backfill('photo')")
        tags = db.execute("SELECT id, tags FROM photo ORDER BY id").fetchall()
    dump = subprocess.run([pg_program("pg_dump"), database.name], capture_output=True, text=True, check=True)
    with database.connect() as db:
        db.execute("DROP TABLE photo")
    done = subprocess.run(
        [pg_program("psql"), "-qX", "-v", "ON_ERROR_STOP=1", empty_database.name],
        input=dump.stdout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with empty_database.connect() as db:
        assert db.execute("SELECT id, tags FROM photo ORDER BY id").fetchall() == tags
        assert value(db, "SELECT tags FROM clip_search.watch") == "tags"
        db.execute("INSERT INTO photo (id, data) VALUES (3, %b)", (PHOTOS["pagoda"],))
        db.execute("CALL clip_backfill('photo')")
        check(db, 3)


def test_another_list_of_words(db: psycopg.Connection, server_folder: support.ServerFolder) -> None:
    """Existing tags stay; emptied tags are made from the new list."""
    photos(db)
    put(db, "cat")
    path = server_folder.path / "words.txt"
    lines = (support.ROOT / "models" / "words" / "everyday.txt").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith(("#", "+")) and "cat" not in line][:600]
    path.write_text("\n".join(["cat", *kept]) + "\n")
    path.chmod(0o644)
    before = value(db, "SELECT tags FROM photo")
    with support.system_settings(db, words=str(path)):
        support.until(lambda: value(db, "SHOW clip_search.words") == str(path))
        assert value(db, "SELECT tags FROM photo") == before
        db.execute("UPDATE photo SET tags = NULL")
        db.execute("CALL clip_backfill('photo')")
        check(db, 1)
        assert value(db, "SELECT tags FROM photo") == ["cat"]


def test_without_a_cache_every_connection_embeds_the_words(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE photo (id int PRIMARY KEY, data bytea)")
    said = messages(db)
    db.execute("SET clip_search.cache_path = ''")
    db.execute("SELECT clip_watch('photo', 'data', tags => 'tags')")
    warnings = [text for text in said if text.startswith("WARNING each connection embeds the words")]
    assert len(warnings) == 1 and "cache_path" in warnings[0], said
    put(db, "cat")
    check(db, 1)
