#!/usr/bin/env bash
# Makes 675 image files of every kind with the reference encoders, embeds each and compares it with its reference decoder's
# pixels (tests/image_corpus.py), in a separate virtual environment.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cargo_setup
cd "$root"
cargo build --locked --release "${workspace[@]}" --bins
venv=$target/image-corpus
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --requirement tests/image_corpus.txt
ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$pg_lib/clip_search/libonnxruntime.so} "$venv/bin/python" tests/image_corpus.py "$@"
