"""The documentation is right: the examples' output is psql's, the reference matches the catalogue, and links work."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import support
from pages import DOCS, PAGES, Databases, Page, other_model

sys.path.append(str(support.ROOT / "scripts"))
import catalogue

NUMBER = re.compile(r"-?\d+\.\d+")
# Text embeddings use int8 arithmetic, which differs between processors in the third decimal.
TOLERANCE = 0.03
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def shape(output: str) -> list[str]:
    """Lines without numbers, rules and column widths. Copies of a subject are so close to each other that their
    order may differ.
    """
    text = re.sub(r" \((mirrored|cropped)\)", "", NUMBER.sub("#", output))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [line for line in lines if not re.fullmatch(r"[-+]*", line)]


@pytest.fixture(scope="module")
def databases(pg_program) -> Iterator[Databases]:
    # A separate model folder, since pages list the available models.
    folder = support.ServerFolder()
    made = Databases(pg_program("psql"), other_model(folder))
    try:
        yield made
    finally:
        made.drop()
        folder.remove()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_output_is_real(databases: Databases, path: pathlib.Path) -> None:
    page = Page(path)
    assert len(page.blocks) == page.text.count("```sql")
    with support.connect("postgres") as db:
        same_server = support.value(db, "SELECT current_setting('server_version_num')::int / 10000") == 15
    for (block, written), printed in zip(page.blocks, databases.outputs(page), strict=True):
        if "EXPLAIN" in block and not same_server:
            continue  # plans are worded differently
        assert shape(printed) == shape(written), f"{block}\nprints\n{printed}"
        for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(written), strict=True):
            assert abs(float(ours) - float(theirs)) <= TOLERANCE, f"{block}\nprints\n{printed}"


def test_plans_use_the_index() -> None:
    """Reads the plans from the page, which the test above checks."""
    plans = [written for block, written in Page(DOCS / "cookbook.md").blocks if "EXPLAIN" in block]
    assert len(plans) == 5 and all("Index Scan using photo_embedding_idx" in plan for plan in plans)
    plans = [written for block, written in Page(DOCS / "how-to" / "answers.md").blocks if "EXPLAIN" in block]
    indexes = [re.search(r"Index Scan (?:using|on) (photo_\w+)", plan)[1] for plan in plans]
    assert indexes == ["photo_embedding_idx", "photo_embedding_idx", "photo_taken", "photo_tags", "photo_words"]


def test_reference_is_the_catalogues(database: support.Database) -> None:
    with database.connect() as db:
        assert catalogue.page(db) == (DOCS / "reference.md").read_text(encoding="utf-8"), "run `make docs`"


def test_comments_name_arguments_and_columns(database: support.Database) -> None:
    with database.connect() as db:
        for name, arguments, result, comment, *_ in db.execute(catalogue.FUNCTIONS):
            known = set(re.findall(r"\w+", f"{arguments} {result}"))
            first, *rest = comment.splitlines()
            assert len(first) <= 130 and not first.endswith("."), f"psql shows {name}'s first line in a column: {first}"
            for line in rest:
                if item := catalogue.ITEM.fullmatch(line):
                    named = re.findall(r"\w+", item[1]) + re.findall(r"; (\w+): ", item[2])
                    assert known.issuperset(named), f"{name} has none of {named}"


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", h).lower()).replace(" ", "-") for h in headings}


def test_links_lead_somewhere() -> None:
    listing = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    done = subprocess.run(listing, cwd=support.ROOT, capture_output=True, text=True)
    pages = [support.ROOT / name for name in done.stdout.split()] or list(DOCS.rglob("*.md"))
    broken = []
    for page in filter(pathlib.Path.exists, pages):
        for target, anchor in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
            place = (page.parent / target).resolve() if target else page
            if not place.exists():
                broken.append(f"{page.relative_to(support.ROOT)}: {target}")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place.read_text(encoding="utf-8")):
                broken.append(f"{page.relative_to(support.ROOT)}: {target}#{anchor}")
    assert not broken
