#!/usr/bin/env bash
# Runs the browser tests of the gallery page and the web application, on the cluster of `make cluster`.
#   K=words             only the tests that match (pytest's -k)
#   CHROMIUM=/a/path    another Chromium or Chrome than the one on PATH
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
cd "$root"
export PG_CONFIG=$pg_config PATH=$pg_bin:$PATH

if [ -z "${CHROMIUM:-}" ]; then
    # Inter is the pages' first font; with it, screenshots look the same on every machine.
    command -v chromium >/dev/null || apt_install chromium fonts-inter
    CHROMIUM=$(command -v chromium) || die "no chromium on PATH after its installation: set CHROMIUM to a Chromium or Chrome"
fi
export CHROMIUM
python_environment venv-browser "$root/tests/browser/requirements.txt"
python_environment venv-webapp "$root/examples/webapp/requirements.txt"
# --confcutdir: the fixtures of tests/ need other packages.
PYTHONDONTWRITEBYTECODE=1 "$target/venv-browser/bin/python" -m pytest tests/browser --confcutdir=tests/browser \
    -o cache_dir="$target/pytest" ${K:+-k "$K"}
say "screenshots: $target/browser"
