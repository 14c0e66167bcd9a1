"""Runs of clip-embed, for the tests of it in several folders."""

from __future__ import annotations

import csv
import pathlib
import subprocess

import numpy as np

import support

PROGRAM = support.ROOT / "target" / "release" / "clip-embed"
PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


def command(*arguments: object) -> list[str]:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: run `make test`, or cargo build --release -p clip-embed"
    return [str(PROGRAM), *map(str, arguments)]


def run(*arguments: object, code: int = 0, input: str | None = None) -> str:
    """What it says on standard error."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, input=input, timeout=120)
    assert done.returncode == code, f"{done.args} ended with {done.returncode}: {done.stderr}"
    assert done.stdout == ""
    return done.stderr


def rows(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        return {row["key"]: support.vector(row["embedding"]) for row in csv.DictReader(file)}


def refused(path: pathlib.Path) -> list[tuple[str, str]]:
    """Keys and messages of the failures of an output."""
    with pathlib.Path(f"{path}.failures.csv").open(newline="", encoding="utf-8") as file:
        return [(row["key"], row["message"]) for row in csv.DictReader(file)]
