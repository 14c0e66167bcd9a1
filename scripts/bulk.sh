#!/usr/bin/env bash
# Embedding outside the server, on many machines: the Python package, and the tests that need packages of their own.
#   bulk.sh wheel   builds the package in target/wheel
#   bulk.sh test    also builds clip-embed with https:// and s3://, and runs tests/bulk on the throw-away server (K=words: only these)
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
REMOTE=1
cargo_setup
cd "$root"
bulk=$target/venv-bulk

wheel() {
    rm -rf "$target/wheel"
    # The package is a workspace of its own, without the features for PostgreSQL or clip-embed.
    local feature chosen=()
    for feature in $features; do
        case $feature in heic | avif | jxl) chosen+=("$feature") ;; esac
    done
    # Beside the extension's build, so that it can use the dependencies compiled there with the same features.
    CARGO_TARGET_DIR=$target "$bulk/bin/maturin" build --release --locked --strip --no-default-features \
        --features "$(IFS=,; echo "${chosen[*]}")" --manifest-path crates/clip-python/Cargo.toml --out "$target/wheel"
}
# Copied, because the next make overwrites target/release/clip-embed with one that lacks these paths.
program() {
    cargo build --locked --release "${workspace[@]}" --bins
    mkdir -p "$target/bulk"
    cp "$target/release/clip-embed" "$target/bulk/clip-embed"
}

case ${1:-} in
wheel | test) ;;
*) die "usage: bulk.sh wheel|test" ;;
esac
python_environment venv-bulk "$root/tests/bulk/requirements.txt"
step wheel "building the Python package in target/wheel (minutes the first time)" wheel
[ "$1" = test ] || exit 0
step bulk-build "building clip-embed with https:// and s3:// (minutes the first time)" program
step bulk-install "installing the Python package in target/venv-bulk" \
    "$bulk/bin/python" -m pip install --disable-pip-version-check --no-deps --no-index --force-reinstall "$target/wheel/"*.whl
eval "$("$root/scripts/cluster.sh" env)"
export PG_CONFIG=$pg_config
PYTHONDONTWRITEBYTECODE=1 exec "$bulk/bin/python" -m pytest -o cache_dir="$target/pytest.bulk" -rs tests/bulk ${K:+-k "$K"}
