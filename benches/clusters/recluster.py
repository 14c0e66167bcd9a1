#!/usr/bin/env python3
"""Time and memory of the clustering of a whole collection, against scikit-learn's AgglomerativeClustering.

    cargo build --release -p clip --example recluster
    python benches/clusters/recluster.py [--json FILE] [--sets blobs,photos,giant] [--sizes 1000,10000]

512 dimensions, average linkage, threshold 0.82, on one thread. Up to 10,000 rows both run in turn, three times, on
new rows, and must find the same partition; the figures are medians, the ratio that of the pairs. Above that
scikit-learn is left out: the memory given for it is that of its distances, n(n - 1)/2 float64. data.py has what the
sets are. Prints a table in Markdown. Needs numpy and scikit-learn.
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

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENGINE = ROOT / "target/release/examples/recluster"
DIMENSIONS = 512
COMPARED_UP_TO = 10_000
REPEATS = 3


def ours(rows: np.ndarray, threshold: float, linkage: str = "average") -> tuple[np.ndarray, dict]:
    """Labels, and what the engine prints about the run."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "rows.npy"), pathlib.Path(folder, "labels.npy")
        np.save(source, rows)
        run = subprocess.run(
            [ENGINE, source, repr(threshold), linkage, target], check=True, capture_output=True, text=True
        )
        return np.load(target), json.loads(run.stdout)


def theirs(rows: np.ndarray, threshold: float, linkage: str = "average") -> tuple[np.ndarray, float]:
    """Labels, and seconds."""
    rows = rows.astype(np.float64)
    start = time.perf_counter()
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage=linkage, distance_threshold=1 - threshold
    ).fit(rows)
    return model.labels_, time.perf_counter() - start


def measure(name: str, n: int) -> dict:
    compared = n <= COMPARED_UP_TO
    runs = []
    for repeat in range(REPEATS if compared else 1):
        rows = SETS[name](n, DIMENSIONS, np.random.default_rng([repeat, n]))
        labels, figures = ours(rows, THRESHOLD)
        if compared:
            reference, figures["sklearn_seconds"] = theirs(rows, THRESHOLD)
            figures["ari"] = float(adjusted_rand_score(reference, labels))
        runs.append(figures)
    result = {"set": name, "n": n, "runs": runs, "sklearn_distances_gib": n * (n - 1) / 2 * 8 / 2**30}
    for key in ("seconds", "peak_mib", "clusters", "longest_pulse", "sklearn_seconds"):
        if key in runs[0]:
            result[key] = statistics.median(run[key] for run in runs)
    if compared:
        result["ratio"] = statistics.median(run["sklearn_seconds"] / run["seconds"] for run in runs)
        result["ari"] = min(run["ari"] for run in runs)
    return result


def line(result: dict) -> str:
    cells = [result["set"], f"{result['n']:,}", f"{result['clusters']:,.0f}", f"{result['seconds']:.2f} s"]
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
    arguments = parser.parse_args()
    results = []
    print("| set | rows | clusters | time | peak memory | scikit-learn | ratio | ARI | its distances |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.sets.split(","):
        for n in map(int, arguments.sizes.split(",")):
            results.append(measure(name, n))
            print(line(results[-1]), flush=True)
    about = {"sklearn": sklearn.__version__, "numpy": np.__version__, "machine": platform.machine()}
    about |= {"dimensions": DIMENSIONS, "threshold": THRESHOLD, "results": results}
    arguments.json.write_text(json.dumps(about, indent=1) + "\n")
    return int(any(result.get("ari", 1.0) != 1.0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
