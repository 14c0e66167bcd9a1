#!/usr/bin/env python3
"""Write image towers with the shapes of models other than CLIP ViT-B/32, with random weights, to time them.

    shapes.py DIRECTORY      makes DIRECTORY/siglip-base-patch16-224 and DIRECTORY/mobileclip-s0

They recognize nothing, but take as long as the real ones: the same operators on tensors of the same sizes.

siglip-base-patch16-224   pixel_values [batch, 3, 224, 224] -> pooler_output [batch, 768]. ViT-B/16: 196 patches, 12
    layers, tanh GELU, and attention from one learnt query for pooling (Zhai et al. 2023, arXiv:2303.15343). 93 million
    weights there, 92.3 here.
mobileclip-s0   pixel_values [batch, 3, 256, 256] -> image_embeds [batch, 512]. Convolutions, as they are after training
    branches have been folded: a stem of stride 4, four stages of depths 2, 6, 10, 2 and widths 64 to 512, each block a
    3 x 3 depthwise mixer (in the last stage attention) and a feed-forward of 7 x 7 depthwise and two 1 x 1 convolutions,
    three times wider; then a squeeze-and-excitation head (Vasu et al. 2024, arXiv:2311.17049; 11.4 million weights
    there, 11.2 here).
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "models"))
import make_clip


class Graph(make_clip.Graph):
    def gelu(self, x: str, tanh: bool) -> str:
        half, one = self.constant("half", np.float32(0.5)), self.constant("one", np.float32(1))
        if tanh:
            cube = self.node("Mul", self.node("Mul", x, x), x)
            inner = self.node("Add", x, self.node("Mul", cube, self.constant("cubic", np.float32(0.044715))))
            scaled = self.node("Mul", inner, self.constant("slope", np.float32(math.sqrt(2 / math.pi))))
            gate = self.node("Add", self.node("Tanh", scaled), one)
        else:
            gate = self.node("Div", x, self.constant("root", np.float32(math.sqrt(2))))
            gate = self.node("Add", self.node("Erf", gate), one)
        return self.node("Mul", self.node("Mul", x, gate), half)

    def convolution(
        self, x: str, name: str, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
    ) -> str:
        fan_in = inputs // groups * size * size
        kernel = self.weights(name + ".weight", outputs, inputs // groups, size, size, deviation=fan_in**-0.5)
        bias = self.weights(name + ".bias", outputs, deviation=0.1)
        pads = [size // 2] * 4
        return self.node(
            "Conv", x, kernel, bias, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads, group=groups
        )

    def write(self, folder: pathlib.Path, edge: int, output: str, width: int) -> None:
        given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 3, edge, edge])
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch_size", width])
        graph = helper.make_graph(self.nodes, folder.name, [given], [result], self.constants)
        model = helper.make_model(
            graph, opset_imports=[make_clip.OPSET], ir_version=make_clip.IR_VERSION, producer_name="shapes"
        )
        onnx.checker.check_model(model)
        (folder / "onnx").mkdir(parents=True, exist_ok=True)
        (folder / "onnx" / "vision_model.onnx").write_bytes(model.SerializeToString())
        weights = sum(math.prod(constant.dims) for constant in self.constants)
        print(f"{folder}: {weights / 1e6:.1f} million weights")


def settings(folder: pathlib.Path, model_type: str, **processor: object) -> None:
    common = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(common | processor, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}) + "\n")


def siglip(folder: pathlib.Path) -> None:
    width, heads, patch, edge = 768, 12, 16, 224
    graph = Graph(1, "vision")
    kernel = graph.weights("patch.weight", width, 3, patch, patch, deviation=(3 * patch**2) ** -0.5)
    bias = graph.weights("patch.bias", width, deviation=0.1)
    x = graph.node("Conv", "pixel_values", kernel, bias, kernel_shape=[patch] * 2, strides=[patch] * 2)
    patches = (edge // patch) ** 2
    x = graph.node("Transpose", graph.node("Reshape", x, graph.indices(0, width, patches)), perm=[0, 2, 1])
    x = graph.node("Add", x, graph.weights("positions", 1, patches, width, deviation=0.5))
    for layer in range(12):
        name = f"layers.{layer}"
        y = graph.layer_norm(x, f"{name}.norm1", width)
        x = graph.node("Add", x, graph.attention(y, f"{name}.attention", width, heads, None))
        y = graph.layer_norm(x, f"{name}.norm2", width)
        y = graph.gelu(graph.linear(y, f"{name}.fc1", width, 4 * width, 1.0), tanh=True)
        x = graph.node("Add", x, graph.linear(y, f"{name}.fc2", 4 * width, width, 1.0))
    x = graph.layer_norm(x, "post_norm", width)
    # A single learnt query attends to all patches.
    split, join = graph.indices(0, -1, heads, width // heads), graph.indices(0, -1, width)
    probe = graph.weights("probe", 1, heads, 1, width // heads, deviation=1.0)
    key = graph.node(
        "Transpose", graph.node("Reshape", graph.linear(x, "k", width, width, 1.0), split), perm=[0, 2, 3, 1]
    )
    value = graph.node(
        "Transpose", graph.node("Reshape", graph.linear(x, "v", width, width, 1.0), split), perm=[0, 2, 1, 3]
    )
    scores = graph.node(
        "Mul", graph.node("MatMul", probe, key), graph.constant("scale", np.float32((width // heads) ** -0.5))
    )
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    x = graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)
    x = graph.linear(x, "pool_out", width, width, 1.0)
    y = graph.layer_norm(x, "pool_norm", width)
    y = graph.linear(
        graph.gelu(graph.linear(y, "pool_fc1", width, 4 * width, 1.0), tanh=True), "pool_fc2", 4 * width, width, 1.0
    )
    graph.node("Squeeze", graph.node("Add", x, y), graph.indices(1), output="pooler_output")
    graph.write(folder, edge, "pooler_output", width)
    size = {"height": edge, "width": edge}
    mean = [0.5] * 3
    settings(folder, "siglip", size=size, image_mean=mean, image_std=mean, resample=3, do_center_crop=False)


def mobileclip(folder: pathlib.Path) -> None:
    edge, widths, depths, wider = 256, (64, 128, 256, 512), (2, 6, 10, 2), 3
    graph = Graph(2, "vision")

    def step(x: str, *arguments: int | str, **options: int) -> str:
        return graph.gelu(graph.convolution(x, *arguments, **options), tanh=False)

    x = step("pixel_values", "stem.0", 3, widths[0], 3, stride=2)
    x = step(x, "stem.1", widths[0], widths[0], 3, stride=2, groups=widths[0])
    x = step(x, "stem.2", widths[0], widths[0], 1)
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        name = f"stage{stage}"
        if stage > 0:
            x = step(x, f"{name}.down.0", widths[stage - 1], width, 7, stride=2, groups=widths[stage - 1])
            x = step(x, f"{name}.down.1", width, width, 1)
        if stage == 3:
            x = graph.node("Add", x, graph.convolution(x, f"{name}.positions", width, width, 7, groups=width))
        for block in range(depth):
            part = f"{name}.{block}"
            if stage < 3:
                x = graph.convolution(x, f"{part}.mixer", width, width, 3, groups=width)
            else:
                side = edge // 32
                tokens = graph.node(
                    "Transpose", graph.node("Reshape", x, graph.indices(0, width, side**2)), perm=[0, 2, 1]
                )
                mixed = graph.attention(tokens, f"{part}.attention", width, width // 32, None)
                mixed = graph.node("Transpose", mixed, perm=[0, 2, 1])
                x = graph.node("Add", x, graph.node("Reshape", mixed, graph.indices(0, width, side, side)))
            y = graph.convolution(x, f"{part}.ffn.0", width, width, 7, groups=width)
            y = graph.gelu(graph.convolution(y, f"{part}.ffn.1", width, wider * width, 1), tanh=False)
            y = graph.convolution(y, f"{part}.ffn.2", wider * width, width, 1)
            # The values would grow without bound over many blocks of random weights.
            x = graph.node("Mul", graph.node("Add", x, y), graph.constant("damping", np.float32(0.7)))
    last = 2 * widths[-1]
    x = graph.convolution(x, "head.0", widths[-1], last, 3, groups=widths[-1])
    gate = graph.node("GlobalAveragePool", x)
    gate = graph.node("Relu", graph.convolution(gate, "head.reduce", last, last // 16, 1))
    gate = graph.node("Sigmoid", graph.convolution(gate, "head.expand", last // 16, last, 1))
    x = graph.gelu(graph.node("Mul", x, gate), tanh=False)
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    weight = graph.weights("projection", last, 512, deviation=last**-0.5)
    graph.node("MatMul", x, weight, output="image_embeds")
    graph.write(folder, edge, "image_embeds", 512)
    size = {"shortest_edge": edge}
    crop = {"height": edge, "width": edge}
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    settings(folder, "clip", size=size, crop_size=crop, do_center_crop=True, resample=2, **plain)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    folder = pathlib.Path(sys.argv[1])
    siglip(folder / "siglip-base-patch16-224")
    mobileclip(folder / "mobileclip-s0")


if __name__ == "__main__":
    main()
