"""clip-embed, outside the server: it writes the extension's vectors, COPY reads them, and a killed run can be
resumed."""

from __future__ import annotations

import csv
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile

import numpy as np
import pytest

import support
from clip_embed_runs import LISTS, PHOTOS, PROGRAM, command, refused, rows, run
from support import embed_one, value

# A connection that maps a model's weights computes its first 20 calls in another order than later ones, and a batch in
# yet another: the vectors differ by 1.2e-13 on the demo's photos.
ROUNDING = 1e-12


def psql(pg_program, database: support.Database, script: str) -> None:
    done = subprocess.run(
        [pg_program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.name, "-c", script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model", ["photo-mini", "clip-mini"])
@pytest.mark.parametrize("threads", [1, 2])
def test_vectors_are_the_extensions(
    database: support.Database,
    server_folder,
    clip_mini: pathlib.Path,
    folder: pathlib.Path,
    tmp_path,
    pg_program,
    model: str,
    threads: int,
) -> None:
    output = tmp_path / "vectors.csv"
    path = f"{server_folder.path}:{share(pg_program)}/clip_search/models"
    run(folder, "-o", output, "-m", model, "--model-path", path, "--threads", threads, "--jobs", 3)
    found = rows(output)
    assert len(found) == 24 and set(found) == {
        str(path.relative_to(folder)) for path in folder.rglob("*.jpg") if path.name != ".hidden.jpg"
    }
    names = list(found)
    with database.connect() as db:
        db.execute("LOAD 'clip_search'")
        db.execute(f"SET clip_search.model_path = '{server_folder.path}:$system'")
        db.execute(f"SET clip_search.threads = {threads}; SET clip_search.cache_path = ''")
        # Without mapped weights and one by one, the vectors are equal bit for bit.
        files = [(folder / name).read_bytes() for name in names]
        for name, file in zip(names, files, strict=True):
            assert np.array_equal(embed_one(db, "image", file, model), found[name]), name
        for name, vector in zip(names, support.embed_many(db, "images", files, model), strict=True):
            assert distance(vector, found[name]) < ROUNDING, name
    with database.connect() as db:
        db.execute("LOAD 'clip_search'")
        db.execute(f"SET clip_search.model_path = '{server_folder.path}:$system'; SET clip_search.threads = {threads}")
        # With mapped weights they are equal up to rounding, before and after the 20th call, when the weights are laid
        # out.
        for name, file in zip(names, files, strict=True):
            assert distance(embed_one(db, "image", file, model), found[name]) < ROUNDING, name


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))


def share(pg_program) -> str:
    config = os.environ.get("PG_CONFIG") or "pg_config"
    return subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()


def test_copy_takes_both_formats(database: support.Database, folder: pathlib.Path, tmp_path, pg_program) -> None:
    csv_file, binary = tmp_path / "v.csv", tmp_path / "v.bin"
    run(folder, "-o", csv_file)
    run(folder, "-o", binary, "--format", "binary")
    with database.connect() as db:
        db.execute(
            "CREATE TABLE c (path text, v vector(512)); CREATE TABLE b (LIKE c); CREATE TABLE h (path text, v halfvec(512))"
        )
        psql(pg_program, database, f"\\copy c FROM '{csv_file}' (FORMAT csv, HEADER)")
        psql(pg_program, database, f"\\copy b FROM '{binary}' (FORMAT binary)")
        psql(pg_program, database, f"\\copy h FROM '{csv_file}' (FORMAT csv, HEADER)")
        assert value(db, "SELECT count(*) FROM c") == 24
        assert value(db, "SELECT count(*) FROM c JOIN b USING (path) WHERE vector_send(c.v) = vector_send(b.v)") == 24
        # Rounded once, like a cast.
        assert value(db, "SELECT count(*) FROM c JOIN h USING (path) WHERE c.v::halfvec = h.v") == 24
        expected = rows(csv_file)
        for path, text in db.execute("SELECT path, v::text FROM c"):
            assert np.array_equal(support.vector(text), expected[path])


