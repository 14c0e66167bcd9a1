#!/bin/sh
# Run the gallery demo in the database that PGHOST, PGPORT, PGUSER and PGDATABASE name.
# Exit 0: each query found its photo first and each subject is one group. Otherwise it lists what was wrong.
set -eu
cd "$(dirname "$0")"
fail() { echo "gallery: $1" >&2; exit 1; }

for tool in psql base64; do
    command -v "$tool" >/dev/null || fail "$tool not found: install it, or run \`make demo\`, which does"
done
reply=$(psql -Xc 'SELECT 1' 2>&1) ||
    fail "no connection ($(echo "$reply" | head -n 1)): run \`make demo\`, or set PGHOST, PGPORT, PGUSER, PGDATABASE"

# The marks and bars are UTF-8, also where no locale is set.
PGCLIENTENCODING=UTF8 psql -X -v ON_ERROR_STOP=1 -f gallery.sql
