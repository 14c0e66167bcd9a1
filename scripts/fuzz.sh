#!/usr/bin/env bash
# Mutated images, texts, configurations and models, with a fixed seed (crates/clip/tests/fuzz.rs).
#   IMAGES=200000 STRINGS=1000000 CONFIGURATIONS=200000 MODELS=5000   how many; some ten minutes on one core
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
export ORT_DYLIB_PATH=$pg_lib/clip_search/libonnxruntime.so
export CLIP_FUZZ_IMAGES=${IMAGES:-200000} CLIP_FUZZ_TEXTS=${STRINGS:-1000000}
export CLIP_FUZZ_CONFIGURATIONS=${CONFIGURATIONS:-200000} CLIP_FUZZ_MODELS=${MODELS:-5000}
say "fuzzing: $CLIP_FUZZ_IMAGES images, $CLIP_FUZZ_TEXTS texts, $CLIP_FUZZ_CONFIGURATIONS configurations," \
    "$CLIP_FUZZ_MODELS models; a finding is kept in target/fuzz/"
# One at a time, so that the peak memory that each prints is its own.
for target in images texts configurations models; do
    cargo test --locked --release "${workspace[@]}" --quiet --test fuzz -- --exact "$target" --nocapture 2>&1 |
        grep -vE '^(running|thread|stack backtrace|note:| *$)|^ +([0-9]+:|at )|gave up' ||
        die "fuzzing $target failed: see above and target/fuzz/"
done
