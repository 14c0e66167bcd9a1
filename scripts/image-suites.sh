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
python_environment venv-image-corpus tests/image_corpus.txt
# Words of it are directories.
# shellcheck disable=SC2086
"$target/venv-image-corpus/bin/python" tests/image_suites.py "$target/release/examples/pixels" $SUITES
