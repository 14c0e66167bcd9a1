"""The photographs of Debian's package gcompris-qt-data: tools, buildings, things, animals, in compiled Qt resource
files.

They are read from the unpacked package and never copied; its copyright file has their licences.
"""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Iterator

IMAGES = "categorization/resource/images"
# The resource file, its folder below the activities, and its name in queries-fresh.csv.
FOLDERS = [
    *(("categorization", f"{IMAGES}/{name}", name) for name in ("tools", "renewable", "fishes", "monuments", "others")),
    *(("categorization", f"{IMAGES}/{name}", name) for name in ("alphabets", "numbers")),
    *(
        ("explore_monuments", f"explore_monuments/resource/{name}", name)
        for name in ("egypt", "france", "germany", "india", "usa", "wonders")
    ),
    ("explore_farm_animals", "explore_farm_animals/resource/animals", "farm"),
    ("explore_world_animals", "explore_world_animals/resource/animals", "world"),
    ("erase", "erase/resource", "erase"),
]
DIRECTORY, COMPRESSED = 2, 1
NODE = 22  # bytes, since version 2 of the format


def files(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a compiled Qt resource file (version 2 and 3), which is a tree of names followed by the contents."""
    version, tree, data, names = struct.unpack_from(">4I", raw, 4)
    if raw[:4] != b"qres" or version not in (2, 3):
        raise OSError(f"version {version} of a Qt resource file is not readable")

    def below(folder: int, path: str) -> Iterator[tuple[str, bytes]]:
        _, _, count, first = struct.unpack_from(">IHII", raw, tree + NODE * folder)
        for node in range(first, first + count):
            name, flags, _, _, content = struct.unpack_from(">IHHHI", raw, tree + NODE * node)
            (length,) = struct.unpack_from(">H", raw, names + name)
            within = path + "/" + raw[names + name + 6 :][: 2 * length].decode("utf-16-be")
            if flags & DIRECTORY:
                yield from below(node, within)
            else:
                (length,) = struct.unpack_from(">I", raw, data + content)
                found = raw[data + content + 4 :][:length]
                yield within, zlib.decompress(found[4:]) if flags & COMPRESSED else found

    yield from below(0, "")


def photos(directory: pathlib.Path) -> list[tuple[str, bytes]]:
    """(name, file) of each photograph; `directory` is usr/share/gcompris-qt/rcc of the unpacked package."""
    found = []
    for resource in dict.fromkeys(resource for resource, _, _ in FOLDERS):
        within = {f"/gcompris/src/activities/{place}": name for of, place, name in FOLDERS if of == resource}
        for path, data in files((directory / f"{resource}.rcc").read_bytes()):
            folder, _, file = path.rpartition("/")
            if folder in within and file.endswith(".webp"):
                found.append((f"{within[folder]}/{file.removesuffix('.webp')}", data))
    return sorted(found)
