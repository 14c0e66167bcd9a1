#!/usr/bin/env python3
"""Measures the cost of an image and of a text with models of other architectures: time, memory, disk, and eight bits.

    eval "$(make -s env)"; target/venv/bin/python benches/server/architectures.py --models DIRECTORY
        [--beside NAME] [--int8] [--json FILE] [NAME …]

tests/fixtures/exporters/full_size.py writes the models. Times are the CPU time of one backend with one
thread, which other processes lengthen far less than elapsed time. Each figure is the fastest of several calls. The
model `--beside` takes turns with the measured one in the same run, so that the ratio of the two is valid on a busy
machine, where all processes run slower.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import numpy as np
import psycopg

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benches")]

import cpu

import support
from support import value, vector

PHOTOS = sorted((ROOT / "examples" / "gallery" / "photos").glob("*.jpg"))
PHOTO = ROOT / "examples" / "gallery" / "photos" / "cat.jpg"
TEXT = "a photo of a cat on a sofa"
TEXTS = ("a cat", "two boats on a lake at sunset", "an invoice", "a child's drawing of a house with a red roof")
# After 20 runs, weights mapped from the cache are copied into a faster layout.
MAPPED_RUNS = 21


def seconds_on_cpu(pid: int) -> float:
    """CPU time in nanosecond steps, unlike /proc/PID/stat."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def megabytes(pid: int) -> dict[str, float]:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    size = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:] if line.endswith("kB")}
    return {"private": size["Private_Dirty"] + size["Private_Clean"], "resident": size["Rss"]}


class Backend:
    """A connection that uses a single model."""

    def __init__(self, database: support.Database, models: pathlib.Path, name: str, cached: bool):
        self.name, self.db = name, database.connect()
        self.db.execute("LOAD 'clip_search'")
        for setting, content in {
            "model_path": str(models),
            "memo_images": "0",
            "memo_texts": "0",
            "threads": "1",
        }.items():
            self.db.execute("SELECT set_config(%s, %s, false)", (f"clip_search.{setting}", content))
        self.db.execute("SET client_min_messages = error")
        if not cached:
            # The weights are then in the fastest layout from the start.
            self.db.execute("SET clip_search.cache_path = ''")
        self.pid = value(self.db, "SELECT pg_backend_pid()")
        self.empty = megabytes(self.pid)

    def embed(self, what: str, item: bytes | str) -> np.ndarray:
        return vector(value(self.db, f"SELECT clip_embed_{what}(%s, %s)::text", item, self.name))

    def milliseconds(self, what: str) -> float:
        item = PHOTO.read_bytes() if what == "image" else TEXT
        start = seconds_on_cpu(self.pid)
        self.embed(what, item)
        return 1e3 * (seconds_on_cpu(self.pid) - start)

    def memory(self) -> dict[str, float]:
        return {key: size - self.empty[key] for key, size in megabytes(self.pid).items()}


def turns(backends: dict[str, Backend], what: str, rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {key: [] for key in backends}
    for _ in range(rounds):
        for key, backend in backends.items():
            taken[key].append(backend.milliseconds(what))
    return taken


def check(backend: Backend) -> dict[str, str]:
    return dict(backend.db.execute("SELECT item, value FROM clip_check_model(%s)", (backend.name,)).fetchall())


def measure(database: support.Database, models: pathlib.Path, name: str, options: argparse.Namespace) -> dict:
    exact = Backend(database, models, name, cached=False)
    backends = {"float32": exact}
    if options.beside and options.beside != name:
        backends["beside"] = Backend(database, models, options.beside, cached=False)
    for backend in backends.values():
        backend.embed("image", PHOTO.read_bytes())
        backend.embed("text", TEXT)
    found = {
        "model": name,
        "disk_mb": sum(file.stat().st_size for file in (models / name).rglob("*") if file.is_file()) / 1e6,
        "memory_mb": exact.memory(),
        "image_ms": turns(backends, "image", options.rounds),
        "text_ms": turns(backends, "text", options.rounds),
    }
    for key, backend in backends.items():
        if key != "float32":
            backend.db.close()
    if options.int8:
        found["int8"] = eight_bits(database, models, name, exact, options.rounds)
    exact.db.close()
    return found


def eight_bits(database: support.Database, models: pathlib.Path, name: str, exact: Backend, rounds: int) -> dict:
    made = Backend(database, models, f"{name}:auto-int8", cached=True)
    start = seconds_on_cpu(made.pid)
    try:
        found = {"rows": check(made)}
    except psycopg.Error as error:
        return {"error": str(error)}
    found["making_s"] = seconds_on_cpu(made.pid) - start
    photos = [photo.read_bytes() for photo in PHOTOS]
    for what, items in (("image", photos), ("text", TEXTS)):
        cosines = [float(exact.embed(what, item) @ made.embed(what, item)) for item in items]
        found[f"{what}_cosine"] = {"least": min(cosines), "mean": sum(cosines) / len(cosines), "count": len(cosines)}
        for _ in range(MAPPED_RUNS - len(items)):
            made.embed(what, items[0])
        found[f"{what}_ms"] = turns({"float32": exact, "int8": made}, what, rounds)
    found["memory_mb"] = made.memory()
    made.db.close()
    return found


def line(found: dict, beside: str | None) -> str:
    def times(what: str) -> list[str]:
        taken = {key: min(times) for key, times in found[f"{what}_ms"].items()}
        cells = [f"{taken['float32']:.0f}", f"{taken['float32'] / taken.get('beside', taken['float32']):.2f}"]
        if made := found.get("int8", {}).get(f"{what}_ms"):
            cells.append(f"{min(made['int8']) / min(made['float32']):.2f}")
        else:
            cells.append("–")
        return cells

    made = found.get("int8", {})
    cosine = [made[key]["least"] for key in ("image_cosine", "text_cosine") if key in made]
    cells = [found["model"], *times("image"), *times("text"), f"{min(cosine):.5f}" if cosine else "–"]
    cells += [f"{found['disk_mb']:.0f}", f"{found['memory_mb']['private']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--beside", default="clip-vit-base-patch32")
    parser.add_argument(
        "--int8", action="store_true", help="also the extension's eight-bit form, which takes minutes to make"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    names = options.names or sorted(path.name for path in options.models.iterdir() if path.is_dir())
    results = {"processor": cpu.processor(), "photo": PHOTO.name, "text": TEXT, "models": {}}
    if options.json and options.json.exists():
        results["models"] = json.loads(options.json.read_text())["models"]
    database = support.Database()
    print("| model | image, ms | to ViT-B/32 | int8 to float32 | text, ms | to ViT-B/32 | int8 to float32 | least cosine of int8 "
          "| disk, MB | memory, MB |\n|" + "---|" * 10)  # fmt: skip
    try:
        for name in names:
            found = measure(database, options.models.resolve(), name, options)
            results["models"][name] = found
            print(line(found, options.beside), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        database.drop()


if __name__ == "__main__":
    main()