def test_a_list_with_ids(database: support.Database, folder: pathlib.Path, tmp_path, pg_program) -> None:
    first = next(str(p.relative_to(folder)) for p in folder.rglob("cat.jpg"))
    listing = tmp_path / "list.csv"
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "file"], [7, first], [8, "nowhere.jpg"], [9, "notes.txt"], ["007", first], ["x", first]]
        )
    output = tmp_path / "v.bin"
    options = ["-o", output, "-f", "binary", "--key-type", "bigint", "--path-column", "file", "--key-column", "id"]
    assert "3 files failed" in run(listing, "--root", folder, *options, code=3)
    failures = list(csv.DictReader((tmp_path / "v.bin.failures.csv").open(newline="")))
    why = {row["key"]: row["message"] for row in failures}
    assert sorted(why) == ["8", "9", "x"]
    assert (why["8"], why["x"]) == ("file cannot be read", 'key "x" is not a bigint')
    with database.connect() as db:
        db.execute("CREATE TABLE ids (id bigint, v vector(512))")
        psql(pg_program, database, f"\\copy ids FROM '{output}' (FORMAT binary)")
        assert db.execute("SELECT id FROM ids").fetchall() == [(7,)]
        # clip-embed reports the server's error message.
        state, text = support.raised_error(db, "SELECT clip_embed_image(%b)", b"no image")
        assert (state, text.splitlines()[0]) == ("22023", why["9"])
    # Only the files that were repaired are retried; the list may come through a pipe.
    shutil.copy(PHOTOS / "cat.jpg", folder / "nowhere.jpg")
    told = run("-", "--root", folder, *options, code=0, input="id,file\n7,cat.jpg\n8,nowhere.jpg\n")
    assert "1 of 2 are in" in told and not (tmp_path / "v.bin.failures.csv").exists()


@pytest.mark.parametrize("form", ["csv", "binary"])
def test_a_killed_run_goes_on(folder: pathlib.Path, tmp_path, form: str) -> None:
    photos = [photo for photo in folder.rglob("*.jpg") if photo.name != ".hidden.jpg"]
    for photo in photos:
        for number in range(4):
            os.link(photo, folder / f"{number}-{photo.name}")
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run(folder, "-o", whole, "-f", form, "--jobs", 1)
    size = whole.stat().st_size
    # Three runs are stopped in the middle of a row by the signal for a file that grows too large: at the same place on
    # every machine.
    for part in (1, 2, 3):
        limit = size * part // 6
        done = subprocess.run(
            command(folder, "-o", output, "-f", form, "--jobs", 1, "-q"),
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            timeout=250,
        )
        assert (done.returncode, output.stat().st_size) == (-signal.SIGXFSZ, limit)
        # Half a row, as a full disk leaves it.
        with output.open("ab") as file:
            file.write(whole.read_bytes()[19:100])
    run(folder, "-o", output, "-f", form, "--jobs", 1, "-q")
    assert output.read_bytes() == whole.read_bytes()


