#!/usr/bin/env python3
"""Compares how clip_search reads the images of public test suites with Pillow 13 and tifffile.

  git clone https://github.com/image-rs/image-tiff; git clone https://github.com/image-rs/image
  make image-suites SUITES="image-tiff image"

Every image file counts. It is
- equal: no sample differs by more than 2 of 255 from Pillow's, or from tifffile's where Pillow can't read it;
- refused by name: the error names the unsupported feature, or the limit that the file exceeds;
- broken for both: neither clip_search nor a reference reads it;
- read here alone: only clip_search reads it;
- other: listed at the end.
"""

from __future__ import annotations

import collections
import io
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401, which registers the format
import tifffile
from PIL import Image, ImageFile, ImageOps

# Formats that clip_search reads, and formats that it refuses by name.
SUFFIXES = {
    ".avif",
    ".bmp",
    ".exr",
    ".ff",
    ".gif",
    ".hdr",
    ".heic",
    ".heif",
    ".hif",
    ".ico",
    ".jpeg",
    ".jpg",
    ".jxl",
    ".pbm",
    ".png",
    ".qoi",
    ".tga",
    ".tif",
    ".tiff",
    ".webp",
}
MOST = 2
Image.MAX_IMAGE_PIXELS = 100_000_000
pillow_heif.register_heif_opener()


def on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return (array.astype(np.float64) / (2 ** (8 * array.dtype.itemsize) - 1) * 255).round().astype(np.uint8)
    return array


def by_pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode.startswith("I;16") and image.format != "TIFF":
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise ValueError("Pillow clips these")
    return on_white(ImageOps.exif_transpose(image))


def by_tifffile(data: bytes) -> Image.Image:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        array = page.asarray()
        if page.bitspersample == 8 and page.sampleformat == 1:
            raise ValueError("Pillow reads these")
        channels = page.samplesperpixel
        size = (page.imagelength, page.imagewidth)
        planes = page.planarconfig == 2 and channels > 1
        array = array.reshape((channels, *size) if planes else (*size, channels))
        if planes:
            array = np.moveaxis(array, 0, -1)
        if page.photometric == 5 and array.dtype == np.uint16 and channels == 4:
            return Image.fromarray((array >> 8).astype(np.uint8).copy(), "CMYK").convert("RGB")
        if page.photometric not in (0, 1, 2):
            raise ValueError("colours that tifffile doesn't convert")
        if array.dtype.kind == "u" and page.bitspersample not in (8, 16, 32, 64):
            array = (array.astype(np.float64) / (2**page.bitspersample - 1) * 255).round().astype(np.uint8)
        array = eight_bits(array)
        if page.photometric == 0:
            array = 255 - array
        if array.dtype != np.uint8 or channels > 4:
            raise ValueError("samples of another sort")
        if channels > 1 and page.extrasamples[:1] == (1,):
            raise ValueError("premultiplied alpha")
        if channels in (2, 4) and page.extrasamples[:1] != (2,):
            array = array[..., : channels - 1]
        array = array[..., 0] if array.shape[2] == 1 else array
        return on_white(Image.fromarray(array))


def reference(data: bytes, suffix: str) -> tuple[Image.Image | None, str]:
    # Pillow misreads some planar TIFFs of more than eight bits.
    readers = [by_tifffile, by_pillow] if suffix in (".tif", ".tiff") else [by_pillow]
    reasons = []
    for read in readers:
        try:
            image = read(data)
            if 0 in image.size:
                raise ValueError("no pixels")
            return image, ""
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
    return None, "; ".join(reasons)


def main() -> None:
    program, *suites = sys.argv[1:]
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    for suite in map(pathlib.Path, suites):
        paths = sorted(path for path in suite.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            (folder / "files").mkdir()
            (folder / "references").mkdir()
            why = {}
            for number, path in enumerate(paths):
                data = path.read_bytes()
                (folder / "files" / f"{number:05}.bin").write_bytes(data)
                image, why[number] = reference(data, path.suffix.lower())
                if image is not None:
                    image.save(folder / "references" / f"{number:05}.png", compress_level=1)
            done = subprocess.run(
                [program, str(folder / "files"), str(folder / "references")], check=True, capture_output=True, text=True
            )
        counts: collections.Counter[str] = collections.Counter()
        others = []
        for line in done.stdout.splitlines():
            number, _, found = line.partition(" ")
            path = paths[int(number)].relative_to(suite)
            has_reference = not why[int(number)]
            if "is refused" in found:
                by_name = "not supported" in found or "too much" in found or "too many" in found
                kind = "refused by name" if by_name else "broken for both"
                if has_reference and not by_name:
                    kind = "other"
            elif not has_reference:
                kind = "read here alone"
            else:
                numbers = found.split()
                kind = "equal" if len(numbers) == 2 and int(numbers[1]) <= MOST else "other"
            counts[kind] += 1
            if kind in ("other", "refused by name"):
                others.append(f"{kind}: {path}: {found}")
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        print(f"{suite.name}: {len(paths)} files: {listed}")
        print("\n".join(f"  {other}" for other in sorted(others)))


if __name__ == "__main__":
    main()
