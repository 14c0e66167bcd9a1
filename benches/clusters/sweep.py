#!/usr/bin/env python3
"""Compare the clustering of a whole collection with scikit-learn's, on embeddings of photos and on random sets.

    cargo build --release -p clip --example recluster
    python benches/clusters/sweep.py [--photos N] [--sets N] [--seed N]

Photos are those of the gallery and of the packages scikit-image and scikit-learn. Each is cut, mirrored, brightened,
blurred, turned and compressed at random, and embedded with photo-mini by onnxruntime, from pixels that Pillow makes as
in tests/reference.py. Tests both linkages and many thresholds, and the embeddings in a second order.

Prints the adjusted Rand index; status 1 if one is not 1. Sets in which scikit-learn has a merge within 1e-9 of
the threshold are drawn again. Needs numpy, scikit-learn, scikit-image, Pillow, onnxruntime and tokenizers.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import sys

import numpy as np
import skimage
import sklearn
from data import unit
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from recluster import ROOT, ours
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(ROOT / "tests"))
from reference import Reference

THRESHOLDS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.85, 0.9, 0.95, 0.98, 0.99]
SMALLEST = 150  # pixels an edge: smaller pictures are icons and test charts


def originals() -> list[Image.Image]:
    gallery = ROOT / "examples/gallery/photos"
    files = [f for f in sorted(gallery.glob("*.jpg")) if not f.stem.endswith(("-cropped", "-mirrored"))]
    for package, folder in ((skimage, "data"), (sklearn, "datasets/images")):
        found = pathlib.Path(package.__file__).parent.joinpath(folder).iterdir()
        files += sorted(f for f in found if f.suffix in (".jpg", ".jpeg", ".png"))
    images = [Image.open(file).convert("RGB") for file in files]
    return [image for image in images if min(image.size) >= SMALLEST]


def variant(image: Image.Image, rng: np.random.Generator) -> bytes:
    kept = rng.uniform(0.35, 1.0)
    width, height = (int(kept * side) for side in image.size)
    left, top = (int(rng.uniform(0, whole - part + 1)) for whole, part in zip(image.size, (width, height)))
    image = image.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < 0.5:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5))
    if rng.random() < 0.3:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0, 2))
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    if rng.random() < 0.2:
        image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(30, 95)))
    return file.getvalue()


def embeddings(count: int, rng: np.random.Generator) -> np.ndarray:
    images = originals()
    model = Reference(ROOT / "models/photo-mini", 32)
    rows = [model.image(variant(images[i % len(images)], rng)) for i in range(count)]
    print(f"{count} variants of {len(images)} pictures")
    return unit(np.array(rows))


def random_set(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    n = int(np.exp(rng.uniform(np.log(3), np.log(2000))))
    d = int(rng.choice([2, 3, 5, 8, 16, 64, 128, 512, 768]))
    noise = rng.normal(size=(n, d))
    kind = rng.choice(["random", "blobs", "walk", "common", "clique", "repeats", "flat", "unbalanced"])
    centres = rng.normal(size=(int(rng.integers(1, 60)), d))
    if kind == "blobs":
        noise = centres[rng.integers(0, len(centres), n)] + rng.uniform(0.05, 1.2) * noise
    elif kind == "unbalanced":
        noise = centres[(rng.random(n) ** 4 * len(centres)).astype(int)] + rng.uniform(0.05, 1.2) * noise
    elif kind == "walk":
        noise = np.cumsum(rng.uniform(0.05, 0.5) * noise, 0) + rng.normal(size=d)
    elif kind == "common":
        noise = rng.normal(size=d) + centres[rng.integers(0, len(centres), n)] + rng.uniform(0.2, 0.8) * noise
    elif kind == "clique":
        noise = rng.normal(size=d) + 10 ** rng.uniform(-4, -1) * noise
    elif kind == "repeats":
        noise = noise[rng.integers(0, max(2, n // 5), n)]
    elif kind == "flat":
        noise = rng.normal(size=(n, min(d, 4))) @ rng.normal(size=(min(d, 4), d)) + 0.1 * noise
    return str(kind), unit(noise)


def agreement(rows: np.ndarray, threshold: float, linkage: str) -> tuple[float, int] | None:
    """Adjusted Rand index and number of clusters; None if the result depends on a tie."""
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage=linkage, distance_threshold=1 - threshold
    ).fit(rows.astype(np.float64))
    if np.abs(model.distances_ - (1 - threshold)).min() < 1e-9:
        return None
    labels, figures = ours(rows, threshold, linkage)
    return float(adjusted_rand_score(model.labels_, labels)), figures["clusters"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2400)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    worst = 1.0
    if arguments.photos:
        rows = embeddings(arguments.photos, rng)
        sample = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        print(f"cosines: mean {sample.mean():.3f}, standard deviation {sample.std():.3f}")
        print("| threshold | average: clusters | ARI | shuffled | single: clusters | ARI | shuffled |")
        print("|---|---|---|---|---|---|---|")
        for threshold in THRESHOLDS:
            cells = [f"{threshold}"]
            for linkage in ("average", "single"):
                first = agreement(rows, threshold, linkage)
                second = agreement(rng.permutation(rows), threshold, linkage)
                if first is None or second is None:
                    cells += ["", "a tie", ""]
                    continue
                cells += [str(first[1]), repr(first[0]), repr(second[0])]
                worst = min(worst, first[0], second[0])
            print("| " + " | ".join(cells) + " |", flush=True)
    done, drawn, failed = 0, 0, 0
    while done < arguments.sets:
        drawn += 1
        kind, rows = random_set(rng)
        threshold = float(rng.choice([-0.5, 0.0, 0.1, 0.3, *THRESHOLDS, 0.999, 0.9999]))
        linkage = str(rng.choice(["average", "single"]))
        found = agreement(rows, threshold, linkage)
        if found is None:
            continue
        done += 1
        if found[0] != 1.0:
            failed += 1
            print(f"{kind}, {rows.shape}, {threshold}, {linkage}: ARI {found[0]!r}, {found[1]} clusters")
        worst = min(worst, found[0])
    print(f"random sets: {done - failed} of {done} agree, {drawn - done} drawn again for a tie; lowest ARI {worst!r}")
    return int(worst != 1.0)


if __name__ == "__main__":
    sys.exit(main())
