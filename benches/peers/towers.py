#!/usr/bin/env python3
"""Measures the time of one run of an image tower, beside ViT-B/32's: `towers.py [--json FILE] GRAPH…`, the first is
ViT-B/32's.

ONNX Runtime on one thread, without the code around the graph. Times are this thread's CPU time, which other
processes lengthen far less than elapsed time; the graphs take turns, and the fastest run of each counts. A
graph without weights is one of the shapes that this script knows by name: `vit:WIDTH:LAYERS:HEADS:PATCH:PIXELS`, whose
weights are zeros, which cost the same. `GRAPH@256` gives the size of images if the graph leaves it open and it is not
224. An existing FILE is added to. Needs numpy, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import cpu


class Vit:
    """The encoder of a ViT as exported: layer norms, three projections, attention, two layers with GELU."""

    def __init__(self, width: int, layers: int, heads: int, patch: int, pixels: int):
        self.nodes: list = []
        self.weights: list = []
        self.bytes = 0
        self.count = 0
        patches = (pixels // patch) ** 2
        kernel = self.weight(width, 3, patch, patch)
        x = self.node("Conv", "pixel_values", kernel, kernel_shape=[patch] * 2, strides=[patch] * 2)
        x = self.node("Transpose", self.node("Reshape", x, self.shape(0, width, patches)), perm=[0, 2, 1])
        x = self.node("Add", x, self.weight(1, patches, width))
        for _ in range(layers):
            x = self.node("Add", x, self.attention(self.norm(x, width), width, heads))
            y = self.linear(self.norm(x, width), width, 4 * width)
            gate = self.node("Sigmoid", self.node("Mul", y, self.number(1.702)))
            x = self.node("Add", x, self.linear(self.node("Mul", y, gate), 4 * width, width))
        self.nodes.append(helper.make_node("ReduceMean", [x], ["image_embeds"], axes=[1], keepdims=0))
        self.pixels, self.width = pixels, width

    def node(self, kind: str, *inputs: str, **options) -> str:
        self.count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{self.count}"], **options))
        return f"v{self.count}"

    def weight(self, *sides: int) -> str:
        self.count += 1
        tensor = TensorProto(name=f"w{self.count}", data_type=TensorProto.FLOAT, dims=sides)
        tensor.data_location = TensorProto.EXTERNAL
        size = 4 * int(np.prod(sides))
        for key, content in (("location", "weights"), ("offset", str(self.bytes)), ("length", str(size))):
            tensor.external_data.add(key=key, value=content)
        self.bytes += -(-size // 4096) * 4096
        self.weights.append(tensor)
        return tensor.name

    def constant(self, array: np.ndarray) -> str:
        self.count += 1
        self.weights.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def shape(self, *sides: int) -> str:
        return self.constant(np.array(sides, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def norm(self, x: str, width: int) -> str:
        return self.node("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(inputs, outputs)), self.weight(outputs))

    def attention(self, x: str, width: int, heads: int) -> str:
        split = self.shape(0, -1, heads, width // heads)
        part = lambda order: self.node(
            "Transpose", self.node("Reshape", self.linear(x, width, width), split), perm=order
        )
        query, key, value = part([0, 2, 1, 3]), part([0, 2, 3, 1]), part([0, 2, 1, 3])
        scores = self.node("Mul", self.node("MatMul", query, key), self.number((width // heads) ** -0.5))
        mixed = self.node(
            "Transpose", self.node("MatMul", self.node("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3]
        )
        return self.linear(self.node("Reshape", mixed, self.shape(0, -1, width)), width, width)

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, self.pixels, self.pixels])
        result = helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, [1, self.width])
        graph = helper.make_graph(self.nodes, "vit", [given], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with (folder / "weights").open("wb") as file:
            file.truncate(self.bytes)
        return folder / "model.onnx"


def runner(path: pathlib.Path, size: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    sides = [side if isinstance(side, int) else None for side in port.shape]
    edge = sides[2] or size
    pixels = np.random.default_rng(1).standard_normal((1, 3, edge, sides[3] or edge)).astype(np.float32)

    def run() -> float:
        start = time.thread_time()
        session.run(None, {port.name: pixels})
        return 1e3 * (time.thread_time() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("graphs", nargs="+")
    options = parser.parse_args()
    first, results = None, {"processor": cpu.processor(), "onnxruntime": onnxruntime.__version__, "towers": {}}
    if options.json and options.json.exists():
        results["towers"] = json.loads(options.json.read_text())["towers"]
    print("| image tower | ms | to the first |\n|---|---|---|")
    for name in options.graphs:
        with tempfile.TemporaryDirectory() as folder:
            path, _, size = name.partition("@")
            if name.startswith("vit:"):
                path = Vit(*map(int, name.split(":")[1:])).write(pathlib.Path(folder))
            run = runner(path, int(size or 224))
        first = first or run
        taken: dict[str, list[float]] = {"ms": [], "first_ms": []}
        for _ in range(options.rounds):
            taken["ms"].append(run())
            taken["first_ms"].append(first() if first is not run else taken["ms"][-1])
        results["towers"][name] = taken
        print(f"| {name} | {min(taken['ms']):.0f} | {min(taken['ms']) / min(taken['first_ms']):.2f} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
