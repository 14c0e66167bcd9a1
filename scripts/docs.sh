#!/usr/bin/env bash
# Writes the generated parts of docs/, from the cluster of `make test-cluster`: the reference from the catalog, and psql's output after each
# example.
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
