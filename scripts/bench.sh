#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# The benchmarks of clusters, for benches/README.md; the cluster of `make cluster` is up. Tables go to stdout.
#   BENCH=assign,recluster,sweep   only these
source "$(dirname "$0")/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

packages() {
    [ -x "$target/venv-bench/bin/python" ] || "$python" -m venv "$target/venv-bench"
    "$target/venv-bench/bin/python" -m pip install --only-binary=:all: -r benches/requirements.txt
}
ensure_python
step bench-pip "installing the benchmarks' Python packages in target/venv-bench" packages
run() { PYTHONDONTWRITEBYTECODE=1 "$target/venv-bench/bin/python" "$@"; }

results=$target/bench
mkdir -p "$results"
for name in $(tr ',' ' ' <<<"${BENCH:-assign,recluster}"); do
    printf '\n== %s ==\n' "$name"
    case $name in
    assign) run benches/clusters/assign.py --json "$results/assign.json" ;;
    recluster)
        step bench-build "building the benchmark" cargo build --release -p clip --example recluster
        run benches/clusters/recluster.py --json "$results/recluster.json"
        ;;
    sweep)
        step bench-build "building the benchmark" cargo build --release -p clip --example recluster
        run benches/clusters/sweep.py
        ;;
    *) die "no benchmark $name: BENCH takes assign, recluster, sweep" ;;
    esac
done
say "raw figures: $results"
