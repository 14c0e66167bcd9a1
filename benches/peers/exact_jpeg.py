#!/usr/bin/env python3
"""Measures how much the embeddings of JPEGs that are decoded smaller differ from those of the whole pictures.

  python benches/peers/exact_jpeg.py CLIP_EMBED [MODEL] [RESULT.json]

CLIP_EMBED is the program of this repository, built with --release; ORT_DYLIB_PATH names ONNX Runtime's library. The
photos are the 44 of 1 to 12 megapixels that photos.py makes: enlarged-*, middle-* and mosaic-*. RESULT.json has the
cosine of each. Needs Pillow 13.0.0, numpy 2.4.6, scikit-image 0.26.0 and scikit-learn 1.9.1.
"""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import photos

ROOT = pathlib.Path(__file__).resolve().parents[2]


def embedded(program: str, model: str, folder: pathlib.Path, out: pathlib.Path, *options: str) -> dict[str, np.ndarray]:
    command = [program, str(folder), "-o", str(out), "-m", model, "--model-path", str(ROOT / "models"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with out.open(newline="") as file:
        return {
            pathlib.Path(row["key"]).stem: np.array(row["embedding"][1:-1].split(","), np.float64)
            for row in csv.DictReader(file)
        }


def main() -> None:
    program = sys.argv[1]
    model = sys.argv[2] if len(sys.argv) > 2 else "photo-mini"
    result = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "benches" / "results" / "exact_jpeg.json"
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "photos"
        photos.write(folder)
        for small in folder.glob("small-*"):
            small.unlink()
        smaller = embedded(program, model, folder, pathlib.Path(temporary) / "smaller.csv")
        exact = embedded(program, model, folder, pathlib.Path(temporary) / "exact.csv", "--exact-jpeg")
    cosines = {}
    for name, a in sorted(smaller.items()):
        b = exact[name]
        cosines[name] = round(float(a @ b / np.sqrt((a @ a) * (b @ b))), 6)
    values = list(cosines.values())
    print(f"{len(values)} photos, cosine {np.mean(values):.5f} on average, {min(values):.5f} at least ({model})")
    result.write_text(
        json.dumps(
            {
                "model": model,
                "photos": len(values),
                "mean": round(float(np.mean(values)), 6),
                "least": min(values),
                "cosine": cosines,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
