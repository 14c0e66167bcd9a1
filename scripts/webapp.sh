#!/usr/bin/env bash
# Runs the web application of examples/webapp on the cluster of `make cluster`, until Ctrl-C.
#   PORT=8080       the port on which it listens, only on 127.0.0.1
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
app=$root/examples/webapp
port=${PORT:-8080}
python_environment venv-webapp "$app/requirements.txt"
run() { PYTHONDONTWRITEBYTECODE=1 "$target/venv-webapp/bin/python" "$@"; }

if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "something listens on port $port already: set PORT to another, as in make webapp PORT=8081"
fi
PGOPTIONS='-c client_min_messages=warning' "$pg_bin/psql" -Xq -f "$app/schema.sql"
# Load photos, so that there is something to search before the first upload.
if [ "$("$pg_bin/psql" -XAtc 'SELECT count(*) FROM webapp.photo')" = 0 ]; then
    mapfile -t samples < <(find "$root/examples/gallery/photos" -name '*.jpg' ! -name '*-cropped.jpg' | sort)
    run "$app/load.py" "${samples[@]}" >&2
fi
printf '\n  http://127.0.0.1:%s\n\n' "$port"
PYTHONDONTWRITEBYTECODE=1 exec "$target/venv-webapp/bin/python" -m uvicorn server:app --app-dir "$app" \
    --host 127.0.0.1 --port "$port" --log-level warning --no-server-header
