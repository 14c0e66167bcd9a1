#!/usr/bin/env python3
"""Make an int8 variant of a model directory: onnx/*_model_quantized.onnx beside onnx/*_model.onnx.

    quantize.py MODEL [--photos JPEG …] [--texts TEXT …] [--reduce-range]

Dynamic quantisation by onnxruntime: the weights of matrix products become int8 with a scale for each output channel;
activations are quantised at run time. Convolutions stay float32: onnxruntime's integer convolution is slower than
its float one on CPUs, and has only one scale per tensor. A graph without matrix products is reported and not written.

With photos or texts the cosine of each vector to float32's is reported. Processors without VNNI add pairs of products
in 16 bits, which saturates for large weights; --reduce-range keeps weights to 7 bits for them.

Needs the packages of tests/fixtures/requirements.txt.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image, ImageOps

TOWERS = ("vision", "text")
QUANTIZED = ("MatMul", "Gemm")


def quantize(source: pathlib.Path, target: pathlib.Path, reduce_range: bool = False) -> int:
    """Writes the variant; returns how many matrix products became integer ones, 0 if nothing was written."""
    # The file is written elsewhere until it is complete, because a server may be reading the directory.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = pathlib.Path(folder) / target.name
        quantize_dynamic(
            source,
            made,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
        nodes = onnx.load(made, load_external_data=False).graph.node
        count = sum(node.op_type == "MatMulInteger" for node in nodes)
        if count:
            made.replace(target)
    return count


def session(path: pathlib.Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def cosines(one: pathlib.Path, other: pathlib.Path, inputs: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The cosine of the two graphs' vectors for each input."""
    rows = []
    for path in (one, other):
        graph = session(path)
        names = {port.name for port in graph.get_inputs()}
        rows.append([unit(graph.run(None, {k: v for k, v in x.items() if k in names})[0])[0] for x in inputs])
    return (np.array(rows[0]) * np.array(rows[1])).sum(-1)


def pixels(directory: pathlib.Path, photos: list[pathlib.Path]) -> list[dict[str, np.ndarray]]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(directory)
    images = (ImageOps.exif_transpose(Image.open(photo)).convert("RGB") for photo in photos)
    return [{"pixel_values": processor(image, return_tensors="np")["pixel_values"]} for image in images]


def ids(directory: pathlib.Path, texts: list[str]) -> list[dict[str, np.ndarray]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [np.array([tokenizer.encode(text).ids], np.int64) for text in texts]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--photos", type=pathlib.Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--texts", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--reduce-range", action="store_true")
    arguments = parser.parse_args()
    found = False
    for tower in TOWERS:
        source = arguments.model / "onnx" / f"{tower}_model.onnx"
        if not source.exists():
            continue
        found = True
        target = source.with_name(f"{tower}_model_quantized.onnx")
        count = quantize(source, target, arguments.reduce_range)
        if not count:
            print(f"{source.name}: no matrix product with float32 weights; left alone")
            continue
        before, after = (path.stat().st_size / 1e6 for path in (source, target))
        print(f"{target.name}: {count} matrix products, {before:.1f} MB -> {after:.1f} MB")
        inputs = (
            pixels(arguments.model, arguments.photos) if tower == "vision" else ids(arguments.model, arguments.texts)
        )
        if inputs:
            found_cosines = cosines(source, target, inputs)
            print(
                f"  cosine to float32 over {len(inputs)}: mean {found_cosines.mean():.5f}, least {found_cosines.min():.5f}"
            )
    if not found:
        print(f"quantize.py: {arguments.model} has no onnx/vision_model.onnx or onnx/text_model.onnx", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
