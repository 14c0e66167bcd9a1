#!/usr/bin/env bash
# Runs the benchmarks of benches/README.md on the cluster of `make cluster`. Tables go to stdout, raw figures to
# target/bench.
#   BENCH=embed,server,assign,recluster   only these; jpeg times decoders, shapes other models' towers, sweep compares partitions and
#                                         times nothing
#   MODEL=directory                       your own model in place of ViT-B/32 with random weights
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"
export PG_CONFIG=$pg_config

python_environment venv-bench benches/requirements.txt
run() { PYTHONDONTWRITEBYTECODE=1 "$target/venv-bench/bin/python" "$@"; }

results=$target/bench
mkdir -p "$results"

# The true architecture of OpenAI's ViT-B/32. Weights don't affect the time.
model() {
    model=${MODEL:-$results/clip-vit-base-patch32}
    [ -e "$model/onnx/vision_model.onnx" ] ||
        step bench-model "writing CLIP ViT-B/32 with random weights" run models/make_clip.py --out "$model"
}

for name in $(tr ',' ' ' <<<"${BENCH:-embed,server,assign,recluster}"); do
    printf '\n== %s ==\n' "$name"
    case $name in
    embed)
        model
        step bench-build "building the benchmark" cargo build --locked --release "${workspace[@]}" --example embed_bench
        [ -e "$results/photos/small-coffee.jpg" ] ||
            step bench-photos "making photos to measure with" run benches/peers/photos.py "$results/photos"
        run benches/peers/embed.py --bench target/release/examples/embed_bench \
            --library "$pg_lib/clip_search/libonnxruntime.so" --photos "$results/photos" \
            --json "$results/embed.json" "$model" models/photo-mini
        ;;
    jpeg)
        step bench-jpeg "building the decoders" env CARGO_TARGET_DIR="$results/jpeg" \
            cargo build --release --manifest-path benches/peers/jpeg/Cargo.toml
        [ -e "$results/photos/small-coffee.jpg" ] ||
            step bench-photos "making photos to measure with" run benches/peers/photos.py "$results/photos"
        "$results/jpeg/release/jpeg-decoders" 20 "$results"/photos/small-*.jpg
        "$results/jpeg/release/jpeg-decoders" 3 "$results"/photos/enlarged-{astronaut,coffee,chelsea,rocket,flower,china}.jpg \
            "$results"/photos/mosaic-*.jpg
        ;;
    shapes)
        step bench-build "building the benchmark" cargo build --locked --release "${workspace[@]}" --example embed_bench
        [ -e "$results/photos/small-coffee.jpg" ] ||
            step bench-photos "making photos to measure with" run benches/peers/photos.py "$results/photos"
        step bench-shapes "writing towers with random weights" run benches/peers/shapes.py "$results"
        run benches/peers/embed.py --bench target/release/examples/embed_bench --files 3 --rounds 2 \
            --library "$pg_lib/clip_search/libonnxruntime.so" --photos "$results/photos" \
            --json "$results/shapes.json" "$results/siglip-base-patch16-224" "$results/mobileclip-s0"
        ;;
    server)
        model
        run benches/server/measure.py --model "$model" --json "$results/server.json"
        ;;
    assign) run benches/clusters/assign.py --json "$results/assign.json" ;;
    recluster)
        step bench-build "building the benchmark" cargo build --locked --release "${workspace[@]}" --example recluster
        run benches/clusters/recluster.py --json "$results/recluster.json"
        ;;
    sweep)
        step bench-build "building the benchmark" cargo build --locked --release "${workspace[@]}" --example recluster
        run benches/clusters/sweep.py
        ;;
    *) die "no benchmark $name: BENCH takes embed, jpeg, shapes, server, assign, recluster, sweep" ;;
    esac
done
say "raw figures: $results"
