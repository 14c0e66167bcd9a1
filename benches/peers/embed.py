#!/usr/bin/env python3
"""Time the engine beside other software on the same files, by turns, with one thread each.

    embed.py --bench EMBED_BENCH --library LIBONNXRUNTIME --photos DIR --json FILE MODEL_DIRECTORY …

EMBED_BENCH is `cargo build --release -p clip --example embed_bench`'s target/release/examples/embed_bench; DIR is
what photos.py writes. Needs the packages of tests/fixtures/requirements.txt; fastembed, openvino, scikit-image and
scikit-learn, if installed (`pip install` them there), fastembed and openvino take part.

Each file goes to every contestant in each round, in an order that rotates by one. A ratio is the median over all
(file, round) of the contestant's time over ours. A report in Markdown goes to stdout, each measured time to FILE.
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
sys.path[:0] = [str(REPOSITORY / "models"), str(REPOSITORY / "benches")]
import cpu
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
    """The engine: a process that answers requests."""

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
    """Pillow, transformers' processor and onnxruntime."""
    processor = CLIPImageProcessorPil.from_pretrained(model)
    graph = quantize.session(model / "onnx" / "vision_model.onnx")

    def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
        data = [file.read_bytes() for file in files]
        return clocked(lambda: quantize.unit(graph.run(None, {"pixel_values": pixel_values(processor, data)})[0]))

    return embed


def openvino_graph(graph: pathlib.Path, precision: str | None) -> Any:
    """OpenVINO on one thread. Without a precision it uses its own default, which is bfloat16 on processors that
    support it."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return openvino.Core().compile_model(str(graph), "CPU", settings)


def openvino_images(model: pathlib.Path, precision: str | None = "f32") -> Contestant:
    """Pillow, transformers' processor and OpenVINO."""
    processor = CLIPImageProcessorPil.from_pretrained(model)
    graph = openvino_graph(model / "onnx" / "vision_model.onnx", precision)

    def embed(files: list[pathlib.Path]) -> tuple[float, np.ndarray]:
        data = [file.read_bytes() for file in files]
        return clocked(lambda: quantize.unit(np.array(graph({"pixel_values": pixel_values(processor, data)})[0])))

    return embed


def feed(inputs: list[str], ids: list[int], length: int) -> dict[str, np.ndarray]:
    """The inputs of a text tower, padded as CLIP's tokenizer does."""
    padded = ids + [ids[-1]] * (length - len(ids))
    mask = [1] * len(ids) + [0] * (length - len(ids))
    values = {"input_ids": [padded], "attention_mask": [mask]}
    return {name: np.array(values[name], np.int64) for name in inputs}


def openvino_texts(model: pathlib.Path, precision: str | None) -> Contestant:
    """tokenizers and OpenVINO; texts are not padded."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    graph = openvino_graph(model / "onnx" / "text_model.onnx", precision)
    inputs = [port.any_name for port in graph.inputs]

    def embed(text: str) -> tuple[float, np.ndarray]:
        def run() -> np.ndarray:
            ids = tokenizer.encode(text).ids
            return quantize.unit(np.array(graph(feed(inputs, ids, len(ids)))[0]))

        return clocked(run)

    return embed


def fastembed_images(model: pathlib.Path, work: pathlib.Path) -> Contestant:
    """fastembed's CLIP class, using this model's files under the names that it expects."""
    from fastembed import ImageEmbedding

    folder = work / f"fastembed-{model.name}"
    folder.mkdir(parents=True, exist_ok=True)
    graph, settings = folder / "model.onnx", folder / "preprocessor_config.json"
    for left in (graph, settings):
        left.unlink(missing_ok=True)
    graph.symlink_to((model / "onnx" / "vision_model.onnx").resolve())
    # fastembed knows the processor only by its new name.
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
    """All times and each item's vectors, by contestant. One additional round comes first and is not counted."""
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
    """Runs the contestants and prints one table; the first is the engine, and cosines are to the last."""
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
    """The time of the engine's stages, and its overhead over the bare session run on the same tensor."""
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

    def python(length: int) -> Contestant:
        def embed(text: str) -> tuple[float, np.ndarray]:
            def run() -> np.ndarray:
                ids = tokenizer.encode(text).ids
                return quantize.unit(graph.run(None, feed(inputs, ids, max(length, len(ids))))[0])

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


