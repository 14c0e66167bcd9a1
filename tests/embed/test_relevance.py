"""clip_relevance, clip_tags, clip_explain and clip_find against numpy: the formula in double precision, on vectors
that the same model makes of the same words.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import support
from support import raised_error, value, vector_text

WORDS = support.ROOT / "models" / "words" / "everyday.txt"
PHOTOS = sorted((support.ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
# The extension rounds each vector's components to a 127th of the largest one when it compares words.
TOLERANCE = 0.01
QUERIES = [
    "a cat",
    "tabby cat on a sofa",
    "espresso",
    "tax return form",
    "spiral staircase",
    "Zürich",
    "galaxies in deep space",
]


def words_of(path: pathlib.Path) -> tuple[list[str], list[str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not line.startswith("+")], [line[1:] for line in lines if line.startswith("+")]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Formula:
    """The formulas of docs/relevance.md."""

    def __init__(self, words: np.ndarray, tags: np.ndarray):
        self.mean = words.mean(0)
        self.words, self.tags = self.relative(words), self.relative(np.concatenate([words, tags]))

    def relative(self, rows: np.ndarray) -> np.ndarray:
        return unit(unit(rows) - self.mean)

    def scores(self, photo: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """The vectors of the texts must already be relative."""
        photo = self.relative(photo)
        cosines = self.words @ photo
        best = np.sort(cosines)[::-1][: len(self.words) // 100].mean()
        return (texts @ photo - best) / cosines.std()

    @staticmethod
    def relevance(scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-1.34 * (scores - 0.84)))

    def of(self, photo: np.ndarray, text: np.ndarray) -> float:
        return float(self.relevance(self.scores(photo, self.relative(text)[None]))[0])


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        connection.execute("SET client_min_messages = warning")
        yield connection


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A list of 800 words and 100 tags, which takes seconds instead of half a minute."""
    words, tags = words_of(WORDS)
    path = tmp_path_factory.mktemp("words") / "small.txt"
    path.write_text("# a test's\n\n" + "\n".join([*words[:800], *(f"+{tag}" for tag in tags[:100])]) + "\n")
    for folder in path.parents[:3]:
        folder.chmod(0o755)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def formula(database: support.Database, small: pathlib.Path) -> Formula:
    with database.connect() as db:
        return Formula(*(np.array(support.embed_many(db, "texts", texts), np.float64) for texts in words_of(small)))


@pytest.fixture(scope="module")
def photos(database: support.Database) -> dict[str, np.ndarray]:
    with database.connect() as db:
        files = [path.read_bytes() for path in PHOTOS]
        vectors = support.embed_many(db, "images", files)
    return {path.stem: np.array(vector, np.float64) for path, vector in zip(PHOTOS, vectors, strict=True)}


@pytest.fixture
def listed(db: psycopg.Connection, small: pathlib.Path) -> psycopg.Connection:
    db.execute("SELECT set_config('clip_search.words', %s, false)", (str(small),))
    return db


def test_relevance_is_the_formulas(listed: psycopg.Connection, formula: Formula, photos: dict[str, np.ndarray]) -> None:
    for query in QUERIES:
        text = np.array(support.embed_one(listed, "text", query), np.float64)
        for name, photo in photos.items():
            found = value(listed, "SELECT clip_relevance(%s::vector, %s)", vector_text(photo), query)
            assert abs(found - formula.of(photo, text)) < TOLERANCE, f"{query}, {name}"


