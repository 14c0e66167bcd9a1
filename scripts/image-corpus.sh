#!/usr/bin/env bash
# 675 image files of every sort by the reference encoders, each embedded and compared with its reference decoder's pixels
# (tests/image_corpus.py), in a virtual environment of its own.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
cargo build --locked --release "${workspace[@]}" --bins
python_environment venv-image-corpus tests/image_corpus.txt
ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$pg_lib/clip_search/libonnxruntime.so} \
    "$target/venv-image-corpus/bin/python" tests/image_corpus.py "$@"
