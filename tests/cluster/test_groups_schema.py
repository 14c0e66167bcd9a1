"""clip_cluster_groups returns what docs/cluster_groups.schema.json describes."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable, Iterator

import fastjsonschema
import psycopg
import pytest
from PIL import Image

import support
from support import value

SCHEMA = json.loads((support.ROOT / "docs" / "cluster_groups.schema.json").read_text(encoding="utf-8"))
PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


@pytest.fixture(scope="module")
def validate() -> Callable[[object], object]:
    return fastjsonschema.compile(SCHEMA)


@pytest.fixture(scope="module")
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    """The gallery's photos in three collections: one with all columns, one with only the required columns, and an
    empty one."""
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE photo (name text PRIMARY KEY, words text[], data bytea, embedding vector(512), a bigint, b bigint, c bigint)"
        )
        for path in sorted(PHOTOS.glob("*.jpg")):
            words = None if path.stem == "cat" else [*path.stem.split("-"), "photo", None]
            row = (path.stem, words, path.read_bytes())
            connection.execute("INSERT INTO photo (name, words, data) VALUES (%s, %s, %s)", row)
        connection.execute("UPDATE photo SET embedding = clip_embed_image(data)")
        connection.execute(
            "UPDATE photo SET a = clip_assign_cluster(embedding, 'all'), b = clip_assign_cluster(embedding, 'bare')"
        )
        connection.execute(
            "SELECT clip_create_collection('all', members => 'photo', cluster => 'a', labels => 'words', image => 'data')"
        )
        connection.execute("SELECT clip_create_collection('bare', members => 'photo', cluster => 'b')")
        connection.execute("SELECT clip_create_collection('empty', members => 'photo', cluster => 'c')")
        yield connection


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("collection", ["all", "bare", "empty"])
def test_output_is_as_described(db, validate, collection: str, size: int) -> None:
    groups = value(db, "SELECT clip_cluster_groups(%s, %s)", collection, size)
    validate(groups)
    assert bool(groups) == (collection != "empty" and size < 1000)
    assert [group["size"] for group in groups] == sorted((group["size"] for group in groups), reverse=True)
    for group in groups:
        assert group["size"] == len(group["assets"]) >= size
        assert group["representative"] == group["assets"][0]["id"]
        assert group["lowest"] == group["assets"][-1]["cosine"]
        if collection == "all":
            file = base64.b64decode(group["representative_thumbnail"])
            assert Image.open(io.BytesIO(file)).format == "JPEG"
            assert group["labels"], "every group here has a member with keywords"
        else:
            assert group["representative_thumbnail"] is None and group["labels"] == []


def test_rows_that_are_gone_or_have_no_picture(db, validate) -> None:
    with db.transaction(force_rollback=True):
        first = value(db, "SELECT clip_cluster_groups('all')")[0]
        db.execute("DELETE FROM photo WHERE name = %s", (first["assets"][-1]["id"],))
        db.execute("UPDATE photo SET data = NULL")
        groups = value(db, "SELECT clip_cluster_groups('all')")
        validate(groups)
        found = next(group for group in groups if group["cluster_id"] == first["cluster_id"])
        assert len(found["assets"]) == found["size"] - 1 and found["representative_thumbnail"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.pop("labels"),
        lambda group: group.update(more=1),
        lambda group: group.update(cohesion=1.5),
        lambda group: group.update(cluster_id="1"),
        lambda group: group.update(representative_thumbnail="not a picture"),
        lambda group: group.update(assets=[]),
        lambda group: group["assets"][0].pop("cosine"),
        lambda group: group["assets"][0].update(keywords=None),
    ],
)
def test_the_schema_is_strict(db, validate, change: Callable[[dict], object]) -> None:
    """A lax schema would make the tests above meaningless."""
    groups = copy.deepcopy(value(db, "SELECT clip_cluster_groups('all')"))
    change(groups[0])
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validate(groups)


def test_every_property_is_described() -> None:
    def walk(node: object, path: str) -> Iterator[str]:
        for name, child in node.get("properties", {}).items():
            target = child if "$ref" not in child else SCHEMA["definitions"][child["$ref"].rpartition("/")[2]]
            if "description" not in child and "description" not in target:
                yield f"{path}.{name}"

    assert [gap for name, node in SCHEMA["definitions"].items() for gap in walk(node, name)] == []
