#!/usr/bin/env bash
# Makes 675 image files of every kind with the reference encoders, embeds each and compares it with its reference decoder's
# pixels (tests/image_corpus.py), in a separate virtual environment.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
cargo build --locked --release "${workspace[@]}" --bins
python_environment venv-image-corpus tests/image_corpus.txt
ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$pg_lib/clip_search/libonnxruntime.so} \
    "$target/venv-image-corpus/bin/python" tests/image_corpus.py "$@"
