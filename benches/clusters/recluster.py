#!/usr/bin/env python3
"""Measures time and memory of clustering a whole collection, against scikit-learn's AgglomerativeClustering.

    cargo build --release -p clip --example recluster
    python benches/clusters/recluster.py [--json FILE] [--sets blobs,photos,giant] [--sizes 1000,10000] [--threads 1,2]

512 dimensions, average linkage, threshold 0.82, on one thread and on two. Up to 10,000 rows both programs run in turn,
three times, on new rows, and must find the same partition, with any number of threads; the figures are medians, the
ratios those of the pairs. Above that, scikit-learn doesn't run: the memory given for it is that of its distances,
n(n - 1)/2 float64. data.py describes the sets. Prints a table in Markdown. Needs numpy and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import sklearn
from data import SETS, THRESHOLD
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import cpu

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENGINE = ROOT / "target/release/examples/recluster"
DIMENSIONS = 512
COMPARED_UP_TO = 10_000
REPEATS = 3


def ours(rows: np.ndarray, threshold: float, linkage: str = "average", threads: int = 1) -> tuple[np.ndarray, dict]:
    """Labels, and the engine's own figures for the run."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "rows.npy"), pathlib.Path(folder, "labels.npy")
        np.save(source, rows)
        run = subprocess.run(
            [ENGINE, source, repr(threshold), linkage, target, str(threads)], check=True, capture_output=True, text=True
        )
        return np.load(target), json.loads(run.stdout)


def theirs(rows: np.ndarray, threshold: float, linkage: str = "average") -> tuple[np.ndarray, float]:
    """Labels, and the time in seconds."""
    rows = rows.astype(np.float64)
    start = time.perf_counter()
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage=linkage, distance_threshold=1 - threshold
    ).fit(rows)
    return model.labels_, time.perf_counter() - start


def measure(name: str, n: int, threads: list[int]) -> dict:
    compared = n <= COMPARED_UP_TO
    runs = []
    for repeat in range(REPEATS if compared else 1):
        rows = SETS[name](n, DIMENSIONS, np.random.default_rng([repeat, n]))
        labels, figures = ours(rows, THRESHOLD, threads=threads[0])
        for count in threads[1:]:
            again, others = ours(rows, THRESHOLD, threads=count)
            figures[f"seconds_{count}"], figures[f"peak_mib_{count}"] = others["seconds"], others["peak_mib"]
            if not np.array_equal(labels, again):
                raise SystemExit(f"{name}, {n} rows: {count} threads find another partition")
        if compared:
            reference, figures["sklearn_seconds"] = theirs(rows, THRESHOLD)
            figures["ari"] = float(adjusted_rand_score(reference, labels))
        runs.append(figures)
    result = {"set": name, "n": n, "runs": runs, "sklearn_distances_gib": n * (n - 1) / 2 * 8 / 2**30}
    for key in runs[0].keys() - {"ari"}:
        result[key] = statistics.median(run[key] for run in runs)
    for count in threads[1:]:
        result[f"speedup_{count}"] = statistics.median(run["seconds"] / run[f"seconds_{count}"] for run in runs)
    if compared:
        result["ratio"] = statistics.median(run["sklearn_seconds"] / run["seconds"] for run in runs)
        result["ari"] = min(run["ari"] for run in runs)
    return result


def line(result: dict, threads: list[int]) -> str:
    cells = [result["set"], f"{result['n']:,}", f"{result['clusters']:,.0f}", f"{result['seconds']:.2f} s"]
    cells += [f"{result[f'speedup_{count}']:.2f}×" for count in threads[1:]]
    cells.append(f"{result['peak_mib']:.0f} MiB")
    if "ratio" in result:
        cells += [f"{result['sklearn_seconds']:.2f} s", f"{result['ratio']:.1f}×", f"{result['ari']:.6g}"]
    else:
        cells += ["not run", "", ""]
    return "| " + " | ".join([*cells, f"{result['sklearn_distances_gib']:.2f} GiB"]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target/recluster.json")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--sizes", default="1000,3000,10000,30000,100000")
    parser.add_argument("--threads", default="1,2", help="the first is what the times are of")
    arguments = parser.parse_args()
    threads = [int(count) for count in arguments.threads.split(",")]
    results = []
    by_others = "".join(f" by {count} threads |" for count in threads[1:])
    print(f"| set | rows | clusters | time |{by_others} peak memory | scikit-learn | ratio | ARI | its distances |")
    print("|---" * (9 + len(threads) - 1) + "|")
    for name in arguments.sets.split(","):
        for n in map(int, arguments.sizes.split(",")):
            results.append(measure(name, n, threads))
            print(line(results[-1], threads), flush=True)
    about = {"sklearn": sklearn.__version__, "numpy": np.__version__, "machine": platform.machine()}
    about |= {"processor": cpu.processor(), "dimensions": DIMENSIONS, "threshold": THRESHOLD}
    about |= {"threads": threads, "results": results}
    arguments.json.write_text(json.dumps(about, indent=1) + "\n")
    return int(any(result.get("ari", 1.0) != 1.0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
