"""The pages of docs/ whose SQL blocks psql runs, and what it prints.

    pages.py --write    put psql's output into the pages (make docs)

A page's SQL blocks run in one session of psql, in a database that its first line may name: <!-- database: gallery -->
is that of make demo, <!-- database: extension --> has the extension, and without such a line it is empty. After each
block comes a block with its output, or none if it prints nothing.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import support

DOCS = support.ROOT / "docs"
PAGES = [support.ROOT / "README.md", DOCS / "cookbook.md", *sorted((DOCS / "how-to").glob("*.md"))]
# A statement block, and the output block after it if there is one.
BLOCKS = re.compile(r"```sql\n(.*?)```\n(?:```\n(.*?)```\n)?", re.DOTALL)
DATABASE = re.compile(r"<!-- database: (\w+) -->\n")
MARK = "-- end of a block --"
# What SELECT prints for a function that returns void.
VOID = re.compile(r"^ clip_(?:(?:create|drop)_collection|(?:un)?watch) *\n-+\n \n\n?", re.MULTILINE)
# The pages name this model. Where the real one isn't available, a copy of photo-mini takes its name.
OTHER_MODEL = "clip-vit-base-patch32"


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
    """A database of each kind that the pages ask for, and psql sessions in it."""

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
        subprocess.run([str(run)], env=environment, check=True, capture_output=True, timeout=300)
        return self.made[-1]

    def outputs(self, page: Page) -> list[str]:
        """What psql prints for each block of a page; all blocks run in one session."""
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


def other_model(folder: support.ServerFolder) -> str:
    """A folder that holds only photo-mini, under another model's name."""
    folder.add(support.ROOT / "models" / "photo-mini", f"docs/{OTHER_MODEL}")
    folder.open(folder.path / "docs")
    return str(folder.path / "docs")


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
