#!/usr/bin/env python3
"""Checks how the Rust modules depend on each other: rooms one way only, and no circle of modules.

    rooms.py [ROOT]

The rooms of src/, from the top: watch, cluster, answer, embed, model, pg, guc. A module may use its own room and those
below it. In each crate, no module may reach itself through others; but it may use what a module above it in the same
folder defines, such as a type whose methods are written in several files. For each violation, every step is printed
with its file and line, and the exit status is 1.

A module is a file. Dependencies are the paths in it that begin with crate, self, super or the name of a child module,
in use declarations and elsewhere; code marked #[cfg(test)] doesn't count. A path to a name that a module only
re-exports by `pub use` leads to the name's source, and the re-export itself is not a dependency.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator

ROOMS = ("watch", "cluster", "answer", "embed", "model", "pg", "guc")
CRATES = ("src", "crates/clip/src", "crates/clip-embed/src", "crates/clip-python/src")

# Comments, strings and characters. A lifetime such as 'a isn't a character: it has no closing quote.
BLANKS = re.compile(
    r"//[^\n]*|/\*.*?\*/|b?c?r(?P<hashes>#+)\".*?\"(?P=hashes)|b?c?r\"[^\"]*\"|b?c?\"(?:\\.|[^\"\\])*\"|b?'(?:\\[^\n]{1,10}?|[^'\\\n])'",
    re.DOTALL,
)
USE = re.compile(r"(?P<public>pub(?:\s*\([^)]*\))?\s+)?use\s+(?P<tree>[^;]+);")
INLINE = re.compile(r"(?:pub(?:\s*\([^)]*\))?\s+)?mod\s+(?P<name>\w+)\s*\{")
TEST = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*")
PATH = re.compile(r"(?<![\w:$])(?P<path>\w+(?:\s*::\s*\w+)+)")

Module = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One module's use of another, in a line of its file."""

    source: Module
    target: Module
    file: pathlib.Path
    line: int


def blank(text: str) -> str:
    """The text without comments, strings and test code; line numbers stay the same."""

    def spaces(found: str) -> str:
        return re.sub(r"[^\n]", " ", found)

    text = BLANKS.sub(lambda match: spaces(match[0]), text)
    while match := TEST.search(text):
        end = item_end(text, match.end())
        text = text[: match.start()] + spaces(text[match.start() : end]) + text[end:]
    return text


def item_end(text: str, start: int) -> int:
    """The end of the item that begins at `start`: its semicolon, or the brace that closes its body."""
    depth = 0
    for place in range(start, len(text)):
        character = text[place]
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
            if depth == 0 and character == "}":
                return place + 1
        elif character == ";" and depth == 0:
            return place + 1
    return len(text)


def paths_of(tree: str) -> Iterator[tuple[list[str], str]]:
    """The paths of a use tree, each with its name in this module (* for all)."""
    tree = tree.strip()
    if match := re.fullmatch(r"(?P<start>(?:\w+\s*::\s*)*)\{(?P<rest>.*)\}", tree, re.DOTALL):
        start = re.findall(r"\w+", match["start"])
        depth, part = 0, ""
        for character in match["rest"] + ",":
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == "," and depth == 0:
                for path, name in paths_of(part) if part.strip() else ():
                    yield (start, start[-1]) if path == ["self"] and start else (start + path, name)
                part = ""
            else:
                part += character
        return
    path, _, alias = re.sub(r"\s+", " ", tree).partition(" as ")
    segments = [segment.strip() for segment in path.split("::") if segment.strip()]
    yield segments, alias.strip() or segments[-1]


