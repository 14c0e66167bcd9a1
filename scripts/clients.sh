#!/usr/bin/env bash
# Runs every example of docs/clients.md against the throw-away server; installs what their languages need from pip, npm, cargo and apt.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
# shellcheck source=scripts/lib/clients.sh
source "$root/scripts/lib/clients.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
export PG_CONFIG=$pg_config
python_packages
PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || apt_install pgbouncer
clients all
cd "$root"
PYTHONDONTWRITEBYTECODE=1 exec "$target/venv/bin/python" -m pytest -o cache_dir="$target/pytest" -rs tests/docs/test_clients.py
