#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# The feasibility study of examples/feasibility, on the cluster of `make cluster`; into target/feasibility.
#   STAMPS=/a/folder   tuxpaint-stamps-default, unpacked (usr/share/tuxpaint/stamps); by default fetched by apt, 160 MB, once
#   STAMPS=none        without its three pictures
#   MODEL=name         another model than photo-mini
source "$(dirname "$0")/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"

packages() {
    [ -x "$target/venv-bench/bin/python" ] || "$python" -m venv "$target/venv-bench"
    "$target/venv-bench/bin/python" -m pip install --disable-pip-version-check --only-binary=:all: -r benches/requirements.txt
}
ensure_python
step bench-pip "installing the Python packages of benches/requirements.txt in target/venv-bench" packages

# Checked by apt; unpacked without being installed.
fetch_stamps() {
    mkdir -p "$target/downloads"
    cd "$target/downloads"
    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb "$target/stamps"
    rm tuxpaint-stamps-default_*.deb
}
stamps=${STAMPS:-$target/stamps/usr/share/tuxpaint/stamps}
if [ -z "${STAMPS:-}" ] && [ ! -d "$stamps" ]; then
    command -v apt-get >/dev/null || die "no apt-get to fetch tuxpaint-stamps-default with: set STAMPS to its folder, or to none"
    step stamps "fetching the pictures of tuxpaint-stamps-default (apt, 160 MB, once)" fetch_stamps
fi
options=()
[ "$stamps" = none ] || options+=(--stamps "$stamps")
[ -z "${MODEL:-}" ] || options+=(--model "$MODEL")
PYTHONDONTWRITEBYTECODE=1 "$target/venv-bench/bin/python" examples/feasibility/study.py --out "$target/feasibility" "${options[@]}"
