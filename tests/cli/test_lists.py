"""Lists of files, as CSV and as Parquet, that clip-embed embeds."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

from clip_embed_runs import LISTS, PHOTOS, command, refused, rows, run

NOT_THE_LIST = {"brotli", "empty", "encrypted", "encrypted_column", "latin1", "wrong"}


def test_a_list_in_parquet_is_as_one_in_csv(listed: pathlib.Path, tmp_path) -> None:
    lists = {path.stem: path for path in LISTS.glob("*.parquet") if path.stem not in NOT_THE_LIST}
    assert len(lists) >= 15
    tried = [(name, key) for name in lists for key in (None, "name")]
    tried += [
        (name, key)
        for name in ("snappy", "duckdb", "delta")
        for key in ("path", "id", "unsigned", "narrow", "byte", "uuid")
    ]
    wanted = {}
    for name, key in tried:
        options = ["--root", listed, "--jobs", 1, *(["--key-column", key] if key else [])]
        if key not in wanted:
            output = tmp_path / f"{key}.csv"
            run(LISTS / "list.csv", "-o", output, *options, code=3)
            wanted[key] = output.read_bytes(), refused(output)
            assert {"line 7 has no path or no key", "line 8 has no path or no key", "file cannot be read"} <= {
                m for _, m in wanted[key][1]
            }
        output = tmp_path / f"{name}-{key}"
        run(lists[name], "-o", output, *options, code=3)
        # CSV counts lines, and its header is a line but not a row.
        lines = [
            (k, re.sub(r"row (\d+)", lambda row: f"line {int(row[1]) + 1}", message)) for k, message in refused(output)
        ]
        assert (output.read_bytes(), lines) == wanted[key], (name, key)
    assert [key for key, _ in wanted["id"][1]] == ["6", "7", "dahlia.jpg", "4"]
    assert {"-3", "-9223372036854775808", "9223372036854775807"} <= rows(tmp_path / "delta-id").keys()
    assert "18446744073709551613" in rows(tmp_path / "duckdb-unsigned")
    assert "0369d036-9d03-69cd-0369-d0369d0369cd" in rows(tmp_path / "snappy-uuid")


def test_a_run_goes_on_with_the_list_in_parquet(listed: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.bin"
    options = ["-o", output, "-f", "binary", "--key-type", "bigint", "--key-column", "id", "--root", listed]
    run(LISTS / "list.csv", *options, code=3)
    before = output.read_bytes()
    shutil.copy(PHOTOS / "cat.jpg", listed / "gone.jpg")
    # The file's name doesn't matter; without --root, relative paths start at the list's folder.
    shutil.copy(LISTS / "groups.parquet", listed / "list.txt")
    told = run(listed / "list.txt", *options[:-2], code=3)
    assert "7 of 9 are in" in told and "1 file at" in told
    # One row is added, before the end-of-data mark.
    after = output.read_bytes()
    assert len(after) == len(before) + 2 + 4 + 8 + 4 + 4 + 4 * 512 and after[: len(before) - 2] == before[:-2]


def test_parquet_that_is_refused(listed: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"

    def told(path: pathlib.Path | str, *options: str) -> str:
        text = run(path, "-o", output, "--root", listed, *options, code=1)
        assert "panicked" not in text and not output.exists()
        return text

    for name in ("time", "nanoseconds", "day", "price", "number", "flag", "bytes", "image", "tags"):
        text = told(LISTS / "wrong.parquet", "--key-column", name)
        what = "is nested" if name in ("image", "tags") else "is not text, an integer or a UUID"
        assert f'column "{name}" of' in text and what in text and "--key-column" in text
        text = told(LISTS / "wrong.parquet", "--path-column", name)
        assert ("is nested" if name in ("image", "tags") else "is not text\n") in text and "--path-column" in text
    assert "INT64 time (TIMESTAMP(MICROS,false))" in told(LISTS / "wrong.parquet", "--path-column", "time")
    text = told(LISTS / "snappy.parquet", "--path-column", "file")
    assert 'has no column "file"' in text and 'It has: "path", "id"' in text
    assert 'has no column "no"' in told(LISTS / "snappy.parquet", "--key-column", "no")
    assert "lists no file" in told(LISTS / "empty.parquet")
    assert "is compressed with Brotli" in told(LISTS / "brotli.parquet")
    assert "is encrypted" in told(LISTS / "encrypted.parquet")
    assert "cannot be read as Parquet" in told(LISTS / "encrypted_column.parquet")
    whole = (LISTS / "uncompressed.parquet").read_bytes()
    damaged = tmp_path / "damaged"
    for length in (4, 11, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        assert "is cut off" in told(damaged)
    # Each page has a checksum.
    whole = (LISTS / "pages.parquet").read_bytes()
    at = whole.index(b"dahlia.jpg")
    damaged.write_bytes(whole[:at] + b"D" + whole[at + 1 :])
    assert "checksum" in told(damaged)
    damaged.write_bytes(whole[:-8] + b"\xff\xff\xff\x7fPAR1")
    assert "cannot be read as Parquet" in told(damaged)

    for arguments in (["-"], ["/dev/stdin"]):
        done = subprocess.run(command(*arguments, "-o", output), input=whole, capture_output=True, timeout=120)
        assert done.returncode == 1 and b"is Parquet that comes by a pipe" in done.stderr and not output.exists()


def test_a_row_that_is_not_utf8(listed: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"
    run(LISTS / "latin1.parquet", "-o", output, "--root", listed, code=3)
    assert refused(output) == [("gr\ufffd\ufffde.jpg", "row 2 is not UTF-8")]
    assert sorted(rows(output)) == ["cat.jpg", "dahlia.jpg"]


def test_csv_of_spreadsheets(listed: pathlib.Path, tmp_path) -> None:
    listing, output = listed / "list.csv", tmp_path / "v.csv"
    listing.write_bytes(
        'path,id\r\ncat.jpg,1\r\n"größe, ""quoted""/clock.jpg",2\r\na b/cat.jpg,3\r\n'.encode("utf-8-sig")
    )
    run(listing, "-o", output, "--key-column", "id")
    assert sorted(rows(output)) == ["1", "2", "3"]
    for content, words in (
        ("id;path\n1;cat.jpg\n", ['has no column "path"', '"id;path"', "not by ';'"]),
        ("id\tpath\n1\tcat.jpg\n", ['has no column "path"', "not by '\\t'"]),
        ("", ["is empty", "Parquet"]),
        ("\n\n", ["is empty"]),
        ("path,id\na, b.jpg,1\n", ["is not a CSV file", "line: 2", "between quotes"]),
        ("path\n", ["lists no file"]),
    ):
        listing.write_text(content)
        told = run(listing, "-o", tmp_path / "w.csv", code=1)
        assert all(word in told for word in words), (content, told)
    for content in (
        "path\ngröße.jpg\n".encode("latin-1"),
        "path\ncat.jpg\n".encode("utf-16"),
        (PHOTOS / "cat.jpg").read_bytes(),
    ):
        listing.write_bytes(content)
        assert "CSV in UTF-8" in run(listing, "-o", tmp_path / "w.csv", code=1)
    assert not (tmp_path / "w.csv").exists()
