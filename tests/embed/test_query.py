"""clip_query and clip_diversify against their formulas in numpy, and how often a query is embedded."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from PIL import Image

import support
from reference import unit
from support import FIXTURES, value, vector, vector_text


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


def mmr(query: np.ndarray, candidates: np.ndarray, k: int, weight: float) -> list[tuple[int, float]]:
    """Carbonell and Goldstein 1998, section 2: arg max over R \\ S of
    lambda * Sim1(D_i, Q) - (1 - lambda) * max over S of Sim2(D_i, D_j); the maximum over nothing is 0.
    """
    query, candidates = unit(query), candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    similarity, to_query = candidates @ candidates.T, candidates @ query
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(k, len(candidates)):
        taken = [index for index, _ in chosen]
        scores = {
            i: weight * to_query[i] - (1 - weight) * max((similarity[i, j] for j in taken), default=0.0)
            for i in range(len(candidates))
            if i not in taken
        }
        best = max(scores, key=scores.get)
        chosen.append((best, scores[best]))
    return chosen


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_diversify_is_mmr(db: psycopg.Connection, weight: float, seed: int) -> None:
    """Candidates in bunches, of any length: a choice from one bunch makes the others of that bunch less likely."""
    random = np.random.default_rng(seed)
    bunches = random.normal(size=(6, 24)).repeat(10, axis=0)
    candidates = (bunches + 0.3 * random.normal(size=bunches.shape)).astype(np.float32)
    candidates *= random.uniform(0.1, 10, size=(60, 1)).astype(np.float32)
    query = (bunches.mean(axis=0) + random.normal(size=24)).astype(np.float32)
    rows = db.execute(
        "SELECT id, rank, score FROM clip_diversify(%s::vector, %s::int[], %s::vector[], 25, %s)",
        (vector_text(query), list(range(100, 160)), [vector_text(row) for row in candidates], weight),
    ).fetchall()
    wanted = mmr(query.astype(np.float64), candidates.astype(np.float64), 25, weight)
    assert [rank for _, rank, _ in rows] == list(range(1, 26))
    assert [id - 100 for id, _, _ in rows] == [index for index, _ in wanted]
    assert np.allclose([score for _, _, score in rows], [score for _, score in wanted], atol=1e-6)


def test_lambda_1_is_the_order_of_the_index(db: psycopg.Connection) -> None:
    db.execute(
        "CREATE TEMP TABLE t AS SELECT i, ARRAY[sin(i), cos(i * i), sin(i * 0.3)]::vector AS v FROM generate_series(1, 50) AS i"
    )
    ranked = "SELECT array_agg(i) FROM (SELECT i FROM t ORDER BY v <=> '[1,2,3]' LIMIT 10) AS best"
    chosen = """
        SELECT array_agg(id ORDER BY rank)
        FROM (SELECT array_agg(i) AS ids, array_agg(v) AS vs FROM t) AS c, clip_diversify('[1,2,3]', ids, vs, 10, 1)"""
    assert value(db, ranked) == value(db, chosen)


def test_query_is_the_weighted_sum(db: psycopg.Connection) -> None:
    """Texts and photos as the model embeds them, and vectors of any length."""
    names = ("cat.png", "coffee.png")
    files = [(FIXTURES / "images" / name).read_bytes() for name in names]
    texts = ["golden retriever", "snow", "a house by the sea"]
    random = np.random.default_rng(3)
    vectors = random.normal(size=(3, 512)).astype(np.float32) * np.array([[0.01], [1], [100]], np.float32)
    weights = random.normal(size=8)
    terms = [support.embed_one(db, "text", text) for text in texts]
    terms += [support.embed_one(db, "image", file) for file in files]
    terms += list(vectors)
    wanted = unit(sum(weight * unit(term) for weight, term in zip(weights, terms, strict=True)))
    query = "SELECT clip_query(%s, %s::float8[], %s::bytea[], %s::float8[], %s::vector[], %s::float8[])::text"
    given = (list(weights[:3]), files, list(weights[3:5]), [vector_text(v) for v in vectors], list(weights[5:]))
    found = vector(value(db, query, texts, *given))
    assert np.abs(found - wanted).max() < 1e-6
    assert abs(np.linalg.norm(found.astype(np.float64)) - 1) < 1e-6


def test_terms_of_another_model_are_refused(db: psycopg.Connection, server_folder: support.ServerFolder) -> None:
    for name in ("first", "second"):
        server_folder.add(FIXTURES / "layouts" / "xenova-split", f"query-{name}")
    db.execute("SELECT clip_version()")
    db.execute("SELECT set_config('clip_search.model_path', %s, false)", (str(server_folder.path),))
    first, second = ("clip_embed_text('a', 'query-first')", "clip_embed_text('b', 'query-second')")
    mixed = [
        f"clip_query(vectors => ARRAY[{first}, {second}])",
        f"clip_query('{{c}}', vectors => ARRAY[{first}], model => 'query-second')",
    ]
    for call in mixed:
        state, text = support.raised_error(db, f"SELECT {call}")
        assert state == "22000" and "query-first" in text and "query-second" in text, text
    assert value(db, f"SELECT clip_query('{{c}}', vectors => ARRAY[{first}], model => 'query-first') IS NOT NULL")


# ---------------------------------------------------------------- a query is embedded once

PHOTO, OTHER = (
    (support.ROOT / "examples" / "gallery" / "photos" / f"{name}.jpg").read_bytes() for name in ("cat", "rocket")
)
ROWS = 100
IMAGE = "clip_embed_image($1::bytea)"
FORMS = {
    "ORDER BY": f"SELECT id FROM thing ORDER BY embedding <=> {IMAGE} LIMIT 5",
    "WHERE": f"SELECT id FROM thing WHERE embedding <=> {IMAGE} < 2",
    "select list": f"SELECT embedding <=> {IMAGE} FROM thing",
    "all three": f"SELECT embedding <=> {IMAGE} FROM thing WHERE embedding <=> {IMAGE} < 2 ORDER BY embedding <=> {IMAGE} LIMIT 5",
    "model": "SELECT id FROM thing ORDER BY embedding <=> clip_embed_image($1::bytea, 'photo-mini') LIMIT 5",
    "by the table's model": "SELECT id FROM thing ORDER BY embedding <=> clip_embed_image_for('thing', $1::bytea) LIMIT 5",
    "clip_query": "SELECT id FROM thing ORDER BY embedding <=> clip_query(images => ARRAY[$1::bytea]) LIMIT 5",
    "function": "SELECT id FROM thing ORDER BY embedding <=> near($1::bytea) LIMIT 5",
    "PL/pgSQL": "SELECT * FROM nearest($1::bytea)",
    "join": f"SELECT a.id FROM thing AS a JOIN thing AS b ON b.id = a.id ORDER BY a.embedding <=> {IMAGE}, b.embedding <=> {IMAGE}",
}


@pytest.fixture(scope="module")
def things(database: support.Database) -> support.Database:
    with database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute("CREATE TABLE thing (id int PRIMARY KEY, body text, embedding vector(512))")
        db.execute(
            "INSERT INTO thing SELECT n, 'thing ' || n, clip_embed_text('thing ' || n) FROM generate_series(1, %s) n",
            (ROWS,),
        )
        db.execute("SELECT clip_watch('thing', 'body', existing => 'keep')")
        db.execute("CREATE INDEX thing_embedding ON thing USING hnsw (embedding vector_cosine_ops)")
        db.execute("CREATE FUNCTION near(bytea) RETURNS vector STABLE LANGUAGE sql AS 'SELECT clip_embed_image($1)'")
        db.execute(
            """CREATE FUNCTION nearest(photo bytea) RETURNS SETOF int LANGUAGE plpgsql AS $$ BEGIN
                 RETURN QUERY SELECT id FROM thing ORDER BY embedding <=> clip_embed_image(photo) LIMIT 5;
               END $$"""
        )
        yield database
        db.execute("DROP TABLE thing; DROP FUNCTION near, nearest")


def counts(db: psycopg.Connection) -> tuple[int, int]:
    return db.execute("SELECT coalesce(sum(images), 0)::int, coalesce(sum(runs), 0)::int FROM clip_stats()").fetchone()


@pytest.mark.parametrize("plan", ["literal", "force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("index", ["off", "on"])
@pytest.mark.parametrize("form", FORMS)
def test_a_query_by_a_photo_is_embedded_once(things: support.Database, form: str, index: str, plan: str) -> None:
    query = FORMS[form]
    with things.connect() as db:
        for setting, used in (("enable_seqscan", "off" if index == "on" else "on"), ("enable_indexscan", index)):
            db.execute(f"SET {setting} = {used}")
        if plan == "literal":
            texts = [query.replace("$1", f"'\\x{photo.hex()}'") for photo in (PHOTO, OTHER)]
        else:
            db.execute(f"SET plan_cache_mode = {plan}")
            db.execute(f"PREPARE search (bytea) AS {query}")
            texts = [f"EXECUTE search ('\\x{photo.hex()}')" for photo in (PHOTO, OTHER)]
        before = counts(db)
        first = db.execute(texts[0]).fetchall()
        assert counts(db) == (before[0] + 1, before[1] + 1)
        assert db.execute(texts[0]).fetchall() == first
        assert counts(db) == (before[0] + 1, before[1] + 1)
        assert db.execute(texts[1]).fetchall() != first or form == "WHERE"
        assert counts(db) == (before[0] + 2, before[1] + 2)


def test_what_decides_about_an_image_is_part_of_its_memo(things: support.Database) -> None:
    with things.connect() as db:
        embed = lambda: value(db, "SELECT clip_embed_image(%b)::text", PHOTO)
        first = embed()
        for change, runs in (
            ("SELECT 1", 0),
            ("SET clip_search.exact_jpeg = on", 1),
            ("RESET clip_search.exact_jpeg", 0),
            ("SET clip_search.threads = 2", 1),
            ("RESET clip_search.threads", 1),
            ("SET clip_search.memo_images = 0", 1),
            ("RESET clip_search.memo_images", 1),
        ):
            db.execute(change)
            before = counts(db)[1]
            embed()
            assert counts(db)[1] == before + runs, change
        # A limit that refuses the file refuses it even if its vector is already known.
        db.execute("SET clip_search.max_image_bytes = 100")
        assert support.raised_error(db, "SELECT clip_embed_image(%b)", PHOTO)[0] == "54000"
        db.execute("RESET clip_search.max_image_bytes")
        assert embed() == first


def test_the_least_recently_used_image_is_evicted(things: support.Database) -> None:
    with things.connect() as db:
        db.execute("SET clip_search.memo_images = 1")
        before = counts(db)[1]
        for photo, runs in ((PHOTO, 1), (PHOTO, 1), (OTHER, 2), (PHOTO, 3)):
            db.execute("SELECT clip_embed_image(%b)", (photo,))
            assert counts(db)[1] == before + runs


def test_images_that_differ_in_one_byte_are_two(things: support.Database) -> None:
    """Both images have the same length and the same beginning."""
    pixels = np.array(Image.open(io.BytesIO(PHOTO)).convert("RGB"))
    files = []
    for red in (0, 255):
        # A bitmap stores its last row first.
        pixels[0, 0, 0] = red
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        files.append(file.getvalue())
    assert len(files[0]) == len(files[1]) and files[0][:-4096] == files[1][:-4096]
    with things.connect() as db:
        before = counts(db)[1]
        for file in files:
            db.execute("SELECT clip_embed_image(%b)", (file,))
        assert counts(db)[1] == before + 2


def test_a_parameter_of_a_function_is_no_constant(things: support.Database) -> None:
    """PL/pgSQL keeps an expression for the whole transaction while its variables change."""
    with things.connect() as db:
        db.execute(
            """CREATE FUNCTION each(photos bytea[]) RETURNS SETOF vector LANGUAGE plpgsql AS $$ DECLARE photo bytea; BEGIN
                 FOREACH photo IN ARRAY photos LOOP RETURN NEXT clip_embed_image(photo); END LOOP; END $$"""
        )
        found = [
            vector(row[0]) for row in db.execute("SELECT v::text FROM each(%b::bytea[]) AS v", ([PHOTO, OTHER, PHOTO],))
        ]
        wanted = [support.embed_one(db, "image", photo) for photo in (PHOTO, OTHER, PHOTO)]
        assert all(
            support.same_embedding(a, b) for a, b in zip(found, wanted, strict=True)
        ) and not support.same_embedding(*found[:2])
        db.execute("DROP FUNCTION each")


def test_a_warning_is_given_each_time(things: support.Database) -> None:
    with things.connect() as db:
        notices: list[str] = []
        db.add_notice_handler(lambda diag: notices.append(diag.severity))
        db.execute("SET clip_search.allow_truncated_images = on")
        for _ in range(2):
            db.execute("SELECT clip_embed_image(%b)", (PHOTO[: len(PHOTO) // 2],))
        assert notices.count("WARNING") == 2
