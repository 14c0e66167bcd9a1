"""Watched tables in databases of other encodings: names and values beyond ASCII."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

import support
from support import raised_error, value
from watched import PHOTOS

# Everything works in UTF-8, and in SQL_ASCII, which accepts any bytes; in other encodings, each call says why it
# doesn't work.
NAMES = {"UTF8": "写真ü", "SQL_ASCII": "写真ü", "LATIN1": "münchen", "WIN1252": "photo–é", "EUC_JP": "写真"}


@contextlib.contextmanager
def encoded(database: support.Database, name: str, encoding: str) -> Iterator[psycopg.Connection]:
    """A database in the given encoding, with the extension."""
    with database.connect() as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'")
    try:
        with support.connect(name) as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
            yield db
    finally:
        with database.connect() as db:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_texts_of_another_encoding_are_not_misread(database: support.Database, encoding: str) -> None:
    name = f"clip_{encoding.lower()}"
    with encoded(database, name, encoding) as db:
        db.execute("CREATE TABLE note (id text PRIMARY KEY, body text)")
        if encoding == "LATIN1":
            state, text = raised_error(db, "SELECT clip_watch('note', 'body')")
            assert state == "0A000" and "LATIN1" in text
        else:
            db.execute("SELECT clip_watch('note', 'body', on_error => 'skip')")
            db.execute("INSERT INTO note VALUES ('1', E'caf\\xe9'), ('2', E'caf\\xc3\\xa9')")
            assert db.execute(
                "SELECT convert_to(key[1] || ' ' || sqlstate, 'SQL_ASCII') FROM clip_search.failure"
            ).fetchall() == [(b"1 0A000",)]
        # An SQL_ASCII database knows nothing of UTF-8 and accepts any bytes, so there the valid text is é in UTF-8, and
        # the broken one é in LATIN1.
        e_acute, broken = ("E'caf\\xc3\\xa9'", "E'caf\\xe9'") if encoding == "SQL_ASCII" else ("'cafe'", "E'caf\\xe9'")
        for call in (
            "clip_embed_text({})",
            "clip_embed_text({}, 'photo-mini')",
            "clip_embed_texts(ARRAY['a cat', {}])",
            "clip_embed_texts(ARRAY[{}], 'photo-mini')",
            "clip_query(ARRAY[{}])",
            "clip_classify(clip_embed_text('a cat'), ARRAY['a dog', {}])",
            "clip_classify(clip_embed_text('a cat'), ARRAY['a dog'], {} || ' {{}}')",
            "clip_classify(clip_embed_text('a cat'), ARRAY['a dog'], ARRAY[{} || ' {{}}'])",
        ):
            assert value(db, f"SELECT count(*) FROM (SELECT {call.format(e_acute)}) AS found") > 0
            state, text = raised_error(db, f"SELECT {call.format(broken)}")
            assert state == "0A000" and text.startswith(f"text is not UTF-8\nThe database's encoding is {encoding}"), (
                call
            )
        # Keys can be texts, too.
        db.execute("CREATE TABLE photo (id text PRIMARY KEY, data bytea)")
        db.execute("SELECT clip_watch('photo', 'data', on_error => 'skip')")
        db.execute("INSERT INTO photo VALUES ('a', 'no photo')")
        state, text = raised_error(db, "INSERT INTO photo VALUES (E'\\xe9', 'no photo')")
        assert state == "0A000" and text.startswith("key is not UTF-8")
        db.execute("INSERT INTO photo VALUES (E'\\xe9', %b)", (PHOTOS["cat"],))


@pytest.mark.parametrize("encoding", NAMES)
def test_names_beyond_ascii(database: support.Database, encoding: str) -> None:
    name, word = f"clip_names_{encoding.lower()}", NAMES[encoding]
    works = encoding in ("UTF8", "SQL_ASCII")
    with encoded(database, name, encoding) as db:
        db.execute("SET client_encoding = 'UTF8'")
        db.execute(f'CREATE TABLE "{word}" ("{word}id" int PRIMARY KEY, "{word}data" bytea, "{word}l" text[])')
        db.execute("CREATE TABLE plain (id int PRIMARY KEY, data bytea, embedding vector(512))")
        calls = {
            "watch": f"""SELECT clip_watch('"{word}"', '{word}data', '{word}emb', cluster => '{word}cl', collection => '{word}',
                         labels => '{word}l', image => '{word}data', key => '{word}id', tags => '{word}t', index => true)""",
            "insert": f"""INSERT INTO "{word}" VALUES (1, decode('{PHOTOS["cat"].hex()}', 'hex'), ARRAY['{word}'])""",
            "again": f"""SELECT clip_watch('"{word}"', embedding => '{word}emb', mode => 'immediate', reset => '{{threshold}}')""",
            "backfill": f"""CALL clip_backfill('"{word}"')""",
            "retry": f"""SELECT clip_retry('"{word}"', '{word}emb')""",
            "query": f"""SELECT clip_embed_text_for('"{word}"', 'a', '{word}emb')""",
            "find": f"""SELECT count(*) FROM clip_find('"{word}"', 'a cat', 9, 0, key => '{word}id', embedding => '{word}emb')""",
            "find its columns": f"""SELECT count(*) FROM clip_find('"{word}"', 'a cat')""",
            "find by a word": f"SELECT count(*) FROM clip_find('plain', '{word}')",
            "find by a photo": f"""SELECT count(*) FROM clip_find('"{word}"', decode('{PHOTOS["cat"].hex()}', 'hex'))""",
            "find by a model": f"SELECT count(*) FROM clip_find('plain', 'a cat', model => '{word}')",
            "relevance": f"SELECT clip_relevance(clip_embed_text('a cat'), '{word}')",
            "explain": f"SELECT count(*) FROM clip_explain(clip_embed_text('a cat'), '{word}')",
            "labels": f"SELECT count(*) FROM clip_tags(clip_embed_text('a cat'), labels => ARRAY['{word}', 'a'])",
            "or none": f"SELECT count(*) FROM clip_classify_or_none(clip_embed_text('a cat'), ARRAY['{word}', 'a'], '{word}?')",
            "none": f"SELECT count(*) FROM clip_classify_or_none(clip_embed_text('a cat'), ARRAY['a'], '{word}')",
            "clusters": f"SELECT size FROM clip_clusters('{word}')",
            "groups": f"SELECT clip_cluster_groups('{word}')",
            "recluster": f"SELECT count(*) FROM clip_recluster('{word}')",
            "duplicates": f"SELECT count(*) FROM clip_duplicates('{word}')",
            "alter": f"SELECT clip_alter_collection('{word}', threshold => 0.5)",
            "privilege": f"SELECT clip_has_collection_privilege('{word}', 'select')",
            "unwatch": f"""SELECT clip_unwatch('"{word}"', drop_columns => true)""",
            "create": f"SELECT clip_create_collection('{word}c')",
            "drop": f"SELECT clip_drop_collection('{word}c')",
        }
        for what, call in calls.items():
            if what == "find by a model":
                assert raised_error(db, call)[0] == ("42704" if works else "0A000")
            elif works or what == "insert":
                db.execute(call)
            else:
                assert raised_error(db, call)[0] == "0A000", what
        # No model, mode or column has such a name, in any encoding.
        for call in (
            f"SELECT clip_embed_text('a', '{word}')",
            f"SELECT clip_watch('plain', 'data', mode => '{word}')",
            f"SELECT clip_watch('plain', '{word}')",
            f"SELECT clip_thumbnail('x', 64, '{word}')",
            f"SELECT clip_benchmark('{word}')",
            f"SELECT clip_prepare_words('{word}')",
            f"SELECT clip_tags(clip_embed_text('a'), 3, '{word}')",
        ):
            assert raised_error(db, call)[0] in (("42704", "22023", "42703") if works else ("0A000",)), call


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_values_beyond_ascii(database: support.Database, encoding: str, server_folder: support.ServerFolder) -> None:
    """Keys, keywords and words of a list are read as UTF-8. If that fails, the error has the right class and affects no
    other row."""
    name = f"clip_values_{encoding.lower()}"
    # A byte sequence that the database accepts but that isn't valid UTF-8.
    bad = {"LATIN1": "E'm\\xfcnchen'", "SQL_ASCII": "E'm\\xfcnchen'", "EUC_JP": "E'\\xbc\\xcc\\xbf\\xbf'"}[encoding]
    with encoded(database, name, encoding) as db:
        db.execute("CREATE TABLE photo (id text PRIMARY KEY, data bytea, keywords text[])")
        db.execute("SELECT clip_watch('photo', 'data', cluster => 'cluster_id', labels => 'keywords', tags => 'tags')")
        for key in ("'a'", "'b'"):
            db.execute(f"INSERT INTO photo VALUES ({key}, decode('{PHOTOS['cat'].hex()}', 'hex'), '{{pet}}')")
        reports = (
            "SELECT count(*) FROM clip_find('photo', 'a cat', 9, 0)",
            "SELECT count(*) FROM clip_clusters('photo')",
            "SELECT clip_cluster_groups('photo')",
            "SELECT count(*) FROM clip_duplicates('photo')",
            "SELECT count(*) FROM clip_recluster('photo')",
        )
        for report in reports:
            db.execute(report)
        assert value(db, "SELECT bool_and(tags @> '{cat}' OR array_to_string(tags, ' ') LIKE '%cat%') FROM photo")
        db.execute(f"UPDATE photo SET keywords = ARRAY[{bad}]")
        # Keywords come back as stored; JSON can't contain them.
        assert value(db, f"SELECT labels = ARRAY[{bad}] FROM clip_clusters('photo')")
        state, text = raised_error(db, reports[2])
        assert state == "0A000" and "UTF-8" in text
        db.execute("UPDATE photo SET keywords = '{pet}'")
        db.execute(f"INSERT INTO photo VALUES ({bad}, decode('{PHOTOS['cat'].hex()}', 'hex'), '{{pet}}')")
        db.execute("DELETE FROM photo WHERE id = 'b'")
        for report in (reports[0], *reports[2:4]):
            state, text = raised_error(db, report)
            assert state == "0A000" and "UTF-8" in text, report
        # A word list beyond ASCII.
        path = server_folder.path / f"{name}.txt"
        path.write_text("\n".join(["Kätzchen", *(f"word {n}" for n in range(600))]) + "\n", encoding="utf-8")
        path.chmod(0o644)
        db.execute("SELECT set_config('clip_search.words', %s, false)", (str(path),))
        call = "SELECT count(*) FROM clip_tags(clip_embed_text('a cat'))"
        if encoding == "SQL_ASCII":
            assert value(db, call) == 5
        else:
            state, text = raised_error(db, call)
            assert state == "0A000" and encoding in text
