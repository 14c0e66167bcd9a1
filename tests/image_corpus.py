#!/usr/bin/env python3
"""675 image files of every kind that phones, cameras, scanners and web sites make, each embedded by clip-embed and
compared with the embedding of the same picture as a PNG with the reference decoder's pixels.

  make image-corpus        runs it in a virtual environment of its own
  tests/image_corpus.py [--clip-embed PROGRAM] [--model NAME] [--keep FOLDER]

The reference decoders are Pillow 13 with its AVIF (libavif), pillow-heif (libheif), pillow-jxl-plugin (libjxl) and tifffile.
A cosine below 0.9995 is a failure; for lossless files, a cosine below 0.99999. The photos are the gallery's.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import pathlib
import subprocess
import sys
import tempfile

import imagecodecs
import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401, which registers the format
import tifffile
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = ("cat", "dahlia", "pagoda", "raccoon", "rocket")
LEAST, LEAST_LOSSLESS = 0.9995, 0.99999

Sort = tuple[str, str, bytes, Image.Image, bool]


def saved(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + bytes(7)


def on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return on_white(ImageOps.exif_transpose(image))


def clear(image: Image.Image) -> Image.Image:
    image = image.copy()
    row = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.broadcast_to(row, (image.height, image.width)).copy()))
    return image


def wide(image: Image.Image, bits: int = 16) -> np.ndarray:
    return (np.asarray(image).astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)


def heic(p: Image.Image):
    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}

    def of(image: Image.Image, **options) -> tuple[bytes, Image.Image]:
        out = io.BytesIO()
        pillow_heif.from_pillow(image).save(out, format="HEIF", **options)
        read = pillow_heif.open_heif(io.BytesIO(out.getvalue()), convert_hdr_to_8bit=True)
        return out.getvalue(), on_white(ImageOps.exif_transpose(read.to_pillow()))

    for quality in (40, 70, 90):
        for chroma in (420, 422, 444):
            yield f"q{quality}-{chroma}", *of(p, quality=quality, chroma=chroma), False
    for orientation in range(1, 9):
        yield f"turned{orientation}", *of(p, quality=80, exif=exif(orientation)), False
    yield "lossless", *of(p, **lossless), True
    yield "grey", *of(p.convert("L"), quality=80), False
    yield "alpha", *of(clear(p), quality=80), False
    for size in ((251, 167), (63, 47), (33, 90)):
        yield f"odd{size[0]}", *of(p.resize(size), quality=90), False
    yield "odd-lossless", *of(p.resize((251, 167)), **lossless), True
    yield "limited", *of(p, quality=80, full_range_flag=0), False
    yield "bt709", *of(p, quality=80, matrix_coefficients=1), False
    yield "turned6-422", *of(p, quality=80, chroma=422, exif=exif(6)), False
    for orientation in (6, 7):
        yield f"odd-turned{orientation}", *of(p.resize((251, 167)), quality=90, exif=exif(orientation)), False
    deep = {"": (p, {}), "-422": (p, {"chroma": 422}), "-444": (p, {"chroma": 444}), "-alpha": (clear(p), {})}
    for name, (image, options) in deep.items():
        out = io.BytesIO()
        raw = pillow_heif.from_bytes(mode=f"{image.mode};16", size=image.size, data=wide(image).tobytes())
        raw.save(out, quality=80, **options)
        read = pillow_heif.open_heif(io.BytesIO(out.getvalue()), convert_hdr_to_8bit=True)
        yield f"bits10{name}", out.getvalue(), on_white(read.to_pillow()), False


def avif(p: Image.Image):
    for quality in (40, 80):
        for chroma in ("4:2:0", "4:2:2", "4:4:4"):
            data = saved(p, "AVIF", quality=quality, subsampling=chroma)
            yield f"q{quality}-{chroma.replace(':', '')}", data, pillow(data), False
    sorts = {
        "limited": saved(p, "AVIF", quality=80, range="limited"),
        "grey": saved(p.convert("L"), "AVIF", quality=80, subsampling="4:0:0"),
        "alpha": saved(clear(p), "AVIF", quality=80),
        "associated": saved(clear(p), "AVIF", quality=80, alpha_premultiplied=True),
        "odd": saved(p.resize((251, 167)), "AVIF", quality=80),
        "sequence": saved(p, "AVIF", quality=80, save_all=True, append_images=[ImageOps.invert(p)]),
        "tiles": saved(p.resize((640, 480)), "AVIF", quality=60, tile_rows=1, tile_cols=1),
    }
    for orientation in range(2, 9):
        sorts[f"turned{orientation}"] = saved(p, "AVIF", quality=80, exif=exif(orientation))
    for bits in (10, 12):
        sorts[f"bits{bits}"] = imagecodecs.avif_encode(wide(p, bits), level=85, bitspersample=bits)
        options = {"level": 85, "bitspersample": bits, "pixelformat": "yuv420" if bits == 10 else "yuv422"}
        sorts[f"bits{bits}-{options['pixelformat']}"] = imagecodecs.avif_encode(wide(p, bits), **options)
    sorts["bits10-alpha"] = imagecodecs.avif_encode(wide(clear(p), 10), level=85, bitspersample=10)
    for name, data in sorts.items():
        yield name, data, pillow(data), False
    yield "lossless", imagecodecs.avif_encode(np.asarray(p), level=100), p, True


def jxl(p: Image.Image):
    for quality in (50, 75, 90):
        for effort in (3, 7):
            data = saved(p, "JXL", quality=quality, effort=effort)
            yield f"q{quality}-e{effort}", data, pillow(data), False
    for effort in (1, 3, 7):
        yield f"lossless-e{effort}", saved(p, "JXL", lossless=True, effort=effort), p, True
    yield "grey", saved(p.convert("L"), "JXL", lossless=True), p.convert("L").convert("RGB"), True
    yield "alpha", saved(clear(p), "JXL", lossless=True), on_white(clear(p)), True
    yield "bits16", imagecodecs.jpegxl_encode(wide(p), lossless=True), p, True
    data = saved(p.resize((251, 167)), "JXL", quality=90)
    yield "odd", data, pillow(data), False
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"exif": exif(6)}, {"exif": exif(3)}):
        jpeg = saved(p, "JPEG", quality=85, **options)
        restored = imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True)
        yield f"jpeg{len(jpeg)}", restored, pillow(jpeg), True


def tiff(p: Image.Image):
    pixels = np.asarray(p)

    def of(array: np.ndarray, **options) -> bytes:
        out = io.BytesIO()
        tifffile.imwrite(out, array, metadata=None, **options)
        return out.getvalue()

    for compression in (None, "lzw", "zlib", "zstd", "packbits"):
        name = compression or "raw"
        yield f"{name}", of(pixels, photometric="rgb", compression=compression), p, True
        yield f"{name}-tiled", of(pixels, photometric="rgb", compression=compression, tile=(64, 80)), p, True
        planes = np.moveaxis(pixels, 2, 0)
        yield f"{name}-planar", of(planes, photometric="rgb", planarconfig="separate", compression=compression), p, True
        yield f"{name}-16", of(wide(p), photometric="rgb", compression=compression), p, True
        yield f"{name}-grey", of(pixels[..., 1], compression=compression), p.getchannel(1).convert("RGB"), True
    for compression in ("lzw", "zlib", "zstd"):
        yield f"{compression}-predictor", of(pixels, photometric="rgb", compression=compression, predictor=2), p, True
        yield (
            f"{compression}-big",
            of(pixels, photometric="rgb", compression=compression, bigtiff=True, byteorder=">"),
            p,
            True,
        )
    yield "float", of((pixels / 255).astype(np.float32), photometric="rgb", compression="zlib", predictor=3), p, True
    data = of(pixels, photometric="rgb", compression="jpeg", compressionargs={"level": 90})
    yield "jpeg", data, Image.fromarray(tifffile.imread(io.BytesIO(data))), False
    alpha = np.asarray(clear(p))
    yield (
        "alpha",
        of(alpha, photometric="rgb", compression="zstd", extrasamples=["unassalpha"]),
        on_white(clear(p)),
        True,
    )
    black_and_white = p.convert("1")
    for compression in ("group3", "group4", "tiff_lzw"):
        data = saved(black_and_white, "TIFF", compression=compression)
        yield compression, data, black_and_white.convert("RGB"), True
    yield "palette", saved(p.quantize(64), "TIFF"), p.quantize(64).convert("RGB"), True
    data = saved(p.convert("CMYK"), "TIFF")
    yield "cmyk", data, pillow(data), True


def other(p: Image.Image):
    for quality in (50, 90):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                data = saved(p, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
                yield f"jpeg-q{quality}-{subsampling}{progressive:d}", data, pillow(data), True
    for name, options in {"webp": {"quality": 80}, "webp-lossless": {"lossless": True}}.items():
        data = saved(p, "WEBP", **options)
        yield name, data, pillow(data), "lossless" in name
    for name, image in {"rgb": p, "grey": p.convert("L"), "palette": p.quantize(128), "alpha": clear(p)}.items():
        data = saved(image, "PNG")
        yield f"png-{name}", data, pillow(data), True
    for form in ("GIF", "BMP"):
        data = saved(p.quantize(200) if form == "GIF" else p, form)
        yield form.lower(), data, pillow(data), True


MAKERS = {"heic": heic, "avif": avif, "jxl": jxl, "tiff": tiff, "other": other}


def make(folder: pathlib.Path) -> dict[str, tuple[str, bool]]:
    """Writes the files and their references. Returns each file's maker, and whether the file is lossless."""
    (folder / "files").mkdir(parents=True)
    (folder / "references").mkdir()
    made = {}
    for photo in PHOTOS:
        p = Image.open(ROOT / "examples" / "gallery" / "photos" / f"{photo}.jpg").convert("RGB")
        p = p.resize((400, max(1, 400 * p.height // p.width)), Image.Resampling.LANCZOS)
        for maker, sorts in MAKERS.items():
            for name, data, reference, lossless in sorts(p):
                key = f"{photo}-{maker}-{name}"
                # Every file is named .jpg: clip-embed must tell the format from the content.
                (folder / "files" / f"{key}.jpg").write_bytes(data)
                reference.convert("RGB").save(folder / "references" / f"{key}.png", compress_level=1)
                made[key] = (maker, lossless)
    return made


def embedded(program: str, options: list[str], folder: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    out = folder.with_suffix(".csv")
    done = subprocess.run([program, str(folder), "-o", str(out), *options], capture_output=True, text=True, check=False)
    # Exit status 3 means that some files were refused; the caller counts them.
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    with out.open(newline="") as file:
        rows = {
            pathlib.Path(row["key"]).stem: np.array(row["embedding"][1:-1].split(","), np.float64)
            for row in csv.DictReader(file)
        }
    return rows, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-embed", default=str(ROOT / "target" / "release" / "clip-embed"))
    parser.add_argument("--model", default="photo-mini")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for the files, which must not exist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or pathlib.Path(temporary) / "corpus"
        made = make(folder)
        options = ["-m", arguments.model, "--model-path", str(ROOT / "models"), "--exact-jpeg"]
        found, errors = embedded(arguments.clip_embed, options, folder / "files")
        expected, _ = embedded(arguments.clip_embed, options, folder / "references")
    cosines = collections.defaultdict(list)
    wrong = []
    for key, (maker, lossless) in made.items():
        if key not in found:
            wrong.append(f"{key}: refused")
            continue
        a, b = found[key], expected[key]
        cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        cosines[maker, lossless].append(cosine)
        if cosine < (LEAST_LOSSLESS if lossless else LEAST):
            wrong.append(f"{key}: {cosine:.6f}")
    for (maker, lossless), values in sorted(cosines.items()):
        kind = "without loss" if lossless else "lossy"
        print(
            f"{maker:6} {kind:12} {len(values):4} files, cosine {min(values):.6f} at least, {np.mean(values):.6f} on average"
        )
    print(f"{len(made)} files, {len(wrong)} wrong")
    if wrong:
        print("\n".join(wrong), errors, sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
