"""clip_query and clip_diversify against their formulas in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

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
    """Candidates in bunches, of any length: a choice from one bunch pushes back the others of it."""
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
    """Texts and photos as the model embeds them, vectors of any length."""
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
        state, text = support.sqlstate(db, f"SELECT {call}")
        assert state == "22000" and "query-first" in text and "query-second" in text, text
    assert value(db, f"SELECT clip_query('{{c}}', vectors => ARRAY[{first}], model => 'query-first') IS NOT NULL")
