"""What the documentation says is so: the examples print what psql prints, the reference is the catalogue's, links lead
somewhere.

    test_docs.py --write    put psql's output into the pages (make docs)

A page's SQL blocks run in one session of psql, in a database that its first line may name: <!-- database: gallery -->
is that of make demo, <!-- database: extension --> has the extension, and without such a line it is empty. A block is
followed by the block of what it prints; where none follows, it prints nothing.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import support

sys.path.append(str(support.ROOT / "scripts"))
import catalogue  # noqa: E402

DOCS = support.ROOT / "docs"
PAGES = [DOCS / "cookbook.md", *sorted((DOCS / "how-to").glob("*.md"))]
# A statement block, and the output block after it if there is one.
BLOCKS = re.compile(r"```sql\n(.*?)```\n(?:```\n(.*?)```\n)?", re.DOTALL)
DATABASE = re.compile(r"<!-- database: (\w+) -->\n")
MARK = "-- end of a block --"
# What SELECT prints of a function without a result.
VOID = re.compile(r"^ clip_(?:(?:create|drop)_collection|(?:un)?watch) *\n-+\n \n\n?", re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+")
# Text embeddings are int8 arithmetic, which differs between processors in the third decimal.
TOLERANCE = 0.03
# Named in the pages; a copy of photo-mini by that name, where the real one is not at hand.
OTHER_MODEL = "clip-vit-base-patch32"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


@dataclasses.dataclass
class Page:
    path: pathlib.Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def database(self) -> str:
        found = DATABASE.match(self.text)
        return found[1] if found else "empty"

    @property
    def blocks(self) -> list[tuple[str, str]]:
        return [(match[1], match[2] or "") for match in BLOCKS.finditer(self.text)]


class Databases:
    """A database of each kind that pages ask for, and psql in it."""

    def __init__(self, psql: str, model_path: str):
        self.psql, self.model_path = psql, model_path
        self.made: list[support.Database] = []
        self.gallery: support.Database | None = None

    def find(self, kind: str) -> str:
        if kind == "gallery":
            self.gallery = self.gallery or self.make_gallery()
            self.made.append(support.Database(extension=False, template=self.gallery.name))
        else:
            assert kind in ("empty", "extension"), kind
            self.made.append(support.Database(extension=kind == "extension"))
        return self.made[-1].name

    def make_gallery(self) -> support.Database:
        self.made.append(support.Database(extension=False))
        run = support.ROOT / "examples" / "gallery" / "run.sh"
        environment = os.environ | {"PGDATABASE": self.made[-1].name, "LC_ALL": "C"}
        environment["PATH"] = f"{pathlib.Path(self.psql).parent}:{environment['PATH']}"
        subprocess.run([str(run)], env=environment, check=True, capture_output=True, timeout=120)
        return self.made[-1]

    def outputs(self, page: Page) -> list[str]:
        """What psql prints for each block of a page, all in one session."""
        blocks = [block for block, _ in page.blocks]
        script = "\\pset footer off\n" + "".join(f"{block}\\echo '{MARK}'\n" for block in blocks)
        options = f"-c client_min_messages=warning -c clip_search.model_path=$system:{self.model_path}"
        done = subprocess.run(
            [self.psql, "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            input=script,
            cwd=support.ROOT,
            env=os.environ | {"PGDATABASE": self.find(page.database), "PGOPTIONS": options},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0 and not done.stderr, f"{page.path.name}: {done.stderr}"
        pieces = VOID.sub("", done.stdout).split(MARK + "\n")
        assert len(pieces) == len(blocks) + 1, done.stdout
        return ["\n".join(line.rstrip() for line in piece.rstrip().splitlines()) + "\n" for piece in pieces[:-1]]

    def drop(self) -> None:
        for database in self.made:
            database.drop()


def shape(output: str) -> list[str]:
    """Lines without numbers, rules and the width of columns. Copies of a subject are so near each other that their
    order may differ.
    """
    text = re.sub(r" \((mirrored|cropped)\)", "", NUMBER.sub("#", output))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [line for line in lines if not re.fullmatch(r"[-+]*", line)]


def other_model(folder: support.ServerFolder) -> str:
    """A folder with photo-mini by the name of another model, and nothing else."""
    folder.add(support.ROOT / "models" / "photo-mini", f"docs/{OTHER_MODEL}")
    folder.open(folder.path / "docs")
    return str(folder.path / "docs")


@pytest.fixture(scope="module")
def databases(pg_program) -> Iterator[Databases]:
    # A folder of its own: pages list the models there are.
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
    for (block, written), printed in zip(page.blocks, databases.outputs(page)):
        if "EXPLAIN" in block and not same_server:
            continue  # plans are worded otherwise
        assert shape(printed) == shape(written), f"{block}\nprints\n{printed}"
        for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(written)):
            assert abs(float(ours) - float(theirs)) <= TOLERANCE, f"{block}\nprints\n{printed}"


def test_plans_use_the_index() -> None:
    """Read from the page, which the test above holds to the truth."""
    plans = [written for block, written in Page(DOCS / "cookbook.md").blocks if "EXPLAIN" in block]
    assert len(plans) == 5 and all("Index Scan using photo_embedding_idx" in plan for plan in plans)


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
    """Of the headings, as GitHub makes them."""
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


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    config = os.environ.get("PG_CONFIG") or "pg_config"
    bindir = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    folder = support.ServerFolder()
    databases = Databases(f"{bindir}/psql", other_model(folder))
    try:
        for page in map(Page, PAGES):
            fresh = iter(databases.outputs(page))

            def put(match: re.Match) -> str:
                printed = next(fresh)
                return f"```sql\n{match[1]}```\n" + (f"```\n{printed}```\n" if printed.strip() else "")

            page.path.write_text(BLOCKS.sub(put, page.text), encoding="utf-8")
    finally:
        databases.drop()
        folder.remove()
