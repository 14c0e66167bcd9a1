#!/usr/bin/env bash
# Evaluates how well a model finds photos, on the cluster of `make cluster`: a table to stdout, a plot to target/eval.
#   MODEL=name    the model: a name, or a directory that the server can read (default: photo-mini)
#   STAMPS=dir    usr/share/tuxpaint/stamps of Debian's package tuxpaint-stamps-default (default: fetched by apt, 161 MB)
#   GCOMPRIS=dir  usr/share/gcompris-qt/rcc of Debian's package gcompris-qt-data (default: fetched by apt, 44 MB)
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/stamps.sh
source "$root/scripts/lib/stamps.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

find_stamps
find_gcompris
python_packages
PYTHONDONTWRITEBYTECODE=1 exec "$target/venv/bin/python" benches/eval/evaluate.py \
    --stamps "$stamps" --gcompris "$gcompris" --model "${MODEL:-photo-mini}" --out "$target/eval"