def test_tags_are_the_words_with_the_highest_scores(
    listed: psycopg.Connection, formula: Formula, photos: dict[str, np.ndarray], small: pathlib.Path
) -> None:
    names = [word for part in words_of(small) for word in part]
    for photo in photos.values():
        rows = listed.execute("SELECT * FROM clip_tags(%s::vector, 7)", (vector_text(photo),)).fetchall()
        wanted = formula.relevance(formula.scores(photo, formula.tags))
        assert len(rows) == 7 and [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
        for tag, relevance in rows:
            assert abs(wanted[names.index(tag)] - relevance) < TOLERANCE
        # No omitted tag is better, beyond rounding.
        left = np.delete(wanted, [names.index(tag) for tag, _ in rows])
        assert left.max() < rows[-1][1] + TOLERANCE


def test_labels_are_rated_like_queries(listed: psycopg.Connection, photos: dict[str, np.ndarray]) -> None:
    photo = vector_text(photos["cat"])
    rows = listed.execute("SELECT * FROM clip_tags(%s::vector, labels => %s)", (photo, QUERIES)).fetchall()
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True) and rows[0][0] in QUERIES[:2]
    for label, relevance in rows:
        assert relevance == value(listed, "SELECT clip_relevance(%s::vector, %s)", photo, label)


def test_none_of_these_has_what_the_best_label_leaves(
    listed: psycopg.Connection, photos: dict[str, np.ndarray]
) -> None:
    for name, labels in (("cat", ["cat", "dog", "house"]), ("deep-field", ["sandwich", "bicycle", "tax form"])):
        photo = vector_text(photos[name])
        rows = dict(listed.execute("SELECT * FROM clip_classify_or_none(%s::vector, %s)", (photo, labels)).fetchall())
        plain = dict(listed.execute("SELECT * FROM clip_classify(%s::vector, %s::text[])", (photo, labels)).fetchall())
        most = 0.0
        for label in labels:
            direct = value(listed, "SELECT clip_relevance(%s::vector, %s)", photo, label)
            query = "SELECT least(in_photo, in_query) FROM clip_explain(%s::vector, %s, 1)"
            most = max(most, 1 - (1 - direct) * (1 - value(listed, query, photo, label)))
        assert abs(rows.pop("none of these") - (1 - most)) < 1e-9
        assert rows.keys() == plain.keys()
        for label, probability in plain.items():
            assert abs(rows[label] - probability * most) < 1e-9
        assert (most > 0.5) == (name == "cat")
    query = "SELECT * FROM clip_classify_or_none(%s::vector, '{cat,other}', 'other')"
    assert raised_error(listed, query, photo)[0] == "22023"


def test_explanation_names_what_both_have_in_common(
    listed: psycopg.Connection, formula: Formula, photos: dict[str, np.ndarray], small: pathlib.Path
) -> None:
    names = [word for part in words_of(small) for word in part]
    text = np.array(support.embed_one(listed, "text", "a cat"), np.float64)
    rows = listed.execute(
        "SELECT * FROM clip_explain(%s::vector, 'a cat', 5)", (vector_text(photos["cat"]),)
    ).fetchall()
    of_photo, of_text = (formula.relevance(formula.scores(vector, formula.tags)) for vector in (photos["cat"], text))
    assert len(rows) == 5
    lower = np.minimum(of_photo, of_text)
    for word, in_photo, in_query in rows:
        place = names.index(word)
        assert abs(in_photo - of_photo[place]) < TOLERANCE and abs(in_query - of_text[place]) < TOLERANCE
        assert lower[place] > np.sort(lower)[-6] - TOLERANCE


@pytest.fixture
def table(listed: psycopg.Connection, photos: dict[str, np.ndarray]) -> Iterator[psycopg.Connection]:
    """Each photo, and 300 vectors between two of them, so that the planner uses an index."""
    listed.execute("CREATE TABLE photo (id bigint PRIMARY KEY, name text, embedding vector(512))")
    rng, all_of_them = np.random.default_rng(5), np.stack(list(photos.values()))
    rows = list(photos.items())
    for number in range(300):
        a, b = rng.integers(len(all_of_them), size=2)
        share = rng.uniform(0.2, 0.8)
        rows.append((f"mixed {number}", unit(share * all_of_them[a] + (1 - share) * all_of_them[b])))
    with listed.cursor() as cursor:
        insert = "INSERT INTO photo VALUES (%s, %s, %s)"
        cursor.executemany(insert, [(n, name, vector_text(row)) for n, (name, row) in enumerate(rows)])
    listed.execute("INSERT INTO photo VALUES (9000, 'no photo', NULL)")
    listed.execute("CREATE INDEX ON photo USING hnsw (embedding vector_cosine_ops)")
    listed.execute("ANALYZE photo")
    yield listed
    listed.execute("DROP TABLE photo")


