#!/usr/bin/env python3
"""Measures how long a cancel takes to end a call, for the worst known input of each function.

    eval "$(make -s env)"; target/venv/bin/python benches/server/cancel.py [--model NAME] [--times N] [WORD …]

Cancels each call N times at times spread over its first seconds, and prints the longest time from pg_cancel_backend to
the error: as CPU time of the backend's main thread, which other processes don't lengthen, and as elapsed time. With
words, it tests only calls whose description contains one of them. It works in a database of its own.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import cancels

import support


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="photo-mini")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    database = support.Database()
    try:
        with database.connect() as db:
            db.execute(f"ALTER DATABASE \"{database.name}\" SET clip_search.model = '{options.model}'")
            db.execute(f'ALTER DATABASE "{database.name}" SET client_min_messages = error')
        wanted = [
            name for name in cancels.cases(cancels.IMAGES) if not options.words or any(w in name for w in options.words)
        ]
        images = {name: make() for name, make in cancels.IMAGES.items() if any(name in case for case in wanted)}
        with database.connect() as db:
            cancels.prepare(db, images)
        print("| call | processor, ms | clock, ms | cancelled |\n|---|---|---|---|")
        for name, query in cancels.cases(images).items():
            if name not in wanted:
                continue
            found = []
            for turn in range(options.times):
                # From 20 ms to 2.5 s, by a constant factor.
                delay = 0.02 * 125 ** (turn / max(1, options.times - 1))
                took = cancels.cancel_after(database.connect, query, delay, cancels.SETTINGS.get(name, ""))
                found += [] if took is None else [took]
            cpu, wall = (
                f"{1e3 * max(times):.0f}" if found else "–"
                for times in ([f.cpu for f in found], [f.wall for f in found])
            )
            print(f"| {name} | {cpu} | {wall} | {len(found)} of {options.times} |", flush=True)
    finally:
        database.drop()


if __name__ == "__main__":
    main()