class Crate:
    def __init__(self, folder: pathlib.Path):
        self.files: dict[Module, pathlib.Path] = {}
        for file in sorted(folder.rglob("*.rs")):
            parts = file.relative_to(folder).with_suffix("").parts
            if parts[-1] == "mod" or parts in (("lib",), ("main",)):
                parts = parts[:-1]
            self.files[parts] = file
        self.texts = {module: blank(file.read_text(encoding="utf-8")) for module, file in self.files.items()}
        # The names that a module re-exports, and where they come from.
        self.exports: dict[Module, dict[str, Module]] = collections.defaultdict(dict)
        self.used: list[tuple[Module, Module, int]] = []
        for module, text in self.texts.items():
            self.read(module, text)

    def read(self, module: Module, text: str) -> None:
        inline = [(match.start(), item_end(text, match.start()), match["name"]) for match in INLINE.finditer(text)]

        def whole(segments: list[str], place: int) -> Module | None:
            """The path from the crate's root, if it belongs to this crate."""
            around = tuple(name for start, end, name in inline if start < place < end)
            here = module + around
            if segments[0] == "crate":
                return tuple(segments[1:])
            if segments[0] in ("self", "super"):
                while segments and segments[0] in ("self", "super"):
                    here = here[:-1] if segments[0] == "super" else here
                    segments = segments[1:]
                return here + tuple(segments)
            return module + tuple(segments) if module + (segments[0],) in self.files else None

        rest = text
        for match in USE.finditer(text):
            rest = rest[: match.start()] + re.sub(r"[^\n]", " ", match[0]) + rest[match.end() :]
            for segments, name in paths_of(match["tree"]):
                if (target := whole(segments, match.start())) is None:
                    continue
                if match["public"]:
                    self.exports[module][name] = target
                else:
                    self.used.append((module, target, text.count("\n", 0, match.start("tree")) + 1))
        for match in PATH.finditer(rest):
            target = whole(re.findall(r"\w+", match["path"]), match.start())
            if target is not None:
                self.used.append((module, target, text.count("\n", 0, match.start()) + 1))

    def owner(self, path: Module, seen: frozenset[Module] = frozenset()) -> Module:
        """The module to which a path leads."""
        module: Module = ()
        for place, segment in enumerate(path):
            if module + (segment,) in self.files:
                module += (segment,)
                continue
            exported = self.exports[module].get(segment)
            if exported is not None and path not in seen:
                return self.owner(exported + path[place + 1 :], seen | {path})
            break
        return module

    def steps(self) -> list[Step]:
        found = {}
        for source, path, line in self.used:
            target = self.owner(path)
            if target != source:
                found.setdefault((source, target), Step(source, target, self.files[source], line))
        return list(found.values())


def circle(steps: list[Step]) -> list[Step]:
    """The shortest path from a module back to itself; empty if there is none."""
    following = collections.defaultdict(list)
    for step in steps:
        if step.source[: len(step.target)] != step.target:  # not from a child to its parent
            following[step.source].append(step)
    shortest: list[Step] = []
    for start in list(following):
        ways = collections.deque([[step] for step in following[start]])
        reached = set()
        while ways:
            way = ways.popleft()
            if shortest and len(way) >= len(shortest):
                break
            if way[-1].target == start:
                shortest = way
                break
            if way[-1].target not in reached:
                reached.add(way[-1].target)
                ways.extend([*way, step] for step in following[way[-1].target])
    return shortest


def lapses(root: pathlib.Path) -> list[str]:
    def shown(step: Step) -> str:
        names = ["::".join(("crate", *module)) for module in (step.source, step.target)]
        return f"{step.file.relative_to(root)}:{step.line}: {names[0]} uses {names[1]}"

    found = []
    for name in CRATES:
        if not (root / name).is_dir():
            continue
        steps = Crate(root / name).steps()
        if name == "src":
            for step in steps:
                source, target = (module[0] if module else None for module in (step.source, step.target))
                if source in ROOMS and target in ROOMS and ROOMS.index(target) < ROOMS.index(source):
                    found.append(f"{shown(step)}, a room above its own")
                unknown = [room for room in (source, target) if room is not None and room not in ROOMS]
                found += [f"{shown(step)}: {room} is no room of scripts/rooms.py" for room in unknown]
        if way := circle(steps):
            found.append("a circle of modules:\n" + "\n".join(f"    {shown(step)}" for step in way))
    return found


if __name__ == "__main__":
    complaints = lapses(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1]).resolve())
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    sys.exit(bool(complaints))
