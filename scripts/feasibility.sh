#!/usr/bin/env bash
# Runs the feasibility study of examples/feasibility on the cluster of `make cluster`; writes to target/feasibility.
#   STAMPS=dir    usr/share/tuxpaint/stamps of Debian's package tuxpaint-stamps-default (default: fetched by apt, 161 MB)
#   STAMPS=none   without its three pictures
#   MODEL=name    another model than photo-mini
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/stamps.sh
source "$root/scripts/lib/stamps.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

python_environment venv-bench benches/requirements.txt

if [ "${STAMPS:-}" != none ]; then find_stamps; fi
options=()
[ -z "${stamps:-}" ] || options+=(--stamps "$stamps")
[ -z "${MODEL:-}" ] || options+=(--model "$MODEL")
PYTHONDONTWRITEBYTECODE=1 "$target/venv-bench/bin/python" examples/feasibility/study.py \
    --out "$target/feasibility" "${options[@]}"
