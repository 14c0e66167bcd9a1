#!/bin/sh
# run.sh [FILE]: run the gallery demo in the database that PGHOST, PGPORT, PGUSER and PGDATABASE name, and write its
# page to FILE if one is named.
# Exit 0: each query found its photo first and each subject is one group. Otherwise it lists what was wrong.
set -eu
page=${1:-}
case $page in '' | /*) ;; *) page=$PWD/$page ;; esac
cd "$(dirname "$0")"
fail() { echo "gallery: $1" >&2; exit 1; }

for tool in psql base64; do
    command -v "$tool" >/dev/null || fail "$tool not found: install it, or run \`make demo\`, which does"
done
reply=$(psql -Xc 'SELECT 1' 2>&1) ||
    fail "no connection ($(echo "$reply" | head -n 1)): run \`make demo\`, or set PGHOST, PGPORT, PGUSER, PGDATABASE"

# The marks and bars are UTF-8, even if no locale is set.
export PGCLIENTENCODING=UTF8
psql -X -v ON_ERROR_STOP=1 -f gallery.sql
[ -n "$page" ] || exit 0

# A viewer keeps the old page until the new one is complete.
mkdir -p "$(dirname "$page")" || fail "can't make the folder of $page: name another file"
page=$(cd "$(dirname "$page")" && pwd)/$(basename "$page")
psql -X -f page.sql -o "$page.new"
mv -f "$page.new" "$page"
cat <<END

LOOK AT IT

   file://$page
END
