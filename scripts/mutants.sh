#!/usr/bin/env bash
# Mutation testing: would the tests notice?
#   mutants.sh engine   cargo-mutants on crates/clip, whose settings and exceptions are in .cargo/mutants.toml. All of it takes a day on
#                       two cores. FILES='clustering/centroid.rs text/*.rs' chooses, below crates/clip/src.
#   mutants.sh glue     the mutations of tests/mutants/glue.py, an hour; the server of `make test-cluster` is up. ONLY='words,words' chooses.
# Results stay in target/mutants and target/mutants-glue.jsonl.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
mutants_version=27.1.0
# Of the mutations that build, so many in a hundred have to be noticed.
least=96

engine() {
    local program=$target/tools/bin/cargo-mutants files=() file
    if [ "$("$program" mutants --version 2>/dev/null)" != "cargo-mutants $mutants_version" ]; then
        step cargo-mutants "building cargo-mutants $mutants_version (minutes)" \
            cargo install cargo-mutants --version "$mutants_version" --locked --root "$target/tools"
    fi
    for file in ${FILES:-}; do files+=(--file "crates/clip/src/$file"); done
    export ORT_DYLIB_PATH=$pg_lib/clip_search/libonnxruntime.so PG_CONFIG=$pg_config
    # In place: a copy of the tree would compile all dependencies again. 2 is `some survived`, 3 `some ran out of time`.
    "$program" mutants --in-place --output "$target" --package clip --no-shuffle "${files[@]}" || [ $? -le 3 ]
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
