#!/usr/bin/env bash
# The parts of docs/ that are not written by hand, in the cluster of `make test-cluster`: the reference from the catalogue,
# and what psql prints after each example.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
export PG_CONFIG=$pg_config PYTHONDONTWRITEBYTECODE=1
cd "$root"

python_packages
"$target/venv/bin/python" scripts/catalogue.py >"$target/reference.md"
cmp -s "$target/reference.md" docs/reference.md || cp "$target/reference.md" docs/reference.md
say "running the examples of docs/"
"$target/venv/bin/python" tests/pages.py --write
say "read the difference: git diff docs"
