"""Thousands of similar clusters: the search finds the nearest one, as NumPy's exact product does.

Other tests use subjects at right angles, among which any search would succeed. These use 5,000 clusters of photos of
one topic, with mean cosines of 0.70 to 0.85 to each other, and vectors at 0.82 to 0.85 to one of them, whose code is
not always the nearest. Others use crowds below the threshold that look likelier than the right cluster. The tables
are filled with the codes of a second implementation (tests/fixtures/codes.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from support import value, vector_text

sys.path.append(str(support.FIXTURES))
from codes import BLOCK, codes, scores

DIMENSIONS, CLUSTERS, THRESHOLD = 512, 5_000, 0.82


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def centroids(mean: float) -> np.ndarray:
    """Unit vectors with that mean cosine to each other; each one's own part is spread unevenly over the axes."""
    rng = np.random.default_rng(1)
    spectrum = 1 / np.sqrt(1 + np.arange(DIMENSIONS) / 20)
    basis = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    own = unit(rng.standard_normal((CLUSTERS, DIMENSIONS)) * spectrum)
    return unit(np.sqrt(mean) * unit(rng.standard_normal(DIMENSIONS)) + np.sqrt(1 - mean) * own @ basis)


def near(rows: np.ndarray, low: float, high: float, seed: int) -> np.ndarray:
    """For each row, a vector whose cosine to it lies in that range."""
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(low, high, (len(rows), 1))
    noise = rng.standard_normal(rows.shape)
    noise = unit(noise - (noise * rows).sum(1, keepdims=True) * rows)
    return unit(cosine * rows + np.sqrt(1 - cosine**2) * noise)


