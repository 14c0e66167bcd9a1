"""Embeddings as Python computes them from a model's own files: Pillow, the package tokenizers and onnxruntime.

Written from the published behaviour of CLIP's image processor and tokenizer, and from none of the extension's code, so
that agreement is evidence.
"""

from __future__ import annotations

import functools
import io
import json
import pathlib

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def _session(path: pathlib.Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def unit(row: np.ndarray) -> np.ndarray:
    row = np.asarray(row, np.float64)
    return row / np.linalg.norm(row)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(unit(one) @ unit(other))


@functools.cache
def _resized(file: bytes, edge: int, crop: int) -> np.ndarray:
    """The (crop, crop, 3) bytes of an image file. Cached, since Pillow takes seconds for an extreme aspect ratio."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(edge * long / short)
    size = (edge, longer) if width <= height else (longer, edge)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


class Reference:
    """One model directory in the Hugging Face layout. Each tower is loaded on first use."""

    def __init__(self, directory: pathlib.Path, context_length: int):
        self.directory = directory
        settings = json.loads((directory / "preprocessor_config.json").read_text())
        self.mean, self.deviation = np.array(settings["image_mean"]), np.array(settings["image_std"])
        self.rescale = settings.get("rescale_factor", 1 / 255)
        size, crop = settings["size"], settings["crop_size"]
        self.edge = size["shortest_edge"] if isinstance(size, dict) else size
        self.crop = crop["height"] if isinstance(crop, dict) else crop
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(context_length)  # before the special tokens are added: the end token stays
        self._towers: dict[str, onnxruntime.InferenceSession] = {}

    def tower(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._towers:
            self._towers[name] = _session(self.directory / "onnx" / f"{name}_model.onnx")
        return self._towers[name]

    def pixels(self, file: bytes) -> np.ndarray:
        """The (224, 224, 3) bytes that the vision tower's input is computed from.

        Upright by EXIF, RGB, shortest edge by antialiased bicubic with the long edge truncated to an
        integer, then the central square with offsets rounded down.
        """
        return _resized(file, self.edge, self.crop)

    def image(self, file: bytes) -> np.ndarray:
        scaled = (self.pixels(file).astype(np.float64) * self.rescale - self.mean) / self.deviation
        values = scaled.transpose(2, 0, 1)[None].astype(np.float32)
        return unit(self.tower("vision").run(["image_embeds"], {"pixel_values": values})[0][0])

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def text(self, text: str) -> np.ndarray:
        ids = np.array([self.ids(text)], np.int64)
        tower = self.tower("text")
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        wanted = {port.name for port in tower.get_inputs()}
        return unit(tower.run(["text_embeds"], {k: v for k, v in inputs.items() if k in wanted})[0][0])
