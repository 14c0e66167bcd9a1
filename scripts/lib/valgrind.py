"""Prints what memcheck reported: valgrind.py DIRECTORY CONTROL

Reads valgrind's logs, one for each process (scripts/valgrind.sh), and prints each error once, shortened. Fails if there
is an error other than the expected one in the function CONTROL, which reads past its memory on purpose, or if that one
is missing.
"""

from __future__ import annotations

import collections
import pathlib
import re
import sys

PREFIX = re.compile(r"^(==|\*\*)\d+(==|\*\*) ?")
FRAME = re.compile(r"^(?:at|by) 0x[0-9A-F]+: (.*) \((.*)\)$")
SUPPRESSED = re.compile(r"ERROR SUMMARY: \d+ errors from \d+ contexts \(suppressed: (\d+) from")
STATEMENT = re.compile(r"Valgrind detected \d+ error\(s\) during execution of \"(.*)")
# A frame with a line number doesn't name its library, but only our library is in Rust.
LIBRARY = re.compile(r"clip_search\.so|\.rs:\d+$")
CHECKOUT = re.compile(r"^(?:src|crates)/.*\.rs:\d+$")
# The frames to print: the innermost, and those in the checkout; at most this many.
INNERMOST, MOST = 6, 14

Frame = tuple[str, str]  # function, place


class Error:
    """A first line, and stacks: first the code's, then those of the memory concerned, such as where it was
    allocated."""

    def __init__(self, lines: list[str]):
        self.stacks: list[tuple[str, list[Frame]]] = []
        for line in filter(None, map(str.strip, lines)):
            if frame := FRAME.match(line):
                self.stacks[-1][1].append((frame.group(1), frame.group(2)))
            else:
                self.stacks.append((re.sub(r"0x[0-9A-Fa-f]+", "0x…", line), []))
        self.ours = any(LIBRARY.search(place) for _, frames in self.stacks for _, place in frames)

    def key(self) -> tuple:
        """A key that is the same for all callers."""
        return self.stacks[0][0], tuple(self.stacks[0][1][:3])

    def text(self) -> list[str]:
        lines = []
        for title, frames in self.stacks:
            kept = [frame for n, frame in enumerate(frames) if n < INNERMOST or CHECKOUT.match(frame[1])]
            lines += [title, *(f"  {short(frame)}" for frame in kept[:MOST])]
        return lines


def short(frame: Frame) -> str:
    function, place = frame
    place = re.sub(r"^.*/registry/src/[^/]*/", "", place)
    place = re.sub(r"^/rustc/[0-9a-f]*/", "rust: ", place)
    place = place.removeprefix("target/matrix/source/")
    return f"{function.split('<')[0] or function[:60]} ({place})"


def errors(lines: list[str]) -> list[tuple[Error, str]]:
    """The errors of a process, each with the statement in which it occurred, if the server logged that."""
    found: list[tuple[Error, str]] = []
    waiting: list[Error] = []
    block: list[str] | None = None
    for line in lines:
        text = PREFIX.sub("", line)
        if text == "ERROR-BEGIN":
            block = []
        elif text == "ERROR-END" and block:
            waiting.append(Error(block))
            block = None
        elif block is not None:
            block.append(text)
        elif statement := STATEMENT.search(text):
            found += [(error, statement.group(1).rstrip('"')) for error in waiting]
            waiting = []
    return found + [(error, "") for error in waiting]


def main(directory: pathlib.Path, control: str) -> int:
    logs = sorted(directory.glob("*.log"), key=lambda path: int(path.stem))
    seen: dict[tuple, list[tuple[Error, pathlib.Path, str]]] = collections.defaultdict(list)
    finished = suppressed = controls = 0
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        totals = [int(match.group(1)) for line in lines if (match := SUPPRESSED.search(line))]
        finished, suppressed = finished + bool(totals), suppressed + sum(totals)
        for error, statement in errors(lines):
            if any(function == control for function, _ in error.stacks[0][1]):
                controls += 1
            else:
                seen[error.key()].append((error, log, statement))

    found = sorted(seen.values(), key=lambda same: not same[0][0].ours)
    for number, same in enumerate(found, 1):
        error, log, statement = same[0]
        where = "through clip_search.so" if error.ours else "elsewhere"
        print(f"{number}. {where}, in {len({log for _, log, _ in same})} processes, the first {log.name}")
        print("\n".join(f"   {line}" for line in error.text()))
        if statement:
            print(f"   in the statement: {statement[:200]}")
        print()
    ours = sum(same[0][0].ours for same in found)
    print(f"{len(logs)} processes ({finished} to their end), {suppressed} reports suppressed")
    print(f"{ours} errors through clip_search.so, {len(found) - ours} elsewhere")
    if not controls:
        print(f"{control} was not reported: memcheck does not see what is palloc'd")
    return bool(found or not controls)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
