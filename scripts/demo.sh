#!/usr/bin/env bash
# Runs the gallery demo on the cluster of `make cluster`.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
eval "$("$root/scripts/cluster.sh" env)"
export PG_CONFIG=$pg_config PATH=$pg_bin:$PATH
exec "$root/examples/gallery/run.sh" "$target/demo/gallery.html"
