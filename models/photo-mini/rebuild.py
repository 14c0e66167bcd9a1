#!/usr/bin/env python3
"""Build photo-mini again from its pinned packages and compare it with the committed files (`make model`).

    rebuild.py [--venv DIR] [--target DIR]

Makes a virtual environment from requirements.txt (or uses the one given), fetches the wheels into
TARGET/downloads, writes TARGET/photo-mini and compares it with SHA256SUMS. Exit status 0: the same bytes. 1:
a file differs, and the report says by how much. 2: it could not be built. Takes about a minute and 150 MB of
downloads the first time.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "target"

# Prints how far apart the constants of two model files are. The environment's Python runs it, because it has onnx.
COMPARE = """
import sys, numpy, onnx
from onnx import numpy_helper
a, b = (onnx.load(path).graph for path in sys.argv[1:3])
if a.node != b.node or [c.name for c in a.initializer] != [c.name for c in b.initializer]:
    print("another graph"); sys.exit()
far, cosine = 0.0, 1.0
for x, y in zip(a.initializer, b.initializer):
    if x != y:
        x, y = (numpy_helper.to_array(t).astype(numpy.float64) for t in (x, y))
        far = max(far, float(abs(x - y).max()))
        cosine = min(cosine, float((x * y).sum() / numpy.linalg.norm(x) / numpy.linalg.norm(y)))
print(f"the same graph; constants differ by at most {far:.1e}, cosine {cosine:.12f}")
"""


def run(command: list, what: str) -> str:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"rebuild.py: {what} failed with status {done.returncode}; its message is above", file=sys.stderr)
        sys.exit(2)
    return done.stdout.strip()


def environment(venv: pathlib.Path) -> pathlib.Path:
    """The Python of `venv`. Creates the environment if it is missing, and installs the pinned requirements."""
    python = venv / "bin" / "python"
    requirements = HERE / "requirements.txt"
    stamp = venv / f"photo-mini-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    if not python.exists():
        print(f"making the virtual environment {venv}", flush=True)
        run([sys.executable, "-m", "venv", venv], "python -m venv (on Debian: apt-get install python3-venv)")
    if not stamp.exists():
        print("installing numpy, onnx, onnxruntime and tokenizers at their pinned versions", flush=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", requirements], "pip install")
        stamp.touch()
    return python


def expected_sums() -> dict[str, str]:
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if line)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=pathlib.Path, help="virtual environment (default: TARGET/venv-photo-mini)")
    parser.add_argument("--target", type=pathlib.Path, default=TARGET, help=f"default: {TARGET.name}/")
    arguments = parser.parse_args()
    python = environment(arguments.venv or arguments.target / "venv-photo-mini")
    out = arguments.target / "photo-mini"
    print(f"building {out} (about 20 seconds after the downloads)", flush=True)
    began = time.monotonic()
    run([python, HERE / "build.py", "--out", out, "--downloads", arguments.target / "downloads"], "build.py")
    print(f"built in {time.monotonic() - began:.0f} s")

    different = 0
    for name, expected in expected_sums().items():
        committed, built = HERE / name, out / name
        if hashlib.sha256(committed.read_bytes()).hexdigest() != expected:
            print(f"  CHANGED  {name}: the committed file is not the one SHA256SUMS names; restore it with git")
            different += 1
        elif hashlib.sha256(built.read_bytes()).hexdigest() == expected:
            print(f"  same     {name}")
        else:
            how = f"compare it with {built}"
            if name.endswith(".onnx"):
                how = run([python, "-c", COMPARE, committed, built], "the comparison")
            print(f"  DIFFERS  {name}: {how}")
            different += 1
    if different:
        print(f"photo-mini: {different} of {len(expected_sums())} files differ from the committed ones.")
        print("With the same graph and a cosine of 1.000000, this machine's matrix kernels round differently")
        print("(the class embeddings are computed here): the model is as good. Anything else is a fault.")
        return 1
    print("photo-mini: every file has the same bytes as the committed one.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print(f"rebuild.py: {error}", file=sys.stderr)
        sys.exit(2)
