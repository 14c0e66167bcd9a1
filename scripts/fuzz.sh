#!/usr/bin/env bash
# Fuzzes in one of two ways.
#   FUZZ=seconds   guided by coverage, with AddressSanitizer, this long for each target (crates/clip/fuzz; needs cargo-fuzz and
#                  a nightly compiler). TARGETS="decode thumbnail" chooses; the corpus is kept in target/fuzz/corpus.
#   otherwise      mutated images, texts, configurations and models, with a fixed seed (crates/clip/tests/fuzz.rs):
#   FORMAT=avif    mutates only images of one format: jpeg, png, gif, webp, bmp, tiff, ico, heic, avif, jxl or raw
#   IMAGES=200000 STRINGS=1000000 CONFIGURATIONS=200000 MODELS=5000   how many; some ten minutes on one core
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
cd "$root"

guided() {
    local name corpus leaks
    command -v cargo-fuzz >/dev/null || die "cargo-fuzz is missing: cargo install cargo-fuzz --locked"
    for name in ${TARGETS:-decode info thumbnail tokenizer configuration onnx}; do
        corpus=$target/fuzz/corpus/$name
        mkdir -p "$corpus"
        seed "$name" "$corpus"
        # LeakSanitizer reports 32 bytes of the thread that reads an animation's header as a leak. In a server, 40,000 calls with the
        # reported file added 12 kB.
        leaks=1
        [ "$name" != info ] || leaks=0
        say "fuzzing $name for $FUZZ s, from $(find "$corpus" -type f | wc -l) files; a finding is kept in target/fuzz/"
        (cd crates/clip && LSAN_OPTIONS=suppressions=$root/crates/clip/fuzz/lsan.supp CARGO_TARGET_DIR=$target/fuzz/build \
            cargo +nightly fuzz run --release "$name" "$corpus" -- \
            -max_total_time="$FUZZ" -max_len=65536 -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -detect_leaks=$leaks -print_final_stats=1 \
            -artifact_prefix="$target/fuzz/$name-" 2>&1) |
            grep -E '^(stat::|Done|#.*(pulse|DONE)|==|SUMMARY|artifact)|ERROR|panicked' ||
            die "fuzzing $name failed: see target/fuzz/"
    done
}

# The seed corpus consists of the tests' own files.
seed() {
    local file
    case $1 in
        decode | info | thumbnail)
            find tests/fixtures/{corpus,images,heic,avif,jxl,tiff} -type f -size -64k ! -name '*.json' ! -name '*.md' -print0 ;;
        configuration) find tests/fixtures -type f -name '*preprocess*.json' -size -8k -print0 ;;
        # Graphs are longer than an input may be; their beginning contains the most.
        onnx) find tests/fixtures/{clip-mini,layouts} -type f -name '*.onnx' -print0 ;;
        *) find tests/fixtures/tokens -type f -size -64k -print0 ;;
    esac | while IFS= read -r -d '' file; do
        head -c 65536 "$file" >"$2/$(sha1sum <"$file" | cut -c1-16)"
    done
}

if [ -n "${FUZZ:-}" ]; then
    guided
    exit
fi
require_pg
cargo_setup
export ORT_DYLIB_PATH=$pg_lib/clip_search/libonnxruntime.so
export CLIP_FUZZ_FORMAT=${FORMAT:-} CLIP_FUZZ_IMAGES=${IMAGES:-200000} CLIP_FUZZ_TEXTS=${STRINGS:-1000000}
export CLIP_FUZZ_CONFIGURATIONS=${CONFIGURATIONS:-200000} CLIP_FUZZ_MODELS=${MODELS:-5000}
say "fuzzing: $CLIP_FUZZ_IMAGES images, $CLIP_FUZZ_TEXTS texts, $CLIP_FUZZ_CONFIGURATIONS configurations," \
    "$CLIP_FUZZ_MODELS models; a finding is kept in target/fuzz/"
# One at a time, so that the peak memory printed by each is its own.
targets=(images)
[ -n "${FORMAT:-}" ] || targets+=(texts configurations models)
for name in "${targets[@]}"; do
    cargo test --locked --release "${workspace[@]}" --quiet --test fuzz -- --exact "$name" --nocapture 2>&1 |
        grep -vE '^(running|thread|stack backtrace|note:| *$)|^ +([0-9]+:|at )|gave up' ||
        die "fuzzing $name failed: see above and target/fuzz/"
done
