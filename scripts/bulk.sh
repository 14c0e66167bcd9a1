#!/usr/bin/env bash
# The tests of tests/bulk, in the throw-away server: what embeds outside the server, with packages of their own (K=words: only these).
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
export PG_CONFIG=$pg_config
python_environment venv-bulk "$root/tests/bulk/requirements.txt"
cd "$root"
PYTHONDONTWRITEBYTECODE=1 exec "$target/venv-bulk/bin/python" -m pytest -o cache_dir="$target/pytest.bulk" -rs tests/bulk ${K:+-k "$K"}
