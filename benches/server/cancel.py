#!/usr/bin/env python3
"""How long a cancel takes to end a call, for the worst known input of each function.

    eval "$(make -s env)"; target/venv/bin/python benches/server/cancel.py [--model NAME] [--times N] [WORD …]

Cancels each call N times at times spread over its first seconds, and prints the longest time from pg_cancel_backend to
the error. With words, only calls whose description contains one of them. It works in a database of its own.
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
        images = {name: make() for name, make in cancels.IMAGES.items()}
        with database.connect() as db:
            cancels.prepare(db, images)
        print("| call | longest, ms | cancelled |\n|---|---|---|")
        for name, query in cancels.cases(images).items():
            if options.words and not any(word in name for word in options.words):
                continue
            found = []
            for turn in range(options.times):
                # From 20 ms on, each 1.6 times as late as the one before.
                took = cancels.cancel_after(database.connect, query, 0.02 * 1.6**turn)
                found += [] if took is None else [took.seconds]
            longest = f"{1e3 * max(found):.0f}" if found else "–"
            print(f"| {name} | {longest} | {len(found)} of {options.times} |", flush=True)
    finally:
        database.drop()


if __name__ == "__main__":
    main()
