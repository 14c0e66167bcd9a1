#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# The feasibility study of examples/feasibility, on the cluster of `make cluster`; into target/feasibility.
#   STAMPS=dir    usr/share/tuxpaint/stamps of Debian's package tuxpaint-stamps-default (default: fetched by apt, 161 MB)
#   STAMPS=none   without its three pictures
#   MODEL=name    another model than photo-mini
source "$(dirname "$0")/common.sh"
source "$root/scripts/stamps.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

packages() {
    [ -x "$target/venv-bench/bin/python" ] || "$python" -m venv "$target/venv-bench"
    "$target/venv-bench/bin/python" -m pip install --disable-pip-version-check --only-binary=:all: \
        -r benches/requirements.txt
}
ensure_python
step bench-pip "installing the Python packages of benches/requirements.txt in target/venv-bench" packages

if [ "${STAMPS:-}" != none ]; then find_stamps; fi
options=()
[ -z "${stamps:-}" ] || options+=(--stamps "$stamps")
[ -z "${MODEL:-}" ] || options+=(--model "$MODEL")
PYTHONDONTWRITEBYTECODE=1 "$target/venv-bench/bin/python" examples/feasibility/study.py \
    --out "$target/feasibility" "${options[@]}"