def test_what_stops_it(folder: pathlib.Path, tmp_path, pg_program) -> None:
    output = tmp_path / "v.csv"
    assert 'model "nope" does not exist' in run(folder, "-o", output, "-m", "nope", code=1)
    assert not output.exists()
    assert "cannot be read" in run(tmp_path / "nothing", "-o", output, code=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there is no image file in" in run(empty, "-o", output, code=1)
    shutil.copy(LISTS / "snappy.parquet", empty)
    told = run(empty, "-o", output, code=1)
    assert "names: 1 file." in told and "give the path of a list" in told
    listing = tmp_path / "list.csv"
    listing.write_text("id,file\n1,a.jpg\n")
    assert 'has no column "path"' in run(listing, "-o", output, code=1)
    run(folder, "-o", output)
    told = run(folder, "-o", output, "--exact-jpeg", code=1)
    assert "was made otherwise" in told and "exact_jpeg" in told
    run(folder, "-o", tmp_path / "w.csv", "--jobs", "0", code=2)
    broken = tmp_path / "models" / "broken" / "onnx"
    broken.mkdir(parents=True)
    (broken / "vision_model.onnx").write_text("nothing")
    told = run(folder, "-o", tmp_path / "x.csv", "--model-path", broken.parent.parent, "-m", "broken", code=1)
    assert "cannot be loaded" in told


def test_it_goes_on_where_nobody_listens(folder: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command(folder, "-o", output), stderr=writer, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, len(rows(output))) == (0, 24)


def test_two_models_of_one_name_are_told_apart(folder: pathlib.Path, tmp_path, pg_program) -> None:
    output, mine = tmp_path / "v.csv", tmp_path / "models" / "mine"
    shutil.copytree(pathlib.Path(share(pg_program)) / "clip_search/models/photo-mini", mine)
    options = [folder, "-o", output, "--model-path", mine.parent, "-m", "mine"]
    run(*options)
    before = output.read_bytes()
    for file in ("onnx/vision_model.onnx", "preprocessor_config.json"):
        content = (mine / file).read_bytes()
        # Changes of the same length: a bit of a weight, a digit of the mean.
        at = len(content) // 2 if file.endswith("onnx") else content.index(b"0.") + 2
        (mine / file).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        told = run(*options, code=1)
        assert "was made otherwise" in told and "model_sha256" in told, file
        assert output.read_bytes() == before
        (mine / file).write_bytes(content)
    # The text tower doesn't affect image vectors.
    (mine / "onnx" / "text_model.onnx").unlink()
    run(*options)
    assert output.read_bytes() == before


def test_what_is_no_file(folder: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"
    for name in (".#cat.jpg", "gone.txt"):
        (folder / name).symlink_to("nowhere")
    # A lock file of Emacs and a dangling link to a note don't count as image files, as their targets wouldn't.
    assert "names: 2 files (--every-file takes all)" in run(folder, "-o", output)
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.jpg")
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    run(folder, "-o", output, code=3)
    failures = csv.DictReader((tmp_path / "v.csv.failures.csv").open(newline="", encoding="utf-8"))
    # Keys are paths relative to the directory, as for the rows.
    assert {row["key"]: row["message"] for row in failures} == {
        "gone.jpg": "file cannot be read",
        "again": "file cannot be read",
        "\ufffd.jpg": "file name is not UTF-8",
    }
    assert len(rows(output)) == 24


def test_copy_takes_any_key(database: support.Database, tmp_path, pg_program) -> None:
    keys = [
        "\\.",
        "\\.\nx",
        "x\\.",
        "x\n\\.y",
        "x\r\ny",
        "x\n\\.",
        "NULL",
        "\\N",
        '"',
        "é\t",
        "x\n\\.\ny",
        "x\n\\.\r\ny",
        "a\0b",
    ]
    unfit = {"csv": set(keys[-3:]), "binary": set(keys[-1:])}
    listing = tmp_path / "list.csv"
    with listing.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["path", "id"], *([PHOTOS / "cat.jpg", key] for key in keys)]
        )
    with database.connect() as db:
        for form, options in (("csv", "FORMAT csv, HEADER"), ("binary", "FORMAT binary")):
            output = tmp_path / form
            run(listing, "-o", output, "-f", form, "--key-column", "id", code=3)
            failures = list(csv.DictReader((tmp_path / f"{form}.failures.csv").open(newline="")))
            assert {row["key"] for row in failures} == unfit[form]
            assert all(row["message"].endswith("cannot be loaded") for row in failures)
            db.execute("DROP TABLE IF EXISTS k; CREATE TABLE k (key text, v vector(512))")
            psql(pg_program, database, f"\\copy k FROM '{output}' ({options})")
            assert {key for (key,) in db.execute("SELECT key FROM k")} == set(keys) - unfit[form]