def ranks(queries: np.ndarray, rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each query, the number of clusters whose code is nearer to the query's than the right cluster's code."""
    signs = [np.unpackbits(codes(vectors), axis=1).astype(np.float32) * 2 - 1 for vectors in (queries, rows)]
    likeness = signs[0] @ signs[1].T
    return (likeness > likeness[np.arange(len(queries)), truth][:, None]).sum(1)


class Clusters:
    """A collection of 5,000 clusters, and the queries on it."""

    def __init__(self, database: support.Database, name: str, mean: float):
        self.database, self.name = database, name
        self.rows = centroids(mean)
        members = np.random.default_rng(2).integers(0, CLUSTERS, 12_000)
        self.queries = near(self.rows[members], 0.82, 0.85, seed=3)
        product = self.queries @ self.rows.T
        # Without queries whose cosine equals the threshold up to rounding: both answers would be right.
        clear = product.max(1) > THRESHOLD + 1e-5
        self.queries, product = self.queries[clear], product[clear]
        self.truth = product.argmax(1)
        self.product = product
        with database.connect() as db:
            self.first = value(db, "SELECT nextval('clip_search.cluster_id_seq')")
        self.fill(name, self.rows, self.first)

    def fill(self, name: str, rows: np.ndarray, before: int = 0) -> None:
        """Stores clusters of one member each, with the ids that follow `before`."""
        coded = codes(rows)
        with self.database.connect() as db:
            with db.cursor().copy(
                "COPY clip_search.cluster_sum (collection, cluster, size, sum, code) FROM STDIN"
            ) as copy:
                for n, (row, code) in enumerate(zip(rows, coded, strict=True), before + 1):
                    copy.write_row((name, n, 1, vector_text(row), code.tobytes()))
            for first in range(0, len(rows), BLOCK):
                some = coded[first : first + BLOCK]
                entries = np.arange(len(some), dtype="<u4").tobytes() + some.tobytes()
                ids = before + first + 1, before + first + len(some)
                db.execute("INSERT INTO clip_search.cluster_code VALUES (%s, %s, %s, %s)", (name, *ids, entries))
            db.execute(
                "SELECT setval('clip_search.cluster_id_seq', greatest(%s, nextval('clip_search.cluster_id_seq')))",
                (before + len(rows),),
            )
            db.execute("VACUUM ANALYZE clip_search.cluster_sum, clip_search.cluster_code")

    def recall(self, chosen: np.ndarray) -> float:
        """The share of these queries that join the nearest cluster. Each call is rolled back."""
        found = []
        with self.database.connect() as db:
            for query in self.queries[chosen]:
                with db.transaction(force_rollback=True):
                    found.append(value(db, "SELECT clip_assign_cluster(%s::vector, %s)", vector_text(query), self.name))
        return float((np.array(found) - self.first - 1 == self.truth[chosen]).mean())


@pytest.fixture(scope="module")
def clusters(database: support.Database) -> Clusters:
    return Clusters(database, "c", 0.70)


@pytest.mark.parametrize(("mean", "first"), [(0.70, 0.97), (0.78, 0.90), (0.85, 0.70)])
def test_the_nearest_of_thousands_is_found(
    database: support.Database, clusters: Clusters, mean: float, first: float
) -> None:
    """The more alike the clusters are, the less the codes tell: the right one's code is the nearest for up to
    `first` of the queries, and at 0.85 it is beyond the thousandth for some."""
    asked = clusters if mean == 0.70 else Clusters(database, f"c{mean}", mean)
    chosen = np.arange(1000)
    places = ranks(asked.queries[chosen], asked.rows, asked.truth[chosen])
    assert (places == 0).mean() <= first and (mean != 0.85 or places.max() > 1000)
    assert asked.recall(chosen) >= 0.999


def is_beyond(query: np.ndarray, crowd: np.ndarray, least: int, most: int, compared: int) -> bool:
    """Whether between `least` and `most` clusters score higher than the last, which is the right one, while the
    clusters left after the first `compared` seem too unlikely for the search to continue for their likelihood alone
    (3.3 standard deviations)."""
    found = scores(query.astype(np.float64), codes(crowd), THRESHOLD)
    return least <= (found[:-1] > found[-1]).sum() <= most and np.sort(found)[::-1][compared] < -3.4


@pytest.mark.parametrize(
    ("low", "high", "least", "most", "compared"), [(0.78, 0.80, 80, 400, 64), (0.68, 0.73, 17, 63, 16)]
)
def test_a_crowd_below_the_threshold_ends_no_search(
    clusters: Clusters, low: float, high: float, least: int, most: int, compared: int
) -> None:
    """Four hundred clusters around a vector, and the one to which it belongs, which looks less likely than they. At
    0.78 to 0.80, the search continues beyond the sixty-four that are always compared, since the clusters come within
    0.05 of the threshold. At lower cosines, the right one is among the sixty-four."""
    rows: list[np.ndarray] = []
    asked: list[tuple[np.ndarray, int]] = []
    name, before = f"crowd{least}", 1_000_000 * least
    for seed in range(2000):
        query = unit(np.random.default_rng(seed).standard_normal((1, DIMENSIONS)))
        crowd = np.concatenate(
            [near(np.repeat(query, 400, axis=0), low, high, seed), near(query, 0.825, 0.84, seed + 1)]
        )
        if is_beyond(query[0], crowd, least, most, compared):
            asked.append((query[0], len(rows) * 401 + 401))
            rows.append(crowd)
        if len(asked) == 5:
            break
    assert len(asked) == 5
    clusters.fill(name, np.concatenate(rows), before)
    with clusters.database.connect() as db:
        for query, truth in asked:
            with db.transaction(force_rollback=True):
                found = value(db, "SELECT clip_assign_cluster(%s::vector, %s)", vector_text(query), name)
                assert found == before + truth


def test_a_new_cluster_that_is_near_ends_no_search(clusters: Clusters) -> None:
    """A cluster without a code is compared first. Although it is nearly as near, the search still finds the nearest
    cluster, by its code."""
    tried = 0
    with clusters.database.connect() as db:
        for place in range(3000):
            query, truth = clusters.queries[place], clusters.truth[place]
            best = clusters.product[place, truth]
            others = np.delete(clusters.product[place], truth).max()
            # A little further from the query than the nearest cluster, and on its other side.
            away = query - (query @ clusters.rows[truth]) * clusters.rows[truth]
            away -= (away @ query) * query
            cosine = best - 0.005
            founder = unit(cosine * query + np.sqrt(1 - cosine**2) * unit(away))
            if others + 0.06 > cosine or (clusters.rows @ founder).max() >= THRESHOLD - 0.01:
                continue
            tried += 1
            with db.transaction(force_rollback=True):
                new = value(db, "SELECT clip_assign_cluster(%s::vector, 'c')", vector_text(founder))
                assert new > clusters.first + CLUSTERS, "it founds a cluster"
                found = value(db, "SELECT clip_assign_cluster(%s::vector, 'c')", vector_text(query))
                assert found - clusters.first - 1 == truth
            if tried == 20:
                break
    assert tried >= 10


@pytest.fixture
def own(clusters: Clusters) -> Iterator[psycopg.Connection]:
    with clusters.database.connect() as db, db.transaction(force_rollback=True):
        yield db


def beside(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One of the rows, and a direction orthogonal to all rows."""
    row = rows[0]
    across = np.random.default_rng(9).standard_normal(DIMENSIONS)
    common = unit(rows.mean(axis=0))
    across -= (across @ common) * common
    return row, unit(across - (across @ row) * row)


def test_a_cluster_that_has_moved_is_found(own: psycopg.Connection, clusters: Clusters) -> None:
    """Its sum finds it although its code is out of date: two members join at 30 degrees to the only one, which then
    leaves."""
    row, across = beside(clusters.rows)
    id = clusters.first + 1
    at = lambda degrees: vector_text(unit(np.cos(np.radians(degrees)) * row + np.sin(np.radians(degrees)) * across))
    assign = "SELECT clip_assign_cluster(%s::vector, 'c')"
    assert [value(own, assign, at(30)) for _ in range(2)] == [id] * 2
    assert value(own, "SELECT clip_leave_cluster(%s, %s::vector)", id, at(0))
    assert value(own, assign, at(60)) == id


def test_a_cluster_is_where_its_latest_members_have_moved_it(own: psycopg.Connection, clusters: Clusters) -> None:
    """Forty members in one place, and nine at 34 degrees to it that the sum doesn't include yet. A vector at 36
    degrees is below the threshold for the sum, and above it for all members."""
    row, across = beside(clusters.rows)

    def at(degrees: float) -> str:
        angle = np.radians(degrees)
        return vector_text(unit(np.cos(angle) * row + np.sin(angle) * across))

    assign = "SELECT clip_assign_cluster(%s::vector, 'moving')"
    id = value(own, assign, at(0))
    assert {value(own, assign, at(degrees)) for degrees in [0.0] * 39 + [34.0] * 9} == {id}
    pending = "SELECT count(*) FROM clip_search.cluster_change WHERE cluster = %s"
    assert value(own, pending, id) >= 1
    assert value(own, assign, at(36)) == id


def test_codes_that_the_extension_writes_are_the_second_implementations(
    own: psycopg.Connection, clusters: Clusters
) -> None:
    """The codes of clusters beyond the first 432, which are made when they are packed."""
    rows = clusters.rows[:600]
    own.execute("SELECT clip_create_collection('packed', 1.0)")
    ids = [value(own, "SELECT clip_assign_cluster(%s::vector, 'packed')", vector_text(row)) for row in rows]
    assert len(set(ids)) == len(rows)
    blocks = own.execute("SELECT * FROM clip_search.cluster_code WHERE collection = 'packed' ORDER BY first").fetchall()
    expected = {id: code.tobytes() for id, code in zip(ids, codes(rows), strict=True)}
    stored = {}
    for _, first, _, entries in blocks:
        count = len(entries) // 36
        offsets = np.frombuffer(entries[: 4 * count], dtype="<u4")
        for n, offset in enumerate(offsets):
            stored[first + int(offset)] = bytes(entries[4 * count + 32 * n : 4 * count + 32 * (n + 1)])
    assert len(stored) >= 400
    wrong = [
        id
        for id, code in stored.items()
        if sum(bin(a ^ b).count("1") for a, b in zip(code, expected[id], strict=True)) > 2
    ]
    assert not wrong, "a component at 0 to within rounding may be of either sign, others not"
