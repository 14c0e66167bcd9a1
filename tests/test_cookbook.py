"""docs/cookbook.md prints what psql prints.

    test_cookbook.py --write    put psql's output into the cookbook, in a database with the demo's photos (make demo)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import support

COOKBOOK = support.ROOT / "docs" / "cookbook.md"
# A statement block and the output block after it.
BLOCKS = re.compile(r"```sql\n(.*?)```\n```\n(.*?)```\n", re.DOTALL)
MARK = "-- end of a block --"
NUMBER = re.compile(r"-?\d+\.\d+")
# Text embeddings are int8 arithmetic, which differs between processors in the third decimal.
TOLERANCE = 0.03


def outputs(psql: str, blocks: list[str], **environment: str) -> list[str]:
    """What psql prints for each block, all in one session."""
    script = "\\pset footer off\n" + "".join(f"{block}\\echo '{MARK}'\n" for block in blocks)
    done = subprocess.run(
        [psql, "-Xq", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        input=script,
        cwd=support.ROOT,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    pieces = done.stdout.split(MARK + "\n")
    assert len(pieces) == len(blocks) + 1, done.stdout
    return ["\n".join(line.rstrip() for line in piece.rstrip().splitlines()) + "\n" for piece in pieces[:-1]]


def shape(output: str) -> list[str]:
    """Lines without numbers, rules and the width of columns. Copies of a subject are so near each other that their order
    may differ.
    """
    text = re.sub(r" \((mirrored|cropped)\)", "", NUMBER.sub("#", output))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [line for line in lines if not re.fullmatch(r"[-+]*", line)]


@pytest.fixture(scope="module")
def gallery():
    made = support.Database(extension=False)
    try:
        run = support.ROOT / "examples" / "gallery" / "run.sh"
        environment = os.environ | {"PGDATABASE": made.name, "LC_ALL": "C"}
        subprocess.run([str(run)], env=environment, check=True, capture_output=True, timeout=120)
        yield made
    finally:
        made.drop()


def test_output_is_real(gallery: support.Database, pg_program) -> None:
    text = COOKBOOK.read_text(encoding="utf-8")
    blocks = BLOCKS.findall(text)
    assert len(blocks) == text.count("```sql") >= 10
    found = outputs(pg_program("psql"), [block for block, _ in blocks], PGDATABASE=gallery.name)
    with gallery.connect() as db:
        same_server = support.value(db, "SELECT current_setting('server_version_num')::int / 10000") == 15
    for (block, written), printed in zip(blocks, found):
        if "EXPLAIN" in block and not same_server:
            continue  # plans are worded otherwise
        assert shape(printed) == shape(written), f"{block}\nprints\n{printed}"
        for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(written)):
            assert abs(float(ours) - float(theirs)) <= TOLERANCE, f"{block}\nprints\n{printed}"


def test_plans_use_the_index() -> None:
    """Read from the page, which the test above holds to the truth."""
    plans = [written for block, written in BLOCKS.findall(COOKBOOK.read_text(encoding="utf-8")) if "EXPLAIN" in block]
    assert len(plans) == 3 and all("Index Scan using photo_embedding_idx" in plan for plan in plans)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    page = COOKBOOK.read_text(encoding="utf-8")
    fresh = iter(outputs("psql", [block for block, _ in BLOCKS.findall(page)]))
    page = BLOCKS.sub(lambda match: f"```sql\n{match[1]}```\n```\n{next(fresh)}```\n", page)
    COOKBOOK.write_text(page, encoding="utf-8")
