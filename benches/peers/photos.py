#!/usr/bin/env python3
"""Makes photos for measurements, as JPEG files: photos.py OUT

Sources are the photos inside the packages scikit-image and scikit-learn, and those of examples/gallery. None of them
has more than two megapixels, so the large ones are made:

    enlarged-*   one photo enlarged (Lanczos) to 12 megapixels, with noise of a sensor (deviation 4), quality 92
    mosaic-*     twelve megapixels of photos side by side at their own size: detail down to the pixel
    middle-*     one photo brought to a shorter side of 900 to 2300 pixels, with the same noise
    small-*      the photo at a shorter side of 224
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
SCIKIT_IMAGE = [
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
]  # fmt: skip
SCIKIT_LEARN = ["china.jpg", "flower.jpg"]
GALLERY = ["raccoon.jpg", "staircase.jpg"]
MEGAPIXELS = 12e6
NOISE = 4


def sources() -> dict[str, Image.Image]:
    import skimage
    import sklearn

    folders = [
        (pathlib.Path(skimage.__file__).parent / "data", SCIKIT_IMAGE),
        (pathlib.Path(sklearn.__file__).parent / "datasets" / "images", SCIKIT_LEARN),
        (REPOSITORY / "examples" / "gallery" / "photos", GALLERY),
    ]
    return {
        pathlib.Path(name).stem: Image.open(folder / name).convert("RGB") for folder, names in folders for name in names
    }


def enlarged(image: Image.Image, factor: float, random: np.random.Generator) -> Image.Image:
    size = [max(1, round(side * factor)) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    pixels = pixels + random.normal(0, NOISE, pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def mosaic(images: list[Image.Image], random: np.random.Generator) -> Image.Image:
    """4000 × 3000 pixels, filled with tiles of 500 × 500."""
    canvas = Image.new("RGB", (4000, 3000))
    for x in range(0, 4000, 500):
        for y in range(0, 3000, 500):
            tile = ImageOps.fit(images[random.integers(len(images))], (500, 500))
            canvas.paste(tile, (x, y))
    return canvas


def write(out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    photos = sources()
    for number, (name, image) in enumerate(photos.items()):
        short = min(image.size)
        large = enlarged(image, (MEGAPIXELS / (image.width * image.height)) ** 0.5, random)
        large.save(out / f"enlarged-{name}.jpg", quality=92)
        middle = enlarged(image, (900 + 1400 * number / len(photos)) / short, random)
        middle.save(out / f"middle-{name}.jpg", quality=90, progressive=number % 3 == 0)
        image.resize([round(side * 224 / short) for side in image.size], Image.Resampling.LANCZOS).save(
            out / f"small-{name}.jpg", quality=90
        )
    for number in range(6):
        mosaic(list(photos.values()), random).save(out / f"mosaic-{number}.jpg", quality=92)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(pathlib.Path(sys.argv[1]))
