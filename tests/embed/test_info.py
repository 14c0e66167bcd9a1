"""clip_image_info against Pillow, on every file of the corpus that both can read, and on the fixtures' images."""

from __future__ import annotations

import datetime
import io
import json
import pathlib
import warnings

import psycopg
import pytest
from PIL import Image, UnidentifiedImageError

import support

CORPUS = support.FIXTURES / "corpus"
IMAGES = support.FIXTURES / "images"
SQLSTATES = {"InvalidInput": "22023", "Unsupported": "0A000", "LimitExceeded": "54000"}
Row = tuple[str, int, int, int, int, int, int]
COLUMNS = "format, width, height, orientation, channels, frames, bytes"

# Where Pillow differs, and why the extension's answer is right or acceptable.
OTHERWISE = {
    "png_greya16.png": "Pillow has no mode for 16-bit grey with alpha, and opens it as RGBA",
    "tiff_orientation6.tif": "Pillow gives the upright size of a TIFF, and the stored one of all else",
}


def files() -> list[pathlib.Path]:
    return sorted(path for path in [*CORPUS.iterdir(), *IMAGES.iterdir()] if path.suffix not in (".json", ".md"))


def info(db: psycopg.Connection, data: bytes) -> Row:
    rows = db.execute(f"SELECT {COLUMNS} FROM clip_image_info(%s)", (data,)).fetchall()
    assert len(rows) == 1
    return rows[0]


def by_pillow(data: bytes) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            stated = image.getexif().get(274, 1)
            orientation = stated if stated in range(1, 9) else 1
            name = {"WEBP": "WebP", "MPO": "JPEG"}.get(image.format, image.format)
            frames, size, channels = getattr(image, "n_frames", 1), image.size, len(image.getbands())
            return (name, *size, orientation, channels, frames, len(data))


def test_headers_are_pillows(database: support.Database) -> None:
    compared, wrong, otherwise = 0, [], set()
    with database.connect() as db:
        for path in files():
            data = path.read_bytes()
            try:
                wanted = by_pillow(data)
            except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
            try:
                found = info(db, data)
            except psycopg.Error as error:
                # A kind of file that Pillow reads and the embedding functions refuse; see test_errors_are_the_decoders.
                assert error.sqlstate in SQLSTATES.values(), f"{path.name}: {error}"
                continue
            compared += 1
            if found != wanted and path.name in OTHERWISE:
                otherwise.add(path.name)
            elif found != wanted:
                wrong.append(f"{path.name}: {found}, by Pillow {wanted}")
    assert not wrong, "\n".join(wrong)
    assert otherwise == set(OTHERWISE)
    assert compared > 130, f"only {compared} files were compared"


def test_errors_are_the_decoders(database: support.Database) -> None:
    """A header that can't be read gives the same error as embedding the file; a header that can be read is
    described, whatever the limits."""
    wrong, described = [], []
    with database.connect() as db:
        for entry in json.loads((CORPUS / "index.json").read_text()):
            data = (CORPUS / entry["file"]).read_bytes()
            try:
                info(db, data)
                described.append(entry["file"])
            except psycopg.Error as error:
                kinds = [SQLSTATES[kind] for kind in entry.get("error", {}).get("kinds", [])]
                if error.sqlstate not in kinds:
                    wrong.append(f"{entry['file']}: {error.sqlstate} {error}, not of {kinds}")
    assert not wrong, "\n".join(wrong)
    # These files have readable headers, but are too large to embed or have broken pixels.
    for name in ("png_60000.png", "jpeg_65500.jpg", "tiff_60000.tif", "jpeg_half.jpg", "png_half.png"):
        assert name in described


def exif(date: str | None, offset: str | None = None, fraction: str | None = None) -> Image.Exif:
    block = Image.Exif()
    # The time at which the file was changed: not the picture's date.
    block[306] = "2001:01:01 01:01:01"
    inner = {36867: date, 36881: offset, 37521: fraction}
    block.get_ifd(34665).update({tag: value for tag, value in inner.items() if value is not None})
    return block


TAKEN = datetime.datetime(2024, 2, 29, 23, 59, 58)
OFFSET = datetime.timedelta(hours=5, minutes=30)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_date_is_exifs(database: support.Database, form: str) -> None:
    cases = [
        (exif("2024:02:29 23:59:58"), TAKEN, None),
        (exif("2024:02:29 23:59:58", "+05:30", "25"), TAKEN.replace(microsecond=250_000), OFFSET),
        (exif("2024:02:29 23:59:58", "-05:30"), TAKEN, -OFFSET),
        (exif("2024:02:29 23:59:58", "   :  "), TAKEN, None),
        (exif("0000:00:00 00:00:00", "+05:30"), None, None),
        (exif("2023:02:29 23:59:58"), None, None),
        (exif(None), None, None),
    ]
    with database.connect() as db:
        for block, taken, offset in cases:
            file = io.BytesIO()
            # Pillow omits the date from a TIFF if it gets the object instead of bytes.
            Image.new("RGB", (30, 20), "teal").save(file, form, exif=block.tobytes())
            query = "SELECT bits, taken, taken_offset FROM clip_image_info(%s)"
            assert db.execute(query, (file.getvalue(),)).fetchall() == [(8, taken, None if taken is None else offset)]


def test_the_recipe_for_dates_takes_every_file(database: support.Database) -> None:
    """docs/how-to/answers.md: a broken file has no date, and an error that doesn't concern the file is still raised."""
    page = (support.ROOT / "docs" / "how-to" / "answers.md").read_text(encoding="utf-8")
    recipe = page[page.index("CREATE FUNCTION taken_at") : page.index("CREATE TABLE upload")]
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(file, "JPEG", exif=exif("2024:02:29 23:59:58").tobytes())
    dated = file.getvalue()
    with database.connect() as db:
        db.execute(recipe)
        db.execute(
            "CREATE TABLE upload (id int, data bytea, taken timestamp GENERATED ALWAYS AS (taken_at(data)) STORED)"
        )
        for number, data in enumerate((dated, dated[:20], b"", b"not an image", dated[:-9], None)):
            db.execute("INSERT INTO upload VALUES (%s, %s)", (number, data))
        # The header of a truncated file still has the date.
        wanted = [TAKEN, None, None, None, TAKEN, None]
        assert [taken for (taken,) in db.execute("SELECT taken FROM upload ORDER BY id")] == wanted
        db.execute("DROP TABLE upload; DROP FUNCTION taken_at")


def test_bits_are_the_files(database: support.Database) -> None:
    with database.connect() as db:
        for name, bits in [("png_grey1.png", 1), ("png_rgb16.png", 16), ("tiff_grey12.tif", 12), ("jpeg_420.jpg", 8)]:
            query = "SELECT bits FROM clip_image_info(%s)"
            assert db.execute(query, ((CORPUS / name).read_bytes(),)).fetchall() == [(bits,)]


@pytest.mark.parametrize("limit", ["max_image_pixels", "max_image_bytes"])
def test_image_info_ignores_limits(database: support.Database, limit: str) -> None:
    data = (IMAGES / "cat.png").read_bytes()
    with database.connect() as db:
        db.execute("SELECT clip_version()")
        db.execute(f"SET clip_search.{limit} = 1")
        assert info(db, data)[:3] == ("PNG", 150, 97)
        assert support.raised_error(db, "SELECT clip_embed_image(%s)", data)[0] == "54000"
