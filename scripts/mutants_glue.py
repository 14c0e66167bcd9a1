#!/usr/bin/env python3
"""Applies the mutations of tests/mutants/glue.py one after the other, and runs the test that must fail.

    mutants_glue.py [--only WORDS] [--out FILE]    from scripts/mutants.sh, with the server of `make test-cluster` up

Each mutation is built and installed on its own (an incremental build), tested, and undone. A failed build is not a kill. The exit status
is 1 if a mutation survives, does not apply or does not build. Results are appended to FILE one by one, as a JSON object a line.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mutants.glue import MUTATIONS, Mutation  # noqa: E402


def build(log: pathlib.Path) -> bool:
    with log.open("wb") as out:
        return subprocess.run(["make", "test-cluster"], cwd=ROOT, stdout=out, stderr=out).returncode == 0


def stop_servers() -> None:
    """Stops the servers that a test has left running: a test that exceeds its time limit doesn't clean up."""
    for file in pathlib.Path(os.environ["PGHOST"]).glob("*/data/postmaster.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


def run_test(mutation: Mutation, log: pathlib.Path) -> str:
    """Runs the mutation's test and returns the outcome."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if mutation.test.startswith("tests/sql/"):
        command = ["scripts/test.sh", "sql"]
        environment["TESTS"] = pathlib.Path(mutation.test).stem
    else:
        # A test that waits for something that never happens should not wait for long.
        options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "timeout=200"]
        command = [str(ROOT / "target/venv/bin/python"), "-m", "pytest", *options, mutation.test]
    with log.open("wb") as out:
        status = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, env=environment, timeout=1200).returncode
    stop_servers()
    return {0: "survived", 1: "killed"}.get(status, "test did not run")


def verdict(mutation: Mutation, logs: pathlib.Path) -> str:
    place = ROOT / mutation.file
    text = place.read_text()
    if text.count(mutation.old) != 1:
        return "does not apply"
    try:
        place.write_text(text.replace(mutation.old, mutation.new))
        if not build(logs / "build.log"):
            return "does not build"
        return run_test(mutation, logs / f"{mutation.name.replace(' ', '-')}.log")
    finally:
        place.write_text(text)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--only", default="", help="words of the names, separated by commas")
    options.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "mutants-glue.jsonl")
    given = options.parse_args()
    logs = ROOT / "target" / "log" / "mutants-glue"
    logs.mkdir(parents=True, exist_ok=True)
    words = [word.strip() for word in given.only.split(",") if word.strip()]
    chosen = [one for one in MUTATIONS if not words or any(word in one.name for word in words)]
    if not chosen:
        raise SystemExit(f"no mutation has {given.only!r} in its name")
    counts: dict[str, int] = {}
    try:
        for number, mutation in enumerate(chosen, 1):
            start = time.monotonic()
            found = verdict(mutation, logs)
            counts[found] = counts.get(found, 0) + 1
            line = {
                "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "mutation": mutation.name,
                "test": mutation.test,
                "verdict": found,
                "seconds": round(time.monotonic() - start),
            }
            with given.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
            print(f"{number}/{len(chosen)} {found}: {mutation.name} ({line['seconds']} s)", flush=True)
    finally:
        print("building what is not mutated again", flush=True)
        if not build(logs / "build.log"):
            raise SystemExit(f"that failed: see {logs / 'build.log'}")
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    raise SystemExit(1 if set(counts) - {"killed"} else 0)


if __name__ == "__main__":
    main()