def test_the_output_is_a_file(folder: pathlib.Path, tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for output in (pipe, "/dev/full"):
        assert "is not a regular file" in run(folder, "-o", output, code=1)
        assert not pathlib.Path(f"{output}.json").exists()
    # A run that a full disk stopped can be resumed.
    output = tmp_path / "v.csv"
    limit = subprocess.run(
        ["bash", "-c", 'trap "" XFSZ; ulimit -f 64; exec "$@"', "bash", *command(folder, "-o", output)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert limit.returncode == 1 and "cannot be written" in limit.stderr, limit.stderr
    assert output.stat().st_size == 64 * 1024
    assert "are in" in run(folder, "-o", output) and len(rows(output)) == 24


def test_a_list_by_a_pipe(folder: pathlib.Path, tmp_path) -> None:
    listing = (
        b"path,id\n%s,1\n,2\nx.jpg,\n" % next(p.name for p in folder.glob("*.jpg") if p.name != ".hidden.jpg").encode()
    )
    arguments = ["-o", tmp_path / "v.csv", "--key-column", "id"]
    done = subprocess.run(
        command("/dev/stdin", *arguments), capture_output=True, input=listing, cwd=folder, timeout=120
    )
    assert done.returncode == 3 and set(rows(tmp_path / "v.csv")) == {"1"}, done.stderr
    failures = csv.DictReader((tmp_path / "v.csv.failures.csv").open(newline=""))
    assert [(row["key"], row["message"]) for row in failures] == [
        ("2", "line 3 has no path or no key"),
        ("x.jpg", "line 4 has no path or no key"),
    ]
    assert '"-" lists no file' in run("-", "-o", tmp_path / "w.csv", code=1, input="path\n")


def test_limits_are_named_as_its_own(folder: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"
    run(folder, "-o", output, "--max-image-pixels", 1000, "--max-image-bytes", 40_000, code=3)
    failures = list(csv.DictReader((tmp_path / "v.csv.failures.csv").open(newline="")))
    assert len(failures) == 24
    hints = {row["message"]: row["hint"] for row in failures}
    assert hints == {
        "image has too many pixels": "Raise --max-image-pixels, or store a smaller copy.",
        "image file is too large": "Raise --max-image-bytes, or store a smaller copy.",
    }


def test_options_that_would_do_nothing(folder: pathlib.Path, tmp_path) -> None:
    output = tmp_path / "v.csv"
    for option, argument in (("--path-column", "path"), ("--key-column", "id"), ("--root", tmp_path)):
        assert f"{option} has no effect on a directory" in run(folder, "-o", output, option, argument, code=1)
    for source in (LISTS / "list.csv", LISTS / "snappy.parquet", "-"):
        assert "--every-file has no effect on a list" in run(
            source, "-o", output, "--every-file", code=1, input="path\nx\n"
        )
    assert not output.exists()


def test_the_output_may_lie_among_the_photos(listed: pathlib.Path, tmp_path) -> None:
    (listed / "notes.txt").write_text("no image")
    (tmp_path / "link").symlink_to(listed)
    output = tmp_path / "link" / "v.csv"
    for number in range(3):
        told = run(listed, "-o", output, "--every-file", code=3)
        assert refused(output) == [("notes.txt", "not an image")]
        assert number == 0 or "5 of 6 are in" in told
    assert len(rows(output)) == 5
    (listed / "w.csv").write_text("of another run")
    run(listed, "-o", output, "--every-file", code=3)
    assert sorted(key for key, _ in refused(output)) == ["notes.txt", "w.csv"]


def test_a_directory_that_cannot_be_read(pg_program) -> None:
    # If root runs the tests, clip-embed runs as another user, since nothing is unreadable for root.
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        place.chmod(0o755)
        program = shutil.copy(PROGRAM, place)
        photos, closed = place / "photos", place / "photos" / "closed"
        closed.mkdir(parents=True)
        shutil.copy(PHOTOS / "cat.jpg", photos)
        out = place / "out"
        out.mkdir()
        out.chmod(0o777)
        closed.chmod(0)

        def start(source: pathlib.Path) -> subprocess.CompletedProcess:
            return subprocess.run(
                [program, source, "-o", out / "v.csv"], user=user, capture_output=True, text=True, timeout=120, cwd="/"
            )

        try:
            done = start(closed)
            assert (done.returncode, 'closed" cannot be read' in done.stderr) == (1, True), done.stderr
            assert list(out.iterdir()) == []
            # Inside another directory, it is only listed as failed.
            assert start(photos).returncode == 3 and refused(out / "v.csv") == [("closed", "file cannot be read")]
            out.chmod(0o555)
            (out / "v.csv").unlink()
            done = start(photos)
            assert done.returncode == 1 and "cannot be written" in done.stderr
        finally:
            closed.chmod(0o700)
            out.chmod(0o700)


def test_an_empty_variable_counts_as_not_set(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", folder)
    # make exports unset variables as empty ones. PATH leads to the server's pg_config.
    pg_bin = pathlib.Path(os.environ["PG_CONFIG"]).parent if os.environ.get("PG_CONFIG") else None
    found = {"PATH": f"{pg_bin}:{os.environ['PATH']}"} if pg_bin else {}
    done = subprocess.run(
        command(folder, "-o", tmp_path / "v.csv"),
        capture_output=True,
        text=True,
        env={**os.environ, **found, "PG_CONFIG": "", "ORT_DYLIB_PATH": ""},
    )
    assert done.returncode == 0, done.stderr


def test_help_fits_a_terminal() -> None:
    for columns, most in ((80, 80), (200, 100)):
        done = subprocess.run(
            command("--help"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": str(columns)},
        )
        lines = done.stdout.splitlines()
        assert "Usage: clip-embed [OPTIONS] --output <FILE> <INPUT>" in lines
        assert most - 10 < max(map(len, lines)) <= most
