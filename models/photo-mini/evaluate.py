#!/usr/bin/env python3
"""Measure photo-mini (or another directory of the same layout) on photos of scikit-image and scikit-learn.

    evaluate.py [MODEL_DIR] [--stamps DIR]

Prints how often the right photo comes first for 21 text queries, how close altered copies stay to their
original, how close different photos come, and the time of one image and one text on one thread. The photos
come out of the two pinned wheels, which are fetched once. Needs the packages of
tests/fixtures/requirements.txt. It is a quick check on 15 photos; README.md has the figures of larger sets.

With --stamps it ranks the labelled photographs of Debian's tuxpaint-stamps-default by their own labels
instead: DIR is usr/share/tuxpaint/stamps of the unpacked package (GPL-2: read from there, never copied).
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from PIL import Image, ImageEnhance, ImageOps
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import packages

CLUSTER_THRESHOLD = 0.82  # clip_search.cluster_threshold's default
ROUNDS = 10  # of each timing

# Photos whose subject is similar to an ImageNet class
KNOWN = {
    "chelsea.png": ["sleepy striped house cat", "a kitten's face"],
    "coffee.png": ["a cup of coffee", "hot drink on a table"],
    "rocket.jpg": ["a space rocket launch", "missile on the launch pad"],
    "motorcycle_left.png": ["a motorbike in a garage", "two wheeled vehicle"],
    "clock_motion.png": ["a clock on the wall", "what time is it"],
    "china.jpg": ["an asian temple", "ancient palace"],
    "flower.jpg": ["a flower in bloom"],
    "brick.png": ["a brick wall"],
}
# Photos whose subject is similar to no ImageNet class
UNKNOWN = {
    "astronaut.png": ["an astronaut in an orange space suit"],
    "grass.png": ["green grass lawn"],
    "moon.png": ["the surface of the moon"],
    "coins.png": ["ancient coins"],
    "hubble_deep_field.jpg": ["galaxies in deep space"],
    "retina.jpg": ["medical image of an eye"],
    "page.png": ["a page of printed text"],
}
SCIKIT_LEARN_PHOTOS = {"china.jpg", "flower.jpg"}


class Model:
    """Both towers, one thread each."""

    def __init__(self, directory: pathlib.Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.vision, self.text = (
            onnxruntime.InferenceSession(directory / "onnx" / f"{tower}_model.onnx", options)
            for tower in ("vision", "text")
        )
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.settings = json.loads((directory / "preprocessor_config.json").read_text())

    def embed_image(self, image: Image.Image) -> np.ndarray:
        edge, crop = self.settings["size"]["shortest_edge"], self.settings["crop_size"]["height"]
        width, height = image.size
        scaled = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
        left, top = (scaled[0] - crop) // 2, (scaled[1] - crop) // 2
        image = image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop))
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - self.settings["image_mean"]) / self.settings["image_std"]
        pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
        return unit(self.vision.run(None, {"pixel_values": pixels})[0][0])

    def embed_text(self, text: str) -> np.ndarray:
        ids = np.array([self.tokenizer.encode(text).ids], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        wanted = {entry.name for entry in self.text.get_inputs()}
        return unit(self.text.run(None, {k: v for k, v in inputs.items() if k in wanted})[0][0])


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def load(name: str) -> Image.Image:
    package, folder = packages.SCIKIT_IMAGE, "skimage/data"
    if name in SCIKIT_LEARN_PHOTOS:
        package, folder = packages.SCIKIT_LEARN, "sklearn/datasets/images"
    return Image.open(io.BytesIO(packages.member(package.fetch(), f"{folder}/{name}"))).convert("RGB")


def altered(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    return {
        "mirrored": ImageOps.mirror(image),
        "cropped": image.crop((width // 16, height // 16, width * 15 // 16, height * 15 // 16)),
        "brighter": ImageEnhance.Brightness(image).enhance(1.25),
        "halved": image.resize((width // 2, height // 2)),
    }


def ranks(model: Model, queries: dict[str, list[str]], photos: dict[str, np.ndarray]) -> list[int]:
    """For each query, how many photos come before the right one."""
    found = []
    for right, texts in queries.items():
        for text in texts:
            query = model.embed_text(text)
            found.append(sum(row @ query > photos[right] @ query for row in photos.values()))
    return found


def report_ranks(title: str, found: list[int]) -> None:
    count = len(found)
    first, third = sum(r == 0 for r in found), sum(r < 3 for r in found)
    print(f"{title}: right photo first {first}/{count}, among the first three {third}/{count}")


def cut_out(path: pathlib.Path) -> Image.Image | None:
    """A stamp on white; None if too little of it is opaque to recognise anything."""
    image = Image.open(path).convert("RGBA")
    alpha = image.getchannel("A")
    if min(image.size) < 80 or (np.asarray(alpha) > 128).sum() < 500:
        return None
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def report_stamps(model: Model, directory: pathlib.Path) -> None:
    """Recall of pictures by text; omits drawings, symbols, flags, mirrored copies and tiny pictures."""
    images, texts = [], []
    for path in sorted(directory.rglob("*.png")):
        name, label_file = str(path.relative_to(directory)), path.with_suffix(".txt")
        drawn = any(word in name for word in ("cartoon", "mirror", "roadsigns", "flags"))
        if name.startswith("symbols") or drawn or not label_file.exists():
            continue
        label = label_file.read_text(errors="ignore").split("\n")[0].strip()
        image = cut_out(path) if label and not label.startswith("<") else None
        if image:
            images.append(model.embed_image(image))
            texts.append(model.embed_text(label))
    if not images:
        sys.exit(f"evaluate.py: no labelled stamps in {directory}: give usr/share/tuxpaint/stamps of the package")
    scores = np.stack(texts) @ np.stack(images).T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    recall = ", ".join(f"R@{k} {(rank < k).mean():.3f}" for k in (1, 5, 10))
    print(f"{len(images)} pictures: {recall}, mean reciprocal rank {(1 / (rank + 1)).mean():.3f}")


def milliseconds(work: Callable[[], object]) -> float:
    work()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    return (time.perf_counter() - began) / ROUNDS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=pathlib.Path, default=HERE)
    parser.add_argument("--stamps", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    model = Model(arguments.model)
    if arguments.stamps:
        report_stamps(model, arguments.stamps)
        return
    pictures = {name: load(name) for name in (*KNOWN, *UNKNOWN)}
    embedded = {name: model.embed_image(picture) for name, picture in pictures.items()}

    known = {name: embedded[name] for name in KNOWN}
    report_ranks(f"{len(known)} photos of things ImageNet names", ranks(model, KNOWN, known))
    report_ranks(f"all {len(embedded)} photos", ranks(model, KNOWN | UNKNOWN, embedded))

    copies = {
        (name, change): float(embedded[name] @ model.embed_image(copy))
        for name, picture in pictures.items()
        for change, copy in altered(picture).items()
    }
    worst = min(copies, key=copies.get)
    below = sum(value < CLUSTER_THRESHOLD for value in copies.values())
    print(
        f"altered copies: lowest cosine {copies[worst]:.3f} ({worst[0]}, {worst[1]}), "
        f"{below}/{len(copies)} below {CLUSTER_THRESHOLD}"
    )
    rows = np.stack(list(embedded.values()))
    print(f"two different photos: highest cosine {(rows @ rows.T)[np.triu_indices(len(rows), 1)].max():.3f}")
    image = milliseconds(lambda: model.embed_image(pictures["coffee.png"]))
    text = milliseconds(lambda: model.embed_text("a cup of coffee"))
    print(f"one thread: image {image:.0f} ms, text {text:.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except (packages.PackageError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
