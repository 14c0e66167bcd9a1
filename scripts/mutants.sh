#!/usr/bin/env bash
# Mutation testing: changes the source in small ways and checks that a test fails.
#   mutants.sh engine   cargo-mutants on crates/clip; settings and exceptions are in .cargo/mutants.toml. All 5,400 mutations take days on
#                       two cores. FILES='clustering/centroid.rs text/*.rs' selects files below crates/clip/src, SHARD=3/50 each
#                       fiftieth mutation, from the fourth.
#   mutants.sh glue     the mutations of tests/mutants/glue.py; the server of `make test-cluster` is up. ONLY='words,words' selects by name.
# Results stay in target/mutants and target/mutants-glue.jsonl.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
mutants_version=27.1.0
# The minimum percentage of compiling mutations that the tests must catch.
least=96

engine() {
    local program=$target/tools/bin/cargo-mutants chosen=() file
    if [ "$("$program" mutants --version 2>/dev/null)" != "cargo-mutants $mutants_version" ]; then
        step cargo-mutants "building cargo-mutants $mutants_version (minutes)" \
            cargo install cargo-mutants --version "$mutants_version" --locked --root "$target/tools"
    fi
    for file in ${FILES:-}; do chosen+=(--file "crates/clip/src/$file"); done
    [ -z "${SHARD:-}" ] || chosen+=(--shard "$SHARD" --sharding round-robin)
    export ORT_DYLIB_PATH=$pg_lib/clip_search/libonnxruntime.so PG_CONFIG=$pg_config CARGO_INCREMENTAL=1
    # In place, and with the whole workspace's features, because dependencies would otherwise be compiled again. Status 2: some mutations
    # survived; 3: some timed out.
    "$program" mutants --in-place --output "$target" --package clip --test-workspace true --no-default-features \
        --features "$features" --no-shuffle "${chosen[@]}" || [ $? -le 3 ]
    "$python" scripts/mutants_report.py "$target/mutants.out" "$least"
}

case ${1:-} in
engine) engine ;;
glue)
    python_packages
    eval "$("$root/scripts/cluster.sh" env)"
    "$target/venv/bin/python" scripts/mutants_glue.py ${ONLY:+--only "$ONLY"}
    ;;
*) die "usage: mutants.sh engine|glue" ;;
esac
