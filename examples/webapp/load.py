"""load.py FILE_OR_FOLDER…: puts photos into the web application's table, in the database given by PGHOST and so on.

If the database refuses a file, the script prints its name and the reason, and continues. Exit 1 if any was refused.
"""

from __future__ import annotations

import datetime
import pathlib
import sys

import psycopg

KINDS = set(
    ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ico .heic .heif .dng .cr2 .nef .arw .pef .orf .rw2 .raf".split()
)
INSERT = "INSERT INTO webapp.photo (title, data, taken_at) VALUES (%s, %s, %s)"


def files(arguments: list[str]) -> list[pathlib.Path]:
    found = []
    for path in map(pathlib.Path, arguments):
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in KINDS) if path.is_dir() else [path]
        found += inside
    return found


def title(path: pathlib.Path) -> str:
    words = path.stem.replace("-", " ").replace("_", " ").strip()
    return (words[:1].upper() + words[1:])[:200] or "Untitled"


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    added = refused = 0
    with psycopg.connect(autocommit=True) as db:
        for path in files(arguments):
            try:
                data = path.read_bytes()
                date = datetime.datetime.fromtimestamp(path.stat().st_mtime)
                # Check this first, because the triggers embed the photo before the constraint refuses it.
                there = db.execute("SELECT 1 FROM webapp.photo WHERE digest = sha256(%s)", (data,)).fetchone()
                if not there:
                    db.execute(INSERT, (title(path), data, date))
                    added += 1
            except (OSError, psycopg.DataError, psycopg.errors.FeatureNotSupported, psycopg.OperationalError) as error:
                if db.closed:
                    raise
                print(f"{path}: {str(error).splitlines()[0]}", file=sys.stderr)
                refused += 1
    print(f"{added} photos added, {refused} refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