def test_find_returns_what_matches_in_pages_without_gaps(table: psycopg.Connection) -> None:
    query = "SELECT id::text, clip_relevance(embedding, 'a cat') AS r FROM photo WHERE clip_relevance(embedding, 'a cat') >= 0.5"
    wanted = sorted(table.execute(query).fetchall(), key=lambda row: (-row[1], row[0]))
    assert 30 < len(wanted) < 250
    for plan in ("on", "off"):
        table.execute(f"SET enable_sort = {plan}")
        whole = table.execute("SELECT id, relevance FROM clip_find('photo', 'a cat', 1000)").fetchall()
        # The index finds nearly all of them.
        assert (
            set(whole) <= set(wanted)
            and len(whole) >= 0.98 * len(wanted)
            and whole == sorted(whole, key=lambda r: (-r[1], r[0]))
        )
        pages, last = [], (None, None)
        while page := table.execute("SELECT * FROM clip_find('photo', 'a cat', 7, 0.5, %s, %s)", last).fetchall():
            assert len(page) <= 7
            pages += page
            last = (page[-1][2], page[-1][0])
        assert [(row[0], row[2]) for row in pages] == whole
    table.execute("RESET enable_sort")
    cosine = value(
        table, "SELECT 1 - (embedding <=> clip_embed_text('a cat')) FROM photo WHERE id::text = %s", pages[0][0]
    )
    assert abs(cosine - pages[0][1]) < 1e-6
    # A query without an answer.
    assert table.execute("SELECT * FROM clip_find('photo', 'tax return form')").fetchall() == []
    # The call restores the settings that it changed.
    assert value(table, "SHOW hnsw.ef_search") == "40" and value(table, "SHOW search_path") == '"$user", public'


def test_find_takes_more_candidates_from_the_index_than_ef_search(table: psycopg.Connection) -> None:
    table.execute("SET enable_sort = off; SET enable_seqscan = off")
    plain = table.execute("SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 200").fetchall()
    assert 40 <= len(plain) < 60, "a little more where vectors are equal"
    assert value(table, "SELECT count(*) FROM clip_find('photo', 'a cat', 1000, 0, candidates => 200)") == 200
    table.execute("RESET enable_sort; RESET enable_seqscan")


def test_find_by_a_photo_finds_what_shows_the_same(table: psycopg.Connection, formula: Formula) -> None:
    """Finds the word that two photos share most, by the lower of its two relevances."""
    names, vectors = zip(
        *table.execute("SELECT name, embedding::text FROM photo WHERE embedding IS NOT NULL").fetchall(), strict=True
    )
    scores = np.stack([formula.scores(support.vector(text).astype(np.float64), formula.tags) for text in vectors])
    photo = next(path for path in PHOTOS if path.stem == "cat")
    query = support.embed_one(table, "image", photo.read_bytes()).astype(np.float64)
    wanted = formula.relevance(np.minimum(scores, formula.scores(query, formula.tags)).max(1))
    before = value(table, "SELECT sum(images)::int FROM clip_stats()")
    found = {
        name: (cosine, relevance)
        for name, cosine, relevance in table.execute(
            "SELECT name, f.cosine, f.relevance FROM clip_find('photo', %b::bytea, 1000, 0) AS f JOIN photo ON photo.id = f.id::bigint",
            (photo.read_bytes(),),
        )
    }
    assert value(table, "SELECT sum(images)::int FROM clip_stats()") == before, "the memo has it"
    assert len(found) >= 0.98 * len(names)
    for name, text, relevance in zip(names, vectors, wanted, strict=True):
        if name in found:
            assert abs(found[name][1] - relevance) < TOLERANCE, name
            assert abs(found[name][0] - support.vector(text) @ query) < 1e-5
    # Copies show the same subject; other photos don't.
    rows = table.execute(
        "SELECT name FROM clip_find('photo', %b::bytea) AS f JOIN photo ON photo.id = f.id::bigint WHERE name NOT LIKE 'mixed%%'",
        (photo.read_bytes(),),
    )
    assert {name for (name,) in rows} == {"cat", "cat-cropped", "cat-mirrored"}
    assert raised_error(table, "SELECT * FROM clip_find('photo', 'no image'::bytea)")[0] == "22023"


