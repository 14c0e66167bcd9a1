"""Every file of the corpus through SQL in one connection: each gives an error or a vector, and the backend survives."""

from __future__ import annotations

import json
import pathlib
import sys

import psycopg

import support
from support import embed_one, value

CORPUS = support.ROOT / "tests" / "fixtures" / "corpus"
SQLSTATES = {"InvalidInput": "22023", "Unsupported": "0A000", "LimitExceeded": "54000"}
# Bytes that a pass over the corpus may leave behind once the first passes have laid out the heap: a leak of 30 kB a
# file would exceed it.
GROWTH_MB = 8


def resident_megabytes(pid: int) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


def outcome(db: psycopg.Connection, data: bytes) -> tuple[str | None, str]:
    """SQLSTATE and message; no SQLSTATE if the image was embedded."""
    try:
        assert value(db, "SELECT clip_embed_image(%s) IS NOT NULL", data)
    except psycopg.Error as error:
        return error.sqlstate, f"{error.diag.message_primary}\n{error.diag.message_detail}"
    return None, ""


def test_no_file_takes_the_backend_down(database: support.Database) -> None:
    """Bombs, truncated files, unusual formats. Four passes show a leak: by the third, the heap has its final size."""
    entries = json.loads((CORPUS / "index.json").read_text())
    photo = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
    wrong: list[str] = []
    with database.connect() as db:
        before_vector = embed_one(db, "image", photo)
        pid = value(db, "SELECT pg_backend_pid()")
        assert isinstance(pid, int)
        resident: list[float] = []
        for _ in range(4):
            for entry in entries:
                data = (CORPUS / entry["file"]).read_bytes()
                found, message = outcome(db, data)
                if "error" in entry:
                    right = [SQLSTATES[kind] for kind in entry["error"]["kinds"]]
                    if found not in right or entry["error"]["contains"] not in message:
                        wrong.append(f"{entry['file']}: {found} {message}, not {right}")
                elif found is not None:
                    wrong.append(f"{entry['file']}: {found} {message}")
            assert not wrong, "\n".join(wrong)
            resident.append(resident_megabytes(pid))
        # The smallest growth of a pass: a leak would show in every pass.
        grown = min(after - before for before, after in zip(resident[1:], resident[2:], strict=False))
        print("MB after each turn:", *(round(megabytes, 1) for megabytes in resident), file=sys.stderr)
        assert grown < GROWTH_MB, f"each turn takes {grown:.0f} MB more: {resident}"
        assert value(db, "SELECT pg_backend_pid()") == pid, "the connection has another backend"
        after = embed_one(db, "image", photo)
        assert float(before_vector @ after) > 0.999999


def test_a_bad_row_leaves_the_transaction_usable(database: support.Database) -> None:
    """An application can insert the rest of a batch by using savepoints (immich#26150)."""
    files = [CORPUS / name for name in ("png_rgb.png", "gif_half.gif", "jpeg_half.jpg", "png_rgba.png")]
    with database.connect(autocommit=False) as db:
        db.execute("CREATE TEMP TABLE kept (name text, embedding vector(512))")
        failed = 0
        for file in files:
            try:
                with db.transaction():
                    query = "INSERT INTO kept SELECT %s, clip_embed_image(%s)"
                    db.execute(query, (file.name, file.read_bytes()))
            except psycopg.Error as error:
                assert error.sqlstate == "22023"
                failed += 1
        assert failed == 2
        assert value(db, "SELECT count(*) FROM kept") == 2
        db.rollback()
