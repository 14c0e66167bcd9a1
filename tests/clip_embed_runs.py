"""Helpers that run clip-embed, shared by the tests of several folders."""

from __future__ import annotations

import collections
import csv
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable

import numpy as np

import support

PROGRAM = support.ROOT / "target" / "release" / "clip-embed"
# The same list as CSV and as Parquet files of many kinds, written by pyarrow and DuckDB (lists.py).
LISTS = support.FIXTURES / "lists"
PHOTOS = support.ROOT / "examples" / "gallery" / "photos"


def command(*arguments: object) -> list[str]:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: run `make test`, or cargo build --release -p clip-embed"
    return [str(PROGRAM), *map(str, arguments)]


def run(*arguments: object, code: int = 0, input: str | None = None) -> str:
    """Runs clip-embed and returns what it prints on standard error."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, input=input, timeout=120)
    assert done.returncode == code, f"{done.args} ended with {done.returncode}: {done.stderr}"
    assert done.stdout == ""
    return done.stderr


def rows(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        return {row["key"]: support.vector(row["embedding"]) for row in csv.DictReader(file)}


def refused(path: pathlib.Path) -> list[tuple[str, str]]:
    """Keys and messages of the failures in an output file."""
    with pathlib.Path(f"{path}.failures.csv").open(newline="", encoding="utf-8") as file:
        return [(row["key"], row["message"]) for row in csv.DictReader(file)]


def kill_at_random(start: Callable[[int], subprocess.Popen], count: int) -> None:
    """Runs `count` processes until all have succeeded; kills each at random moments, thrice unless it ends first."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    # pytest prints this if the test fails.
    print(f"SEED={seed}")
    chance = random.Random(seed)
    killed, deadline = collections.Counter(), time.monotonic() + 240
    processes = {number: start(number) for number in range(count)}
    while processes:
        assert time.monotonic() < deadline, f"SEED={seed}: {killed}"
        time.sleep(chance.uniform(0, 0.25))
        for number, process in list(processes.items()):
            if process.poll() is None and (killed[number] < 3 or chance.random() < 0.1):
                process.kill()
            _, told = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), f"SEED={seed}: {told}"
            if process.returncode == 0:
                del processes[number]
            else:
                killed[number] += 1
                processes[number] = start(number)
    assert sum(killed.values()) >= count, f"SEED={seed}: {killed}"