def test_find_has_the_callers_rights_and_no_others(table: psycopg.Connection, plain_role: str) -> None:
    call = "SELECT count(*) FROM clip_find('public.photo', 'a cat', 1000, 0)"
    table.execute(f"SET ROLE {plain_role}")
    try:
        code, message = raised_error(table, call)
        assert code == "42501" and "photo" in message
        table.execute("RESET ROLE")
        table.execute(f"GRANT SELECT (id) ON photo TO {plain_role}; SET ROLE {plain_role}")
        assert raised_error(table, call)[0] == "42501", "the embedding's column is not granted"
        table.execute("RESET ROLE")
        table.execute(f"GRANT SELECT ON photo TO {plain_role}; ALTER TABLE photo ENABLE ROW LEVEL SECURITY")
        table.execute(f"CREATE POLICY few ON photo TO {plain_role} USING (id < 5); SET ROLE {plain_role}")
        assert value(table, call) == 5
    finally:
        table.execute("RESET ROLE")


def test_find_says_what_it_needs(table: psycopg.Connection) -> None:
    def code(arguments: str) -> str | None:
        return raised_error(table, f"SELECT * FROM clip_find({arguments})")[0]

    assert code("'photo', 'a cat', 0") == code("'photo', 'a cat', candidates => 20000") == "22023"
    assert code("'photo', 'a cat', after_id => 'x'") == code("'photo', NULL") == "22004"
    assert code("'photo', 'a cat', embedding => 'name'") == "42804"
    assert code("'photo', 'a cat', key => 'nothing'") == "42703"
    assert code("'photo', ' '") == "22023"
    table.execute(
        "CREATE VIEW shown AS SELECT id AS number, embedding AS first, embedding::halfvec(512) AS second FROM photo WHERE id < 9"
    )
    assert code("'shown', 'a cat'") == code("'shown', 'a cat', key => 'number'") == "42P08"
    for column in ("first", "second"):
        query = f"SELECT count(*) FROM clip_find('shown', 'a cat', 100, 0, key => 'number', embedding => '{column}')"
        assert value(table, query) == 9
    table.execute("DROP VIEW shown")


def test_words_are_kept_for_other_connections(
    database: support.Database, small: pathlib.Path, formula: Formula, photos: dict[str, np.ndarray]
) -> None:
    notices: list[str] = []
    for _ in range(2):
        with database.connect() as db:
            db.add_notice_handler(lambda notice: notices.append(notice.message_primary))
            db.execute("SELECT set_config('clip_search.words', %s, false)", (str(small),))
            assert value(db, "SELECT clip_prepare_words()") == 900
            notices.append("ready")
    assert notices[-2:] == ["ready", "ready"], "the second connection reads them"


def test_a_list_that_is_unusable_is_an_error(
    db: psycopg.Connection, tmp_path: pathlib.Path, photos: dict[str, np.ndarray]
) -> None:
    query, photo = "SELECT clip_relevance(%s::vector, 'a cat')", vector_text(photos["cat"])
    db.execute("SET clip_search.words = '/nonexistent/words.txt'")
    assert raised_error(db, query, photo)[0] == "58P01"
    short = tmp_path / "short.txt"
    short.write_text("dog\ncat\n")
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    tmp_path.chmod(0o755)
    db.execute("SELECT set_config('clip_search.words', %s, false)", (str(short),))
    assert raised_error(db, query, photo)[0] == "22023"
    assert raised_error(db, "SELECT clip_relevance('[1,2]', 'a cat')")[0] == "22023"
    db.execute("RESET clip_search.words")
    assert value(db, "SELECT clip_relevance(NULL, 'a cat') IS NULL AND clip_relevance('[1]', NULL) IS NULL")
