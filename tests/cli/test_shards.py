"""clip-embed on many machines: shards, kills, merges, Parquet, standard output."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

import support
from clip_embed_runs import PHOTOS, command, kill_at_random, refused, rows, run
from support import value

FORMATS = ("csv", "binary", "parquet")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The demo's photos, each of them twice."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        for photo in sorted(PHOTOS.glob("*.jpg"))[:24]:
            shutil.copy(photo, photos / f"{number}-{photo.name}")
    return photos


def shard(key: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % count + 1


def as_csv(output: pathlib.Path, tmp_path: pathlib.Path, code: int = 0) -> dict[str, np.ndarray]:
    """The rows of an output in any format, through a merge; exit status 3 means an incomplete output."""
    done = subprocess.run(command("merge", output, "-o", "-", "-f", "csv"), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    (tmp_path / "as.csv").write_text(done.stdout)
    return rows(tmp_path / "as.csv")


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("form", FORMATS)
def test_three_processes_killed_at_random_end_complete(folder: pathlib.Path, tmp_path, form: str) -> None:
    for photo in list(folder.iterdir()):
        for number in range(2):
            os.link(photo, folder / f"{number}-{photo.name}")
    whole = tmp_path / "whole.csv"
    run(folder, "-o", whole)
    expected = rows(whole)
    outputs = [tmp_path / f"{number}.{form}" for number in (1, 2, 3)]

    def start(number: int) -> subprocess.Popen:
        options = ["-o", outputs[number], "-f", form, "--shard", f"{number + 1}/3", "--jobs", 1, "-q"]
        return subprocess.Popen(command(folder, *options), stderr=subprocess.PIPE, text=True)

    kill_at_random(start, 3)
    merged = tmp_path / f"merged.{form}"
    told = run("merge", *outputs, "-o", merged, "--list", folder)
    assert "every file of the list has its vector" in told and "vectors in" in told
    assert same(as_csv(merged, tmp_path), expected)
    for number, output in enumerate(outputs, 1):
        keys = as_csv(output, tmp_path, code=3).keys()
        assert keys == {key for key in expected if shard(key, 3) == number}
        assert not pathlib.Path(f"{output}.partial").exists()


def test_one_shard_reports_each_failure(folder: pathlib.Path, tmp_path) -> None:
    listing = tmp_path / "list.csv"
    first = sorted(folder.iterdir())[0].name
    with listing.open("w", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerows([["path", "id"], *([first, number] for number in range(20)), ["", 20], ["gone", 21]])
        written.writerows([[first, "x"], [first, ""]])
    options = ["--root", folder, "--key-column", "id", "--key-type", "bigint", "--jobs", 1]
    outputs = [tmp_path / f"{number}.csv" for number in range(1, 5)]
    failed, there = [], []
    for number, output in enumerate(outputs, 1):
        told = subprocess.run(
            command(listing, "-o", output, "--shard", f"{number}/4", *options), capture_output=True, text=True
        )
        assert f"shard {number}/4: " in told.stderr
        failures = refused(output) if pathlib.Path(f"{output}.failures.csv").exists() else []
        assert told.returncode == (3 if failures else 0), told.stderr
        failed += failures
        there += rows(output)
    assert sorted(there, key=int) == [str(number) for number in range(20)]
    reasons = {
        "20": "line 22 has no path or no key",
        "21": "file cannot be read",
        "x": 'key "x" is not a bigint',
        first: "line 25 has no path or no key",
    }
    assert len(failed) == 4 and dict(failed) == reasons
    # The merge lists them again with the same reasons, with and without the list. A pattern such as *.csv also matches
    # the lists of failures.
    given = [*outputs, *tmp_path.glob("?.csv.failures.csv")]
    assert len(given) > len(outputs)
    for more in (["--list", listing, "--root", folder], []):
        assert "4 keys without a vector" in run("merge", *given, "-o", tmp_path / "all.csv", *more, code=3)
        assert dict(refused(tmp_path / "all.csv")) == reasons


def test_a_shard_without_files(folder: pathlib.Path, tmp_path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", few)
    empty = next(number for number in range(1, 10) if number != shard("cat.jpg", 9))
    for form in FORMATS:
        output = tmp_path / f"empty.{form}"
        run(few, "-o", output, "-f", form, "--shard", f"{empty}/9")
        assert as_csv_of_part(output) == 0
    for wrong in ("0/3", "4/3", "x", "1/0"):
        assert "--shard" in run(few, "-o", tmp_path / "w.csv", "--shard", wrong, code=2)
    # Another shard may not use the same file: the vectors would be mixed.
    told = run(few, "-o", tmp_path / "empty.csv", "--shard", f"{shard('cat.jpg', 9)}/9", code=1)
    assert "was made otherwise" in told and "shard" in told


def as_csv_of_part(output: pathlib.Path) -> int:
    """The number of rows of an incomplete output."""
    done = subprocess.run(command("merge", output, "-o", "-", "-f", "csv"), capture_output=True, text=True)
    assert done.returncode == 3 and "no file is of shard" in done.stderr
    return len(list(csv.DictReader(io.StringIO(done.stdout))))


def test_a_merge_says_what_is_missing_and_what_is_twice(folder: pathlib.Path, tmp_path) -> None:
    outputs = [tmp_path / f"{number}.csv" for number in (1, 2, 3)]
    for number, output in enumerate(outputs, 1):
        run(folder, "-o", output, "--shard", f"{number}/3")
    expected = {key: vector for output in outputs for key, vector in rows(output).items()}
    merged = tmp_path / "merged.csv"
    lost = sorted(key for key in expected if shard(key, 3) == 2)
    # A shard is missing: only the list tells its keys.
    assert "no file is of shard 2/3" in run("merge", outputs[0], outputs[2], "-o", merged, code=3)
    assert not pathlib.Path(f"{merged}.failures.csv").exists()
    told = run("merge", outputs[0], outputs[2], "-o", merged, "--list", folder, code=3)
    assert f"{len(lost)} keys without a vector" in told and json.dumps(lost[0]) in told
    with pathlib.Path(f"{merged}.failures.csv").open(newline="") as file:
        found = {row["key"]: row["detail"] for row in csv.DictReader(file)}
    assert found == dict.fromkeys(lost, "It belongs to shard 2/3.")
    # The command without --shard completes an output that lacks a shard; after that, a merge may not replace it.
    shutil.copy(merged, tmp_path / "completed.csv")
    shutil.copy(f"{merged}.json", tmp_path / "completed.csv.json")
    told = run(folder, "-o", tmp_path / "completed.csv")
    assert f"{len(lost)} files at" in told and same(rows(tmp_path / "completed.csv"), expected)
    assert "is there already" in run("merge", *outputs, "-o", tmp_path / "completed.csv", code=1)
    # A run stopped in the middle of a row.
    text = outputs[1].read_bytes()
    shutil.copy(outputs[1], tmp_path / "cut.csv")
    about = json.loads(pathlib.Path(f"{outputs[1]}.json").read_text())
    assert about.pop("missing") == 0
    (tmp_path / "cut.csv.json").write_text(json.dumps(about))
    (tmp_path / "cut.csv").write_bytes(text[: len(text) // 2])
    told = run("merge", outputs[0], tmp_path / "cut.csv", outputs[2], "-o", merged, code=3)
    assert 'cut.csv" is unfinished' in told
    left = rows(merged)
    assert 0 < len(left) < len(expected) and all(np.array_equal(left[key], expected[key]) for key in left)
    # All shards, one of them given twice, one with another decoder's vectors.
    assert f"in several files, taken from the first of them: {len(lost)} keys" in run(
        "merge", *outputs, tmp_path / "cut.csv", outputs[1], "-o", merged, code=3
    )
    told = run("merge", *outputs, outputs[1], "-o", merged, "--list", folder)
    assert "every file of the list has its vector" in told and same(rows(merged), expected)
    key = lost[0]
    other = tmp_path / "other.csv"
    vector = ",".join(["0.5"] * 512)
    other.write_text(f'"key","embedding"\n"{key}","[{vector}]"\n')
    shutil.copy(f"{outputs[1]}.json", f"{other}.json")
    told = run("merge", *outputs, other, "-o", merged, "--list", folder)
    assert f"1 with another vector, taken from the first of them: 1 key ({json.dumps(key)})" in told
    assert same(rows(merged), expected)


def test_what_a_merge_refuses(folder: pathlib.Path, tmp_path) -> None:
    a, b, merged = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "m.csv"
    run(folder, "-o", a, "--shard", "1/40")
    run(folder, "-o", b, "--shard", "2/40", "--exact-jpeg")
    told = run("merge", a, b, "-o", merged, code=1)
    assert 'b.csv" was made otherwise' in told and "exact_jpeg" in told
    assert "does not exist" in run("merge", a, tmp_path / "nothing.csv", "-o", merged, code=1)
    (tmp_path / "notes.csv").write_text("notes")
    assert "is not an output of clip-embed" in run("merge", a, tmp_path / "notes.csv", "-o", merged, code=1)
    assert "is there already" in run("merge", a, "-o", tmp_path / "notes.csv", code=1)
    assert "is both joined and written" in run("merge", a, "-o", a, code=1)
    shutil.copy(f"{a}.json", tmp_path / "notes.csv.json")
    assert "is not what clip-embed writes" in run("merge", a, tmp_path / "notes.csv", "-o", merged, code=1)
    assert not merged.exists() and (tmp_path / "notes.csv").read_text() == "notes"


def test_a_run_in_parquet_is_resumed_and_extended(folder: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.parquet"
    (folder / "gone.jpg").symlink_to("nowhere")
    names = sorted(path.name for path in folder.iterdir())
    listing = tmp_path / "list.csv"
    listing.write_text("path\n" + "\n".join(names[:20]))
    options = ["-o", output, "-f", "parquet", "--root", folder]
    run(listing, *options)
    first = output.read_bytes()
    run(listing, *options)
    assert output.read_bytes() == first, "a run without work changed the file"
    listing.write_text("path\n" + "\n".join(names[:30] + ["gone.jpg"]))
    assert "20 of 31 are in" in run(listing, *options, code=3) and refused(output) == [
        ("gone.jpg", "file cannot be read")
    ]
    # A kill between the last two steps leaves a journal whose rows are already in the file.
    run(listing, "-o", tmp_path / "j.bin", "-f", "binary", "--root", folder, code=3)
    shutil.copy(tmp_path / "j.bin", f"{output}.partial")
    listing.write_text("path\n" + "\n".join(names))
    told = run(listing, *options, code=3)
    assert "30 of 49 are in" in told
    run(listing, "-o", tmp_path / "whole.csv", "--root", folder, code=3)
    found = subprocess.run(command("merge", output, "-o", "-", "-f", "csv"), capture_output=True, text=True)
    assert found.returncode == 3
    keys = [row["key"] for row in csv.DictReader(io.StringIO(found.stdout))]
    assert len(keys) == len(set(keys)) == 48
    (tmp_path / "as.csv").write_text(found.stdout)
    assert same(rows(tmp_path / "as.csv"), rows(tmp_path / "whole.csv"))
    # A damaged file is refused, and not overwritten.
    whole = output.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-20] + b"\xff" * 16 + b"PAR1", b"notes"):
        output.write_bytes(damaged)
        told = run(listing, *options, code=1)
        assert "is not what clip-embed writes" in told and "panicked" not in told
        assert output.read_bytes() == damaged


@pytest.mark.parametrize("key_type", ["text", "bigint"])
def test_standard_output(database: support.Database, folder: pathlib.Path, tmp_path, pg_program, key_type) -> None:
    listing = tmp_path / "list.csv"
    names = sorted(path.name for path in folder.iterdir())[:30]
    listing.write_text("path,id\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)) + "gone,99\n")
    options = ["--root", folder, "--key-column", "id", "--key-type", key_type, "--jobs", 1]
    run(listing, "-o", tmp_path / "v.csv", *options, code=3)
    expected = rows(tmp_path / "v.csv")
    with database.connect() as db:
        for form, copy in (("csv", "FORMAT csv, HEADER"), ("binary", "FORMAT binary")):
            db.execute(f"DROP TABLE IF EXISTS s; CREATE TABLE s (key {key_type}, v vector(512))")
            done = subprocess.run(command(listing, "-o", "-", "-f", form, *options), capture_output=True, timeout=120)
            assert done.returncode == 3
            assert b'"gone"' not in done.stderr and b'"99" failed: file cannot be read.' in done.stderr
            loaded = subprocess.run(
                [pg_program("psql"), "-Xq", "-d", database.name, "-c", f"COPY s FROM STDIN ({copy})"], input=done.stdout
            )
            assert loaded.returncode == 0
            assert value(db, "SELECT count(*) FROM s") == 30
            found = {str(key): support.vector(text) for key, text in db.execute("SELECT key, v::text FROM s")}
            assert same(found, expected)
    done = subprocess.run(command(listing, "-o", "-", "-f", "parquet", *options), capture_output=True, timeout=120)
    assert done.stdout[:4] == done.stdout[-4:] == b"PAR1"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("-")) == []
    # The run ends when its reader has gone away.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command(listing, "-o", "-", *options), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1 and "standard output cannot be written" in done.stderr


def test_addresses_are_a_build_feature(tmp_path: pathlib.Path) -> None:
    if "--allow-http" in subprocess.run(command("--help"), capture_output=True, text=True).stdout:
        pytest.skip("built with REMOTE=1: tests/bulk has the tests")
    listing = tmp_path / "list.csv"
    listing.write_text("path\ncat.jpg\nhttps://localhost/cat.jpg\n")
    for source in (listing, "s3://photos/2024"):
        told = run(source, "-o", tmp_path / "v.csv", code=1)
        assert "this clip-embed reads no https:// and s3:// paths" in told and "REMOTE=1" in told
    assert not (tmp_path / "v.csv").exists()
