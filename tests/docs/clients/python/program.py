"""The program that every client's folder has (../README.md), for the three clients in Python."""

import pathlib
import sys

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def show(*fields: object) -> None:
    print(*("" if field is None else " ".join(str(field).split()) for field in fields), sep="\t")


def example() -> dict:
    """The page's block, executed like a module."""
    path = pathlib.Path(sys.argv[2])
    names: dict = {"__name__": "photos.models"}
    exec(compile(path.read_text(encoding="utf-8"), "docs/clients.md", "exec"), names)
    return names


def run(add, search, similar, groups, sqlstate) -> None:
    photos = pathlib.Path(sys.argv[1])
    for name in ("cat", "cat-cropped", "rocket", "dahlia"):
        show("added", add(name, (photos / f"{name}.jpg").read_bytes()))
    show("bad", add("notes", b"not an image"))
    show("unsupported", add("drawing", SVG))
    try:
        add("forbidden", (photos / "cat.jpg").read_bytes())
    except Exception as error:
        show("other", sqlstate(error))
    for row in search("a rocket on its way to space", 2):
        show("found", row[1])
        assert -1 <= row[2] <= 1
    for row in similar((photos / "cat-mirrored.jpg").read_bytes(), 1):
        show("similar", row[1])
    for row in groups():
        show("group", *row[1:])