WORDS = (
    "beach",
    "two dogs in the snow",
    "a photo of a cat",
    "birthday cake with candles",
    "red car",
    "mountains at dusk",
)


def precisions(
    command: list[str], model: pathlib.Path, work: pathlib.Path, files: list[pathlib.Path], rounds: int
) -> dict[str, Any]:
    """The engine in float32 and in eight bits (`clip_search.precision`) beside OpenVINO with its default settings,
    images and texts."""
    cache = work / "cache"
    cache.mkdir(exist_ok=True)
    eight, plain = Engine(*command, str(model), "auto-int8", str(cache)), Engine(*command, str(model))
    images = {
        "ours, int8": eight.images(),
        "ours": plain.images(),
        "OpenVINO, its default": openvino_images(model, None),
        "OpenVINO, float32": openvino_images(model),
    }
    texts = {
        "ours, int8": eight.text,
        "ours": plain.text,
        "OpenVINO, its default": openvino_texts(model, None),
        "OpenVINO, float32": openvino_texts(model, "f32"),
    }
    found: dict[str, Any] = {}
    for what, contestants, items in (("images", images, [[file] for file in files]), ("texts", texts, list(WORDS))):
        times, vectors = take_turns(contestants, items, rounds)
        rows = []
        for name in contestants:
            cosines = [float((a * b).sum()) for a, b in zip(vectors[name], vectors["ours"])]
            found[f"{what}, {name}"] = {"times": times[name], "cosines": cosines}
            rows.append([name, median(times[name]), ratio(times[name], times["OpenVINO, its default"])])
            rows[-1] += [f"{statistics.mean(cosines):.5f}", f"{min(cosines):.5f}"]
        print(f"**Precisions, {what}** ({len(items)} inputs, {rounds} rounds)\n")
        table(["", "ms", "times OpenVINO's default", "cosine to ours in float32, mean", "least"], rows)
    eight.close()
    plain.close()
    return found


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
    parser.add_argument("--only-precisions", action="store_true", help="leave out all but float32 and eight bits")
    arguments = parser.parse_args()
    small = sorted(arguments.photos.glob("small-*.jpg"))
    # Enlarged photos and mosaics of twelve megapixels, alternating.
    large = [
        file
        for pair in zip(sorted(arguments.photos.glob("enlarged-*.jpg")), sorted(arguments.photos.glob("mosaic-*.jpg")))
        for file in pair
    ]
    if not small or not large:
        parser.error(f"no small-*.jpg or enlarged-*.jpg and mosaic-*.jpg in {arguments.photos}")
    groups = {"224 pixels": small[: arguments.files], "12 megapixels": large[: arguments.files]}
    rounds = arguments.rounds
    raw: dict[str, Any] = {"processor": cpu.processor(), "versions": versions(), "models": {}}
    print(cpu.in_words(raw["processor"]) + "; ", end="")
    print(", ".join(f"{name} {version}" for name, version in raw["versions"].items()) + "; one thread.\n")
    for model in arguments.models:
        print(f"### {model.name}\n")
        command = [arguments.bench, arguments.library]
        work = arguments.json.resolve().parent
        found: dict[str, Any] = {"precisions": precisions(command, model, work, small, rounds)}
        raw["models"][model.name] = found
        if arguments.only_precisions:
            continue
        engine = Engine(*command, str(model))
        contestants = image_contestants(engine, model, work)
        for group, files in groups.items():
            found[group] = compare(f"JPEG of {group}", contestants, [[file] for file in files], rounds)
        found["stages"] = stages(engine, groups, rounds)
        if (model / "onnx" / "text_model.onnx").exists():
            found["texts"] = texts(engine, model, 10 * rounds)
        found["batches"] = batches(engine, model, small, rounds)
        engine.close()
    arguments.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
