#!/usr/bin/env python3
"""Time the engine beside other software on the same files, taking turns, one thread each.

    embed.py --bench EMBED_BENCH --library LIBONNXRUNTIME --photos DIR --json FILE MODEL_DIRECTORY …

EMBED_BENCH is `cargo build --release -p clip --example embed_bench`'s target/release/examples/embed_bench; DIR is
what photos.py writes. Needs the packages of tests/fixtures/requirements.txt; fastembed, openvino, scikit-image and
scikit-learn, if installed (`pip install` them there), fastembed and openvino take part.

Each file goes to every contestant in each round, in an order that moves on by one. A ratio is the median over all
(file, round) of the contestant's time over ours. A report in Markdown goes to stdout, every single time to FILE.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import onnxruntime
import PIL
import transformers
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "models"))
import quantize

CONTEXT = 77
BATCHES = (1, 2, 4, 8, 16)
# (milliseconds, one vector or more)
Contestant = Callable[[Any], tuple[float, np.ndarray]]


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


class Engine:
    """Our side: a process that answers requests."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"embed_bench: {answer['error']}")
        return answer

    def images(self, exact: bool = False) -> Contestant:
        def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
            answer = self.ask(op="images", files=[str(file) for file in files], exact=exact)
            return answer["ms"], np.array(answer["vectors"])

        return embed

    def text(self, text: str) -> tuple[float, np.ndarray]:
        answer = self.ask(op="texts", texts=[text])
        return answer["ms"], np.array(answer["vectors"])

    def ids(self, ids: list[int]) -> float:
        return self.ask(op="ids", ids=ids)["ms"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def pixel_values(processor: CLIPImageProcessorPil, files: list[bytes]) -> np.ndarray:
    images = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB") for data in files]
    return processor(images, return_tensors="np")["pixel_values"]


def python_images(model: pathlib.Path) -> Contestant:
    """Pillow, transformers' processor, onnxruntime."""
    processor = CLIPImageProcessorPil.from_pretrained(model)
    graph = quantize.session(model / "onnx" / "vision_model.onnx")

    def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
        data = [file.read_bytes() for file in files]
        return clocked(lambda: quantize.unit(graph.run(None, {"pixel_values": pixel_values(processor, data)})[0]))

    return embed


def openvino_images(model: pathlib.Path) -> Contestant:
    """Pillow, transformers' processor, OpenVINO in float32."""
    import openvino

    processor = CLIPImageProcessorPil.from_pretrained(model)
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    graph = openvino.Core().compile_model(str(model / "onnx" / "vision_model.onnx"), "CPU", settings)

    def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
        data = [file.read_bytes() for file in files]
        return clocked(lambda: quantize.unit(np.array(graph({"pixel_values": pixel_values(processor, data)})[0])))

    return embed


def fastembed_images(model: pathlib.Path, work: pathlib.Path) -> Contestant:
    """fastembed's CLIP class, pointed at this model's files under the names that it looks for."""
    from fastembed import ImageEmbedding

    folder = work / f"fastembed-{model.name}"
    folder.mkdir(parents=True, exist_ok=True)
    graph, settings = folder / "model.onnx", folder / "preprocessor_config.json"
    for left in (graph, settings):
        left.unlink(missing_ok=True)
    graph.symlink_to((model / "onnx" / "vision_model.onnx").resolve())
    # It knows the processor by its new name only.
    config = json.loads((model / "preprocessor_config.json").read_text(encoding="utf-8"))
    config |= {"image_processor_type": "CLIPImageProcessor"}
    settings.write_text(json.dumps(config), encoding="utf-8")
    embedding = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", threads=1, specific_model_path=str(folder))

    def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
        data = [file.read_bytes() for file in files]

        def run() -> np.ndarray:
            images = [Image.open(io.BytesIO(item)) for item in data]
            return np.array(list(embedding.embed(images, batch_size=len(images))))

        return clocked(run)

    return embed


def take_turns(
    contestants: dict[str, Contestant], items: list[Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """Every time, and each item's vectors, by contestant. One round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        for place, item in enumerate(items):
            names = list(contestants)
            first = (number + place) % len(names)
            for name in names[first:] + names[:first]:
                ms, vector = contestants[name](item)
                if number < 0:
                    vectors[name].append(vector)
                else:
                    times[name].append(ms)
    return times, vectors


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if statistics.median(values) < 10 else f"{statistics.median(values):.1f}"


def ratio(times: list[float], ours: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(times, ours)):.2f}"


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def compare(title: str, contestants: dict[str, Contestant], items: list[Any], rounds: int) -> dict[str, Any]:
    """Runs and prints one table; the first contestant is ours, and cosines are to the last."""
    times, vectors = take_turns(contestants, items, rounds)
    names = list(contestants)
    ours, reference = times[names[0]], vectors[names[-1]]
    rows = []
    for name in names:
        least = min(float((a * b).sum(-1).min()) for a, b in zip(vectors[name], reference))
        rows.append([name, median(times[name]), ratio(times[name], ours), f"{least:.5f}"])
    print(f"**{title}** ({len(items)} inputs, {rounds} rounds)\n")
    table(["", "ms", "times ours", f"least cosine to {names[-1]}"], rows)
    return times


def image_contestants(engine: Engine, model: pathlib.Path, work: pathlib.Path) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {"ours": engine.images(), "ours, exact_jpeg": engine.images(exact=True)}
    optional = {
        "fastembed": lambda: fastembed_images(model, work),
        "Pillow + transformers + OpenVINO": lambda: openvino_images(model),
    }
    for name, make in optional.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)
    return found | {"Pillow + transformers + onnxruntime": python_images(model)}


def stages(engine: Engine, groups: dict[str, list[pathlib.Path]], rounds: int) -> dict[str, Any]:
    """Where our time goes, and what is around the bare session run on the same tensor."""
    found, rows = {}, []
    for group, files in groups.items():
        for exact in (False, True):
            whole, parts = [], []
            for _ in range(rounds):
                for file in files:
                    parts.append(engine.ask(op="stages", files=[str(file)], exact=exact))
                    whole.append(engine.images(exact)([file])[0])
            name = f"{group}{', exact_jpeg' if exact else ''}"
            keys = ("decode", "prepare", "normalise", "run")
            over = [w - sum(p[k] for k in keys) for w, p in zip(whole, parts)]
            share = [p["normalise"] / w for w, p in zip(whole, parts)]
            rows.append(
                [name, *(median([p[k] for p in parts]) for k in keys), median(whole), median(over)]
                + [f"{100 * statistics.median(share):.1f} %"]
            )
            found[name] = {"parts": parts, "whole": whole}
    print("**Where the time goes, ms**\n")
    head = ["", "decode", "resize", "normalise", "bare session run", "whole call", "whole − parts", "normalise's share"]
    table(head, rows)
    return found


def texts(engine: Engine, model: pathlib.Path, rounds: int) -> dict[str, Any]:
    query = "a photo of a cat"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    graph = quantize.session(model / "onnx" / "text_model.onnx")
    inputs = [port.name for port in graph.get_inputs()]

    def feed(ids: list[int], length: int) -> dict[str, np.ndarray]:
        padded = ids + [ids[-1]] * (length - len(ids))
        mask = [1] * len(ids) + [0] * (length - len(ids))
        values = {"input_ids": [padded], "attention_mask": [mask]}
        return {name: np.array(values[name], np.int64) for name in inputs}

    def python(length: int) -> Contestant:
        def embed(text: str) -> tuple[float, np.ndarray]:
            def run() -> np.ndarray:
                ids = tokenizer.encode(text).ids
                return quantize.unit(graph.run(None, feed(ids, max(length, len(ids))))[0])

            return clocked(run)

        return embed

    ids = tokenizer.encode(query).ids
    contestants = {
        "ours": engine.text,
        f"tokenizers + onnxruntime, padded to {CONTEXT}": python(CONTEXT),
        "tokenizers + onnxruntime": python(0),
    }
    times = compare(f"A text of {len(ids)} tokens", contestants, [query], rounds)
    bare: dict[str, list[float]] = {"true length": [], f"padded to {CONTEXT}": []}
    for _ in range(rounds):
        bare["true length"].append(engine.ids(ids))
        bare[f"padded to {CONTEXT}"].append(engine.ids(ids + [ids[-1]] * (CONTEXT - len(ids))))
    print("Our bare session run, the same ids: " + ", ".join(f"{k} {median(v)} ms" for k, v in bare.items()) + ".\n")
    return {"queries": times, "bare": bare}


def batches(engine: Engine, model: pathlib.Path, files: list[pathlib.Path], rounds: int) -> dict[str, Any]:
    contestants = {"ours": engine.images(), "python": python_images(model)}
    found, rows = {}, []
    for size in BATCHES:
        times, _ = take_turns(contestants, [(files * size)[:size]], rounds)
        each = {name: [ms / size for ms in values] for name, values in times.items()}
        rows.append([str(size), median(each["ours"]), median(each["python"]), ratio(each["python"], each["ours"])])
        found[size] = times
    print("**Batches of small photos, ms an image**\n")
    table(["images", "ours", "Pillow + transformers + onnxruntime", "times ours"], rows)
    return found


def int8(command: list[str], model: pathlib.Path, files: list[pathlib.Path], rounds: int) -> dict[str, Any]:
    """Our engine on both variants; the int8 one is made if it isn't there."""
    source = model / "onnx" / "vision_model.onnx"
    target = source.with_name("vision_model_quantized.onnx")
    if not target.exists() and not quantize.quantize(source, target):
        print("No int8 variant: the image tower has no matrix product with float32 weights.\n")
        return {}
    variant, plain = Engine(*command, str(model), "quantized"), Engine(*command, str(model))
    contestants = {"float32": plain.images(), "int8": variant.images()}
    times, vectors = take_turns(contestants, [[file] for file in files], rounds)
    variant.close()
    plain.close()
    cosines = [float((a * b).sum()) for a, b in zip(vectors["int8"], vectors["float32"])]
    print(
        f"**int8 image tower** ({len(files)} photos): {median(times['int8'])} ms against {median(times['float32'])}, "
        f"{ratio(times['float32'], times['int8'])} times as fast; cosine to float32 {statistics.mean(cosines):.5f} on "
        f"average, {min(cosines):.5f} at least.\n"
    )
    return {"times": times, "cosines": cosines}


def versions() -> dict[str, str]:
    found = {
        "onnxruntime": onnxruntime.__version__,
        "Pillow": PIL.__version__,
        "transformers": transformers.__version__,
    }
    for name in ("openvino", "fastembed"):
        try:
            found[name] = str(__import__(name).__version__)
        except ImportError:
            pass
    return found | {"Python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path, nargs="+", metavar="MODEL_DIRECTORY")
    parser.add_argument("--bench", required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--files", type=int, default=6, help="photos of each size (6)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    small = sorted(arguments.photos.glob("small-*.jpg"))
    # Enlarged photos and mosaics of twelve megapixels, by turns.
    large = [
        file
        for pair in zip(sorted(arguments.photos.glob("enlarged-*.jpg")), sorted(arguments.photos.glob("mosaic-*.jpg")))
        for file in pair
    ]
    if not small or not large:
        parser.error(f"no small-*.jpg or enlarged-*.jpg and mosaic-*.jpg in {arguments.photos}")
    groups = {"224 pixels": small[: arguments.files], "12 megapixels": large[: arguments.files]}
    rounds = arguments.rounds
    raw: dict[str, Any] = {"versions": versions(), "models": {}}
    print(", ".join(f"{name} {version}" for name, version in raw["versions"].items()) + "; one thread.\n")
    for model in arguments.models:
        print(f"### {model.name}\n")
        command = [arguments.bench, arguments.library]
        engine = Engine(*command, str(model))
        found: dict[str, Any] = {}
        contestants = image_contestants(engine, model, arguments.json.resolve().parent)
        for group, files in groups.items():
            found[group] = compare(f"JPEG of {group}", contestants, [[file] for file in files], rounds)
        found["stages"] = stages(engine, groups, rounds)
        if (model / "onnx" / "text_model.onnx").exists():
            found["texts"] = texts(engine, model, 10 * rounds)
        found["batches"] = batches(engine, model, small, rounds)
        engine.close()
        found["int8"] = int8(command, model, small, 1)
        raw["models"][model.name] = found
    arguments.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
