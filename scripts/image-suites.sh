#!/usr/bin/env bash
# Compares how the images of public test suites are read with Pillow and tifffile (tests/image_suites.py).
#   make image-suites SUITES="DIRECTORY …"   directories of images, such as clones of image-rs/image-tiff and image-rs/image
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
[ -n "${SUITES:-}" ] || die 'SUITES="DIRECTORY …" names directories of images'
require_pg
cargo_setup
cd "$root"
cargo build --locked --release "${workspace[@]}" --example pixels
venv=$target/image-corpus
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --requirement tests/image_corpus.txt
# SUITES is split into words: each is a directory.
# shellcheck disable=SC2086
"$venv/bin/python" tests/image_suites.py "$target/release/examples/pixels" $SUITES
