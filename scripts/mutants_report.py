#!/usr/bin/env python3
"""The result of a cargo-mutants run: how many of the mutations that compile the tests caught, and which ones survived.

    mutants_report.py target/mutants.out 96 [SURVIVORS]

SURVIVORS lists the known ones, one per line with the reason after a tab (tests/mutants/survivors.tsv). The exit status
is 1 if the percentage is below the minimum, or if an unlisted mutation survives.
"""

from __future__ import annotations

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main(folder: str, least: str, known: str = str(ROOT / "tests" / "mutants" / "survivors.tsv")) -> int:
    outcomes = json.loads((pathlib.Path(folder) / "outcomes.json").read_text())["outcomes"]
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        if isinstance(outcome["scenario"], dict):
            found.setdefault(outcome["summary"], []).append(outcome["scenario"]["Mutant"]["name"])
    noticed = len(found.get("CaughtMutant", [])) + len(found.get("Timeout", []))
    missed = found.get("MissedMutant", [])
    viable = noticed + len(missed)
    if not viable:
        print("no mutation was tried")
        return 1
    lines = [line.split("\t") for line in pathlib.Path(known).read_text().splitlines() if line and line[0] != "#"]
    # By name without line and column, which any earlier change in the file moves.
    reasons = dict(lines)
    unlisted = []
    for name in missed:
        plain = name.split(": ", 1)[1] if ": " in name else name
        file = name.split(":", 1)[0]
        reason = reasons.get(f"{file}: {plain}")
        print(f"survived: {name}" + (f" ({reason})" if reason else ""))
        if not reason:
            unlisted.append(name)
    share = 100 * noticed / viable
    print(f"{noticed} of {viable} mutations caught, {share:.1f} %; {len(found.get('Unviable', []))} do not build")
    return 1 if share < float(least) or unlisted else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
